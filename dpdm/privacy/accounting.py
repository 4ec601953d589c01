"""Accounting: epsilon of a list of events, and the noise that meets a budget, under three accountants.

RDP and PRV are Opacus', PLD is Google's dp-accounting; the privacy loss of drawing one of many shards is ours in all
three. Both libraries are imported where they are used: Opacus takes longer than torch, and the jobs that sample and
score import this package for the methods' sake and account for nothing.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import signal, special

from dpdm.errors import UserError
from dpdm.privacy.ledger import Event

Accountant = Literal["rdp", "prv", "pld"]

CALIBRATION_TOLERANCE = 1e-3  # epsilon reached lies in [(1 - tolerance) * target, target]
SMALLEST_DELTA = 1e-12  # below, the double precision of the PRV and PLD accountants is not enough
_NO_NOISE = 1e-3  # a noise multiplier below is accounted for as none
SENSITIVITIES = (1e-30, 1e30)  # beyond, the grid to which a release is rounded could leave the range of float64
LARGEST_EPSILON = 1000.0  # of a budget; ten times as much is still accounted for, and beyond it epsilon is called inf


@dataclass(frozen=True)
class Budget:
    """A privacy budget under adding or removing one record. epsilon = inf: the same path, without noise."""

    epsilon: float
    delta: float

    def __post_init__(self):
        if not (0 < self.epsilon <= LARGEST_EPSILON or self.epsilon == math.inf):
            raise UserError(
                f"epsilon must be above 0 and at most {LARGEST_EPSILON:g} (or inf: no noise), got {self.epsilon}"
            )
        if not SMALLEST_DELTA <= self.delta < 1:
            raise UserError(
                f"delta must lie between {SMALLEST_DELTA:g}, the least that every accountant resolves, and 1, "
                f"got {self.delta}"
            )


@dataclass(frozen=True)
class Mechanism:
    """One planned mechanism: an event without its noise.

    `sensitivity` is the L2 bound on what one record changes, in [1e-30, 1e30]; the door refuses to serve the mechanism
    with another.
    `noise_ratio` is its noise multiplier relative to the other mechanisms of the plan; the common scale is
    what `calibrate` finds. For Gaussian releases, giving a share s of the budget mu^2 means ratio 1/sqrt(s).

    Raises:
        UserError: the sensitivity is outside its range.
    """

    name: str
    mechanism: Literal["gaussian", "poisson_subsampled_gaussian", "categorical_subsampled_gaussian"] = "gaussian"
    sample_rate: float = 1.0
    steps: int = 1
    noise_ratio: float = 1.0
    sensitivity: float = 1.0

    def __post_init__(self):
        least, most = SENSITIVITIES
        if not least <= self.sensitivity <= most:
            raise UserError(
                f"mechanism {self.name}: sensitivity must lie between {least:g} and {most:g}, got {self.sensitivity}; "
                "rescale what it releases"
            )

    @classmethod
    def gaussian(cls, name: str, share: float = 1.0, sensitivity: float = 1.0) -> "Mechanism":
        """A one-shot Gaussian release that gets `share` (in (0, 1]) of the plan's Gaussian budget.

        `sensitivity` is the `l2_bound` of `release_sum`, and its square for `release_second_moment`.

        Raises:
            UserError: the share is outside (0, 1].
        """
        if not 0 < share <= 1:
            raise UserError(f"mechanism {name}: its share of the budget must be above 0 and at most 1, got {share}")
        return cls(name, noise_ratio=1 / math.sqrt(share), sensitivity=sensitivity)

    @classmethod
    def poisson(
        cls,
        name: str,
        expected_batch_size: int,
        n: int,
        steps: int,
        noise_ratio: float = 1.0,
        sensitivity: float = 1.0,
    ) -> "Mechanism":
        """`steps` Poisson batches of `expected_batch_size` of n records on average.

        Raises:
            UserError: the expected batch is larger than the data set.
        """
        if expected_batch_size > n:
            raise UserError(
                f"expected_batch_size = {expected_batch_size} is larger than the {n} training images; "
                f"choose at most {n}"
            )
        rate = expected_batch_size / n
        return cls(name, "poisson_subsampled_gaussian", rate, steps, noise_ratio, sensitivity)

    def event(self, noise_scale: float, steps: int | None = None) -> Event:
        """The event that this mechanism causes at a noise scale, after `steps` (default: all planned) steps."""
        return Event(
            self.mechanism, self.name, noise_scale * self.noise_ratio, self.sensitivity, self.sample_rate,
            self.steps if steps is None else steps,
        )  # fmt: skip


class Part(NamedTuple):
    """`steps` equal compositions."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    categorical: bool = False


