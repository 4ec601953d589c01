"""Tables: one pivot of the tidy rows, written as csv (numbers) and as md, tex and html (the same cells as text)."""

import collections
import functools
import html
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from scipy.special import stdtrit

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT, Study
from dpdm.report import machines
from dpdm.report.collect import RUN, SHARES, SPENT, add_jobs
from dpdm.report.registry import Material
from dpdm.specs import epsilon_text

MISSING = "–"  # noqa: RUF001
ANCHOR_LABELS = {"real": "real (ceiling)", "label_only": "label_only (floor)"}

# Title and decimals (None: about three digits) of metrics and, by "acc", of all accuracies, in reading order; any other
# metric has its own name and follows.
_TITLES: dict[str, tuple[str, int | None]] = {
    "fid": ("FID", None), "fd": ("FD", None), "kid": ("KID", None), "precision": ("Precision", 3),
    "recall": ("Recall", 3), "nearest_ratio": ("Nearest ÷ held-out", 2), "acc": ("accuracy %", 1),
    "teacher_acc": ("Accuracy of the DP teacher %", 1),
}  # fmt: skip
_NAMES = {
    "inception": "Inception", "small_cnn": "small CNN", "efflite": "EfficientNet-Lite0",
    "logreg": "LogReg", "mlp": "MLP", "cnn": "CNN", "resnet": "ResNet", "wrn": "WRN", "resnext": "ResNeXt",
}  # fmt: skip
_ATTACKS = {
    "gaussian": "noise taken for Gaussian", "one_run": "one-run auditing", "clopper_pearson": "Clopper-Pearson",
}  # fmt: skip
_MECHANISMS = {
    "gaussian": "Gaussian", "poisson_subsampled_gaussian": "Poisson-subsampled Gaussian",
    "categorical_subsampled_gaussian": "one-shard-of-many Gaussian",
}  # fmt: skip


class Summary(NamedTuple):
    """Over the seeds: mean, sample standard deviation (n - 1; NaN of one value), n, the values by seed, and of what."""

    mean: float = math.nan
    std: float = math.nan
    n: int = 0
    values: Mapping[int, float] = {}
    owner: tuple[str, str] = ("", "")  # study and method


@dataclass(frozen=True)
class Table:
    """One table twice: as numbers for programs and as text for people; rows correspond.

    Args:
        data: plain columns, as in the csv.
        cells: text; its column names are the printed headers.
        flush_right: headers of columns that hold numbers.
        bold: (row, header) of the best private values.
        groups: one value per row; a rule is drawn where it changes.
        notes: sentences below the table; in the csv, lines that begin with "# " after the last row.
        runs: dataset, method and epsilon text of the runs behind a cell, by row and header.
        not_in_tex: headers of columns that only the other formats have, since a printed page is too narrow.
    """

    data: pd.DataFrame
    cells: pd.DataFrame
    flush_right: frozenset[str] = frozenset()
    bold: frozenset[tuple[int, str]] = frozenset()
    groups: Sequence[Any] = ()
    notes: tuple[str, ...] = ()
    runs: Mapping[tuple[int, str], tuple[str, str, str]] = field(default_factory=dict)
    not_in_tex: tuple[str, ...] = ()

    def without(self, *headers: str) -> "Table":
        """The same table printed without some columns, for example if a heading already names the dataset."""
        return replace(self, cells=self.cells.drop(columns=list(headers)))

    def marked(self, escape: Callable[[str], str], bold: str) -> "Table":
        """The same table with its texts escaped, and the bold ones inserted into `bold`, a pattern with %s."""
        cells = self.cells.map(escape)
        for i, name in self.bold:
            if name in cells:
                place = i, cells.columns.get_loc(name)
                cells.iloc[place] = bold % cells.iloc[place]
        return replace(self, cells=cells)

    def counted_once(self) -> tuple["Table", int]:
        """The same table without the most common "(n)" of its cells, and this n (0 if no cell has one).

        A narrow cell breaks before its ±, not after it.
        """
        numbers = self.cells[[name for name in self.cells if name in self.flush_right]]
        counts = collections.Counter(re.findall(r" \((\d+)\)$", "\n".join(numbers.to_numpy().ravel()), re.M))
        n = max(counts, key=lambda n: (counts[n], int(n)), default="0")
        shorter = numbers.apply(lambda texts: texts.str.removesuffix(f" ({n})").str.replace("± ", "±\xa0"))
        return replace(self, cells=self.cells.assign(**shorter)), int(n)

    def bodies(self) -> list[list[tuple[int, dict[str, str]]]]:
        """Groups of (row number, text by header)."""
        rows = enumerate(self.cells.to_dict("records"))
        return [list(body) for _, body in itertools.groupby(rows, key=lambda row: self.groups and self.groups[row[0]])]


