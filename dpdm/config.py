"""The schema of a study: strict, frozen models; the grid of runs; and the specs of single jobs.

Imports no numerical library: the Snakefile reads a study through this module in milliseconds.
"""

import functools
import itertools
import math
import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, Field, create_model, model_validator

from dpdm.errors import UserError
from dpdm.explain import FOLDER, nearest, parse_params
from dpdm.layout import INSTALLED, STUDIES
from dpdm.params import Count, Natural, Strict
from dpdm.sources import SOURCES
from dpdm.sources.base import Source
from dpdm.specs import (
    Accountant,
    Coordinates,
    EachOnce,
    Epsilon,
    EvaluationSpec,
    FidSpec,
    Impl,
    Name,
    Names,
    Noise,
    Part,
    Parts,
    PathEpsilon,
    Recipe,
    RunSpec,
    SampleSpec,
    Selection,
    Text,
    epsilon_text,
)
from dpdm.yaml_file import merge, overlay, read_yaml, without_nulls

ANCHORS = ("real", "label_only")
RECIPES = STUDIES / "shared" / "recipes.yaml"
DIRECT = "direct"  # the protocol of a classifier method, which was trained on the private images themselves
RESERVED_STUDIES = ("data", "published", "examples", "by_hand", "kept")
PAPER_SCALE = "paper"
AGAIN = "name the study file (YAML), or let `dpdm run STUDY` write study.json again"
VERSION = 2  # of study.json; raised when a change of the schema makes older files invalid
Epsilons = Annotated[tuple[Epsilon, ...], Field(strict=False, min_length=1), EachOnce]
Seeds = Annotated[tuple[Natural, ...], Field(strict=False, min_length=1), EachOnce]


class DatasetKeys(Strict):
    """The keys of any data set in a study, in addition to those of its source."""

    delta: Annotated[float, Field(gt=0, lt=1)] | Literal["1/(2n)"] = Field(
        description="delta of every run on this data set: a number, or `1/(2n)`, by its number of training images"
    )
    allow_large_delta: bool = Field(
        False, description="accept delta >= 1/n, which permits publishing a record outright"
    )
    epsilons: Epsilons | None = Field(
        None, description="epsilons of the study at which this data set is run, e.g. `[10]`; default: all"
    )

    def source_spec(self) -> Source:
        """The keys that determine the images."""
        kind = SOURCES[self.source]
        return kind(**{name: getattr(self, name) for name in kind.model_fields})


DATASETS = {
    name: create_model(f"{kind.__name__}Dataset", __base__=(DatasetKeys, kind)) for name, kind in SOURCES.items()
}
AnyDataset = Annotated[Union[tuple(DATASETS.values())], Field(discriminator="source")]  # noqa: UP007


class When(Strict):
    """Which runs are meant; a key that is left out matches all."""

    dataset: Name | None = Field(None, description="runs on this data set")
    epsilon: Epsilon | None = Field(None, description="runs at this epsilon")

    def matches(self, dataset: str, epsilon: float) -> bool:
        """Whether the run of `dataset` at `epsilon` is meant."""
        return self.dataset in (None, dataset) and self.epsilon in (None, epsilon)


class Override(Strict):
    """Recipe changes for some runs; nested mappings are merged key by key."""

    when: When = Field(description="which runs: `dataset`, `epsilon`, both, or `{}` for all")
    params: Recipe = Field({}, description="changes of the recipe")
    samplers: dict[Name, Recipe] = Field({}, description="changes of samplers, by their names")


class Unverified(Strict):
    """A part of a recipe that could not be verified against the paper; noted below the tables, changes no run."""

    what: Text = Field(description="in a few words, for the note")
    when: When = Field(When(), description="for which runs: `dataset`, `epsilon`, or both; default: all")
    samplers: Names | None = Field(None, description="for which samplers; default: all")


class TuningSpec(Strict):
    """How a recipe was found; printed in the report, changes no run."""

    settings: Natural = Field(description="how many settings were tried to find this recipe; 0: fixed beforehand")
    data: Text = Field(description="on which data they were tried")


class TableEntry(Strict):
    """Which runs of a study are compared with which row of a published table."""

    method: Name = Field(description="a method of this study")
    sampler: Name | None = Field(None, description="one of its samplers; optional where it has only one, or none")
    published: Text = Field(description="column `method` of results/published/published.csv")
    variant: str = Field("", description="column `variant` of that file")