def epsilon_spent(events: Iterable[Event], delta: float, accountant: Accountant) -> float:
    """An upper bound of epsilon at `delta` for the composition of `events`.

    RDP: Mironov 2017, Mironov et al. 2019, conversion of Balle et al. 2020. PRV: Gopi et al. 2021, the upper end of its
    error interval. PLD: Google's dp-accounting, with pessimistic discretisation.

    Returns:
        At least 0, which it is without events. inf if an event has no noise or next to none, and under PRV and PLD
        where RDP says more than 10,000: they do not resolve that.

    Raises:
        UserError: the accountant is unknown, or could not account for these events.
    """
    if accountant not in _ACCOUNTANTS:
        raise UserError(f"unknown accountant {accountant!r}; choose one of {', '.join(_ACCOUNTANTS)}")
    return _spent(tuple(_history(events)), delta, accountant)


@functools.lru_cache(maxsize=4096)  # seeds share a plan, and an audit repeats what the calibration computed
def _spent(history: tuple[Part, ...], delta: float, accountant: Accountant) -> float:
    if not history:
        return 0.0
    if any(part.noise_multiplier < _NO_NOISE for part in history):
        return math.inf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # "Optimal order is the largest alpha": a bound all the same. log(1 - q) at q = 1: masked by Opacus itself.
        warnings.simplefilter("ignore")
        try:
            if accountant != "rdp" and epsilon_rdp(history, delta) > 10 * LARGEST_EPSILON:
                return math.inf
            epsilon = _ACCOUNTANTS[accountant](history, delta)
        except (ArithmeticError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"accountant {accountant} cannot account for {history} at delta = {delta:g} ({error})"
            ) from error
    if math.isnan(epsilon):
        raise UserError(f"accountant {accountant} finds no epsilon (NaN) for {history} at delta = {delta:g}")
    return max(epsilon, 0.0)


def _part(event: Event) -> Part:
    categorical = event.mechanism == "categorical_subsampled_gaussian"
    # Neither more noise nor a lower rate than these, which arithmetic bears: that can only raise epsilon.
    return Part(min(event.noise_multiplier, 1e12), max(event.sample_rate, 1e-15), event.steps, categorical)


def _history(events: Iterable[Event]) -> list[Part]:
    """The events to compose, all full-batch Gaussians folded into one.

    Gaussians with multipliers z_i compose exactly to one with 1/z^2 = sum_i 1/z_i^2 (Dong et al. 2022),
    which spares the PRV accountant its discretisation error per event.
    """
    history, precision = [], 0.0
    for event in events:
        part = _part(event)
        if part.steps == 0:
            continue
        if part.sample_rate == 1 and part.noise_multiplier >= _NO_NOISE:
            precision += part.steps / part.noise_multiplier**2
        else:
            history.append(part)
    if precision > 0:
        history.append(Part(precision**-0.5, 1.0, 1))
    return history


def epsilon_rdp(history: list[Part], delta: float) -> float:
    """Epsilon of a history under the RDP accountant."""
    return best_rdp(history, delta)[0]


def best_rdp(history: list[Part], delta: float) -> tuple[float, float]:
    """The same, and the order at which it is least."""
    return _converted(sum(steps * _rdp_of_step(z, q, categorical) for z, q, steps, categorical in history), delta)


def largest_loss(history: list[Part], mass: float) -> float:
    """What the absolute privacy loss of a history exceeds with probability `mass` at most (Mironov 2017)."""
    total = sum(steps * _rdp_of_step(z, q, categorical) for z, q, steps, categorical in history)
    return float(np.min(total + math.log(2 / mass) / (np.array(_orders()) - 1)))


@functools.cache
def _orders() -> list[float]:
    """Opacus' go from 1.1 to 63; the optimal order is near log(1/delta)/epsilon where epsilon is small."""
    from opacus.accountants import RDPAccountant

    return [*_LOW_ORDERS, *RDPAccountant.DEFAULT_ALPHAS, *_HIGH_ORDERS]


_LOW_ORDERS = (1.001, 1.002, 1.005, 1.01, 1.015, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08)  # for epsilons of hundreds
_HIGH_ORDERS = (
    *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024),
    *(1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768, 65536),
)


