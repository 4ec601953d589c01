"""Figures: metrics against epsilon, and grids of samples; equal inputs give equal bytes."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT
from dpdm.errors import UserError
from dpdm.report.tables import (
    ANCHOR_LABELS,
    NO_SUMMARY,
    MetricColumn,
    Summary,
    epsilon_label,
    method_labels,
    methods_of_several_samplers,
    metric_columns,
    summaries,
    with_values,
)
from dpdm.specs import epsilon_text

# Okabe and Ito's palette, which color-blind readers can distinguish; its yellow is too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")  # they distinguish lines without markers in gray print
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine draws the same
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#666666",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "svg.hashsalt": "dpdm",  # else the ids in the SVG are random
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
ANCHOR_LINES = {"real": "--", "label_only": ":"}
ANCHOR_COLOUR = "#555555"
LOG_RATIO = 20  # a panel whose values span more is drawn on a logarithmic axis
FAR = 20  # per cent below the lowest point, and further than half of what the points span: an anchor that is not drawn

# Sample grids are laid out in points of 1/100 inch and saved at twice that, so that pixels stay whole.
UNITS, DPI = 100, 200
ROWS_PER_BLOCK = 3
MAX_CLASSES = 10
CELL = 30  # an image is enlarged by the whole number that brings it nearest to this size
GAP, LABEL_WIDTH, HEAD = 14, 96, 26


class SampleSet(NamedTuple):
    """One synthetic set: `method` as printed (with the sampler, if it has several), epsilon, seed, path of its npz."""

    method: str
    epsilon: float
    seed: int
    path: Path


def sample_set(text: str) -> SampleSet:
    """METHOD,EPSILON,SEED=NPZ or METHOD,SAMPLER,EPSILON,SEED=NPZ, as the command line has it."""
    text, _, path = text.partition("=")
    *names, epsilon, seed = text.split(",")
    return SampleSet(", ".join(names), float(epsilon), int(seed), Path(path))


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Writes `stem` + one suffix per format, atomically and without dates; returns the paths."""
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    paths = []
    for suffix in formats:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=undated[suffix])
        paths.append(Path(stem).with_name(f"{Path(stem).name}.{suffix}"))
        artifacts.write_bytes(paths[-1], buffer.getvalue())
    return paths


# --- metrics against epsilon ----------------------------------------------------------------------------------


def epsilon_curves(metrics: pd.DataFrame, dataset: str) -> Figure:
    """One figure of a dataset: the distance (FID to the training images, else FD) and each accuracy against epsilon.

    Points are means over seeds and bars sample standard deviations; epsilon is categorical in rising order, ∞ last.
    The dashed line is the real ceiling, the dotted one the label-only floor; a classifier trained on the private
    images has hollow markers, and a curve only in its own panel. Colors and markers follow the order of methods
    in the whole of `metrics`, so that all datasets of a study agree; the legend names those of this one.
    """
    chosen = metrics[metrics["dataset"] == dataset]
    columns = score_columns(chosen)
    looks = {one: i for i, one in enumerate(series_of(metrics))}
    series = {one: looks[one] for one in series_of(chosen)}
    several, labels = methods_of_several_samplers(metrics), method_labels(metrics)
    hollow = frozenset(metrics.loc[metrics["protocol"] == DIRECT, "method"])
    epsilons = sorted({e for e in chosen["epsilon"] if e}, key=float)
    known = summaries(chosen, "method", "sampler", "epsilon")
    across = min(max(len(columns), 1), 2)
    rows = max(math.ceil(len(columns) / across), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.7 + 2.55 * rows), layout="constrained")
        panels = figure.subplots(rows, across, squeeze=False).ravel()
        for panel in panels[len(columns) :]:
            panel.set_axis_off()
        for panel, column in zip(panels, columns, strict=False):
            _draw_panel(panel, known, column, series, epsilons, hollow)
        handles = []
        for (method, sampler), i in series.items():
            label = f"{labels[method]}, {sampler}" if method in several else labels[method]
            handles.append(Line2D([], [], label=label, **series_look(i, method in hollow)))
        for anchor in ANCHORS:
            if (chosen["method"] == anchor).any():
                line = {"color": ANCHOR_COLOUR, "ls": ANCHOR_LINES[anchor], "lw": 1.2}
                handles.append(Line2D([], [], label=ANCHOR_LABELS[anchor], **line))
        if handles:
            longest = max(len(handle.get_label()) for handle in handles)
            abreast = 3 if longest <= 24 else 2 if longest <= 40 else 1  # what the width of the figure holds
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), abreast))
    return figure


