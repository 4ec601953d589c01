"""Numbers quoted from papers, each with the status of its privacy claim; never mixed with ours, never ranked."""

import csv
import io
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, Field

from dpdm import artifacts
from dpdm.config import Study
from dpdm.errors import UserError
from dpdm.explain import nearest, parse_params
from dpdm.params import Count
from dpdm.report import registry
from dpdm.report.collect import rule
from dpdm.report.selection import check_entries
from dpdm.report.tables import MISSING, Table, epsilon_label
from dpdm.specs import epsilon_text

# The status of the epsilon that a paper states; the report prints these meanings.
PRIVACY_STATUS = {
    "sound": "no fault was found in algorithm and code, which is no proof",
    "understated": "the least ε that we can prove for what was released is larger than the stated one",
    "data-dependent": "ε was computed from the private data: not a guarantee that was given beforehand",
    "not DP as released": "the released code gives no guarantee",
    "unknown": "not examined, or not in full",
}

# Metric -> title of its column; numbers measured in another way share the last column and say so in the cell.
_COLUMNS = {"fid": "Published FID", "acc_logreg": "LogReg accuracy %", "acc_mlp": "MLP accuracy %",
            "acc_cnn": "CNN accuracy %"}  # fmt: skip
_OTHER = {"acc_cnn (its own cnn)": "own CNN", "acc_mean": "best of 3", "acc_best_of_three": "best of 3",
          "acc_resnet": "ResNet", "acc_wrn": "WRN", "acc_resnext": "ResNeXt",
          "fid_in_training": "FID in training"}  # fmt: skip
_OTHER_TITLE = "Measured otherwise"
PAPER = "paper"  # the protocol of the DPDM paper's own tables

_Any = Annotated[str, rule(lambda text: text == text.strip(), "must have no space around it")]
_Text = Annotated[_Any, Field(min_length=1)]
_EPSILON = rule(
    lambda text: float(text) > 0 and epsilon_text(float(text)) == text,
    "must be a number above 0, written shortly (0.2, 10), or inf",
)
_DELTA = rule(
    lambda text: text in ("", "1/(N ln N)") or 0 < float(text) < 1,
    "must lie between 0 and 1, or be 1/(N ln N), or empty where none is stated",
)


class _Number(BaseModel):
    source: _Text
    protocol: _Text
    table: _Any
    dataset: _Text
    resolution: Count
    method: _Text
    variant: _Any
    epsilon: Annotated[str, _EPSILON]
    delta: Annotated[str, _DELTA]  # as text: "1e-5", "1/(N ln N)"
    metric: Literal[(*_COLUMNS, *_OTHER)]
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # FID, or accuracy in percent
    status: Literal["first-hand", "secondary"]


class _Status(BaseModel):
    method: _Text
    protocol: _Text
    privacy_status: Literal[tuple(PRIVACY_STATUS)]
    privacy_note: _Any
    public_data: Literal["yes", "no"]  # whether it uses public images, or a network trained on them


def _read(path: str | Path, kind: type[BaseModel]) -> pd.DataFrame:
    """The lines after the header, with checked fields, `place` (file and line) and `quoted` (a value's text)."""
    columns = list(kind.model_fields)
    try:
        reader = csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode(), newline=""), strict=True)
        if (found := list(reader.fieldnames or [])) != columns:
            raise UserError(f"{path}: the columns must be {', '.join(columns)}; found {', '.join(found)}")
        rows = []
        for row in reader:
            place = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place}: a line must have {len(columns)} fields; put quotes around text with a comma")
            rows.append(parse_params(kind, row, place).model_dump() | {"place": place, "quoted": row.get("value")})
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a csv file in UTF-8 ({error})") from error
    return pd.DataFrame(rows, columns=[*columns, "place", "quoted"])


def _refuse(wrong: pd.DataFrame, text: str, **facts: str) -> None:
    """UserError that names the first line of `wrong`, if there is one; `text` has its columns in braces."""
    for row in wrong.head(1).to_dict("records"):
        raise UserError(f"{row['place']}: {text.format(**row, **facts)}")


