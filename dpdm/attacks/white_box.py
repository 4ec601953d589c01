"""The default attack: worst-case canaries behind the real door, by an attacker who sees every release.

`PrivateData` repeats what a run's ledger claims: the same plan, budget, batch size, steps, clip norms and number of
records. Only the records are ours. Each canary has a separate coordinate, points along it far beyond the clip norm, and
is included by a fair coin (otherwise its place holds a null record, which contributes nothing). For each canary the
attacker adds up the log likelihood ratios of its coordinate over all releases: the best test of one canary (Neyman and
Pearson). The rule for guessing "in" or "out" from the scores is fixed beforehand, on simulated releases of the ledger's
claim.

- One-shot Gaussian plans: many runs, each with some canaries on separate coordinates, alternately by `release_sum` and
    `release_second_moment`.
- DP-SGD plans: one run, many canaries, each the gradient of one weight of a linear model.
- Block gradients: joint clipping leaves room for one canary, which flips the whole block. Many runs, each with a
    different canary, count as one run on all canaries, since no record is in two runs.

There are two lower bounds. The first assumes Gaussian noise and independent canaries, which hold if the door is
correct; it is a powerful test of the claim. The second is certified but weaker: one-run auditing, which assumes
nothing, or, for one-shot plans, Clopper-Pearson, which assumes independent canaries.

The attack can find faults in noise, clipping, sampling and accounting. It can find neither mixed records (the swap test
does) nor anything that a method does outside the door.
"""

import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from dpdm.attacks.bounds import (
    Errors,
    delta_by_errors,
    epsilon_by_errors,
    epsilon_by_one_run,
    epsilon_of_mu,
    mu_by_errors,
)
from dpdm.data import ImageMeta, ImageSet
from dpdm.errors import UserError
from dpdm.method import prepare_run
from dpdm.plan import check_recipe
from dpdm.privacy import (
    Budget,
    DpSgdParams,
    Event,
    Ledger,
    Mechanism,
    PoissonBlocks,
    PrivateData,
    Randomness,
    ShardBlocks,
    calibrate,
    epsilon_spent,
)
from dpdm.provenance import provenance
from dpdm.rng import Streams
from dpdm.specs import RunSpec, parse_spec

CONFIDENCE = 0.95
EACH = 1 - (1 - CONFIDENCE) / 2  # of each of two bounds; the larger one is used
CONFIRMATIONS = 2  # further attacks with other randomness, before a bound above the target is believed
ONE_SHOT_RUNS, ONE_SHOT_CANARIES = 200, 50  # the latter in each run
CANARIES = 1000  # of one DP-SGD run; all records if there are fewer
BLOCK_STEPS = 60_000  # of all runs together of a plan with block gradients, approximately
BLOCK_RUNS = (40, 1000)  # at least and at most
EXCESS = 10.0  # the norm of a canary before clipping, in clip norms
SIMULATED_DRAWS = 2_000_000  # of the noise, for the guess rule
PROFILE = (4.0, 2.0, 1.0, 0.5, 0.2, 0.05)  # epsilons at which a claimed profile is tested
NOISE_FACTORS = (0.25, 2.0)  # times the claimed noise: the range of the search for a bound
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)  # of all canaries: guessed in, and guessed out


@dataclass(frozen=True)
class Claim:
    """The claim of a ledger: everything that an attack repeats."""

    plan: tuple[Mechanism, ...]
    events: tuple[Event, ...]
    budget: Budget
    accountant: str
    n: int
    blocks: Mapping[str, PoissonBlocks | ShardBlocks]  # by mechanism; other sampled mechanisms are DP-SGD


class Played(NamedTuple):
    """The attacker's score of every canary, and the truth."""

    scores: np.ndarray  # log likelihood ratios, float64 [canaries]
    included: np.ndarray  # bool [canaries]


def attack(value: dict[str, Any], origin: str) -> dict[str, Any]:
    """Attacks the mechanism that a run's ledger describes.

    Args:
        value: JSON of the ledger; it determines everything, including the attack's randomness, except the run's seed.
        origin: names it in errors.

    Returns:
        JSON values: the run's coordinates, recipe, delta, target and provenance, and `attack`: the lower bound
        `epsilon` (the larger of two) with its `confidence` and `method` ("gaussian", "one_run" or "clopper_pearson");
        `certified`, the bound that does not assume Gaussian noise; `runs`, and the `canaries` of all runs together; and
        `exceeded`: whether `epsilon` is above the target.

    Raises:
        UserError: not a ledger; a run without noise or releases, or whose events differ from those that its recipe
            implies; or the method cannot be imported here.
    """
    ledger = Ledger.from_json(value, origin)
    claim = claim_of(value, origin)
    recipe = json.dumps({key: item for key, item in ledger.recipe.items() if key != "seed"}, sort_keys=True)
    found = attack_claim(claim, recipe)
    for number in range(CONFIRMATIONS):
        # One bound in twenty can exceed the truth by chance; the smallest of three does so once in 8,000 times.
        if found["epsilon"] <= ledger.target_epsilon:
            break
        found = min(found, attack_claim(claim, f"{recipe}/{number}"), key=lambda one: one["epsilon"])
    return attacked(ledger, found)


