"""Verbs about a whole study or several, and about what a study can name."""

import itertools
import os
import re
import sys

import click

from dpdm.cli._verbs import MORE, PATH, STUDIES, study_argument, verbs
from dpdm.cli.workflow import collected
from dpdm.errors import UserError

TARGETS = (
    "all", "report", "tables", "figures", "audits", "attacks", "collect", *(f"table_{number}" for number in range(1, 7))
)  # fmt: skip
OWN = {  # options of Snakemake that `dpdm run` passes, and what to write instead
    r"(--cores|-c)(=.*|\d*)": "write --cores N before `--`",
    r"(--config|-C)(=.*)?": "write --only and --without before `--`, or lay a YAML file over STUDY (STUDY,FILE)",
    r"--configfiles?(=.*)?": "lay the YAML file over STUDY (STUDY,FILE)",
    r"(--snakefile|-s)(=.*)?": "run snakemake itself",
}
HEADERS = {
    "methods": ("method", "what it is", "what it releases", "cost", "published epsilon", "impl", "paper"),
    "datasets": ("source", "what it is", "keys"),
    "samplers": ("method", "sampler", "what it is", "keys"),
    "metrics": ("metric", "extractor", "better", "what it is"),
    "studies": ("study", "what it is", "runs", "data sets", "methods"),
}


@verbs.command("run", section=STUDIES)
@study_argument(writes=True)
@click.argument("targets", nargs=-1, help="Targets: report, tables, audits, table_1, ...; behind `--` also options.")
@click.option("--only", multiple=True, metavar="KEY=A,B", help="A part: by dataset, method, epsilon, seed or sampler.")
@click.option("--without", multiple=True, metavar="KEY=A,B", help="Runs to leave out; repeatable. 'A=B C=D': both.")
@click.option("--cores", default="all", show_default=True, metavar="N", help="Cores that Snakemake may use.")
@click.option("--dry-run", "-n", is_flag=True, help="Show the jobs, run none.")
@click.pass_obj
def run(named, study, layout, targets, only, without, cores, dry_run) -> None:
    """Run a study, or a part of it, through Snakemake: train, sample, score, audit, report.

    First prints an estimate of hours and memory, from kept results. A part (`--only method=dpdm,pearl --only
    epsilon=1`) shares its files with the whole study, which does not make them again. Options of Snakemake follow `--`:
    `dpdm run config/digits.yaml -- --keep-going tables`.
    """
    from dpdm.cli.estimate import estimate
    from dpdm.config import check_writable, study_files
    from dpdm.explain import nearest
    from dpdm.layout import PUBLISHED, SNAKEFILE
    from dpdm.report.published import check_tables
    from dpdm.study import selected

    for option, words in (("--only", only), ("--without", without)):
        if not all(map(str.strip, words)):
            raise UserError(f"{option} is empty; write KEY=A,B, or leave the option out")
    part = {"only": " ".join(only)} if only else {}
    part |= {"without": " or ".join(without)} if without else {}
    chosen = selected(study, part)  # refuses unknown names before Snakemake starts
    results = os.path.abspath(layout.results_dir)
    if os.path.isdir(named) and os.path.basename(layout.root) != study.study:
        raise UserError(f"{named} holds the study {study.study}; name the folder {study.study}, or name the study file")
    for word in targets:
        if fix := next((fix for option, fix in OWN.items() if re.fullmatch(option, word)), ""):
            raise UserError(f"{word} behind `--`: dpdm run sets this option itself; {fix}")
    for target in itertools.takewhile(lambda word: not word.startswith("-"), targets):
        if target not in TARGETS and not os.path.abspath(target).startswith(f"{results}{os.sep}"):
            hint = nearest(target, TARGETS)
            raise UserError(f"there is no target {target!r}, which is no file in {layout.results_dir} either; {hint}")
    for name, dataset in chosen.datasets.items():
        missing = [file for file in dataset.files() if not os.path.exists(file)]
        if missing and not os.path.exists(layout.data(name, "train.npz")):
            raise UserError(f"datasets.{name}: there is no {missing[0]}; put it there, or correct the path")
    if cores != "all" and not (cores.isdecimal() and int(cores)):
        raise UserError(f"--cores {cores}: write a number above 0, or all")
    check_writable(layout.results_dir)
    check_tables(study, PUBLISHED)
    if results != os.path.abspath(study.results_dir):  # a folder that was moved, or is named from another one
        part |= {"results_dir": layout.results_dir}
        selected(study, part)  # it can be a path that Snakemake cannot use
    files = [layout.study] if os.path.isdir(named) else study_files(named)
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", SNAKEFILE, "--cores", cores]
    command += ["--dry-run"] * dry_run + ["--configfile", *files]
    command += ["--config", *(f"{key}={value}" for key, value in part.items())] if part else []
    print(estimate(chosen), flush=True)
    os.execv(command[0], command)


