"""Verbs that make the files between the runs and the report; users rarely need them."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import click

from dpdm.cli._verbs import dataset_argument, study_argument, verbs
from dpdm.errors import UserError
from dpdm.evaluation.registry import EXTRACTORS, PUBLIC_EXTRACTORS

NETWORKS = ("inception", *EXTRACTORS, *PUBLIC_EXTRACTORS)
FILES = ("dataset.json", "extractor.pt", *(f"{name}.npz" for name in NETWORKS), "label_only.npz")  # of a data set


@verbs.command("validate")
@click.argument("file", type=click.File("rb"), help="The study as JSON; - for standard input.")
@click.option("--again", is_flag=True, help="Runs that other code trained will be trained again.")
def validate(file, again: bool) -> None:
    """Check a whole study before any job, and write the study.json that the jobs read.

    Imports every method, builds its params, and checks metrics, classifiers, tables and FID weights. Refuses runs that
    other code trained. A study.json with the same content is left unchanged.
    """
    from dpdm import artifacts
    from dpdm.config import parse_study
    from dpdm.jobs import load_public
    from dpdm.layout import PUBLISHED, Layout
    from dpdm.plan import planned_runs
    from dpdm.rehearsal import check_judges
    from dpdm.report.published import check_tables
    from dpdm.study import study_json

    if file.name.endswith((".yaml", ".yml")):
        raise UserError(f"{file.name} is a study file where its JSON is wanted; `dpdm check {file.name}` checks it")
    origin = "the study" if file.name == "<stdin>" else file.name
    try:
        value = json.loads(file.read())
    except ValueError as error:
        raise UserError(f"{origin} is no JSON ({error}); name a study.json, or `dpdm check` a study file") from error
    study = parse_study(value, origin)
    layout = Layout(study.results_dir, study.study)
    check_tables(study, PUBLISHED)
    planned_runs(study)
    check_judges(study)
    if not (again or study.allow_mixed_code):
        _refuse_other_code(study, layout)
    _refuse_data_of_others(study, layout)
    for name in study.evaluation.public_extractors:
        load_public(study, name)
    if study.evaluation.fid:
        from dpdm.evaluation.inception import NAME, WEIGHTS_SHA256

        inception = load_public(study, NAME)
        if inception.weights_sha256 != WEIGHTS_SHA256:
            print(
                f"warning: {inception.path} is not the file that torch-fidelity publishes, so what is called FID here "
                "may be no FID; its SHA-256 is recorded with every value",
                file=sys.stderr,
            )
    text = study_json(study)
    if not (os.path.exists(layout.study) and artifacts.read_bytes(layout.study) == text.encode()):
        artifacts.write_text(layout.study, text)


def _refuse_data_of_others(study, layout) -> None:
    """Refuses to replace the images of a data set that another study in the folder has under the same name."""
    from dpdm import jobs
    from dpdm.study import open_study

    differing = [name for name in study.datasets if jobs.other_source(study, layout, name)]
    folders = {path.parent for path in Path(study.results_dir).glob("*/study.json")} - {Path(layout.root)}
    for folder in sorted(folders) if differing else ():
        try:
            other = open_study(folder)[0]
        except UserError:  # of another version
            continue
        for name in differing:
            if name in other.datasets and jobs.other_source(other, layout, name) is None:
                jobs.refuse_other_source(study, layout, name)


def _refuse_other_code(study, layout) -> None:
    """Refuses runs that other code trained: new runs could not be in one table with them."""
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


@verbs.command("data")
@study_argument(writes=True)
@dataset_argument()
@click.argument("file", type=click.Choice(FILES), help="Which file.")
def data(study, layout, dataset: str, file: str) -> None:
    """Make a file of a data set, after the files that it needs.

    dataset.json: load the data set, verify it, and write its splits too. extractor.pt: train the feature extractor of
    the image distance on real images. EXTRACTOR.npz: an extractor's statistics of the real images. label_only.npz: the
    label-only floor, uniform noise images with balanced labels.
    """
    from dpdm import jobs

    if file == "dataset.json":
        jobs.refuse_other_source(study, layout, dataset)  # the workflow deletes the file before
    else:
        jobs.make_missing(study, layout, dataset)
    jobs.make(study, layout, dataset, file)


@verbs.command("collect")
@study_argument(writes=True)
def collect(study, layout) -> None:
    """Gather the scores and audits of a study into metrics.csv and audits.csv."""
    _collect(study, layout, layout.metrics, layout.audits)


def _collect(study, layout, metrics_file: str, audits_file: str) -> tuple:
    from dpdm.report import collect as gather

    metrics, audits = gather.collect(study, layout.result_folders(study.attacks))
    if metrics.empty and audits.empty:
        raise UserError(f"{layout.root} holds no score and no audit of the study yet; `dpdm run STUDY` makes them")
    for hole in gather.holes(study, metrics, audits):
        print(f"missing: {hole}", file=sys.stderr)
    gather.write_csv(metrics_file, metrics)
    gather.write_csv(audits_file, audits)
    return metrics, audits


@verbs.command("tables")
@study_argument(writes=True)
@click.option("--partial", is_flag=True, help="Write all tables of the finished runs into STUDY/partial.")
def tables(study, layout, partial: bool) -> None:
    """Write the tables of results and audits as csv, md, tex and html."""
    from dpdm.report import registry
    from dpdm.report.selection import check_entries
    from dpdm.report.tables import write_table

    check_entries(study)
    if partial:
        scores = _collect(study, layout, f"{layout.partial}/metrics.csv", f"{layout.partial}/audits.csv")
        material = registry.Material(study, layout, *scores)
        for table in study.tables:
            _paper_table(study, layout, int(table.removeprefix("table_")), f"{layout.partial}/{table}")
    else:
        material = collected(study, layout)
    stems = {name: f"{layout.partial}/{name}" if partial else layout.table(name) for name in registry.tables(study)}
    for name, stem in stems.items():
        write_table(registry.TABLES[name].make(material), stem)
    print(f"tables: {', '.join(f'{stem}.html' for stem in stems.values())}")


def collected(study, layout):
    """The material of a finished study's figures and tables."""
    from dpdm.config import ANCHORS
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED
    from dpdm.report.collect import AUDITS, METRICS, read_csv
    from dpdm.report.published import read_published
    from dpdm.report.registry import Material

    tables = ((layout.metrics, METRICS), (layout.audits, AUDITS))
    for path, _ in tables:
        if not os.path.exists(path):
            raise UserError(f"{study.study} has no results yet: there is no {path}; `dpdm run STUDY` makes it")
    frames = {path: read_csv(path, kind) for path, kind in tables}
    for path, frame in frames.items():
        for dataset, method in frame[["dataset", "method"]].drop_duplicates().itertuples(index=False):
            if dataset not in study.datasets or method not in (*study.methods, *ANCHORS):
                raise UserError(
                    f"{path} has rows of {method} on {dataset}, which the study does not have; run `dpdm collect` again"
                )
    return Material(study, layout, *frames.values(), published=read_published(PUBLISHED, PRIVACY_STATUS))


