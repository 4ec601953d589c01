"""Writes the results in README.md and results/README.md from results/*/kept; nothing is typed by hand.

make report && .venv/bin/python benchmarks/keep_results.py config/digits.yaml
.venv/bin/python benchmarks/update_readme.py
"""

import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
from _page import write_block

from dpdm.cli.workflow import collected
from dpdm.config import DIRECT
from dpdm.report.collect import SPENT
from dpdm.report.registry import Material
from dpdm.report.tables import MISSING, dataset_results, method_labels, name_of, rounded
from dpdm.report.verdicts import FINDING, WRONG, highest, joined, leads_table, verdicts
from dpdm.study import open_study

ROOT = Path(__file__).parents[1]
STUDIES = ("digits", "laptop", "laptop_headline", "teachers")  # studies of the present protocol
ABLATIONS = tuple(
    f"laptop_{name}" for name in ("multiplicity", "multiplicity_compute", "parametrisation", "sampler", "guidance")
)


def results_block() -> str:
    """The generators of the default study and the ceiling: CNN accuracy and FD by EfficientNet-Lite0, by epsilon."""
    metrics = kept_material("digits").metrics
    frame, label = by_epsilon(metrics, "digits", "Method"), method_labels(metrics)["real"]
    real = frame.loc[label].dropna()
    frame = frame.drop(index=label, columns=real.index)
    frame.loc["real images"] = [real[header.partition(", ")[0]] for header in frame]
    return frame.to_markdown()


def by_epsilon(metrics: pd.DataFrame, dataset: str, name: str) -> pd.DataFrame:
    """`main_scores` of generators; `name`: the column of the table that names a row."""
    shown = main_scores(metrics, "efflite")
    shown = shown[shown["method"].ne("label_only") & shown["protocol"].ne(DIRECT)]
    table = dataset_results(shown, dataset)
    rows: dict[str, dict[str, str]] = {}
    for i, row in enumerate(table.cells.to_dict("records")):
        for measure in [header for header in row if "↑" in header or "↓" in header]:
            header = f"{measure}, ε = {row['ε']}".removesuffix(f", ε = {MISSING}")
            text = row[measure].removesuffix(" (3)")
            rows.setdefault(row[name], {})[header] = f"**{text}**" if (i, measure) in table.bold else text
    frame = pd.DataFrame(rows).T
    return frame[sorted(frame.columns)]


def main_scores(metrics: pd.DataFrame, extractor: str = ".*") -> pd.DataFrame:
    """CNN accuracy, and FD by the extractor to the training images."""
    distance = metrics["metric"].eq("fd") & metrics["extractor"].str.fullmatch(extractor)
    return metrics[distance & metrics["reference"].eq("train") | metrics["metric"].eq("acc_cnn")]


def ablations_block() -> str:
    """A table for each kept ablation of the present protocol: a row per method, or per sampler of its only method."""
    parts = []
    for study in ABLATIONS:
        if (ROOT / "results" / study / "kept" / "study.json").exists():
            material = kept_material(study)
            name = "Method" if len(material.study.methods) > 1 else "Sampler"
            table = by_epsilon(material.metrics, "mnist", name)
            parts += [f"[{study}](../results/{study}/kept/README.md):", table.to_markdown()]
    return "\n\n".join(parts)


