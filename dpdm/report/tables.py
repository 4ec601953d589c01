"""Tables: one pivot of the tidy rows, written as csv (numbers) and as md, tex and html (the same cells as text)."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT, Study

MISSING = "–"  # noqa: RUF001
ANCHOR_LABELS = {"real": "real (ceiling)", "label_only": "label_only (floor)"}

# Title and decimals (None: about three digits) of metrics and, last, of all accuracies, in reading order; any other
# metric has its own name and follows.
_TITLES: dict[str, tuple[str, int | None]] = {
    "fid": ("FID", None),
    "fd": ("FD", None),
    "kid": ("KID", None),
    "precision": ("Precision", 3),
    "recall": ("Recall", 3),
    "nearest_ratio": ("Nearest ÷ held-out", 2),
    "acc": ("accuracy %", 1),
}
_METHOD_HEADERS = ["Method", "Settings tried", "Tried on", "Code"]
_ATTACKS = {
    "gaussian": "noise taken for Gaussian", "one_run": "one-run auditing", "clopper_pearson": "Clopper-Pearson",
}  # fmt: skip
_EXTRACTORS = {"inception": "Inception", "small_cnn": "small CNN", "efflite": "EfficientNet-Lite0"}
_CLASSIFIERS = {"logreg": "LogReg", "mlp": "MLP", "cnn": "CNN"}

Summary = tuple[float, float, int]  # mean, sample standard deviation (n - 1), n
NO_SUMMARY: Summary = (math.nan, math.nan, 0)


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

    def by(self, header: str) -> list["Table"]:
        """One table for each text of a column, in order; the notes are below the last."""
        parts = []
        for _, rows in self.cells.groupby(header, sort=False).indices.items():
            place = {int(i): new for new, i in enumerate(rows)}
            parts.append(
                replace(
                    self,
                    data=self.data.iloc[rows],
                    cells=self.cells.iloc[rows],
                    bold=frozenset((place[i], j) for i, j in self.bold if i in place),
                    groups=tuple(self.groups[i] for i in rows) if self.groups else (),
                    notes=(),
                    runs={(place[i], name): runs for (i, name), runs in self.runs.items() if i in place},
                )
            )
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
    rows = rows.sort_values("reference", key=lambda column: column != "train", kind="stable")
    shown = rows[(rows["metric"] == "fid") | ~rows.duplicated(["metric", "extractor"])]
    order = list(_TITLES)
    places = dict.fromkeys(zip(metrics["metric"], metrics["extractor"], strict=True))  # as they were measured
    place = {
        key: (order.index(_kind(key[0])) if _kind(key[0]) in order else len(order), i) for i, key in enumerate(places)
    }
    several = shown.loc[~shown["metric"].isin(["fid"]) & (shown["extractor"] != ""), "extractor"].nunique() > 1
    columns = []
    for metric, extractor, reference, direction in shown.itertuples(index=False):
        title, decimals = _TITLES.get(_kind(metric), (metric, None))
        if _kind(metric) == "acc":
            classifier = metric.removeprefix("acc_")
            title = f"{_CLASSIFIERS.get(classifier, classifier)} {title}"
        else:
            # the reader needs the extractor only where two are compared; FID is Inception's by its name
            by = _EXTRACTORS.get(extractor, extractor) if several and metric != "fid" else ""
            title = " ".join(filter(None, [title, by, f"({reference})"]))
        sign = {"lower": -1, "higher": 1}[direction]
        columns.append(MetricColumn(metric, extractor, reference, title, sign, decimals))
    return sorted(columns, key=lambda c: place[c.metric, c.extractor])  # stable


def _kind(metric: str) -> str:
    return "acc" if metric.startswith("acc_") else metric


def with_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """Without the metrics that have no value in any row, as accuracies on unlabelled images."""
    return metrics[metrics.groupby(["metric", "extractor"])["value"].transform("count") > 0]


def summaries(metrics: pd.DataFrame, *keys: str) -> dict[tuple[str, ...], Summary]:
    """Over the seeds: (metric, extractor, reference, *keys) -> mean, sample deviation (n - 1), number of values.

    NaN values do not count; the deviation of one value is NaN. A group without any value is left out: take NO_SUMMARY
    for it.
    """
    names = ["metric", "extractor", "reference", *keys]
    found = metrics.dropna(subset=["value"]).groupby(names, sort=False)["value"].agg(["mean", "std", "count"])
    return {key: (mean, std, int(n)) for key, mean, std, n in found.itertuples()}


def epsilon_label(epsilon: str) -> str:
    """Epsilon text for people: ∞ for inf, a dash for anchors."""
    return {"inf": "∞", "": MISSING}.get(epsilon, epsilon)


def method_labels(metrics: pd.DataFrame) -> dict[str, str]:
    """Each method as people read it: anchors and classifiers say what they are."""
    classifiers = set(metrics.loc[metrics["protocol"] == DIRECT, "method"])
    return {
        method: f"{method} (classifier)" if method in classifiers else ANCHOR_LABELS.get(method, method)
        for method in dict.fromkeys(metrics["method"])
    }


def methods_of_several_samplers(metrics: pd.DataFrame) -> set[str]:
    """The methods that were sampled in more than one way, whose rows must name the sampler."""
    counts = metrics.groupby("method")["sampler"].nunique()
    return set(counts.index[counts > 1])


def results_table(metrics: pd.DataFrame, columns: list[MetricColumn] | None = None, mixed: bool | None = None) -> Table:
    """Rows: per dataset the real ceiling, then methods grouped by epsilon, then the floor; columns: metrics.

    Cells read "mean ± std (n)" over n seeds, "mean (1)" for one; bold is the best method of each finite epsilon
    where there are at least two to compare. A method that trained a classifier on the private images has one
    accuracy, that of its kind of classifier. The csv has `_mean`, `_std` and `_n` columns per metric, and how the
    classifiers were trained, `protocol`.

    Args:
        columns: the metrics to show; all, if left out.
        mixed: whether to print the protocols; if left out, where there are several.
    """
    if columns is None:
        columns = metric_columns(metrics)
    if mixed is None:
        mixed = _mixes_protocols(metrics)
    several = methods_of_several_samplers(metrics)
    keys = ["dataset", "epsilon", "method"] + (["sampler"] if several else [])
    rows = _result_rows(metrics, keys)
    titles = {"dataset": "Dataset", "epsilon": "ε", "method": "Method", "sampler": "Sampler"}
    labels = method_labels(metrics)
    data: list[dict[str, Any]] = []
    cells: list[dict[str, str]] = []
    known = summaries(metrics, *keys)
    protocols = _protocols(metrics, keys)
    for row in rows:
        protocol = protocols[tuple(row.values())]
        found = [known.get((*c.key, *row.values()), NO_SUMMARY) for c in columns]
        numbers: dict[str, Any] = {}
        for c, values in zip(columns, found, strict=True):
            numbers |= {f"{c.name}_{s}": v for s, v in zip(("mean", "std", "n"), values, strict=True)}
        data.append({**row, "protocol": protocol, **numbers})
        shown = {**row, "epsilon": epsilon_label(row["epsilon"])}
        if several and row["method"] not in several:
            shown["sampler"] = ""
        shown["method"] = labels[row["method"]]
        texts = {c.header: cell_text(*v, c.decimals) for c, v in zip(columns, found, strict=True)}
        printed = {"Protocol": protocol} if mixed else {}
        cells.append({titles[key]: shown[key] for key in keys} | printed | texts)
    sections = [(r["dataset"], r["epsilon"], r["method"] if r["method"] in ANCHORS else "") for r in rows]
    stats = [f"{c.name}_{s}" for c in columns for s in ("mean", "std", "n")]
    headers = [c.header for c in columns]
    return Table(
        pd.DataFrame(data, columns=[*keys, "protocol", *stats]),
        pd.DataFrame(cells, columns=[*(titles[key] for key in keys), *(["Protocol"] if mixed else []), *headers]),
        frozenset([*headers, "ε"]),
        _best(data, columns, len(keys) + mixed),
        _group_numbers(sections),
        runs={(i, "Method"): (row["dataset"], row["method"], row["epsilon"]) for i, row in enumerate(rows)},
    )


def dataset_results(metrics: pd.DataFrame, dataset: str) -> Table:
    """`results_table` of one dataset, with the metrics that have a value there."""
    chosen = metrics[metrics["dataset"] == dataset]
    return results_table(chosen, metric_columns(with_values(chosen)), _mixes_protocols(metrics))


def printed_results(metrics: pd.DataFrame) -> list[Table]:
    """`dataset_results` of every dataset in order, for a page: numbers by Inception have their own table."""
    parts = []
    mixed = _mixes_protocols(metrics)
    for dataset in dict.fromkeys(metrics["dataset"]):
        chosen = metrics[metrics["dataset"] == dataset]
        columns = metric_columns(with_values(chosen))
        by_inception = [c for c in columns if c.extractor == "inception"]
        others = [c for c in columns if c not in by_inception]
        if by_inception and others:
            for half in (by_inception, others):
                these = chosen["extractor"].isin([c.extractor for c in half])
                parts.append(results_table(chosen[these], half, mixed))
        else:
            parts.append(dataset_results(metrics, dataset))
    return parts


def audit_table(audits: pd.DataFrame) -> Table:
    """Rows: dataset, method and target epsilon; columns: the largest epsilon spent over the seeds, the lower bound that
    an attack reached, and the mechanism.

    Seeds share one row when their budget, delta and mechanism agree; its accounting passes only if that of all its
    runs does. Without noise there is none.
    """
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    runs_of: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for event in audits.to_dict("records"):
        runs_of.setdefault((event["dataset"], event["method"], event["epsilon"], event["seed"]), []).append(event)
    for events in runs_of.values():
        run = events[0]
        mechanism = "; ".join(_mechanism(event) for event in events)
        key = (run["dataset"], run["method"], run["target_epsilon"], run["delta"], run["accountant"], mechanism)
        found.setdefault(key, []).append(run)
    data = [
        {
            "dataset": dataset, "method": method, "target_epsilon": target, "delta": delta, "accountant": accountant,
            "epsilon_rdp_max": max(run["epsilon_rdp"] for run in runs),
            "epsilon_prv_max": max(run["epsilon_prv"] for run in runs),
            "epsilon_pld_max": max(run["epsilon_pld"] for run in runs),
            "attacked_epsilon": max((run["attacked_epsilon"] for run in runs if run["attack"]), default=math.nan),
            "attack": runs[0]["attack"], "attack_certified": runs[0]["attack_certified"],
            "attack_confidence": runs[0]["attack_confidence"],
            "attack_runs": runs[0]["attack_runs"], "attack_canaries": runs[0]["attack_canaries"],
            "attack_exceeded": any(run["attack_exceeded"] for run in runs),
            "mechanism": mechanism, "runs": len(runs), "passed": all(run["passed"] for run in runs),
            "recipe_checked": all(run["recipe_checked"] for run in runs),
        }
        for (dataset, method, target, delta, accountant, mechanism), runs in found.items()
    ]  # fmt: skip
    cells = [
        {
            "Dataset": row["dataset"], "Method": row["method"], "Target ε": _epsilon(row["target_epsilon"]),
            "Spent, RDP": _epsilon(row["epsilon_rdp_max"], 3), "Spent, PRV": _epsilon(row["epsilon_prv_max"], 3),
            "Spent, PLD": _epsilon(row["epsilon_pld_max"], 3),
            "Accounting": accounting_verdict(row["passed"], row["target_epsilon"], row["recipe_checked"]),
            "Attacked": _attacked(row),
            "Attack": attack_text(row), "δ": f"{row['delta']:.2g}", "Runs": str(row["runs"]),
            "Mechanism": row["mechanism"],
        }
        for row in data
    ]  # fmt: skip
    names = ["dataset", "method", "target_epsilon", "delta", "accountant", "epsilon_rdp_max", "epsilon_prv_max",
             "epsilon_pld_max", "attacked_epsilon", "attack", "attack_certified", "attack_confidence",
             "attack_runs", "attack_canaries", "attack_exceeded", "mechanism", "runs", "passed",
             "recipe_checked"]  # fmt: skip
    right = ("Target ε", "Spent, RDP", "Spent, PRV", "Spent, PLD", "Attacked", "δ", "Runs")
    headers = ["Dataset", "Method", *right[:4], "Accounting", "Attacked", "Attack", *right[5:], "Mechanism"]
    return Table(
        pd.DataFrame(data, columns=names), pd.DataFrame(cells, columns=headers), frozenset(right),
        groups=_group_numbers([(row["dataset"], row["method"]) for row in data]),
    )  # fmt: skip


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


def method_table(study: Study) -> Table:
    """Rows: the methods of a study; columns: how many settings were tried on which data, and the code."""
    unstated = "not stated"
    data, cells = [], []
    for name, spec in study.methods.items():
        tuning = spec.tuning.model_dump() if spec.tuning else {"settings": None, "data": None}
        data.append({"method": name, "impl": spec.impl, **{f"tuning_{key}": value for key, value in tuning.items()}})
        texts = [unstated if value is None else str(value) for value in tuning.values()]
        cells.append(dict(zip(_METHOD_HEADERS, [name, *texts, spec.impl], strict=True)))
    names = ["method", "impl", "tuning_settings", "tuning_data"]
    return Table(
        pd.DataFrame(data, columns=names, dtype=object), pd.DataFrame(cells, columns=_METHOD_HEADERS),
        frozenset(["Settings tried"]),
    )  # fmt: skip


def resource_table(benchmarks: pd.DataFrame) -> Table:
    """Rows: rule and method, then the total; columns: jobs, seconds of wall time, peak memory (MB)."""
    data = [_resources(rule, method, jobs) for (rule, method), jobs in benchmarks.groupby(["rule", "method"])]
    total = [_resources("total", "", benchmarks)] if data else []
    cells = [
        {
            "Rule": row["rule"], "Method": row["method"] or MISSING, "Jobs": str(row["jobs"]),
            "Mean s": _fixed(row["mean_s"]), "Max s": _fixed(row["max_s"]), "Sum s": _fixed(row["sum_s"]),
            "Peak memory MB": _fixed(row["max_rss_mb"], 0),
        }
        for row in data + total
    ]  # fmt: skip
    right = ["Jobs", "Mean s", "Max s", "Sum s", "Peak memory MB"]
    names = ["rule", "method", "jobs", "mean_s", "max_s", "sum_s", "max_rss_mb"]
    return Table(
        pd.DataFrame(data + total, columns=names), pd.DataFrame(cells, columns=["Rule", "Method", *right]),
        frozenset(right), groups=(*(0 for _ in data), *(1 for _ in total)),
    )  # fmt: skip


def write_table(table: Table, stem: str | Path, printed: Sequence[Table] = ()) -> None:
    """Writes `stem` + .csv, .md, .tex and .html: the same rows in each.

    Args:
        printed: for tex, parts of this table, one below the other.
    """
    stem = Path(stem)
    texts = {
        "csv": table.data.to_csv(index=False, lineterminator="\n") + "".join(f"# {note}\n" for note in table.notes),
        "md": to_markdown(table),
        "tex": "\n\\bigskip\n\n".join(map(to_tex, printed or [table])),
        "html": f'<!doctype html>\n<meta charset="utf-8">\n<title>{html.escape(stem.name)}</title>\n{to_html(table)}',
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


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "∞": r"$\infty$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "ε": r"$\varepsilon$",  # noqa: RUF001
    "≥": r"$\geq$", "δ": r"$\delta$", "×": r"$\times$", "†": r"$^\dagger$",  # noqa: RUF001
}  # fmt: skip


def escape_tex(text: str) -> str:
    """Text for LaTeX: special characters escaped, symbols as mathematics."""
    text = text.replace("✓ ", "").replace("✗ ", "")  # the word after the mark says the same
    return "".join(_TEX.get(character, character) for character in text)


def to_tex(table: Table) -> str:
    """The cells as one small `tabular`, notes below, to be `\\input`; needs the package booktabs and nothing else.

    The paper's tables fit a landscape page of A4.
    """
    for header in table.not_in_tex:
        table = table.without(header)
    spec = "".join("r" if name in table.flush_right else "l" for name in table.cells.columns)
    lines = [
        r"% \usepackage{booktabs}", r"\begingroup\scriptsize\setlength{\tabcolsep}{2.5pt}",
        rf"\begin{{tabular}}{{@{{}}{spec}@{{}}}}", r"\toprule",
    ]  # fmt: skip
    lines.append(" & ".join(map(_tex_header, table.cells.columns)) + r" \\")
    for body in table.bodies():
        lines.append(r"\midrule")
        for i, row in body:
            texts = [escape_tex(cell) for cell in row]
            texts = [rf"\textbf{{{text}}}" if (i, j) in table.bold else text for j, text in enumerate(texts)]
            lines.append(" & ".join(texts) + r" \\")
    notes = [rf"\par\noindent {escape_tex(note)}" for note in table.notes]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *notes, r"\par\endgroup", ""])


def _tex_header(name: str) -> str:
    """A header in two lines if it is long: else it, and not the numbers below, would decide the width."""
    breaks = [i for i, character in enumerate(name) if character == " "] if len(name) > 10 else []
    if not breaks:
        return escape_tex(name)
    at = min(breaks, key=lambda i: max(i, len(name) - i - 1))
    return rf"\shortstack{{{escape_tex(name[:at])}\\{escape_tex(name[at + 1 :])}}}"


def to_html(table: Table, links: Mapping[tuple[int, str], str] | None = None) -> str:
    """The cells as one `<table>`, a `<tbody>` per group; class n marks numbers.

    Args:
        links: where the cell of a row and column (its header) leads.
    """
    kinds = [' class="n"' if name in table.flush_right else "" for name in table.cells.columns]
    heads = (f'<th scope="col"{k}>{html.escape(n)}</th>' for k, n in zip(kinds, table.cells.columns, strict=True))
    lines = ["<table>", f"<thead><tr>{''.join(heads)}</tr></thead>"]
    for body in table.bodies():
        lines.append("<tbody>")
        for i, row in body:
            texts = [html.escape(cell) for cell in row]
            texts = [f"<strong>{text}</strong>" if (i, j) in table.bold else text for j, text in enumerate(texts)]
            for j, name in enumerate(table.cells.columns if links else ()):
                if target := links.get((i, name)):
                    texts[j] = f'<a href="{html.escape(target)}">{texts[j]}</a>'
            lines.append("<tr>" + "".join(f"<td{k}>{t}</td>" for k, t in zip(kinds, texts, strict=True)) + "</tr>")
        lines.append("</tbody>")
    notes = [f"<li>{html.escape(note)}</li>" for note in table.notes]
    return "\n".join([*lines, "</table>", *(['<ul class="notes">', *notes, "</ul>"] if notes else []), ""])


# --- rows and cells -------------------------------------------------------------------------------------------


def _result_rows(metrics: pd.DataFrame, keys: list[str]) -> list[dict[str, str]]:
    rows = [dict(zip(keys, values, strict=True)) for values in metrics[keys].drop_duplicates().to_numpy().tolist()]
    datasets = list(dict.fromkeys(metrics["dataset"]))
    methods = list(dict.fromkeys(metrics["method"]))

    def place(row: dict[str, str]) -> tuple[Any, ...]:
        anchor = {"real": 0, "label_only": 2}.get(row["method"], 1)
        epsilon = float(row["epsilon"]) if row["epsilon"] else 0.0
        return datasets.index(row["dataset"]), anchor, epsilon, methods.index(row["method"]), row.get("sampler", "")

    return sorted(rows, key=place)


def _mixes_protocols(metrics: pd.DataFrame) -> bool:
    return len(set(metrics["protocol"]) - {"", DIRECT}) > 1


def _protocols(metrics: pd.DataFrame, keys: list[str]) -> dict[tuple[str, ...], str]:
    """By row, how its classifiers were trained."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for *row, protocol in metrics[[*keys, "protocol"]].drop_duplicates().itertuples(index=False, name=None):
        found.setdefault(tuple(row), {}).update({protocol: None} if protocol else {})
    return {row: "; ".join(names) for row, names in found.items()}


