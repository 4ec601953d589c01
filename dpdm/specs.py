"""The specs of single jobs (what determines a job, as one line of JSON), their places in a grid, and their types."""

import json
import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, field_validator, model_validator
from pydantic_core import to_jsonable_python

from dpdm.errors import UserError
from dpdm.evaluation.registry import CLASSIFIERS, DPIMAGEBENCH, EXTRACTORS, PROTOCOLS, PUBLIC_EXTRACTORS
from dpdm.explain import IMPL, NAME, TEXT, explain, parse_params
from dpdm.params import Natural, Strict


def _epsilon(value: Any) -> Any:
    return math.inf if value in ("inf", ".inf") else value  # the second is YAML's


def _check_epsilon(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError(f"epsilon must be above 0, got {value} (use .inf for a run without noise)")
    if float(f"{value:g}") != value:
        raise ValueError(f"epsilon {value!r} does not fit into a path; write at most six digits")
    return value


def epsilon_text(epsilon: float) -> str:
    """How epsilon is written in paths and tables: `0.2`, `10`, `inf`."""
    return f"{epsilon:g}"


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"it holds {twice[0]!r} twice; delete one")
    return values


def _check_plain(value: Any, path: str = "") -> Any:
    """Refuses a value that JSON would change (.inf, a date), since recipes are passed as JSON; names its path."""
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
PathEpsilon = Annotated[Epsilon, AfterValidator(_check_epsilon)]  # above 0, and fit for a path
EachOnce = AfterValidator(_each_once)  # for a tuple
Name = Annotated[str, Field(pattern=NAME)]
Names = Annotated[tuple[Name, ...], Field(strict=False, min_length=1), EachOnce]
Noise = Literal["repeatable", "secret"]  # whether the DP noise follows from recipe, seed and data, or from a secret key
Impl = Annotated[str, Field(pattern=IMPL)]
Recipe = Annotated[dict[str, Any], AfterValidator(_check_plain)]  # the method's own models check it further
Accountant = Literal["rdp", "prv", "pld"]  # each a module of dpdm.privacy: see dpdm.privacy.accounting
Text = Annotated[str, Field(pattern=TEXT)]  # not blank
Classifier = Literal[tuple(CLASSIFIERS | DPIMAGEBENCH)]


class FidSpec(Strict):
    """Asks for FID, KID, precision and recall by Inception; an empty mapping is enough."""

    weights_path: Text | None = Field(None, description="file of Inception's weights; default: torch-fidelity's own")


class EvaluationSpec(Strict):
    """How synthetic images are judged; the same for every run of a study."""

    synthetic_images: Annotated[int, Field(ge=10, le=10_000_000)] = Field(
        description="synthetic images per run, balanced over the classes"
    )
    classifiers: Annotated[tuple[Classifier, ...], Field(strict=False, min_length=1), EachOnce] = Field(
        ("logreg", "mlp", "cnn"),
        description="classifiers that are trained on them, any of `logreg`, `mlp`, `cnn`; under the protocol "
        "`dpimagebench`, any of `resnet`, `wrn`, `resnext`",
    )
    protocol: Literal[tuple(PROTOCOLS)] = Field(
        "standard",
        description="how they are trained: `standard` (at the cost of a laptop, last step), `paper` (50 epochs, the "
        "best on held-out synthetic images), or `dpimagebench` (the same for three residual networks, on a GPU); a "
        "column of metrics.csv ([docs/reproducing.md](../docs/reproducing.md#the-protocols-of-the-classifiers))",
    )
    extractors: Annotated[
        tuple[Literal[(*EXTRACTORS, *PUBLIC_EXTRACTORS)], ...], Field(strict=False, min_length=1), EachOnce
    ] = Field(
        tuple(EXTRACTORS),
        exclude_if=lambda names: names == tuple(EXTRACTORS),
        description="networks that give the features for FD, KID, precision and recall; the first is shown first: "
        "`small_cnn` (three small networks, trained on the real images), `efflite` (EfficientNet-Lite0 of ImageNet, "
        "the same for all data sets; needs the extra `efflite`)",
    )
    fid: FidSpec | None = Field(
        None,
        exclude_if=lambda fid: fid is None,  # specs of a study without it do not change, so nothing is scored again
        description="`{}`: also FID, KID, precision and recall by Inception "
        "([docs/reproducing.md](../docs/reproducing.md#the-fid)); default: none; a change repeats no other score",
    )

    @property
    def public_extractors(self) -> tuple[str, ...]:
        """The extractors that were trained without any private image."""
        return tuple(name for name in self.extractors if name in PUBLIC_EXTRACTORS)

    @field_validator("fid", mode="before")
    @classmethod
    def _asked_for_in_full(cls, value: Any) -> Any:
        if value is None:  # YAML's `fid:` with nothing after it
            raise ValueError("write `fid: {}` to ask for the FID, or leave the key out")
        return value

    @model_validator(mode="after")
    def _classifiers_of_the_protocol(self) -> Self:
        known = PROTOCOLS[self.protocol]
        if other := [name for name in self.classifiers if name not in known]:
            raise ValueError(
                f"protocol {self.protocol!r} has no classifier {other[0]!r}; write `classifiers: [{', '.join(known)}]` "
                "or fewer of them, or choose another protocol"
            )
        return self


