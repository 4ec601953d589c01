"""The privacy loss of drawing one of many shards, for every accountant; the derivation is ours.

The mechanism draws a shard with probability q = 1 / number of shards and releases its vector plus noise. With a record
and without it, the outputs are (1 - q) A + q B and (1 - q) A + q B': A from the other shards, B and B' from the
record's shard, all Gaussians (or mixtures of them) with means at most one sensitivity apart. Advanced joint convexity
(Balle, Barthe, Gaboardi 2018, theorem 2) bounds the hockey-stick divergence at g' = 1 + q (g - 1), for any g >= 1 and
in both directions, by q times that of two Gaussians one sensitivity apart: the divergence of R = (1 - q) N(0, z^2) + q
N(1, z^2) from N(0, z^2), Poisson sampling's larger one. A pair of distributions with this profile on both sides
dominates the mechanism, and dominating pairs compose (Zhu, Dong, Wang 2022, theorem 10). With L = log(dR / dN) and P*
the pair's first distribution, its privacy loss is:
  P*(loss > t) = R(L > t) and P*(loss < -t) = N(L > t) for t >= 0, and the remaining mass at 0.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special


def point_of_loss(loss: np.ndarray, sample_rate: float, noise_multiplier: float) -> np.ndarray:
    """Where L is `loss` >= 0: z^2 log((exp(loss) - 1) / q + 1) + 1 / 2, without overflow."""
    q, z = sample_rate, noise_multiplier
    small = np.log1p(np.expm1(np.minimum(loss, 1)) / q)
    return z * z * np.where(loss < 1, small, loss + np.log1p((q - 1) * np.exp(-loss)) - math.log(q)) + 0.5


def categorical_rdp(sample_rate: float, noise_multiplier: float, orders: Sequence[float]) -> np.ndarray:
    """Renyi divergence, at each order, of one draw of one of 1 / `sample_rate` shards (see the module).

    Args:
        sample_rate: q, in (0, 1]; noise_multiplier: z > 0; orders: above 1, those above 11 whole numbers.
    """
    q, z = sample_rate, noise_multiplier
    width = 1 + 12 * z
    tail = special.ndtr(-0.5 / z)  # N(L > 0); L > 0 means x > 1 / 2
    common = _power_above(q, z, 1.0, width)

    def divergence(order: float) -> float:
        # E_N[(dR / dN)^order; L > 0], the larger part. Then 1 = R(L > 0) + N(L > 0) + the mass at 0 is subtracted term
        # by term, since the rest is small, of order q^2.
        if order <= 11:
            above = _power_above(q, z, order, order + 12 * z)
        else:
            k = np.arange(order + 1)
            log_above = special.logsumexp(binomial_terms(q, z, order) + special.log_ndtr((k - 0.5) / z))
            if log_above > 50:  # the other terms are below 1
                return log_above / (order - 1)
            above = math.exp(log_above) - tail
        return math.log1p(max(above - common + _power_above(q, z, 1 - order, width), 0.0)) / (order - 1)

    return np.array([divergence(order) for order in orders])


def binomial_terms(q: float, z: float, order: int) -> np.ndarray:
    """Logarithms of the terms k = 0 ... order of E_N[(dR / dN)^order], by the binomial theorem."""
    k = np.arange(order + 1)
    return (
        special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
        + special.xlog1py(order - k, -q) + k * math.log(q) + (k * k - k) / (2 * z * z)
    )  # fmt: skip


def _power_above(q: float, z: float, power: float, upper: float) -> float:
    """E_N[(dR / dN)^power; L > 0] - N(L > 0), by quadrature over x in [1 / 2, upper]."""
    nodes, weights = _quadrature()
    width = upper - 0.5
    x = 0.5 + width * (nodes + 1) / 2
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z)))
    density = -x * x / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi)) + np.log(weights * width / 2)
    small = power * loss < 1  # where the difference of two exponentials would lose digits
    values = np.where(
        small,
        np.exp(density) * np.expm1(np.minimum(power * loss, 1)),
        np.exp(density + power * loss) - np.exp(density),
    )
    return float(values.sum())


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(400)
