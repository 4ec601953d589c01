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
from dpdm.provenance import provenance
from dpdm.report import registry, tables
from dpdm.report.collect import holes
from dpdm.report.paper import TITLES, paper_table
from dpdm.report.published import PAPER, PRIVACY_STATUS, best_table, privacy_table, published_table
from dpdm.report.runs import repeating, run_anchor, runs_by_dataset
from dpdm.report.verdicts import verdicts
from dpdm.specs import epsilon_text

HOLES_IN_SENTENCE = 3  # more are folded away below it
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def render_report(
    material: registry.Material,
    benchmarks: pd.DataFrame,
    pictures: Mapping[str, Path],
    command: str,
    environment: Mapping[str, str] | None = None,
    published: pd.DataFrame | None = None,
    runs: bool = True,
    described: Mapping[str, Mapping[str, str]] = {},
) -> str:
    """The report as HTML text; equal arguments give equal text.

    Args:
        material: the study and what `collect` returned of it.
        benchmarks: what `read_benchmarks` returned.
        pictures: the figures, by name in `registry.figures`, as .svg or .png; those left out are not shown.
        command: the shell line that reproduces the study.
        environment: versions by name; the running environment if left out.
        published: what `read_published` returned; if left out, so are its section and the paper's tables.
        runs: whether to list the runs, to which rows then link.
        described: by impl and header, more columns of the table of methods; what names arXiv leads there.

    Raises:
        UserError: a figure or ledger cannot be read, or a table of the paper cannot be made (see `paper_table`).
    """
    study, metrics, audits = material.study, material.metrics, material.audits
    missing = holes(study, metrics, audits)
    each = audits.drop_duplicates(["dataset", "method", "epsilon", "seed"])
    private = each[each["epsilon"] != epsilon_text(math.inf)]
    attacked = private[private["attack"] != ""].drop_duplicates(["dataset", "method", "epsilon"])
    failed, exceeded = int((~private["passed"]).sum()), int(attacked["attack_exceeded"].sum())
    expected = len(study.runs())
    facts = [  # label, value, whether all is well
        ("training runs audited", f"{len(each)} of {expected}", len(each) == expected),
        ("private runs within their target", f"{len(private) - failed} of {len(private)}", not failed),
        ("results missing", str(len(missing)), not missing),
    ]
    if len(each) > len(private):
        facts.append(("runs without noise, which have no guarantee", str(len(each) - len(private)), True))
    if len(attacked):
        facts.append(("claims that no attack refuted", f"{len(attacked) - exceeded} of {len(attacked)}", not exceeded))
    if len(benchmarks):
        facts.append((f"in {len(benchmarks)} jobs, summed", _duration(float(benchmarks["seconds"].sum())), True))

    figures = [
        {"dataset": dataset, "caption": item.caption, "picture": _picture(pictures[name])}
        for name, (item, dataset) in registry.figures(study).items()
        if name in pictures
    ]
    others = {
        item.caption: tables.to_html(item.make(material))
        for name, item in registry.tables(study).items()
        if name not in registry.PLACED
    }
    return template("report.html.j2").render(
        study=study.study,
        facts=facts,
        summary=_summary(study, each),
        verdicts=verdicts(material, published),
        few=tables.FEW,
        ceiling=not tables.above_ceiling(metrics),
        holes=missing,
        holes_in_sentence=HOLES_IN_SENTENCE,
        kinds=set(metrics["metric"]),
        has_private=any(math.isfinite(e) for e in study.epsilons),
        has_inf=math.inf in study.epsilons,
        classifiers=[method for method in study.methods if study.is_classifier(method)],
        anchors=study.anchors,
        sections={
            dataset: _results(tables.dataset_results(metrics, dataset, True).without("Dataset"), runs)
            for dataset in dict.fromkeys(run.dataset for run in study.runs())
        },
        figures=figures,
        tables=others,
        run_sections=runs_by_dataset(study, audits, material.layout) if runs else {},
        repeating=repeating(study, material.layout),
        paper=[] if published is None else _paper(material, published, runs),
        methods=_methods(tables.method_table(study, described)),
        filters=_filters(study),
        published={} if published is None else _published(study, published),
        audit=_to_html(tables.audit_table(audits), runs) if len(audits) else "",
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


def _results(table: tables.Table, linked: bool) -> tuple[str, int]:
    """The table, and the number of seeds behind every cell that does not state another."""
    shorter, n = table.counted_once()
    return _to_html(shorter, linked), n


def _to_html(table: tables.Table, linked: bool) -> str:
    """The table, with links to the runs behind it where the page shows them."""
    links = {place: f"#{run_anchor(*runs)}" for place, runs in table.runs.items()} if linked else {}
    return tables.to_html(table, links)


def _methods(table: tables.Table) -> str:
    papers = {place: re.search(r"arXiv (\d+\.\d+)", text) for place, text in table.cells.get("Paper", {}).items()}
    return tables.to_html(table, {(i, "Paper"): f"https://arxiv.org/abs/{n[1]}" for i, n in papers.items() if n})


def _filters(study: Study) -> list[tuple[str, str, dict[str, str]]]:
    """Label, key, and the values (with their texts) that rows can be filtered by, where there are several."""
    runs = study.runs()
    epsilons = [epsilon_text(e) for e in sorted({run.epsilon for run in runs})]
    found = [
        ("Data set", "dataset", {run.dataset: run.dataset for run in runs}),
        ("ε", "epsilon", {text: tables.epsilon_label(text) for text in epsilons}),
        ("Method", "method", {run.method: run.method for run in runs}),
    ]
    return [one for one in found if len(one[2]) > 1]


def _paper(material: registry.Material, published: pd.DataFrame, linked: bool) -> list[dict[str, Any]]:
    """The paper's tables that the study names, in the paper's order, without those of only other data sets."""
    study = material.study
    own = {spec.published_as()[0] for spec in study.datasets.values()}
    theirs = published[(published["protocol"] == PAPER) & published["dataset"].isin(own)]
    numbers = sorted(int(n) for n in set(theirs["table"]) if f"table_{n}" in study.tables)
    shown = {n: paper_table(n, study, material.metrics, material.audits, published) for n in numbers}
    return [{"number": n, "title": TITLES[n], "text": _to_html(table, linked)} for n, table in shown.items()]


def environment_facts() -> dict[str, str]:
    """Versions of Python, platform, this package and what its numbers rest on; nothing is imported for it."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "opacus", "snakemake", "numpy", "scipy", "pandas", "scikit-learn", "torch-fidelity"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    made_by = provenance()
    return facts | {"dpdm-bench": made_by["version"], "commit": made_by["commit"], "code digest": made_by["code"]}


def _summary(study: Study, runs: pd.DataFrame) -> str:
    def listed(epsilons: Iterable[float]) -> str:
        return _and(tables.epsilon_label(epsilon_text(e)) for e in sorted(epsilons))

    grid = study.runs()
    methods, datasets = dict.fromkeys(r.method for r in grid), dict.fromkeys(r.dataset for r in grid)
    epsilons, seeds = {r.epsilon for r in grid}, dict.fromkeys(r.seed for r in grid)
    fewer = [f"{d} at {listed(s.epsilons)} only" for d, s in study.datasets.items() if s.epsilons and not study.part()]
    deltas = [
        f"δ = {delta:.2g} on {dataset} (n = {n:,})"
        for dataset in datasets
        for n, delta in runs.loc[runs["dataset"] == dataset, ["n", "delta"]].drop_duplicates().itertuples(index=False)
    ]
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


def _published(study: Study, published: pd.DataFrame) -> dict[str, Any] | list:
    """What was published on the study's datasets."""
    names = {dataset: spec.published_as()[0] for dataset, spec in study.datasets.items()}
    shown = published[published["dataset"].isin(names.values())]
    known = [name for name in dict.fromkeys(names.values()) if name in set(shown["dataset"])]
    return known and {
        "sections": [
            {
                "dataset": name,
                "here": [dataset for dataset in names if names[dataset] == name],
                "table": tables.to_html(published_table(published, name)),
            }
            for name in known
        ],
        "meanings": {s: meaning for s, meaning in PRIVACY_STATUS.items() if s in set(shown["privacy_status"])},
        "privacy": tables.to_html(privacy_table(shown)),
        "best": tables.to_html(best_table(shown)),
    }


def _sources(metrics: pd.DataFrame, audits: pd.DataFrame) -> list[dict[str, Any]]:
    """Which code made the results: usually one line."""
    columns = ["version", "commit", "code"]
    made = pd.concat([metrics[columns], audits[columns]]).drop_duplicates()
    return sorted(made.to_dict("records"), key=lambda row: tuple(row.values()))


def _picture(path: Path) -> str:
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
