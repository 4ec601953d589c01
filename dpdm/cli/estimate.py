"""The cost of a study, from the times and memory measured in kept results (results/*/kept).

A kept jobs.csv has seconds and memory by rule and method, and study.json has their recipes. A job counts as measured if
a kept job differs from it only in its amount of work: steps x batch x K of a training, images of a set.
"""

import contextlib
import csv
import io
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dpdm.config import Study
from dpdm.errors import UserError
from dpdm.layout import ROOT
from dpdm.progress import duration
from dpdm.specs import RunSpec, spec_json
from dpdm.study import open_study

AMOUNTS = ("steps", "expected_batch_size", "noise_multiplicity")  # in a recipe or its `dp`


class Job(NamedTuple):
    """A job of a study; jobs of one `kind` are comparable."""

    rule: str
    method: str  # "" if the rule has none
    kind: tuple[str, str, str]  # rule, source, recipe: the time of one kind is proportional to the amount
    amount: float


class Times(NamedTuple):
    jobs: int
    seconds: float  # of all of them
    memory: float  # of the largest, in MB


class Kept(NamedTuple):
    name: str  # its folder
    machine: str
    table: dict[tuple[str, str], Times]  # by rule and method
    study: Study | None  # None if its recipes are not kept, or of another version


def estimate(study: Study, results: Path = ROOT / "results") -> str:
    """Hours and memory of all jobs of a study, the kept `results` behind them, and the jobs that are not measured."""
    kept = sorted(read_kept(results), key=lambda one: (one.name != f"results/{study.study}/kept", one.name))
    planned = list(jobs(study))
    rated = [(one, measured(one)) for one in kept]
    one, rates = max(rated, key=lambda pair: sum(job.kind in pair[1] for job in planned), default=(None, {}))
    known = [job for job in planned if job.kind in rates]
    if one and known:
        seconds = sum(rates[job.kind][0] * job.amount for job in known)
        memory = max(rates[job.kind][1] for job in known)
        return (
            f"estimate: {len(known)} of {len(planned)} jobs take about {duration(seconds)} of one core on "
            f"{one.machine}, the largest {memory:,.0f} MB (from {one.name}, in proportion to steps x batch x K and to "
            f"images){_missing(job for job in planned if job.kind not in rates)}"
        )
    text = "estimate: none, as no kept result has jobs of these recipes on this data"
    if kept and kept[0].name == f"results/{study.study}/kept":
        seconds = sum(times.seconds for times in kept[0].table.values())
        memory = max(times.memory for times in kept[0].table.values())
        text += (
            f"; {kept[0].name} took {duration(seconds)} on {kept[0].machine}, the largest job {memory:,.0f} MB, by "
            "recipes that it does not keep"
        )
    return text


def _missing(jobs: Iterator[Job]) -> str:
    """The jobs that no kept result measured, by rule."""
    methods: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for job in jobs:
        methods[job.rule][job.method] += 1
    parts = [
        f"{count.total()} {rule}" + (f" ({', '.join(filter(None, count))})" if any(count) else "")
        for rule, count in methods.items()
    ]
    return f"\nnot measured: {', '.join(parts)}" if parts else ""


def read_kept(results: Path) -> Iterator[Kept]:
    """The kept results that have a table of times."""
    for file in sorted(results.glob("*/kept/jobs.csv")):
        try:
            rows = list(csv.DictReader(io.StringIO(file.read_text())))
            times = [Times(int(row["jobs"]), float(row["seconds"]), float(row["max_rss_mb"] or 0)) for row in rows]
            places = [(row["rule"], row["method"]) for row in rows]
            machine = " and ".join(dict.fromkeys(row["machine"] for row in rows))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is damaged ({type(error).__name__}: {error}); restore it, or delete it") from error
        study = None
        with contextlib.suppress(UserError):  # none is kept, or of another version
            study = open_study(file.parent)[0]
        table: dict[tuple[str, str], Times] = {}
        for place, new in zip(places, times, strict=True):
            old = table.get(place, Times(0, 0.0, 0.0))
            table[place] = Times(old.jobs + new.jobs, old.seconds + new.seconds, max(old.memory, new.memory))
        yield Kept(f"results/{file.parts[-3]}/kept", machine, table, study)


def measured(kept: Kept) -> dict[tuple[str, str, str], tuple[float, float]]:
    """For each kind of job, seconds per unit of its amount, and peak memory in MB; nothing without kept recipes.

    If only some jobs of a rule ran, they count as large as its other jobs on average.
    """
    if kept.study is None:
        return {}
    planned: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    kinds: defaultdict[tuple[str, str, str], set[tuple[str, str]]] = defaultdict(set)
    for job in jobs(kept.study):
        row = (job.rule, job.method)
        if row in kept.table:
            planned[row].append(job.amount)
            kinds[job.kind].add(row)
    amounts = {row: statistics.mean(each) * kept.table[row].jobs for row, each in planned.items()}
    return {
        kind: (
            sum(kept.table[row].seconds for row in rows) / sum(amounts[row] for row in rows),
            max(kept.table[row].memory for row in rows),
        )
        for kind, rows in kinds.items()
    }


def jobs(study: Study) -> Iterator[Job]:
    """The jobs whose time is measured; jobs of tables, figures and report are short and have no benchmark."""
    runs = study.runs()
    judged = study.evaluation.model_dump(mode="json") | {"fid": None}
    images = judged.pop("synthetic_images")
    scoring = json.dumps(judged, sort_keys=True)

    def job(rule: str, dataset: str, method: str = "", recipe: str = "", amount: float = 1.0) -> Job:
        return Job(rule, method, (rule, study.datasets[dataset].source, recipe), amount)

    for dataset in dict.fromkeys(run.dataset for run in runs):
        yield job("prepare", dataset)
        if set(study.evaluation.extractors) - set(study.evaluation.public_extractors):
            yield job("extractor", dataset)
        yield from (job("real_features", dataset) for _ in study.evaluation.extractors)
    for dataset, method in dict.fromkeys((run.dataset, run.method) for run in runs):
        yield job("audit", dataset, method)
    for run in {run.place[:2]: run for run in study.attacked_runs() if study.attacks}.values():
        yield job("attack", run.dataset, run.method, split(run)[0])
    for run in runs:
        recipe, amount = split(run)
        yield job("train", run.dataset, run.method, recipe, amount)
        if study.is_classifier(run.method):
            yield job("score_classifier", run.dataset, run.method, run.impl)
        for sampler in study.samplers_of(run):
            drawn = json.dumps(study.sample(run, sampler).sampler_params, sort_keys=True)
            yield job("sample", run.dataset, run.method, recipe + drawn, images)
            yield job("score", run.dataset, run.method, scoring, images)
            if study.evaluation.fid:
                yield job("score_inception", run.dataset, run.method, "", images)
    yield from (job("score_anchor", anchor.dataset, "", scoring, images) for anchor in study.anchor_coordinates())


def split(run: RunSpec) -> tuple[str, float]:
    """A recipe without its amount of work, as text, and that amount: the product of AMOUNTS."""
    params: dict[str, Any] = json.loads(spec_json(run))["params"]
    amount = 1.0
    for part in (params, params.get("dp")):
        for name in AMOUNTS:
            if isinstance(part, dict) and isinstance(part.get(name), int | float):
                amount *= part.pop(name)
    return json.dumps([run.impl, params], sort_keys=True), amount