def attacked(ledger: Ledger, found: dict[str, Any]) -> dict[str, Any]:
    """The return value of `attack`, from a ledger and the bounds."""
    facts = ledger.to_json()
    return {key: facts[key] for key in ("coordinates", "recipe", "delta", "target_epsilon")} | {
        "attack": found | {"exceeded": found["epsilon"] > ledger.target_epsilon},
        "provenance": provenance(),
    }


def describe_attack(found: dict[str, Any]) -> str:
    """One line for a terminal, from the return value of `attack`."""
    one, c = found["attack"], found["coordinates"]
    verdict = "BROKEN" if one["exceeded"] else "holds"
    certified = f", {one['certified']:.3f} certified" if one["certified"] < one["epsilon"] else ""
    return (
        f"{verdict}  target epsilon {found['target_epsilon']}, attacked at least {one['epsilon']:.3f} "
        f"({one['method']}, {one['confidence']:.0%} confidence, {one['canaries']} canaries in {one['runs']} runs"
        f"{certified}) at delta {found['delta']:.3g}  {c['dataset']}/{c['method']}/{c['epsilon']:g}"
    )


def claim_of(value: dict[str, Any], origin: str) -> Claim:
    """The claim of a ledger (as JSON) whose events were checked against its recipe; see `attack`."""
    ledger = Ledger.from_json(value, origin)
    if math.isinf(ledger.target_epsilon):
        raise UserError(f"{origin} is of a run without noise (epsilon inf): it promises nothing that could be attacked")
    if not ledger.events:
        raise UserError(f"{origin} holds no event: nothing was released that could be attacked")
    check_recipe(value, origin)
    spec = parse_spec(RunSpec, json.dumps(ledger.recipe))
    _, params, plan, budget = prepare_run(spec, ImageMeta(ledger.n, tuple(ledger.shape), ledger.num_classes))
    scale = calibrate(plan, budget, ledger.accountant)
    events = tuple(mechanism.event(scale) for mechanism in plan)
    asked = [part for part in _parts(params) if isinstance(part, PoissonBlocks | ShardBlocks)]
    blocks = {
        m.name: part for m in plan for part in asked if part.mechanism(m.name, ledger.n) == replace(m, noise_ratio=1.0)
    }
    return Claim(plan, events, budget, ledger.accountant, ledger.n, blocks)


def attack_claim(claim: Claim, name: str) -> dict[str, Any]:
    """One attack, in the form of `attack`; equal names give equal randomness."""
    coins = Streams(0, f"attack/{name}").numpy("coins")
    if all(event.mechanism == "gaussian" for event in claim.events):
        certify, shape = by_clopper_pearson, (ONE_SHOT_RUNS, ONE_SHOT_CANARIES)
    elif claim.blocks:
        runs = BLOCK_STEPS // sum(event.steps for event in claim.events)
        certify, shape = by_one_run, (min(max(runs, BLOCK_RUNS[0]), BLOCK_RUNS[1]), 1)
    else:
        certify, shape = by_one_run, (1, min(CANARIES, claim.n))
    included = coins.random(shape) < 0.5
    scores = [
        play(claim, row, Randomness.repeatable(0, "attack", name, str(run)), moments=run % 2 == 1)
        for run, row in enumerate(included)
    ]
    played = Played(np.concatenate(scores), included.ravel())
    gaussian, (name, certified, guesses) = by_errors(claim, played), certify(claim, played)
    method = "gaussian" if gaussian > certified else name
    facts = {"method": method, "confidence": CONFIDENCE, "runs": shape[0], "canaries": len(played.scores)}
    return facts | {"epsilon": max(gaussian, certified), "certified": certified} | guesses


# --- one run of a plan ----------------------------------------------------------------------------------------


