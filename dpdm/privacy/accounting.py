"""Accounting: epsilon of a list of events, and the noise that meets a budget. Both accountants are Opacus', but for
the privacy loss of drawing one of many shards.

Opacus is imported where it is used, in all of `dpdm.privacy`: it takes longer than torch, and the jobs that sample and
score import this package for the methods' sake and account for nothing.
"""

import functools
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from dpdm.errors import UserError
from dpdm.privacy.ledger import Event

Accountant = Literal["rdp", "prv"]

CALIBRATION_TOLERANCE = 1e-3  # epsilon reached lies in [(1 - tolerance) * target, target]


@dataclass(frozen=True)
class Budget:
    """A privacy budget under adding or removing one record. epsilon = inf: the same path, without noise."""

    epsilon: float
    delta: float

    def __post_init__(self):
        if not self.epsilon > 0:
            raise UserError(f"epsilon must be above 0, got {self.epsilon}")
        if not 0 < self.delta < 1:
            raise UserError(f"delta must lie between 0 and 1, got {self.delta}")


@dataclass(frozen=True)
class Mechanism:
    """One planned mechanism: an event without its noise.

    `sensitivity` is the L2 bound on what one record changes; the door refuses to serve the mechanism with another.
    `noise_ratio` is its noise multiplier relative to the other mechanisms of the plan; the common scale is
    what `calibrate` finds. For Gaussian releases, giving a share s of the budget mu^2 means ratio 1/sqrt(s).
    """

    name: str
    mechanism: Literal["gaussian", "poisson_subsampled_gaussian", "categorical_subsampled_gaussian"] = "gaussian"
    sample_rate: float = 1.0
    steps: int = 1
    noise_ratio: float = 1.0
    sensitivity: float = 1.0

    @classmethod
    def gaussian(cls, name: str, share: float = 1.0, sensitivity: float = 1.0) -> "Mechanism":
        """A one-shot Gaussian release that gets `share` (in (0, 1]) of the plan's Gaussian budget.

        `sensitivity` is the `l2_bound` of `release_sum`, and its square for `release_second_moment`.
        """
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


def epsilon_spent(events: Iterable[Event], delta: float, accountant: Accountant) -> float:
    """An upper bound of epsilon at `delta` for the composition of `events`.

    Zero without events; inf if any event has no noise. RDP: Mironov 2017, Mironov et al. 2019, conversion of
    Balle et al. 2020. PRV: Gopi et al. 2021, the upper end of its error interval.

    Raises:
        UserError: the accountant is unknown.
    """
    history = _history(events)
    if not history:
        return 0.0
    if any(part.noise_multiplier == 0 for part in history):
        return math.inf
    if accountant not in _ACCOUNTANTS:
        raise UserError(f"unknown accountant {accountant!r}; choose one of {', '.join(_ACCOUNTANTS)}")
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # "Optimal order is the largest alpha": a bound all the same. log(1 - q) at q = 1: masked by Opacus itself.
        warnings.simplefilter("ignore")
        return _ACCOUNTANTS[accountant](history, delta)


def epsilon_along(events: Iterable[Event], delta: float, points: int = 20) -> list[tuple[int, float]]:
    """How epsilon at `delta` grew while `events` were released one after the other, under RDP.

    Args:
        points: about how many; the steps of a mechanism are spread evenly over them.

    Returns:
        (steps, epsilon): from (0, 0) to all steps and `epsilon_spent(events, delta, "rdp")`. A one-shot release
        counts no step: two pairs of equal steps are its jump. Empty where a release has no noise: there
        is no epsilon to speak of.
    """
    happened = [event for event in events if event.steps]
    if any(event.noise_multiplier == 0 for event in happened):
        return []
    counts = [0 if event.mechanism == "gaussian" else event.steps for event in happened]
    marks = np.unique(np.linspace(0, sum(counts), points + 1).round().astype(int)).tolist()
    out, done, total = [(0, 0.0)], 0, np.zeros(len(_orders()))
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.simplefilter("ignore")  # as in epsilon_spent
        for event, count in zip(happened, counts, strict=True):
            part = _part(event)
            one = _rdp_of_step(part.noise_multiplier, part.sample_rate, part.categorical)
            for mark in [m for m in marks if done < m < done + count]:
                out.append((mark, _epsilon_of_rdp(total + (mark - done) * one, delta)))
            total, done = total + event.steps * one, done + count
            out.append((done, _epsilon_of_rdp(total, delta)))
    return out