class Coordinates(Strict):
    """The place of a result in the grid. Every JSON artifact contains it, so that no path is parsed."""

    study: Name
    dataset: Name
    method: Name
    epsilon: Epsilon | None  # None: an anchor row, made without a mechanism
    seed: Natural
    sampler: Name | None = None


def _selection(value: Any) -> Any:
    """The text `method=dpdm,pearl epsilon=1` as a mapping of lists; a single value as a list; nothing as None."""
    if isinstance(value, str):
        found: dict[str, list[Any]] = {}
        if not value.strip():
            raise ValueError("it is empty; write KEY=A,B, or leave it out")
        for part in value.split():
            key, equals, values = part.partition("=")
            if not equals:
                raise ValueError(f"{part!r} has no value; write KEY=A,B, for example method={part}")
            found.setdefault(key, []).extend(filter(None, values.split(",")))
            if not found[key]:
                raise ValueError(f"{part!r} names no value; write {key}=A or {key}=A,B")
        return found or None
    if isinstance(value, dict):
        return {key: one if isinstance(one, list | tuple | None) else [one] for key, one in value.items()} or None
    return value


def _selections(value: Any) -> Any:
    """One or several selections, also as text with ` or ` between them, as a tuple; nothing as None."""
    parts = value.split(" or ") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    return tuple(part for part in map(_selection, parts) if part is not None) or None


class Selection(Strict, strict=False):  # its text form has numbers as text
    """Some runs of a study by their coordinates; a key left out matches all. Also written `method=a,b epsilon=1`."""

    dataset: Names | None = Field(None, description="runs on these data sets")
    method: Names | None = Field(None, description="runs of these methods")
    epsilon: Annotated[tuple[Epsilon, ...], Field(min_length=1)] | None = Field(
        None, description="runs at these epsilons"
    )
    seed: Annotated[tuple[Natural, ...], Field(min_length=1)] | None = Field(None, description="runs with these seeds")
    sampler: Names | None = Field(None, description="synthetic sets by these samplers")

    def matches(self, dataset: str, method: str, epsilon: float, seed: int) -> bool:
        """Whether a run is selected, with any sampler."""
        chosen = (self.dataset, self.method, self.epsilon, self.seed)
        return all(c is None or value in c for c, value in zip(chosen, (dataset, method, epsilon, seed), strict=True))

    def texts(self) -> dict[str, list[str]]:
        """The selected values, as text."""
        return {
            key: [epsilon_text(value) if key == "epsilon" else str(value) for value in values]
            for key, values in self
            if values is not None
        }

    def __str__(self) -> str:
        """The text form, which `only` and `without` accept."""
        return " ".join(f"{key}={','.join(values)}" for key, values in self.texts().items())


Part = Annotated[Selection | None, BeforeValidator(_selection)]
Parts = Annotated[
    tuple[Selection, ...] | None,
    BeforeValidator(_selections, json_schema_input_type=Selection | tuple[Selection, ...] | None),
]


class RunSpec(Strict):
    """Everything that determines one training run: only a change of it trains the run again."""

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
    seed: Natural

    def coordinates(self, sampler: str | None = None) -> Coordinates:
        """The run's place in the grid."""
        return Coordinates(
            study=self.study, dataset=self.dataset, method=self.method,
            epsilon=self.epsilon, seed=self.seed, sampler=sampler,
        )  # fmt: skip

    @property
    def place(self) -> tuple[str, str, str, str]:
        """Data set, method, epsilon and seed as text: what `Layout.run` takes."""
        return self.dataset, self.method, epsilon_text(self.epsilon), str(self.seed)

    @property
    def name(self) -> str:
        """The run's coordinates as a user writes them: DATASET/METHOD/EPSILON/SEED."""
        return "/".join(self.place)


class SampleSpec(Strict):
    """Everything that determines one synthetic set, given the model."""

    coordinates: Coordinates
    impl: Impl
    sampler_params: Recipe
    synthetic_images: int


def spec_json(spec: Strict | dict[str, Strict]) -> str:
    """Everything that determines a job, as one stable line of JSON for ledgers and Snakemake's `params`."""
    return json.dumps(to_jsonable_python(spec), sort_keys=True, allow_nan=False)


def parse_spec(kind: Any, text: str | bytes, origin: str = "the recipe") -> Any:
    """The inverse of `spec_json`; `kind` is a model or a union of models; a UserError names the text by `origin`."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(explain(error, kind, origin)) from error
    return parse_params(kind, value, origin)


def refuse_other_recipe(run: RunSpec, recipe: Any, path: Any) -> None:
    """UserError if `recipe`, from the ledger of `path`, is not the recipe of the study's run."""
    if recipe != (wanted := run.model_dump(mode="json")):
        raise UserError(
            f"{path}: {run.name} was trained by another recipe than the study's ({_difference(recipe, wanted)}); "
            "train it again, or name its own study"
        )


_NOTHING = object()  # the value of a missing key


def _difference(found: Any, wanted: Any, key: str = "") -> str:
    """The first key in which two recipes differ, and its values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        pairs = ((name, found.get(name, _NOTHING), wanted.get(name, _NOTHING)) for name in wanted | found)
        name, *two = next(pair for pair in pairs if pair[1] != pair[2])
        return _difference(*two, f"{key}.{name}".removeprefix("."))
    there, here = ("nothing" if value is _NOTHING else repr(value) for value in (found, wanted))
    return f"{key}: {there} there, {here} in the study"