# --- metrics --------------------------------------------------------------------------------------------------


class MetricColumn(NamedTuple):
    """How a metric is shown: `sign` is +1 if higher is better, `decimals` None means about three digits."""

    metric: str
    extractor: str
    reference: str
    title: str
    sign: int
    decimals: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """Its key in `summaries`."""
        return self[:3]

    @property
    def header(self) -> str:
        """The title with an arrow in the better direction."""
        return f"{self.title} {'↑' if self.sign > 0 else '↓'}"

    @property
    def is_accuracy(self) -> bool:
        """Whether it is one of a classifier."""
        return self.metric.startswith("acc_")

    @property
    def name(self) -> str:
        """Short, for sentences: of an accuracy the classifier, of a distance the extractor too (FID has but one)."""
        if self.is_accuracy:
            return name_of(self.metric)
        return self.metric.upper() + f" ({name_of(self.extractor)})" * (self.metric != "fid")

    def best(self, sets: Iterable[Summary]) -> Summary:
        """The best mean of several sets, among those with the most seeds."""
        return max(sets, key=lambda one: (one.n, self.sign * one.mean if math.isfinite(one.mean) else -math.inf))


def name_of(network: str) -> str:
    """An extractor or classifier, or the latter's accuracy, as people read it."""
    network = network.removeprefix("acc_")
    return _NAMES.get(network, network)


def metric_columns(metrics: pd.DataFrame) -> list[MetricColumn]:
    """The metrics present, in reading order; of several reference sets, the training set is shown.

    Only FID has a column for each, the training set's first, since papers report either.
    """
    rows = metrics[["metric", "extractor", "reference", "direction"]].drop_duplicates()
    kind = rows["metric"].replace("^acc_.*", "acc", regex=True)
    order = kind.map({name: place for place, name in enumerate(_TITLES)}).fillna(len(_TITLES))
    measured = rows.groupby(["metric", "extractor"], sort=False).ngroup()
    rows = rows.assign(kind=kind, order=order, measured=measured, other=rows["reference"] != "train")
    rows = rows.sort_values(["order", "measured", "other"], kind="stable")
    shown = rows[(rows["kind"] == "fid") | ~rows.duplicated(["metric", "extractor"])]
    # the extractor is named only if two are compared; FID implies Inception
    named = shown.loc[~shown["kind"].isin(["fid", "acc"]) & (shown["extractor"] != ""), "extractor"].nunique() > 1
    columns = []
    for row in shown.itertuples():
        title, decimals = _TITLES.get(row.kind, (row.metric, None))
        by = name_of(row.extractor)
        if row.kind == "acc":
            title = f"{name_of(row.metric)} {title}" + (f" ({by})" if by else "")
        else:
            title += f" {by}" * bool(by and named and row.kind != "fid") + f" ({row.reference})"
        sign = {"lower": -1, "higher": 1}[row.direction]
        columns.append(MetricColumn(row.metric, row.extractor, row.reference, title, sign, decimals))
    return columns


def score_columns(metrics: pd.DataFrame) -> list[MetricColumn]:
    """The metrics that compare methods: the image distance (FID, else FD), then the accuracies; only with values."""
    return distance_columns(metrics)[:1] + [c for c in metric_columns(with_values(metrics)) if c.is_accuracy]


def distance_columns(metrics: pd.DataFrame) -> list[MetricColumn]:
    """The Fréchet distances that have a value, FID first, then FD by each extractor in the order of the study."""
    columns = metric_columns(with_values(metrics))
    return [c for name in ("fid", "fd") for c in columns if c.metric == name]


