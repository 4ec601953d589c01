"""The Python API, for notebooks: open a results folder, look at a run, draw images, train on arrays in memory.

`dpdm.open_results`, `dpdm.train_arrays` and `dpdm.show` are these functions; docs/python.md shows them in use.
"""

import io
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from pydantic import BeforeValidator, Field

from dpdm import jobs
from dpdm.catalog import find_impl
from dpdm.config import Study
from dpdm.data import DELTA_RULE, ImageSet, fix_of_images
from dpdm.errors import UserError
from dpdm.explain import nearest, parse_params
from dpdm.layout import Layout
from dpdm.method import load_method
from dpdm.method import train as train_method
from dpdm.params import Count
from dpdm.privacy import Ledger, epsilons_spent
from dpdm.processes import Processes, device
from dpdm.progress import Log
from dpdm.report import collect
from dpdm.smoothing import parse_sampler
from dpdm.specs import RunSpec
from dpdm.study import find_run, open_study

ARRAYS = "arrays"  # study and data set of a run that was trained on arrays
_int = BeforeValidator(lambda value: int(value) if isinstance(value, np.integer) else value)
_Whole = Annotated[Count, Field(strict=True), _int]


def _array(value: ArrayLike, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} cannot be made one array: {error}") from error


def _plain(value: Any) -> Any:
    """The value with Python's numbers in place of NumPy's."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


class Run:
    """One trained run.

    Args:
        spec: its recipe.
        samplers: the parameters of each sampler, by name; empty for a classifier.
        ledger, model, scores: functions that load them, called when needed.
    """

    def __init__(
        self,
        spec: RunSpec,
        samplers: Mapping[str, Mapping[str, Any]],
        ledger: Callable[[], Ledger],
        model: Callable[[], Any],
        scores: Callable[[], pd.DataFrame] = pd.DataFrame,
    ):
        self.spec, self.samplers, self.scores = spec, dict(samplers), scores
        self._ledger, self._model = ledger, model

    def __repr__(self) -> str:
        return f"Run({self.spec.name!r})"

    @cached_property
    def ledger(self) -> Ledger:
        """What the run released: its `events`, with n, delta and the target epsilon."""
        return self._ledger()

    @cached_property
    def model(self) -> Any:
        """What the run learned, on the GPU if there is one."""
        return jobs.on_device(self._model())

    def epsilon(self) -> dict[str, float]:
        """The epsilon spent by the ledger's events, by accountant: rdp, prv and pld."""
        return epsilons_spent(self.ledger.events, self.ledger.delta)

    def draw(self, labels: ArrayLike, sampler: str | None = None) -> np.ndarray:
        """One image per label (integers [n] in 0..num_classes-1): uint8 [n, C, H, W]. Equal lists give equal images.

        `sampler` defaults to the run's first one. UserError for a classifier, an unknown sampler, or invalid labels.
        """
        if not self.samplers:
            raise UserError(f"{self.spec.name} is a classifier and draws no images; use its model.predict(images)")
        sampler = next(iter(self.samplers)) if sampler is None else sampler
        if sampler not in list(self.samplers):
            raise UserError(f"{self.spec.name} has no sampler {sampler!r}; {nearest(str(sampler), self.samplers)}")
        labels, classes = _array(labels, "labels"), self.ledger.num_classes
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or not np.isin(labels, range(classes)).all():
            raise UserError(
                f"labels must be a list of integers in 0..{classes - 1}, got {labels.dtype} {list(labels.shape)}"
                + (f" from {labels.min()} to {labels.max()}" if labels.size and labels.dtype.kind in "iuf" else "")
            )
        where = f"{self.spec.name}, sampler {sampler}"
        return jobs.draw(self.spec, self.model, sampler, self.samplers[sampler], labels.astype(np.int64), where)

    def show(self, rows: int = 3, sampler: str | None = None) -> Figure:
        """A grid of drawn images, a class per column (at most ten columns); UserError as in `draw`, or without rows."""
        columns, rows = min(self.ledger.num_classes, 10), parse_params(_Whole, rows, "rows")
        return show(self.draw(np.tile(np.arange(columns), rows), sampler), columns)


