"""Verbs that make the files between the runs and the report; people rarely need them."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import click

from dpdm.cli._verbs import dataset_argument, study_argument, verbs
from dpdm.errors import UserError
from dpdm.evaluation.registry import EXTRACTORS, PUBLIC_EXTRACTORS


@verbs.command("validate")
@click.argument("file", type=click.File("r"), help="The study as JSON; - for standard input.")
@click.option("--again", is_flag=True, help="What was trained before is trained again.")
def validate(file, again: bool) -> None:
    """Check a whole study before any job, and write the study.json that the jobs read.

    Every method is imported, every params built, its tables and FID weights checked. Runs that were trained by other
    code are refused. A study.json that says the same already is left as it is.
    """
    from dpdm import artifacts
    from dpdm.config import Study
    from dpdm.jobs import load_public
    from dpdm.layout import PUBLISHED, Layout
    from dpdm.plan import planned_runs
    from dpdm.report.published import check_tables
    from dpdm.specs import parse_spec
    from dpdm.study import study_json

    study = parse_spec(Study, file.read(), "the study")
    layout = Layout(study.results_dir, study.study)
    check_tables(study, PUBLISHED)
    planned_runs(study)
    if not (again or study.allow_mixed_code):
        _refuse_other_code(study, layout)
    for name in study.evaluation.public_extractors:
        load_public(study, name)
    if study.evaluation.fid:
        from dpdm.evaluation.inception import NAME, WEIGHTS_SHA256

        inception = load_public(study, NAME)
        if inception.weights_sha256 != WEIGHTS_SHA256:
            print(
                f"warning: {inception.path} is not the file that torch-fidelity publishes, so what is called FID here "
                "may be no FID; its SHA-256 is recorded beside every value",
                file=sys.stderr,
            )
    text = study_json(study)
    if not (os.path.exists(layout.study) and artifacts.read_bytes(layout.study) == text.encode()):
        artifacts.write_text(layout.study, text)


def _refuse_other_code(study, layout) -> None:
    """Refuses runs that other code trained: new ones could not share their tables."""
    from dpdm import artifacts
    from dpdm.provenance import provenance

    for run in study.runs():
        path = layout.run(*run.place, "ledger.json")
        if not os.path.exists(path):
            continue
        ledger, code = artifacts.read_json(path, ("recipe", "provenance")), provenance()["code"]
        if ledger["recipe"] == run.model_dump(mode="json") and ledger["provenance"]["code"] != code:
            raise UserError(
                f"{path} was made by other code ({ledger['provenance']['code']}, now {code}), and new results could "
                "not share a table with it; add `--forcerun train score_anchor` to the command, or set "
                "`allow_mixed_code: true` in the study"
            )


def _dataset(study: str, dataset: str):
    from dpdm.study import find_dataset, open_study

    opened, layout = open_study(study)
    find_dataset(opened, dataset)
    return opened, layout


def _prepared(study: str, dataset: str):
    """`dpdm.jobs`, the study and its layout, once the data set is there."""
    opened, layout = _dataset(study, dataset)
    from dpdm import jobs

    jobs.make_missing(opened, layout, dataset)
    return jobs, opened, layout


@verbs.command("prepare")
@study_argument()
@dataset_argument()
def prepare(study: str, dataset: str) -> None:
    """Load a data set, verify it, and write its splits."""
    opened, layout = _dataset(study, dataset)
    from dpdm import jobs

    jobs.prepare(opened, layout, dataset)


@verbs.command("extractor")
@study_argument()
@dataset_argument()
def extractor(study: str, dataset: str) -> None:
    """Train the feature extractor of a data set's image distance, on real images."""
    jobs, _, layout = _prepared(study, dataset)
    jobs.train_extractor(layout, dataset)


@verbs.command("reference")
@study_argument()
@dataset_argument()
@click.option(
    "--extractor",
    type=click.Choice(["inception", *EXTRACTORS, *PUBLIC_EXTRACTORS]),
    default="inception",
    help="Which one it is.",
)
def reference(study: str, dataset: str, extractor: str) -> None:
    """Compute an extractor's statistics of a data set's real images; Inception's if none is named."""
    jobs, opened, layout = _prepared(study, dataset)
    jobs.make_reference(opened, layout, dataset, extractor)


@verbs.command("label-only")
@study_argument()
@dataset_argument()
def label_only(study: str, dataset: str) -> None:
    """Write the label-only floor: uniform noise images with balanced labels."""
    jobs, opened, layout = _prepared(study, dataset)
    jobs.make_label_only(opened, layout, dataset)