def with_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics with a value in some row; accuracies on unlabeled images have none."""
    return metrics[metrics.groupby(["metric", "extractor"])["value"].transform("count") > 0]


def summaries(metrics: pd.DataFrame, *keys: str) -> collections.defaultdict[tuple[str, ...], Summary]:
    """(metric, extractor, reference, *keys) -> the Summary over seeds; "method" is one of the keys.

    NaN values do not count. A group without any value is left out; asked for, it is `Summary()`.
    """
    groups = metrics.dropna(subset=["value"]).groupby(["metric", "extractor", "reference", *keys], sort=False)
    method = 3 + keys.index("method")
    of_value = {"mean": ("value", "mean"), "std": ("value", "std"), "values": ("value", list)}
    found = groups.agg(**of_value, seeds=("seed", list), study=("study", "first"))
    each = (
        (key, Summary(mean, std, len(values), dict(zip(seeds, values, strict=True)), (study, key[method])))
        for key, mean, std, values, seeds, study in found.itertuples()
    )
    return collections.defaultdict(Summary, each)


def epsilon_label(epsilon: str) -> str:
    """Printed epsilon: ∞ for inf, a dash for anchors."""
    return {"inf": "∞", "": MISSING}.get(epsilon, epsilon)


def above_ceiling(metrics: pd.DataFrame) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Method and epsilon of every mean better than that of the real images, by data set and name of the score.

    Scores are accuracies and Fréchet distances. Both have the same protocol; a classifier trained on the private images
    is compared with the best of any protocol.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    keys = ["dataset", "protocol", "method", "epsilon", "sampler"]
    for column in [*distance_columns(metrics), *(c for c in metric_columns(metrics) if c.is_accuracy)]:
        of_column = (metrics[["metric", "extractor", "reference"]] == list(column.key)).all(axis=1)
        means = column.sign * metrics[of_column].dropna(subset="value").groupby(keys, sort=False)["value"].mean()
        real = {key[:2]: mean for key, mean in means.items() if key[2] == "real"}
        for (dataset, protocol, method, epsilon, _), mean in means.items():
            levels = [v for key, v in real.items() if key[0] == dataset and protocol in (key[1], DIRECT)]
            if method not in ANCHORS and levels and mean > max(levels):
                found.setdefault((dataset, column.name), []).append((method, epsilon))
    return found


def method_labels(metrics: pd.DataFrame) -> dict[str, str]:
    """The printed name of each method: anchors, classifiers and methods with public data are marked."""
    classifiers = dict.fromkeys(metrics.loc[metrics["protocol"] == DIRECT, "method"], " (classifier)")
    anchors = ANCHOR_LABELS | ({"real": "real images"} if above_ceiling(metrics) else {})
    public = public_marks(metrics)
    return {
        method: anchors.get(method, method) + classifiers.get(method, "") + public.get(method, "")
        for method in dict.fromkeys(metrics["method"])
    }


def public_marks(frame: pd.DataFrame) -> dict[str, str]:
    """The mark after the name of each method that learned from public data; `frame`: metrics or audits."""
    used = frame[frame["public_data"] != ""].groupby("method")["public_data"].unique()
    return {method: f" (uses public data: {'; '.join(names)})" for method, names in used.items()}


def departure_marks(frame: pd.DataFrame, *keys: str) -> dict[Any, str]:
    """The mark after the name of a method: the differences from the published one that all its runs share.

    Keyed by the values of these columns (tuples for several `keys`); `frame`: metrics or audits.
    """
    marks = {}
    for place, texts in frame.groupby(list(keys), sort=False)["departures"].unique().items():
        first, *others = [text.split(", ") for text in texts]
        common = ", ".join(part for part in first if all(part in other for other in others))
        marks[place] = f" ({common})" if common else ""
    return marks


# --- results --------------------------------------------------------------------------------------------------

NEVER_BOLD = ("precision", "nearest_ratio", "teacher_acc")  # noise has a high precision; the others are checks
FEW = 3  # with fewer seeds there is no "±" and nothing is bold


def results_table(metrics: pd.DataFrame, columns: list[MetricColumn] | None = None, mixed: bool | None = None) -> Table:
    """Rows: per dataset the real ceiling, then methods grouped by epsilon, then the floor; columns: metrics.

    Cells are `cell_text`; bold follows `_best`. The difference from the published run follows a name. The csv has
    `_mean`, `_std` and `_n` columns per metric, and `protocol`, the training of the classifiers; and `public_data`, if
    a method uses some.

    Args:
        metrics: if they have a column `source`, there is a row per source, and nothing is bold.
        columns: the metrics to show; all, if left out.
        mixed: whether to print the protocols; default: if there are several.
    """
    columns = metric_columns(metrics) if columns is None else columns
    mixed = mixes_protocols(metrics) if mixed is None else mixed
    samplers, labels = metrics.groupby("method")["sampler"].nunique(), method_labels(metrics)
    several = set(samplers.index[samplers > 1])  # their rows name the sampler
    keys = ["dataset", "epsilon", "method", *["sampler"] * bool(several), *["source"] * ("source" in metrics)]
    departed, known = departure_marks(metrics, *keys), summaries(metrics, *keys)
    protocols = metrics.groupby(keys, sort=False)["protocol"].agg(lambda names: "; ".join(filter(None, names.unique())))
    public = metrics.groupby(keys, sort=False)["public_data"].first()
    rows = _result_rows(metrics, keys)
    places = list(rows.itertuples(index=False, name=None))
    rows["protocol"] = [protocols[place] for place in places]
    if (metrics["public_data"] != "").any():
        rows["public_data"] = [public[place] for place in places]
    found = {c: [known[*c.key, *place] for place in places] for c in columns}
    names = {c: "_".join(filter(None, c.key)) for c in columns}
    stats = ("mean", "std", "n")
    numbers = {f"{names[c]}_{stat}": [getattr(s, stat) for s in found[c]] for c in columns for stat in stats}
    texts = {c.header: [cell_text(s, c.decimals) for s in found[c]] for c in columns}
    shown = rows.assign(
        epsilon=rows["epsilon"].map(epsilon_label),
        method=[labels[place[2]] + departed[place] for place in places],
        **{"sampler": rows["sampler"].where(rows["method"].isin(several), "")} if several else {},
    )[[*keys, *["protocol"] * mixed]]
    apart = rows["method"].isin(metrics["method"] if "source" in keys else ANCHORS)  # in a separate section
    return Table(
        rows.assign(**numbers),
        shown.rename(columns=str.capitalize).rename(columns={"Epsilon": "ε"}).assign(**texts),
        frozenset([*texts, "ε"]),
        frozenset() if "source" in keys else _best(metrics, rows, found),
        list(zip(rows["dataset"], rows["epsilon"], rows["method"].where(apart, ""), strict=True)),
        runs={(i, "Method"): (dataset, method, epsilon) for i, (dataset, epsilon, method, *_) in enumerate(places)},
        not_in_tex=tuple(c.header for c in columns if c.metric in ("kid", "precision", "recall", "nearest_ratio")),
    )


def results(material: Material) -> Table:
    """`results_table` of a whole study."""
    return results_table(material.metrics)


def dataset_results(metrics: pd.DataFrame, dataset: str, columns: list[MetricColumn] | None = None) -> Table:
    """`results_table` of one dataset, without its name, with these metrics, or all with a value there."""
    chosen = metrics[metrics["dataset"] == dataset]
    columns = metric_columns(with_values(chosen)) if columns is None else columns
    return results_table(chosen, columns, mixes_protocols(metrics)).without("Dataset")


def _result_rows(metrics: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows' coordinates in printed order: samplers by name, everything else as in `metrics`."""
    rows = metrics[keys].drop_duplicates(ignore_index=True)
    places = pd.DataFrame({key: rows[key] if key == "sampler" else pd.factorize(rows[key])[0] for key in keys})
    places["epsilon"] = rows["epsilon"].replace("", "0").astype(float)
    places.insert(1, "anchor", rows["method"].map({"real": 0, "label_only": 2}).fillna(1))
    return rows.loc[places.sort_values(list(places), kind="stable").index].reset_index(drop=True)


