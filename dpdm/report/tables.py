"""Tables: one pivot of the tidy rows, written as csv (numbers) and as md, tex and html (the same cells as text)."""

import collections
import html
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy.special import stdtrit

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT, Study
from dpdm.report.collect import SPENT
from dpdm.report.registry import Material
from dpdm.specs import epsilon_text

MISSING = "–"  # noqa: RUF001
ANCHOR_LABELS = {"real": "real (ceiling)", "label_only": "label_only (floor)"}
NO_CEILING = "real (training images)"  # where a generator has a better accuracy

# Title and decimals (None: about three digits) of metrics and, last, of all accuracies, in reading order; any other
# metric has its own name and follows.
_TITLES: dict[str, tuple[str, int | None]] = {
    "fid": ("FID", None), "fd": ("FD", None), "kid": ("KID", None), "precision": ("Precision", 3),
    "recall": ("Recall", 3), "nearest_ratio": ("Nearest ÷ held-out", 2), "acc": ("accuracy %", 1),
}  # fmt: skip
_NAMES = {
    "inception": "Inception", "small_cnn": "small CNN", "efflite": "EfficientNet-Lite0",
    "logreg": "LogReg", "mlp": "MLP", "cnn": "CNN", "resnet": "ResNet", "wrn": "WRN", "resnext": "ResNeXt",
}  # fmt: skip
_HEADERS = {"dataset": "Dataset", "epsilon": "ε", "method": "Method", "sampler": "Sampler", "source": "Source"}
_ATTACKS = {
    "gaussian": "noise taken for Gaussian", "one_run": "one-run auditing", "clopper_pearson": "Clopper-Pearson",
}  # fmt: skip
_MECHANISMS = {
    "gaussian": "Gaussian", "poisson_subsampled_gaussian": "Poisson-subsampled Gaussian",
    "categorical_subsampled_gaussian": "one-shard-of-many Gaussian",
}  # fmt: skip


class Summary(NamedTuple):
    """Over the seeds: mean, sample standard deviation (n - 1; NaN of one value), n, and the values by seed."""

    mean: float = math.nan
    std: float = math.nan
    n: int = 0
    values: Mapping[int, float] = {}


@dataclass(frozen=True)
class Table:
    """One table twice: as numbers for programs and as text for people; rows correspond.

    Args:
        data: plain columns; what the csv holds.
        cells: text; its column names are the printed headers.
        flush_right: headers of columns that hold numbers.
        bold: (row, column) positions in `cells` of the best private values.
        groups: one number per row; a rule is drawn where it changes.
        notes: sentences below the table; in the csv lines that begin with "# ", after the last row.
        runs: by row and header, dataset, method and epsilon text of the runs behind that cell.
        not_in_tex: headers of columns for which a printed page is too narrow; the other formats have them.
    """

    data: pd.DataFrame
    cells: pd.DataFrame
    flush_right: frozenset[str] = frozenset()
    bold: frozenset[tuple[int, int]] = frozenset()
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    runs: Mapping[tuple[int, str], tuple[str, str, str]] = field(default_factory=dict)
    not_in_tex: tuple[str, ...] = ()

    def without(self, header: str) -> "Table":
        """The same table printed without one column, as where a heading names the dataset already."""
        at = self.cells.columns.get_loc(header)
        bold = frozenset((i, j - (j > at)) for i, j in self.bold if j != at)
        return replace(self, cells=self.cells.drop(columns=header), bold=bold)

    def counted_once(self) -> tuple["Table", int]:
        """The same table without the commonest "(n)" of its cells, and this n (0 if no cell has one).

        A narrow cell breaks before its ±, and not behind it.
        """
        found = [re.search(r" \((\d+)\)$", cell) for cell in self.cells[list(self.flush_right)].to_numpy().ravel()]
        counts = collections.Counter(int(match[1]) for match in found if match)
        if not counts:
            return self, 0
        n = max(counts, key=lambda n: (counts[n], n))
        shorter = {
            name: self.cells[name].str.removesuffix(f" ({n})").str.replace("± ", "±\N{NO-BREAK SPACE}")
            for name in self.flush_right
        }
        return replace(self, cells=self.cells.assign(**shorter)), n

    def by(self, header: str) -> list["Table"]:
        """One table for each text of a column, in order; the notes are below the last."""
        parts = []
        for _, rows in self.cells.groupby(header, sort=False).indices.items():
            new = {int(i): k for k, i in enumerate(rows)}
            parts.append(
                replace(
                    self, data=self.data.iloc[rows], cells=self.cells.iloc[rows], notes=(),
                    bold=frozenset((new[i], j) for i, j in self.bold if i in new),
                    groups=tuple(self.groups[i] for i in rows) if self.groups else (),
                    runs={(new[i], name): runs for (i, name), runs in self.runs.items() if i in new},
                )
            )  # fmt: skip
        return [*parts[:-1], replace(parts[-1], notes=self.notes)] if parts else [self]

    def bodies(self) -> Iterator[list[tuple[int, list[str]]]]:
        """Groups of (row number, cells)."""
        body: list[tuple[int, list[str]]] = []
        for i, row in enumerate(self.cells.to_numpy().tolist()):
            if body and self.groups and self.groups[i] != self.groups[i - 1]:
                yield body
                body = []
            body.append((i, row))
        if body:
            yield body


