"""Writes the short results table of README.md from results/digits/kept: no number there is typed by hand.

make report && .venv/bin/python benchmarks/keep_results.py digits && .venv/bin/python benchmarks/update_readme.py
"""

from pathlib import Path

from _page import write_block

from dpdm.report.collect import METRICS, read_csv
from dpdm.report.tables import dataset_results, to_markdown

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "digits" / "kept" / "metrics.csv"
METHODS = ("real", "dp_gaussian", "pearl", "dpdm", "dpcgan")  # the ceiling, a floor, a summary, ours, a GAN
EPSILON = "10"


def results_block() -> str:
    """Five rows of the default study: the ceiling, and four methods at one epsilon."""
    metrics = read_csv(KEPT, METRICS)
    shown = (metrics["epsilon"].isin([EPSILON, ""])) & metrics["method"].isin(METHODS)
    shown &= metrics["metric"].eq("fd") & metrics["reference"].eq("train") | metrics["metric"].str.startswith("acc_")
    table = dataset_results(metrics[shown], "digits").without("Dataset")
    return to_markdown(table).strip()


def main() -> None:
    """Rewrites the block."""
    write_block(ROOT / "README.md", "results", results_block())


if __name__ == "__main__":
    main()
