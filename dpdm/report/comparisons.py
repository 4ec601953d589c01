"""Comparisons over a whole study: the rank of each method, and a parameter that was varied against the scores."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from dpdm.config import ANCHORS, DIRECT, Study
from dpdm.report.figures import DASHES, LOG_RATIO, STYLE, score_columns, series_look, series_of
from dpdm.report.selection import Sweep, sweeps
from dpdm.report.tables import (
    NO_SUMMARY,
    MetricColumn,
    epsilon_label,
    methods_of_several_samplers,
    summaries,
)
from dpdm.specs import epsilon_text

RESAMPLES = 2000
COVERAGE = 0.95
ENOUGH_SEEDS = 6  # from here on the range of the seeds holds their median with a probability above COVERAGE
# Below, there are no intervals: not even the whole range of the seeds would have that probability.


# --- ranks ----------------------------------------------------------------------------------------------------


class Ranks(NamedTuple):
    """Mean ranks by one metric, the best first, with the ends of their bootstrap intervals.

    `table` has the columns method, sampler, rank, low, high (NaN below ENOUGH_SEEDS) and cells, how many were averaged;
    `datasets` and `seeds` are how many the intervals resample.
    """

    title: str
    table: pd.DataFrame
    datasets: int
    seeds: int

    @property
    def intervals(self) -> bool:
        """Whether there are enough seeds for them."""
        return self.seeds >= ENOUGH_SEEDS


def ranked_columns(metrics: pd.DataFrame) -> list[dict[str, MetricColumn]]:
    """The two metrics that methods are ranked by: the image distance, and the accuracy of one classifier.

    One of each: all accuracies judge the same images and would count them three times. The CNN's if there is one, which
    is the classifier that papers lead with, else the last in reading order.

    Returns:
        Of each, its column by dataset: one may have the FID and another not.
    """
    distances, accuracies = {}, {}
    for dataset, chosen in metrics.groupby("dataset", sort=False):
        columns = score_columns(chosen)
        found = [c for c in columns if c.metric.startswith("acc_")]
        if columns and columns[0] not in found:
            distances[dataset] = columns[0]
        if found:
            accuracies[dataset] = next((c for c in found if c.metric == "acc_cnn"), found[-1])
    return [by_dataset for by_dataset in (distances, accuracies) if by_dataset]


def mean_ranks(metrics: pd.DataFrame, columns: Mapping[str, MetricColumn]) -> Ranks:
    """Ranks generators in every cell (dataset, finite epsilon, seed) and averages over the cells.

    Rank 1 is the best, equal values share the mean of their ranks, and a value that could not be computed (NaN) is
    last. In a cell with fewer rivals than the largest has, ranks are stretched to the same range, so that a method
    gains nothing by serving few datasets. A cell with one method, however often sampled, is no contest, and neither is
    one without any value, as of accuracies on unlabeled images. Classifiers and anchors are not ranked,
    nor is epsilon = inf: it is a ceiling, no setting to choose.

    From ENOUGH_SEEDS on, the interval is a percentile bootstrap of two stages, datasets and then seeds within each:
    both would be drawn anew in another study. Equal arguments give equal intervals.

    Args:
        columns: by dataset, the metric to rank by.
    """
    signs = {(dataset, *c.key): c.sign for dataset, c in columns.items()}
    keys = zip(*(metrics[name] for name in ("dataset", "metric", "extractor", "reference")), strict=True)
    sign = pd.Series([signs.get(key, 0) for key in keys], metrics.index)
    chosen = metrics.assign(value=sign * metrics["value"])[
        (sign != 0)
        & ~metrics["epsilon"].isin(["", "inf"])
        & ~metrics["method"].isin(ANCHORS)
        & (metrics["protocol"] != DIRECT)
    ]
    cell = chosen.groupby(["dataset", "epsilon", "seed"], sort=False).ngroup().to_numpy()
    who = chosen.groupby(["method", "sampler"], sort=False).ngroup().to_numpy()
    table = chosen[["method", "sampler"]].drop_duplicates(ignore_index=True)
    places = chosen[["dataset", "seed"]].groupby(cell).first()
    present = np.zeros((len(places), len(table)), bool)
    present[cell, who] = True
    signed = np.full(present.shape, np.nan)
    signed[cell, who] = chosen["value"].fillna(-math.inf)  # could not be computed: the worst
    ranks = pd.DataFrame(signed).rank(axis=1, ascending=False).to_numpy()
    contest = (chosen.groupby(cell)["method"].nunique() > 1).to_numpy() & np.isfinite(signed).any(1)
    rivals = present.sum(1)
    size = int(rivals[contest].max(initial=0))
    ranks = 1 + (ranks[contest] - 1) * ((size - 1) / (rivals[contest] - 1))[:, None]
    dataset_of, datasets = pd.factorize(places["dataset"][contest])
    seed_of, seeds = pd.factorize(places["seed"][contest])
    sums = np.zeros((len(datasets), len(seeds), ranks.shape[1]))
    counts = np.zeros_like(sums)
    np.add.at(sums, (dataset_of, seed_of), np.nan_to_num(ranks))
    np.add.at(counts, (dataset_of, seed_of), ~np.isnan(ranks))
    low, high = _bootstrap(sums, counts)
    total = counts.sum((0, 1))
    with np.errstate(invalid="ignore"):
        rank = sums.sum((0, 1)) / total
    table = table.assign(rank=rank, low=low, high=high, cells=total.astype(int))
    title = " / ".join(dict.fromkeys(c.header for c in columns.values()))
    shown = table[table["cells"] > 0].sort_values("rank", kind="stable", ignore_index=True)
    return Ranks(title, shown, len(datasets), len(seeds))


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of sum / count, both [datasets, seeds, series], pooled over a resampled study."""
    datasets, seeds, _ = sums.shape
    if not sums.size or seeds < ENOUGH_SEEDS:
        return np.full(sums.shape[2], math.nan), np.full(sums.shape[2], math.nan)
    rng = np.random.default_rng(0)  # fixed: the figure of equal results is the same
    drawn = rng.integers(datasets, size=(RESAMPLES, datasets))
    within = rng.integers(seeds, size=(RESAMPLES, datasets, seeds))
    weights = np.zeros((RESAMPLES, datasets, seeds))
    np.add.at(weights, (np.arange(RESAMPLES)[:, None, None], drawn[:, :, None], within), 1)
    total = np.einsum("rds,dsk->rk", weights, counts)
    with np.errstate(invalid="ignore"):  # a resample without any cell of a method has no mean
        means = np.einsum("rds,dsk->rk", weights, sums) / total
    margin = 50 * (1 - COVERAGE)
    some = total.any(0)
    found = np.nanpercentile(means[:, some], [margin, 100 - margin], axis=0)
    ends = [np.full(sums.shape[2], math.nan) for _ in range(2)]
    for end, values in zip(ends, found, strict=True):
        end[some] = values
    return ends[0], ends[1]


