"""Figures: metrics against epsilon, and grids of samples; equal inputs give equal bytes."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
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
from dpdm.report.registry import Material
from dpdm.report.selection import shown_sets
from dpdm.report.tables import (
    ANCHOR_LABELS,
    FEW,
    MetricColumn,
    Summary,
    departure_marks,
    epsilon_label,
    method_labels,
    methods_of_several_samplers,
    score_columns,
    summaries,
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
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"], "#333333"),
    "legend.frameon": False,
    "svg.hashsalt": "dpdm",  # else the ids in the SVG are random
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
# By color of a light page the one of a dark page, which an SVG takes where its reader prefers dark.
DARK = {
    "#000000": "#ffffff", "#333333": "#d5d6d8", "#555555": "#b5b8bd", "#666666": "#85888e", "#e3e3e3": "#33373d",
    "#0072b2": "#4ba3d9",
}  # fmt: skip
ANCHOR_LINES = {"real": "--", "label_only": ":"}
ANCHOR_COLOR = "#555555"
LOG_RATIO = 20  # a panel whose values span more is drawn on a logarithmic axis
WORTH = 50  # per cent: an accuracy axis begins here where more than three quarters of its points are above
FAR = 20  # per cent below the lowest point, and further than half of what the points span: an anchor that is not drawn

# Sample grids are laid out in points of 1/100 inch and saved at twice that, so that pixels stay whole.
UNITS, DPI = 100, 200
ROWS_PER_BLOCK = 3
MAX_CLASSES = 10
CELL = 30  # an image is enlarged by the whole number that brings it nearest to this size


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Writes `stem` + one suffix per format, atomically and without dates; returns the paths.

    An SVG has a transparent background, and takes DARK colors where its reader prefers a dark page.
    """
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    paths = []
    for suffix in formats:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=undated[suffix], transparent=suffix == "svg")
        paths.append(Path(stem).with_name(f"{Path(stem).name}.{suffix}"))
        content = buffer.getvalue()
        if suffix == "svg":
            content = content.replace(b"</style>", f"{_dark_style()}</style>".encode(), 1)
        artifacts.write_bytes(paths[-1], content)
    return paths


def _dark_style() -> str:
    rules = (
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}"


# --- metrics against epsilon ----------------------------------------------------------------------------------


def curves(material: Material) -> Figure:
    """`epsilon_curves` of the material's data set."""
    return epsilon_curves(material.metrics, material.dataset)


def epsilon_curves(metrics: pd.DataFrame, dataset: str) -> Figure:
    """One figure of a dataset: the distance (FID to the training images, else FD) and each accuracy against epsilon.

    Points are means over seeds and bars sample standard deviations; epsilon is categorical in rising order, ∞ last.
    The dashed line has the real images, the dotted one the label-only floor. Classifiers that were trained on the
    private images have the last panel. Color and marker are a method's, in the order of the whole of `metrics`, so that
    all datasets of a study agree; its samplers differ in the dashes of their lines.
    """
    chosen = metrics[metrics["dataset"] == dataset]
    looks = method_looks(metrics)
    labels = ANCHOR_LABELS | method_labels(chosen)
    direct = chosen["protocol"] == DIRECT
    parts = [(column, chosen[~direct]) for column in score_columns(chosen[~direct])]
    panels_of: list[tuple[str, list[MetricColumn], pd.DataFrame]] = [(c.header, [c], rows) for c, rows in parts]
    if direct.any():
        title = "accuracy % ↑ of classifiers trained on the private images"
        panels_of.append((title, score_columns(chosen[direct]), chosen[direct]))
    epsilons = sorted({e for e in chosen["epsilon"] if e}, key=float)
    across = min(max(len(panels_of), 1), 4 if len(panels_of) == 4 else 3)
    rows = max(math.ceil(len(panels_of) / across), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.3 * across, 5), 0.7 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, across, squeeze=False).ravel()
        for panel in panels[len(panels_of) :]:
            panel.set_axis_off()
        legend: dict[str, Line2D] = {}
        for panel, (title, columns, shown) in zip(panels, panels_of, strict=False):
            panel.set_title(title)
            panel.set_xlabel("privacy budget ε")
            panel.set_xticks(range(len(epsilons)), [epsilon_label(e) for e in epsilons])
            panel.set_xlim(-0.5, max(len(epsilons), 1) - 0.5)
            _draw_panel(panel, shown, columns, epsilons, looks, labels, legend)
        for anchor in ANCHORS:
            if (chosen["method"] == anchor).any():
                line = {"color": ANCHOR_COLOR, "ls": ANCHOR_LINES[anchor], "lw": 1.2}
                legend[anchor] = Line2D([], [], label=labels[anchor], **line)
        if legend:
            longest = max(len(handle.get_label()) for handle in legend.values())
            abreast = max(int(figure.get_figwidth() * 12) // (longest + 8), 1)  # what the width of the figure holds
            handles = list(legend.values())
            figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), abreast))
    return figure


