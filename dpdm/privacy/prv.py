"""Opacus' PRV accountant, for categorical sampling as well.

Part of `accounting`, in a file of its own because Opacus is imported late (see there).
"""

import numpy as np
from opacus.accountants import PRVAccountant
from opacus.accountants.analysis.prv import (
    DiscretePRV,
    Domain,
    PoissonSubsampledGaussianPRV,
    TruncatedPrivacyRandomVariable,
    compose_heterogeneous,
    discretize,
)
from scipy import special

from dpdm.privacy.accounting import epsilon_rdp


class _CategoricalPrv(PoissonSubsampledGaussianPRV):
    """The privacy loss of drawing one of many shards: of P* in `accounting`."""

    def cdf(self, t: np.ndarray) -> np.ndarray:
        t = np.asarray(t, float)
        q, z = self.sample_rate, self.noise_multiplier
        x = z * z * np.log1p(np.expm1(np.abs(t)) / q) + 0.5  # where L = |t|
        return np.where(t < 0, special.ndtr(-x / z), 1 - (1 - q) * special.ndtr(-x / z) - q * special.ndtr((1 - x) / z))


class Prv(PRVAccountant):
    """Opacus' accountant; its `history` is a list of `accounting.Part`."""

    def _get_domain(self, prvs: list, num_self_compositions: list[int], eps_error: float, delta_error: float) -> Domain:
        """As Opacus', whose bound of the tails (Gopi et al. 2021, remark 5.6) knows Poisson sampling alone."""
        domain = super()._get_domain(prvs, num_self_compositions, eps_error, delta_error)
        each = delta_error / (8 * sum(num_self_compositions))
        tails = [epsilon_rdp([part._replace(steps=1)], each) for part in self.history]
        largest = max(epsilon_rdp(self.history, delta_error / 4), *tails, eps_error) + 3
        return domain if largest <= domain.t_max else Domain.create_aligned(-largest, largest, domain.dt)

    def _get_dprv(self, eps_error: float, delta_error: float) -> DiscretePRV:
        counts = [part.steps for part in self.history]
        prvs = [
            (_CategoricalPrv if part.categorical else PoissonSubsampledGaussianPRV)(
                part.sample_rate, part.noise_multiplier
            )
            for part in self.history
        ]
        domain = self._get_domain(prvs, counts, eps_error, delta_error)
        truncated = [TruncatedPrivacyRandomVariable(prv, domain.t_min, domain.t_max) for prv in prvs]
        return compose_heterogeneous([discretize(prv, domain) for prv in truncated], counts)
