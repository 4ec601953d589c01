"""Writes the short results table of README.md, and what it says, from results/digits/kept: nothing is typed by hand.

make report && .venv/bin/python benchmarks/keep_results.py digits && .venv/bin/python benchmarks/update_readme.py
"""

import textwrap
from pathlib import Path

from _page import write_block

from dpdm.config import load_study
from dpdm.layout import Layout
from dpdm.report import machines
from dpdm.report.collect import AUDITS, METRICS, read_csv
from dpdm.report.registry import Material
from dpdm.report.tables import dataset_results, to_markdown
from dpdm.report.verdicts import CAUTION, WRONG, verdicts

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "digits" / "kept"
METHODS = ("real", "dp_gaussian", "pearl", "dpdm", "dpdm_gauss")  # ceiling, floor, summary, DPDM, DPDM warm-started
EPSILON = "10"


def results_block() -> str:
    """Five rows of the default study: the ceiling, and four methods at one epsilon."""
    metrics = read_csv(KEPT / "metrics.csv", METRICS)
    shown = (metrics["epsilon"].isin([EPSILON, ""])) & metrics["method"].isin(METHODS)
    distance = metrics["metric"].eq("fd") & metrics["extractor"].eq("efflite") & metrics["reference"].eq("train")
    shown &= distance | metrics["metric"].str.startswith("acc_")
    table = dataset_results(metrics[shown], "digits")
    return f"{to_markdown(table).strip()}\n\n{textwrap.fill(machines.note(), 120, break_long_words=False)}"


def verdict_block() -> str:
    """What is wrong with the kept study, and what its numbers say at the epsilon of the table."""
    study = load_study(ROOT / "config" / "digits.yaml")
    scores = read_csv(KEPT / "metrics.csv", METRICS), read_csv(KEPT / "audits.csv", AUDITS)
    found = verdicts(Material(study, Layout(study.results_dir, study.study), *scores))
    texts = [text for level, text in found if level in (WRONG, CAUTION) or f"ε = {EPSILON}: dpdm" in text]
    return textwrap.fill(" ".join(texts), 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Rewrites the blocks."""
    write_block(ROOT / "README.md", "results", results_block())
    write_block(ROOT / "README.md", "verdict", verdict_block())


if __name__ == "__main__":
    main()
