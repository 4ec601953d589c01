"""The DPDM paper's tables: each of its numbers, ours, and the reasons if the two are not comparable."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from dpdm.config import DIRECT, PAPER_SCALE, Study
from dpdm.errors import UserError
from dpdm.report import tables
from dpdm.report.published import PAPER, datasets_by_published_name, epsilons_run
from dpdm.report.registry import Material
from dpdm.report.selection import PAPER_TABLES, sampler_of, table_runs
from dpdm.report.tables import MISSING, Summary, Table
from dpdm.specs import epsilon_text

NOT_RUN = "not run"
NO_VALUE = "no value"
MARK = "†"

# The values of a comparable run: the paper's accountant, synthetic images and, in its code, training images.
_ACCOUNTANT = "rdp"
_SYNTHETIC_IMAGES = 60_000
_TRAINING_IMAGES = {"mnist": 60_000, "fashion_mnist": 60_000, "celeba": 162_770}

# `fid` means Inception features; a distance by another extractor is named fd and has no column here.
_HEADERS = {
    metric: (f"{title} {'↓' if metric == 'fid' else '↑'}", f"{title}, paper", f"{title}, difference")
    for metric, title in {"fid": "FID", "acc_logreg": "LogReg %", "acc_mlp": "MLP %", "acc_cnn": "CNN %"}.items()
}


class _Runs(NamedTuple):
    """One method of the study in one cell of its grid: one run per seed."""

    dataset: str  # as in the study
    method: str
    epsilon: str
    sampler: str  # "" for a classifier


class _Ours(NamedTuple):
    """Our number for one cell."""

    found: Summary = Summary()
    runs: _Runs | None = None
    departures: tuple[str, ...] = ()  # its differences from the paper's number, in words
    no_value: bool = False  # it was run, but the metric has no value, such as an accuracy without labels
    same_protocol: bool = False  # accuracy: the paper's classifiers; FID: equally many images


class _Row(NamedTuple):
    """One published row, or one of ours that is not in the paper."""

    dataset: str
    resolution: int | None
    epsilon: str
    method: str = ""
    variant: str = ""
    delta: str = ""
    lines: Mapping[str, Mapping[str, Any]] = {}  # by metric, of published.csv
    runs: Sequence[_Runs] = ()


def paper_table(number: int, material: Material) -> Table:
    """Table `number` (1 to 6) of the paper (arXiv v1) with the study's runs, as the study's key `tables` maps them.

    Rows: per data set and epsilon all published rows in the order of the file, then runs of `table_runs` that match no
    row. Data sets of the paper that the study lacks are left out, unless it lacks all of them. A part of a study also
    leaves out the epsilons that it lacks. Columns per metric of the table: ours, the paper's, the difference. A number
    that was not made as in the paper is marked, and a note says why.

    Raises:
        UserError: no such table; two runs for one cell; two data sets for one row.
    """
    study, metrics, published = material.study, material.metrics, material.published
    chosen = published[(published["protocol"] == PAPER) & (published["table"] == str(number))]
    if number not in PAPER_TABLES or chosen.empty:
        raise UserError(
            f"the paper has no table {number} among the published numbers; choose one of 1 to {len(PAPER_TABLES)}"
        )
    shown = [name for name in _HEADERS if name in set(chosen["metric"])]
    headers = [header for name in shown for header in _HEADERS[name]]
    sides = chosen.groupby("dataset")["resolution"].nunique()
    places, own = list(zip(chosen["dataset"], chosen["resolution"], strict=True)), datasets_by_published_name(study)
    named = table_runs(study, f"table_{number}", set(places))
    chosen = chosen.assign(here=[own.get(place, "") for place in places])  # the data set of the study
    if chosen["here"].any():
        chosen = chosen[chosen["here"] != ""]
    source = ", ".join(dict.fromkeys(chosen["source"]))
    if study.part():  # at its epsilons on the data set, or at all if it has none of the paper's
        run, keys = epsilons_run(study), zip(chosen["here"], chosen["epsilon"], strict=True)
        anywhere = set().union(*run.values())
        chosen = chosen[[float(epsilon) in run.get(here, anywhere) for here, epsilon in keys]]
    keys = zip(metrics["dataset"], metrics["method"], metrics["sampler"], strict=True)
    metrics = metrics.loc[[key in named for key in keys]]  # so that the notes do not depend on other runs
    # the first of FID's two columns, that of the training set
    columns = {column.metric: column for column in reversed(tables.metric_columns(metrics))}
    known, groups = tables.summaries(metrics, *_Runs._fields), metrics.groupby(["metric", *_Runs._fields])
    sizes = material.audits.groupby(list(_Runs._fields[:3]))["n"].unique().to_dict()
    cells = {key: (mine, known.get((*columns[key[0]].key, *key[1:])), sizes.get(key[1:4], ())) for key, mine in groups}
    rows = _rows(number, study, chosen, named)
    ours = [{name: _ours(number, row, name, study, cells) for name in shown} for row in rows]
    departed = tables.departure_marks(metrics, *_Runs._fields)
    printed = [_printed(*one, study, sides, departed) for one in zip(rows, ours, strict=True)]
    found = [(i, name, one) for i, mine in enumerate(ours) for name, one in mine.items() if one.runs]
    return Table(
        pd.DataFrame([data for data, _ in printed]).astype({"resolution": "Int64"} if rows else {}),
        pd.DataFrame(
            [cells for _, cells in printed], columns=["Dataset", "ε", "Method", "Variant", "Ours", *headers, "Status"]
        ),
        frozenset(["ε", *headers]),
        groups=[row[:3] for row in rows],
        notes=tuple(_notes(number, study, metrics, source, chosen, [one for *_, one in found])),
        runs={(i, _HEADERS[name][0]): one.runs[:3] for i, name, one in found},
        not_in_tex=(*(_HEADERS[name][2] for name in shown), "Status"),
    )


def _rows(number: int, study: Study, chosen: pd.DataFrame, named: Sequence[tuple[str, str, str]]) -> list[_Row]:
    """Published rows with the runs that match them, then those of `named` that match none, by data set and epsilon."""
    rows, keys = [], ["here", "dataset", "resolution", "epsilon", "method", "variant", "delta"]
    for (here, *key), lines in chosen.groupby(keys, sort=False):
        row = _Row(*key, lines={line["metric"]: line for line in lines.to_dict("records")})
        runs = [
            _Runs(here, entry.method, row.epsilon, sampler_of(study, entry) or "")
            for entry in study.tables.get(f"table_{number}", ())
            if (entry.published, entry.variant) == (row.method, row.variant)
            and here in study.datasets_of(entry.method)
            and float(row.epsilon) in study.epsilons_of(here, entry.method)
        ]
        rows.append(row._replace(runs=runs))
    used, has = {runs for row in rows for runs in row.runs}, {run.place[:3] for run in study.runs()}
    names = {dataset: place for place, dataset in datasets_by_published_name(study).items()}
    for dataset, method, sampler in named:
        for epsilon in map(epsilon_text, study.epsilons_of(dataset, method)):
            runs = _Runs(dataset, method, epsilon, sampler)
            if runs not in used and runs[:3] in has:
                rows.append(_Row(*names.get(dataset, (dataset, None)), epsilon, runs=[runs]))
    order = list(dict.fromkeys(row[:2] for row in rows))
    return sorted(rows, key=lambda row: (order.index(row[:2]), float(row.epsilon)))  # stable


def _ours(number: int, row: _Row, metric: str, study: Study, cells: Mapping[tuple[str, ...], tuple]) -> _Ours:
    """The runs of a row that have this metric; at most one of the classifiers that share a row.

    `cells`: rows, summary (None without a value) and sizes of the training sets, by metric and runs.
    """
    there = {runs: cells[metric, *runs] for runs in row.runs if (metric, *runs) in cells}
    found = []
    for runs, (mine, summary, sizes) in there.items():
        if summary:
            images = set(mine["num_synthetic"]) == {_SYNTHETIC_IMAGES}
            same = images if metric == "fid" else not _other_protocols(mine)
            facts = _departures(row, runs, mine, sizes, study)
            found.append(_Ours(summary, runs, tuple(facts), same_protocol=same))
    if len(found) > 1:
        raise UserError(
            f"tables.table_{number}: {found[0].runs.method} and {found[1].runs.method} both have {metric} for the "
            f"published row {row.method} on {row.dataset}; map one of them"
        )
    return found[0] if found else _Ours(no_value=bool(there))


def _printed(
    row: _Row, mine: Mapping[str, _Ours], study: Study, sides: Mapping[str, int], departed: Mapping[Any, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The row as numbers and as text; `sides`: the number of sizes of this data set in the paper."""
    dataset, several = row.dataset, sides.get(row.dataset, 0)
    if row.resolution is None and several:
        dataset += " (own)"  # another data set under a name of the paper
    elif several > 1:
        dataset += f" {row.resolution}x{row.resolution}"
    names = [
        runs.method + f", {runs.sampler}" * (len(study.methods[runs.method].samplers) > 1) + departed.get(runs, "")
        for runs in row.runs
    ]
    status = ", ".join(dict.fromkeys(line["status"] for line in row.lines.values()))
    # a classifier has one accuracy and no other number; it shares a published row with others
    one = not row.method and study.is_classifier(row.runs[0].method) and any(ours.runs for ours in mine.values())
    numbers: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for metric, (found, runs, departures, no_value, same_protocol) in mine.items():
        line = row.lines.get(metric, {"value": math.nan, "status": "", "quoted": MISSING})
        shown = MISSING if one or no_value else NOT_RUN
        if runs:
            shown = tables.cell_text(found, None if metric == "fid" else 1) + f" {MARK}" * bool(departures)
        gap = found.mean - line["value"] if same_protocol else math.nan
        decimals = len(line["quoted"].partition(".")[2])
        difference = MISSING if math.isnan(gap) else f"{tables.rounded(gap, decimals):+.{decimals}f}"
        texts |= zip(_HEADERS[metric], (shown, line["quoted"], difference), strict=True)
        numbers |= {
            f"{metric}_mean": found.mean, f"{metric}_std": found.std, f"{metric}_n": found.n,
            f"{metric}_published": line["value"], f"{metric}_difference": gap,
            f"{metric}_status": line["status"] if runs else NO_VALUE if no_value else NOT_RUN,
        }  # fmt: skip
    names_in_csv = ("dataset", "resolution", "epsilon", "published_method", "variant", "published_delta")
    data = {
        **dict(zip(names_in_csv, row, strict=False)), "published_status": status,
        "method": "; ".join(dict.fromkeys(runs.method for runs in row.runs)),
        "sampler": "; ".join(dict.fromkeys(runs.sampler for runs in row.runs if runs.sampler)),
        **numbers, "departures": "; ".join(dict.fromkeys(fact for ours in mine.values() for fact in ours.departures)),
    }  # fmt: skip
    cells = {
        "Dataset": dataset, "ε": tables.epsilon_label(row.epsilon), "Method": row.method or MISSING,
        "Variant": row.variant or MISSING, "Ours": "; ".join(names) or MISSING, **texts, "Status": status or MISSING,
    }  # fmt: skip
    return data, cells


def _departures(row: _Row, runs: _Runs, mine: pd.DataFrame, sizes: Sequence[int], study: Study) -> Iterator[str]:
    """How runs differ, or may differ, from the paper's; `mine`: rows of a metric, `sizes`: of their training sets."""
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
    yield from (f"{n:,} training images instead of {expected:,}" for n in sizes if expected not in (None, n))
    for part in method.unverified:
        if part.when.matches(runs.dataset, float(runs.epsilon)) and runs.sampler in (part.samplers or (runs.sampler,)):
            yield f"not verified: {part.what}"


def _other_protocols(frame: pd.DataFrame) -> list[str]:
    """The protocols of classifiers that are not the paper's."""
    return [name for name in frame["protocol"].unique() if name not in ("", DIRECT, PAPER)]


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
    by_method: dict[str, dict[str, None]] = {}
    for one in ours:
        if one.departures:
            by_method.setdefault(one.runs.method, {}).update(dict.fromkeys(one.departures))
    yield from (f"{MARK} {method}: {'; '.join(departures)}." for method, departures in by_method.items())
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
