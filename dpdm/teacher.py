"""A DP teacher: a classifier, trained privately in the same plan, that decides which generated images are drawn again.

The key `teacher` of any generator's params names the classifier and its `share` of the budget; its mechanism joins the
generator's in one plan (`dpdm.privacy.accounting.settled`). The choice of the images is post-processing of the two
models. An image is drawn up to `tries` times; the first draw whose label the teacher predicts is kept, or else the
first draw.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, create_model

from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.params import Count, Share, Strict
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import Impl, Recipe
from dpdm.warm import Door, public_data

PREFIX = "teacher."  # of the names of its mechanisms


class Teacher(Strict):
    """The classifier, its part of the budget, and the maximum number of draws of an image."""

    impl: Impl = Field("baselines.dpsgd_classifier:DPSGDClassifier", description="a classifier, `module:Class`")
    params: Recipe = Field(description="its recipe")
    share: Share = Field(0.3, description="its part of the budget: of mu^2, for one Gaussian release")
    tries: Count = Field(4, description="draws of an image, at most: each costs as much as the first")


@functools.cache
def _with_teacher(params: type[BaseModel]) -> type[BaseModel]:
    """The Params of a generator with one more key."""
    return create_model(
        "Params",
        __base__=params,
        teacher=(Teacher | None, Field(None, description="a classifier that decides which images are drawn again")),
    )


class Taught:
    """A generator, by the contract of dpdm.method, whose Params have the key `teacher`.

    Args:
        method: the generator.
        load: maps `impl` to a classifier.
    """

    def __init__(self, method: Any, load: Callable[[str], Any]):
        self.method, self._load = method, load
        self.Params, self.Model = _with_teacher(method.Params), _Opener(method, load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def plan(self, params: Any, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """The generator's mechanisms, then the teacher's, whose names begin with `teacher.`.

        Raises:
            UserError: the teacher does not fit.
        """
        plan = tuple(self.method.plan(params, meta))
        if params.teacher is None:
            return plan
        try:
            classifier, recipe = self._teacher(params.teacher)
            own = classifier.plan(recipe, meta)
            if len(own) != 1:
                raise UserError(f"{params.teacher.impl} plans {len(own)} mechanisms; take a classifier of one")
        except UserError as error:
            raise UserError("\n".join(f"teacher: {line}" for line in str(error).splitlines())) from error
        return (*plan, replace(own[0], name=PREFIX + own[0].name, share=params.teacher.share))

    def public_data(self, params: Any) -> tuple[str, ...]:
        """The public data that the generator and the teacher learn from."""
        own = public_data(self.method, params)
        return own if params.teacher is None else (*own, *public_data(*self._teacher(params.teacher)))

    def departures(self, params: Any, meta: ImageMeta) -> tuple[str, ...]:
        """The teacher, then the generator's departures."""
        own = getattr(self.method, "departures", lambda *_: ())(params, meta)
        return (*["with a DP teacher"] * (params.teacher is not None), *own)

    def fit(self, private: PrivateData, params: Any, rng: Streams, log: Log) -> Any:
        """Trains the generator, then the teacher."""
        model = self.method.fit(private, params, rng, log)
        if params.teacher is None:
            return model
        classifier, recipe = self._teacher(params.teacher)
        streams = Streams(rng.seed, f"{rng.scope} teacher")
        # Its rows are left out, since train.jsonl belongs to the generator.
        teacher = classifier.fit(Door(private, PREFIX), recipe, streams, log.aside("teacher"))
        return TaughtModel(model, teacher, params.teacher.impl, params.teacher.tries)

    def _teacher(self, teacher: Teacher) -> tuple[Any, Any]:
        classifier = self._load(teacher.impl)
        return classifier, parse_params(classifier.Params, teacher.params, "params")


class TaughtModel:
    """A generator's model and its teacher's."""

    def __init__(self, model: Any, teacher: Any, impl: str, tries: int):
        self.model, self.teacher, self._impl, self._tries = model, teacher, impl, tries

    def to(self, device: Any) -> None:
        """Moves both to `device`."""
        for model in (self.model, self.teacher):
            if hasattr(model, "to"):
                model.to(device)

    def sample(self, labels: np.ndarray, sampler: Any, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i depends on label i and its own streams."""
        images = self.model.sample(labels, sampler, rng)
        wrong = np.flatnonzero(self.teacher.predict(images) != labels)
        for draw in range(1, self._tries):
            if not len(wrong):
                break
            again = self.model.sample(labels[wrong], sampler, rng.of_images(f"draw {draw}", wrong))
            right = self.teacher.predict(again) == labels[wrong]
            images[wrong[right]] = again[right]
            wrong = wrong[~right]
        return images

    def state(self) -> dict[str, Any]:
        """Both states, and the facts needed to restore them."""
        return {
            "generator": self.model.state(), "teacher": self.teacher.state(), "teacher_impl": self._impl,
            "tries": self._tries,
        }  # fmt: skip


class _Opener:
    """Replaces the generator's `Model`, and loads models saved with or without a teacher."""

    def __init__(self, method: Any, load: Callable[[str], Any]):
        self._method, self._load = method, load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method.Model, name)

    def from_state(self, state: dict[str, Any]) -> Any:
        """The model."""
        if "teacher_impl" not in state:
            return self._method.Model.from_state(state)
        teacher = self._load(state["teacher_impl"]).Model.from_state(state["teacher"])
        generator = self._method.Model.from_state(state["generator"])
        return TaughtModel(generator, teacher, state["teacher_impl"], state["tries"])
