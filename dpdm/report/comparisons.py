"""Comparisons over a whole study: pairwise wins of its methods, and a parameter that was varied against the scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from dpdm.config import ANCHORS, DIRECT
from dpdm.report.figures import DASHES, LOG_RATIO, STYLE, draw_means, series_look, series_of
from dpdm.report.registry import Material
from dpdm.report.selection import Sweep, sweeps
from dpdm.report.tables import (
    MetricColumn,
    Summary,
    epsilon_label,
    methods_of_several_samplers,
    score_columns,
    summaries,
)
from dpdm.specs import epsilon_text

# --- pairwise wins --------------------------------------------------------------------------------------------


class Wins(NamedTuple):
    """`cells[a, b]`: how many cells both series have; `won[a, b]`: in how many of them series a is the better one."""

    title: str
    series: list[tuple[str, str]]  # method and sampler
    won: np.ndarray
    cells: np.ndarray


def ranked_columns(metrics: pd.DataFrame) -> list[dict[str, MetricColumn]]:
    """The two metrics that methods are compared by: the image distance, and the accuracy of one classifier.

    One of each: all accuracies judge the same images and would count them three times. The CNN's if there is one, which
    is the classifier that papers lead with, else the last in reading order.

    Returns:
        Of each, its column by dataset: one may have the FID and another not.
    """
    distances, accuracies = {}, {}
    for dataset, chosen in metrics.groupby("dataset", sort=False):
        columns = score_columns(chosen)
        found = [c for c in columns if c.is_accuracy]
        if columns and columns[0] not in found:
            distances[dataset] = columns[0]
        if found:
            accuracies[dataset] = next((c for c in found if c.metric == "acc_cnn"), found[-1])
    return [by_dataset for by_dataset in (distances, accuracies) if by_dataset]


def pairwise_wins(metrics: pd.DataFrame, columns: Mapping[str, MetricColumn]) -> Wins:
    """Compares generators in pairs, over the cells (dataset, finite epsilon, seed) that both have.

    A tie counts half for each. A value that could not be computed (NaN) loses, and two of them are no contest. Two
    samplers of one method are no rivals. Classifiers and anchors do not take part, nor does epsilon = inf: it is no
    setting to choose.

    Args:
        columns: by dataset, the metric to compare by.
    """
    signs = {(dataset, *c.key): c.sign for dataset, c in columns.items()}
    keys = zip(*(metrics[name] for name in ("dataset", "metric", "extractor", "reference")), strict=True)
    sign = pd.Series([signs.get(key, 0) for key in keys], metrics.index, dtype=float)
    chosen = metrics.assign(value=(sign * metrics["value"]).fillna(-math.inf))[
        (sign != 0)
        & ~metrics["epsilon"].isin(["", "inf"])
        & ~metrics["method"].isin(ANCHORS)
        & (metrics["protocol"] != DIRECT)
    ]
    series = series_of(chosen)
    grid = chosen.pivot(index=["dataset", "epsilon", "seed"], columns=["method", "sampler"], values="value")
    ours = np.array([grid[one] for one in series]).reshape(len(series), 1, len(grid))  # [series, 1, cells]
    theirs = ours.transpose(1, 0, 2)
    methods = np.array([method for method, _ in series], dtype=object)
    with np.errstate(invalid="ignore"):  # NaN: no such cell
        contest = (np.maximum(ours, theirs) > -math.inf) & (methods[:, None] != methods)[..., None]
        won = np.where(contest, (ours > theirs) + 0.5 * (ours == theirs), 0).sum(-1)
    return Wins(" / ".join(dict.fromkeys(c.header for c in columns.values())), series, won, contest.sum(-1))


def wins_figure(material: Material) -> Figure:
    """One panel per metric: the share of cells in which the method of a row beats the method of a column."""
    metrics = material.metrics
    found = [pairwise_wins(metrics, columns) for columns in ranked_columns(metrics)]
    found = [wins for wins in found if wins.cells.any()]
    several = methods_of_several_samplers(metrics)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        if not found:
            figure = Figure(figsize=(7.6, 1.5), layout="constrained")
            figure.text(0.5, 0.5, "No cell in which two generators have a score.", ha="center", va="center")
            return figure
        size = max(len(wins.series) for wins in found)
        figure = Figure(figsize=(2.6 + 0.52 * size * len(found), 1.9 + 0.42 * size), layout="constrained")
        panels = figure.subplots(1, len(found), squeeze=False)[0]
        for panel, wins in zip(panels, found, strict=True):
            names = [f"{method}, {sampler}" if method in several else method for method, sampler in wins.series]
            share = np.where(wins.cells > 0, wins.won / np.maximum(wins.cells, 1), np.nan)
            panel.imshow(share, cmap="PuOr", vmin=-0.6, vmax=1.6, aspect="auto")
            for (i, j), cells in np.ndenumerate(wins.cells):
                if cells:
                    look = {"ha": "center", "va": "center", "fontsize": 7, "color": "#111111"}
                    panel.text(j, i, f"{wins.won[i, j]:g}/{cells}", **look)
            panel.set_yticks(range(len(names)), names)
            panel.set_xticks(range(len(names)), names, rotation=40, ha="right")
            panel.set_title(f"by {wins.title}")
    return figure


# --- a parameter ----------------------------------------------------------------------------------------------


def parameter_figure(material: Material) -> Figure:
    """The scores against each parameter that the study varies: a row per parameter and dataset, a panel per metric.

    Points are means over seeds, bars sample standard deviations, lines epsilons (and samplers or methods, if several).
    """
    study, metrics = material.study, material.metrics
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
                    found = [known.get((*column.key, dataset, *s, epsilon_text(epsilon)), Summary()) for s in sets]
                    label = f"ε = {epsilon_label(epsilon_text(epsilon))}" + (f", {name}" if several else "")
                    i = len(looks)
                    look = looks.setdefault(label, series_look(i) | {"ls": DASHES[i % 4]})
                    drawn += draw_means(panel, [values[one] for one in sets], found, look)
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


def _scale(panel: Any, sweep: Sweep, ticks: Sequence[float], drawn: Sequence[float], column: MetricColumn) -> None:
    panel.set_xlabel(sweep.key.replace("_", " "))
    if ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= 8:
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 3 else 0)
    if column.sign < 0 and drawn and min(drawn) > 0 and max(drawn) > LOG_RATIO * min(drawn):
        panel.set_yscale("log", nonpositive="clip")
        panel.set_ylim(min(drawn) / 2, max(drawn) * 2)