def mixes_protocols(metrics: pd.DataFrame) -> bool:
    """Whether classifiers on synthetic images were trained under several protocols: their accuracies do not compare."""
    return len(set(metrics["protocol"]) - {"", DIRECT}) > 1


def distinguished(best: Summary, other: Summary, column: MetricColumn) -> bool:
    """Whether `best` is better on any machine: the t-interval (95 %) of the gap is above 0, and the gap is larger than
    both scores together move between machines.

    The interval is paired over the seeds that both have. If these are below FEW, and both have FEW seeds, it is Welch's
    (1947). With fewer seeds nobody is better.
    """
    gaps = column.sign * (pd.Series(best.values) - pd.Series(other.values)).dropna()
    gap, error, freedom = gaps.mean(), gaps.sem(), len(gaps) - 1
    if len(gaps) < FEW:
        if min(best.n, other.n) < FEW:
            return False
        parts = [one.std**2 / one.n for one in (best, other)]
        gap, error = column.sign * (best.mean - other.mean), math.sqrt(sum(parts))
        spread = sum(part**2 / (one.n - 1) for part, one in zip(parts, (best, other), strict=True))
        freedom = sum(parts) ** 2 / spread if spread else 1
    moves = sum(machines.spread(one.owner, column.metric, column.extractor, one.mean) for one in (best, other))
    return bool(gap > max(stdtrit(freedom, 0.975) * error, moves))