@verbs.command("check", section=STUDIES)
@study_argument()
def check(study, layout) -> None:
    """Print what a study resolves to, and try its methods on random images.

    Prints runs, jobs, an estimate of hours and memory, and for every run its mechanisms, noise multipliers and
    epsilons. Nothing is trained.
    """
    from dpdm.cli.estimate import estimate
    from dpdm.config import check_writable
    from dpdm.layout import PUBLISHED
    from dpdm.report.published import check_tables

    check_writable(layout.results_dir)
    check_tables(study, PUBLISHED)  # before the imports below, which take seconds
    from dpdm.plan import describe, doubts
    from dpdm.rehearsal import rehearse_study

    print(describe(study))
    print(f"\n{estimate(study)}")
    for doubt in doubts(study):
        print(f"warning: {doubt}", file=sys.stderr)
    count = study.evaluation.synthetic_images
    for name, dataset in study.datasets.items():
        if (classes := dataset.meta().num_classes) > count:
            print(f"warning: {count} synthetic images for the {classes} classes of {name}", file=sys.stderr)
    print(f"\ntried on random images; no record changed the gradient of another: {', '.join(rehearse_study(study))}")


@verbs.command("list", section=STUDIES)
@click.argument("what", type=click.Choice(list(HEADERS)), help="What to list.")
def list_(what: str) -> None:
    """List the available methods, datasets, samplers, metrics or studies.

    For a method: what it is, what it releases, its cost, and the status of the epsilon in its paper.
    """
    from tabulate import tabulate

    from dpdm import catalog

    print(tabulate(getattr(catalog, what)(), HEADERS[what], tablefmt="plain", disable_numparse=True))


@verbs.command("new", section=MORE)
@click.argument("kind", type=click.Choice(["method"]), help="What to create.")
@click.argument("name", help="Its name in a study.")
@click.option("--out", type=PATH, metavar="FILE", help="Its file. Default: baselines/NAME.py, or NAME.py.")
def new(kind: str, name: str, out: str | None) -> None:
    """Write a minimal working method, and print its entry for a study."""
    from dpdm.scaffold import new_method

    path, entry = new_method(name, out)
    print(f"wrote {path}; put this into a study, and try it by `dpdm check STUDY`:\n\n{entry}", end="")


@verbs.command("compare", section=MORE)
@click.argument("results", nargs=-1, required=True, type=PATH, help="Results folders, each with a metrics.csv.")
@click.option("--out", type=PATH, metavar="FILE", help="An HTML page to write as well.")
def compare(results: tuple[str, ...], out: str | None) -> None:
    """Print one table over several results folders; every row names its study and commit.

    Each column has one protocol and one extractor, and one number of synthetic images. Distances are left out if they
    were measured by different extractors or from different numbers of images.
    """
    from dpdm import artifacts
    from dpdm.report import compare as comparing
    from dpdm.report.tables import to_markdown
    from dpdm.study import open_study, refuse_results

    if out:
        if not out.endswith(".html"):
            raise UserError(f"--out {out}: the page is HTML, so name it .html")
        refuse_results(out)
        if os.path.isfile(out) and comparing.TITLE.encode() not in artifacts.read_bytes(out):
            raise UserError(f"--out {out} is a file that `dpdm compare` did not write; name another file")
        artifacts.check_folder(os.path.dirname(out), os.path.basename(out))
    for folder in results:
        if os.path.isfile(os.path.join(folder, "study.json")):
            open_study(folder)  # refuses another version
    table, page = comparing.compare(results)
    print(to_markdown(table), end="")
    if out:
        artifacts.write_text(out, page)
        print(f"\npage: {out}")


@verbs.command("schema", section=MORE)
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from dpdm import artifacts, config

    print(artifacts.canonical_json(config.Study.model_json_schema()), end="")


@verbs.command("verdict", section=STUDIES)
@study_argument()
def verdict(study, layout) -> None:
    """Print the conclusions that a study's numbers support, and what is wrong with the study."""
    from dpdm.report.verdicts import verdicts

    for level, text in verdicts(collected(study, layout)):
        print(f"{level}: {text}")
