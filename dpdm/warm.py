"""Warm starts: any method with DP-SGD first trains on images that cost no further privacy (`init_from`).

The images of a stage come from a generator of one-shot releases, which has a share of the budget in the same plan, or
from a public data set. The method trains on these images with ordinary gradients. This is post-processing, so its
length costs no privacy. Then DP-SGD continues from these networks. There can be several stages, one after another.

Each stage has `share` of the budget mu^2 of one Gaussian release (`dpdm.privacy.accounting.settled`), for any shares
that its generator declares inside. Sources: DP-FETA (IEEE S&P 2025) and FETA-Pro (USENIX Security 2026), by their
formulas.
"""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, Field, create_model, model_validator
from torch import Tensor, nn

from dpdm.config import merge
from dpdm.data import ImageMeta, ImageSet, balanced_labels, to_network
from dpdm.errors import UserError
from dpdm.explain import nearest, parse_params
from dpdm.params import Count, Share, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData, PublicRows
from dpdm.privacy.dpsgd import RowLosses
from dpdm.privacy.loop import Stateful
from dpdm.progress import Log
from dpdm.rng import Streams, default_generator
from dpdm.smoothing import parse_sampler
from dpdm.sources import SOURCES, Source
from dpdm.specs import Impl, Name, Recipe


class Stage(Strict):
    """The source of a stage's images, `impl` or `public`, and how the method trains on them."""

    impl: Impl | None = Field(None, description="a generator of one-shot releases, `module:Class`")
    params: Recipe = Field({}, description="its recipe")
    sampler: Recipe = Field({}, description="how its images are drawn")
    share: Share = Field(0.1, description="its part of the budget: of mu^2, for one Gaussian release")
    images: Count = Field(10_000, description="images that are drawn from it, balanced over the classes")
    public: Name | Recipe | None = Field(
        None, description="instead of `impl`: a public data set, by its source, or a mapping with the source's keys"
    )
    training: Recipe = Field({}, description="laid over the method's own params in this stage: dp.steps, lr, ...")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.impl is None) == (self.public is None):
            raise ValueError("give either impl, a generator of one-shot releases, or public, a data set")
        if self.public is not None:
            self.source()
            if unused := sorted(self.model_fields_set & {"params", "sampler", "share", "images"}):
                raise ValueError(f"{', '.join(unused)} belong to impl, and public has none; delete them")
        return self

    def source(self) -> Source:
        """The public data set; ValueError if there is no such source, or its keys are wrong."""
        keys = {"source": self.public} if isinstance(self.public, str) else self.public
        if (name := keys.get("source")) not in SOURCES:
            raise ValueError(f"public: {name!r} is no data set; {nearest(str(name), SOURCES)}")
        try:
            return parse_params(SOURCES[name], keys, f"public ({name})")
        except UserError as error:
            raise ValueError(str(error)) from error


@functools.cache
def _with_stages(params: type[BaseModel]) -> type[BaseModel]:
    """The Params of a method with the two keys of a warm start."""
    return create_model(
        "Params",
        __base__=params,
        init_from=(
            Annotated[tuple[Stage, ...], Field(strict=False)],
            Field((), description="stages of training on released or public images before DP-SGD"),
        ),
        init_only=(bool, Field(False, description="stop before DP-SGD: the same releases at the same noise")),
    )