def play(claim: Claim, included: np.ndarray, rng: Randomness, moments: bool = False) -> np.ndarray:
    """The log likelihood ratio of every canary after one run of the plan through the door.

    Args:
        included: bool [canaries], at most n; exactly one canary if the plan has block gradients.
        rng: of the door.
        moments: use `release_second_moment` for one-shot releases whose bound has a root.
    """
    canaries = len(included)
    sampled = any(mechanism.mechanism != "gaussian" for mechanism in claim.plan)
    labels = np.full(claim.n if sampled else canaries, canaries)  # this class is the null record's
    labels[:canaries][included] = np.flatnonzero(included)
    images = ImageSet(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, canaries + 1, "canaries")
    ledger = Ledger(claim.n, claim.budget.delta, claim.budget.epsilon, claim.accountant)
    private = PrivateData(images, claim.plan, claim.budget, claim.accountant, rng, ledger)
    scores = np.zeros(canaries)
    for event in claim.events:
        if event.name in claim.blocks:
            heard = _hear_blocks(private, event, claim.blocks[event.name])
        elif event.mechanism == "gaussian":
            heard = _hear_release(private, event, canaries, moments)
        else:
            heard = _hear_dpsgd(private, event, canaries)
        scores += heard
    if tuple(ledger.events) != claim.events:
        raise RuntimeError("the door wrote other events than were claimed")
    return scores


def log_ratio(event: Event, x: np.ndarray) -> np.ndarray:
    """log p(x | the canary is in) - log p(x | it is out) of one step.

    Args:
        x: the released coordinate in units of the sensitivity: noise of std `noise_multiplier`, around 1 in steps that
            drew the canary, around 0 in others.
    """
    drawn = (2 * x - 1) / (2 * event.noise_multiplier**2)
    q = event.sample_rate
    return drawn if q == 1 else np.logaddexp(math.log1p(-q), math.log(q) + drawn)


def _hear_release(private: PrivateData, event: Event, canaries: int, moments: bool) -> np.ndarray:
    directions = torch.eye(canaries + 1, canaries, dtype=torch.float64) * EXCESS * event.sensitivity
    root = math.sqrt(event.sensitivity)
    if moments and root**2 == event.sensitivity:
        # One block per canary, with v = (1, 1), so that the noise off the diagonal is measured too.
        both = directions[..., None].expand(-1, -1, 2)
        x = private.release_second_moment(event.name, lambda _, labels: both[labels], root).mean((1, 2)) * 2
    else:
        x = private.release_sum(event.name, lambda _, labels: directions[labels], event.sensitivity)
    return log_ratio(event, x.numpy() / event.sensitivity)


def _hear_dpsgd(private: PrivateData, event: Event, canaries: int) -> np.ndarray:
    params = DpSgdParams(
        expected_batch_size=round(event.sample_rate * private.meta.n),
        steps=event.steps,
        max_grad_norm=event.sensitivity,
    )
    scores = np.zeros(canaries)
    module = nn.Linear(canaries, 1, bias=False)
    directions = torch.eye(canaries + 1, canaries)
    loop = private.dpsgd(event.name, module, torch.optim.SGD(module.parameters(), lr=0.0), params)  # moves nothing

    def losses(_: Tensor, labels: Tensor) -> Tensor:
        return loop.module(directions[labels])[:, 0] * (EXCESS * event.sensitivity)

    for step in loop:
        step.update(losses)
        total = module.weight.grad[0].double().numpy() * params.expected_batch_size
        scores += log_ratio(event, total / event.sensitivity)
    return scores


def _hear_blocks(private: PrivateData, event: Event, params: PoissonBlocks | ShardBlocks) -> np.ndarray:
    block, scores = torch.zeros(1, dtype=torch.float64), np.zeros(1)

    def gradient(fakes: Tensor, _: Tensor, labels: Tensor, *__: Any) -> Tensor:
        sign = 1.0 if (labels == 0).any() else -1.0
        return torch.full_like(fakes, sign * EXCESS * event.sensitivity)

    for step in private.block_gradients(event.name, params):
        released = step.release(block, gradient).numpy()
        scores += log_ratio(event, released / event.sensitivity + 0.5)  # from -C to C is one sensitivity
    return scores