def machine_note(metrics: pd.DataFrame) -> str:
    """How far we assume that another processor moves the scores of each generator, and whose moves were measured."""
    rows = metrics[~metrics["epsilon"].isin(["", "inf"]) & (metrics["protocol"] != DIRECT)]
    columns = metric_columns(rows)
    alike: dict[str, list[str]] = {}
    for owner in dict.fromkeys(zip(rows["study"], rows["method"], strict=True)):
        moves = {c: machines.spread(owner, c.metric, c.extractor, 1.0) for c in columns}
        points = [move for c, move in moves.items() if c.is_accuracy]
        texts = [f"accuracies {max(points):.2g} points"] if points else []
        shares = {c.name: 100 * move for c, move in moves.items() if c.metric == "fd"}
        texts += [f"{name} {f'{share:.2g}' if share >= 0.01 else 'below 0.01'} %" for name, share in shares.items()]
        alike.setdefault(", ".join(texts), []).append(owner[1])
    known = machines.spreads()
    here = known.loc[known["study"].isin(rows["study"]) & known["method"].isin(rows["method"]), "method"].unique()
    if not alike:
        return ""
    assumed = "; ".join(f"{text} ({', '.join(methods)})" for text, methods in alike.items())
    return (
        "Another processor, other kernels or other threads move scores. A difference below the sum of both moves does "
        f"not count. We assume these moves: {assumed}. "
        f"Measured in this study: {', '.join(here) or 'none'}. Another method has the largest of these moves, or its "
        "own in another study, whichever is larger (results/machines.csv)."
    )


def leaders(found: Mapping[Any, Summary], column: MetricColumn) -> list[Any]:
    """Of those with FEW seeds or more the best, then all not distinguished from it; nobody if all are of one method.

    The best has the best mean. If one that has other seeds is distinguished from it, this one is the best.
    """
    rivals = {one: summary for one, summary in found.items() if summary.n >= FEW}
    if len({summary.owner for summary in rivals.values()}) < 2:
        return []
    top = column.sign * max(column.sign * summary.mean for summary in rivals.values())
    first = next(one for one in rivals if math.isclose(rivals[one].mean, top))  # of equal ones, whatever the rounding
    for one in rivals:
        if distinguished(rivals[one], rivals[first], column):
            first = one
    return [first, *(one for one in rivals if one != first and not distinguished(rivals[first], rivals[one], column))]


def _best(
    metrics: pd.DataFrame, rows: pd.DataFrame, found: Mapping[MetricColumn, Sequence[Summary]]
) -> frozenset[tuple[int, str]]:
    """By cell and metric the `leaders` of the generators, unless these are all: bold for all would say nothing.

    No accuracy if `metrics` have several protocols.
    """
    bold, direct = set(), metrics.loc[metrics["protocol"] == DIRECT, "method"]
    generators = rows[~rows["epsilon"].isin(["", "inf"]) & ~rows["method"].isin(direct)]
    cells = generators.groupby(["dataset", "epsilon"]).groups.values()
    mixed = mixes_protocols(metrics)
    columns = [c for c in found if c.metric not in NEVER_BOLD and not (c.is_accuracy and mixed)]
    for column, cell in itertools.product(columns, cells):
        of_cell = {i: found[column][i] for i in cell}
        best = leaders(of_cell, column)
        if len(best) < sum(summary.n >= FEW for summary in of_cell.values()):
            bold |= {(i, column.header) for i in best}
    return frozenset(bold)


