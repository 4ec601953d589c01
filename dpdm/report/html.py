"""One self-contained report page: it loads nothing from elsewhere, and no number in it is typed by hand."""

import base64
import importlib.metadata
import json
import math
import os
import platform
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import pandas as pd

from dpdm import artifacts
from dpdm.config import Study
from dpdm.errors import UserError, pasted
from dpdm.layout import TABLE_KINDS, Layout
from dpdm.progress import duration
from dpdm.provenance import provenance
from dpdm.report import registry, tables
from dpdm.report.collect import RUN, SPENT, holes
from dpdm.report.paper import paper_table
from dpdm.report.published import PAPER, PRIVACY_STATUS, best_table, epsilons_run, privacy_table, published_table
from dpdm.report.selection import PAPER_TABLES, score_files, shown_sets
from dpdm.report.verdicts import joined, leads_table, verdicts
from dpdm.specs import RunSpec, epsilon_text

REPEATED = "repeated"  # the output folder of printed commands, which never write to the results
_SHOWN = {".json": 1, ".log": 2, ".jsonl": 3, ".png": 4}  # files of a run that the page links to, in this order
_PNG = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # the first and last bytes of a file
_MIME = {".svg": "image/svg+xml", ".png": "image/png"}


def render_report(
    material: registry.Material,
    jobs: pd.DataFrame,
    clock: float,
    pictures: Mapping[str, Path],
    command: str,
    environment: Mapping[str, str] | None = None,
    described: Mapping[str, Mapping[str, str]] = {},
) -> str:
    """The report as HTML text; equal arguments give equal text.

    Args:
        material: without `published`, the page lacks its section and the paper's tables.
        jobs: what `job_times` returned, with `clock`.
        pictures: the figures, by name in `registry.figures`, as .svg or .png; those left out are not shown.
        command: the shell line that reproduces the study.
        environment: versions by name; the running environment if left out.
        described: by impl and header, more columns of the table of methods; an arXiv number becomes a link.

    Raises:
        UserError: a figure cannot be read or is not whole, or a table of the paper cannot be made (see `paper_table`).
    """
    study, metrics, audits, layout = material.study, material.metrics, material.audits, material.layout
    published = material.published
    missing = holes(study, metrics, audits)
    each = audits.drop_duplicates(RUN)
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
    if len(jobs):
        facts.append((f"in {jobs['jobs'].sum()} jobs, summed", duration(float(jobs["seconds"].sum())), True))
        if math.isfinite(clock):
            facts.append(("by the clock", duration(clock), True))

    figures = [
        {
            "dataset": dataset,
            "caption": item.caption,
            "picture": _picture(pictures[name], pasted("figures", layout.root, name)),
        }
        for name, (item, dataset) in registry.figures(study).items()
        if name in pictures
    ]
    grid, methods = _grid(study, each), tables.method_table(study, described)
    papers = methods.cells.get("Paper", pd.Series(dtype=str)).str.extract(r"arXiv (\d+\.\d+)")[0].dropna()
    best = leads_table(material)
    # The largest standard deviation of an FD over its extractor's networks, as a part of the FD.
    spread = (metrics["spread"] / metrics["value"]).where(metrics["metric"] == "fd").max()
    made_by = pd.concat([frame[["version", "commit", "code"]] for frame in (metrics, audits)]).drop_duplicates()
    return tables.template("report.html.j2").render(
        study=study,
        facts=facts,
        grid=grid,
        joined=joined,
        verdicts=verdicts(material),
        best=tables.to_html(tables.Table(best, best.reset_index(names="Measure"))) if len(best) else "",
        few=tables.FEW,
        machines=tables.machine_note(metrics),
        departed=(metrics["departures"] != "").any(),
        extractors=list(map(tables.name_of, study.evaluation.extractors)),
        spread=f"{100 * spread:.0f}" if spread >= 0 else None,
        ceiling=not tables.above_ceiling(metrics),
        holes=missing,
        kinds=set(metrics["metric"]),
        has_private=any(math.isfinite(e) for e in study.epsilons),
        has_inf=math.inf in study.epsilons,
        classifiers=[method for method in study.methods if study.is_classifier(method)],
        sections={dataset: _results(metrics, dataset) for dataset in grid["datasets"]},
        nearest={dataset: _nearest(study, layout, dataset) for dataset in grid["datasets"]},
        figures=figures,
        tables={
            name: (item.caption, tables.to_html(item.make(material)))
            for name, item in registry.tables(study).items()
            if name not in registry.PLACED
        },
        table_kinds=TABLE_KINDS,
        run_sections=runs_by_dataset(study, audits, layout),
        repeating=repeating(study, layout),
        paper=[] if published is None else _paper(material),
        methods=tables.to_html(methods, {(i, "Paper"): f"https://arxiv.org/abs/{n}" for i, n in papers.items()}),
        published={} if published is None else _published(study, published),
        audit=_linked(tables.audit_table(audits)) if len(audits) else "",
        failed=failed,
        noise={kind: int((private["noise"] == kind).sum()) for kind in ("repeatable", "secret")},
        attacked=len(attacked),
        exceeded=exceeded,
        resources=tables.to_html(tables.resource_table(jobs)) if len(jobs) else "",
        sources=made_by.sort_values(list(made_by)).to_dict("records"),
        environment=environment or environment_facts(),
        command=command,
    )