def series_of(metrics: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, sampler) of everything that was run, in the order of `metrics`."""
    runs = metrics[~metrics["method"].isin(ANCHORS)]
    return list(dict.fromkeys(zip(runs["method"], runs["sampler"], strict=True)))


def method_looks(metrics: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """By method and sampler: color and marker of the method, dashes of the sampler."""
    methods: dict[str, list[str]] = {}
    for method, sampler in series_of(metrics):
        methods.setdefault(method, []).append(sampler)
    return {
        (method, sampler): series_look(i) | {"ls": DASHES[k % len(DASHES)]}
        for i, (method, samplers) in enumerate(methods.items())
        for k, sampler in enumerate(samplers)
    }


def series_look(i: int) -> dict[str, Any]:
    """Color and marker of series i: no two of the first 49 are alike."""
    return {"color": PALETTE[i % 7], "marker": MARKERS[(i + i // 7) % 7], "ms": 5, "lw": 1.4}


def draw_means(panel: Axes, where: Sequence[float], found: Iterable[Summary], look: Mapping[str, Any]) -> list[float]:
    """Points at `where`, with a bar from FEW seeds on; returns the means that are there."""
    mean, std = np.array([(s.mean, s.std if s.n >= FEW else np.nan) for s in found]).reshape(-1, 2).T
    panel.errorbar(where, mean, np.nan_to_num(std), elinewidth=1, capsize=2.5, **look)
    return mean[np.isfinite(mean)].tolist()


def _draw_panel(
    panel: Axes,
    rows: pd.DataFrame,
    columns: Sequence[MetricColumn],
    epsilons: Sequence[str],
    looks: Mapping[tuple[str, str], Mapping[str, Any]],
    labels: Mapping[str, str],
    legend: dict[str, Line2D],
) -> None:
    """Draws the methods of `rows`, each by those of `columns` that it has, and adds them to the legend."""
    known, several = summaries(rows, "method", "sampler", "epsilon"), methods_of_several_samplers(rows)
    departed = departure_marks(rows, "method")
    drawn: list[float] = []
    low: list[tuple[int, float, str]] = []
    for method, sampler in series_of(rows):
        label = f"{method}, {sampler}" if method in several else method
        label += departed[method]
        legend.setdefault(label, Line2D([], [], label=label, **looks[method, sampler]))
        for column in columns:
            found = [known.get((*column.key, method, sampler, e), Summary()) for e in epsilons]
            if any(value.n for value in found):
                drawn += draw_means(panel, range(len(epsilons)), found, looks[method, sampler])
                color = looks[method, sampler]["color"]
                low += [(x, s.mean, color) for x, s in enumerate(found) if s.mean < WORTH]
    if not drawn:
        return
    column, least = columns[0], -math.inf
    anchors = {a: known[key].mean for a in ANCHORS if (key := (*column.key, a, "", "")) in known}
    limits: dict[str, float] = {}
    if column.sign > 0:  # a floor far below would press all else together
        worth = column.is_accuracy and len(low) < len(drawn) / 4
        if worth:  # points that lie together must not touch the upper edge
            highest = max([*drawn, *anchors.values()])
            limits = {"bottom": WORTH, "top": max(panel.get_ylim()[1], highest + (highest - WORTH) / 20)}
        least = WORTH if worth else min(drawn) - max((max(drawn) - min(drawn)) / 2, FAR)
    elif min(drawn) > 0:
        reach = drawn + [mean for mean in anchors.values() if mean > min(drawn) / LOG_RATIO]
        if max(reach) > LOG_RATIO * min(reach):
            panel.set_yscale("log", nonpositive="clip")
            least = min(reach)  # real against itself is almost 0, which no logarithmic axis can show
            # a deviation as large as its mean would stretch the axis by decades
            limits = {"bottom": least / 2, "top": max(reach) * 2}
    right = len(epsilons) - 0.5
    notes = [(x, f"{mean:.1f}", color) for x, mean, color in low if limits.get("bottom") == WORTH]
    for name, mean in anchors.items():
        if mean < least:
            mean = 0 if abs(mean) < 1e-6 else mean  # as exact as a distance of equal sets is (see fidelity)
            notes.append((right, f"{labels[name]}: {mean:.2g}", ANCHOR_COLOR))
        else:
            panel.axhline(mean, color=ANCHOR_COLOR, ls=ANCHOR_LINES[name], lw=1.2, zorder=1)
    if limits:
        panel.set_ylim(**limits)
    for line, (x, text, color) in enumerate(notes):  # what is below the axis
        offset = {"xytext": (-2 if x == right else 5, 3 + 9 * line), "textcoords": "offset points"}
        look = {"color": color, "ha": "right" if x == right else "left", "fontsize": 7.5}
        panel.annotate(f"↓ {text}", (x, 0), xycoords=("data", "axes fraction"), **offset, **look)


# --- sample grids ---------------------------------------------------------------------------------------------


class SampleSet(NamedTuple):
    """One synthetic set: `method` as printed (with the sampler, if it has several), epsilon, path of its npz."""

    method: str
    epsilon: float
    path: str | Path


def samples(material: Material) -> Figure:
    """`sample_grid` of the material's data set."""
    study, layout, dataset = material.study, material.layout, material.dataset
    sets = [
        SampleSet(
            f"{run.method}, {sampler}" if len(study.samplers_of(run)) > 1 else run.method,
            run.epsilon,
            layout.set(*run.place, sampler, "synthetic.npz"),
        )
        for run, sampler in shown_sets(study, dataset)
    ]
    return sample_grid(dataset, layout.data(dataset, "train.npz"), sets)