@functools.lru_cache(maxsize=1024)  # an audit meets the same mechanism at every seed, and twice in one run
def _rdp_of_step(noise_multiplier: float, sample_rate: float, categorical: bool) -> np.ndarray:
    """Renyi divergence of one step at each of the orders."""
    from opacus.accountants.analysis import rdp

    orders = _orders()
    if sample_rate == 1:
        one = np.array(orders) / (2 * noise_multiplier**2)
    elif categorical:
        one = categorical_rdp(sample_rate, noise_multiplier, orders)
    else:
        low = [order for order in orders if order < 1000]  # beyond, binomials of Opacus' sum overflow
        one = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=low)
        one = np.append(one, [_poisson_rdp(sample_rate, noise_multiplier, order) for order in orders[len(low) :]])
    one.flags.writeable = False  # shared by all callers
    return one


def _poisson_rdp(sample_rate: float, noise_multiplier: float, order: int) -> float:
    """Mironov et al. 2019, section 3.3: of whole orders."""
    log_moment = special.logsumexp(_binomial_terms(sample_rate, noise_multiplier, order))
    rounding = 1e-15 * special.gammaln(order)
    return float(max(log_moment, 0.0) + rounding) / (order - 1)


def _binomial_terms(q: float, z: float, order: int) -> np.ndarray:
    """Logarithms of the terms k = 0 ... order of E_N[(dR / dN)^order], by the binomial theorem."""
    k = np.arange(order + 1)
    return (
        special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
        + special.xlog1py(order - k, -q) + k * math.log(q) + (k * k - k) / (2 * z * z)
    )  # fmt: skip


def _converted(total: np.ndarray, delta: float) -> tuple[float, float]:
    from opacus.accountants.analysis import rdp

    epsilon, order = rdp.get_privacy_spent(orders=_orders(), rdp=total, delta=delta)
    return float(epsilon), float(order)


def _epsilon_prv(history: list[Part], delta: float) -> float:
    from dpdm.privacy.prv import epsilon_prv

    return epsilon_prv(history, delta)


def _epsilon_pld(history: list[Part], delta: float) -> float:
    from dpdm.privacy.pld import epsilon_pld

    return epsilon_pld(history, delta)


# --- discrete privacy losses: what `prv` and `pld` share ------------------------------------------------------------
#
# Both compose by FFT, whose rounding error is absolute: 1e-17 times the number of steps, as large as a delta of 1e-12
# after 1e5 steps, and of either sign. So masses are tilted by exp(theta loss) before they are composed, with theta + 1
# the order at which RDP is best: that moves the losses near epsilon to the middle of the distribution, where an error
# is relative. Tilting commutes with composition, and is undone after it.


def by_tilt(composed: Callable[[float], tuple[float, float]], order: float, steps: int, delta: float) -> float:
    """Epsilon by the first tilt whose rounding does not count: the one that fits `order`, others, or none.

    Args:
        composed: maps theta to epsilon, and to the logarithm of what all masses together were divided by.

    Raises:
        RuntimeError: rounding may change delta by more than a hundredth either way.
    """
    for factor in (1, 8, 64, 512, 1 / 8, 0):
        theta = factor * (order - 1)
        epsilon, log_moment = composed(theta)
        if 1e-16 * steps * math.exp(min(log_moment - theta * epsilon, 700)) <= 0.01 * delta:
            return epsilon
    raise RuntimeError("rounding errors are as large as delta")


def tilted(losses: np.ndarray, masses: np.ndarray, theta: float) -> tuple[np.ndarray, float]:
    """Masses times exp(theta loss), normalised; and the logarithm of what they were divided by."""
    with np.errstate(divide="ignore"):
        logs = np.log(masses) + theta * losses
    log_moment = float(special.logsumexp(logs))
    return np.exp(logs - log_moment), log_moment