def _best(data: Sequence[dict[str, Any]], columns: list[MetricColumn], offset: int) -> frozenset[tuple[int, int]]:
    rivals: dict[tuple[str, str], list[int]] = {}
    for i, row in enumerate(data):
        if row["epsilon"] not in ("", "inf"):
            rivals.setdefault((row["dataset"], row["epsilon"]), []).append(i)
    best = set()
    for rows in rivals.values():
        for j, column in enumerate(columns):
            name = f"{column.name}_mean"
            scores = {i: column.sign * data[i][name] for i in rows if not math.isnan(data[i][name])}
            if len({data[i]["method"] for i in scores}) > 1:
                best |= {(i, offset + j) for i, score in scores.items() if score == max(scores.values())}
    return frozenset(best)


def cell_text(mean: float, std: float, n: int, decimals: int | None) -> str:
    """ "mean ± std (n)", "mean (1)" of one value, a dash of none; `decimals` None means about three digits."""
    if n == 0:
        return MISSING
    if decimals is None:
        size = math.floor(math.log10(abs(mean))) if mean and math.isfinite(mean) else 0
        decimals = min(max(2 - size, 1), 4) if abs(mean) >= 5e-5 else 1  # 0.0 rather than 0.0000
    return f"{rounded(mean, decimals):.{decimals}f}" + (f" ± {std:.{decimals}f}" if n > 1 else "") + f" ({n})"