def _results(metrics: pd.DataFrame, dataset: str) -> list[tuple[str, int]]:
    """A table of the main scores (accuracies first) and one of the other metrics, each with its number of seeds.

    A cell with another number of seeds says so.
    """
    chosen = metrics[metrics["dataset"] == dataset]
    first = sorted(tables.score_columns(chosen), key=lambda column: not column.is_accuracy)  # stable
    rest = [column for column in tables.metric_columns(tables.with_values(chosen)) if column not in first]
    shown = [tables.dataset_results(metrics, dataset, columns) for columns in (first, *[rest] * bool(rest))]
    return [(_linked(table), n) for table, n in map(tables.Table.counted_once, shown)]


def _linked(table: tables.Table) -> str:
    """The table, with links to the runs behind it."""
    return tables.to_html(table, {place: f"#{tables.run_anchor(*runs)}" for place, runs in table.runs.items()})


def _nearest(study: Study, layout: Layout, dataset: str) -> dict[str, str]:
    """The picture of the synthetic images nearest to training images, by method and sampler, at the largest epsilon."""
    sets = shown_sets(study, dataset)
    largest = max((run.epsilon for run, _ in sets), default=0)
    return {
        f"{run.method}, {sampler}": _picture(path, pasted("score", layout.root, f"{run.name}/{sampler}"))
        for run, sampler in sets
        if run.epsilon == largest and (path := Path(layout.set(*run.place, sampler, "nearest.png"))).exists()
    }


def _paper(material: registry.Material) -> list[dict[str, Any]]:
    """The paper's tables that the study names, in the paper's order, if they have a data set of the study."""
    study, published = material.study, material.published
    own = {study.datasets[name].published_as()[0] for name in epsilons_run(study)}
    theirs = published[(published["protocol"] == PAPER) & published["dataset"].isin(own)]
    numbers = sorted(int(n) for n in set(theirs["table"]) if f"table_{n}" in study.tables)
    shown = {n: paper_table(n, material) for n in numbers}
    return [{"number": n, "title": PAPER_TABLES[n], "text": _linked(table)} for n, table in shown.items()]


def environment_facts() -> dict[str, str]:
    """Versions of Python, platform, this package and what its numbers rest on; nothing is imported for it."""
    libraries = ("torch", "opacus", "snakemake", "numpy", "scipy", "pandas", "scikit-learn", "torch-fidelity")
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= {name: importlib.metadata.version(name) for name in libraries}
    made_by = provenance()
    return facts | {"dpdm-bench": made_by["version"], "commit": made_by["commit"], "code digest": made_by["code"]}


def _grid(study: Study, audits: pd.DataFrame) -> dict[str, Any]:
    """The runs, for the sentence at the top of the page, and the values by which rows can be filtered."""

    def labels(epsilons: Iterable[float]) -> dict[str, str]:
        return {text: tables.epsilon_label(text) for text in map(epsilon_text, sorted(epsilons))}

    runs, of_part = study.runs(), study.part()
    methods, datasets = {run.method: run.method for run in runs}, {run.dataset: run.dataset for run in runs}
    epsilons = labels({run.epsilon for run in runs})
    filters = [("Data set", "dataset", datasets), ("ε", "epsilon", epsilons), ("Method", "method", methods)]
    fewer = {name: labels(spec.epsilons) for name, spec in study.datasets.items() if spec.epsilons and not of_part}
    deltas = audits[["dataset", "n", "delta"]].drop_duplicates().itertuples(index=False)
    return {
        "runs": runs,
        "least": min(Counter(run.place[:3] for run in runs).values()),
        "methods": methods,
        "datasets": datasets,
        "seeds": dict.fromkeys(str(run.seed) for run in runs),
        "epsilons": joined(epsilons.values()),
        "fewer": [f"{name} at {joined(theirs.values())} only" for name, theirs in fewer.items()],
        "deltas": [f"δ = {delta:.2g} on {dataset} (n = {n:,})" for dataset, n, delta in deltas],
        "filters": [one for one in filters if len(one[2]) > 1],
    }


def _published(study: Study, published: pd.DataFrame) -> dict[str, Any]:
    """The published numbers on the study's datasets."""
    here: dict[str, list[str]] = {}
    for dataset in epsilons_run(study):
        here.setdefault(study.datasets[dataset].published_as()[0], []).append(dataset)
    shown = published[published["dataset"].isin(here)]
    if shown.empty:
        return {}
    return {
        "sections": [
            {"dataset": name, "here": here[name], "table": tables.to_html(published_table(published, name))}
            for name in here
            if name in set(shown["dataset"])
        ],
        "meanings": {s: meaning for s, meaning in PRIVACY_STATUS.items() if s in set(shown["privacy_status"])},
        "privacy": tables.to_html(privacy_table(shown)),
        "best": tables.to_html(best_table(shown)),
    }