def tilted_back(masses: np.ndarray, losses: np.ndarray, theta: float, log_moment: float) -> np.ndarray:
    """The inverse of `tilted`; what rounding made negative is 0, and no mass is above exp(100) (low losses' noise)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(masses) + (log_moment - theta * losses)
    return np.where(masses > 0, np.exp(np.minimum(logs, 100)), 0.0)


def epsilon_of_losses(losses: np.ndarray, masses: np.ndarray, infinity: float, delta: float) -> float:
    """The least epsilon >= 0 at which the hockey-stick divergence is at most `delta`.

    Args:
        losses: evenly spaced, increasing; masses: of each. infinity: the mass of an infinite loss.
    """
    if infinity >= delta:
        return math.inf
    positive = losses > 0
    losses, masses = losses[positive], masses[positive]
    if not len(losses):
        return 0.0
    decay = math.exp(-(losses[1] - losses[0])) if len(losses) > 1 else 0.0
    upper = infinity + masses[::-1].cumsum()[::-1]  # P(loss >= losses[i])
    lower = signal.lfilter([1.0], [1.0, -decay], masses[::-1])[::-1]  # times exp(losses[i]): the other distribution's
    exceeding = np.flatnonzero(upper - lower > delta)
    i = exceeding[-1] + 1 if len(exceeding) else 0  # epsilon lies between the losses before i and at i
    if i == len(losses):
        return float(losses[-1])
    return max(float(losses[i] + math.log((upper[i] - delta) / lower[i])) if upper[i] > delta else 0.0, 0.0)


# --- one of many shards -----------------------------------------------------------------------------------------
#
# The mechanism draws a shard with probability q = 1 / number of shards and releases its vector plus noise. With a
# record and without it, the outputs are (1 - q) A + q B and (1 - q) A + q B': A from the other shards, B and B' from
# the record's own, all Gaussians (or mixtures of them) with means at most one sensitivity apart. Advanced joint
# convexity (Balle, Barthe, Gaboardi 2018, theorem 2) bounds the hockey-stick divergence at g' = 1 + q (g - 1), for any
# g >= 1 and in both directions, by q times that of two Gaussians one sensitivity apart: the divergence of
# R = (1 - q) N(0, z^2) + q N(1, z^2) from N(0, z^2), Poisson sampling's larger one. A pair of distributions with that
# profile on both sides dominates the mechanism, and dominating pairs compose (Zhu, Dong, Wang 2022, theorem 10). Its
# privacy loss, with L = log(dR / dN) and P* its first distribution:
#   P*(loss > t) = R(L > t) and P*(loss < -t) = N(L > t) for t >= 0, and the remaining mass at 0.


def point_of_loss(loss: np.ndarray, sample_rate: float, noise_multiplier: float) -> np.ndarray:
    """Where L is `loss` >= 0: z^2 log((exp(loss) - 1) / q + 1) + 1 / 2, without overflow."""
    q, z = sample_rate, noise_multiplier
    small = np.log1p(np.expm1(np.minimum(loss, 1)) / q)
    return z * z * np.where(loss < 1, small, loss + np.log1p((q - 1) * np.exp(-loss)) - math.log(q)) + 0.5


def categorical_rdp(sample_rate: float, noise_multiplier: float, orders: Sequence[float]) -> np.ndarray:
    """Renyi divergence, at each order, of one draw of one of 1 / `sample_rate` shards (see above).

    Args:
        sample_rate: q, in (0, 1]; noise_multiplier: z > 0; orders: above 1, those above 11 whole numbers.
    """
    q, z = sample_rate, noise_multiplier
    width = 1 + 12 * z
    tail = special.ndtr(-0.5 / z)  # N(L > 0); L > 0 means x > 1 / 2
    common = _power_above(q, z, 1.0, width)

    def divergence(order: float) -> float:
        # E_N[(dR / dN)^order; L > 0], the larger part, then 1 = R(L > 0) + N(L > 0) + the mass at 0, taken off term by
        # term: what is left is small, of order q^2.
        if order <= 11:
            above = _power_above(q, z, order, order + 12 * z)
        else:
            k = np.arange(order + 1)
            log_above = special.logsumexp(_binomial_terms(q, z, order) + special.log_ndtr((k - 0.5) / z))
            if log_above > 50:  # all else is below 1
                return log_above / (order - 1)
            above = math.exp(log_above) - tail
        return math.log1p(max(above - common + _power_above(q, z, 1 - order, width), 0.0)) / (order - 1)

    return np.array([divergence(order) for order in orders])


def _power_above(q: float, z: float, power: float, upper: float) -> float:
    """E_N[(dR / dN)^power; L > 0] - N(L > 0), by quadrature over x in [1 / 2, upper]."""
    nodes, weights = _quadrature()
    width = upper - 0.5
    x = 0.5 + width * (nodes + 1) / 2
    loss = np.log1p(q * np.expm1((2 * x - 1) / (2 * z * z)))
    density = -x * x / (2 * z * z) - math.log(z * math.sqrt(2 * math.pi)) + np.log(weights * width / 2)
    small = power * loss < 1  # there the difference of two exponentials would lose digits
    values = np.where(
        small,
        np.exp(density) * np.expm1(np.minimum(power * loss, 1)),
        np.exp(density + power * loss) - np.exp(density),
    )
    return float(values.sum())


@functools.cache
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(400)


_ACCOUNTANTS = {"rdp": epsilon_rdp, "prv": _epsilon_prv, "pld": _epsilon_pld}


# --- calibration --------------------------------------------------------------------------------------------------


def calibrate(plan: Sequence[Mechanism], budget: Budget, accountant: Accountant) -> float:
    """The noise scale at which the whole `plan` costs at most `budget`, under all that an audit will ask.

    These are `accountant`, PRV and PLD. Under the one of them that says most, the plan costs at least 0.999 of the
    budget's epsilon: that is `accountant`, unless the error intervals of two tight ones part them.

    Returns 0 for epsilon = inf or an empty plan. The scale that is returned was checked under all three.

    Raises:
        UserError: two mechanisms share a name, or an accountant certifies this epsilon for no noise up to 2^40.
    """
    names = [mechanism.name for mechanism in plan]
    if len(set(names)) != len(names):
        raise UserError(f"a privacy plan needs distinct names, got {', '.join(names)}")
    if math.isinf(budget.epsilon) or not plan:
        return 0.0
    return _calibrated(tuple(plan), budget, accountant)


@functools.lru_cache(maxsize=1024)
def _calibrated(plan: tuple[Mechanism, ...], budget: Budget, accountant: Accountant) -> float:
    scale = None
    for _ in range(4):
        for name in audited_under(accountant):
            if scale is None or _cost(plan, scale, budget.delta, name) > budget.epsilon:
                scale = _least_scale(plan, budget, name, scale)
        if all(_cost(plan, scale, budget.delta, name) <= budget.epsilon for name in audited_under(accountant)):
            return scale
    raise UserError(f"no noise scale meets epsilon = {budget.epsilon:g} under all of {audited_under(accountant)}")


def audited_under(accountant: Accountant) -> tuple[Accountant, ...]:
    """The accountants whose epsilon must not exceed the target: the declared one, and the two tight ones."""
    return tuple(dict.fromkeys((accountant, "prv", "pld")))


def _cost(plan: Sequence[Mechanism], scale: float, delta: float, accountant: Accountant) -> float:
    return epsilon_spent([mechanism.event(scale) for mechanism in plan], delta, accountant)


def _least_scale(plan: tuple[Mechanism, ...], budget: Budget, accountant: Accountant, guess: float | None) -> float:
    """The scale at which `accountant` says at most the budget's epsilon, and at least 0.999 of it.

    By false position on log scale and log epsilon, with halving where that stalls. The scale that is returned was
    evaluated.
    """
    target, factor = budget.epsilon, 1.02
    if guess is None:
        guess, factor = 1.0, 2.0
        if accountant != "rdp" and _cost(plan, 2.0**40, budget.delta, "rdp") <= target:
            guess, factor = _least_scale(plan, budget, "rdp", None), 1.25  # near, and quick to find
    high = guess
    while (reached := _cost(plan, high, budget.delta, accountant)) > target:
        high *= factor
        if high > 2**40:
            raise UserError(
                f"accountant {accountant} certifies epsilon = {target:g} at delta = {budget.delta:g} for no amount of "
                f"noise; choose a larger epsilon" + (", or accountant pld" if accountant != "pld" else "")
            )
    low = high / factor
    while (above := _cost(plan, low, budget.delta, accountant)) <= target:
        if low < _NO_NOISE:
            return low
        low, high, reached = low / factor, low, above
    for step in range(200):
        if reached >= (1 - CALIBRATION_TOLERANCE) * target or high - low <= 1e-9 * high:
            break
        share = 0.5
        if step % 3 < 2 and 0 < reached < above < math.inf:
            aim = math.log((1 - CALIBRATION_TOLERANCE / 2) * target / reached)
            share = min(max(aim / math.log(above / reached), 1e-3), 1 - 1e-3)
        middle = high ** (1 - share) * low**share
        epsilon = _cost(plan, middle, budget.delta, accountant)
        if epsilon <= target:
            high, reached = middle, epsilon
        else:
            low, above = middle, epsilon
    return high
