"""Several results folders, or one study at several commits, in one table without mixed protocols or extractors."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT
from dpdm.errors import UserError
from dpdm.layout import Layout
from dpdm.report.collect import METRICS, read_csv
from dpdm.report.tables import Table, metric_columns, page, results_table, with_values

TITLE = "Studies compared"  # of the page


def compare(folders: Sequence[str | Path]) -> tuple[Table, str]:
    """One table over folders with a metrics.csv, and a page (HTML) that shows it.

    It has a row per data set, epsilon, method, sampler and source (study and commit). Accuracies of other protocols, or
    of sets with other numbers of images, have separate columns, which name these. Distances of a data set are shown
    only if, by their score files, all sources measured them with one extractor and equally many images; otherwise a
    note names the sources.

    Raises:
        UserError: a folder is named twice or holds no metrics.csv of this version with rows, or two folders have
            different images under one name of a data set.
    """
    metrics, notes = _without_other_extractors(_read(folders))
    accuracy, kinds = metrics["metric"].str.startswith("acc_"), _training(metrics)
    several = accuracy & (kinds.groupby(metrics["metric"]).transform("nunique") > 1)
    metrics["extractor"] = metrics["extractor"].where(~several, kinds)  # so that each has a column
    table = results_table(metrics, metric_columns(with_values(metrics)), mixed=False)
    table = replace(table, notes=(*_source_notes(metrics), *notes))
    return table, page(TITLE, table)


def _training(metrics: pd.DataFrame) -> pd.Series:
    """The protocol of each row; and the number of images, if sets of one data set and protocol have several.

    An anchor gets the number of the sets in its folder, since it is their ceiling or floor.
    """
    sets = metrics["sampler"] != ""
    if metrics[sets].groupby(["dataset", "protocol"])["num_synthetic"].nunique().le(1).all():
        return metrics["protocol"]
    of_folder = metrics["num_synthetic"].where(sets).groupby([metrics["folder"], metrics["dataset"]]).transform("max")
    images = metrics["num_synthetic"].where(sets, of_folder).map("{:,.0f} images".format, na_action="ignore")
    return (metrics["protocol"] + ", " + images).where(metrics["protocol"] != DIRECT).fillna(metrics["protocol"])


def _read(folders: Sequence[str | Path]) -> pd.DataFrame:
    """The metrics with the columns `folder` and `source`; a source in two folders names its folder."""
    frames, seen = [], {}
    images: dict[str, tuple[str, str]] = {}  # by data set: the first folder with a digest, and the digest
    for folder in map(str, folders):
        where, file = Path(folder).resolve(), Path(folder, "metrics.csv")
        if where in seen:
            raise UserError(f"{folder} is the folder {seen[where]} again; name each results folder once")
        seen[where] = folder
        if not file.is_file():
            fault = "holds no metrics.csv" if where.is_dir() else "is a file" if where.exists() else "is not there"
            others = (f"{folder}/kept", f"results/{folder}", f"results/{folder}/kept")
            meant = next((f", such as {other}" for other in others if Path(other, file.name).is_file()), "")
            raise UserError(
                f"{folder} {fault}: name a results folder with a metrics.csv{meant}; `dpdm run STUDY tables` makes one"
            )
        frames.append(read_csv(file, METRICS).assign(folder=folder))
        if frames[-1].empty:
            raise UserError(f"{file} has no rows; `dpdm run STUDY tables` makes it again")
        for dataset in frames[-1]["dataset"].unique():
            facts = Path(Layout.of(folder).data(dataset, "dataset.json"))
            ours = facts.is_file() and artifacts.read_json(facts, ("sha256",))["sha256"]
            other, theirs = images.setdefault(dataset, (folder, ours)) if ours else (folder, ours)
            if theirs != ours:
                raise UserError(
                    f"{other} and {folder} have different images under the name {dataset}; compare studies of the same "
                    "data set"
                )
    metrics = pd.concat(frames, ignore_index=True)
    metrics["source"] = metrics["study"] + " @ " + metrics["commit"].str.replace("^([^-]{,7})[^-]*", r"\1", regex=True)
    twice = metrics.groupby("source")["folder"].transform("nunique") > 1
    metrics.loc[twice, "source"] += ", " + metrics["folder"]
    return metrics


def _without_other_extractors(metrics: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """The metrics except those whose extractors or numbers of images differ between folders; and a note on each."""
    facts = {folder: _extractors(folder) for folder in metrics["folder"].unique()}
    keep, notes = pd.Series(True, metrics.index), []
    for place, rows in metrics[metrics["extractor"] != ""].groupby(["dataset", "extractor"], sort=False):
        kinds, counts = {}, set()
        for folder, some in rows.groupby("folder", sort=False):
            kinds[folder], judged = facts[folder].get(place, ({f"unknown, of {folder}"}, set()))
            counts |= judged or set(some.loc[some["method"] != ANCHORS[0], "num_synthetic"])
        if len(kinds) > 1 and len(set().union(*kinds.values())) > 1:
            why = f"nothing says that the extractor {place[1]} is the same in {' and '.join(kinds)}"
        elif len(counts) > 1:
            why = f"they rest on different numbers of images ({', '.join(f'{n:,}' for n in sorted(counts))})"
        else:
            continue
        keep[rows.index] = False
        names = (name.upper() if name in ("fd", "kid", "fid") else name for name in rows["metric"].unique())
        notes.append(f"Left out on {place[0]}: {', '.join(names)}, since {why}.")
    return metrics[keep], notes


def _extractors(folder: str) -> dict[tuple[str, str], tuple[set[str], set[int]]]:
    """By data set and extractor, from the score files below a folder: facts about the extractor, numbers of images."""
    found: dict[tuple[str, str], tuple[set[str], set[int]]] = {}
    for path in sorted(p for name in ("fidelity.json", "inception.json") for p in Path(folder).rglob(name)):
        content = artifacts.read_json(path, ("coordinates", "metrics"))
        for extractor in {row.get("extractor", "") for row in content["metrics"]} & content.keys():
            facts, counts = found.setdefault((content["coordinates"].get("dataset", ""), extractor), (set(), set()))
            facts.add(json.dumps(content[extractor], sort_keys=True))
            judged = content.get("num_judged", content.get("num_synthetic"))
            counts.update({judged} if judged and content["coordinates"].get("method") != ANCHORS[0] else ())
    return found


def _source_notes(metrics: pd.DataFrame) -> list[str]:
    """The folder of each source, and the number of images of its sets."""
    notes = []
    for source, rows in metrics.groupby("source", sort=False):
        counts = sorted(set(rows.loc[rows["sampler"] != "", "num_synthetic"]))
        images = f", synthetic sets of {', '.join(f'{n:,}' for n in counts)} images" if counts else ""
        notes.append(f"{source}: {', '.join(rows['folder'].unique())}{images}, commit {rows['commit'].iloc[0]}.")
    return notes