class MethodSpec(Strict):
    """One method of a study: code, recipe, samplers."""

    impl: Impl = Field(description="the code, `module:Class`; two names may share one")
    recipe: Name | None = Field(
        None,
        exclude=True,  # resolved by `parse_study`
        description="a recipe of config/shared/recipes.yaml; the keys below override it, mappings key by key",
    )
    kind: Literal["generator", "classifier"] = Field(
        "generator",
        description="`generator`: draws images, which are judged; `classifier`: is trained on the private images and "
        "judged itself, without samplers",
    )
    params: Recipe = Field({}, description="the method's recipe; its keys are those of `class Params` in its file")
    samplers: dict[Name, Recipe] = Field(
        default_factory=lambda fields: {} if fields.get("kind") == "classifier" else {"default": {}},
        description="ways to sample one trained model, by name: keys of the method's `class SamplerParams`, and "
        "`tv_weight` (total variation denoising of the images); default: one, `default: {}`",
    )
    overrides: Annotated[tuple[Override, ...], Field(strict=False)] = Field(
        (), description="recipe changes for some runs"
    )
    datasets: Names | None = Field(
        None, description="the data sets that it serves, e.g. `[mnist, fashion_mnist]`; default: all"
    )
    epsilons: Epsilons | None = Field(
        None,
        exclude_if=lambda epsilons: epsilons is None,  # a study without it keeps its study.json
        description="epsilons of the study at which it is run, e.g. `[1, 10]`; default: all",
    )
    seeds: Seeds | None = Field(
        None,
        exclude_if=lambda seeds: seeds is None,
        description="seeds of the study with which it is run, e.g. `[0, 1, 2]` where its runs take long; default: all",
    )
    gpus_per_run: Count = Field(
        1,
        description="GPUs of one machine that train one run together, through torchrun: each batch is split into "
        "chunks of `dp.max_physical_batch_size`, which should be well below the batch; a change retrains nothing",
    )
    tuning: TuningSpec | None = Field(
        None, description="how this recipe was found: the report shows it; a change retrains nothing"
    )
    scale: Text | None = Field(
        None,
        description="`paper` (run at the paper's scale), or in a few words how it is not (`width 16, 1,000 steps of "
        "128`): the paper's tables mark such numbers and quote the words",
    )
    unverified: Annotated[tuple[Unverified, ...], Field(strict=False)] = Field(
        (),
        description="parts of the recipe that could not be verified against the paper, and for which runs: the paper's "
        "tables mark their numbers and quote the words; a change retrains nothing",
    )


