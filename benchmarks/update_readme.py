"""Writes the results that README.md and results/README.md show, from results/*/kept: nothing is typed by hand.

make report && .venv/bin/python benchmarks/keep_results.py digits && .venv/bin/python benchmarks/update_readme.py
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from _page import write_block

from dpdm.config import DIRECT
from dpdm.layout import PRIVACY_STATUS, PUBLISHED
from dpdm.report.collect import AUDITS, METRICS, read_csv
from dpdm.report.published import read_published
from dpdm.report.registry import Material
from dpdm.report.tables import MISSING, dataset_results
from dpdm.report.verdicts import BEST, WRONG, Verdict, verdicts
from dpdm.study import open_study

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "results" / "digits" / "kept"
STUDIES = ("digits", "laptop", "teachers")  # those of the present protocol


def results_block() -> str:
    """The generators of the default study and the ceiling: CNN accuracy and FD by EfficientNet-Lite0, by epsilon."""
    metrics = read_csv(KEPT / "metrics.csv", METRICS)
    distance = metrics["metric"].eq("fd") & metrics["extractor"].eq("efflite") & metrics["reference"].eq("train")
    shown = (distance | metrics["metric"].eq("acc_cnn")) & ~metrics["method"].eq("label_only")
    table = dataset_results(metrics[shown & metrics["protocol"].ne(DIRECT)], "digits")
    rows: dict[str, dict[str, str]] = {}
    for i, row in enumerate(table.cells.to_dict("records")):
        for measure in [header for header in row if header not in ("ε", "Method")][::-1]:
            header = f"{measure}, ε = {row['ε']}".removesuffix(f", ε = {MISSING}")
            text = row[measure].removesuffix(" (3)")
            rows.setdefault(row["Method"], {})[header] = f"**{text}**" if (i, measure) in table.bold else text
    real = rows.pop("real (ceiling)")
    headers = sorted({header for row in rows.values() for header in row})
    frame = pd.DataFrame(rows).T[headers]
    frame.loc["real images"] = [real[header.partition(", ")[0]] for header in headers]
    return frame.to_markdown()


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