# --- metrics --------------------------------------------------------------------------------------------------


class MetricColumn(NamedTuple):
    """How a metric is shown: `sign` is +1 where more is better, `decimals` None means about three digits."""

    metric: str
    extractor: str
    reference: str
    title: str
    sign: int
    decimals: int | None

    @property
    def key(self) -> tuple[str, str, str]:
        """What `summaries` has it under."""
        return self[:3]

    @property
    def name(self) -> str:
        """The beginning of its columns in a csv."""
        return "_".join(filter(None, self.key))

    @property
    def header(self) -> str:
        """The title with the arrow that says which way is better."""
        return f"{self.title} {'↑' if self.sign > 0 else '↓'}"


def metric_columns(metrics: pd.DataFrame) -> list[MetricColumn]:
    """The metrics present, in reading order; of several reference sets the training set is shown.

    Only FID has a column for each, the training set's first: papers report either.
    """
    rows = metrics[["metric", "extractor", "reference", "direction"]].drop_duplicates()
    measured = dict.fromkeys(zip(rows["metric"], rows["extractor"], strict=True))  # in this order
    rows = rows.sort_values("reference", key=lambda column: column != "train", kind="stable")
    shown = rows[(rows["metric"] == "fid") | ~rows.duplicated(["metric", "extractor"])]
    kinds = {metric: "acc" if metric.startswith("acc_") else metric for metric in shown["metric"]}
    distances = shown[~shown["metric"].map(lambda name: name == "fid" or kinds[name] == "acc").astype(bool)]
    several = distances.loc[distances["extractor"] != "", "extractor"].nunique() > 1
    columns = []
    for metric, extractor, reference, direction in shown.itertuples(index=False):
        title, decimals = _TITLES.get(kinds[metric], (metric, None))
        by = _NAMES.get(extractor, extractor)
        if kinds[metric] == "acc":
            classifier = metric.removeprefix("acc_")
            title = f"{_NAMES.get(classifier, classifier)} {title}" + (f" ({by})" if by else "")
        else:  # the reader needs the extractor only where two are compared; FID is Inception's by its name
            title = " ".join(filter(None, [title, by if several and metric != "fid" else "", f"({reference})"]))
        columns.append(
            MetricColumn(metric, extractor, reference, title, {"lower": -1, "higher": 1}[direction], decimals)
        )
    order, places = [*_TITLES], [*measured]

    def place(column: MetricColumn) -> tuple[int, int]:
        kind = kinds[column.metric]
        return order.index(kind) if kind in order else len(order), places.index(column[:2])

    return sorted(columns, key=place)  # stable


