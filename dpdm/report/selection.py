"""The report's selection from a study: the runs of the paper's tables, and the numbers that the study varies.

Imports no numerical library, since the Snakefile loads it at every start.
"""

import csv
import functools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from dpdm.config import Study, TableEntry
from dpdm.errors import UserError
from dpdm.explain import nearest
from dpdm.layout import PUBLISHED, Layout
from dpdm.specs import RunSpec

# The tables of the DPDM paper (arXiv v1) by number. The key `tables` of a study names them table_1 and so on.
PAPER_TABLES = {
    1: "main results",
    2: "classifiers trained on synthetic data, and by DP-SGD on the real ones",
    3: "noise multiplicity K",
    4: "CelebA",
    5: "DM config",
    6: "samplers",
}


class Sweep(NamedTuple):
    """A number that a study varies, all else equal: one parameter in which methods, or one method's samplers, differ.

    A line connects the values to compare: the sampler that all methods share, or the method of the samplers.
    """

    key: str  # dotted, as dp.steps
    values: dict[tuple[str, float, str, str, str], float]  # dataset, epsilon, line, method, sampler ("": a classifier)


def check_entries(study: Study) -> None:
    """Checks the `tables` of a study against its methods and samplers.

    Raises:
        UserError: the paper has no such table; an entry names a method or sampler that the study lacks, names none of
            several samplers, or shares its published row with another entry.
    """
    known = [f"table_{number}" for number in PAPER_TABLES]
    for table, entries in study.tables.items():
        if table not in known:
            raise UserError(f"tables.{table}: the paper has no such table; {nearest(table, known)}")
        for number, entry in enumerate(entries):
            place = f"tables.{table}[{number}]"
            if entry.method not in study.methods:
                raise UserError(f"{place}.method: no method {entry.method!r}; {nearest(entry.method, study.methods)}")
            samplers = study.methods[entry.method].samplers
            if entry.sampler is None and len(samplers) > 1:
                raise UserError(f"{place} lacks the key sampler: {entry.method} has {', '.join(samplers)}")
            if entry.sampler is not None and entry.sampler not in samplers:
                hint = nearest(entry.sampler, samplers) if samplers else "a classifier has none: leave the key out"
                raise UserError(f"{place}.sampler: no sampler {entry.sampler!r}; {hint}")
            for other in entries[:number]:  # classifiers may share a row, of which each has one accuracy
                same_row = (other.published, other.variant) == (entry.published, entry.variant)
                if same_row and (samplers or study.methods[other.method].samplers or other.method == entry.method):
                    raise UserError(f"{place}: {other.method} is mapped to this published row already; delete one")


def sampler_of(study: Study, entry: TableEntry) -> str | None:
    """The sampler that an entry of `tables` means; None for a classifier."""
    return entry.sampler or next(iter(study.methods[entry.method].samplers), None)


def table_runs(
    study: Study, table: str, places: Collection[tuple[str, int | None]], runs: Sequence[RunSpec] | None = None
) -> list[tuple[str, str, str]]:
    """(dataset, method, sampler) of everything in table `table_N` of the paper, at each epsilon of the dataset.

    These are the entries of `tables`, in table 1 also all generators, and in table 2 also all classifiers: on the
    datasets for which the table has numbers, or on all datasets if there are none. The sampler of a classifier is "".

    Args:
        places: the published datasets of the table, see `Source.published_as`.
        runs: the study's runs, if the caller has them; for a large study they take a while.
    """
    runs = study.runs() if runs is None else runs
    mapped = {(entry.method, sampler_of(study, entry) or "") for entry in study.tables.get(table, ())}
    kind = {"table_1": "generator", "table_2": "classifier"}.get(table)
    has = {(run.dataset, run.method, name) for run in runs for name in study.samplers_of(run) or ("",)}
    shared = [dataset for dataset, spec in study.datasets.items() if spec.published_as() in places]
    return [
        (dataset, method, sampler)
        for dataset in shared or study.datasets
        for method, spec in study.methods.items()
        for sampler in spec.samplers or ("",)
        if (dataset, method, sampler) in has and (spec.kind == kind or (method, sampler) in mapped)
    ]


def score_files(study: Study) -> tuple[str, ...]:
    """The files of the scores of one synthetic set, or of an anchor."""
    return ("fidelity.json", "utility.json", *["inception.json"] * (study.evaluation.fid is not None))