class WarmStarted:
    """A method with DP-SGD, by the contract of dpdm.method, whose Params have two more keys.

    Args:
        method: has a key `dp` of DpSgdParams, and passes everything that its training changes to `private.dpsgd`.
        load: maps `impl` to a generator.
    """

    def __init__(self, method: Any, load: Callable[[str], Any]):
        self.method, self._load = method, load
        self.Params = _with_stages(method.Params)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    @staticmethod
    def fits(method: Any) -> bool:
        """Whether a method has DP-SGD."""
        fields = getattr(method.Params, "model_fields", {})
        return "dp" in fields and fields["dp"].annotation is DpSgdParams

    def plan(self, params: Any, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """The releases of the stages, named `init_0.NAME`, `init_1.NAME`, ..., then the method's own mechanisms.

        Raises:
            UserError: a stage's generator or data set does not fit.
        """
        own, plan = tuple(self.method.plan(params, meta)), []
        for i, stage in enumerate(params.init_from):
            try:
                self._check_training(params, stage, own, meta)
                plan += [replace(m, name=f"init_{i}.{m.name}") for m in self._releases(stage, meta)]
            except UserError as error:
                raise UserError("\n".join(f"init_from.{i}: {line}" for line in str(error).splitlines())) from error
        plan += own
        if params.init_only and all(mechanism.mechanism != "gaussian" for mechanism in plan):
            raise UserError("init_only is true, but nothing is released before DP-SGD; give init_from, or delete it")
        return tuple(plan)

    def public_data(self, params: Any) -> tuple[str, ...]:
        """The public data that its stages, their generators and the method itself learn from."""
        stages = params.init_from
        parts = [(stage.source().source,) if stage.public else self._public_data(stage) for stage in stages]
        return tuple(itertools.chain(*parts, public_data(self.method, params)))

    def _public_data(self, stage: Stage) -> tuple[str, ...]:
        method = self._load(stage.impl)
        return public_data(method, parse_params(method.Params, stage.params, "params"))

    def departures(self, params: Any, meta: ImageMeta) -> tuple[str, ...]:
        """The warm start, then the method's own departures, unless DP-SGD is left out."""
        if params.init_only:
            return ("warm start only",)
        own = getattr(self.method, "departures", lambda *_: ())(params, meta)
        return (*["warm start"] * bool(params.init_from), *own)

    def _releases(self, stage: Stage, meta: ImageMeta) -> list[Mechanism]:
        if stage.public is not None:
            source = stage.source()
            public = source.meta()
            if public.shape != meta.shape or public.num_classes > meta.num_classes:
                raise UserError(
                    f"{source.source} has {public.num_classes} classes of {public.shape}, the private images have "
                    f"{meta.num_classes} of {meta.shape}; choose another public data set"
                )
            return []
        method = self._load(stage.impl)
        parse_sampler(method, stage.sampler, "sampler")
        plan = method.plan(parse_params(method.Params, stage.params, "params"), meta)
        if steps := [mechanism.name for mechanism in plan if mechanism.mechanism != "gaussian"]:
            raise UserError(
                f"{stage.impl} takes private steps ({', '.join(steps)}); choose a generator of one-shot releases "
                "without a teacher, such as baselines.class_mean:ClassMean or baselines.dp_merf:DPMERF"
            )
        whole = sum(mechanism.noise_ratio**-2 for mechanism in plan)
        return [replace(m, noise_ratio=m.noise_ratio * (whole / stage.share) ** 0.5) for m in plan]

    def _trained_by(self, params: Any, stage: Stage) -> Any:
        """The method's params in a stage, which trains the whole network unless `stage.training` says otherwise."""
        keys = set(self.method.Params.model_fields) - {"train_only"}
        own = params.model_dump(mode="json", exclude_unset=True, include=keys)
        return parse_params(self.method.Params, merge(own, stage.training), "training")

    def _check_training(self, params: Any, stage: Stage, own: tuple[Mechanism, ...], meta: ImageMeta) -> None:
        """Refuses (UserError) a stage that the method cannot train in, or that changes what the method releases."""
        if fixed := sorted(set(stage.training) & set(getattr(self.method, "fixed_in_stages", ()))):
            raise UserError(f"training changes {', '.join(fixed)}, on which the releases depend; delete it there")
        trained = self._trained_by(params, stage)
        # The images of the stage are others than the records, so that its batch may be larger than n.
        seen = replace(meta, n=max(meta.n, trained.dp.expected_batch_size))
        released, expected = (
            [m for m in p if m.mechanism == "gaussian"] for p in (self.method.plan(trained, seen), own)
        )
        if released != expected:
            raise UserError("training changes the releases of the method; delete those keys there")

    def fit(self, private: PrivateData, params: Any, rng: Streams, log: Log) -> Any:
        """Trains on the images of every stage, one after another, then by DP-SGD."""
        if not (params.init_from or params.init_only):
            return self.method.fit(private, params, rng, log)
        released: dict[str, Tensor] = {}
        reached: list[nn.Module] = []
        for i, stage in enumerate(params.init_from):
            streams = Streams(rng.seed, f"init_{i}")
            aside = log.aside(f"warm start {i + 1} of {len(params.init_from)}")  # train.jsonl is of DP-SGD
            draw = self._images(Door(private, f"init_{i}."), stage, streams, aside)
            door = _OpenDoor(private, f"init_{i}.training.", released, reached, draw, streams)
            # With the streams of the last fit, so that both fits request the same releases of the method.
            self.method.fit(door, self._trained_by(params, stage), rng, aside)
            reached = door.reached
        return self.method.fit(_LastDoor(private, released, reached, params.init_only), params, rng, log)

    def _images(self, door: "Door", stage: Stage, rng: Streams, log: Log) -> Callable[[], ImageSet]:
        """Requests the releases of a stage now, and draws its images at their first use."""
        if stage.public is not None:
            return functools.cache(lambda: stage.source().load()["train"])
        method, classes = self._load(stage.impl), door.meta.num_classes
        params = parse_params(method.Params, stage.params, "params")
        sampler = parse_sampler(method, stage.sampler, "sampler")
        model = method.fit(door, params, Streams(rng.seed, f"{rng.scope} generator"), log)

        @functools.cache
        def draw() -> ImageSet:
            labels = balanced_labels(stage.images, classes)
            return ImageSet(sampler.draw(model, labels, Streams(rng.seed, f"{rng.scope} images")), labels, classes)

        return draw


def public_data(method: Any, params: Any) -> tuple[str, ...]:
    """The public data that a method learns from, each once: its optional `public_data(params)`.

    Networks trained on public data count too.
    """
    found = getattr(method, "public_data", lambda _: ())(params)
    if isinstance(found, str):
        raise TypeError(f"it returned the text {found!r}")
    return tuple(dict.fromkeys(found))


def refuse_private(public: Iterable[str], private: ImageSet) -> None:
    """UserError if a data set of `public` has private images; one with keys is checked when the method loads it."""
    for name in (name for name in public if name in SOURCES):
        if not SOURCES[name].needs_keys():
            refuse_shared(name, SOURCES[name]().load(), private)


def refuse_shared(name: str, splits: Mapping[str, ImageSet], private: ImageSet) -> None:
    """UserError if public splits have private images. Images of a single color do not count."""
    if set[bytes]().union(*map(_digests, splits.values())) & _digests(private):
        raise UserError(f"{name} is no public data set here: it has private images; choose another")


def _digests(images: ImageSet) -> set[bytes]:
    return {hashlib.sha256(image.tobytes()).digest() for image in images.images if image.min() < image.max()}


class Door:
    """The door for one part of a plan: it prepends `prefix` to every mechanism's name.

    Args:
        released: earlier releases by name, so that a method that is trained several times releases once; None if
            nothing is requested twice.
    """

    def __init__(self, private: PrivateData, prefix: str = "", released: dict[str, Tensor] | None = None):
        self.meta, self.device, self.budget = private.meta, private.device, private.budget
        self._private, self._prefix, self._released = private, prefix, {} if released is None else released

    def noise_multiplier(self, name: str) -> float:
        return self._private.noise_multiplier(self._prefix + name)

    def release_sum(self, name: str, *args: Any) -> Tensor:
        return self._once(name, self._private.release_sum, *args)

    def release_second_moment(self, name: str, *args: Any) -> Tensor:
        return self._once(name, self._private.release_second_moment, *args)

    def public_steps(self, name: str, *args: Any) -> Iterator[int]:
        return self._private.public_steps(self._prefix + name, *args)

    def dpsgd(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._private.dpsgd(self._prefix + name, *args, **kwargs)

    def _once(self, name: str, release: Callable[..., Tensor], *args: Any) -> Tensor:
        if name not in self._released:
            self._released[name] = release(self._prefix + name, *args)
        return self._released[name].clone()


class _OpenDoor(Door):
    """The door in a stage: `dpsgd` trains on the images of the stage; the method's own releases are the real ones.

    Attributes:
        reached: the networks that the stage trains, in the order of `module, *keep`; at first those of the previous
            stage.
    """

    def __init__(
        self,
        private: PrivateData,
        stage: str,
        released: dict[str, Tensor],
        reached: list[nn.Module],
        draw: Callable[[], ImageSet],
        rng: Streams,
    ):
        super().__init__(private, "", released)
        self.reached, self._stage, self._draw, self._rng, self._begun = reached, stage, draw, rng, False

    def dpsgd(
        self,
        name: str,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: DpSgdParams,
        rows_per_example: int = 1,
        second_order: bool = False,
        keep: Sequence[Stateful] = (),
    ) -> "_OpenSgd":
        networks = _networks(module, keep)
        if not self._begun:
            _take_over(self.reached, networks)
            self.reached, self._begun = networks, True
        steps = self.public_steps(name, params.steps, (module, optimizer, *keep))
        return _OpenSgd(steps, module, optimizer, params, rows_per_example, self._draw, self._rng, name)

    def public_steps(self, name: str, *args: Any) -> Iterator[int]:
        return super().public_steps(self._stage + name, *args)


class _LastDoor(Door):
    """The door after the stages: DP-SGD continues from the networks that they `reached`; with `only` it is skipped."""

    def __init__(self, private: PrivateData, released: dict[str, Tensor], reached: list[nn.Module], only: bool):
        super().__init__(private, "", released)
        self._reached, self._only = reached, only

    def dpsgd(self, name: str, module: nn.Module, *args: Any, keep: Sequence[Stateful] = (), **kwargs: Any) -> Any:
        _take_over(self._reached, _networks(module, keep))
        self._reached = []
        if self._only:
            return ()
        return self._private.dpsgd(name, module, *args, keep=keep, **kwargs)


def _networks(module: nn.Module, keep: Sequence[Stateful]) -> list[nn.Module]:
    return [item for item in (module, *keep) if isinstance(item, nn.Module)]


def _take_over(reached: Sequence[nn.Module], networks: Sequence[nn.Module]) -> None:
    for source, target in zip(reached, networks, strict=bool(reached)):
        found, expected = ({k: tuple(v.shape) for k, v in net.state_dict().items()} for net in (source, target))
        if other := sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)):
            raise UserError(
                f"init_from: training changes the network: {other[0]} is {found.get(other[0])} in a stage and "
                f"{expected.get(other[0])} after it; delete the keys that do so from training"
            )
        target.load_state_dict(source.state_dict())


