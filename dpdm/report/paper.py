"""The DPDM paper's tables: each of its numbers, ours, and the reasons why the two are not comparable."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dpdm.config import DIRECT, PAPER_SCALE, Study
from dpdm.errors import UserError
from dpdm.report import tables
from dpdm.report.published import PAPER, datasets_by_published_name, epsilons_run
from dpdm.report.selection import PAPER_TABLES, sampler_of, table_runs
from dpdm.report.tables import MISSING, MetricColumn, Summary, Table
from dpdm.specs import epsilon_text

NOT_RUN = "not run"
NO_VALUE = "no value"
MARK = "†"

# What a like-for-like run has; the paper's accountant, synthetic images and, in its code, training images.
_ACCOUNTANT = "rdp"
_SYNTHETIC_IMAGES = 60_000
_TRAINING_IMAGES = {"mnist": 60_000, "fashion_mnist": 60_000, "celeba": 162_770}

# `fid` means Inception features: a distance by another extractor is called fd and has no column here.
_METRICS = {"fid": "FID", "acc_logreg": "LogReg %", "acc_mlp": "MLP %", "acc_cnn": "CNN %"}


class _Runs(NamedTuple):
    """One method of the study in one cell of its grid: as many runs as there are seeds."""

    dataset: str  # as in the study
    epsilon: str
    method: str
    sampler: str  # "" for a classifier


class _Ours(NamedTuple):
    """What we have for one cell."""

    found: Summary = Summary()
    method: str = ""
    departures: tuple[str, ...] = ()  # how it differs from the paper's, in words
    no_value: bool = False  # it was run, but the metric has no value, as an accuracy without labels
    same_protocol: bool = False  # accuracies: the paper's classifiers; FID: as many images


@dataclass
class _Row:
    """One published row, or one of ours that the paper does not have."""

    dataset: str
    resolution: int | None
    epsilon: str
    method: str = ""
    variant: str = ""
    delta: str = ""
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)  # by metric, of published.csv
    runs: list[_Runs] = field(default_factory=list)


def paper_table(
    number: int, study: Study, metrics: pd.DataFrame, audits: pd.DataFrame, published: pd.DataFrame
) -> Table:
    """Table `number` (1 to 6) of the paper (arXiv v1) with the study's runs, as the study's key `tables` maps them.

    Rows: per data set and epsilon all published rows in the order of the file, then runs of `table_runs` that match no
    row. Data sets of the paper that the study lacks are left out, unless it lacks all of them. A part of a study also
    leaves out the epsilons that it lacks. Columns per metric of the table: ours, the paper's, the difference. What was
    run otherwise than in the paper is marked, and a note says how.

    Args:
        metrics, audits: columns METRICS and AUDITS of dpdm.report.collect.
        published: what `read_published` returned.

    Raises:
        UserError: no such table; two runs for one cell; two data sets for one row.
    """
    chosen = published[(published["protocol"] == PAPER) & (published["table"] == str(number))]
    if number not in PAPER_TABLES or chosen.empty:
        raise UserError(
            f"the paper has no table {number} among the published numbers; choose one of 1 to {len(PAPER_TABLES)}"
        )
    places = list(zip(chosen["dataset"], chosen["resolution"], strict=True))
    named = table_runs(study, f"table_{number}", set(places))
    if shared := set(datasets_by_published_name(study)) & set(places):
        chosen = chosen[[place in shared for place in places]]
    source = ", ".join(dict.fromkeys(chosen["source"]))
    shown = [name for name in _METRICS if name in set(chosen["metric"])]
    chosen = _of_part(study, chosen)
    keys = pd.Series(zip(metrics["dataset"], metrics["method"], metrics["sampler"], strict=True), metrics.index, object)
    metrics = metrics[keys.isin(named)]  # so that the notes do not depend on what else was run
    columns: dict[str, MetricColumn] = {}
    for column in tables.metric_columns(metrics):
        columns.setdefault(column.metric, column)  # of FID's two the training set's, which comes first
    rows, known = _rows(number, study, chosen, named), tables.summaries(metrics, *_Runs._fields)
    ours = [
        {name: _ours(number, row, columns.get(name), study, known, metrics, audits) for name in shown} for row in rows
    ]
    sides = pd.DataFrame(places, columns=["dataset", "side"]).groupby("dataset")["side"].unique().to_dict()
    headers = [header for name in shown for header in _headers(name)]
    departed = tables.departure_marks(metrics, "dataset", "method", "epsilon", "sampler")
    printed = [
        _printed(row, mine, study, sides.get(row.dataset, ()), departed) for row, mine in zip(rows, ours, strict=True)
    ]
    return Table(
        pd.DataFrame([data for data, _ in printed]).astype({"resolution": "Int64"} if rows else {}),
        pd.DataFrame(
            [cells for _, cells in printed], columns=["Dataset", "ε", "Method", "Variant", "Ours", *headers, "Status"]
        ),
        frozenset(["ε", *headers]),
        groups=tables.group_numbers((row.dataset, row.resolution, row.epsilon) for row in rows),
        notes=tuple(_notes(number, study, metrics, source, chosen, [one for mine in ours for one in mine.values()])),
        runs={
            (i, _headers(name)[0]): (rows[i].runs[0].dataset, one.method, rows[i].epsilon)
            for i, mine in enumerate(ours)
            for name, one in mine.items()
            if one.found.n
        },
        not_in_tex=(*(_headers(name)[2] for name in shown), "Status"),
    )


def _of_part(study: Study, chosen: pd.DataFrame) -> pd.DataFrame:
    """For a part of a study, the published rows at its epsilons on their data set, or on any if it lacks theirs."""
    if not study.part():
        return chosen
    names, run = datasets_by_published_name(study), epsilons_run(study)
    anywhere = set().union(*run.values())
    places = zip(chosen["dataset"], chosen["resolution"], chosen["epsilon"], strict=True)
    return chosen[[float(e) in run.get(names.get((dataset, side), ""), anywhere) for dataset, side, e in places]]


def _rows(number: int, study: Study, chosen: pd.DataFrame, named: Sequence[tuple[str, str, str]]) -> list[_Row]:
    """Published rows with the runs that match them, then those of `named` that match none, by data set and epsilon."""
    own = datasets_by_published_name(study)
    mapped: dict[tuple[str, str, str, str], list[_Runs]] = {}  # by data set, epsilon, published method and variant
    for entry in study.tables.get(f"table_{number}", ()):
        for dataset in study.datasets_of(entry.method):
            for epsilon in map(epsilon_text, study.epsilons_of(dataset, entry.method)):
                runs = _Runs(dataset, epsilon, entry.method, sampler_of(study, entry) or "")
                mapped.setdefault((dataset, epsilon, entry.published, entry.variant), []).append(runs)
    keys = ["dataset", "resolution", "epsilon", "method", "variant", "delta"]
    rows = []
    for key, lines in chosen.groupby(keys, sort=False):
        row = _Row(*key, lines={line["metric"]: line for line in lines.to_dict("records")})
        dataset = own.get((row.dataset, row.resolution), "")
        row.runs = mapped.get((dataset, row.epsilon, row.method, row.variant), [])
        rows.append(row)
    used = {runs for row in rows for runs in row.runs}
    names = {dataset: place for place, dataset in own.items()}
    has = {run.place[:3] for run in study.runs()}
    for dataset, method, sampler in named:
        for epsilon in map(epsilon_text, study.epsilons_of(dataset, method)):
            runs = _Runs(dataset, epsilon, method, sampler)
            if runs not in used and (dataset, method, epsilon) in has:
                rows.append(_Row(*names.get(dataset, (dataset, None)), runs.epsilon, runs=[runs]))
    order = list(dict.fromkeys((row.dataset, row.resolution) for row in rows))
    return sorted(rows, key=lambda row: (order.index((row.dataset, row.resolution)), float(row.epsilon)))  # stable


def _ours(
    number: int,
    row: _Row,
    column: MetricColumn | None,
    study: Study,
    known: Mapping[tuple[str, ...], Summary],
    metrics: pd.DataFrame,
    audits: pd.DataFrame,
) -> _Ours:
    """The runs of a row that have this metric: of classifiers, which share a row, at most one."""
    found: list[_Ours] = []
    no_value = False
    for runs in row.runs if column else ():
        mine = _of(metrics[metrics["metric"] == column.metric], runs)
        if summary := known.get((*column.key, *runs)):
            facts = _departures(row, runs, mine, _of(audits, runs[:-1])["n"], study)
            same = not _other_protocols(mine)
            if column.metric == "fid":
                same = set(mine["num_synthetic"]) == {_SYNTHETIC_IMAGES}
            found.append(_Ours(summary, runs.method, tuple(facts), same_protocol=same))
        no_value |= summary is None and len(mine) > 0
    if len(found) > 1:
        raise UserError(
            f"tables.table_{number}: {found[0].method} and {found[1].method} both have {column.metric} for the "
            f"published row {row.method} on {row.dataset}; map one of them"
        )
    return found[0] if found else _Ours(no_value=no_value)


def _printed(
    row: _Row, mine: Mapping[str, _Ours], study: Study, sides: Sequence[int], departed: Mapping[Any, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The row as numbers and as text; `sides`: of the images that the paper has of a data set of this name."""
    dataset = row.dataset
    if row.resolution is None and len(sides):
        dataset += " (own)"  # another data set with a name of the paper's
    elif row.resolution is not None and len(sides) > 1:
        dataset += f" {row.resolution}x{row.resolution}"
    several = {runs.method for runs in row.runs if len(study.methods[runs.method].samplers) > 1}
    names = [
        (f"{runs.method}, {runs.sampler}" if runs.method in several else runs.method)
        + departed.get((runs.dataset, runs.method, runs.epsilon, runs.sampler), "")
        for runs in row.runs
    ]
    status = ", ".join(dict.fromkeys(line["status"] for line in row.lines.values()))
    # a classifier has one accuracy and no other number; it shares a published row with others
    one = not row.method and study.is_classifier(row.runs[0].method) and any(ours.found.n for ours in mine.values())
    numbers: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for metric, (found, _, departures, no_value, same_protocol) in mine.items():
        line = row.lines.get(metric, {"value": math.nan, "status": "", "quoted": MISSING})
        shown, difference = MISSING if one or no_value else NOT_RUN, MISSING
        if found.n:
            shown = tables.cell_text(found, None if metric == "fid" else 1) + f" {MARK}" * bool(departures)
        if same_protocol and metric in row.lines:
            decimals = len(line["quoted"].partition(".")[2])
            difference = f"{tables.rounded(found.mean - line['value'], decimals):+.{decimals}f}"
        texts |= zip(_headers(metric), (shown, line["quoted"], difference), strict=True)
        numbers |= {
            f"{metric}_mean": found.mean, f"{metric}_std": found.std, f"{metric}_n": found.n,
            f"{metric}_published": line["value"],
            f"{metric}_difference": found.mean - line["value"] if same_protocol else math.nan,
            f"{metric}_status": line["status"] if found.n else NO_VALUE if no_value else NOT_RUN,
        }  # fmt: skip
    data = {
        "dataset": row.dataset, "resolution": row.resolution, "epsilon": row.epsilon, "published_method": row.method,
        "variant": row.variant, "published_delta": row.delta, "published_status": status,
        "method": "; ".join(dict.fromkeys(runs.method for runs in row.runs)),
        "sampler": "; ".join(dict.fromkeys(runs.sampler for runs in row.runs if runs.sampler)),
        **numbers, "departures": "; ".join(dict.fromkeys(fact for ours in mine.values() for fact in ours.departures)),
    }  # fmt: skip
    cells = {
        "Dataset": dataset, "ε": tables.epsilon_label(row.epsilon), "Method": row.method or MISSING,
        "Variant": row.variant or MISSING, "Ours": "; ".join(names) or MISSING, **texts, "Status": status or MISSING,
    }  # fmt: skip
    return data, cells