def with_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """Without the metrics that have no value in any row, as accuracies on unlabeled images."""
    return metrics[metrics.groupby(["metric", "extractor"])["value"].transform("count") > 0]


def summaries(metrics: pd.DataFrame, *keys: str) -> dict[tuple[str, ...], Summary]:
    """(metric, extractor, reference, *keys) -> the Summary over seeds.

    NaN values do not count. A group without any value is left out: take `Summary()` for it.
    """
    names = ["metric", "extractor", "reference", *keys]
    groups = metrics.dropna(subset=["value"]).groupby(names, sort=False)
    found = groups.agg(mean=("value", "mean"), std=("value", "std"), seeds=("seed", list), values=("value", list))
    return {
        key: Summary(mean, std, len(values), dict(zip(seeds, values, strict=True)))
        for key, mean, std, seeds, values in found.itertuples()
    }


def epsilon_label(epsilon: str) -> str:
    """Epsilon text for people: ∞ for inf, a dash for anchors."""
    return {"inf": "∞", "": MISSING}.get(epsilon, epsilon)


def above_ceiling(metrics: pd.DataFrame) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """By data set and accuracy: method and epsilon of all whose mean passes that of the real images.

    Both under one protocol; a classifier trained on the private images has none, and is held against any.
    """
    scores = metrics[metrics["metric"].str.startswith("acc_")].dropna(subset="value")
    means = scores.groupby(["dataset", "metric", "protocol", "method", "epsilon", "sampler"], sort=False)[
        "value"
    ].mean()
    real = {key[:3]: mean for key, mean in means.items() if key[3] == "real"}
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (dataset, metric, protocol, method, epsilon, _), mean in means.items():
        levels = [v for key, v in real.items() if key[:2] == (dataset, metric) and protocol in (key[2], DIRECT)]
        if method not in ANCHORS and levels and mean > max(levels):
            found.setdefault((dataset, metric), []).append((method, epsilon))
    return found


def method_labels(metrics: pd.DataFrame) -> dict[str, str]:
    """Each method as people read it: anchors, classifiers and methods with public data say what they are."""
    classifiers = set(metrics.loc[metrics["protocol"] == DIRECT, "method"])
    anchors = ANCHOR_LABELS | ({"real": NO_CEILING} if above_ceiling(metrics) else {})
    public = public_marks(metrics)
    return {
        method: (f"{method} (classifier)" if method in classifiers else anchors.get(method, method))
        + public.get(method, "")
        for method in dict.fromkeys(metrics["method"])
    }


def public_marks(frame: pd.DataFrame) -> dict[str, str]:
    """What follows the name of each method that learnt from public data; `frame`: metrics or audits."""
    used: dict[str, dict[str, None]] = {}
    for method, name in frame.loc[frame["public_data"] != "", ["method", "public_data"]].itertuples(index=False):
        used.setdefault(method, {})[name] = None
    return {method: f" (uses public data: {'; '.join(names)})" for method, names in used.items()}


def methods_of_several_samplers(metrics: pd.DataFrame) -> set[str]:
    """The methods that were sampled in more than one way, whose rows must name the sampler."""
    counts = metrics.groupby("method")["sampler"].nunique()
    return set(counts.index[counts > 1])


# --- results --------------------------------------------------------------------------------------------------