def cell_text(summary: Summary, decimals: int | None) -> str:
    """ "mean ± std (n)", below FEW seeds all values and (n), a dash of none; `decimals` None: about three digits."""
    mean, std, n, values, _ = summary
    if n == 0:
        return MISSING
    if decimals is None:
        size = math.floor(math.log10(abs(mean))) if mean and math.isfinite(mean) else 0
        decimals = min(max(2 - size, 1), 4) if abs(mean) >= 5e-5 else 1  # 0.0 rather than 0.0000
    if n < FEW:
        return "; ".join(f"{rounded(value, decimals):.{decimals}f}" for value in values.values()) + f" ({n})"
    return f"{rounded(mean, decimals):.{decimals}f} ± {std:.{decimals}f} ({n})"


def rounded(value: float, decimals: int) -> float:
    """`value` as printed, but never -0.0."""
    return round(value, decimals) + 0.0


# --- audits, methods, cost ------------------------------------------------------------------------------------


def audit_table(audits: pd.DataFrame) -> Table:
    """Rows: dataset, method and target epsilon; columns: the largest epsilon spent over the seeds, an attack's lower
    bound, and the mechanism. The accounting of a row passes only if it passes for all its runs.
    """
    mechanisms = pd.Series(map(_mechanism, audits.to_dict("records")), audits.index, dtype=object)
    together = mechanisms.groupby([audits[key] for key in RUN], sort=False).agg("; ".join)
    runs = audits.drop_duplicates(RUN).assign(mechanism=together.to_list())
    keys = ["dataset", "method", "target_epsilon", "delta", "accountant", "mechanism"]
    how = {f"{column}_max": (column, "max") for column in SPENT.values()}
    how |= {"attacked_epsilon": ("attacked_epsilon", "max"), "attack": ("attack", "first")}
    how |= {name: (name, "first") for name in audits if name.startswith("attack_")}
    how |= {"attack_exceeded": ("attack_exceeded", "any"), "runs": ("seed", "size")}
    how |= {name: (name, "all") for name in ("passed", "recipe_checked")}
    how |= {"public_data": ("public_data", "first")} if (audits["public_data"] != "").any() else {}
    data = runs.groupby(keys, sort=False, dropna=False).agg(**how).reset_index()
    mechanism = data.pop("mechanism")
    data.insert(data.columns.get_loc("runs"), "mechanism", mechanism)
    rows, marks = data.to_dict("records"), public_marks(audits)
    attacks = list(map(_attack, rows))
    departed = departure_marks(audits, "dataset", "method", "epsilon")
    places = [(row["dataset"], row["method"], epsilon_text(row["target_epsilon"])) for row in rows]
    cells = pd.DataFrame({
        "Dataset": data["dataset"],
        "Method": [place[1] + marks.get(place[1], "") + departed[place] for place in places],
        "Target ε": data["target_epsilon"].map("{:g}".format).replace("inf", "∞"),
        **{f"Spent, {n.upper()}": data[f"{c}_max"].map("{:.3f}".format).replace("inf", "∞") for n, c in SPENT.items()},
        "Accounting": [accounting_verdict(r["passed"], r["target_epsilon"], r["recipe_checked"]) for r in rows],
        "Attacked": [bound for bound, _ in attacks], "Attack": [by for _, by in attacks],
        "δ": data["delta"].map("{:.2g}".format), "Runs": data["runs"].astype(str), "Mechanism": data["mechanism"],
    })  # fmt: skip
    right = frozenset(cells.columns) - {"Dataset", "Method", "Accounting", "Attack", "Mechanism"}
    groups = [place[:2] for place in places]
    divided = audits[list(SHARES)].notna().any(axis=None)
    notes = ("In parentheses: what part of the budget a mechanism has, by RDP / PRV.",) * bool(divided)
    runs = {(i, "Method"): place for i, place in enumerate(places)}
    return Table(data, cells, right, groups=groups, notes=notes, runs=runs)