@functools.cache
def _published_places(published: str) -> set[tuple[str, str, int]]:
    """The paper's tables, their data sets, and the sides of their images; nothing if the file cannot be read."""
    try:
        with open(published, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["protocol"] == "paper"]
        return {(f"table_{row['table']}", row["dataset"], int(row["resolution"])) for row in rows}
    except (OSError, KeyError, TypeError, ValueError, csv.Error):
        return set()


def table_files(
    study: Study, layout: Layout, number: int, published: str = PUBLISHED, runs: Sequence[RunSpec] | None = None
) -> list[str]:
    """The files of scores and audits for table `number` of the paper, existing or not.

    If published.csv cannot be read, no data set is mapped here; `dpdm validate` names the mistake.
    """
    runs = study.runs() if runs is None else runs
    table, found = f"table_{number}", {}
    places = {(dataset, side) for name, dataset, side in _published_places(published) if name == table}
    shown = set(table_runs(study, table, places, runs))
    for run in runs:
        for sampler in study.samplers_of(run) or ("",):
            if (run.dataset, run.method, sampler) in shown:
                scores = [layout.set(*run.place, sampler, name) for name in score_files(study)]
                found |= dict.fromkeys(scores if sampler else [layout.run(*run.place, "utility.json")])
                found[layout.audit(run.dataset, run.method)] = None
    return list(found)


def shown_sets(study: Study, dataset: str) -> list[tuple[RunSpec, str]]:
    """The synthetic sets on a data set's sample page: run and sampler of the first seed of every method and epsilon."""
    runs = [run for run in study.runs() if run.dataset == dataset]
    first = {run.place[:3]: run.seed for run in sorted(runs, key=lambda run: -run.seed)}  # the last one counts
    return [(run, name) for run in runs if run.seed == first[run.place[:3]] for name in study.samplers_of(run)]


def sample_files(study: Study, layout: Layout, dataset: str) -> list[str]:
    """The image files of a data set's sample page: the training set's, then those of `shown_sets`."""
    sets = [layout.set(*run.place, sampler, "synthetic.npz") for run, sampler in shown_sets(study, dataset)]
    return [layout.data(dataset, "train.npz"), *sets]


def sweeps(study: Study) -> list[Sweep]:
    """The numbers that this study varies: parameters of the methods of one impl, then of a method's samplers."""
    runs = study.runs()
    first = list({run.place[:3]: run for run in reversed(runs)}.values())[::-1]  # one seed of each cell
    impls = dict.fromkeys(run.impl for run in first)
    found = [_sweep(study, [run for run in first if run.impl == impl]) for impl in impls]
    merged: dict[str, Sweep] = {}
    for method in dict.fromkeys(run.method for run in first):
        # runs at every start of Snakemake, so only if it can find something
        some = [run for run in first if run.method == method and len(study.methods[method].samplers) > 1]
        if sweep := _sweep(study, some, of_samplers=True):
            merged.setdefault(sweep.key, Sweep(sweep.key, {})).values.update(sweep.values)
    return [sweep for sweep in found if sweep] + list(merged.values())


def _sweep(study: Study, runs: list[RunSpec], of_samplers: bool = False) -> Sweep | None:
    """The one key in which these runs' methods or samplers differ; None if it is not numeric."""
    recipes: dict[tuple[str, float], dict[tuple[str, str, str], dict[str, Any]]] = {}
    for run in runs:
        drawn = {name: study.sample(run, name).sampler_params for name in study.methods[run.method].samplers}
        for name in drawn or ("",):
            recipe = {"params": drawn[name]} if of_samplers else {"params": run.params, "samplers": drawn}
            who = run.method if of_samplers else name, run.method, name
            recipes.setdefault((run.dataset, run.epsilon), {})[who] = _flat(recipe)
    values: dict[str, dict[tuple[str, float, str, str, str], Any]] = {}  # by key
    for place, some in recipes.items():
        for key in {key for recipe in some.values() for key in recipe}:
            if len({repr(recipe.get(key)) for recipe in some.values()}) > 1:  # repr, for 1 == True and 1 == 1.0
                values.setdefault(key, {}).update({(*place, *who): recipe.get(key) for who, recipe in some.items()})
    if len(values) != 1:
        return None
    ((key, of_key),) = values.items()
    numeric = all(type(value) in (int, float) for value in of_key.values())
    return Sweep(key.removeprefix("params."), of_key) if numeric and key.startswith("params.") else None


def _flat(recipe: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; an empty mapping is a value."""
    out = {}
    for key, value in recipe.items():
        nested = isinstance(value, dict) and value
        out |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out
