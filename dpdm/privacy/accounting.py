"""Accounting: the epsilon of a list of events, and the noise that meets a budget, under any accountant.

The accountant NAME is the function `epsilon` of the module `dpdm.privacy.NAME`, which maps a history (see `history`)
and delta to an upper bound. To add one, write that module and add its name to `dpdm.specs.Accountant`. The modules are
imported only when used, because jobs that sample and score import this package but account for nothing.
"""

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from dpdm.errors import UserError
from dpdm.privacy.history import NO_NOISE, Part, history_of
from dpdm.privacy.ledger import ACCOUNTANTS, Event
from dpdm.specs import Accountant

CALIBRATION_TOLERANCE = 1e-3  # epsilon reached lies in [(1 - tolerance) * target, target]
SMALLEST_DELTA = 1e-12  # below it, double precision does not suffice for the PRV and PLD accountants
# Below, squares of float32 numbers can vanish from norms; above, the grid of a release can leave float64.
SENSITIVITIES = (1e-12, 1e30)
LARGEST_EPSILON = 1000.0  # of a budget; PRV and PLD reach ten times as much, and return inf above


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

    `sensitivity` is the L2 bound on the change by one record, in [1e-12, 1e30]; the door refuses to serve the mechanism
    with another bound. `noise_ratio` is its noise multiplier relative to the other mechanisms of the plan; `calibrate`
    finds the common scale. For Gaussian releases, a share s of the budget mu^2 means the ratio 1/sqrt(s). `share`, if
    given, is the part of the budget of a mechanism of many steps: see `settled`. `noise_multiplier`, if given, is fixed
    and not calibrated: see `settled`.

    Raises:
        UserError: a field has an invalid type or value, or the sensitivity is outside its range.
    """

    name: str
    mechanism: Literal["gaussian", "poisson_subsampled_gaussian", "categorical_subsampled_gaussian"] = "gaussian"
    sample_rate: float = 1.0
    steps: int = 1
    noise_ratio: float = 1.0
    sensitivity: float = 1.0
    share: float | None = None
    noise_multiplier: float | None = None

    def __post_init__(self):
        self.event(1.0)  # refuses invalid fields
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
        """`steps` Poisson batches, of `expected_batch_size` of the n records on average.

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
            self.mechanism, self.name, self.noise_at(noise_scale), self.sensitivity, self.sample_rate,
            self.steps if steps is None else steps,
        )  # fmt: skip

    def noise_at(self, noise_scale: float) -> float:
        """The noise multiplier at a noise scale; a fixed one does not depend on it."""
        return noise_scale * self.noise_ratio if self.noise_multiplier is None else self.noise_multiplier


def epsilon_spent(events: Iterable[Event], delta: float, accountant: Accountant) -> float:
    """An upper bound of epsilon at `delta` for the composition of `events`.

    RDP: Mironov 2017, Mironov et al. 2019, conversion of Balle et al. 2020. PRV: Gopi et al. 2021, the upper end of its
    error interval. PLD: Google's dp-accounting, with pessimistic discretization.

    Returns:
        At least 0; 0 without events. inf if an event has almost no noise. PRV and PLD also return inf if RDP finds more
        than 10,000, which they do not resolve.

    Raises:
        UserError: the accountant is unknown, or could not account for these events.
    """
    if accountant not in ACCOUNTANTS:
        raise UserError(f"unknown accountant {accountant!r}; choose one of {', '.join(ACCOUNTANTS)}")
    return _spent(history_of(events), delta, accountant)


def epsilons_spent(events: Sequence[Event], delta: float) -> dict[str, float]:
    """`epsilon_spent` under every accountant, by its name.

    Raises:
        UserError: see `epsilon_spent`.
    """
    return {name: epsilon_spent(events, delta, name) for name in ACCOUNTANTS}


@functools.lru_cache(maxsize=4096)  # seeds share a plan, and an audit repeats the computations of the calibration
def _spent(history: tuple[Part, ...], delta: float, accountant: Accountant) -> float:
    if not history:
        return 0.0
    if any(part.noise_multiplier < NO_NOISE for part in history):
        return math.inf
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # "Optimal order is the largest alpha": a bound all the same. log(1 - q) at q = 1: masked by Opacus itself.
        warnings.simplefilter("ignore")
        try:
            epsilon = _epsilon_by("rdp")(history, delta)
            if accountant != "rdp" and epsilon > 10 * LARGEST_EPSILON:
                return math.inf
            if accountant != "rdp" and epsilon > 0:  # else delta covers everything, and nothing is left to resolve
                epsilon = _epsilon_by(accountant)(history, delta)
        except (ArithmeticError, ValueError, RuntimeError, MemoryError) as error:
            raise UserError(
                f"accountant {accountant} cannot account for {history} at delta = {delta:g} ({error})"
            ) from error
    if math.isnan(epsilon):
        raise UserError(f"accountant {accountant} finds no epsilon (NaN) for {history} at delta = {delta:g}")
    return max(epsilon, 0.0)


def _epsilon_by(accountant: Accountant) -> Callable[[Sequence[Part], float], float]:
    return importlib.import_module(f"dpdm.privacy.{accountant}").epsilon