def verdict_block() -> str:
    """Mistakes of the kept default study; then the best generators of laptop by CNN and by the public FD."""
    laptop = kept_material("laptop")
    wrong = [text for level, text in verdicts(kept_material("digits")) if level == WRONG]
    metrics = main_scores(laptop.metrics[laptop.metrics["epsilon"].isin(["1", "10"])], "efflite")
    table = leads_table(replace(laptop, metrics=metrics)).drop("published, protocol dpgan-revisit")
    best, theirs = highest(metrics, "metric", "direct"), table["mnist, ε = 1"]
    many = kept_material("laptop_headline")
    gauss = many.metrics.query("dataset == 'mnist' and method == 'dpdm_gauss' and metric == 'acc_cnn'")
    more = gauss.groupby("epsilon")["value"].mean()
    quoted = (theirs[f"published, protocol {protocol}"] for protocol in ("paper", "dpimagebench"))
    spent = laptop.audits.groupby(["dataset", "method", "epsilon"])[SPENT[laptop.study.accountant]].max()["mnist"]
    least = joined(f"{spent['dpdm_gauss_at_step_0', epsilon]:.3g}" for epsilon in ("1", "10"))
    ours = (best["mnist", epsilon, "acc_cnn", False] for epsilon in ("1", "10"))
    named = joined(f"`{one.method}` at ε = {one.epsilon} ({one.value:.1f} %)" for one in ours)
    sentence = (
        f"The highest means of private generators on MNIST by the paper's CNN: {named}; the start spends ε = {least}. "
        f"By {many.study.evaluation.synthetic_images:,} images, as in the paper, `dpdm_gauss` has {more['1']:.1f} and "
        f"{more['10']:.1f} % (`laptop_headline`). Published at ε = 1 by other protocols: {', '.join(quoted)}."
    )
    return "\n".join([*wrong, textwrap.fill(sentence, 130), "", table.to_markdown()])


def best_block() -> str:
    """The best generators of each kept study by all measures, then what DP-SGD adds to a warm start."""
    parts = []
    wrap = textwrap.TextWrapper(120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
    for study in STUDIES:
        material = kept_material(study)
        found = verdicts(material)
        texts = [text for level, text in found if "opposite" in text or (level == FINDING and "which spends" in text)]
        parts += [f"{study}:", leads_table(material).to_markdown(), "\n".join(map(wrap.fill, texts))]
        if smoothed := smoothing_table(material):
            parts += [
                f"{study}, what smoothing changes (FD to the training images; CNN accuracy in points; seeds):",
                smoothed,
            ]
    return "\n\n".join(filter(None, parts))


def smoothing_table(material: Material) -> str:
    """The effect of smoothing on each set: its FD to the training images as a factor, its CNN accuracy in points."""
    keys = ["dataset", "metric", "extractor", "epsilon"]
    sets = main_scores(material.metrics).pivot_table("value", ["method", *keys, "seed"], "sampler")
    rows: dict[str, dict[str, str]] = {}
    for name, method in material.study.methods.items():
        for smooth, entry in method.samplers.items():
            plain = {key: value for key, value in entry.items() if key != "tv_weight"}
            before = next((sampler for sampler, other in method.samplers.items() if other == plain), "")
            if "tv_weight" not in entry or not {before, smooth} <= set(sets) or name not in sets.index:
                continue
            pairs = sets.loc[name][[before, smooth]].dropna().groupby(keys, sort=False)  # seeds of both
            for (dataset, metric, extractor, epsilon), seeds in pairs:
                old, new = seeds.mean()
                text = f"× {new / old:.2f}" if metric == "fd" else f"{rounded(new - old, 1):+.1f}"  # noqa: RUF001
                text += f" ({len(seeds)})"
                header = f"{dataset}, {'FD ' + name_of(extractor) if metric == 'fd' else 'CNN'}, ε = {epsilon}"
                rows.setdefault(f"{name}, {smooth}", {})[header] = text
    frame = pd.DataFrame.from_dict(rows, orient="index").fillna(MISSING)
    return frame[sorted(frame.columns)].T.to_markdown(disable_numparse=True) if rows else ""


def kept_material(study: str) -> Material:
    """The kept material of a study."""
    return collected(*open_study(ROOT / "results" / study / "kept"))


def main() -> None:
    """Rewrites the blocks."""
    write_block(ROOT / "README.md", "results", results_block())
    write_block(ROOT / "README.md", "verdict", verdict_block())
    write_block(ROOT / "results" / "README.md", "best", best_block())
    write_block(ROOT / "docs" / "reproducing.md", "ablations", ablations_block())


if __name__ == "__main__":
    main()
