"""Tries a study before it starts: does a method start and keep records apart, are the judges of images sound?"""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from dpdm.config import Study
from dpdm.data import ImageMeta, ImageSet
from dpdm.errors import UserError
from dpdm.evaluation import registry
from dpdm.method import prepare_run
from dpdm.privacy import Budget, DpSgd, Ledger, Mechanism, PrivateData, Randomness
from dpdm.privacy.block import BlockGradients
from dpdm.privacy.loop import PrivateLoop
from dpdm.progress import Item, Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

Loop = TypeVar("Loop", bound=PrivateLoop)

IMAGES = 8  # random images that replace the records


class _Done(BaseException):
    """Ends a rehearsal after all its tests."""


class _Rehearsal(PrivateData):
    """A door to random images. It has the plan and public facts of a run, and every loop has one step.

    Args:
        whole: let `fit` come to its end. Otherwise the last mechanism ends it, before a step is taken.
    """

    def __init__(self, meta: ImageMeta, plan: tuple[Mechanism, ...], whole: bool):
        rng = np.random.default_rng(0)
        pixels = rng.integers(0, 256, (IMAGES, *meta.shape), np.uint8)
        labels = np.arange(IMAGES) % meta.num_classes
        images = ImageSet(pixels, labels, meta.num_classes, "random images")
        ledger = Ledger(meta.n, 0.5, math.inf, "rdp")
        super().__init__(images, plan, Budget(math.inf, 0.5), "rdp", Randomness.repeatable(0), ledger)
        self.meta, self._whole, self._left = meta, whole, len(plan)

    def dpsgd(self, *args: Any, **kwargs: Any) -> DpSgd:
        return self._of_one_step(super().dpsgd(*args, **kwargs))

    def block_gradients(self, *args: Any, **kwargs: Any) -> BlockGradients:
        return self._of_one_step(super().block_gradients(*args, **kwargs))

    def public_steps(self, *args: Any) -> Iterator[int]:
        return itertools.islice(super().public_steps(*args), 1)

    def _release(self, *args: Any) -> torch.Tensor:
        released = super()._release(*args)
        self._did_one()
        return released

    def _of_one_step(self, loop: Loop) -> Loop:
        def release(*asked: Any) -> Any:
            """What a step does once its loss has passed the swap test."""
            loop._steps = 1
            self._did_one()
            return torch.zeros_like(asked[0]) if isinstance(loop, BlockGradients) else None

        loop._release = release
        return loop

    def _did_one(self) -> None:
        self._left -= 1
        if not self._left and not self._whole:
            raise _Done


class _Brief(Log):
    """Ends the loops that need no records (of a generator, of a pretraining) after their first item."""

    def track(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        for item in items:
            yield item
            if not isinstance(items, PrivateLoop):
                return


def rehearse(spec: RunSpec, meta: ImageMeta) -> None:
    """Starts a run on random images; UserError if its loss or a layer mixes records, a statistic or `fit` fails.

    With a warm start every stage has one step.
    """
    where = f"methods.{spec.method} on {spec.dataset}"
    method, params, plan, _ = prepare_run(spec, meta)
    try:
        door = _Rehearsal(meta, plan, whole=bool(getattr(params, "init_from", ())))
        method.fit(door, params, Streams(0, "method"), _Brief(quiet=True))
    except _Done:
        pass
    except UserError as error:
        raise UserError(f"{where}, tried on random images: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a method's code raises
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}, tried on random images: {type(error).__name__}: {reason}") from error


def rehearse_study(study: Study) -> list[str]:
    """Rehearses every method of a study once per choice of text values and flags, on its smallest images.

    Returns the names of the methods. A UserError lists all failures, one per line. The judges of images come first (see
    `check_judges`).
    """
    check_judges(study)
    chosen: dict[str, tuple[RunSpec, ImageMeta]] = {}
    metas = {name: dataset.meta() for name, dataset in study.datasets.items()}
    for spec in study.runs():
        meta = metas[spec.dataset]
        key = f"{spec.impl} {words(spec.params)}"
        if key not in chosen or math.prod(meta.shape) < math.prod(chosen[key][1].shape):
            chosen[key] = spec, meta
    problems = []
    for spec, meta in Log("trying the methods on random images").track(chosen.values(), len(chosen)):
        try:
            rehearse(spec, meta)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return list(dict.fromkeys(spec.method for spec, _ in chosen.values()))


def check_judges(study: Study) -> None:
    """Loads the metrics and extractors of a study, and tries its classifiers on blank images; UserError for a fault."""
    from dpdm.evaluation import classifiers, fidelity

    fidelity.metrics()
    for name in study.evaluation.extractors:
        known = registry.EXTRACTORS if name in registry.EXTRACTORS else registry.PUBLIC_EXTRACTORS
        registry.part(known, name, "extractor").function()
    for dataset in dict.fromkeys(run.dataset for run in study.runs()):
        meta = study.datasets[dataset].meta()
        for name in study.evaluation.classifiers if meta.num_classes > 1 else ():
            part = registry.part(registry.PROTOCOLS[study.evaluation.protocol], name, "classifier")
            with torch.random.fork_rng(devices=[]):  # the weights draw numbers
                classifiers.untrained(part, meta.shape, meta.num_classes)


def words(recipe: Any) -> list[str]:
    """The choices of a recipe by name or by a flag: a network, a kind of parametrization."""
    if isinstance(recipe, dict):
        return [word for _, value in sorted(recipe.items()) for word in words(value)]
    if isinstance(recipe, list | tuple):
        return [word for value in recipe for word in words(value)]
    return [str(recipe)] if isinstance(recipe, str | bool | None) else []