def budget_shares(events: Sequence[Event], delta: float) -> dict[str, dict[str, float]]:
    """The part of the budget of each event, by event name and accountant ("rdp", "prv"); the parts add up to 1.

    RDP: the event's part of the total Renyi divergence, at the order that gives epsilon. PRV: its part of the total
        mu^2, where mu belongs to a Gaussian release with the epsilon of the event; exact for Gaussian releases.

    Returns:
        An empty dict for a single event, for the parts of one training, or if an accountant finds an epsilon of 0 or
        infinity.
    """
    owners = {event.name.rpartition(".")[0] for event in events}  # a generator, its teacher, the stages of its start
    several = len(owners) > 1 or (len(events) > 1 and any(event.mechanism == "gaussian" for event in events))
    if not several or not 0 < epsilon_spent(events, delta, "rdp") < math.inf:
        return {}
    return _shares(tuple(events), delta)


@functools.lru_cache(maxsize=1024)
def _shares(events: tuple[Event, ...], delta: float) -> dict[str, dict[str, float]]:
    from dpdm.privacy.rdp import best_rdp, divergence

    _, order = best_rdp(history_of(events), delta)
    found: dict[str, list[float]] = {"rdp": [], "prv": []}
    for event in events:
        parts = history_of([event])
        found["rdp"].append(sum(part.steps * divergence(part._replace(steps=1), order) for part in parts))
        alone = epsilon_spent([event], delta, "prv")
        z = _least_scale((Mechanism.gaussian("as much"),), Budget(alone, delta), "prv", None) if alone else math.inf
        found["prv"].append(z**-2)
    if not all(map(math.fsum, found.values())):  # PRV can find 0 where RDP does not
        return {}
    return {
        event.name: {name: values[i] / math.fsum(values) for name, values in found.items()}
        for i, event in enumerate(events)
    }


# --- calibration --------------------------------------------------------------------------------------------------


def settled(plan: Sequence[Mechanism], budget: Budget, accountant: Accountant) -> tuple[Mechanism, ...]:
    """The plan with fixed noise for every mechanism with a share of the budget, if others remain to be calibrated.

    If a plan has a mechanism of many steps, a one-shot release with share s (`Mechanism.gaussian`) has 1/sqrt(s) times
    the noise multiplier of one release that spends the whole budget. A mechanism of many steps with a `share` costs as
    much as such a release at the budget's delta. `calibrate` finds the noise of the others for the rest of the budget.
    A plan with only releases is returned unchanged.

    Raises:
        UserError: see `calibrate`; or nothing is left for the others.
    """
    shared = [mechanism for mechanism in plan if mechanism.share is not None]
    releases = [mechanism for mechanism in plan if mechanism.mechanism == "gaussian" and mechanism.share is None]
    if len(releases) + len(shared) == len(plan):
        releases = []  # they take the rest
    if not releases and not shared:
        return tuple(plan)
    fixed = [*releases, *shared]
    spent = sum(release.noise_ratio**-2 for release in releases) + sum(mechanism.share for mechanism in shared)
    if spent >= 1 or len(fixed) == len(plan):
        raise UserError(
            f"{', '.join(mechanism.name for mechanism in fixed)} take {spent:.3g} of the budget and leave nothing to "
            "the others; give them smaller shares"
        )
    whole = calibrate([Mechanism.gaussian("whole")], budget, accountant)
    return tuple(
        replace(mechanism, noise_multiplier=_noise_of_share(mechanism, whole, budget, accountant))
        if mechanism in fixed
        else mechanism
        for mechanism in plan
    )


def _noise_of_share(mechanism: Mechanism, whole: float, budget: Budget, accountant: Accountant) -> float:
    """The noise multiplier for a mechanism's share of the budget; `whole` is that for the whole budget."""
    if mechanism.share is None or not whole:
        return whole * mechanism.noise_ratio
    part = Mechanism.gaussian("part", mechanism.share).event(whole)
    epsilon = epsilon_spent([part], budget.delta, accountant)
    if not epsilon:
        raise UserError(f"{mechanism.name}: a share of {mechanism.share:g} is too small; give it a larger one")
    cost = Budget(epsilon, budget.delta)
    return calibrate([mechanism], cost, accountant) * mechanism.noise_ratio


def calibrate(plan: Sequence[Mechanism], budget: Budget, accountant: Accountant) -> float:
    """The noise scale at which `plan` costs at most `budget` under every accountant that an audit checks.

    These are `accountant`, PRV and PLD. The largest of their epsilons is at least 0.999 of the target. Usually
    `accountant` finds the largest; PRV and PLD can differ within their error intervals.

    Returns 0 for epsilon = inf or an empty plan. The returned scale was checked under all three.

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
    """The accountants whose epsilon must not exceed the target: the declared one and the two tight ones."""
    return tuple(dict.fromkeys((accountant, "prv", "pld")))


def _cost(plan: Sequence[Mechanism], scale: float, delta: float, accountant: Accountant) -> float:
    return epsilon_spent([mechanism.event(scale) for mechanism in plan], delta, accountant)


def _least_scale(plan: tuple[Mechanism, ...], budget: Budget, accountant: Accountant, guess: float | None) -> float:
    """The scale at which `accountant` finds at most the budget's epsilon, and at least 0.999 of it.

    By false position on log scale and log epsilon, with halving where that stalls. The returned scale was evaluated.
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
                f"accountant {accountant} reaches epsilon = {target:g} at delta = {budget.delta:g} with no amount of "
                "noise; choose a larger epsilon" + (", or accountant pld" if accountant != "pld" else "")
            )
    low = high / factor
    while (above := _cost(plan, low, budget.delta, accountant)) <= target:
        if low < NO_NOISE:
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