def bootstrap_note(found: Sequence[Ranks]) -> str:
    """What the intervals rest on, or why there are none; `found`: the panels, left to right."""
    counts, seeds = [ranks.datasets for ranks in found], min(ranks.seeds for ranks in found)
    datasets = str(counts[0]) if len(set(counts)) == 1 else f"{counts[0]} (left) and {counts[-1]} (right)"
    size = f"{datasets} dataset{'s' * (datasets != '1')} and {seeds} seed{'s' * (seeds != 1)}"
    if not all(ranks.intervals for ranks in found):
        return f"{size.capitalize()}. No intervals: {COVERAGE:.0%} needs {ENOUGH_SEEDS} seeds or more."
    note = f"Bars: {COVERAGE:.0%} percentile bootstrap, {RESAMPLES:,} resamples of {size}."
    return note + (" One dataset: nothing is said about others." if 1 in counts else "")


def rank_figure(metrics: pd.DataFrame, _: Study | None = None) -> Figure:
    """One panel per ranked metric: methods down, the best on top, mean rank across with its interval."""
    found = [mean_ranks(metrics, columns) for columns in ranked_columns(metrics)]
    found = [ranks for ranks in found if len(ranks.table) > 1]
    series, several = series_of(metrics), methods_of_several_samplers(metrics)
    height = max((len(ranks.table) for ranks in found), default=1)
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        labels = [[_rank_label(row, several) for row in ranks.table.itertuples()] for ranks in found]
        longest = max((len(label) for panel in labels for label in panel), default=0)
        wide = len(found) * 0.085 * max(longest - 20, 0)  # inches of what a label has too much
        figure = Figure(figsize=(7.6 + wide, 1.5 + 0.26 * height), layout="constrained")
        if not found:
            figure.text(0.5, 0.5, "No cell in which two generators have a score.", ha="center", va="center")
            return figure
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for panel, ranks, names in zip(panels, found, labels, strict=True):
            panel.set_title(f"by {ranks.title}")
            panel.set_xlabel(f"mean rank over {ranks.table['cells'].max()} cells (1 is best)")
            for y, row in enumerate(ranks.table.itertuples()):
                look = series_look(series.index((row.method, row.sampler))) | {"ls": "none"}
                bar = [[max(row.rank - row.low, 0)], [max(row.high - row.rank, 0)]] if ranks.intervals else None
                panel.errorbar([row.rank], [y], xerr=bar, elinewidth=1.4, capsize=3, **look)
            panel.set_yticks(range(len(names)), names)
            panel.set_ylim(len(names) - 0.5, -0.5)
            panel.set_xlim(0.7, len(names) + 0.3)
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.supxlabel(bootstrap_note(found).replace(". ", ".\n"), fontsize=7.5, color="#333333")
    return figure