@verbs.command("paper-table")
@study_argument(writes=True)
@click.argument("number", type=int, help="Its number in the paper (arXiv v1), 1 to 6.")
def paper_table(study, layout, number: int) -> None:
    """Write one of the paper's tables with its numbers and ours."""
    _paper_table(study, layout, number, layout.table(f"table_{number}"))


def _paper_table(study, layout, number: int, out: str) -> None:
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED
    from dpdm.report import collect as gather
    from dpdm.report import paper, registry, tables
    from dpdm.report.published import read_published
    from dpdm.report.selection import table_files

    # No other file is read: what a table does not show may be of other code, or be made again at this moment.
    scores = gather.collect(study, table_files(study, layout, number))
    published = read_published(PUBLISHED, PRIVACY_STATUS)
    table = paper.paper_table(number, registry.Material(study, layout, *scores, published=published))
    for note in table.notes:
        print(note, file=sys.stderr)
    tables.write_table(table, out)


@verbs.command("figures")
@study_argument(writes=True)
@click.argument("names", nargs=-1, metavar="[NAME]...", help="Which, as DATASET_curves; default: all.")
def figures(study, layout, names: tuple[str, ...]) -> None:
    """Draw figures of a study whose scores are collected."""
    from dpdm.explain import nearest
    from dpdm.report import registry

    known = registry.figures(study)
    for name in names:
        if name not in known:
            raise UserError(f"{layout.root} has no figure {name!r}; {nearest(name, known)}")
    from dpdm.report.figures import save_figure

    material = collected(study, layout)
    for name in names or known:
        item, dataset = known[name]
        save_figure(item.make(replace(material, dataset=dataset)), layout.figure(name))


@verbs.command("report")
@study_argument(writes=True)
@click.option("--command", metavar="TEXT", help="What made the results, to print on the page.")
@click.pass_obj
def report(named: str, study, layout, command: str | None) -> None:
    """Write the self-contained report.html."""
    from dpdm import artifacts, catalog
    from dpdm.report import collect as gather
    from dpdm.report import html, registry

    text = html.render_report(
        collected(study, layout),
        *gather.job_times(layout, study),
        {name: Path(layout.figure(name, ".svg")) for name in registry.figures(study)},
        command or f"dpdm run {named}",
        described={
            entry.impl: {"What it is": entry.what, "Paper": entry.paper, "Releases": entry.releases}
            for entry in catalog.methods()
        },
    )
    artifacts.write_text(layout.report, text)