def sample_grid(dataset: str, real: str | Path, sets: Sequence[SampleSet]) -> Figure:
    """One page of a dataset: real images on top, then a block per method (down) and epsilon (across).

    A block shows the first images of each class, one class per column (of a single class, the first images over all
    columns): nothing is picked by looks. An image a set lacks stays white.

    Args:
        real: npz with `images` (uint8 [n, C, H, W], C 1 or 3) and `labels` (int64 [n]).
        sets: one per method and epsilon, in the order of the methods.

    Raises:
        UserError: a file is missing or corrupt, or its images are neither gray nor RGB.
    """
    shown = {(s.method, s.epsilon): s.path for s in sets}
    methods, epsilons = dict.fromkeys(s.method for s in sets), sorted({s.epsilon for s in sets})
    labels = artifacts.read_npz(real, ("images", "labels"))["labels"]
    classes = [int(c) for c in np.unique(labels)[:MAX_CLASSES]]
    top = _block(real, classes)
    height, width = (side / UNITS for side in top.shape[:2])
    heading = f"{dataset}: first training images" + " of each class" * (len(classes) > 1)
    across = max(len(epsilons), 1)
    names = 0.3 + 0.09 * max(map(len, ["real", *methods]))  # bold letters are that wide at most
    size = max(names + across * (width + 0.15), 0.09 * len(heading)), 0.7 + (len(methods) + 1) * (height + 0.15)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=size, dpi=UNITS, layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10)
        panels = figure.subplots(len(methods) + 1, across, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
        for method, row in zip(["", *methods], panels, strict=True):
            row[0].set_ylabel(method or "real", rotation=0, ha="right", va="center", weight="bold")
            for k, panel in enumerate(row):
                panel.spines[:].set_visible(False)
                if not method and k == 0:
                    panel.imshow(top, interpolation="nearest")
                elif method and (method, epsilons[k]) in shown:
                    panel.imshow(_block(shown[method, epsilons[k]], classes, top.shape), interpolation="nearest")
                else:
                    panel.patch.set_visible(False)
        for panel, epsilon in zip(panels[1] if methods else (), epsilons, strict=False):
            panel.set_title(f"ε = {epsilon_label(epsilon_text(epsilon))}", loc="center")
    return figure


def _block(path: str | Path, classes: Sequence[int], shape: tuple[int, ...] | None = None) -> np.ndarray:
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
