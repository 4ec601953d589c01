"""Writes the results that README.md and results/README.md show, from results/*/kept: nothing is typed by hand.

make report && .venv/bin/python benchmarks/keep_results.py digits && .venv/bin/python benchmarks/update_readme.py
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from _page import write_block

from dpdm.layout import PRIVACY_STATUS, PUBLISHED
from dpdm.report import machines
from dpdm.report.collect import AUDITS, METRICS, read_csv
from dpdm.report.published import read_published
from dpdm.report.registry import Material
from dpdm.report.tables import dataset_results, to_markdown
from dpdm.report.verdicts import BEST, WRONG, Verdict, verdicts
from dpdm.study import open_study

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "digits" / "kept"
METHODS = ("real", "dp_gaussian", "pearl", "dpdm", "dpdm_gauss")  # ceiling, floor, summary, DPDM, DPDM warm-started
EPSILON = "10"
STUDIES = ("digits", "laptop", "teachers")  # those of the present protocol


def results_block() -> str:
    """Five rows of the default study: the ceiling, and four methods at one epsilon."""
    metrics = read_csv(KEPT / "metrics.csv", METRICS)
    shown = (metrics["epsilon"].isin([EPSILON, ""])) & metrics["method"].isin(METHODS)
    distance = metrics["metric"].eq("fd") & metrics["extractor"].eq("efflite") & metrics["reference"].eq("train")
    shown &= distance | metrics["metric"].str.startswith("acc_")
    table = dataset_results(metrics[shown], "digits")
    return f"{to_markdown(table).strip()}\n\n{textwrap.fill(machines.note(), 120, break_long_words=False)}"


def verdict_block() -> str:
    """What is wrong with the kept default study, and who is best on MNIST, by distance and CNN, at epsilon 1 and 10."""
    texts = [text for level, text in kept_verdicts("digits") if level == WRONG]
    found = kept_verdicts("laptop", without=("acc_logreg", "acc_mlp"))
    texts += [text for level, text in found if level == BEST and re.match("mnist, ε = 10?:", text)]
    return textwrap.fill(" ".join(texts), 120, break_long_words=False, break_on_hyphens=False)


def best_block() -> str:
    """Who is best in each kept study, and what DP-SGD adds to a warm start, as a list."""
    shown = re.compile(r": (\w+)(?: \(\w+\))? .*\b\1_at_step_0\b")
    found = [(study, *verdict) for study in STUDIES for verdict in kept_verdicts(study)]
    texts = [f"{study}: {text}" for study, level, text in found if level == BEST or shown.search(text)]
    wrap = textwrap.TextWrapper(120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(map(wrap.fill, texts))


def kept_verdicts(study: str, without: Sequence[str] = ()) -> list[Verdict]:
    """The verdicts on a kept study, by all of its metrics but those `without`."""
    kept = ROOT / "results" / study / "kept"
    metrics, audits = read_csv(kept / "metrics.csv", METRICS), read_csv(kept / "audits.csv", AUDITS)
    material = Material(*open_study(kept), metrics[~metrics["metric"].isin(without)], audits)
    return verdicts(material, read_published(PUBLISHED, PRIVACY_STATUS))


def main() -> None:
    """Rewrites the blocks."""
    write_block(ROOT / "README.md", "results", results_block())
    write_block(ROOT / "README.md", "verdict", verdict_block())
    write_block(ROOT / "results" / "README.md", "best", best_block())


if __name__ == "__main__":
    main()