# --- guesses --------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def simulate(events: tuple[Event, ...]) -> Played:
    """Scores of canaries under the claimed events, without the door; every second canary is included."""
    rng = Streams(0, "attack").numpy("simulation")
    canaries = min(max(SIMULATED_DRAWS // sum(event.steps for event in events), 1000), 200_000)
    included = np.arange(canaries) % 2 == 0
    scores = np.zeros(canaries)
    for event in events:
        for _ in range(event.steps):
            drawn = included & (rng.random(canaries) < event.sample_rate)
            scores += log_ratio(event, drawn + event.noise_multiplier * rng.standard_normal(canaries))
    return Played(scores, included)


def by_errors(claim: Claim, played: Played) -> float:
    """The bound by the two error rates, if the noise is Gaussian as claimed.

    Every canary is a trial, and the threshold is fixed on a simulation. A claim is refuted if no mechanism with its
    privacy profile can have such rates. For Gaussian releases, mu is then too small (Nasr et al. 2023); for others, the
    profile by PLD has too small a delta at some epsilon. The bound follows from the largest noise, in multiples of the
    claimed noise, that is not refuted.
    """
    errors = _errors_of(claim, played, lambda errors: mu_by_errors(errors, EACH))
    delta = claim.budget.delta
    if all(event.mechanism == "gaussian" for event in claim.events):
        return epsilon_of_mu(mu_by_errors(errors, EACH), delta)

    def noisier(factor: float) -> list[Event]:
        return [replace(event, noise_multiplier=factor * event.noise_multiplier) for event in claim.events]

    def refuted(factor: float) -> bool:
        return any(
            epsilon_spent(noisier(factor), needed, "pld") < epsilon
            for epsilon in PROFILE
            if (needed := delta_by_errors(errors, epsilon, EACH)) > 0
        )

    low, high = NOISE_FACTORS
    if not refuted(high):
        return 0.0
    for _ in range(6):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return epsilon_spent(noisier(high), delta, "pld")


def by_clopper_pearson(claim: Claim, played: Played) -> tuple[str, float, dict[str, int]]:
    """The bound by the two error rates; every canary is a trial, and the threshold is fixed on a simulation."""

    def bound(errors: Errors) -> float:
        return epsilon_by_errors(errors, claim.budget.delta, EACH)

    return "clopper_pearson", bound(_errors_of(claim, played, bound)), {}


def _errors_of(claim: Claim, played: Played, bound: Callable[[Errors], float]) -> Errors:
    """The errors at the threshold that promises the highest bound on a simulation."""
    included = int(played.included.sum())
    trials = len(played.scores) - included, included
    threshold, _ = max(_promised(claim.events, *trials), key=lambda promise: bound(promise[1]))
    return _errors(played, threshold, *trials)


@functools.lru_cache(maxsize=4)
def _promised(events: tuple[Event, ...], negatives: int, positives: int) -> list[tuple[float, Errors]]:
    """Thresholds, and the bound that each promises on a simulation."""
    simulated = simulate(events)
    thresholds = np.quantile(simulated.scores, np.linspace(0, 1, 101)[1:-1])
    return [(t, _errors(simulated, t, negatives, positives)) for t in thresholds]


def _errors(played: Played, threshold: float, negatives: int, positives: int) -> Errors:
    """The errors of guessing "in" above the threshold, scaled to the given numbers of trials."""
    guessed_in = played.scores > threshold
    return Errors(
        round(float(guessed_in[~played.included].mean()) * negatives), negatives,
        round(float((~guessed_in[played.included]).mean()) * positives), positives,
    )  # fmt: skip


def by_one_run(claim: Claim, played: Played) -> tuple[str, float, dict[str, int]]:
    """The bound of one-run auditing, which assumes nothing; the shares of guesses are fixed on a simulation."""
    shares = _best_shares(simulate(claim.events), len(played.scores), claim.budget.delta)
    bound, guesses = one_run_audit(played, shares, claim.budget.delta, EACH)
    return "one_run", bound, guesses


def _best_shares(simulated: Played, canaries: int, delta: float) -> tuple[float, float]:
    """The shares that promise the highest bound."""
    order = np.argsort(simulated.scores)
    numbers = np.arange(1, len(order) + 1)
    right_in = np.cumsum(simulated.included[order[::-1]]) / numbers  # among this many highest scores
    right_out = np.cumsum(~simulated.included[order]) / numbers

    def expected(shares: tuple[float, float]) -> tuple[float, float]:
        counts = np.array([round(share * canaries) for share in shares])
        places = [max(round(share * len(order)), 1) - 1 for share in shares]
        rates = np.array([right_in[places[0]], right_out[places[1]]])
        mean, deviation = float((counts * rates).sum()), math.sqrt(float((counts * rates * (1 - rates)).sum()))
        # The bound one standard deviation below the mean; if equal, the bound at the mean.
        return tuple(
            epsilon_by_one_run(canaries, int(counts.sum()), max(math.floor(correct), 0), delta, EACH)
            for correct in (mean - deviation, mean)
        )

    return max(product(SHARES, SHARES), key=expected)


def one_run_audit(
    played: Played, shares: tuple[float, float], delta: float, confidence: float
) -> tuple[float, dict[str, int]]:
    """Guesses a share of highest scores in and a share of lowest scores out, and certifies.

    Args:
        shares: of the canaries guessed in and guessed out, together at most 1; fixed without looking at `played`.

    Returns the lower bound of epsilon; and the numbers of `guesses` and of `correct` ones.
    """
    order = np.argsort(played.scores, kind="stable")
    canaries = len(order)
    inside, outside = (round(share * canaries) for share in shares)
    correct = int(played.included[order[canaries - inside :]].sum() + (~played.included[order[:outside]]).sum())
    bound = epsilon_by_one_run(canaries, inside + outside, correct, delta, confidence)
    return bound, {"guesses": inside + outside, "correct": correct}


def _parts(value: Any) -> Iterator[Any]:
    """A method's parameters, and the models that they hold."""
    yield value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