class Study(Strict):
    """A whole study: one YAML file."""

    study: Name = Field(description="name of the study and of its folder under `results_dir`")
    datasets: Annotated[dict[Name, AnyDataset], Field(min_length=1)] = Field(
        description="the data sets by name: where their images come from, and delta"
    )
    epsilons: Annotated[tuple[PathEpsilon, ...], Field(strict=False, min_length=1), EachOnce] = Field(
        description="privacy budgets; `.inf` runs the same code without noise"
    )
    seeds: Seeds = Field(description="one run per seed; tables show mean ± std over them")
    accountant: Accountant = Field(
        "rdp",
        description="`rdp` (the paper's), `prv` or `pld` (tighter): calibrates the noise; the audit uses all three",
    )
    noise: Noise = Field(
        "repeatable",
        description="`repeatable`: noise and batches follow from recipe, seed and data, so a run can be repeated, and "
        "is private only against those who do not know the seed; `secret`: from a key of the operating system, for "
        "real data ([docs/real_data.md](../docs/real_data.md))",
    )
    methods: Annotated[dict[Name, MethodSpec], Field(min_length=1)] = Field(description="the methods by name")
    anchors: Annotated[tuple[Literal["real", "label_only"], ...], Field(strict=False), EachOnce] = Field(
        ANCHORS, description="reference rows without a mechanism: `real` (ceiling), `label_only` (floor)"
    )
    evaluation: EvaluationSpec = Field(description="how synthetic images are judged")
    results_dir: Annotated[str, Field(pattern=FOLDER), AfterValidator(os.path.normpath)] = Field(
        "results",  # commands and patterns contain it without quotes
        description="folder of all results, relative to the folder in which Snakemake runs",
    )
    allow_mixed_code: bool = Field(False, description="let one table mix runs that different versions of the code made")
    tables: dict[Name, Annotated[tuple[TableEntry, ...], Field(strict=False)]] = Field(
        {},
        description="by published table (`table_1`, ...) the runs that are compared with its rows "
        "([docs/reproducing.md](../docs/reproducing.md))",
    )
    allow_mixed_protocols: bool = Field(
        False,
        description="let one table mix accuracies of several protocols; the seeds of one row never mix them",
    )
    attacks: bool = Field(
        False,
        description="attack the mechanisms of every private run, and show a lower bound of epsilon next to the target "
        "([docs/privacy.md](../docs/privacy.md)); `snakemake attacks` does it on demand; a change retrains nothing",
    )

    only: Part = Field(
        None,
        exclude_if=lambda part: part is None,  # the JSON of a whole study does not mention parts
        description="a part of the grid, the runs that match all keys: `{method: [dpdm, pearl], epsilon: [1]}` or as "
        "text `method=dpdm,pearl epsilon=1`; on the command line `dpdm run STUDY --only method=dpdm` or `snakemake "
        "--config only='method=dpdm epsilon=1'`; tables and report say that they show a part; no run changes",
    )
    without: Parts = Field(
        None,
        exclude_if=lambda part: part is None,
        description="runs to leave out, in the same form: those that match all keys. Several, in a list or as texts "
        "with ` or ` between them, leave out the runs that match one of them",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if self.study in RESERVED_STUDIES:
            raise ValueError(f"study: the name {self.study!r} is taken by a folder of all studies; choose another")
        for key, name, spec in [(k, *item) for k in ("datasets", "methods") for item in getattr(self, k).items()]:
            for field, text in (("epsilons", epsilon_text), ("seeds", str)):
                known = getattr(self, field)
                if unknown := [value for value in getattr(spec, field, None) or () if value not in known]:
                    raise ValueError(
                        f"{key}.{name}.{field}: {text(unknown[0])} is none of the study's {field}, "
                        f"{', '.join(map(text, known))}; add it there"
                    )
        if idle := set(self.seeds).difference(*map(self.seeds_of, self.methods)):
            raise ValueError(f"seeds: no method is run with {min(idle)}; delete it, or add it to one")
        if idle := set(self.epsilons).difference(*map(self.epsilons_of, self.datasets)):
            raise ValueError(f"epsilons: no dataset is run at {epsilon_text(min(idle))}; delete it, or add it to one")
        if taken := set(ANCHORS) & set(self.methods):
            raise ValueError(f"methods.{taken.pop()}: this name belongs to an anchor row; choose another")
        for method, spec in self.methods.items():
            at = f"methods.{method}"
            if spec.samplers and spec.kind == "classifier":
                raise ValueError(f"{at}.samplers: a classifier draws no images; leave them out, or set kind: generator")
            if not spec.samplers and spec.kind == "generator":
                raise ValueError(f"{at}.samplers: a generator needs a sampler; leave them out for one called default")
            for number, dataset in enumerate(spec.datasets or ()):
                if dataset not in self.datasets:
                    hint = nearest(dataset, self.datasets)
                    raise ValueError(f"{at}.datasets[{number}]: no dataset {dataset!r}; {hint}")
            for key in ("overrides", "unverified"):
                for number, part in enumerate(getattr(spec, key)):
                    self._check_part(f"{at}.{key}[{number}]", method, part)
        samplers = dict.fromkeys(name for spec in self.methods.values() for name in spec.samplers)
        known = {"dataset": self.datasets, "method": self.methods, "epsilon": [*map(epsilon_text, self.epsilons)],
                 "seed": [*map(str, self.seeds)], "sampler": samplers}  # fmt: skip
        for place, chosen in self._parts():
            for key, values in chosen.texts().items():
                if unknown := [value for value in values if value not in known[key]]:
                    hint = nearest(unknown[0], known[key])
                    raise ValueError(f"{place}.{key}: the study has no {key} {unknown[0]!r}; {hint}")
        if self.part() and not self.runs():
            raise ValueError(f"{' and '.join(dict(self._parts()))}: no run of the study is left by {self.part()}")
        return self

    def _parts(self) -> list[tuple[str, Selection]]:
        return [("only", self.only)] * (self.only is not None) + [("without", part) for part in self.without or ()]

    def _check_part(self, place: str, method: str, part: Override | Unverified) -> None:
        """Refuses a part of a method's recipe that applies to no run of this study."""
        served, samplers = self.datasets_of(method), self.methods[method].samplers
        if (dataset := part.when.dataset) not in (None, *self.datasets):
            raise ValueError(f"{place}.when.dataset: no dataset {dataset!r}; {nearest(dataset, self.datasets)}")
        if not any(part.when.matches(d, e) for d in served for e in self.epsilons_of(d, method)):
            cells = (f"{d} at epsilon {', '.join(map(epsilon_text, self.epsilons_of(d, method)))}" for d in served)
            raise ValueError(f"{place}.when matches no run of this study: {method} is run on {'; '.join(cells)}")
        if unknown := set(part.samplers or ()) - set(samplers):
            known = ", ".join(samplers) or "none, being a classifier"
            raise ValueError(f"{place}.samplers: no sampler {unknown.pop()!r}; the method has {known}")

    def datasets_of(self, method: str) -> tuple[str, ...]:
        """The datasets that a method serves."""
        return self.methods[method].datasets or tuple(self.datasets)

    def epsilons_of(self, dataset: str, method: str | None = None) -> tuple[float, ...]:
        """The epsilons at which a dataset is run, or a method on it, in the study's order."""
        chosen = [self.datasets[dataset].epsilons, self.methods[method].epsilons if method else None]
        return tuple(e for e in self.epsilons if all(part is None or e in part for part in chosen))

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """The seeds with which a method is run, in the study's order."""
        return tuple(seed for seed in self.seeds if seed in (self.methods[method].seeds or self.seeds))

    def is_classifier(self, method: str) -> bool:
        """Whether `method` is a classifier, which draws no images; false for an anchor."""
        return method in self.methods and self.methods[method].kind == "classifier"

    def run(self, dataset: str, method: str, epsilon: float, seed: int) -> RunSpec:
        """The resolved spec of one run of the grid; UserError if the study has no such cell."""
        spec = self.methods[method]
        if dataset not in self.datasets_of(method):
            raise UserError(f"{method} does not serve {dataset}; add it to methods.{method}.datasets of the study")
        if epsilon not in self.epsilons_of(dataset, method):
            raise UserError(
                f"{method} is not run on {dataset} at epsilon {epsilon_text(epsilon)}; add it to the study's epsilons, "
                f"and to datasets.{dataset}.epsilons and methods.{method}.epsilons if there are any"
            )
        if seed not in self.seeds_of(method):
            raise UserError(
                f"{method} is not run with seed {seed}; add it to the study's seeds, and to methods.{method}.seeds if "
                "there are any"
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
        """Every run of the grid, or of its part: datasets x the methods that serve them x their epsilons x seeds."""
        return [
            self.run(dataset, method, epsilon, seed)
            for dataset, method in itertools.product(self.datasets, self.methods)
            if dataset in self.datasets_of(method)
            for epsilon in self.epsilons_of(dataset, method)
            for seed in self.seeds_of(method)
            if self._units(dataset, method, epsilon, seed)
        ]

    def _units(self, dataset: str, method: str, epsilon: float, seed: int) -> list[str]:
        """The samplers of a run that `only` and `without` keep; [""] for a classifier that they keep."""
        place, only = (dataset, method, epsilon, seed), self.only or Selection()
        units = list(self.methods[method].samplers) or [""]
        kept = [unit for unit in units if not (unit and only.sampler) or unit in only.sampler]
        for without in self.without or ():
            if without.matches(*place):
                kept = [unit for unit in kept if unit not in (without.sampler or units)]
        return kept if only.matches(*place) else []

    def samplers_of(self, run: RunSpec) -> tuple[str, ...]:
        """The samplers whose synthetic sets of a run are wanted; none for a classifier."""
        return tuple(filter(None, self._units(run.dataset, run.method, run.epsilon, run.seed)))

    def part(self) -> str:
        """Which part of the study's grid is run, in words; empty for the whole grid."""
        return ", ".join(f"{word} {selection}" for word, selection in self._parts())

    def attacked_runs(self) -> list[RunSpec]:
        """The runs whose mechanism is attacked: one of each private cell, since its seeds share the mechanism."""
        first: dict[tuple[str, ...], RunSpec] = {}
        for run in self.runs():
            if math.isfinite(run.epsilon):
                first.setdefault(run.place[:3], run)
        return list(first.values())

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

    def fid(self) -> FidSpec:
        """The study's `fid`, or the defaults if a file of Inception is requested by hand."""
        return self.evaluation.fid or FidSpec()

    def scoring(self, coordinates: Coordinates) -> dict[str, Strict]:
        """What determines the scores of a synthetic set, except `fid`: adding the FID repeats no other score."""
        return {"coordinates": coordinates, "evaluation": self.evaluation.model_copy(update={"fid": None})}

    def anchor_coordinates(self) -> list[Coordinates]:
        """The anchor rows: real images and label-only noise, once per dataset and seed that has a run."""
        runs = self.runs()
        datasets, seeds = {run.dataset for run in runs}, {run.seed for run in runs}
        return [
            Coordinates(study=self.study, dataset=dataset, method=anchor, epsilon=None, seed=seed)
            for dataset, anchor, seed in itertools.product(self.datasets, self.anchors, self.seeds)
            if dataset in datasets and seed in seeds
        ]


def load_study(files: str | Path) -> Study:
    """Reads and checks a study; each of several files (see `study_files`) overrides those before it.

    UserError if a file cannot be read, is not YAML, or the study breaks the schema.
    """
    names = study_files(files)
    if Path(names[0]).resolve().parent in (STUDIES / "scale", STUDIES / "shared"):
        raise UserError(
            f"{names[0]} is no whole study; lay a file of config/scale over its study, as in "
            "config/ablation_sampler.yaml,config/scale/laptop_sampler.yaml"
        )
    values = {name: read_yaml(name) for name in names}
    for name, value in values.items():
        if not isinstance(value, dict) or not value:
            found = reprlib.repr(value) if value else "nothing"
            raise UserError(f"{name} holds {found} where a study is wanted; `dpdm list studies` shows those of dpdm")
    return parse_study(functools.reduce(overlay, values.values()), " ".join(names), overlaid=len(names) > 1)


def study_files(files: str | Path) -> list[str]:
    """The files of a study: each path as given or, without such a file, the shipped study of that name (`digits`)."""
    shipped, names = shipped_studies(), [str(files)] if os.path.isfile(files) else str(files).split(",")
    for name in names:
        if not os.path.isfile(name) and name not in shipped:
            meant = nearest(Path(name).stem, shipped, "dpdm has")
            raise UserError(f"there is no study {name}: name a YAML file that is there, or one of dpdm; {meant}")
    return [name if os.path.isfile(name) else shipped[name] for name in names]


def shipped_studies() -> dict[str, str]:
    """The files of the studies of dpdm, by name."""
    return {path.stem: str(path) for path in sorted(STUDIES.glob("*.yaml"))}


def shown_file(path: str | Path) -> str:
    """The inverse of `study_files` for one file: its path from the working folder, or the name of a wheel's study."""
    path = Path(path).absolute()
    return path.stem if INSTALLED and path.parent == STUDIES else os.path.relpath(path)


def parse_study(value: Any, origin: str, overlaid: bool = False) -> Study:
    """Checks a study that has been read; a UserError names `origin`, the YAML path and the fix.

    Args:
        overlaid: whether it was merged from several files; a null then removes a key (as in a JSON merge patch, RFC
            7386).
    """
    if not isinstance(value, dict) or not value:
        raise UserError(
            f"{origin} holds no study; name one with --configfile, e.g. config/digits.yaml (--workflow-profile "
            "replaces profiles/default, which names one; --profile adds to it)"
        )
    value = without_nulls(value) if overlaid else dict(value)
    if (version := value.pop("version", VERSION)) != VERSION:  # a study.json has one
        raise UserError(f"{origin} has version {version!r}, and this dpdm reads version {VERSION}; {AGAIN}")
    if isinstance(methods := value.get("methods"), dict):
        where = f"{origin}: methods"
        value["methods"] = {name: _with_recipe(spec, f"{where}.{name}.recipe") for name, spec in methods.items()}
    return parse_params(Study, value, origin)


def _with_recipe(spec: Any, where: str) -> Any:
    """The entry of a method, merged over the shared recipe that it names."""
    if not isinstance(spec, dict) or spec.get("recipe") is None:
        return spec
    recipes, name = _recipes(), str(spec["recipe"])
    if name not in recipes:
        raise UserError(f"{where}: {RECIPES.name} has no recipe {name!r}; {nearest(name, recipes)}")
    return merge(recipes[name], {key: value for key, value in spec.items() if key != "recipe"})


@functools.cache
def _recipes() -> dict[str, Any]:
    return read_yaml(RECIPES)


def check_writable(folder: str | Path) -> None:
    """UserError if the results folder cannot be written; called before any compute is spent."""
    folder = Path(folder).absolute()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise UserError(f"the results folder {folder} cannot be made: {existing} is a file; move it or set results_dir")
    if not os.access(existing, os.W_OK):
        raise UserError(f"the results folder {folder} is not writable; change its rights, or set results_dir")