@verbs.command("collect")
@study_argument()
def collect(study: str) -> None:
    """Gather the scores and audits of a study into metrics.csv and audits.csv."""
    from dpdm.study import open_study

    opened, layout = open_study(study)
    _collect(opened, layout, layout.metrics, layout.audits)


def _collect(study, layout, metrics_file: str, audits_file: str) -> tuple:
    from dpdm.report import collect as gather

    metrics, audits = gather.collect(study, layout.result_folders(study.attacks))
    for hole in gather.holes(study, metrics, audits):
        print(f"missing: {hole}", file=sys.stderr)
    gather.write_csv(metrics_file, metrics)
    gather.write_csv(audits_file, audits)
    return metrics, audits


@verbs.command("tables")
@study_argument()
@click.option("--partial", is_flag=True, help="All tables of what is finished by now, into STUDY/partial.")
def tables(study: str, partial: bool) -> None:
    """Write the tables of results and audits as csv, md, tex and html."""
    from dpdm.report import registry
    from dpdm.report.tables import write_table
    from dpdm.study import open_study

    opened, layout = open_study(study)
    if partial:
        scores = _collect(opened, layout, f"{layout.partial}/metrics.csv", f"{layout.partial}/audits.csv")
        material = registry.Material(opened, layout, *scores)
        for table in opened.tables:
            _paper_table(opened, layout, int(table.removeprefix("table_")), f"{layout.partial}/{table}")
    else:
        material = _material(opened, layout)
    stems = {name: f"{layout.partial}/{name}" if partial else layout.table(name) for name in registry.tables(opened)}
    for name, stem in stems.items():
        write_table(registry.TABLES[name].make(material), stem)
    print(f"tables: {', '.join(f'{stem}.html' for stem in stems.values())}")


def _material(study, layout):
    """What the figures and tables of a finished study are made from."""
    from dpdm.report.collect import AUDITS, METRICS, read_csv
    from dpdm.report.registry import Material

    return Material(study, layout, read_csv(layout.metrics, METRICS), read_csv(layout.audits, AUDITS))


@verbs.command("paper-table")
@study_argument()
@click.argument("number", type=click.IntRange(1, 6), help="Its number in the paper (arXiv v1), 1 to 6.")
def paper_table(study: str, number: int) -> None:
    """Write one of the paper's tables with its numbers and ours."""
    from dpdm.study import open_study

    opened, layout = open_study(study)
    _paper_table(opened, layout, number, layout.table(f"table_{number}"))


def _paper_table(study, layout, number: int, out: str) -> None:
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED
    from dpdm.report import collect as gather
    from dpdm.report import paper, tables
    from dpdm.report.published import read_published
    from dpdm.report.selection import table_files

    # No other file is read: what a table does not show may be of other code, or be made again at this moment.
    metrics, audits = gather.collect(study, table_files(study, layout, number))
    table = paper.paper_table(number, study, metrics, audits, read_published(PUBLISHED, PRIVACY_STATUS))
    for note in table.notes:
        print(note, file=sys.stderr)
    tables.write_table(table, out)


@verbs.command("figures")
@study_argument()
@click.argument("names", nargs=-1, metavar="[NAME]...", help="Which, as DATASET_curves or wins; default: all.")
def figures(study: str, names: tuple[str, ...]) -> None:
    """Draw figures of a study whose scores are collected."""
    from dpdm.explain import nearest
    from dpdm.report import registry
    from dpdm.study import open_study

    opened, layout = open_study(study)
    known = registry.figures(opened)
    for name in names:
        if name not in known:
            raise UserError(f"{layout.root} has no figure {name!r}; {nearest(name, known)}")
    from dpdm.report.figures import save_figure

    material = _material(opened, layout)
    for name in names or known:
        item, dataset = known[name]
        save_figure(item.make(replace(material, dataset=dataset)), layout.figure(name))


@verbs.command("report")
@study_argument()
@click.option("--command", metavar="TEXT", help="What made the results, to print on the page.")
def report(study: str, command: str | None) -> None:
    """Write the self-contained report.html."""
    from dpdm import artifacts, catalog
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED
    from dpdm.report import collect as gather
    from dpdm.report import html, registry
    from dpdm.report.published import read_published
    from dpdm.study import open_study

    opened, layout = open_study(study)
    text = html.render_report(
        _material(opened, layout),
        gather.read_benchmarks(layout.benchmarks, opened),
        {name: Path(layout.figure(name, ".svg")) for name in registry.figures(opened)},
        command or f"dpdm run {study}",
        published=read_published(PUBLISHED, PRIVACY_STATUS),
        described={
            entry.impl: {"What it is": entry.what, "Paper": entry.paper, "Releases": entry.releases}
            for entry in catalog.methods()
        },
    )
    artifacts.write_text(layout.report, text)
