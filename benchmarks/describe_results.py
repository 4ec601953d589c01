"""Writes the README.md of results that are kept in the repository: how they were made, what they cost, what came out.

snakemake --cores 2 --configfile config/STUDY.yaml && .venv/bin/python benchmarks/describe_results.py STUDY
"""

import argparse
from pathlib import Path

import pandas as pd
from _page import where

from dpdm.report.collect import METRICS, read_benchmarks, read_csv
from dpdm.report.tables import resource_table, to_markdown

ROOT = Path(__file__).parents[1]


def page(study: str) -> str:
    """The page for results/STUDY, from the files that the run left there."""
    folder = ROOT / "results" / study
    metrics, jobs = read_csv(folder / "metrics.csv", METRICS), read_benchmarks(folder / "benchmarks")
    commits = ", ".join(f"`{commit}`" for commit in sorted(set(metrics["commit"])))
    tables = sorted(path for path in (folder / "tables").glob("*.md") if path.stem != "results")
    return "\n\n".join(
        [
            f"# Results of [config/{study}.yaml](../../config/{study}.yaml)",
            f"Made at commit {commits} by\n\n```sh\nsnakemake --cores 2 --configfile config/{study}.yaml\n```\n\n"
            f"on {where(1)} a job, two jobs at a time: {cost(jobs)}. Models, images and `report.html` are not kept.\n"
            "This page was written by `benchmarks/describe_results.py`, the files beside it by the run.",
            (folder / "tables" / "results.md").read_text().strip(),
            *(f"## {path.stem}\n\n{path.read_text().strip()}" for path in tables),
            *(f"![{path.stem}](figures/{path.name})" for path in sorted((folder / "figures").glob("*.png"))),
            f"## Time and memory\n\n{to_markdown(resource_table(jobs)).strip()}",
        ]
    )


def cost(jobs: pd.DataFrame) -> str:
    """The hours of all jobs together and per data set."""
    hours = jobs.groupby("dataset")["seconds"].sum() / 3600
    each = ", ".join(f"{value:.1f} of them on {name}" for name, value in hours.items() if name)
    return f"{hours.sum():.1f} hours of one core ({each})"


def main() -> None:
    """One page per study named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="+")
    for study in parser.parse_args().study:
        (ROOT / "results" / study / "README.md").write_text(page(study) + "\n")


if __name__ == "__main__":
    main()
