"""The plan of a run before it starts (mechanisms, noise and epsilon), and the check of a ledger against its recipe."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpdm.config import Study
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.method import departures, load_method, prepare_run, public_data, tuple_of
from dpdm.privacy import Budget, Event, Ledger, Mechanism, budget_shares, calibrate, epsilons_spent
from dpdm.privacy.accounting import CALIBRATION_TOLERANCE, audited_under
from dpdm.smoothing import parse_sampler
from dpdm.sources import SOURCES
from dpdm.specs import RunSpec, epsilon_text, parse_spec


@dataclass(frozen=True)
class PlannedRun:
    """A run, the future events of its ledger, and their epsilon under each accountant."""

    spec: RunSpec
    delta: float
    epsilons: Mapping[str, float]
    events: tuple[Event, ...]
    public_data: tuple[str, ...] = ()


def planned_runs(study: Study) -> list[PlannedRun]:
    """Builds every params and plan of the grid.

    Raises:
        UserError: all mistakes found, one per line.
    """
    problems: dict[str, None] = {}
    metas, planned, calibrated = {}, [], {}
    for name, dataset in study.datasets.items():
        try:
            metas[name] = dataset.meta()
        except UserError as error:
            problems[f"datasets.{name}: {error}"] = None
    for spec in study.runs():
        if spec.dataset not in metas:
            continue
        try:
            entry = study.methods[spec.method]
            method, params, plan, budget = prepare_run(spec, metas[spec.dataset], entry.kind)
            for where, chosen in _samplers(study, spec, method):
                if hasattr(method, "check_sampler"):  # an optional member of a method
                    try:
                        method.check_sampler(params, chosen, metas[spec.dataset])
                    except UserError as error:
                        raise UserError(f"{where} on {spec.dataset}: {error}") from error
                    except (Exception, SystemExit) as error:  # whatever a method's code raises
                        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                        raise UserError(f"{where}: check_sampler of {spec.impl} failed ({reason})") from error
            key = (plan, budget)
            if key not in calibrated:  # seeds share a calibration
                try:
                    calibrated[key] = _accounted(plan, budget, spec.accountant)
                except UserError as error:
                    raise UserError(f"methods.{spec.method} on {spec.dataset}: {error}") from error
            public, source = public_data(method, params), study.datasets[spec.dataset].source
            if (
                source in public and not SOURCES[source].needs_keys()
            ):  # with keys, the images themselves are compared (dpdm.warm)
                raise UserError(
                    f"methods.{spec.method} on {spec.dataset}: it uses {source} as public data, but these are the "
                    "private images; choose another public data set"
                )
            planned.append(PlannedRun(spec, budget.delta, *calibrated[key], public))
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("\n".join(problems))
    return planned


def check_entry(study: Study, spec: RunSpec) -> None:
    """UserError for a method of another kind than its entry in the study, or for samplers that it does not have."""
    list(_samplers(study, spec, load_method(spec.impl, study.methods[spec.method].kind)))


def _samplers(study: Study, spec: RunSpec, method: Any) -> Iterator[tuple[str, Any]]:
    """The parameters of each sampler of a run, with their place in the study; UserError if the schema refuses them."""
    for sampler in study.samplers_of(spec):
        where = f"methods.{spec.method}.samplers.{sampler}"
        yield where, parse_sampler(method, study.sample(spec, sampler).sampler_params, where).own


def doubts(study: Study) -> list[str]:
    """Settings of methods and samplers that are allowed but probably mistakes: a text for each sampler."""
    found: dict[tuple[str, str], str] = {}
    for spec in study.runs():
        method = load_method(spec.impl)
        if not hasattr(method, "doubts"):  # an optional member, as check_sampler
            continue
        params = parse_params(method.Params, spec.params, f"methods.{spec.method}.params")
        for where, chosen in _samplers(study, spec, method):
            if (key := (where, repr(chosen))) not in found:
                meta = study.datasets[spec.dataset].meta()
                texts = tuple_of(str, f"{where}: {spec.impl}: doubts", method.doubts, params, chosen, meta)
                at = f"{where} on {spec.dataset} at epsilon {epsilon_text(spec.epsilon)}"
                found[key] = "\n".join(f"{at}: {text}" for text in texts)
    return list(filter(None, found.values()))


def _accounted(
    plan: Sequence[Mechanism], budget: Budget, accountant: str
) -> tuple[Mapping[str, float], tuple[Event, ...]]:
    """The epsilon of a run under every accountant, as in the later audit, and the events.

    Raises:
        UserError: an accountant finds no epsilon, or an accountant of the audit finds more than the target.
    """
    scale = calibrate(plan, budget, accountant)
    events = tuple(mechanism.event(scale) for mechanism in plan)
    epsilons = epsilons_spent(events, budget.delta)
    for name in audited_under(accountant):
        if epsilons[name] > budget.epsilon:
            raise UserError(f"accountant {name} says {epsilons[name]:g}, above the target epsilon {budget.epsilon:g}")
    return epsilons, events


def describe(study: Study) -> str:
    """The grid in words: numbers of runs and jobs; then the events and epsilons of each dataset, method and target."""
    planned = planned_runs(study)
    synthetic = sum(len(study.samplers_of(run.spec)) for run in planned)
    classifiers = sum(study.is_classifier(run.spec.method) for run in planned)
    anchors = len(study.anchor_coordinates())
    counts = Counter(run.spec.place[:3] for run in planned).values()
    least, most = min(counts), max(counts)
    seeds = (f"{least} to " if least < most else "") + f"{most} seed{'s' * (most > 1)}"
    lines = [
        f"study {study.study}: {len(planned)} runs ({seeds} each), {synthetic} synthetic sets, "
        + (f"{classifiers} trained classifiers, " if classifiers else "")
        + f"{anchors} anchor rows; jobs: {len(planned)} train, {synthetic} sample, "
        f"{synthetic + classifiers + anchors} score"
        + (f", {synthetic + anchors} score_inception" if study.evaluation.fid else "")
    ]
    shown = set()
    for run in planned:
        spec = run.spec
        key = (spec.dataset, spec.method, spec.epsilon)
        if key in shown:  # another seed of the same
            continue
        shown.add(key)
        lines += [
            "",
            f"{spec.method} on {spec.dataset}: target epsilon {epsilon_text(spec.epsilon)}, expected "
            + ", ".join(f"{epsilon:.4f} ({name.upper()})" for name, epsilon in run.epsilons.items())
            + f" at delta {run.delta:.3g}, noise by {spec.accountant}"
            + (f"; uses public data: {', '.join(run.public_data)}" if run.public_data else ""),
            *(f"    {line}" for line in describe_events(run.events, run.delta)),
        ]
    return "\n".join(lines)


def describe_events(events: Sequence[Event], delta: float) -> list[str]:
    """The events in words, each with its part of the budget if several share it."""
    shares = {
        name: "; " + ", ".join(f"{share:.1%} of the {accountant.upper()} budget" for accountant, share in of.items())
        for name, of in budget_shares(events, delta).items()
    }
    return [_describe(event) + shares.get(event.name, "") for event in events]


def _describe(event: Event) -> str:
    noise = f"noise multiplier {event.noise_multiplier:.4g}"
    if event.mechanism == "gaussian":
        return f"{event.name}: Gaussian, {noise}"
    kind = "Poisson-subsampled" if event.mechanism == "poisson_subsampled_gaussian" else "one-shard-of-many"
    return f"{event.name}: {event.steps} x {kind} Gaussian, q = {event.sample_rate:.4g}, {noise}"


# --- a ledger against its recipe ----------------------------------------------------------------------------------


class MethodMissing(UserError):
    """The method of a ledger cannot be imported, so nothing is compared with its recipe."""


def check_recipe(value: Mapping[str, Any], origin: str, or_without: bool = False) -> bool:
    """Compares the events of a ledger (as JSON) with those that its recipe implies, one by one.

    Plan and calibration are computed anew from the recipe and the public facts of the ledger: n, shape and classes.
    Noise multipliers may differ by the tolerance of the calibration, since versions of an accountant differ a little.

    Args:
        or_without: skip the comparison, instead of refusing, if the method cannot be imported.

    Returns:
        Whether the events were compared: False only with `or_without`.

    Raises:
        UserError: it is no ledger; its method cannot be imported here; or it differs from its recipe. The sentence
            names the event and both values.
    """
    ledger = Ledger.from_json(value, origin)
    try:
        spec = parse_spec(RunSpec, json.dumps(ledger.recipe))
    except UserError as error:
        raise UserError(f"{origin}: the ledger holds no recipe of a run ({error}); train the run again") from error
    try:
        load_method(spec.impl)
    except UserError as error:
        if or_without:
            return False
        raise MethodMissing(
            f"{origin}: {error}, so its events cannot be compared with its recipe; audit it where the code of the "
            "method is, or skip the comparison by `dpdm audit --without-recipe`"
        ) from error
    try:
        meta = ImageMeta(ledger.n, tuple(ledger.shape), ledger.num_classes)
        method, params, plan, budget = prepare_run(spec, meta)
        scale = calibrate(plan, budget, spec.accountant)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    facts = {
        "coordinates": (dict(ledger.coordinates), spec.coordinates().model_dump(mode="json")),
        "target_epsilon": (ledger.target_epsilon, budget.epsilon),
        "delta": (ledger.delta, budget.delta),
        "accountant": (ledger.accountant, spec.accountant),
        "noise": (ledger.noise, spec.noise),
        "public_data": (list(ledger.public_data), list(public_data(method, params))),
        "events": ([event.name for event in ledger.events], [mechanism.name for mechanism in plan]),
    }
    facts["events"] = tuple(map(sorted, facts["events"]))  # the order of the releases is the method's
    for name, (found, implied) in facts.items():
        if found != implied:
            raise _differs(origin, name, found, implied)
    recorded = {event.name: event for event in ledger.events}
    for mechanism in plan:
        found, implied = recorded[mechanism.name], mechanism.event(scale)
        for name in ("mechanism", "sample_rate", "steps", "sensitivity"):
            if getattr(found, name) != getattr(implied, name):
                raise _differs(f"{origin}, event {found.name!r}", name, getattr(found, name), getattr(implied, name))
        noises = found.noise_multiplier, implied.noise_multiplier
        if not math.isclose(*noises, rel_tol=CALIBRATION_TOLERANCE):
            raise _differs(f"{origin}, event {found.name!r}", "noise_multiplier", *noises)
    return True


def run_departures(value: Mapping[str, Any], origin: str) -> str:
    """How the run of a ledger (as JSON) differs from the published method; "" if it does not.

    Raises:
        UserError: see `check_recipe`, which comes before.
    """
    ledger = Ledger.from_json(value, origin)
    meta = ImageMeta(ledger.n, tuple(ledger.shape), ledger.num_classes)
    method, params, *_ = prepare_run(parse_spec(RunSpec, json.dumps(ledger.recipe)), meta)
    return ", ".join(departures(method, params, meta))


def _differs(where: str, name: str, found: Any, implied: Any) -> UserError:
    return UserError(f"{where}: the ledger says {name} = {found}, its recipe implies {implied}; train the run again")