def _rank_label(row: Any, several: Container[str]) -> str:
    name = f"{row.method}, {row.sampler}" if row.method in several else row.method
    return f"{name}  {row.rank:.1f}"


# --- a parameter ----------------------------------------------------------------------------------------------


def parameter_figure(metrics: pd.DataFrame, study: Study) -> Figure:
    """The scores against each parameter that the study varies: a row per parameter and dataset, a panel per metric.

    Points are means over seeds, bars sample standard deviations, lines epsilons (and samplers or methods, if several).

    Args:
        study: one with `sweeps`.
    """
    rows = [(sweep, dataset) for sweep in sweeps(study) for dataset in study.datasets if _points(sweep, dataset)]
    columns = {dataset: score_columns(metrics[metrics["dataset"] == dataset]) for _, dataset in rows}
    several = any(len({line for _, line in _points(*row)}) > 1 for row in rows)  # then every line says which it is
    known = summaries(metrics, "dataset", "method", "sampler", "epsilon")
    across = max([1, *map(len, columns.values())])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(2.4 * across, 5.0), 0.8 + 2.4 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), across, squeeze=False)
        looks: dict[str, dict[str, Any]] = {}  # the same in every row
        for (sweep, dataset), row in zip(rows, panels, strict=True):
            points = _points(sweep, dataset)
            ticks = sorted({value for values in points.values() for value in values.values()})
            for panel in row[len(columns[dataset]) :]:
                panel.set_axis_off()
            for panel, column in zip(row, columns[dataset], strict=False):
                drawn: list[float] = []
                for (epsilon, name), values in points.items():
                    sets = sorted(values, key=values.__getitem__)
                    where = [values[one] for one in sets]
                    found = [known.get((*column.key, dataset, *one, epsilon_text(epsilon)), NO_SUMMARY) for one in sets]
                    mean = np.array([value[0] for value in found])
                    std = np.nan_to_num(np.array([value[1] for value in found]))
                    label = f"ε = {epsilon_label(epsilon_text(epsilon))}" + (f", {name}" if several else "")
                    i = len(looks)
                    look = looks.setdefault(label, series_look(i) | {"ls": DASHES[i % 4]})
                    panel.errorbar(where, mean, std, elinewidth=1, capsize=2.5, **look)
                    drawn += mean[np.isfinite(mean)].tolist()
                _scale(panel, sweep, ticks, drawn, column)
                panel.set_title(column.header if len(study.datasets) == 1 else f"{dataset}: {column.header}")
        if looks:
            handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4))
    return figure


def _points(sweep: Sweep, dataset: str) -> dict[tuple[float, str], dict[tuple[str, str], float]]:
    """By line, lower epsilons first, the number that each method and sampler on it has on one dataset."""
    points: dict[tuple[float, str], dict[tuple[str, str], float]] = {}
    for (where, epsilon, line, method, sampler), value in sweep.values.items():
        if where == dataset:
            points.setdefault((epsilon, line), {})[method, sampler] = value
    return dict(sorted(points.items(), key=lambda item: item[0][0]))  # stable


def _tick_labels(places: np.ndarray, ticks: Sequence[float]) -> list[str]:
    """One per tick; "" where it would run into the one before, which in a panel takes a sixth of the axis."""
    labels, last = [], -math.inf
    for place, tick in zip(places, ticks, strict=True):
        fits = place - last > np.ptp(places) / 6
        labels.append(f"{tick:g}" if fits else "")
        last = place if fits else last
    return labels


def _scale(panel: Any, sweep: Sweep, ticks: Sequence[float], drawn: Sequence[float], column: MetricColumn) -> None:
    panel.set_xlabel(sweep.key.replace("_", " "))
    logarithmic = ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]
    if logarithmic:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= 8:
        panel.set_xticks(ticks, _tick_labels(np.log(ticks) if logarithmic else np.array(ticks), ticks))
    if column.sign < 0 and drawn and min(drawn) > 0 and max(drawn) > LOG_RATIO * min(drawn):
        panel.set_yscale("log", nonpositive="clip")
        panel.set_ylim(min(drawn) / 2, max(drawn) * 2)
