"""The PRV accountant of Opacus (Gopi et al. 2021), extended to drawing one of many shards, and exact in the tails."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import integrate, special

from dpdm.privacy.history import Part
from dpdm.privacy.losses import by_tilt, epsilon_of_losses, tilted, tilted_back
from dpdm.privacy.opacus_analysis import analysis
from dpdm.privacy.rdp import best_rdp, largest_loss
from dpdm.privacy.shards import point_of_loss

_opacus = analysis("prv")

MAX_POINTS = 2**21  # of the domain: memory and time
DELTA_SHARE = 1e-3  # of delta, for the error of the tails: Opacus' choice


def epsilon(history: Sequence[Part], delta: float) -> float:
    """The upper end of the error interval of epsilon at `delta`.

    The error is 0.5 % of epsilon for epsilon up to 2, 0.01 up to 5, and 0.2 % above. It is larger only if `MAX_POINTS`
    limits the grid.
    """
    whole, order = best_rdp(history, delta)
    steps, delta_error = sum(part.steps for part in history), DELTA_SHARE * delta
    fineness = math.sqrt(steps * math.log(12 / delta_error) / 2)
    # The domain (theorem 5.5): by RDP, the sum of the losses and each single loss are outside with at most these
    # masses.
    one = [largest_loss([part._replace(steps=1)], delta_error / (8 * steps)) for part in history]
    reach = max(largest_loss(history, delta_error / 8), *one)
    wanted = max(0.002 * whole, min(0.005 * whole, 0.01))
    error = max(wanted, 2 * reach * fineness / (MAX_POINTS - 4 * fineness))
    reach += 2 * error
    domain = _opacus.Domain.create_aligned(-reach, reach, error / fineness)

    kinds = [_CategoricalPrv if part.categorical else _PoissonPrv for part in history]
    each = [
        _discrete(kind(part.sample_rate, part.noise_multiplier), domain)
        for kind, part in zip(kinds, history, strict=True)
    ]

    def composed(theta: float) -> tuple[float, float]:
        log_scale, masses = 0.0, []
        for one, part in zip(each, history, strict=True):
            mass, log_moment = tilted(one.domain.ts, one.pmf, theta)
            masses.append(_opacus.DiscretePRV(pmf=mass, domain=one.domain))
            log_scale += part.steps * log_moment
        total = _opacus.compose_heterogeneous(masses, [part.steps for part in history])
        losses = total.domain.ts
        found = epsilon_of_losses(losses, tilted_back(total.pmf, losses, theta, log_scale), 0.0, delta - delta_error)
        return found, log_scale

    return by_tilt(composed, order, steps, delta) + error


class _PoissonPrv(_opacus.PoissonSubsampledGaussianPRV):
    """The privacy loss of Poisson sampling, with the record against without: L under R in `shards`."""

    def cdf(self, t: np.ndarray) -> np.ndarray:
        """Replaces Opacus' `cdf`, which overflows for losses above 700."""
        t = np.asarray(t, float)
        return np.where(t < 0, super().cdf(np.minimum(t, 0)), 1 - self.above(np.maximum(t, 0)))

    def above(self, t: np.ndarray) -> np.ndarray:
        """P(loss > t), t >= 0, with full relative precision."""
        q, z = self.sample_rate, self.noise_multiplier
        x = point_of_loss(t, q, z)
        return (1 - q) * special.ndtr(-x / z) + q * special.ndtr((1 - x) / z)

    def mean(self) -> float:
        """The mean of the loss."""
        return self._expected(lambda normal, shifted, q: (1 - q) * normal + q * shifted, -math.inf)

    def _expected(self, weight, least: float) -> float:
        """The integral of L times a density over x > least; the bend of L is where its two terms are equal."""
        q, z = self.sample_rate, self.noise_multiplier
        off = math.log1p(-q) if q < 1 else -math.inf
        bend = 0.5 + z * z * (off - math.log(q)) if q < 1 else 0.5

        def integrand(x: float) -> float:
            loss = np.logaddexp(off, math.log(q) + (2 * x - 1) / (2 * z * z))
            normal, shifted = (math.exp(-((x - mean) ** 2) / (2 * z * z)) for mean in (0, 1))
            return loss * weight(normal, shifted, q) / (z * math.sqrt(2 * math.pi))

        edges = sorted(
            {max(least, x) for x in (-12 * z, 0.0, 0.5, 1.0, 1 + 12 * z)} | {max(least, min(bend, 1 + 12 * z), -12 * z)}
        )
        parts = itertools.pairwise(edges)
        return math.fsum(integrate.quad(integrand, a, b, epsabs=1e-14, epsrel=1e-11, limit=500)[0] for a, b in parts)


class _CategoricalPrv(_PoissonPrv):
    """The privacy loss of drawing one of many shards: of P* in `shards`."""

    def cdf(self, t: np.ndarray) -> np.ndarray:
        t = np.asarray(t, float)
        x = point_of_loss(np.abs(t), self.sample_rate, self.noise_multiplier)
        return np.where(t < 0, special.ndtr(-x / self.noise_multiplier), 1 - self.above(np.abs(t)))

    def mean(self) -> float:
        return self._expected(lambda normal, shifted, q: q * (shifted - normal), 0.5)


def _discrete(prv: _PoissonPrv, domain: Any) -> Any:
    """As Opacus' `discretize`, but with the upper tail by 1 - cdf, and the mean by a quadrature split where L bends."""
    truncated = _opacus.TruncatedPrivacyRandomVariable(prv, domain.t_min, domain.t_max)
    edges = np.linspace(domain.t_min - domain.dt / 2, domain.t_max + domain.dt / 2, domain.size + 1)
    pmf = np.diff(truncated.cdf(edges))
    upper = np.searchsorted(edges, 0.0)
    pmf[upper:] = -np.diff(prv.above(np.minimum(edges[upper:], domain.t_max))) / truncated._remaining_mass
    shift = prv.mean() - float(np.dot(domain.ts, pmf))
    if abs(shift) >= domain.dt / 2:
        raise RuntimeError("the discrete mean differs from the continuous one")
    return _opacus.DiscretePRV(pmf=pmf, domain=domain.shift_right(shift))