class Part(NamedTuple):
    """`steps` equal compositions."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    categorical: bool = False


def _part(event: Event) -> Part:
    categorical = event.mechanism == "categorical_subsampled_gaussian"
    return Part(event.noise_multiplier, event.sample_rate, event.steps, categorical)


def _history(events: Iterable[Event]) -> list[Part]:
    """The events to compose, all full-batch Gaussians folded into one.

    Gaussians with multipliers z_i compose exactly to one with 1/z^2 = sum_i 1/z_i^2 (Dong et al. 2022),
    which spares the PRV accountant its discretisation error per event.
    """
    history, precision = [], 0.0
    for event in events:
        if event.steps == 0:
            continue
        if event.sample_rate == 1 and event.noise_multiplier > 0:
            precision += event.steps / event.noise_multiplier**2
        else:
            history.append(_part(event))
    if precision > 0:
        history.append(Part(precision**-0.5, 1.0, 1))
    return history


def epsilon_rdp(history: list[Part], delta: float) -> float:
    """Epsilon of a history under the RDP accountant, at its best order."""
    total = np.zeros(len(_orders()))
    for z, q, steps, categorical in history:
        total += steps * _rdp_of_step(z, q, categorical)
    return _epsilon_of_rdp(total, delta)


@functools.cache
def _orders() -> list[float]:
    """Opacus' end at 63, too low for small epsilon, where the optimal order is near log(1/delta)/epsilon."""
    from opacus.accountants import RDPAccountant

    return [*RDPAccountant.DEFAULT_ALPHAS, *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)]


@functools.lru_cache(maxsize=1024)  # an audit meets the same mechanism at every seed, and twice in one run
def _rdp_of_step(noise_multiplier: float, sample_rate: float, categorical: bool) -> np.ndarray:
    """Renyi divergence of one step at each of the orders."""
    from opacus.accountants.analysis import rdp

    if categorical:
        one = categorical_rdp(sample_rate, noise_multiplier, _orders())
    else:
        one = rdp.compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=_orders())
    one.flags.writeable = False  # shared by all callers
    return one


def _epsilon_of_rdp(total: np.ndarray, delta: float) -> float:
    from opacus.accountants.analysis import rdp

    return float(rdp.get_privacy_spent(orders=_orders(), rdp=total, delta=delta)[0])


def _epsilon_prv(history: list[Part], delta: float) -> float:
    from dpdm.privacy.prv import Prv

    # An error of half a per cent of epsilon: Opacus' absolute 0.01 would waste 5 % at epsilon = 0.2.
    eps_error = min(0.01, max(5e-4, 0.005 * epsilon_rdp(history, delta)))
    accountant = Prv()
    accountant.history = history
    return float(accountant.get_epsilon(delta, eps_error=eps_error))


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
            k = np.arange(order + 1)  # the binomial theorem
            log_above = special.logsumexp(
                special.gammaln(order + 1) - special.gammaln(k + 1) - special.gammaln(order - k + 1)
                + special.xlog1py(order - k, -q) + k * math.log(q) + (k * k - k) / (2 * z * z)
                + special.log_ndtr((k - 0.5) / z)
            )  # fmt: skip
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


_ACCOUNTANTS = {"rdp": epsilon_rdp, "prv": _epsilon_prv}


def calibrate(plan: Sequence[Mechanism], budget: Budget, accountant: Accountant) -> float:
    """The noise scale at which the whole `plan` costs at most `budget`, and at least 0.999 of its epsilon.

    Returns 0 for epsilon = inf or an empty plan. Bisection on the noise; the side that is returned was
    checked, so the target is never exceeded.

    Raises:
        UserError: two mechanisms share a name, or no noise up to 2^40 suffices.
    """
    names = [mechanism.name for mechanism in plan]
    if len(set(names)) != len(names):
        raise UserError(f"a privacy plan needs distinct names, got {', '.join(names)}")
    if math.isinf(budget.epsilon) or not plan:
        return 0.0

    def spent(scale: float) -> float:
        return epsilon_spent([mechanism.event(scale) for mechanism in plan], budget.delta, accountant)

    high = 1.0
    while spent(high) > budget.epsilon:
        high *= 2
        if high > 2**40:
            raise UserError(f"no amount of noise meets epsilon = {budget.epsilon:g} at delta = {budget.delta:g}")
    low = high / 2
    while low > 1e-3 and spent(low) <= budget.epsilon:
        low, high = low / 2, low
    reached = spent(high)
    while reached < (1 - CALIBRATION_TOLERANCE) * budget.epsilon and high - low > 1e-9 * high:
        middle = (low + high) / 2
        epsilon = spent(middle)
        if epsilon <= budget.epsilon:
            high, reached = middle, epsilon
        else:
            low = middle
    return high
