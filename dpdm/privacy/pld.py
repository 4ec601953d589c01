"""The PLD accountant of Google's dp-accounting, extended to drawing one of many shards; an upper bound of epsilon.

Every privacy loss distribution is discretized by "connect the dots" (Doroshenko et al. 2022), which dominates the exact
distribution. Both directions (with the record against without, and the reverse) are composed, and the larger epsilon
counts. Zero-out adjacency is the library's REPLACE_SPECIAL, for which it composes the same pair as for adding or
removing.
"""

import math
from collections.abc import Sequence

import numpy as np
from dp_accounting.pld import pld_pmf, privacy_loss_distribution
from dp_accounting.privacy_accountant import NeighboringRelation
from scipy import special

from dpdm.privacy.history import Part
from dpdm.privacy.losses import by_tilt, epsilon_of_losses, tilted, tilted_back
from dpdm.privacy.rdp import best_rdp
from dpdm.privacy.shards import point_of_loss

MAX_POINTS = 2**17  # of one step's discretized loss: memory and time
TRUNCATED = 1e-18  # (tilted) mass that a composition may cut off; mass cut at the top counts as an infinite loss
LOG_TAIL = -50  # of the noise: mass exp(-50) beyond its ends counts as an infinite loss


def epsilon(history: Sequence[Part], delta: float) -> float:
    """Epsilon of a history at `delta`."""
    scale, order = best_rdp(history, delta)
    steps = sum(part.steps for part in history)
    for _ in range(3):
        interval = _interval(history, delta, scale)
        pairs = _pairs(history, interval)
        found = max(
            by_tilt(lambda theta, one=one: _composed(one, history, theta, delta), order, steps, delta)
            for one in zip(*pairs, strict=True)
        )
        if found > scale / 4 or scale < 1e-6:  # the interval was fine enough for this epsilon
            break
        scale = max(found, scale / 100)
    return found


def _interval(history: Sequence[Part], delta: float, epsilon: float) -> float:
    """The grid of losses: about 0.1 % of epsilon, unless `MAX_POINTS` bind.

    Connecting dots h apart adds up to h^2 / 4 to the variance of one step's loss. With V the total loss's variance,
    epsilon is near V / 2 + sqrt(2 V log(1 / delta)). With the returned interval h, epsilon grows by at most about 0.2
    %.
    """
    steps = sum(part.steps for part in history)
    fine = math.sqrt(0.016 / (steps * (epsilon + 2 * math.log(1 / delta)))) * epsilon
    widest = max(_largest_loss(part) for part in history)
    return max(fine, 2 * widest / MAX_POINTS)


def _largest_loss(part: Part) -> float:
    """The largest loss of one step, except for a mass of exp(LOG_TAIL)."""
    q, z = part.sample_rate, part.noise_multiplier
    x = 1 + z * -float(special.ndtri_exp(LOG_TAIL - math.log(2)))
    return float(np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + (2 * x - 1) / (2 * z * z)))


def _pairs(history: Sequence[Part], interval: float) -> list[tuple[pld_pmf.DensePLDPmf, pld_pmf.DensePLDPmf]]:
    """For each part, the discretized loss of one step in both directions."""
    return [_categorical(part, interval) if part.categorical else _poisson(part, interval) for part in history]


def _poisson(part: Part, interval: float) -> tuple[pld_pmf.DensePLDPmf, pld_pmf.DensePLDPmf]:
    pld = privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=part.noise_multiplier,
        sampling_prob=part.sample_rate,
        value_discretization_interval=interval,
        log_mass_truncation_bound=LOG_TAIL,
        neighboring_relation=NeighboringRelation.REPLACE_SPECIAL,
    )
    return pld._pmf_remove.to_dense_pmf(), pld._pmf_add.to_dense_pmf()


def _categorical(part: Part, interval: float) -> tuple[pld_pmf.DensePLDPmf, pld_pmf.DensePLDPmf]:
    """The losses of P* in `shards`: the hockey-stick divergence of Poisson sampling above 0, and mirrored below."""
    q, z = part.sample_rate, part.noise_multiplier
    last = math.ceil(_largest_loss(part) / interval)
    above = np.arange(last + 1) * interval
    x = point_of_loss(above, q, z)
    with_record = np.logaddexp(
        (math.log1p(-q) if q < 1 else -math.inf) + special.log_ndtr(-x / z), math.log(q) + special.log_ndtr((1 - x) / z)
    )
    without = np.minimum(above + special.log_ndtr(-x / z), with_record)
    delta = np.exp(with_record) * -np.expm1(without - with_record)
    below = -np.expm1(-above[:0:-1]) + np.exp(-above[:0:-1]) * delta[:0:-1]  # delta(-e) = 1 - exp(-e) (1 - delta(e))
    pmf = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, -last, last, np.minimum.accumulate(np.concatenate([below, delta]))
    ).to_dense_pmf()
    return pmf, pmf


def _composed(
    pmfs: list[pld_pmf.DensePLDPmf], history: Sequence[Part], theta: float, delta: float
) -> tuple[float, float]:
    """Epsilon at `delta` of all steps in one direction; and the logarithm of the divisor by tilting of all masses."""
    total, log_scale, finite, cut = None, 0.0, 0.0, 0.0
    for pmf, part in zip(pmfs, history, strict=True):
        losses = (pmf._lower_loss + np.arange(pmf.size)) * pmf._discretization
        masses, log_moment = tilted(losses, pmf._probs, theta)
        one = pld_pmf.DensePLDPmf(pmf._discretization, pmf._lower_loss, masses, 0.0, True)
        many = one.self_compose(part.steps, TRUNCATED)
        log_scale += part.steps * log_moment
        finite += part.steps * math.log1p(-pmf._infinity_mass)
        top = (many._lower_loss + many.size - 1) * many._discretization
        cut += TRUNCATED * math.exp(min(part.steps * log_moment - theta * top, 0.0))  # at most 0, by Chernoff
        total = many if total is None else total.compose(many)
    losses = (total._lower_loss + np.arange(total.size)) * total._discretization
    masses = tilted_back(total._probs, losses, theta, log_scale)
    masses[0] += 1.0  # the mass cut at the bottom, which can be up to 1 before tilting
    return epsilon_of_losses(losses, masses, cut - math.expm1(finite), delta), log_scale
