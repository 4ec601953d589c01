"""What a study will do, before it does anything: every run's mechanisms, noise and epsilon."""

from dataclasses import dataclass

from dpdm.config import RunSpec, Study, epsilon_text, parse_params
from dpdm.data import known_meta
from dpdm.errors import UserError
from dpdm.method import prepare_run
from dpdm.privacy import Event, calibrate, epsilon_spent


@dataclass(frozen=True)
class PlannedRun:
    """A run and the events it will write into its ledger at most."""

    spec: RunSpec
    delta: float
    epsilon: float
    events: tuple[Event, ...]


def planned_runs(study: Study) -> list[PlannedRun]:
    """Builds every params and plan of the grid.

    Raises:
        UserError: all mistakes found, one per line.
    """
    problems: dict[str, None] = {}
    metas, planned, calibrated = {}, [], {}
    for name, dataset in study.datasets.items():
        try:
            metas[name] = known_meta(dataset)
        except UserError as error:
            problems[f"datasets.{name}: {error}"] = None
    for spec in study.runs():
        if spec.dataset not in metas:
            continue
        try:
            entry = study.methods[spec.method]
            method, params, plan, budget = prepare_run(spec, metas[spec.dataset], entry.kind)
            for sampler in entry.samplers:
                where = f"methods.{spec.method}.samplers.{sampler}"
                chosen = parse_params(method.SamplerParams, study.sample(spec, sampler).sampler_params, where)
                if hasattr(method, "check_sampler"):  # the one optional member of a method
                    try:
                        method.check_sampler(params, chosen, metas[spec.dataset])
                    except UserError as error:
                        raise UserError(f"{where} on {spec.dataset}: {error}") from error
            key = (plan, budget)
            if key not in calibrated:  # seeds share a calibration
                scale = calibrate(plan, budget, spec.accountant)
                events = tuple(mechanism.event(scale) for mechanism in plan)
                calibrated[key] = events, epsilon_spent(events, budget.delta, spec.accountant)
            events, epsilon = calibrated[key]
            planned.append(PlannedRun(spec, budget.delta, epsilon, events))
        except UserError as error:
            problems[str(error)] = None
    if problems:
        raise UserError("\n".join(problems))
    return planned


def describe(study: Study) -> str:
    """The grid in words: numbers of runs and jobs; then per dataset, method and epsilon what it spends on what."""
    planned = planned_runs(study)
    synthetic = sum(len(study.methods[run.spec.method].samplers) for run in planned)
    classifiers = sum(study.is_classifier(run.spec.method) for run in planned)
    anchors = len(study.anchor_coordinates())
    lines = [
        f"study {study.study}: {len(planned)} runs ({len(study.seeds)} seeds each), {synthetic} synthetic sets, "
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
            f"{run.epsilon:.4f} ({spec.accountant}) at delta {run.delta:.3g}",
            *(f"    {describe_event(event)}" for event in run.events),
        ]
    return "\n".join(lines)


def describe_event(event: Event) -> str:
    """One event in words."""
    noise = f"noise multiplier {event.noise_multiplier:.4g}"
    if event.mechanism == "gaussian":
        return f"{event.name}: Gaussian, {noise}"
    kind = "Poisson-subsampled" if event.mechanism == "poisson_subsampled_gaussian" else "one-shard-of-many"
    return f"{event.name}: {event.steps} x {kind} Gaussian, q = {event.sample_rate:.4g}, {noise}"
