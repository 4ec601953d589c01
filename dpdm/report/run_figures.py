"""Figures of what happened during the runs: training curves, and the privacy spent over the steps."""

import itertools
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dpdm import artifacts
from dpdm.config import Coordinates, Strict, epsilon_text, parse_params
from dpdm.errors import UserError
from dpdm.report.figures import DASHES, LOG_RATIO, PALETTE, STYLE, series_look
from dpdm.report.tables import epsilon_label

COLUMNS = 3  # panels side by side
POINTS = 100  # of a training curve: the mean of each of as many blocks of steps
MAX_SEEDS = 5  # more lines of one kind cannot be told apart: their range is shaded


class Curve(NamedTuple):
    """A run's training curve: its place in the grid (epsilon `math.inf` without noise) and its train.jsonl."""

    method: str
    epsilon: float
    seed: int
    path: Path


class Spending(Strict):
    """How epsilon grew over a run's steps: a line of `audits/DATASET/METHOD.spending.jsonl`."""

    coordinates: Coordinates
    steps: list[int]
    epsilon: list[float]


def read_curve(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Each quantity that a run released while it trained: steps and values, thinned to at most POINTS means.

    Returns:
        By name, in alphabetical order; empty for a method that logs no curve, None if there is no such file.

    Raises:
        UserError: the file is not a training curve.
    """
    if not Path(path).exists():
        return None
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in artifacts.read_jsonl(path):
        good = isinstance(row, dict) and "step" in row and all(type(v) in (int, float) for v in row.values())
        if not good:
            raise UserError(f"{path} is no training curve (line {row!r}); delete it and run snakemake again")
        for name in row.keys() - {"step"}:
            steps, values = found.setdefault(name, ([], []))
            steps.append(row["step"])
            values.append(row[name])
    return {name: (_block_means(steps), _block_means(values)) for name, (steps, values) in sorted(found.items())}


def _block_means(values: Sequence[float]) -> np.ndarray:
    return np.array([block.mean() for block in np.array_split(np.array(values, float), min(len(values), POINTS))])


def training_curves(dataset: str, curves: Sequence[Curve]) -> Figure:
    """One figure of a dataset: per method and released quantity a panel, per epsilon a line, over the steps.

    Seeds are thin lines (more than MAX_SEEDS a shaded range), their mean is a thick one, drawn where all seeds that are
    there have the same steps. A method that logs nothing (a one-shot release) has no panel. Runs whose file is missing
    are named below.

    Raises:
        UserError: a file is not a training curve.
    """
    panels: dict[tuple[str, str], dict[float, list[tuple[np.ndarray, np.ndarray]]]] = {}
    missing: dict[str, list[str]] = {}
    methods = list(dict.fromkeys(curve.method for curve in curves))
    for curve in sorted(curves, key=lambda c: (methods.index(c.method), c.seed)):
        found = read_curve(curve.path)
        if found is None:
            place = f"ε = {epsilon_label(epsilon_text(curve.epsilon))}, seed {curve.seed}"
            missing.setdefault(curve.method, []).append(place)
        for name, line in (found or {}).items():
            panels.setdefault((curve.method, name), {}).setdefault(curve.epsilon, []).append(line)
    keys = list(panels)
    epsilons = sorted({curve.epsilon for curve in curves})
    named = [f"{method} ({len(runs)}: {runs[0]}{' ...' if runs[1:] else ''})" for method, runs in missing.items()]
    note = textwrap.fill(f"Runs without train.jsonl: {'; '.join(named)}.", 100) if named else ""
    if not keys:
        return _sentence(f"{dataset}: no run logged a training curve." + (f"\n{note}" if note else ""))
    looks = {e: {"color": PALETTE[i % 7], "ls": DASHES[i % 4]} for i, e in enumerate(epsilons)}
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(keys), sharex=False)
        for panel, (method, name) in zip(axes, keys, strict=True):
            panel.set_title(method)
            panel.set_xlabel("step")
            panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            panel.set_ylabel(name.replace("_", " "))
            lines = panels[method, name]
            for epsilon in sorted(lines):
                seeds, look = lines[epsilon], looks[epsilon]
                alike = len({steps.tobytes() for steps, _ in seeds}) == 1
                together = np.array([values for _, values in seeds]) if alike and len(seeds) > 1 else None
                if together is not None and len(seeds) > MAX_SEEDS:
                    panel.fill_between(
                        seeds[0][0], together.min(0), together.max(0), color=look["color"], alpha=0.2, lw=0
                    )
                else:
                    thin = {"lw": 1.4} if together is None else {"lw": 0.6, "alpha": 0.5}
                    for steps, values in seeds:
                        panel.plot(steps, values, **look | thin)
                if together is not None:
                    panel.plot(seeds[0][0], together.mean(0), lw=1.6, **look)
            values = np.concatenate([v for seeds in lines.values() for _, v in seeds])
            if values.min() > 0 and values.max() > LOG_RATIO * values.min():
                panel.set_yscale("log")
        handles = [Line2D([], [], label=f"ε = {epsilon_label(epsilon_text(e))}", lw=1.6, **looks[e]) for e in epsilons]
        _legend(figure, handles, note)
    return figure


def read_spending(paths: Iterable[str | Path]) -> list[Spending]:
    """Reads what the verb `audit` wrote, in the order of the paths.

    Raises:
        UserError: a file is missing or malformed.
    """
    found = []
    for path in paths:
        for row in artifacts.read_jsonl(path):
            one = parse_params(Spending, row if isinstance(row, dict) else {}, str(path))
            if len(one.steps) != len(one.epsilon):
                raise UserError(f"{path}: steps and epsilon are not of one length; delete it and run snakemake again")
            found.append(one)
    return found


def privacy_spent(dataset: str, spending: Sequence[Spending], looks: Mapping[str, dict[str, Any]]) -> Figure:
    """One figure of a dataset: per finite epsilon a panel, per method a line, over the share of its steps.

    Runs of one method and budget spend alike and share a line, unless their ledgers differ. Methods that release all
    they need at once jump at the start.

    Args:
        looks: of each method that has scores, its line in the figure of scores.
    """
    lines: dict[float, dict[str, list[Spending]]] = {}
    for one in sorted(spending, key=lambda s: s.coordinates.seed):
        place = one.coordinates
        if place.dataset == dataset and one.steps and math.isfinite(place.epsilon):
            alike = lines.setdefault(place.epsilon, {}).setdefault(place.method, [])
            if not any((one.steps, one.epsilon) == (other.steps, other.epsilon) for other in alike):
                alike.append(one)
    if not lines:
        return _sentence(f"{dataset}: no run has a finite epsilon.")
    spent = dict.fromkeys(method for found in lines.values() for method in found)
    methods = [m for m in looks if m in spent] + [m for m in spent if m not in looks]
    looks = {m: looks.get(m) or series_look(len(looks) + i) for i, m in enumerate(methods)}
    at_once = {m for m in methods if all(o.steps[-1] == 0 for found in lines.values() for o in found.get(m, []))}
    with matplotlib.rc_context(STYLE):
        figure, axes = _panels(len(lines), sharex=True)
        for panel, epsilon in zip(axes, sorted(lines), strict=True):
            panel.set_title(f"ε = {epsilon_text(epsilon)}")
            panel.set_xlabel("share of the steps, %")
            panel.set_ylabel("ε spent (RDP)")
            panel.axhline(epsilon, color="#555555", ls="--", lw=1, zorder=1)
            for i, method in enumerate(methods):
                for one in lines[epsilon].get(method, []):
                    _draw_spending(panel, one, looks[method], (i + 0.5) / len(methods))
            panel.set_ylim(0, None)
        handles = []
        for method in methods:
            label = f"{method} (at once)" if method in at_once else method
            handles.append(Line2D([], [], label=label, **looks[method]))
        handles.append(Line2D([], [], label="target", color="#555555", ls="--", lw=1))
        _legend(figure, handles)
    return figure


def _draw_spending(panel: Axes, one: Spending, look: dict[str, Any], offset: float) -> None:
    """A line and, staggered by `offset` in [0, 1], markers: many lines lie on top of each other."""
    whole = max(one.steps[-1], 1)
    share = [100 * step / whole for step in one.steps]
    spent = list(one.epsilon)
    if one.steps[-1] == 0:  # all at once: nothing more is spent while the model is trained on it
        share, spent = [*share, 100.0], [*spent, spent[-1]]
    plain = {key: value for key, value in look.items() if key not in ("marker", "ms", "mfc")}
    panel.plot(share, spent, **plain)
    spots = [100 * (k + offset) / 4 for k in range(4)]
    # np.interp takes the last of several points at one share, the upper end of a jump
    panel.plot(spots, np.interp(spots, share, spent), **look | {"ls": "none"})


# --- shared ---------------------------------------------------------------------------------------------------


def _panels(count: int, sharex: bool) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(7.6, 0.9 + (2.1 if columns == COLUMNS else 2.5) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=sharex).ravel()
    for unused in itertools.islice(axes, count, None):
        unused.set_axis_off()
    return figure, list(axes[:count])


def _legend(figure: Figure, handles: list[Line2D], note: str = "") -> None:
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 4), title=note or None, title_fontsize=7.5
    )


def _sentence(text: str) -> Figure:
    """A figure that says why there is nothing to draw."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 1.0))
        figure.text(0.5, 0.5, text, ha="center", va="center", wrap=True)
    return figure
