"""The RDP accountant of Opacus (Mironov 2017; Mironov et al. 2019; conversion of Balle et al. 2020), and shards.

`prv` and `pld` size their grids by it.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from dpdm.privacy.history import Part
from dpdm.privacy.opacus_analysis import analysis
from dpdm.privacy.shards import binomial_terms, categorical_rdp

_opacus = analysis("rdp")

# Opacus' orders go from 1.1 to 63; for a small epsilon the optimal order is near log(1/delta)/epsilon.
ORDERS = (
    *(1.001, 1.002, 1.005, 1.01, 1.015, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08),  # for epsilons of hundreds
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *range(12, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
    *(1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 65536),
)


def epsilon(history: Sequence[Part], delta: float) -> float:
    """Epsilon of a history at `delta`."""
    return best_rdp(history, delta)[0]


def best_rdp(history: Sequence[Part], delta: float) -> tuple[float, float]:
    """The same, and the order at which it is smallest."""
    orders = np.array(ORDERS)
    totals = _totals(history, np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1))
    found = _opacus.get_privacy_spent(orders=[ORDERS[i] for i in totals], rdp=list(totals.values()), delta=delta)
    return float(found[0]), float(found[1])


def largest_loss(history: Sequence[Part], mass: float) -> float:
    """The value that the absolute privacy loss of a history exceeds with probability at most `mass` (Mironov 2017)."""
    extra = math.log(2 / mass) / (np.array(ORDERS) - 1)
    return float(min(total + extra[i] for i, total in _totals(history, extra).items()))


def _totals(history: Sequence[Part], extra: np.ndarray) -> dict[int, float]:
    """Renyi divergence of a history by index of the order: where its sum with `extra` is smallest, and at some others.

    All orders would take half a second. But the divergence does not decrease with the order, so its value at one order
    is a lower bound for all larger orders. Skipping an order is safe, since each order gives a bound of epsilon.
    """
    totals: dict[int, float] = {}
    floor, best = np.zeros(len(ORDERS)), math.inf
    steps = sum(part.steps for part in history)
    while len(left := [i for i in np.flatnonzero(floor + extra <= best).tolist() if i not in totals]):
        i = left[len(left) // 2]
        totals[i] = total = sum(part.steps * divergence(part._replace(steps=1), ORDERS[i]) for part in history)
        if not math.isnan(total):
            best = min(best, total + extra[i])
            rounding = 1e-9 * total + 1e-12 * steps / (ORDERS[i] - 1)  # of Opacus' sums, and more
            floor[i:] = np.maximum(floor[i:], total - rounding if total < math.inf else total)
    return dict(sorted(totals.items()))


@functools.lru_cache(maxsize=2**16)  # an audit has the same mechanism at every seed, and twice in one run
def divergence(step: Part, order: float) -> float:
    """Renyi divergence of one step."""
    z, q = step.noise_multiplier, step.sample_rate
    if q == 1:
        return order / (2 * z**2)
    if step.categorical:
        return float(categorical_rdp(q, z, [order])[0])
    if order < 1000:
        return float(_opacus.compute_rdp(q=q, noise_multiplier=z, steps=1, orders=[order])[0])
    # Mironov et al. 2019, section 3.3, for whole orders; the binomials of Opacus' sum overflow here.
    log_moment = special.logsumexp(binomial_terms(q, z, order))
    rounding = 1e-15 * special.gammaln(order)
    return float(max(log_moment, 0.0) + rounding) / (order - 1)
