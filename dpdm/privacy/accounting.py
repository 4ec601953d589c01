"""Accounting: epsilon of a list of events, and the noise that meets a budget. Both accountants are Opacus'."""

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from opacus.accountants import PRVAccountant, RDPAccountant

from dpdm.errors import UserError
from dpdm.privacy.ledger import Event

Accountant = Literal["rdp", "prv"]

# Opacus' orders end at 63, too low for small epsilon, where the optimal order is near log(1/delta)/epsilon.
RDP_ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, *(64, 72, 80, 96, 112, 128, 160, 192, 256, 320, 384, 512, 768, 1024)]
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

    `noise_ratio` is its noise multiplier relative to the other mechanisms of the plan; the common scale is
    what `calibrate` finds. For Gaussian releases, giving a share s of the budget mu^2 means ratio 1/sqrt(s).
    """

    name: str
    mechanism: Literal["gaussian", "poisson_subsampled_gaussian"] = "gaussian"
    sample_rate: float = 1.0
    steps: int = 1
    noise_ratio: float = 1.0

    @classmethod
    def gaussian(cls, name: str, share: float = 1.0) -> "Mechanism":
        """A one-shot Gaussian release that gets `share` (in (0, 1]) of the plan's Gaussian budget."""
        return cls(name, noise_ratio=1 / math.sqrt(share))

    def event(self, noise_scale: float, sensitivity: float = 1.0, steps: int | None = None) -> Event:
        """The event that this mechanism causes at a noise scale."""
        return Event(
            self.mechanism, self.name, noise_scale * self.noise_ratio, sensitivity, self.sample_rate,
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
    if any(noise_multiplier == 0 for noise_multiplier, _, _ in history):
        return math.inf
    if accountant not in _ACCOUNTANTS:
        raise UserError(f"unknown accountant {accountant!r}; choose one of {', '.join(_ACCOUNTANTS)}")
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        # "Optimal order is the largest alpha": a bound all the same. log(1 - q) at q = 1: masked by Opacus itself.
        warnings.simplefilter("ignore")
        return _ACCOUNTANTS[accountant](history, delta)


def _history(events: Iterable[Event]) -> list[tuple[float, float, int]]:
    """Opacus' form (noise_multiplier, sample_rate, steps), all full-batch Gaussians folded into one.

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
            history.append((event.noise_multiplier, event.sample_rate, event.steps))
    if precision > 0:
        history.append((precision**-0.5, 1.0, 1))
    return history


def _epsilon_rdp(history: list, delta: float) -> float:
    accountant = RDPAccountant()
    accountant.history = list(history)
    return accountant.get_epsilon(delta, alphas=RDP_ORDERS)


def _epsilon_prv(history: list, delta: float) -> float:
    # An error of half a per cent of epsilon: Opacus' absolute 0.01 would waste 5 % at epsilon = 0.2.
    eps_error = min(0.01, max(5e-4, 0.005 * _epsilon_rdp(history, delta)))
    accountant = PRVAccountant()
    accountant.history = list(history)
    return float(accountant.get_epsilon(delta, eps_error=eps_error))


_ACCOUNTANTS = {"rdp": _epsilon_rdp, "prv": _epsilon_prv}


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
