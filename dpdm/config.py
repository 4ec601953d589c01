"""THE schema of a study: strict, frozen models; the grid of runs; and errors a person can act on.

Imports no numerical library: the Snakefile reads a study through this module in milliseconds.
"""

import difflib
import json
import math
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    RootModel,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from dpdm.errors import UserError
from dpdm.params import Strict

NAME = r"^[a-z][a-z0-9_]*$"
ANCHORS = ("real", "label_only")
DIRECT = "direct"  # the protocol of a classifier method, which was trained on the private images themselves
COMPARISONS = ("ranks", "parameter")  # figures over a whole study
RESERVED_STUDIES = ("data", "published", "examples")
Accountant = Literal["rdp", "prv", "pld"]  # each a module of dpdm.privacy: see dpdm.privacy.accounting


def _epsilon(value: Any) -> Any:
    return math.inf if value == "inf" else value


def _check_epsilon(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError(f"epsilon must be above 0, got {value} (use .inf for a run without noise)")
    if float(f"{value:g}") != value:
        raise ValueError(f"epsilon {value!r} does not fit into a path; write at most six digits")
    return value


def epsilon_text(epsilon: float) -> str:
    """How epsilon is written in paths and tables: `0.2`, `10`, `inf`."""
    return f"{epsilon:g}"


def _check_plain(value: Any, path: str = "") -> Any:
    """Recipes travel as JSON; what JSON would change on the way (.inf, a date) is refused here, by its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{path}{key!r}: a key must be text")
            _check_plain(item, f"{path}{key}: ")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{path}[{number}]: ")
    elif not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"{path}{value!r} is neither text, a finite number, true, false nor null")
    return value


Epsilon = Annotated[
    float,
    BeforeValidator(_epsilon, json_schema_input_type=float | Literal["inf"]),
    PlainSerializer(lambda v: "inf" if math.isinf(v) else v, when_used="json"),
]
Name = Annotated[str, Field(pattern=NAME)]
Noise = Literal["repeatable", "secret"]  # whether the DP noise follows from recipe, seed and data, or from a secret key
Impl = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Recipe = Annotated[dict[str, Any], AfterValidator(_check_plain)]  # checked further by the method's own models
DELTA_RULE = "1/(2n)"
PAPER_SCALE = "paper"
TableName = Literal["table_1", "table_2", "table_3", "table_4", "table_5", "table_6"]


class SourceSpec(Strict):
    """Where the images of a dataset come from; its change, and nothing else, prepares the dataset again."""

    # Of each source: the keys it needs, and those it may have.
    KEYS: ClassVar[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
        "digits": ((), ()),
        "mnist": ((), ("data_dir",)),
        "fashion_mnist": ((), ("data_dir",)),
        "cifar10": ((), ("data_dir",)),
        "celeba": (("image_size",), ("data_dir", "label")),
        "folder": (("data_dir", "image_size", "num_classes"), ("channels",)),
        "npz": (("train", "test", "num_classes"), ()),
    }

    source: Literal["digits", "mnist", "fashion_mnist", "cifar10", "celeba", "folder", "npz"]
    data_dir: str | None = None  # folder of the files; else $DPDM_DATA_DIR/<source>, else data/<source>
    image_size: Annotated[int, Field(ge=8)] | None = None  # height and width to bring image files to
    channels: Literal[1, 3] | None = None  # source folder: grey or RGB (the default)
    label: str | None = None  # celeba: the attribute that makes two classes, 0 without and 1 with it; else one class
    train: str | None = None  # source npz: files with `images` (uint8 NCHW) and `labels`
    test: str | None = None
    num_classes: Annotated[int, Field(ge=1)] | None = None  # folder and npz: public, never counted from the labels

    def files(self) -> list[str]:
        """The user's own files that the images come from."""
        return [path for path in (self.train, self.test) if path is not None]

    @model_validator(mode="after")
    def _keys_belong_to_the_source(self) -> "SourceSpec":
        needed, optional = self.KEYS[self.source]
        given = [name for name in SourceSpec.model_fields if name != "source" and getattr(self, name) is not None]
        for name in needed:
            if name not in given:
                raise ValueError(f"source {self.source} lacks the key {name}; it needs {', '.join(needed)}")
        for name in given:
            if name not in needed + optional:
                raise ValueError(
                    f"source {self.source} has no key {name}; its keys: {', '.join(needed + optional) or 'none'}"
                )
        return self


class DatasetSpec(SourceSpec):
    """One dataset of a study; delta belongs to it because it depends on the number of records."""

    delta: Annotated[float, Field(gt=0, lt=1)] | Literal["1/(2n)"]
    allow_large_delta: bool = False  # accept delta >= 1/n, which permits publishing a record outright
    epsilons: Annotated[tuple[Epsilon, ...], Field(strict=False, min_length=1)] | None = None  # some of the study's

    def source_spec(self) -> SourceSpec:
        """The part that decides the images."""
        return SourceSpec(**{name: getattr(self, name) for name in SourceSpec.model_fields})

    def published_as(self) -> tuple[str, int | None]:
        """The columns `dataset` and `resolution` of numbers published on it; ("", None) where there can be none."""
        name = {"cifar10": "cifar_10", "npz": "", "folder": ""}.get(self.source, self.source)
        if self.source == "celeba" and self.label is not None:
            name = "celeba (male_conditional)" if self.label == "Male" else ""
        side = {"mnist": 28, "fashion_mnist": 28, "cifar10": 32}.get(self.source, self.image_size)
        return (name, side) if name else ("", None)


class When(Strict):
    """Which runs an override applies to; a key left out matches all."""

    dataset: Name | None = None
    epsilon: Epsilon | None = None

    def matches(self, dataset: str, epsilon: float) -> bool:
        """Whether the run of `dataset` at `epsilon` is meant."""
        return self.dataset in (None, dataset) and self.epsilon in (None, epsilon)


class Override(Strict):
    """Recipe changes for some runs; nested mappings are merged key by key."""

    when: When
    params: Recipe = Field({})
    samplers: dict[Name, Recipe] = Field({})


class Unverified(Strict):
    """What of a recipe could not be verified to be the paper's: told beside the numbers, and part of no run."""

    what: Annotated[str, Field(pattern=r"\S")]
    when: When = When()
    samplers: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)] | None = None  # None: all, by their model