def rounded(value: float, decimals: int) -> float:
    """`value` as it will be printed, but never -0.0."""
    return round(value, decimals) + 0.0


def _epsilon(value: float, decimals: int | None = None) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:g}" if decimals is None else f"{value:.{decimals}f}"


def _mechanism(event: dict[str, Any]) -> str:
    if not event["mechanism"]:
        return "nothing released"
    names = {
        "gaussian": "Gaussian", "poisson_subsampled_gaussian": "Poisson-subsampled Gaussian",
        "categorical_subsampled_gaussian": "one-shard-of-many Gaussian",
    }  # fmt: skip
    whole = math.isnan(event["sample_rate"]) or event["mechanism"] == "gaussian"
    rate = "" if whole else f", q = {event['sample_rate']:.3g}"
    label = f"{event['name']}: " if event["name"] else ""
    mechanism = names.get(event["mechanism"], event["mechanism"])
    return f"{label}{event['steps']} × {mechanism}{rate}, noise {event['noise_multiplier']:.3g}"  # noqa: RUF001


def _resources(rule: str, method: str, jobs: pd.DataFrame) -> dict[str, Any]:
    seconds = jobs["seconds"]
    return {
        "rule": rule, "method": method, "jobs": len(jobs), "mean_s": float(seconds.mean()),
        "max_s": float(seconds.max()), "sum_s": float(seconds.sum()), "max_rss_mb": float(jobs["max_rss_mb"].max()),
    }  # fmt: skip


def _fixed(value: float, decimals: int = 1) -> str:
    return MISSING if math.isnan(value) else f"{value:,.{decimals}f}"


def _group_numbers(keys: Sequence[Any]) -> tuple[int, ...]:
    groups: list[int] = []
    for i, key in enumerate(keys):
        groups.append(groups[-1] + (key != keys[i - 1]) if groups else 0)
    return tuple(groups)