def _headers(metric: str) -> tuple[str, str, str]:
    title = _METRICS[metric]
    return f"{title} {'↓' if metric == 'fid' else '↑'}", f"{title}, paper", f"{title}, difference"


def _departures(row: _Row, runs: _Runs, mine: pd.DataFrame, sizes: pd.Series, study: Study) -> Iterator[str]:
    """How runs differ from the paper's, or may; `mine`: their rows of a metric, `sizes`: of their training sets."""
    method = study.methods[runs.method]
    published = math.nan if "/" in row.delta else float(row.delta or "nan")
    expected = _TRAINING_IMAGES.get(row.dataset) if row.resolution else None  # without: another data set of that name
    if method.scale != PAPER_SCALE:
        yield method.scale or "scale not stated"
    yield from (f"protocol {name}" for name in _other_protocols(mine))
    for n in mine["num_synthetic"].unique():
        if n not in (0, _SYNTHETIC_IMAGES):
            yield f"{n:,} synthetic images instead of {_SYNTHETIC_IMAGES:,}"
    yield from (f"uses public data: {name}" for name in mine["public_data"].unique() if name)
    yield from (f"accountant {name}" for name in mine["accountant"].unique() if name not in ("", _ACCOUNTANT))
    if mine["delta"].isna().any():
        yield "not audited"
    for delta in mine["delta"].dropna().unique():
        if row.delta and not math.isclose(delta, published, rel_tol=1e-6):
            yield f"delta {delta:.2g} instead of {row.delta}"
    yield from (f"{n:,} training images instead of {expected:,}" for n in sizes.unique() if expected not in (None, n))
    for part in method.unverified:
        if part.when.matches(runs.dataset, float(runs.epsilon)) and runs.sampler in (part.samplers or (runs.sampler,)):
            yield f"not verified: {part.what}"