def read_published(path: str | Path, status_path: str | Path) -> pd.DataFrame:
    """Reads the quoted numbers (FID, or accuracy in percent) with the privacy status of their method and protocol.

    Returns:
        The columns of both files in the order of the first, and `quoted`: the value as printed there.

    Raises:
        UserError: a file is missing, has other columns, or breaks a rule of its kind; the message names the line.
    """
    numbers, known = _read(path, _Number), _read(status_path, _Status).drop(columns="quoted")
    key, columns = ["method", "protocol"], list(_Number.model_fields)
    accuracies = numbers["metric"].str.startswith("acc")
    _refuse(numbers[accuracies & (numbers["value"] > 100)], "an accuracy of {quoted} is above 100; write per cent")
    for frame, names in ((numbers, columns[:-2]), (known, key)):
        frame["first"] = frame.groupby(names)["place"].transform("first")
        again = frame[frame["place"] != frame["first"]]
        _refuse(again, "{method} of {protocol} has the same in {first}; delete one")
    text = "{numbers} holds no number of {method} of {protocol}; write both names as they are there, or delete the line"
    _refuse(known[~known["place"].isin(known.merge(numbers, on=key)["place_x"])], text, numbers=str(path))
    joined = numbers.merge(known.drop(columns=["place", "first"]), on=key, how="left")
    text = "{statuses} lacks {method} of {protocol}; add a line with its privacy status ({choices})"
    facts = {"statuses": str(status_path), "choices": ", ".join(PRIVACY_STATUS)}
    _refuse(joined[joined["privacy_status"].isna()], text, **facts)
    return joined[[*columns, "quoted", "privacy_status", "privacy_note", "public_data"]]


def epsilons_run(study: Study) -> dict[str, set[float]]:
    """The epsilons of the runs on each data set; a part of a study may have fewer epsilons and data sets."""
    runs = study.runs()
    names = dict.fromkeys(run.dataset for run in runs)
    return {name: {run.epsilon for run in runs if run.dataset == name} for name in names}


def datasets_by_published_name(study: Study) -> dict[tuple[str, int | None], str]:
    """The data sets with runs, by their published names and sizes; others are left out.

    Raises:
        UserError: two data sets are the same one.
    """
    found: dict[tuple[str, int | None], str] = {}
    for name in epsilons_run(study):
        key = study.datasets[name].published_as()
        if key[1] is not None and found.setdefault(key, name) != name:
            raise UserError(
                f"datasets.{found[key]} and datasets.{name} are both {key[0]} of side {key[1]}, so one row of the "
                "paper would have two runs; put one into another study"
            )
    return found


def check_tables(study: Study, path: str | Path) -> None:
    """Checks that the figures and tables of a study can be loaded, and its `tables` against the paper's numbers.

    Raises:
        UserError: see `registry.check`; an entry names a row that its table does not have, two data sets would share a
            row, or the file is malformed.
    """
    registry.check(study)
    check_entries(study)
    if study.tables:
        datasets_by_published_name(study)
    rows = _read(path, _Number).query("protocol == @PAPER")
    for table, entries in study.tables.items():
        known = rows["table_" + rows["table"] == table].groupby("method", sort=False)["variant"].unique()
        for number, entry in enumerate(entries):
            place, name, variant = f"tables.{table}[{number}]", entry.published, entry.variant
            if name not in known:
                raise UserError(f"{place}.published: {table} has no row {name!r}; {nearest(name, known.index)}")
            if variant not in known[name]:
                named = list(filter(None, known[name]))
                hint = nearest(variant, named) if named else "leave the key out"
                raise UserError(f"{place}.variant: {name} has no variant {variant!r} in {table}; {hint}")