def audit(material: Material) -> Table:
    """`audit_table` of a whole study."""
    return audit_table(material.audits)


def accounting_verdict(passed: bool, target_epsilon: float, recipe_checked: bool) -> str:
    """The verdict of accounting on a run; empty without noise."""
    if math.isinf(target_epsilon):
        return "no noise: no guarantee"
    return ("✓ passed" if passed else "✗ FAILED") + ("" if recipe_checked else ", recipe unchecked")


def _attack(row: Mapping[str, Any]) -> tuple[str, str]:
    """The bound of an attack, and its method."""
    if not row["attack"]:
        return MISSING, MISSING
    without = f" (≥ {row['attack_certified']:.2f} without that)" if row["attack"] == "gaussian" else ""
    return f"≥ {row['attacked_epsilon']:.2f}" + " ✗ ABOVE TARGET" * row["attack_exceeded"], (
        f"{_ATTACKS.get(row['attack'], row['attack'])}{without}, {row['attack_confidence']:.0%} confidence, "
        f"{row['attack_canaries']:,} canaries in {row['attack_runs']:,} run{'s' * (row['attack_runs'] != 1)}"
    )


def _mechanism(event: Mapping[str, Any]) -> str:
    if not event["mechanism"]:
        return "nothing released"
    whole = math.isnan(event["sample_rate"]) or event["mechanism"] == "gaussian"
    rate = "" if whole else f", q = {event['sample_rate']:.3g}"
    label = f"{event['name']}: " if event["name"] else ""
    mechanism = _MECHANISMS.get(event["mechanism"], event["mechanism"])
    shares = [event[name] for name in SHARES]
    part = "" if any(map(math.isnan, shares)) else f" ({' / '.join(map('{:.1%}'.format, shares))})"
    return f"{label}{event['steps']} × {mechanism}{rate}, noise {event['noise_multiplier']:.3g}{part}"  # noqa: RUF001


def method_table(study: Study, described: Mapping[str, Mapping[str, str]] = {}) -> Table:
    """Rows: the methods that a study runs; columns: `described` (text by impl and header), tuning, and the code."""
    rows, run = [], {spec.method for spec in study.runs()}
    for name, spec in study.methods.items():
        if name not in run:  # only a part of the study is run
            continue
        tuned = {"Settings tried": str(spec.tuning.settings), "Tried on": spec.tuning.data} if spec.tuning else {}
        rows.append({"Method": name} | dict(described.get(spec.impl, {})) | tuned | {"Code": spec.impl})
    headers = ["Method", *next(iter(described.values()), ()), "Settings tried", "Tried on", "Code"]
    cells = pd.DataFrame(rows, columns=headers, dtype=object).fillna("not stated")
    return Table(cells, cells, frozenset(["Settings tried"]))


def resource_table(jobs: pd.DataFrame) -> Table:
    """Rows: rule and method, the costliest first, and the total; columns: jobs, seconds of wall time, peak MB.

    `jobs`: the result of `collect.read_benchmarks` or `collect.add_jobs`.
    """
    each, total = (add_jobs([frame], ["rule", "method"]) for frame in (jobs, jobs.assign(rule="total", method="")))
    data = pd.concat([each.sort_values("seconds", ascending=False, kind="stable"), total], ignore_index=True)
    times = {"Mean s": data["seconds"] / data["jobs"], "Max s": data["longest"], "Sum s": data["seconds"]}
    cells = pd.DataFrame({
        "Rule": data["rule"], "Method": data["method"].replace("", MISSING), "Jobs": data["jobs"].astype(str),
        **{title: values.map("{:,.1f}".format) for title, values in times.items()},
        "Peak memory MB": data["max_rss_mb"].map("{:,.0f}".format).replace("nan", MISSING),
    })  # fmt: skip
    return Table(data, cells, frozenset(cells.columns[2:]), groups=list(data["rule"] == "total"))


# --- files ----------------------------------------------------------------------------------------------------


