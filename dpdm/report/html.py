"""One self-contained report page: nothing is fetched, and no number in it is typed by hand."""

import base64
import html
import importlib.metadata
import math
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from dpdm import artifacts
from dpdm.config import Study
from dpdm.layout import Layout
from dpdm.provenance import provenance
from dpdm.report import tables
from dpdm.report.collect import holes
from dpdm.report.paper import TITLES, paper_table
from dpdm.report.published import PAPER, PRIVACY_STATUS, privacy_table, published_table
from dpdm.report.runs import run_anchor, runs_by_dataset
from dpdm.specs import epsilon_text

DISTRIBUTION = "dpdm-bench"
HOLES_IN_SENTENCE = 3  # more are folded away below it
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def render_report(
    study: Study,
    metrics: pd.DataFrame,
    audits: pd.DataFrame,
    benchmarks: pd.DataFrame,
    curves: Mapping[str, Path],
    grids: Mapping[str, Path],
    command: str,
    environment: Mapping[str, str] | None = None,
    published: pd.DataFrame | None = None,
    comparisons: Mapping[str, Path] | None = None,
    layout: Layout | None = None,
) -> str:
    """The report as HTML text; equal arguments give equal text.

    Args:
        metrics, audits: what `collect` returned (or `read_csv` of it).
        benchmarks: what `read_benchmarks` returned.
        curves, grids: per dataset, a figure as .svg or .png.
        comparisons: figures over the whole study, by name in COMPARISONS.
        command: the shell line that reproduces the study.
        environment: versions by name; the running environment if left out.
        published: what `read_published` returned; if left out, so are its section and the paper's tables.
        layout: where the runs lie; if left out, so is the list of runs, and rows have no links to it.

    Raises:
        UserError: a figure or ledger cannot be read, or a table of the paper cannot be made (see `paper_table`).
    """
    missing = holes(study, metrics, audits)
    runs = audits.drop_duplicates(["dataset", "method", "epsilon", "seed"])
    datasets = {run.dataset for run in study.runs()}
    seconds = float(benchmarks["seconds"].sum())
    sections = [
        {
            "dataset": dataset,
            "table": _to_html(tables.dataset_results(metrics, dataset).without("Dataset"), layout is not None),
            "curve": _picture(curves.get(dataset)),
            "grid": _picture(grids.get(dataset)),
        }
        for dataset in study.datasets
        if dataset in datasets
    ]
    private = runs[runs["epsilon"] != epsilon_text(math.inf)]
    failed = int((~private["passed"]).sum())
    attacked = private[private["attack"] != ""].drop_duplicates(["dataset", "method", "epsilon"])
    exceeded = int(attacked["attack_exceeded"].sum())
    kinds = set(metrics["metric"])
    return template("report.html.j2").render(
        study=study.study,
        facts=_facts(study, runs, missing, len(private), failed, attacked, len(benchmarks), seconds),
        summary=_summary(study, runs),
        holes=missing,
        holes_in_sentence=HOLES_IN_SENTENCE,
        has_fd="fd" in kinds,
        has_fid="fid" in kinds,
        has_private=any(math.isfinite(e) for e in study.epsilons),
        has_inf=math.inf in study.epsilons,
        classifiers=[method for method in study.methods if study.is_classifier(method)],
        anchors=study.anchors,
        sections=sections,
        comparisons={name: _picture(path) for name, path in (comparisons or {}).items()},
        run_sections=[] if layout is None else runs_by_dataset(study, audits, layout),
        beside=[] if published is None else _beside(study, metrics, audits, published, layout is not None),
        methods=tables.to_html(tables.method_table(study)),
        published=None if published is None else _published(study, published),
        audit=tables.to_html(tables.audit_table(audits)) if len(audits) else "",
        failed=failed,
        noise={kind: int((private["noise"] == kind).sum()) for kind in ("repeatable", "secret")},
        attacked=len(attacked),
        exceeded=exceeded,
        resources=tables.to_html(tables.resource_table(benchmarks)) if len(benchmarks) else "",
        sources=_sources(metrics, audits),
        environment=environment_facts() if environment is None else environment,
        command=command,
    )


def template(name: str) -> jinja2.Template:
    """A page of this folder, to be filled in."""
    pages = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Text between tags: quotes need no escape, and thousands of recipes and commands are full of them.
    pages.filters["text"] = lambda value: html.escape(value, quote=False)
    return pages.from_string(artifacts.read_bytes(Path(__file__).with_name(name)).decode())


def _to_html(table: tables.Table, linked: bool) -> str:
    """The table, with links to the runs behind it where the page shows them."""
    links = {place: f"#{run_anchor(*runs)}" for place, runs in table.runs.items()} if linked else {}
    return tables.to_html(table, links)


def _beside(
    study: Study, metrics: pd.DataFrame, audits: pd.DataFrame, published: pd.DataFrame, linked: bool
) -> list[dict[str, Any]]:
    """The paper's tables that the study names, in the paper's order, without those of only other data sets."""
    own = {spec.published_as()[0] for spec in study.datasets.values()}
    theirs = published[(published["protocol"] == PAPER) & published["dataset"].isin(own)]
    numbers = sorted(int(n) for n in set(theirs["table"]) if f"table_{n}" in study.tables)
    shown = {n: paper_table(n, study, metrics, audits, published) for n in numbers}
    return [{"number": n, "title": TITLES[n], "text": _to_html(table, linked)} for n, table in shown.items()]