def results_table(metrics: pd.DataFrame, columns: list[MetricColumn] | None = None, mixed: bool | None = None) -> Table:
    """Rows: per dataset the real ceiling, then methods grouped by epsilon, then the floor; columns: metrics.

    Cells read "mean ± std (n)" over n seeds, or all values below three. Bold are the best generator of each finite
    epsilon and those that it cannot be distinguished from, see `_best`. A method that trained a classifier on the
    private images has one accuracy, that of its kind of classifier. The csv has `_mean`, `_std` and `_n` columns per
    metric, and how the classifiers were trained, `protocol`.

    Args:
        metrics: with a column `source` also a row per source, and nothing bold.
        columns: the metrics to show; all, if left out.
        mixed: whether to print the protocols; if left out, where there are several.
    """
    columns = metric_columns(metrics) if columns is None else columns
    mixed = _mixes_protocols(metrics) if mixed is None else mixed
    several, labels = methods_of_several_samplers(metrics), method_labels(metrics)
    keys = ["dataset", "epsilon", "method", *["sampler"] * bool(several), *["source"] * ("source" in metrics)]
    known, direct = summaries(metrics, *keys), set(metrics.loc[metrics["protocol"] == DIRECT, "method"])
    protocols: dict[tuple[str, ...], dict[str, None]] = {}
    for *key, protocol in metrics[[*keys, "protocol"]].drop_duplicates().itertuples(index=False, name=None):
        protocols.setdefault(tuple(key), {}).update({protocol: None} if protocol else {})
    data: list[dict[str, Any]] = []
    cells: list[dict[str, str]] = []
    summary_rows: list[list[Summary]] = []
    for row in _result_rows(metrics, keys):
        place = tuple(row.values())
        protocol = "; ".join(protocols[place])
        found = [known.get((*c.key, *place), Summary()) for c in columns]
        summary_rows.append(found)
        numbers = {f"{c.name}_{s}": getattr(v, s) for c, v in zip(columns, found, strict=True) for s in _STATS}
        data.append({**row, "protocol": protocol, **numbers})
        shown = row | {"epsilon": epsilon_label(row["epsilon"]), "method": labels[row["method"]]}
        if several and row["method"] not in several:
            shown["sampler"] = ""
        texts = {c.header: cell_text(v, c.decimals) for c, v in zip(columns, found, strict=True)}
        cells.append({_HEADERS[key]: shown[key] for key in keys} | {"Protocol": protocol} | texts)
    sections = [(r["dataset"], r["epsilon"], r["method"] if r["method"] in ANCHORS else "") for r in data]
    sections = [(*s, r["method"]) if "source" in keys else s for s, r in zip(sections, data, strict=True)]
    headers = [c.header for c in columns]
    return Table(
        pd.DataFrame(data, columns=[*keys, "protocol", *(f"{c.name}_{s}" for c in columns for s in _STATS)]),
        pd.DataFrame(cells, columns=[*(_HEADERS[key] for key in keys), *["Protocol"] * mixed, *headers]),
        frozenset([*headers, "ε"]),
        frozenset() if "source" in keys else _best(data, summary_rows, columns, direct, len(keys) + mixed),
        group_numbers(sections),
        runs={(i, "Method"): (row["dataset"], row["method"], row["epsilon"]) for i, row in enumerate(data)},
        not_in_tex=tuple(c.header for c in columns if c.metric in ("kid", "precision", "recall", "nearest_ratio")),
    )


_STATS = ("mean", "std", "n")


def dataset_results(metrics: pd.DataFrame, dataset: str, accuracies_first: bool = False) -> Table:
    """`results_table` of one dataset, with the metrics that have a value there."""
    chosen = metrics[metrics["dataset"] == dataset]
    columns = metric_columns(with_values(chosen))
    if accuracies_first:
        columns.sort(key=lambda column: not column.metric.startswith("acc_"))  # stable
    return results_table(chosen, columns, _mixes_protocols(metrics))


def _result_rows(metrics: pd.DataFrame, keys: list[str]) -> list[dict[str, str]]:
    order = {name: list(dict.fromkeys(metrics[name])) for name in ("dataset", "method", *keys[-1:])}

    def place(row: dict[str, str]) -> tuple[Any, ...]:
        return (
            order["dataset"].index(row["dataset"]), {"real": 0, "label_only": 2}.get(row["method"], 1),
            float(row["epsilon"] or 0), order["method"].index(row["method"]), row.get("sampler", ""),
            order["source"].index(row["source"]) if "source" in row else 0,
        )  # fmt: skip

    return sorted(metrics[keys].drop_duplicates().to_dict("records"), key=place)


