"""Keeps what a study gave: its tables and pictures, and a page that says how they were made, in results/STUDY/kept.

snakemake --cores 2 --configfile config/STUDY.yaml && .venv/bin/python benchmarks/keep_results.py STUDY

To be run on the machine that ran the study, which the page names, or with --cores and --machine to say what ran it.
Git tracks that folder, and no job uses it.
"""

import argparse
import shutil
import sys
from pathlib import Path

import pandas as pd
from _page import where

from dpdm.config import load_study
from dpdm.provenance import provenance
from dpdm.report.collect import AUDITS, METRICS, read_benchmarks, read_csv
from dpdm.report.tables import dataset_results, resource_table, to_markdown

ROOT = Path(__file__).parents[1]
KEPT = ("metrics.csv", "audits.csv", "tables/*.csv", "tables/*.md", "tables/*.tex", "figures/*.png")


def keep(study: str, cores: int, machine: str) -> None:
    """Makes results/STUDY/kept anew."""
    folder = ROOT / "results" / study
    text = page(study, cores, machine)
    shutil.rmtree(folder / "kept", ignore_errors=True)
    for path in (path for pattern in KEPT for path in folder.glob(pattern)):
        copy = folder / "kept" / path.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    (folder / "kept" / "README.md").write_text(text + "\n")


def page(study: str, cores: int, machine: str) -> str:
    """The page for results/STUDY, from the files that the run left there."""
    folder = ROOT / "results" / study
    spec = load_study(ROOT / "config" / f"{study}.yaml")
    targets = sorted(spec.tables)
    command = f"snakemake --cores {cores} --configfile config/{study}.yaml"
    named = {path.stem: path for path in (folder / "tables").glob("*.md")}
    if missing := {"results", *targets} - set(named):
        sys.exit(f"error: {folder / 'tables'} lacks {', '.join(sorted(missing))}; first run `{command}`")
    jobs = read_benchmarks(folder / "benchmarks", spec)
    metrics, audits = read_csv(folder / "metrics.csv", METRICS), read_csv(folder / "audits.csv", AUDITS)
    commits = sorted({commit for frame in (metrics, audits) for commit in frame["commit"]})
    here = provenance()["commit"]
    drawn = "" if here in commits else f" at commit `{here}`, and so were its tables and pictures from these runs"
    return "\n\n".join(
        [
            f"# Results of [config/{study}.yaml](../../../config/{study}.yaml)",
            f"Made at commit {', '.join(f'`{commit}`' for commit in commits)} by\n\n```sh\n{command}\n```\n\n"
            f"on {machine}. {cost(jobs)} Models, images and `report.html` are not kept.\n"
            f"This page was written by `benchmarks/keep_results.py`{drawn}.",
            *(
                f"## {dataset}\n\n{to_markdown(dataset_results(metrics, dataset).without('Dataset')).strip()}"
                for dataset in spec.datasets
            ),
            *(f"## {name}\n\n{named[name].read_text().strip()}" for name in targets),
            *(f"![{path.stem}](figures/{path.name})" for path in sorted((folder / "figures").glob("*.png"))),
            f"## Time and memory\n\n{to_markdown(resource_table(jobs)).strip()}",
        ]
    )


def cost(jobs: pd.DataFrame) -> str:
    """A sentence about the hours of all jobs, and of each data set where there are several."""
    hours = jobs[jobs["dataset"] != ""].groupby("dataset")["seconds"].sum() / 3600
    each = f" ({', '.join(f'{value:.1f} on {name}' for name, value in hours.items())})" if len(hours) > 1 else ""
    unknown = jobs["seconds"].isna().sum()
    missing = f", without {unknown} jobs of unknown time" if unknown else ""
    total = f"{jobs['seconds'].sum() / 3600:.1f} hours{each}{missing}"
    return f"Preparation, trainings, sampling, scoring and audits together took {total}, each job on one core."


def main() -> None:
    """One folder per study named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    studies = sorted(path.stem for path in (ROOT / "config").glob("*.yaml"))
    parser.add_argument("study", nargs="+", choices=studies, metavar="STUDY")
    parser.add_argument("--cores", type=int, default=2, help="what snakemake was given (default 2)")
    parser.add_argument("--machine", help="what it ran on (default: this machine)")
    args = parser.parse_args()
    for study in args.study:
        keep(study, args.cores, args.machine or where(args.cores))


if __name__ == "__main__":
    main()