class Results:
    """A study, the layout of its results folder, and the name by which it was opened."""

    def __init__(self, study: Study, layout: Layout, named: str):
        self.study, self.layout, self._named = study, layout, named

    def __repr__(self) -> str:
        return f"Results({self.layout.root!r})"

    def runs(self) -> pd.DataFrame:
        """One row per run of the study: its name, coordinates (epsilon as a number), and whether it is trained."""
        return pd.DataFrame([
            {
                "run": run.name, "dataset": run.dataset, "method": run.method, "epsilon": run.epsilon, "seed": run.seed,
                "trained": Path(self.layout.run(*run.place, "ledger.json")).exists(),
            }
            for run in self.study.runs()
        ])  # fmt: skip

    def run(self, name: str) -> Run:
        """The run DATASET/METHOD/EPSILON/SEED; if the study has no such run, a UserError names the nearest."""
        spec = find_run(self.study, str(name))
        model = self.layout.run(*spec.place, "model.pt")

        def read_ledger() -> Ledger:
            return jobs.trained(self.layout, spec, self._named)

        def scores() -> pd.DataFrame:
            place = dict(zip(("dataset", "method", "epsilon", "seed"), (*spec.place[:3], spec.seed), strict=True))
            scores = self.scores()
            return scores[(scores[list(place)] == pd.Series(place)).all(axis=1)].reset_index(drop=True)

        samplers = {n: self.study.sample(spec, n).sampler_params for n in self.study.methods[spec.method].samplers}
        return Run(spec, samplers, read_ledger, lambda: jobs.restored(load_method(spec.impl), model, spec.impl), scores)

    def scores(self) -> pd.DataFrame:
        """Every score in the folder, one per row: the columns of metrics.csv.

        UserError if the folder holds scores that one table must not mix (see `dpdm.report.collect.collect`).
        """
        return collect.collect(self.study, self.layout.result_folders(attacks=False))[0]


def open_results(path: str | Path) -> Results:
    """Opens the results of a study, given its folder or study file (YAML); UserError if the folder holds no study."""
    if not isinstance(path, str | Path):
        raise UserError(f"open_results: name a folder or a study file, got {path!r}")
    return Results(*open_study(path), str(path))


def train_arrays(
    images: ArrayLike,
    labels: ArrayLike,
    *,
    method: str,
    num_classes: int,
    epsilon: float,
    params: Mapping[str, Any] | None = None,
    delta: float | str = DELTA_RULE,
    sampler: Mapping[str, Any] | None = None,
    seed: int = 0,
    accountant: str = "rdp",
    noise: str = "repeatable",
) -> Run:
    """Trains one run on arrays in memory; nothing is written.

    Args:
        images: uint8 [n, C, H, W], or [n, H, W] of gray images.
        labels: integers [n] in 0..num_classes-1.
        method: a name that `dpdm list methods` shows, or module:Class.
        num_classes: public, hence never counted from the labels.
        epsilon: the budget; `math.inf` trains without noise.
        params: the method's parameters, as under `params:` in a study.
        delta: a number below 1/n, or the rule 1/(2n).
        sampler: parameters of the one sampler, as under `samplers:` in a study.
        noise: "repeatable" follows from the seed; real private data need "secret".

    Raises:
        UserError: an array has a wrong type or shape, or a study would not accept an argument.
    """
    images, labels = _array(images, "images"), _array(labels, "labels")
    images = images[:, None] if images.ndim == 3 else images
    if fix := fix_of_images(images):
        raise UserError(fix)
    labels = labels.astype(np.int64) if labels.dtype.kind in "iu" else labels
    num_classes = parse_params(_Whole, num_classes, "train_arrays: num_classes")
    if not isinstance(method, str):
        raise UserError(f"train_arrays: method must be text, got {method!r}")
    data, impl = ImageSet(images, labels, num_classes, "the arrays"), find_impl(method)
    recipe = _plain(dict(params) if isinstance(params, Mapping) else {} if params is None else params)
    spec = parse_params(
        RunSpec,
        {
            "study": ARRAYS, "dataset": ARRAYS, "method": method.partition(":")[2].lower() or method, "impl": impl,
            "params": recipe, "epsilon": epsilon, "delta": delta, "allow_large_delta": False,
            "accountant": accountant, "noise": noise, "seed": _plain(seed),
        },
        "train_arrays",
    )  # fmt: skip
    samplers = {}
    if hasattr(found := load_method(impl), "SamplerParams"):
        parse_sampler(found, drawn := _plain({} if sampler is None else sampler), "train_arrays: sampler")
        samplers = {"default": dict(drawn)}
    model, ledger = train_method(spec, data, Log(f"train {method}"), Processes(device=device()))
    return Run(spec, samplers, lambda: ledger, lambda: model)


class _Grid(Figure):
    """A figure that a notebook shows, whichever backend matplotlib has."""

    def _repr_png_(self) -> bytes:
        self.savefig(buffer := io.BytesIO(), format="png")
        return buffer.getvalue()


def show(images: np.ndarray, columns: int = 10) -> Figure:
    """A grid of images (uint8 [n, 1 or 3, H, W]), row by row, `columns` in a row; UserError for other arguments."""
    images, columns = _array(images, "images"), parse_params(_Whole, columns, "columns")
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[1] not in (1, 3) or not len(images):
        raise UserError(f"a grid needs uint8 images [n, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
    count, _, height, width = images.shape
    rows, gap = math.ceil(count / columns), 1
    page = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        page[y : y + height, x : x + width] = image.transpose(1, 2, 0)  # gray broadcasts to RGB
    figure = _Grid(figsize=(0.5 * columns, 0.5 * columns * page.shape[0] / page.shape[1]), dpi=150)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(page, interpolation="nearest")
    axes.set_axis_off()
    return figure
