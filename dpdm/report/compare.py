"""Several results folders, or one study at several commits, in one table: no column mixes protocols or extractors."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from dpdm import artifacts
from dpdm.config import ANCHORS
from dpdm.errors import UserError
from dpdm.layout import Layout
from dpdm.report.collect import METRICS, read_csv
from dpdm.report.tables import Table, metric_columns, page, results_table, with_values


def compare(folders: Sequence[str | Path]) -> tuple[Table, str]:
    """One table over results folders: a row per data set, epsilon, method, sampler and source (study and commit).

    Accuracies of several protocols have a column each, which names it. Distances of a data set are shown only where all
    sources measured them with one extractor and from equally many images; else a note names the sources. Two folders
    are compared in this by what their score files say of the extractor: without them it counts as another.

    Args:
        folders: each with a metrics.csv: the results folder of a study, or a copy that was kept.

    Returns:
        The table, and a page (HTML) that shows it.

    Raises:
        UserError: a folder is named twice or holds no metrics.csv of this version, or two folders have different images
            under one name of a data set.
    """
    read = _read(folders)
    _check_data(read)
    metrics = pd.concat(_labelled(read), ignore_index=True)
    metrics, notes = _without_other_extractors(metrics, read)
    accuracy = metrics["metric"].str.startswith("acc_")
    several = accuracy & (metrics.groupby("metric")["protocol"].transform("nunique") > 1)
    metrics["extractor"] = metrics["extractor"].where(~several, metrics["protocol"])  # so that each has a column
    table = results_table(metrics, metric_columns(with_values(metrics)), mixed=False)
    table = replace(table, notes=(*_source_notes(metrics), *notes))
    return table, page("Studies compared", table)


def _read(folders: Sequence[str | Path]) -> dict[str, pd.DataFrame]:
    """The metrics of each folder."""
    found: dict[str, pd.DataFrame] = {}
    seen: dict[Path, str] = {}
    for folder in map(str, folders):
        where = Path(folder).resolve()
        if where in seen:
            raise UserError(f"{folder} is the folder {seen[where]} again; name each results folder once")
        seen[where] = folder
        file = Path(folder, "metrics.csv")
        if not file.is_file():
            raise UserError(f"{folder} holds no metrics.csv: name a results folder; `dpdm run STUDY tables` makes one")
        found[folder] = read_csv(file, METRICS)
    return found


def _labelled(read: Mapping[str, pd.DataFrame]) -> list[pd.DataFrame]:
    """The metrics with the columns `folder` and `source`; a source that two folders have names its folder."""
    frames = [frame.assign(folder=folder, source=_source(frame)) for folder, frame in read.items()]
    sources = [source for frame in frames for source in frame["source"].unique()]
    for frame in frames:
        twice = frame["source"].map(sources.count) > 1
        frame.loc[twice, "source"] += ", " + frame["folder"]
    return frames


def _source(frame: pd.DataFrame) -> pd.Series:
    commit, _, dirty = (frame["commit"].str.partition("-")[i] for i in range(3))
    return frame["study"] + " @ " + commit.str[:7] + dirty.map(lambda text: f"-{text}" if text else "")


def _check_data(read: Mapping[str, pd.DataFrame]) -> None:
    """Refuses two folders with different images under one name."""
    known: dict[str, tuple[str, str]] = {}
    for folder, frame in read.items():
        for dataset in frame["dataset"].unique():
            file = Path(Layout.of(folder).data(dataset, "dataset.json"))
            images = artifacts.read_json(file, ("sha256",))["sha256"] if file.is_file() else None
            other, others = known.setdefault(dataset, (folder, images)) if images else (folder, images)
            if others != images:
                raise UserError(
                    f"{other} and {folder} have different images under the name {dataset}; compare studies of the same "
                    "data set"
                )


def _without_other_extractors(
    metrics: pd.DataFrame, read: Mapping[str, pd.DataFrame]
) -> tuple[pd.DataFrame, list[str]]:
    """The metrics without those whose extractors, or numbers of images, differ between folders; and a note on each."""
    facts = {folder: _extractors(folder) for folder in read}
    keep, notes = pd.Series(True, metrics.index), []
    measured = metrics[metrics["extractor"] != ""]
    for (dataset, extractor), rows in measured.groupby(["dataset", "extractor"], sort=False):
        counts = rows.loc[rows["method"] != ANCHORS[0], "num_synthetic"].unique()
        kinds = {
            folder: facts[folder].get((dataset, extractor), {f"unknown, of {folder}"})
            for folder in rows["folder"].unique()
        }
        several = len(kinds) > 1 and len(set().union(*kinds.values())) > 1
        if several or len(counts) > 1:
            keep[rows.index] = False
            names = ", ".join(
                dict.fromkeys(name.upper() if name in ("fd", "kid", "fid") else name for name in rows["metric"])
            )
            why = (
                f"nothing says that the extractor {extractor} is the same in {' and '.join(kinds)}"
                if several
                else f"they rest on different numbers of images ({', '.join(f'{n:,}' for n in sorted(counts))})"
            )
            notes.append(f"Left out on {dataset}: {names}, since {why}.")
    return metrics[keep], notes


def _extractors(folder: str) -> dict[tuple[str, str], set[str]]:
    """By data set and extractor, what the score files below a folder say of it."""
    found: dict[tuple[str, str], set[str]] = {}
    for name in ("fidelity.json", "inception.json"):
        for path in sorted(Path(folder).rglob(name)):
            content = artifacts.read_json(path, ("coordinates", "metrics"))
            for extractor in {row.get("extractor", "") for row in content["metrics"]}:
                place = content["coordinates"].get("dataset", ""), extractor
                found.setdefault(place, set()).add(json.dumps(content.get(extractor), sort_keys=True))
    return found


def _source_notes(metrics: pd.DataFrame) -> list[str]:
    """Where each source lies, and how many images its sets have."""
    notes = []
    for source, rows in metrics.groupby("source", sort=False):
        counts = sorted(set(rows.loc[rows["sampler"] != "", "num_synthetic"]))
        images = f", synthetic sets of {', '.join(f'{n:,}' for n in counts)} images" if counts else ""
        notes.append(f"{source}: {', '.join(rows['folder'].unique())}{images}, commit {rows['commit'].iloc[0]}.")
    return notes