class _OpenStep:
    """One step on images of a stage; its `update` is like that of a private step."""

    def __init__(self, loop: "_OpenSgd", index: int):
        self._loop, self.index = loop, index

    def update(self, row_losses: RowLosses, public: PublicRows | None = None) -> None:
        self._loop.step(self.index, row_losses, public)


class _OpenSgd:
    """Training without privacy in the form of DpSgd: batches of `expected_batch_size`, mean gradients, no noise."""

    def __init__(
        self,
        steps: Iterator[int],
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: DpSgdParams,
        rows: int,
        images: Callable[[], ImageSet],
        rng: Streams,
        name: str,
    ):
        self.module, self.released_grad_norm = module, 0.0
        self._steps, self._optimizer, self._params, self._rows = steps, optimizer, params, rows
        self._images, self._rng, self._name = images, rng, name

    def __len__(self) -> int:
        return self._params.steps

    def __iter__(self) -> Iterator[_OpenStep]:
        return (_OpenStep(self, index) for index in self._steps)

    def step(self, index: int, row_losses: RowLosses, public: PublicRows | None) -> None:
        """Draws a batch with replacement, and updates the parameters by the mean gradient."""
        source, size = self._images(), self._params.expected_batch_size
        chosen = self._rng.numpy(f"{self._name} batch", index).integers(len(source.labels), size=size)
        device = next(self.module.parameters()).device
        images, labels = (
            to_network(source.images[chosen]).to(device),
            torch.from_numpy(source.labels[chosen]).to(device),
        )
        rows = size + (0 if public is None else len(public.images))
        self._optimizer.zero_grad(set_to_none=True)
        with default_generator(self._rng.integer(f"{self._name} loss", index)):
            for start in range(0, size, self._params.max_physical_batch_size):
                chunk = slice(start, start + self._params.max_physical_batch_size)
                (row_losses(images[chunk], labels[chunk]).sum() / self._rows / rows).backward()
            for start in range(0, 0 if public is None else len(public.images), self._params.max_physical_batch_size):
                chunk = slice(start, start + self._params.max_physical_batch_size)
                (public.losses(public.images[chunk], public.labels[chunk]).sum() / rows).backward()
        self._optimizer.step()
