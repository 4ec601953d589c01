"""Verbs about a whole study: run it, check it, print its schema."""

import os
import sys

import click

from dpdm.cli._verbs import STUDIES, study_argument, verbs


@verbs.command("run", section=STUDIES)
@study_argument()
@click.argument("targets", nargs=-1, help="Targets: report, tables, audits, table_1, ...; behind `--` also options.")
@click.option("--only", multiple=True, metavar="KEY=A,B", help="A part: by dataset, method, epsilon, seed or sampler.")
@click.option("--without", multiple=True, metavar="KEY=A,B", help="Leave out what matches all of these.")
@click.option("--cores", default="all", show_default=True, metavar="N", help="Cores that Snakemake may use.")
@click.option("--dry-run", "-n", is_flag=True, help="Show the jobs, run none.")
def run(study, targets, only, without, cores, dry_run) -> None:
    """Run a study, or a part of it, through Snakemake: train, sample, score, audit, report.

    A part (`--only method=dpdm,pearl --only epsilon=1`) shares its files with the whole study, which does not make them
    again. Words behind `--` are Snakemake's own: `dpdm run config/digits.yaml -- --keep-going tables`.
    """
    from dpdm.layout import SNAKEFILE
    from dpdm.study import open_study, selected

    opened, layout = open_study(study)
    part = {key: " ".join(values) for key, values in (("only", only), ("without", without)) if values}
    selected(opened, part)  # names the study does not have are refused before Snakemake starts
    files = [layout.study] if os.path.isdir(study) else study.split(",")
    command = [sys.executable, "-m", "snakemake", *targets, "--snakefile", SNAKEFILE, "--cores", cores]
    command += ["--dry-run"] * dry_run + ["--configfile", *files]
    command += ["--config", *(f"{key}={value}" for key, value in part.items())] if part else []
    os.execv(command[0], command)


@verbs.command("check", section=STUDIES)
@study_argument()
def check(study: str) -> None:
    """Print what a study resolves to, and try its methods on random images.

    Runs, jobs, and of every run the mechanisms, noise multipliers and epsilons: nothing is trained.
    """
    from dpdm.report.selection import check_entries
    from dpdm.study import open_study

    opened, _ = open_study(study)  # before the imports below, which take seconds
    check_entries(opened)
    from dpdm.plan import describe
    from dpdm.rehearsal import rehearse_study

    print(describe(opened))
    print(f"\nbegun on random images, where no record moved another's gradient: {', '.join(rehearse_study(opened))}")


@verbs.command("schema", section=STUDIES)
def schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from dpdm import artifacts, config

    print(artifacts.canonical_json(config.Study.model_json_schema()), end="")