class TuningSpec(Strict):
    """What it took to find a recipe: printed in the report, and part of no run."""

    settings: Annotated[int, Field(ge=0)]  # tried before this recipe was settled on; 0: fixed beforehand
    data: Annotated[str, Field(pattern=r"\S")]  # on which they were tried


class TableEntry(Strict):
    """Which runs of a study stand beside which row of a published table."""

    method: Name
    sampler: Name | None = None  # may be left out where the method has one, or none
    published: Annotated[str, Field(pattern=r"\S")]  # columns `method` and `variant` of results/published/published.csv
    variant: str = ""


class MethodSpec(Strict):
    """One method of a study: code, recipe, samplers."""

    impl: Impl
    # A generator draws images, which are judged; a classifier is judged itself: it has no samplers and no images.
    kind: Literal["generator", "classifier"] = "generator"
    params: Recipe = Field({})
    samplers: dict[Name, Recipe] = Field(
        default_factory=lambda fields: {} if fields.get("kind") == "classifier" else {"default": {}}
    )
    overrides: Annotated[tuple[Override, ...], Field(strict=False)] = ()
    datasets: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)] | None = None  # it serves; None: all
    gpus_per_run: Annotated[int, Field(ge=1)] = 1  # of one machine, which part each batch among them; no run's result
    # What the reader is told, and part of no run; None: not stated.
    tuning: TuningSpec | None = None
    scale: Annotated[str, Field(pattern=r"\S")] | None = None  # PAPER_SCALE, or how the runs differ from the paper's
    unverified: Annotated[tuple[Unverified, ...], Field(strict=False)] = ()

    @field_validator("samplers")
    @classmethod
    def _samplers(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if value and info.data.get("kind") == "classifier":
            raise ValueError("a classifier draws no images; leave samplers out, or set kind: generator")
        if not value and info.data.get("kind") == "generator":
            raise ValueError("a generator needs a sampler; leave samplers out for one called default")
        return value


class FidSpec(Strict):
    """Asks for the FID and its like by Inception; present but empty is enough."""

    weights_path: Annotated[str, Field(pattern=r"\S")] | None = None  # else torch-fidelity's own copy


class EvaluationSpec(Strict):
    """How synthetic images are judged; the same for every run of a study."""

    synthetic_images: Annotated[int, Field(ge=10)]  # per run, balanced over the classes
    classifiers: Annotated[tuple[Literal["logreg", "mlp", "cnn"], ...], Field(strict=False, min_length=1)] = (
        "logreg",
        "mlp",
        "cnn",
    )
    protocol: Literal["quick", "paper"] = "quick"  # how the classifiers are trained; a column of metrics.csv
    fid: FidSpec | None = None  # None: no metric by Inception

    @field_validator("classifiers")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("it holds a classifier twice")
        return value

    @field_validator("fid", mode="before")
    @classmethod
    def _asked_for_in_full(cls, value: Any) -> Any:
        if value is None:  # YAML's `fid:` with nothing after it
            raise ValueError("write `fid: {}` to ask for the FID, or leave the key out")
        return value

    @model_serializer(mode="wrap")
    def _as_it_was_without_fid(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study without `fid` has the spec it had before there was such a key: nothing is scored again."""
        return {key: value for key, value in handler(self).items() if key != "fid" or value is not None}


class Coordinates(Strict):
    """Where a result belongs; every JSON artifact carries it, and nobody parses a path."""

    study: Name
    dataset: Name
    method: Name
    epsilon: Epsilon | None  # None: an anchor row, which no mechanism made
    seed: Annotated[int, Field(ge=0)]
    sampler: Name | None = None


class RunSpec(Strict):
    """All that decides one training run: its change, and nothing else, retrains it."""

    study: Name
    dataset: Name
    method: Name
    impl: Impl
    params: Recipe
    epsilon: Epsilon
    delta: float | Literal["1/(2n)"]
    allow_large_delta: bool
    accountant: Accountant
    noise: Noise = "repeatable"
    seed: Annotated[int, Field(ge=0)]

    def coordinates(self, sampler: str | None = None) -> Coordinates:
        """The run's place in the grid."""
        return Coordinates(
            study=self.study, dataset=self.dataset, method=self.method,
            epsilon=self.epsilon, seed=self.seed, sampler=sampler,
        )  # fmt: skip

    def path(self, pattern: str) -> str:
        """`pattern` with this run's {dataset}, {method}, {epsilon} and {seed}."""
        return pattern.format(
            dataset=self.dataset, method=self.method, epsilon=epsilon_text(self.epsilon), seed=self.seed
        )


class Sweep(NamedTuple):
    """A number that a study varies, all else equal: methods differ in one parameter, or a method's samplers do.

    `values` has it by (dataset, epsilon, line, method, sampler), where a line holds what is to be compared: the sampler
    that all methods share, or the method whose samplers these are. The sampler of a classifier is "". `key` is dotted,
    e.g. dp.steps.
    """

    key: str
    values: dict[tuple[str, float, str, str, str], float]


class SampleSpec(Strict):
    """All that decides one synthetic set, given the model."""

    coordinates: Coordinates
    impl: Impl
    sampler_params: Recipe
    synthetic_images: int


class ScoreSpec(Strict):
    """All that decides the scores of one synthetic set, but for those by Inception."""

    coordinates: Coordinates
    evaluation: EvaluationSpec


class InceptionScoreSpec(Strict):
    """All that decides the scores of one synthetic set by Inception."""

    coordinates: Coordinates
    fid: FidSpec


class ClassifierScoreSpec(Strict):
    """All that decides the accuracy of a classifier method, given the model."""

    coordinates: Coordinates
    impl: Impl


class Study(Strict):
    """A whole study: one YAML file."""

    study: Name
    datasets: Annotated[dict[Name, DatasetSpec], Field(min_length=1)]
    epsilons: Annotated[tuple[Epsilon, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]
    accountant: Accountant = "rdp"
    noise: Noise = "repeatable"  # secret: from a key of the operating system; for real data, no run can be repeated
    methods: Annotated[dict[Name, MethodSpec], Field(min_length=1)]
    anchors: Annotated[tuple[Literal["real", "label_only"], ...], Field(strict=False)] = ANCHORS
    evaluation: EvaluationSpec
    results_dir: Annotated[str, Field(pattern=r"^[\w./@=+-]+$")] = "results"  # goes into commands and patterns bare
    allow_mixed_code: bool = False  # let one table mix runs made by different versions of the code
    tables: dict[TableName, Annotated[tuple[TableEntry, ...], Field(strict=False)]] = Field({})
    allow_mixed_protocols: bool = False  # let one table mix ways of training classifiers
    attacks: bool = False  # attack what every private run did, and show the lower bound beside its epsilon

    @field_validator("epsilons")
    @classmethod
    def _epsilons(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(_check_epsilon(epsilon) for epsilon in value)

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        for name, values in (("epsilons", self.epsilons), ("seeds", self.seeds), ("anchors", self.anchors)):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} holds a value twice")
        if self.study in RESERVED_STUDIES:
            raise ValueError(f"study: the name {self.study!r} is a folder of its own under results; choose another")
        for dataset, source in self.datasets.items():
            chosen = source.epsilons or ()
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"datasets.{dataset}.epsilons holds a value twice")
            if unknown := [e for e in chosen if e not in self.epsilons]:
                raise ValueError(
                    f"datasets.{dataset}.epsilons: {epsilon_text(unknown[0])} is none of the study's epsilons, "
                    f"{', '.join(map(epsilon_text, self.epsilons))}; add it there"
                )
        if idle := set(self.epsilons).difference(*map(self.epsilons_of, self.datasets)):
            raise ValueError(f"epsilons: no dataset is run at {epsilon_text(min(idle))}; delete it, or add it to one")
        taken = set(ANCHORS) & set(self.methods)
        if taken:
            raise ValueError(f"methods.{taken.pop()}: this name belongs to an anchor row; choose another")
        for method, spec in self.methods.items():
            for number, dataset in enumerate(spec.datasets or ()):
                if dataset not in self.datasets:
                    place = f"methods.{method}.datasets[{number}]"
                    raise ValueError(f"{place}: no dataset {dataset!r}; {nearest(dataset, self.datasets)}")
            served = self.datasets_of(method)
            if len(set(served)) != len(served):
                raise ValueError(f"methods.{method}.datasets holds a value twice")
            for key in ("overrides", "unverified"):
                for number, part in enumerate(getattr(spec, key)):
                    self._check_part(f"methods.{method}.{key}[{number}]", method, part)
        for table, entries in self.tables.items():
            for number, entry in enumerate(entries):
                self._check_entry(f"tables.{table}[{number}]", entry, entries[:number])
        return self

    def _check_part(self, place: str, method: str, part: Override | Unverified) -> None:
        """Refuses a part of a method's recipe that no run of this study has."""
        served, samplers = self.datasets_of(method), self.methods[method].samplers
        if not any(part.when.matches(d, e) for d in served for e in self.epsilons_of(d)):
            cells = (f"{d} at epsilon {', '.join(map(epsilon_text, self.epsilons_of(d)))}" for d in served)
            raise ValueError(f"{place}.when matches no run of this study: {method} is run on {'; '.join(cells)}")
        if unknown := set(part.samplers or ()) - set(samplers):
            raise ValueError(
                f"{place}.samplers: no sampler {unknown.pop()!r}; "
                f"the method has {', '.join(samplers) or 'none, being a classifier'}"
            )

    def _check_entry(self, place: str, entry: TableEntry, earlier: tuple[TableEntry, ...]) -> None:
        if entry.method not in self.methods:
            raise ValueError(f"{place}.method: no method {entry.method!r}; {nearest(entry.method, self.methods)}")
        samplers = self.methods[entry.method].samplers
        if entry.sampler is None and len(samplers) > 1:
            raise ValueError(f"{place} lacks the key sampler: {entry.method} has {', '.join(samplers)}")
        if entry.sampler is not None and entry.sampler not in samplers:
            hint = nearest(entry.sampler, samplers) if samplers else "a classifier has none: leave the key out"
            raise ValueError(f"{place}.sampler: no sampler {entry.sampler!r}; {hint}")
        for other in earlier:  # classifiers may share a row: each has one of its accuracies
            same_row = (other.published, other.variant) == (entry.published, entry.variant)
            if same_row and (samplers or self.methods[other.method].samplers or other.method == entry.method):
                raise ValueError(f"{place}: {other.method} stands beside this published row already; delete one")

    def sampler_of(self, entry: TableEntry) -> str | None:
        """The sampler that an entry of `tables` means; None for a classifier."""
        return entry.sampler or next(iter(self.methods[entry.method].samplers), None)

    def table_runs(self, table: str, places: Collection[tuple[str, int | None]]) -> list[tuple[str, str, str]]:
        """(dataset, method, sampler) of all that table `table_N` of the paper shows, at each epsilon of the dataset.

        That is what `tables` maps to it, in table 1 all generators, in table 2 all classifiers, on the datasets that
        the table has numbers on; on all of the study's if it has none of them. The sampler of a classifier is "".

        Args:
            places: the published datasets of the table, see `DatasetSpec.published_as`.
        """
        mapped = {(entry.method, self.sampler_of(entry) or "") for entry in self.tables.get(table, ())}
        kind = {"table_1": "generator", "table_2": "classifier"}.get(table)
        shared = [dataset for dataset, spec in self.datasets.items() if spec.published_as() in places]
        return [
            (dataset, method, sampler)
            for dataset in shared or self.datasets
            for method, spec in self.methods.items()
            for sampler in spec.samplers or ("",)
            if dataset in self.datasets_of(method) and (spec.kind == kind or (method, sampler) in mapped)
        ]

    def datasets_of(self, method: str) -> tuple[str, ...]:
        """The datasets that a method serves."""
        return tuple(self.datasets) if (chosen := self.methods[method].datasets) is None else chosen

    def epsilons_of(self, dataset: str) -> tuple[float, ...]:
        """The epsilons that a dataset is run at, in the study's order."""
        chosen = self.datasets[dataset].epsilons
        return self.epsilons if chosen is None else tuple(epsilon for epsilon in self.epsilons if epsilon in chosen)

    def is_classifier(self, method: str) -> bool:
        """Whether `method` (or an anchor) has no images and is judged itself."""
        return method in self.methods and self.methods[method].kind == "classifier"

    def run(self, dataset: str, method: str, epsilon: float, seed: int) -> RunSpec:
        """The resolved spec of one run of the grid.

        Raises:
            UserError: the method does not serve the dataset, or the dataset is not run at this epsilon.
        """
        spec = self.methods[method]
        if dataset not in self.datasets_of(method):
            raise UserError(f"{method} does not serve {dataset}; add it to methods.{method}.datasets of the study")
        if epsilon not in self.epsilons_of(dataset):
            raise UserError(
                f"{dataset} is not run at epsilon {epsilon_text(epsilon)}; add it to the study's epsilons, and to "
                f"datasets.{dataset}.epsilons if there are any"
            )
        params = spec.params
        for override in spec.overrides:
            if override.when.matches(dataset, epsilon):
                params = merge(params, override.params)
        return RunSpec(
            study=self.study, dataset=dataset, method=method, impl=spec.impl, params=params, epsilon=epsilon,
            delta=self.datasets[dataset].delta, allow_large_delta=self.datasets[dataset].allow_large_delta,
            accountant=self.accountant, noise=self.noise, seed=seed,
        )  # fmt: skip

    def runs(self) -> list[RunSpec]:
        """Every training run of the grid: datasets x the methods that serve them x their epsilons x seeds."""
        return [
            self.run(dataset, method, epsilon, seed)
            for dataset in self.datasets
            for method in self.methods
            if dataset in self.datasets_of(method)
            for epsilon in self.epsilons_of(dataset)
            for seed in self.seeds
        ]

    def attacked_runs(self) -> list[RunSpec]:
        """The runs whose mechanism is attacked: one of each private cell, since all its seeds share the mechanism."""
        return [run for run in self.runs() if run.seed == self.seeds[0] and math.isfinite(run.epsilon)]

    def sweeps(self) -> list[Sweep]:
        """The numbers that this study varies: parameters of the methods of one impl, then of a method's samplers."""
        impls: dict[str, list[str]] = {}
        for method, spec in self.methods.items():
            impls.setdefault(spec.impl, []).append(method)
        found = [self._sweep(methods, of_samplers=False) for methods in impls.values()]
        of_samplers: dict[str, Sweep] = {}
        for method, spec in self.methods.items():  # at every start of Snakemake, so nothing is compared with itself
            if len(spec.samplers) > 1 and (sweep := self._sweep([method], of_samplers=True)):
                of_samplers.setdefault(sweep.key, Sweep(sweep.key, {})).values.update(sweep.values)
        return [sweep for sweep in found if sweep] + list(of_samplers.values())

    def _sweep(self, methods: list[str], of_samplers: bool) -> Sweep | None:
        """What alone differs between these methods, or between the samplers of this one; None if that is no number."""
        keys, values = set(), {}
        for dataset in self.datasets:
            for epsilon in self.epsilons_of(dataset):
                runs = [
                    self.run(dataset, method, epsilon, self.seeds[0])
                    for method in methods
                    if dataset in self.datasets_of(method)
                ]
                recipes = {}
                for run in runs:
                    drawn = {name: self.sample(run, name).sampler_params for name in self.methods[run.method].samplers}
                    whole = _flat({"params": run.params, "samplers": drawn})
                    for name in drawn or ("",):
                        recipes[run.method, name] = _flat(drawn[name]) if of_samplers else whole
                for key in {key for recipe in recipes.values() for key in recipe}:
                    # repr, for 1 == True and 1 == 1.0
                    if len({repr(recipe.get(key)) for recipe in recipes.values()}) > 1:
                        keys.add(key)
                        for (method, name), recipe in recipes.items():
                            line = method if of_samplers else name
                            values[dataset, epsilon, line, method, name] = recipe.get(key)
        if len(keys) != 1 or not all(type(value) in (int, float) for value in values.values()):
            return None
        key = keys.pop()
        if of_samplers:
            return Sweep(key, values)
        return Sweep(key.removeprefix("params."), values) if key.startswith("params.") else None

    def comparisons(self) -> list[str]:
        """The figures over the whole study that it has material for, of COMPARISONS."""
        generators = [method for method in self.methods if not self.is_classifier(method)]
        ranked = len(generators) > 1 and any(math.isfinite(epsilon) for epsilon in self.epsilons)
        return ["ranks"] * ranked + ["parameter"] * bool(self.sweeps())

    def sample(self, run: RunSpec, sampler: str) -> SampleSpec:
        """The resolved spec of one synthetic set of a run."""
        spec = self.methods[run.method]
        params = spec.samplers[sampler]
        for override in spec.overrides:
            if override.when.matches(run.dataset, run.epsilon):
                params = merge(params, override.samplers.get(sampler, {}))
        return SampleSpec(
            coordinates=run.coordinates(sampler), impl=run.impl, sampler_params=params,
            synthetic_images=self.evaluation.synthetic_images,
        )  # fmt: skip

    def score(self, coordinates: Coordinates) -> ScoreSpec:
        """The resolved spec of one scoring job, without `fid`: to ask for the FID scores nothing else again."""
        return ScoreSpec(coordinates=coordinates, evaluation=self.evaluation.model_copy(update={"fid": None}))

    def fid(self) -> FidSpec:
        """How Inception judges, also where the study does not ask for it but somebody for one of its files."""
        return self.evaluation.fid or FidSpec()

    def score_inception(self, coordinates: Coordinates) -> InceptionScoreSpec:
        """The resolved spec of one scoring job by Inception."""
        return InceptionScoreSpec(coordinates=coordinates, fid=self.fid())

    def score_classifier(self, run: RunSpec) -> ClassifierScoreSpec:
        """The resolved spec of the one scoring job of a classifier's run."""
        return ClassifierScoreSpec(coordinates=run.coordinates(), impl=run.impl)

    def anchor_coordinates(self) -> list[Coordinates]:
        """The anchor rows: real images and label-only noise, once per dataset and seed."""
        return [
            Coordinates(study=self.study, dataset=dataset, method=anchor, epsilon=None, seed=seed)
            for dataset in self.datasets
            for anchor in self.anchors
            for seed in self.seeds
        ]


def _flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys; an empty mapping is a value."""
    out = {}
    for key, value in recipe.items():
        nested = isinstance(value, dict) and value
        out |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def nearest(name: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """The mend of a misspelt name, for the end of an error: the name meant, or `otherwise` and all of them."""
    close = difflib.get_close_matches(name, known := list(known), 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(known)}"


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, nested mappings key by key; neither is modified.

    A mapping of another `kind` replaces the old one whole: keys of one kind mean nothing to another. Where the old one
    leaves `kind` to its default, which is not known here, its keys stay: one that means nothing is then refused.
    """
    if "kind" in base and change.get("kind", base["kind"]) != base["kind"]:
        return dict(change)
    out = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if nested else value
    return out


def spec_json(spec: Strict) -> str:
    """A spec as one line of JSON, stable, for the command line and Snakemake's `params`."""
    return json.dumps(spec.model_dump(mode="json"), sort_keys=True, allow_nan=False)


def parse_spec(kind: type[Strict], text: str) -> Any:
    """The inverse of `spec_json`.

    Raises:
        UserError: the text is not a valid spec of that kind.
    """
    try:
        return kind.model_validate(json.loads(text))
    except ValueError as error:
        raise UserError(explain(error, kind, "--spec")) from error


class _NoDuplicates(yaml.SafeLoader):
    """YAML loader that refuses a key written twice (PyYAML keeps the last one silently)."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` is meant to be overlaid
            continue
        mark = key_node.start_mark
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{mark.name}, line {mark.line + 1}: a key must be plain text, not a list or mapping")
        key = loader.construct_object(key_node)
        if key in seen:
            raise UserError(f"{mark.name}, line {mark.line + 1}: key {key!r} stands twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_NoDuplicates.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_study(path: str | Path) -> Study:
    """Reads and checks a study file.

    Raises:
        UserError: the file cannot be read, is not YAML, or breaks the schema.
    """
    return parse_study(read_yaml(path), str(path))


def read_yaml(path: str | Path) -> Any:
    """What a study file holds, before any check of its keys.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds a key twice.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the study {path}: {error}") from error
    try:
        loader = _NoDuplicates(text)
        loader.name = str(path)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def parse_study(value: Any, origin: str) -> Study:
    """Checks a study that was read already; `origin` names it in errors.

    Raises:
        UserError: the study breaks the schema; the message names the YAML path and the mend.
    """
    if not isinstance(value, dict) or not value:
        raise UserError(f"{origin} holds no study; name one with --configfile, e.g. config/digits.yaml")
    try:
        return Study.model_validate(value)
    except ValidationError as error:
        raise UserError(explain(error, Study, origin)) from error


def parse_params(kind: type[BaseModel], params: dict[str, Any], where: str) -> Any:
    """A method's own parameters, checked; `where` is their YAML path.

    Raises:
        UserError: the parameters break the method's schema.
    """
    try:
        return kind.model_validate(params)
    except ValidationError as error:
        raise UserError(explain(error, kind, where)) from error


def explain(error: ValueError, model: type[BaseModel], origin: str) -> str:
    """One line per mistake: file or spec, YAML path, what is wrong, how to mend it."""
    if not isinstance(error, ValidationError):
        return f"{origin}: {error}"
    lines = []
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(len(i["loc"]) > len(item["loc"]) for i in items):
            continue  # pydantic counts only the valid entries; the invalid ones are named already
        if item["type"] == "default_factory_not_called":
            continue  # a default that depends on another key, whose own mistake is named already
        path = _yaml_path(item["loc"], model)
        value = item["input"]
        if item["type"] == "extra_forbidden":
            valid = sorted(_valid_keys(model, item["loc"][:-1]))
            message = f"unknown key; {nearest(str(item['loc'][-1]), valid, 'valid keys:')}"
        elif item["type"] == "missing":
            message = "missing key"
        else:
            message = item["msg"].removeprefix("Value error, ")
            if isinstance(value, str) and re.fullmatch(r"[+-]?\d+[eE][+-]?\d+", value):
                mantissa, exponent = re.split("[eE]", value)
                message += f"; YAML reads {value} as text: write {mantissa}.0e{exponent}"
            elif not isinstance(value, dict | list | tuple) and repr(value) not in message:
                message += f", got {value!r}"
        lines.append(f"{origin}: {path}: {message}" if path else f"{origin}: {message}")
    return "\n".join(dict.fromkeys(lines))


# Parts of an error's location that are pydantic's names of union branches, not keys that somebody wrote.
_BRANCH = re.compile(r"float|int|str|bool|constrained-\w+|[\w-]*\[.*\]")


def _yaml_path(loc: tuple, model: Any) -> str:
    path, models = "", _models_in(model)
    for part in loc:
        following = [m for known in models if part in known.model_fields for m in _models_of_field(known, part)]
        if isinstance(part, int):
            path += f"[{part}]"
        elif any(part in _tags(m) for m in models) or (path and _BRANCH.fullmatch(part)):
            pass  # the branch of a union, not a key that somebody wrote
        else:
            path += f".{part}" if path else part
        models = following or models
    return path


def _valid_keys(model: Any, loc: tuple) -> set[str]:
    """The keys that a mapping at `loc` may have, found by walking the models' annotations."""
    models = _models_in(model)
    for part in loc:
        following = [m for known in models if part in known.model_fields for m in _models_of_field(known, part)]
        tagged = [m for m in models if part in _tags(m)]
        # else a dict key or list index: stay with the value's models
        models = following or tagged or models
    return {name for m in models for name in m.model_fields}


def _models_of_field(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    return _models_in(model.model_fields[field].annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return _models_of_field(annotation, "root")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def _tags(model: type[BaseModel]) -> tuple:
    """What chooses this model in a union by its key `kind`, which then has one possible value."""
    tags = getattr(model.model_fields["kind"].annotation, "__args__", ()) if "kind" in model.model_fields else ()
    return tags if len(tags) == 1 else ()


def check_writable(folder: str | Path) -> None:
    """Refuses a results folder that cannot be written, before any hour of compute is spent.

    Raises:
        UserError: `folder` is a file, or it (or its nearest existing parent) is not writable.
    """
    folder = Path(folder).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"the results folder {folder} cannot be made: {existing} is a file; move it or set results_dir")
    if not os.access(existing, os.W_OK):
        raise UserError(f"the results folder {folder} is not writable; mend its rights or set results_dir in the study")