def environment_facts() -> dict[str, str]:
    """Versions of Python, platform, this package and what its numbers rest on; nothing is imported for it."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _requirements():
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    made_by = provenance()
    return facts | {"dpdm-bench": made_by["version"], "commit": made_by["commit"], "code digest": made_by["code"]}


def _requirements() -> list[str]:
    """Names of the packages that this one needs to run, from its own metadata."""
    try:
        requires = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [re.match(r"[\w.-]+", line)[0] for line in requires if "extra ==" not in line]


def _facts(
    study: Study,
    runs: pd.DataFrame,
    missing: list[str],
    private: int,
    failed: int,
    attacked: pd.DataFrame,
    jobs: int,
    seconds: float,
) -> list[tuple[str, str, bool]]:
    """Label, value, whether all is well."""
    expected = len(study.runs())
    facts = [
        ("training runs audited", f"{len(runs)} of {expected}", len(runs) == expected),
        ("private runs whose accounting passed", f"{private - failed} of {private}", not failed),
        ("results missing", str(len(missing)), not missing),
    ]
    if len(attacked):
        held = int((~attacked["attack_exceeded"]).sum())
        facts.append(("claims that their attack left standing", f"{held} of {len(attacked)}", held == len(attacked)))
    return facts + ([(f"in {jobs} jobs, summed", _duration(seconds), True)] if jobs else [])


def _summary(study: Study, runs: pd.DataFrame) -> str:
    def listed(epsilons: Iterable[float]) -> str:
        return _and(tables.epsilon_label(epsilon_text(e)) for e in sorted(epsilons))

    grid = study.runs()
    methods, datasets = dict.fromkeys(r.method for r in grid), dict.fromkeys(r.dataset for r in grid)
    epsilons, seeds = {r.epsilon for r in grid}, dict.fromkeys(r.seed for r in grid)
    fewer = [
        f"{d} at {listed(spec.epsilons)} alone"
        for d, spec in study.datasets.items()
        if spec.epsilons and not study.part()
    ]
    deltas = []
    for dataset in datasets:
        known = runs.loc[runs["dataset"] == dataset, ["n", "delta"]].drop_duplicates()
        deltas += [f"δ = {delta:.2g} on {dataset} (n = {n:,})" for n, delta in known.itertuples(index=False)]
    spec = study.evaluation
    return (
        (f"This page shows a part of the study ({study.part()}). " if study.part() else "")
        + f"{_count(methods, 'method')} ({_and(methods)}) on {_count(datasets, 'dataset')} "
        f"({_and(datasets)}) at ε = {listed(epsilons)}{f' ({_and(fewer)})' if fewer else ''}, each with "
        f"{_count(seeds, 'seed')} ({_and(map(str, seeds))}): {_count(grid, 'training run')}. "
        "Each generator was judged on "
        f"{spec.synthetic_images:,} synthetic images a run, by classifiers ({_and(spec.classifiers)}) under "
        f"the protocol “{spec.protocol}”. Noise was calibrated with the {study.accountant.upper()} accountant"
        + (f", {_and(deltas)}." if deltas else ".")
    )


def _published(study: Study, published: pd.DataFrame) -> dict[str, Any]:
    """What was published on the study's datasets, and on which of them nothing was."""
    names = {dataset: spec.published_as()[0] for dataset, spec in study.datasets.items()}
    known = set(published["dataset"])
    shown = published[published["dataset"].isin(names.values())]
    return {
        "sections": [
            {
                "dataset": name,
                "here": [dataset for dataset in names if names[dataset] == name],
                "table": tables.to_html(published_table(published, name)),
            }
            for name in dict.fromkeys(names.values())
            if name in known
        ],
        "without": [dataset for dataset, name in names.items() if name not in known],
        "covered": list(dict.fromkeys(published["dataset"])),
        "meanings": {s: meaning for s, meaning in PRIVACY_STATUS.items() if s in set(shown["privacy_status"])},
        "privacy": tables.to_html(privacy_table(shown)),
    }


def _sources(metrics: pd.DataFrame, audits: pd.DataFrame) -> list[dict[str, Any]]:
    """Which code made the results: usually one line."""
    columns = ["version", "commit", "code"]
    made = pd.concat([metrics[columns], audits[columns]]).drop_duplicates()
    return sorted(made.to_dict("records"), key=lambda row: tuple(row.values()))


def _picture(path: Path | None) -> str:
    if path is None:
        return ""
    content = base64.b64encode(artifacts.read_bytes(path)).decode()
    return f"data:{_MIME[Path(path).suffix]};base64,{content}"


def _count(items: Iterable[Any], noun: str) -> str:
    number = len(list(items))
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _and(items: Iterable[str]) -> str:
    *head, last = items
    return f"{', '.join(head)} and {last}" if head else last


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