def _other_protocols(frame: pd.DataFrame) -> list[str]:
    """The protocols of classifiers that are not the paper's."""
    return [name for name in frame["protocol"].unique() if name not in ("", DIRECT, PAPER)]


def _of(frame: pd.DataFrame, runs: Sequence[str]) -> pd.DataFrame:
    """The rows of these runs; without their last part, of all samplers."""
    named = zip(_Runs._fields, runs, strict=False)
    return frame[np.logical_and.reduce([frame[name] == value for name, value in named])]


def _notes(
    number: int, study: Study, metrics: pd.DataFrame, source: str, chosen: pd.DataFrame, ours: Sequence[_Ours]
) -> Iterator[str]:
    yield (
        f"{source}: {PAPER_TABLES[number]}. Ours: study {study.study}, mean ± standard "
        "deviation over n seeds (n). Difference, only under the same protocol: ours minus the paper's one seed."
    )
    if not study.tables.get(f"table_{number}"):
        yield (
            f"The study maps no run to this table; list them under `tables: table_{number}:` in its file, each as "
            "{method: NAME, sampler: NAME, published: NAME, variant: TEXT} with a row of "
            "results/published/published.csv."
        )
    for method in dict.fromkeys(one.method for one in ours if one.departures):
        departures = dict.fromkeys(part for one in ours if one.method == method for part in one.departures)
        yield f"{MARK} {method}: {'; '.join(departures)}."
    if (protocols := _other_protocols(metrics)) and "real" in study.anchors:
        yield f"What protocol {', '.join(protocols)} reaches on the real images is `real` in the results."
    measured = set(metrics.loc[metrics["value"].notna(), "metric"])
    if "fid" in set(chosen["metric"]) and "fid" in measured:
        train = "train" in set(metrics.loc[metrics["metric"] == "fid", "reference"])
        side = "training images, as the configurations of the paper's code have it" if train else "test images"
        yield (
            f"FID: ours is against the {side}; which side the paper reports, and how many images it drew, could not be "
            "verified."
        )
    elif "fid" in set(chosen["metric"]) and "fd" in measured:
        yield "FID is not run: fd is a distance by other features than Inception's."
    doubtful = chosen[~chosen["privacy_status"].isin(["sound", "unknown"])]
    if named := dict.fromkeys(f"{row.method} ({row.privacy_status})" for row in doubtful.itertuples()):
        yield f"The published ε of these cannot be taken as it is: {', '.join(named)}."