def _mixes_protocols(metrics: pd.DataFrame) -> bool:
    return len(set(metrics["protocol"]) - {"", DIRECT}) > 1


NEVER_BOLD = ("precision", "nearest_ratio")  # noise has a high one; a check, and no score
FEW = 3  # below so many seeds there is no "±" and nothing is bold


def distinguished(best: Summary, other: Summary, sign: int) -> bool:
    """Whether `best` is better: a paired t-interval (95 %) over the seeds that both have, at least FEW, is above 0."""
    gaps = [sign * (value - other.values[seed]) for seed, value in best.values.items() if seed in other.values]
    if len(gaps) < FEW:
        return False
    mean, std = pd.Series(gaps).mean(), pd.Series(gaps).std()
    return mean > stdtrit(len(gaps) - 1, 0.975) * std / math.sqrt(len(gaps))


def _best(
    data: Sequence[Mapping[str, Any]],
    found: Sequence[Sequence[Summary]],
    columns: Sequence[MetricColumn],
    classifiers: set[str],
    offset: int,
) -> frozenset[tuple[int, int]]:
    """By data set, finite epsilon and metric the best generator, and all that it cannot be distinguished from.

    Only those with FEW seeds or more, where two methods have them. Never of NEVER_BOLD.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(data):
        if row["epsilon"] not in ("", "inf") and row["method"] not in classifiers:
            groups.setdefault((row["dataset"], row["epsilon"]), []).append(i)
    bold = set()
    for rows in groups.values():
        for j, column in enumerate(columns):
            rivals = {i: found[i][j] for i in rows if found[i][j].n >= FEW and column.metric not in NEVER_BOLD}
            if len({data[i]["method"] for i in rivals}) > 1:
                best = max(rivals.values(), key=lambda summary: column.sign * summary.mean)
                bold |= {(i, offset + j) for i, s in rivals.items() if not distinguished(best, s, column.sign)}
    return frozenset(bold)


def cell_text(summary: Summary, decimals: int | None) -> str:
    """ "mean ± std (n)", below FEW seeds all values and (n), a dash of none; `decimals` None: about three digits."""
    mean, std, n, values = summary
    if n == 0:
        return MISSING
    if decimals is None:
        size = math.floor(math.log10(abs(mean))) if mean and math.isfinite(mean) else 0
        decimals = min(max(2 - size, 1), 4) if abs(mean) >= 5e-5 else 1  # 0.0 rather than 0.0000
    if n < FEW:
        return "; ".join(f"{rounded(value, decimals):.{decimals}f}" for value in values.values()) + f" ({n})"
    return f"{rounded(mean, decimals):.{decimals}f} ± {std:.{decimals}f} ({n})"


def rounded(value: float, decimals: int) -> float:
    """`value` as it will be printed, but never -0.0."""
    return round(value, decimals) + 0.0


def results(material: Material) -> Table:
    """`results_table` of a whole study."""
    return results_table(material.metrics)


# --- audits, methods, cost ------------------------------------------------------------------------------------

_RUN = ["dataset", "method", "epsilon", "seed"]


def audit_table(audits: pd.DataFrame) -> Table:
    """Rows: dataset, method and target epsilon; columns: the largest epsilon spent over the seeds, the lower bound that
    an attack reached, and the mechanism.

    Seeds share one row when their budget, delta and mechanism agree; its accounting passes only if that of all its
    runs does. Without noise there is none.
    """
    texts = [_mechanism(event) for event in audits.to_dict("records")]
    together = audits.assign(mechanism=pd.Series(texts, audits.index, dtype=object)).groupby(_RUN, sort=False)
    runs = audits.drop_duplicates(_RUN).assign(mechanism=together["mechanism"].agg("; ".join).to_list())
    keys = ["dataset", "method", "target_epsilon", "delta", "accountant", "mechanism"]
    spent = {f"{column}_max": (column, "max") for column in SPENT.values()}
    attack = {name: (name, "first") for name in audits.columns if name.startswith("attack_") or name == "attack"}
    attack |= {"attacked_epsilon": ("attacked_epsilon", "max"), "attack_exceeded": ("attack_exceeded", "any")}
    all_of = {name: (name, "all") for name in ("passed", "recipe_checked")}
    names = [*keys[:-1], *spent, "attacked_epsilon", "attack", "attack_certified", "attack_confidence", "attack_runs",
             "attack_canaries", "attack_exceeded", "mechanism", "runs", *all_of]  # fmt: skip
    grouped = runs.groupby(keys, sort=False, dropna=False)
    data = grouped.agg(**spent, **attack, runs=("seed", "size"), **all_of).reset_index()[names]
    rows, marks = data.to_dict("records"), public_marks(audits)
    cells = pd.DataFrame({
        "Dataset": data["dataset"], "Method": [name + marks.get(name, "") for name in data["method"]],
        "Target ε": data["target_epsilon"].map(_epsilon),
        **{f"Spent, {name.upper()}": data[f"{column}_max"].map(_spent) for name, column in SPENT.items()},
        "Accounting": [accounting_verdict(r["passed"], r["target_epsilon"], r["recipe_checked"]) for r in rows],
        "Attacked": list(map(_attacked, rows)), "Attack": list(map(attack_text, rows)),
        "δ": data["delta"].map("{:.2g}".format), "Runs": data["runs"].astype(str), "Mechanism": data["mechanism"],
    })  # fmt: skip
    right = frozenset(cells.columns) - {"Dataset", "Method", "Accounting", "Attack", "Mechanism"}
    groups = group_numbers([(row["dataset"], row["method"]) for row in rows])
    runs = [(row["dataset"], row["method"], epsilon_text(row["target_epsilon"])) for row in rows]
    return Table(data, cells, right, groups=groups, runs={(i, "Method"): run for i, run in enumerate(runs)})


def audit(material: Material) -> Table:
    """`audit_table` of a whole study."""
    return audit_table(material.audits)


def accounting_verdict(passed: bool, target_epsilon: float, recipe_checked: bool) -> str:
    """What accounting says of a run; without noise it has nothing to say."""
    if math.isinf(target_epsilon):
        return "no noise: no guarantee"
    return ("✓ passed" if passed else "✗ FAILED") + ("" if recipe_checked else ", recipe unchecked")


def attack_text(row: Mapping[str, Any]) -> str:
    """How an attack went about it, from the columns of AUDITS; a dash where there was none."""
    if not row["attack"]:
        return MISSING
    runs = f"{row['attack_runs']:,} run{'' if row['attack_runs'] == 1 else 's'}"
    without = f" (≥ {row['attack_certified']:.2f} without that)" if row["attack"] == "gaussian" else ""
    return (
        f"{_ATTACKS.get(row['attack'], row['attack'])}{without}, {row['attack_confidence']:.0%} confidence, "
        f"{row['attack_canaries']:,} canaries in {runs}"
    )


def _attacked(row: Mapping[str, Any]) -> str:
    if not row["attack"]:
        return MISSING
    return f"≥ {row['attacked_epsilon']:.2f}" + (" ✗ ABOVE TARGET" if row["attack_exceeded"] else "")


def _mechanism(event: Mapping[str, Any]) -> str:
    if not event["mechanism"]:
        return "nothing released"
    whole = math.isnan(event["sample_rate"]) or event["mechanism"] == "gaussian"
    rate = "" if whole else f", q = {event['sample_rate']:.3g}"
    label = f"{event['name']}: " if event["name"] else ""
    mechanism = _MECHANISMS.get(event["mechanism"], event["mechanism"])
    return f"{label}{event['steps']} × {mechanism}{rate}, noise {event['noise_multiplier']:.3g}"  # noqa: RUF001


def _epsilon(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:g}"


def _spent(value: float) -> str:
    return "∞" if math.isinf(value) else f"{value:.3f}"


def method_table(study: Study, described: Mapping[str, Mapping[str, str]]) -> Table:
    """Rows: the methods of a study; columns: those of `described` (by impl, header and text), tuning, and the code."""
    rows = []
    for name, spec in study.methods.items():
        tuning = (str(spec.tuning.settings), spec.tuning.data) if spec.tuning else ("not stated",) * 2
        tuned = dict(zip(("Settings tried", "Tried on"), tuning, strict=True))
        rows.append({"Method": name} | dict(described.get(spec.impl, {})) | tuned | {"Code": spec.impl})
    headers = ["Method", *next(iter(described.values()), ()), "Settings tried", "Tried on", "Code"]
    cells = pd.DataFrame(rows, columns=headers, dtype=object).fillna("not stated")
    return Table(cells, cells, frozenset(["Settings tried"]))


def resource_table(benchmarks: pd.DataFrame) -> Table:
    """Rows: rule and method, the costliest first, then the total; columns: jobs, seconds of wall time,
    peak memory (MB).
    """
    names = {
        "jobs": ("seconds", "size"), "mean_s": ("seconds", "mean"), "max_s": ("seconds", "max"),
        "sum_s": ("seconds", "sum"), "max_rss_mb": ("max_rss_mb", "max"),
    }  # fmt: skip
    each, total = (
        frame.groupby(["rule", "method"]).agg(**names).reset_index()
        for frame in (benchmarks, benchmarks.assign(rule="total", method=""))
    )
    data = pd.concat([each.sort_values("sum_s", ascending=False, kind="stable"), total], ignore_index=True)
    cells = pd.DataFrame({
        "Rule": data["rule"], "Method": data["method"].replace("", MISSING), "Jobs": data["jobs"].astype(str),
        "Mean s": data["mean_s"].map(_fixed), "Max s": data["max_s"].map(_fixed), "Sum s": data["sum_s"].map(_fixed),
        "Peak memory MB": data["max_rss_mb"].map(lambda value: _fixed(value, 0)),
    })  # fmt: skip
    return Table(data, cells, frozenset(cells.columns[2:]), groups=group_numbers(list(data["rule"] == "total")))


def _fixed(value: float, decimals: int = 1) -> str:
    return MISSING if math.isnan(value) else f"{value:,.{decimals}f}"


def group_numbers(keys: Sequence[Any]) -> tuple[int, ...]:
    """0, 0, 1, ...: a new number where the key differs from the one before."""
    return tuple(k for k, (_, same) in enumerate(itertools.groupby(keys)) for _ in same)


# --- files ----------------------------------------------------------------------------------------------------


def write_table(table: Table, stem: str | Path) -> None:
    """Writes `stem` + .csv, .md, .tex and .html: the same rows in each."""
    stem = Path(stem)
    texts = {
        "csv": table.data.to_csv(index=False, lineterminator="\n") + "".join(f"# {note}\n" for note in table.notes),
        "md": to_markdown(table),
        "tex": to_tex(table),
        "html": page(stem.name, table),
    }
    for suffix, text in texts.items():
        artifacts.write_text(stem.with_name(f"{stem.name}.{suffix}"), text)


def to_markdown(table: Table) -> str:
    """The cells as a Markdown pipe table; names keep their underscores, a pipe is escaped."""
    rows = [
        [f"**{cell}**" if (i, j) in table.bold else cell.replace("|", "\\|") for j, cell in enumerate(row)]
        for body in table.bodies()
        for i, row in body
    ]
    align = ["right" if name in table.flush_right else "left" for name in table.cells.columns]
    frame = pd.DataFrame(rows, columns=table.cells.columns)
    text = frame.to_markdown(index=False, colalign=align if rows else None, disable_numparse=True)
    return "\n".join([text, *([""] if table.notes else []), *(f"- {note}" for note in table.notes), ""])


_TEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "ε": r"$\varepsilon$",  # noqa: RUF001
    "≥": r"$\geq$", "δ": r"$\delta$", "×": r"$\times$", "÷": r"$\div$", "†": r"$^\dagger$",  # noqa: RUF001
})  # fmt: skip


def escape_tex(text: str) -> str:
    """Text for LaTeX: special characters escaped, symbols as mathematics."""
    return text.replace("✓ ", "").replace("✗ ", "").translate(_TEX)  # the word after the mark says the same


def to_tex(table: Table) -> str:
    """The cells as a small `tabular` per data set, notes below, to be `\\input`; needs the package booktabs only.

    The paper's tables fit a landscape page of A4.
    """
    for header in table.not_in_tex:
        table = table.without(header)
    spec = "".join("r" if name in table.flush_right else "l" for name in table.cells)
    heads = " & ".join(map(_tex_header, table.cells))
    texts = []
    for part in table.by("Dataset") if "Dataset" in table.cells else [table]:
        lines = [r"% \usepackage{booktabs}", r"\begingroup\scriptsize\setlength{\tabcolsep}{2.5pt}",
                 rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule", rf"{heads} \\"]  # fmt: skip
        for body in part.bodies():
            lines.append(r"\midrule")
            for i, row in body:
                cells = (escape_tex(cell) for cell in row)
                cells = (rf"\textbf{{{cell}}}" if (i, j) in part.bold else cell for j, cell in enumerate(cells))
                lines.append(" & ".join(cells) + r" \\")
        notes = [rf"\par\noindent {escape_tex(note)}" for note in part.notes]
        texts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\par\endgroup", ""]))
    return "\n\\bigskip\n\n".join(texts)


def _tex_header(name: str) -> str:
    """A header in two lines if it is long: else it, and not the numbers below, would decide the width."""
    breaks = [i for i, character in enumerate(name) if character == " "] if len(name) > 10 else []
    if not breaks:
        return escape_tex(name)
    at = min(breaks, key=lambda i: max(i, len(name) - i - 1))
    return rf"\shortstack{{{escape_tex(name[:at])}\\{escape_tex(name[at + 1 :])}}}"


def page(title: str, table: Table) -> str:
    """A page that shows a table."""
    style = "body { font: 1rem sans-serif } td, th { padding: .2rem .6rem; text-align: left } .n { text-align: right }"
    title = html.escape(title)
    return f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{style}</style>\n{to_html(table)}'


def to_html(table: Table, links: Mapping[tuple[int, str], str] | None = None) -> str:
    """The cells as one `<table>`, a `<tbody>` per group; class n marks numbers, `data-` what a row is of.

    Args:
        links: where the cell of a row and column (its header) leads.
    """
    links = links or {}
    kinds = {name: ' class="n"' if name in table.flush_right else "" for name in table.cells}
    lines = ["<table>", "<thead><tr>", *(f'<th scope="col"{k}>{html.escape(n)}</th>' for n, k in kinds.items())]
    lines.append("</tr></thead>")
    for body in table.bodies():
        lines.append("<tbody>")
        for i, row in body:
            texts = []
            for j, (name, kind) in enumerate(kinds.items()):
                text = html.escape(row[j])
                text = f"<strong>{text}</strong>" if (i, j) in table.bold else text
                text = f'<a href="{html.escape(links[i, name])}">{text}</a>' if (i, name) in links else text
                texts.append(f"<td{kind}>{text}</td>")
            dataset, method, epsilon = table.runs.get((i, "Method"), ("",) * 3)  # the method of an anchor is no choice
            of = {"dataset": dataset, "method": epsilon and method, "epsilon": epsilon} if dataset else {}
            shown = "".join(f' data-{key}="{html.escape(value)}"' for key, value in of.items())
            lines.append(f"<tr{shown}>{''.join(texts)}</tr>")
        lines.append("</tbody>")
    notes = [f"<li>{html.escape(note)}</li>" for note in table.notes]
    return "\n".join([*lines, "</table>", *(['<ul class="notes">', *notes, "</ul>"] if notes else []), ""])