def score_columns(metrics: pd.DataFrame) -> list[MetricColumn]:
    """What is drawn: the image distance (FID if there is one, else FD), then the accuracies; not what has no value."""
    columns = metric_columns(with_values(metrics))
    distances = [c for name in ("fid", "fd") for c in columns if c.metric == name][:1]
    return distances + [c for c in columns if c.metric.startswith("acc_")]


def series_of(metrics: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, sampler) of every curve, in the order that decides colours and markers."""
    runs = metrics[~metrics["method"].isin(ANCHORS)]
    return list(dict.fromkeys(zip(runs["method"], runs["sampler"], strict=True)))


def series_look(i: int, hollow: bool = False) -> dict[str, Any]:
    """Colour and marker of series i: no two of the first 49 are alike."""
    look = {"color": PALETTE[i % 7], "marker": MARKERS[(i + i // 7) % 7], "ms": 5, "lw": 1.4}
    return look | ({"mfc": "white", "ls": "-."} if hollow else {})


def _draw_panel(
    panel: Axes,
    known: Mapping[tuple[str, ...], Summary],
    column: MetricColumn,
    series: Mapping[tuple[str, str], int],
    epsilons: list[str],
    hollow: frozenset[str],
) -> None:
    panel.set_title(column.header)
    panel.set_xlabel("privacy budget ε")
    panel.set_xticks(range(len(epsilons)), [epsilon_label(e) for e in epsilons])
    panel.set_xlim(-0.5, max(len(epsilons), 1) - 0.5)
    drawn = []
    for place, ((method, sampler), i) in enumerate(series.items()):
        found = [known.get((*column.key, method, sampler, e), NO_SUMMARY) for e in epsilons]
        mean = np.array([value[0] for value in found])
        std = np.nan_to_num(np.array([value[1] for value in found]))
        # bars of neighboring methods would hide each other
        shift = (place - (len(series) - 1) / 2) * min(0.06, 0.35 / max(len(series), 1))
        where = np.arange(len(epsilons)) + shift
        panel.errorbar(where, mean, std, elinewidth=1, capsize=2.5, **series_look(i, method in hollow))
        drawn += mean[np.isfinite(mean)].tolist()
    anchors = {a: known[key][0] for a in ANCHORS if (key := (*column.key, a, "", "")) in known}
    positive = [v for v in drawn if v > 0]
    if column.sign < 0 and drawn and len(positive) == len(drawn):
        reach = positive + [v for v in anchors.values() if v > min(positive) / LOG_RATIO]
        if max(reach) > LOG_RATIO * min(reach):
            panel.set_yscale("log", nonpositive="clip")
            # real against itself is almost 0, which no logarithmic axis can show
            _leave_out(panel, anchors, [name for name, mean in anchors.items() if mean not in reach])
            # a deviation as large as its mean would stretch the axis by decades
            panel.set_ylim(min(reach) / 2, max(reach) * 2)
    if column.sign > 0 and drawn:
        # a floor far below would press all else together
        span = max(drawn) - min(drawn)
        _leave_out(panel, anchors, [name for name, mean in anchors.items() if min(drawn) - mean > max(span / 2, FAR)])
    for name, mean in anchors.items():
        panel.axhline(mean, color=ANCHOR_COLOUR, ls=ANCHOR_LINES[name], lw=1.2, zorder=1)


def _leave_out(panel: Axes, anchors: dict[str, float], names: Sequence[str]) -> None:
    """Removes anchors that are below the axis, and writes their values over the panel."""
    notes = []
    for name in names:
        value = anchors.pop(name)
        value = 0 if abs(value) < 1e-6 else value  # as exact as a distance of equal sets is (see fidelity)
        notes.append(f"{ANCHOR_LABELS[name]}: {value:.2g}, below the axis")
    if notes:
        panel.set_title("; ".join(notes), loc="right", color=ANCHOR_COLOUR, fontsize=7.5)


# --- sample grids ---------------------------------------------------------------------------------------------


def sample_grid(dataset: str, real: Path, samples: Sequence[SampleSet]) -> Figure:
    """One page of a dataset: real images on top, then a block per method (down) and epsilon (across).

    A block shows the first images of each class, one class per column (of a single class, the first images over all
    columns): nothing is picked by looks. Of several seeds the smallest is shown. An image a set lacks stays white.

    Args:
        real: npz with `images` (uint8 [n, C, H, W], C 1 or 3) and `labels` (int64 [n]).
        samples: synthetic sets in the order of the methods.

    Raises:
        UserError: a file is missing or corrupt, or its images are neither gray nor RGB.
    """
    shown: dict[tuple[str, float], SampleSet] = {}
    for s in sorted(samples, key=lambda s: s.seed):
        shown.setdefault((s.method, s.epsilon), s)
    methods = list(dict.fromkeys(s.method for s in samples))
    epsilons = sorted({s.epsilon for s in samples})
    label_width = max(LABEL_WIDTH, 16 + 9 * max(map(len, methods), default=0))  # bold letters are that wide at most
    arrays = artifacts.read_npz(real, ("images", "labels"))
    classes = [int(c) for c in np.unique(arrays["labels"])[:MAX_CLASSES]]
    top = _block(real, classes)
    height, width = top.shape[:2]
    heading = f"{dataset}: first training images" + " of each class" * (len(classes) > 1)
    total_width = label_width + max(max(len(epsilons), 1) * (width + GAP), 8 * len(heading))
    total_height = HEAD + (height + GAP) + (HEAD if methods else 0) + len(methods) * (height + GAP)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(total_width / UNITS, total_height / UNITS), dpi=UNITS)

        def write(x: float, y: float, text: str, **style: str) -> None:
            figure.text(x / total_width, 1 - y / total_height, text, **style)

        def place(x: float, y: float, block: np.ndarray) -> None:
            box = (x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height)
            axes = figure.add_axes(box)
            axes.imshow(block, interpolation="nearest", aspect="auto")
            axes.set_axis_off()

        write(label_width, HEAD / 2, heading, va="center")
        write(label_width - 8, HEAD + height / 2, "real", ha="right", va="center", weight="bold")
        place(label_width, HEAD, top)
        y = HEAD + height + GAP
        for k, epsilon in enumerate(epsilons):
            text = f"ε = {epsilon_label(epsilon_text(epsilon))}"
            write(label_width + k * (width + GAP) + width / 2, y + HEAD / 2, text, ha="center", va="center")
        y += HEAD
        for method in methods:
            write(label_width - 8, y + height / 2, method, ha="right", va="center", weight="bold")
            for k, epsilon in enumerate(epsilons):
                if (method, epsilon) in shown:
                    place(label_width + k * (width + GAP), y, _block(shown[method, epsilon].path, classes, top.shape))
            y += height + GAP
    return figure


def _block(path: Path, classes: Sequence[int], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """RGB block, uint8 [height, width, 3]: classes across, ROWS_PER_BLOCK images of each down, enlarged.

    A single class has MAX_CLASSES columns.
    """
    arrays = artifacts.read_npz(path, ("images", "labels"))
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3) or len(images) != len(labels):
        raise UserError(f"{path}: a grid needs uint8 images [n, 1 or 3, H, W], got {images.dtype} {images.shape}")
    _, _, h, w = images.shape
    scale, gap = max(round(CELL / max(h, w)), 1), 2
    columns_each = MAX_CLASSES if len(classes) == 1 else 1
    columns = [
        images[labels == label][i * ROWS_PER_BLOCK :][:ROWS_PER_BLOCK] for label in classes for i in range(columns_each)
    ]
    height, width = ROWS_PER_BLOCK * (h * scale + gap) - gap, len(columns) * (w * scale + gap) - gap
    block = np.full((height, width, 3), 255, np.uint8)
    if shape is not None and block.shape != shape:
        raise UserError(f"{path} holds images of another size than the real ones; delete it and run snakemake again")
    for across, column in enumerate(columns):
        for down, image in enumerate(column):
            y, x = down * (h * scale + gap), across * (w * scale + gap)
            pixels = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
            block[y : y + h * scale, x : x + w * scale] = pixels  # gray broadcasts to RGB
    return block