def write_table(table: Table, stem: str | Path) -> None:
    """Writes `stem` + .csv, .md, .tex and .html: the same rows in each."""
    stem = Path(stem)
    texts = {
        "csv": table.data.to_csv(index=False, lineterminator="\n") + "".join(f"# {note}\n" for note in table.notes),
        "md": to_markdown(table),
        "tex": to_tex(table),
        "html": page(stem.name, table, "../report.html"),
    }
    for suffix, text in texts.items():
        artifacts.write_text(stem.with_name(f"{stem.name}.{suffix}"), text)


def to_markdown(table: Table) -> str:
    """The cells as a Markdown pipe table; names keep their underscores, a pipe is escaped."""
    cells = table.marked(lambda text: text.replace("|", "\\|"), "**%s**").cells
    align = ["right" if name in table.flush_right else "left" for name in cells]
    text = cells.to_markdown(index=False, colalign=align if len(cells) else None, disable_numparse=True)
    return text + "\n" * bool(table.notes) + "".join(f"\n- {note}" for note in table.notes) + "\n"


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "ε": r"$\varepsilon$",  # noqa: RUF001
    "≥": r"$\geq$", "δ": r"$\delta$", "×": r"$\times$", "÷": r"$\div$", "†": r"$^\dagger$",  # noqa: RUF001
})  # fmt: skip


def escape_tex(text: str) -> str:
    """Text for LaTeX: special characters escaped, symbols as mathematics."""
    return text.replace("✓ ", "").replace("✗ ", "").translate(_TEX)  # the word after the mark has the same meaning


def to_tex(table: Table) -> str:
    """The cells as a small `tabular` per data set, with notes below, for `\\input`; needs only the package booktabs.

    The paper's tables fit a landscape page of A4.
    """
    table = table.without(*table.not_in_tex).marked(escape_tex, r"\textbf{%s}")
    spec = "".join("r" if name in table.flush_right else "l" for name in table.cells)
    head = [r"% \usepackage{booktabs}", r"\begingroup\scriptsize\setlength{\tabcolsep}{2.5pt}",
            rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule",
            " & ".join(map(_tex_header, table.cells)) + r" \\"]  # fmt: skip
    by_dataset = itertools.groupby(table.bodies(), key=lambda body: body[0][1].get("Dataset"))
    texts = []
    for bodies in [list(bodies) for _, bodies in by_dataset] or [[]]:
        rows = [[r"\midrule", *(" & ".join(row.values()) + r" \\" for _, row in body)] for body in bodies]
        texts.append("\n".join([*head, *itertools.chain(*rows), r"\bottomrule", r"\end{tabular}"]))
    texts[-1] += "".join(f"\n\\par\\noindent {escape_tex(note)}" for note in table.notes)
    return "\n\\bigskip\n\n".join(text + "\n\\par\\endgroup\n" for text in texts)


def _tex_header(name: str) -> str:
    """A header, in two lines if it is long, so that the numbers below determine the width."""
    breaks = [i for i, character in enumerate(name) if character == " "] if len(name) > 10 else []
    if not breaks:
        return escape_tex(name)
    at = min(breaks, key=lambda i: max(i, len(name) - i - 1))
    return rf"\shortstack{{{escape_tex(name[:at])}\\{escape_tex(name[at + 1 :])}}}"


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of this folder."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    options = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    pages = jinja2.Environment(loader=loader, autoescape=True, **options)
    # For text between tags: quotes need no escape, and thousands of recipes and commands contain them.
    pages.filters["text"] = lambda value: html.escape(value, quote=False)
    return pages.get_template(name)


def run_anchor(dataset: str, method: str, epsilon: str) -> str:
    """The id, within the report, of the runs behind a row of results."""
    return "-".join(filter(None, ["runs", dataset, method, epsilon]))


def page(title: str, table: Table, report: str = "") -> str:
    """A page that shows a table as in the report, with links into the report at this relative path."""
    links = {place: f"{report}#{run_anchor(*run)}" for place, run in table.runs.items()} if report else {}
    return template("table.html.j2").render(title=title, report=report, table=to_html(table, links))


def to_html(table: Table, links: Mapping[tuple[int, str], str] = {}) -> str:
    """The cells as one `<table>`, a `<tbody>` per group; class n marks numbers, `data-` the coordinates of a row.

    `links`: the target of a cell, by row and header.
    """
    return template("cells.html.j2").render(table=table, links=links)