def _picture(path: Path, again: str) -> str:
    """A picture as a data URL; UserError if it is not whole, with the command `again` that makes it again."""
    content = artifacts.read_bytes(path)
    if not (_is_svg(content) if path.suffix == ".svg" else content.startswith(_PNG[0]) and content.endswith(_PNG[1])):
        raise UserError(f"{path} is no whole {path.suffix[1:].upper()}; `{again}` makes it again")
    return f"data:{_MIME[path.suffix]};base64,{base64.b64encode(content).decode()}"


def _is_svg(content: bytes) -> bool:
    try:
        return ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"
    except ElementTree.ParseError:
        return False


def runs_by_dataset(study: Study, audits: pd.DataFrame, layout: Layout) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """A group of runs per epsilon, by data set and method (anchors last), with links to the existing files."""
    judged = {tuple(row[key] for key in RUN): row for row in audits.to_dict("records")}
    runs = [(run, epsilon_text(run.epsilon), Path(layout.run(*run.place))) for run in study.runs()]
    anchors = [(c, "", Path(layout.anchor(c.dataset, c.method, str(c.seed)))) for c in study.anchor_coordinates()]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for c, epsilon, folder in [*runs, *anchors]:
        groups = found.setdefault(c.dataset, {}).setdefault(c.method, [])
        if not groups or groups[-1]["value"] != epsilon:
            recipe = json.dumps(c.model_dump(mode="json", exclude={"seed"}), indent=2, ensure_ascii=False)
            shown = {"id": tables.run_anchor(c.dataset, c.method, epsilon), "value": epsilon, "runs": []}
            groups.append(shown | {"recipe": epsilon and recipe, "epsilon": epsilon and tables.epsilon_label(epsilon)})
        verdict = _verdict(c, judged.get((c.dataset, c.method, epsilon, c.seed))) if epsilon else ""
        files = _links(folder, layout) if not epsilon or (folder / "ledger.json").exists() else []
        groups[-1]["runs"].append({"seed": c.seed, "verdict": verdict, "failed": "FAILED" in verdict, "files": files})
    return found


def _verdict(run: RunSpec, audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "not audited"
    verdict = tables.accounting_verdict(audit["passed"], run.epsilon, audit["recipe_checked"])
    spent = ", ".join(f"{audit[column]:.4g} ({name.upper()})" for name, column in SPENT.items())
    return verdict if math.isinf(run.epsilon) else f"{verdict}, spent ε = {spent}"


def _links(folder: Path, layout: Layout) -> list[tuple[str, str]]:
    """Names of a folder's files, and links relative to the page, so that a results folder can be moved as a whole."""
    files = [path for path in folder.rglob("*") if path.suffix in _SHOWN]
    return [
        (path.relative_to(folder).as_posix(), quote(Path(os.path.relpath(path, layout.root)).as_posix()))
        for path in sorted(files, key=lambda path: (path.parent, _SHOWN[path.suffix], path.name))
    ]


def repeating(study: Study, layout: Layout) -> dict[str, str]:
    """Commands that repeat one run of each kind, by kind; `cmp` prints nothing if the files have the same bytes."""
    commands: dict[str, list[str]] = {}
    root, files = shlex.quote(layout.root), score_files(study)
    for run in study.runs():
        folder, processes = layout.run(*run.place), study.methods[run.method].gpus_per_run
        spec = shlex.quote(f"{folder}/ledger.json")
        several = f" --processes {processes}" * (processes > 1)
        trained = _again(f"train --spec {spec} --out {REPEATED}{several}", folder, REPEATED, "model.pt")
        if study.is_classifier(run.method):
            score = f"score {root} {run.name} --model {REPEATED}/model.pt --out {REPEATED}"
            commands.setdefault("a classifier", trained + _again(score, folder, REPEATED, "utility.json"))
            continue
        commands.setdefault("a training", trained)
        for sampler in study.samplers_of(run):
            place, made, again = f"{run.name}/{sampler}", f"{folder}/{sampler}", f"{REPEATED}/{sampler}"
            draw = _again(f"sample {root} {place} --out {REPEATED}", made, again, "synthetic.npz")
            score = f"score {root} {place} --synthetic {again}/synthetic.npz --out {again}"
            commands.setdefault("images and scores", draw + _again(score, made, again, *files))
    for c in study.anchor_coordinates():
        folder, place = layout.anchor(c.dataset, c.method, str(c.seed)), f"{c.dataset}/{c.method}/{c.seed}"
        score = f"score {root} {place} --out {REPEATED}"
        commands.setdefault("an anchor", _again(score, folder, REPEATED, *files))
    return {what: " && ".join(parts) for what, parts in commands.items()}


def _again(verb: str, folder: str, out: str, *files: str) -> list[str]:
    """The command, and comparisons of its files in `out` with `folder`; inception.json has a separate command."""
    command = f"python -m dpdm {verb}"
    parts = {name: f"cmp {out}/{name} {shlex.quote(f'{folder}/{name}')}" for name in files}
    by_inception = [f"{command} --inception", parts.pop("inception.json")] if "inception.json" in parts else []
    return [command, *parts.values(), *by_inception]
