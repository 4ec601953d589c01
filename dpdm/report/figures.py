"""Figures: metrics against epsilon, samples, a varied parameter; equal inputs give equal bytes."""

import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT
from dpdm.errors import UserError
from dpdm.report import tables
from dpdm.report.registry import Material
from dpdm.report.selection import shown_sets, sweeps
from dpdm.report.tables import FEW, MetricColumn, Summary, epsilon_label, score_columns
from dpdm.specs import epsilon_text

# Okabe and Ito's palette, which color-blind readers can distinguish, without its yellow, too pale for lines on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":", "-.")  # they distinguish lines without markers in gray print
STYLE = {
    "font.family": "DejaVu Sans",  # ships with matplotlib, so all machines draw the same
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
# For each color of a light page, the color of a dark page, which an SVG uses if its reader prefers dark pages.
DARK = {
    "#000000": "#ffffff", "#333333": "#d5d6d8", "#555555": "#b5b8bd", "#666666": "#85888e", "#e3e3e3": "#33373d",
    "#0072b2": "#4ba3d9",
}  # fmt: skip
LEGEND_LINES = 5  # every figure has room for this many
ANCHOR_LOOKS = {name: {"color": "#555555", "ls": ls, "lw": 1.2} for name, ls in (("real", "--"), ("label_only", ":"))}
LOG_RATIO = 20  # a panel with a larger ratio of values has a logarithmic axis
WORTH = 50  # percent: an accuracy axis begins here if more than three quarters of its points are above
FAR = 20  # percent: an anchor this far below the lowest point, and half of the points' range, is not drawn

# Sample grids are laid out in points of 1/100 inch and saved at twice that, so that pixels stay whole.
UNITS, DPI = 100, 200
ROWS_PER_BLOCK = 3
MAX_CLASSES = 10
CELL = 30  # an image is enlarged by an integer factor to about this size


def save_figure(figure: Figure, stem: str | Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Writes `stem` + a suffix per format, atomically and without dates; returns the paths.

    An SVG has a transparent background, and DARK colors if its reader prefers a dark page.
    """
    rules = " ".join(
        f'[style*="{part}: {light}"] {{ {part}: {dark} !important }}'
        for light, dark in DARK.items()
        for part in ("fill", "stroke")
    )
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    paths = []
    for suffix in formats:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format=suffix, dpi=DPI, metadata=undated[suffix], transparent=suffix == "svg")
        content = buffer.getvalue()
        if suffix == "svg":
            style = f"@media (prefers-color-scheme: dark) {{ {rules} }}</style>"
            content = content.replace(b"</style>", style.encode(), 1)
        paths.append(Path(stem).with_name(f"{Path(stem).name}.{suffix}"))
        artifacts.write_bytes(paths[-1], content)
    return paths


def _legend(figure: Figure, looks: Mapping[str, Mapping[str, Any]]) -> None:
    """A legend below all panels: looks by label, at most four in a row, fewer if labels are long.

    The figure grows with a legend of more than LEGEND_LINES.
    """
    handles = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    for columns in range(min(len(handles), 4), 0, -1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, handlelength=3.5)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            lines = math.ceil(len(handles) / columns)
            figure.set_figheight(figure.get_figheight() + 0.19 * max(lines - LEGEND_LINES, 0))
            break
        legend.remove()


def _log_axis(panel: Axes, values: Sequence[float]) -> bool:
    """Makes the vertical axis logarithmic if the values are above 0 and span much; returns whether it did."""
    if not values or min(values) <= 0 or max(values) <= LOG_RATIO * min(values):
        return False
    panel.set_yscale("log", nonpositive="clip")
    panel.set_ylim(min(values) / 2, max(values) * 2)  # a deviation as large as its mean would stretch it by decades
    return True


# --- metrics against epsilon ----------------------------------------------------------------------------------


def curves(material: Material) -> Figure:
    """One figure of a dataset: the distance (FID to the training images, else FD) and each accuracy against epsilon.

    Points are means over seeds and bars sample standard deviations; epsilon is categorical in rising order, ∞ last. If
    a method draws several sets, each panel shows the best one; a study of a single method has a line for each set. The
    dashed line shows the real images, the dotted line the label-only floor. Classifiers trained on the private images
    have the last panel. Looks follow from all metrics, so that all datasets of a study have the same looks.
    """
    metrics = material.metrics
    chosen = metrics[metrics["dataset"] == material.dataset]
    looks, labels = method_looks(metrics), tables.ANCHOR_LABELS | tables.method_labels(chosen)
    direct = chosen["protocol"] == DIRECT
    generated, trained = chosen[~direct], chosen[direct]
    panels_of = [(column.header, [column], generated) for column in score_columns(generated)]
    if len(trained):
        title = "accuracy % ↑ of classifiers trained on the private images"
        panels_of.append((title, score_columns(trained), trained))
    epsilons = sorted({e for e in chosen["epsilon"] if e}, key=float)
    across = min(max(len(panels_of), 1), 4 if len(panels_of) == 4 else 3)
    rows = max(math.ceil(len(panels_of) / across), 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.3 * across, 5), 0.7 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, across, squeeze=False).ravel()
        for panel in panels[len(panels_of) :]:
            panel.set_axis_off()
        legend: dict[str, Mapping[str, Any]] = {}
        for panel, (title, columns, shown) in zip(panels, panels_of, strict=False):
            panel.set_title(title)
            panel.set_xlabel("privacy budget ε")
            panel.set_xticks(range(len(epsilons)), [epsilon_label(e) for e in epsilons])
            panel.set_xlim(-0.5, max(len(epsilons), 1) - 0.5)
            legend |= _draw_panel(panel, shown, columns, epsilons, looks, labels)
        legend |= {labels[a]: ANCHOR_LOOKS[a] for a in ANCHORS if (chosen["method"] == a).any()}
        _legend(figure, legend)
    return figure


def series_of(metrics: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, sampler) of all runs, in the order of `metrics`."""
    runs = metrics[~metrics["method"].isin(ANCHORS)]
    return list(dict.fromkeys(zip(runs["method"], runs["sampler"], strict=True)))


def set_names(sets: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A printed name by method and sampler: the method, and its sampler if it has several."""
    sets = list(dict.fromkeys(sets))
    samplers = Counter(method for method, _ in sets)
    return {(method, sampler): f"{method}, {sampler}" if samplers[method] > 1 else method for method, sampler in sets}


def method_looks(metrics: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """By method and sampler: color and marker of the method, dashes of the sampler; of a single method all three."""
    sets = pd.DataFrame(series_of(metrics), columns=["method", "sampler"])
    dashes = sets.groupby("method").cumcount()
    colors = sets.groupby("method", sort=False).ngroup() if sets["method"].nunique() > 1 else dashes
    return {tuple(one): series_look(i, k) for one, i, k in zip(sets.to_numpy(), colors, dashes, strict=True)}


def series_look(i: int, dashes: int = 0) -> dict[str, Any]:
    """Color and marker of series i: no two of the first 49 are alike."""
    marker = MARKERS[(i + i // 7) % 7]
    return {"color": PALETTE[i % 7], "marker": marker, "ms": 5, "lw": 1.4, "ls": DASHES[dashes % 4]}


def draw_means(panel: Axes, where: Sequence[float], found: Iterable[Summary], look: Mapping[str, Any]) -> list[float]:
    """Points at `where`, with a bar from FEW seeds on; returns the drawn means."""
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
) -> dict[str, Mapping[str, Any]]:
    """Draws the methods of `rows`, each by its present `columns`; returns their looks by label."""
    known, names = tables.summaries(rows, "method", "sampler", "epsilon"), set_names(series_of(rows))
    departed, public, legend = tables.departure_marks(rows, "method"), tables.public_marks(rows), {}
    lines = {name: [one] for one, name in names.items()}
    if len({method for method, _ in looks}) > 1:  # a line per method
        lines = {method: [one for one in names if one[0] == method] for method, _ in names}
    drawn: list[float] = []
    low: list[tuple[float, str, str]] = []
    ends: list[float] = []  # of the bars
    for name, sets in lines.items():
        method, look = sets[0][0], looks[sets[0]]
        legend[name + " (public data)" * (method in public) + departed[method]] = look
        for column in columns:
            found = [column.best(known[*column.key, *one, epsilon] for one in sets) for epsilon in epsilons]
            if any(summary.n for summary in found):
                for one in sets:  # a line joins means of one sampler
                    of_set = [known[*column.key, *one, epsilon] for epsilon in epsilons]
                    best = [own if own is first else Summary() for own, first in zip(of_set, found, strict=True)]
                    if any(summary.n for summary in best):
                        drawn += draw_means(panel, range(len(epsilons)), best, look)
                low += [(x, f"{s.mean:.1f}", look["color"]) for x, s in enumerate(found) if s.mean < WORTH]
                ends += [s.mean - s.std for s in found if s.n >= FEW and s.mean >= WORTH]
    if not drawn:
        return legend
    column, least, notes = columns[0], -math.inf, []
    anchors = {a: known[key].mean for a in ANCHORS if (key := (*column.key, a, "", "")) in known}
    if column.sign < 0:
        reach = drawn + [mean for mean in anchors.values() if mean > min(drawn) / LOG_RATIO]
        if _log_axis(panel, reach):
            least = min(reach)  # real against itself is almost 0, below any logarithmic axis
    elif column.is_accuracy and len(low) < len(drawn) / 4:
        least, notes, highest = WORTH, low, max([*drawn, *anchors.values()])
        # close points must not touch the upper edge
        panel.set_ylim(
            min([WORTH, *(end - 1 for end in ends if end < WORTH)]),
            max(panel.get_ylim()[1], highest + (highest - WORTH) / 20),
        )
    else:  # a floor far below would compress the rest
        least = min(drawn) - max((max(drawn) - min(drawn)) / 2, FAR)
    right = len(epsilons) - 0.5
    for name, mean in anchors.items():
        if mean < least:
            mean = 0 if abs(mean) < 1e-6 else mean  # as exact as a distance of equal sets is (see fidelity)
            notes.append((right, f"{labels[name]}: {mean:.2g}", ANCHOR_LOOKS[name]["color"]))
        else:
            panel.axhline(mean, **ANCHOR_LOOKS[name], zorder=1)
    for line, (x, text, color) in enumerate(notes):  # the anchors below the axis
        offset = {"xytext": (-2 if x == right else 5, 3 + 9 * line), "textcoords": "offset points"}
        look = {"color": color, "ha": "right" if x == right else "left", "fontsize": 7.5}
        panel.annotate(f"↓ {text}", (x, 0), xycoords=("data", "axes fraction"), **offset, **look)
    return legend


# --- sample grids ---------------------------------------------------------------------------------------------


def samples(material: Material) -> Figure:
    """`sample_grid` of the material's data set; a method with several samplers names them."""
    layout, dataset = material.layout, material.dataset
    shown = shown_sets(material.study, dataset)
    names = set_names((run.method, sampler) for run, sampler in shown)
    sets = {
        (names[run.method, sampler], run.epsilon): layout.set(*run.place, sampler, "synthetic.npz")
        for run, sampler in shown
    }
    return sample_grid(dataset, layout.data(dataset, "train.npz"), sets)


def sample_grid(dataset: str, real: str | Path, sets: Mapping[tuple[str, float], str | Path]) -> Figure:
    """One page of a dataset: real images on top, then a block per method (down) and epsilon (across).

    A block shows the first images of each class, one class per column (of a single class, the first images over all
    columns), so nothing is picked by looks. A missing image stays white.

    Args:
        real: npz with `images` (uint8 [n, C, H, W], C 1 or 3) and `labels` (int64 [n]).
        sets: the same for synthetic images, by printed method and epsilon, in the order of the methods.

    Raises:
        UserError: a file is missing or corrupt, or its images are neither gray nor RGB.
    """
    epsilons = sorted({epsilon for _, epsilon in sets}) or [math.inf]
    classes = np.unique(artifacts.read_npz(real, ("images", "labels"))["labels"])[:MAX_CLASSES]
    top = ("real", epsilons[0])
    paths = {top: real, **sets}
    blocks = {place: _block(path, classes) for place, path in paths.items()}
    for place, block in blocks.items():
        if block.shape != blocks[top].shape:
            raise UserError(
                f"{paths[place]} holds images of another size than the real ones; delete it and run snakemake again"
            )
    methods = list(dict.fromkeys(method for method, _ in blocks))
    height, width = (side / UNITS for side in blocks[top].shape[:2])
    of_each = " of each class" * (len(classes) > 1)
    heading = f"{dataset}: first images{of_each}; those of the row real are private training images"
    names = 0.3 + 0.09 * max(map(len, methods))  # maximum width of bold letters
    size = max(names + len(epsilons) * (width + 0.15), 0.09 * len(heading)), 0.7 + len(methods) * (height + 0.15)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=size, dpi=UNITS, layout="constrained")
        figure.suptitle(heading, x=0.01, ha="left", fontsize=10)
        shape = len(methods), len(epsilons)
        panels = figure.subplots(*shape, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
        for (i, k), panel in np.ndenumerate(panels):
            panel.spines[:].set_visible(False)
            if k == 0:
                panel.set_ylabel(methods[i], rotation=0, ha="right", va="center", weight="bold")
            if i == 1:
                panel.set_title(f"ε = {epsilon_label(epsilon_text(epsilons[k]))}", loc="center")
            if (methods[i], epsilons[k]) in blocks:
                panel.imshow(blocks[methods[i], epsilons[k]], interpolation="nearest")
            else:
                panel.patch.set_visible(False)
    return figure


def _block(path: str | Path, classes: Sequence[int]) -> np.ndarray:
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
    cells = np.full((ROWS_PER_BLOCK, h * scale + gap, len(columns), w * scale + gap, 3), 255, np.uint8)
    for across, column in enumerate(columns):
        pixels = column.transpose(0, 2, 3, 1).repeat(scale, 1).repeat(scale, 2)  # gray broadcasts to RGB
        cells[: len(column), : h * scale, across, : w * scale] = pixels
    return cells.reshape(ROWS_PER_BLOCK * (h * scale + gap), -1, 3)[:-gap, :-gap]


# --- a parameter ----------------------------------------------------------------------------------------------


def parameter_figure(material: Material) -> Figure:
    """Scores against each parameter that the study varies: a row per parameter and dataset, a panel per metric.

    Points are means over seeds, bars sample standard deviations, lines epsilons (and samplers or methods, if several).
    """
    study, metrics = material.study, material.metrics
    varied = [(i, s.key, *one, value) for i, s in enumerate(sweeps(study)) for one, value in s.values.items()]
    names = ["number", "key", "dataset", "epsilon", "line", "method", "sampler", "value"]
    rows = list(pd.DataFrame(varied, columns=names).groupby(names[:3], sort=False))
    columns = {dataset: score_columns(metrics[metrics["dataset"] == dataset]) for (*_, dataset), _ in rows}
    several = any(points["line"].nunique() > 1 for _, points in rows)  # then every line says which it is
    known = tables.summaries(metrics, "dataset", "method", "sampler", "epsilon")
    across = max([1, *map(len, columns.values())])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(2.4 * across, 5.0), 0.8 + 2.4 * len(rows)), layout="constrained")
        panels = figure.subplots(len(rows), across, squeeze=False)
        looks: dict[str, dict[str, Any]] = {}  # the same in every row
        for ((_, key, dataset), points), row in zip(rows, panels, strict=True):
            lines = points.sort_values("epsilon", kind="stable").groupby(["epsilon", "line"], sort=False)
            for panel in row[len(columns[dataset]) :]:
                panel.set_axis_off()
            for panel, column in zip(row, columns[dataset], strict=False):
                drawn: list[float] = []
                for (epsilon, name), line in lines:
                    line, text = line.sort_values("value", kind="stable"), epsilon_text(epsilon)
                    sets = zip(line["method"], line["sampler"], strict=True)
                    found = [known[*column.key, dataset, *one, text] for one in sets]
                    label = f"ε = {epsilon_label(text)}" + (f", {name}" if several else "")
                    look = looks.setdefault(label, series_look(len(looks), len(looks)))
                    drawn += draw_means(panel, line["value"], found, look)
                _scale(panel, key, sorted(points["value"].unique()), drawn, column)
                panel.set_title(column.header if len(study.datasets) == 1 else f"{dataset}: {column.header}")
        _legend(figure, looks)
    return figure


def _scale(panel: Axes, key: str, ticks: Sequence[float], drawn: Sequence[float], column: MetricColumn) -> None:
    panel.set_xlabel(key.replace("_", " "))
    if ticks[0] > 0 and ticks[-1] >= 8 * ticks[0]:
        panel.set_xscale("log")
        panel.xaxis.set_minor_locator(NullLocator())
    if len(ticks) <= 8:
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45 if len(ticks) > 3 else 0)
    if column.sign < 0:
        _log_axis(panel, drawn)