def published_table(published: pd.DataFrame, dataset: str) -> Table:
    """From the result of `read_published`: method, protocol and variant at each epsilon, in the order of the file.

    Nothing is bold: these numbers come from different protocols. Metrics without any value have no column.
    """
    keys = ["epsilon", "method", "protocol", "variant", "resolution", "delta", "source", "status", "privacy_status"]
    chosen = published[published["dataset"] == dataset]
    # the variant of these rows says how a classifier was chosen
    chosen = chosen.assign(variant=chosen["variant"].mask(chosen["metric"] == "acc_mean", ""))
    chosen = chosen.sort_values("epsilon", key=lambda epsilons: epsilons.astype(float), kind="stable")
    metrics = [name for name in (*_COLUMNS, *_OTHER) if name in set(chosen["metric"])]
    titles = {name: f"{title} {'↓' if name == 'fid' else '↑'}" for name, title in _COLUMNS.items() if name in metrics}
    rows = chosen[keys].drop_duplicates(ignore_index=True)
    values = chosen.groupby([*keys, "metric"])[["value", "quoted"]].last().unstack()
    values = values.reindex(pd.MultiIndex.from_frame(rows)).reset_index(drop=True)
    quoted = values["quoted"]
    others = pd.DataFrame({n: quoted[n] + f" ({_OTHER[n]})" for n in _OTHER if n in metrics}, index=rows.index)
    cells = pd.DataFrame({
        "ε": rows["epsilon"].map(epsilon_label), "Method": rows["method"],
        "Protocol": rows["protocol"].str.partition(" (")[0],  # in full in `privacy_table`
        "Variant": rows["variant"].replace("", MISSING), "Size": rows["resolution"].astype(str),
        **{title: quoted[name].fillna(MISSING) for name, title in titles.items()},
        _OTHER_TITLE: [", ".join(filter(pd.notna, texts)) or MISSING for texts in others.to_numpy()],
        # without a finite epsilon there is no claim to judge
        "Privacy status": rows["privacy_status"].mask(rows["epsilon"] == "inf", MISSING),
        "δ": rows["delta"].replace("", MISSING), "Status": rows["status"], "Source": rows["source"],
    }).drop(columns=[] if len(others.columns) else _OTHER_TITLE)  # fmt: skip
    data = pd.concat([rows, values["value"][metrics]], axis=1)
    data.insert(0, "dataset", dataset)
    return Table(data, cells, frozenset(["ε", *titles.values(), _OTHER_TITLE]), groups=list(rows["epsilon"]))


def best_table(published: pd.DataFrame) -> Table:
    """Rows: per data set, epsilon and protocol the best published accuracy of synthetic images without public data.

    Classifiers trained on the private images and methods that are not DP as released have no row.
    """
    images = ~published["method"].str.contains("classifier") & published["metric"].str.startswith("acc_")
    published = published.assign(protocol=published["protocol"].str.partition(" (")[0])
    images &= published["privacy_status"] != "not DP as released"
    chosen = published[images & (published["public_data"] == "no") & (published["epsilon"] != "inf")]
    best = chosen.loc[chosen.groupby(["dataset", "epsilon", "protocol"], sort=False)["value"].idxmax()]
    names = {**{name: title.removesuffix(" accuracy %") for name, title in _COLUMNS.items()}, **_OTHER}
    best = best.assign(number=best["epsilon"].map(float), classifier=best["metric"].map(names))
    best = best.sort_values(["dataset", "number"], kind="stable")
    cells = pd.DataFrame({
        "Data set": best["dataset"], "ε": best["epsilon"], "Protocol": best["protocol"],
        "Method": best["method"], "Best accuracy %": best["quoted"] + " (" + best["classifier"] + ")",
        "Privacy status": best["privacy_status"], "Source": best["source"],
    })  # fmt: skip
    keys = ["dataset", "epsilon", "protocol", "method", "metric", "classifier", "value", "privacy_status", "source"]
    groups = list(best["dataset"] + best["epsilon"])
    return Table(best[keys], cells, frozenset(["ε", "Best accuracy %"]), groups=groups)


def privacy_table(published: pd.DataFrame) -> Table:
    """Rows: each method and protocol once, in the order of the file; columns: its privacy status and why."""
    data = published[["method", "protocol", "privacy_status", "privacy_note"]].drop_duplicates(ignore_index=True)
    cells = data.set_axis(["Method", "Protocol", "Privacy status", "Note"], axis=1)
    return Table(data, cells.replace({"Note": {"": MISSING}}))
