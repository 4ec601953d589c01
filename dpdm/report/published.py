"""Numbers quoted from papers, each with what is known about its privacy claim; never mixed with ours, never ranked."""

import csv
import io
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from dpdm import artifacts
from dpdm.config import Study
from dpdm.errors import UserError
from dpdm.explain import nearest, parse_params
from dpdm.params import Count
from dpdm.report.selection import check_entries
from dpdm.report.tables import MISSING, Table, epsilon_label
from dpdm.specs import epsilon_text

# What is known about the epsilon that a paper states; the report prints these meanings.
PRIVACY_STATUS = {
    "sound": "no fault was found in algorithm and code, which is no proof",
    "understated": "the least ε that we can prove for what was released is larger than the stated one",
    "data-dependent": "ε was computed from the private data: not a guarantee that was given beforehand",
    "not DP as released": "the released code gives no guarantee",
    "unknown": "not examined, or not in full",
}

# Metric -> title of its column; what was measured in another way shares the last column and says so in the cell.
_COLUMNS = {"fid": "Published FID", "acc_logreg": "LogReg accuracy %", "acc_mlp": "MLP accuracy %",
            "acc_cnn": "CNN accuracy %"}  # fmt: skip
_OTHER = {"acc_cnn (its own cnn)": "own CNN", "acc_mean": "best of 3", "acc_best_of_three": "best of 3",
          "acc_resnet": "ResNet", "acc_wrn": "WRN", "acc_resnext": "ResNeXt",
          "fid_in_training": "FID in training"}  # fmt: skip
_OTHER_TITLE = "Measured otherwise"
PAPER = "paper"  # the protocol of the DPDM paper's own tables
# The variant of this metric's rows says how a classifier was chosen, not what was run.
_VARIANT_IS_PROTOCOL = "acc_mean"


# --- files ----------------------------------------------------------------------------------------------------


def _stripped(text: str) -> str:
    if text != text.strip():
        raise ValueError("must have no space around it")
    return text


def _short(text: str) -> str:
    if not float(text) > 0 or epsilon_text(float(text)) != text:
        raise ValueError("must be a number above 0, written shortly (0.2, 10), or inf")
    return text


def _delta(text: str) -> str:
    if text not in ("", "1/(N ln N)") and not 0 < float(text) < 1:
        raise ValueError("must lie between 0 and 1, or be 1/(N ln N), or empty where none is stated")
    return text


_Any = Annotated[str, AfterValidator(_stripped)]
_Text = Annotated[_Any, Field(min_length=1)]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Number(_Line):
    source: _Text
    protocol: _Text
    table: _Any
    dataset: _Text
    resolution: Count
    method: _Text
    variant: _Any
    epsilon: Annotated[str, AfterValidator(_short)]
    delta: Annotated[str, AfterValidator(_delta)]  # as text: "1e-5", "1/(N ln N)"
    metric: Literal[(*_COLUMNS, *_OTHER)]
    value: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # FID, or accuracy in per cent
    status: Literal["first-hand", "secondary"]


class _Status(_Line):
    method: _Text
    protocol: _Text
    privacy_status: Literal[tuple(PRIVACY_STATUS)]
    privacy_note: _Any
    public_data: Literal["yes", "no"]  # whether it uses public images, or a network trained on some


def _read(path: str | Path, kind: type[_Line]) -> list[tuple[str, dict[str, Any]]]:
    """(file and line number, row) of each line after the header, every field checked; `quoted` is a value's text."""
    columns = list(kind.model_fields)
    try:
        reader = csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode(), newline=""), strict=True)
        if list(reader.fieldnames or []) != columns:
            found = ", ".join(reader.fieldnames or [])
            raise UserError(f"{path}: the columns must be {', '.join(columns)}; found {found}")
        rows = []
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: a line must have {len(columns)} fields; put quotes around text with a comma")
            rows.append((where, parse_params(kind, row, where).model_dump() | {"quoted": row.get("value")}))
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a csv file in UTF-8 ({error})") from error


def read_published(path: str | Path, status_path: str | Path) -> pd.DataFrame:
    """Reads the quoted numbers and joins each method's privacy status by (method, protocol).

    Args:
        path: csv, one line per number; FID or accuracy in per cent, and delta stays text ("1e-5", "1/(N ln N)").
        status_path: csv, one line per method and protocol.

    Returns:
        The columns of both files in the order of the file, and `quoted`: the value as it is printed there.

    Raises:
        UserError: a file is missing, has other columns, or breaks a rule of its kind; the message names the line.
    """
    numbers = _read(path, _Number)
    seen: dict[tuple[Any, ...], str] = {}
    for where, row in numbers:
        if row["metric"].startswith("acc") and row["value"] > 100:
            raise UserError(f"{where}: an accuracy of {row['quoted']} is above 100; write per cent")
        key = tuple(row[name] for name in _Number.model_fields if name not in ("value", "status"))
        if key in seen:
            raise UserError(f"{where}: the same number is in {seen[key]}; delete one")
        seen[key] = where
    used = {(row["method"], row["protocol"]) for _, row in numbers}
    known: dict[tuple[str, str], dict[str, str]] = {}
    for where, row in _read(status_path, _Status):
        key = (row["method"], row["protocol"])
        if key in known:
            raise UserError(f"{where}: {key[0]} of {key[1]} is in this file twice; delete one")
        if key not in used:
            raise UserError(
                f"{where}: {path} holds no number of {key[0]} of {key[1]}; write both names as they are there, or "
                "delete the line"
            )
        known[key] = {name: row[name] for name in ("privacy_status", "privacy_note", "public_data")}
    for where, row in numbers:
        key = (row["method"], row["protocol"])
        if key not in known:
            raise UserError(
                f"{where}: {status_path} lacks {key[0]} of {key[1]}; add a line with its privacy status "
                f"({', '.join(PRIVACY_STATUS)})"
            )
        row |= known[key]
    columns = [*_Number.model_fields, "quoted", "privacy_status", "privacy_note", "public_data"]
    return pd.DataFrame([row for _, row in numbers], columns=columns)


def datasets_by_published_name(study: Study) -> dict[tuple[str, int | None], str]:
    """The study's data sets by their published names and sizes; those that nobody published under are left out.

    Raises:
        UserError: two data sets are the same one.
    """
    found: dict[tuple[str, int | None], str] = {}
    for name, spec in study.datasets.items():
        key = spec.published_as()
        if key[1] is not None and found.setdefault(key, name) != name:
            raise UserError(
                f"datasets.{found[key]} and datasets.{name} are both {key[0]} of side {key[1]}, so one row of the "
                "paper would have two runs; give each a study of its own"
            )
    return found


def check_tables(study: Study, path: str | Path) -> None:
    """Holds the `tables` of a study against the numbers that are quoted from the paper.

    Raises:
        UserError: an entry names a row that its table does not have, two data sets would share a row, or the file is
            malformed.
    """
    check_entries(study)
    if study.tables:
        datasets_by_published_name(study)
    rows = [row for _, row in _read(path, _Number) if row["protocol"] == PAPER]
    for table, entries in study.tables.items():
        known: dict[str, list[str]] = {}
        for row in rows:
            if f"table_{row['table']}" == table:
                known.setdefault(row["method"], []).append(row["variant"])
        for number, entry in enumerate(entries):
            place, variants = f"tables.{table}[{number}]", known.get(entry.published)
            if variants is None:
                hint = nearest(entry.published, known)
                raise UserError(f"{place}.published: {table} has no row {entry.published!r}; {hint}")
            if entry.variant not in variants:
                named = [variant for variant in dict.fromkeys(variants) if variant]
                hint = nearest(entry.variant, named) if named else "leave the key out"
                raise UserError(
                    f"{place}.variant: {entry.published} has no variant {entry.variant!r} in {table}; {hint}"
                )


# --- tables ---------------------------------------------------------------------------------------------------


def published_table(published: pd.DataFrame, dataset: str) -> Table:
    """Rows: method, protocol and variant at each epsilon, in the order of the file; columns: metrics, privacy, source.

    Nothing is bold: these numbers come from different protocols. Metrics without any value have no column.

    Args:
        published: what `read_published` returned.
        dataset: a name in its column `dataset`.
    """
    keys = ["epsilon", "method", "protocol", "variant", "resolution", "delta", "source", "status", "privacy_status"]
    found: dict[tuple[Any, ...], dict[str, tuple[float, str]]] = {}
    for row in published[published["dataset"] == dataset].to_dict("records"):
        if row["metric"] == _VARIANT_IS_PROTOCOL:
            row["variant"] = ""
        found.setdefault(tuple(row[key] for key in keys), {})[row["metric"]] = (row["value"], row["quoted"])
    rows = sorted(found.items(), key=lambda item: float(item[0][0]))  # stable: the order of the file within an epsilon

    metrics = [name for name in (*_COLUMNS, *_OTHER) if any(name in values for _, values in rows)]
    titles = {name: f"{title} {'↓' if name == 'fid' else '↑'}" for name, title in _COLUMNS.items() if name in metrics}
    others = [name for name in _OTHER if name in metrics]
    data, cells = [], []
    for key, values in rows:
        row = dict(zip(keys, key, strict=True))
        data.append({"dataset": dataset, **row, **{name: values.get(name, (math.nan, ""))[0] for name in metrics}})
        text = {title: values[name][1] if name in values else MISSING for name, title in titles.items()}
        stated = [f"{values[name][1]} ({_OTHER[name]})" for name in others if name in values]
        cells.append(
            {
                "ε": epsilon_label(row["epsilon"]), "Method": row["method"],
                "Protocol": row["protocol"].partition(" (")[0],  # in full in `privacy_table`
                "Variant": row["variant"] or MISSING, "Size": str(row["resolution"]), **text,
                _OTHER_TITLE: ", ".join(stated) or MISSING,
                # without a finite epsilon there is no claim to judge
                "Privacy status": MISSING if row["epsilon"] == "inf" else row["privacy_status"],
                "δ": row["delta"] or MISSING, "Status": row["status"], "Source": row["source"],
            }
        )  # fmt: skip
    headers = ["ε", "Method", "Protocol", "Variant", "Size", *titles.values(), *[_OTHER_TITLE] * bool(others),
               "Privacy status", "δ", "Status", "Source"]  # fmt: skip
    return Table(
        pd.DataFrame(data, columns=["dataset", *keys, *metrics]),
        pd.DataFrame(cells, columns=headers),
        frozenset(["ε", *titles.values(), _OTHER_TITLE]),
        groups=tuple(pd.factorize(pd.Series([row["epsilon"] for row in data], dtype=str))[0].tolist()),
    )


def best_table(published: pd.DataFrame) -> Table:
    """Rows: per data set, epsilon and protocol the best published accuracy of synthetic images without public data.

    A classifier trained on the private images draws none, and has no row. Nor has what gives no guarantee as released.
    """
    images = ~published["method"].str.contains("classifier") & published["metric"].str.startswith("acc_")
    published = published.assign(protocol=published["protocol"].str.partition(" (")[0])
    images &= published["privacy_status"] != "not DP as released"
    chosen = published[images & (published["public_data"] == "no") & (published["epsilon"] != "inf")]
    best = chosen.loc[chosen.groupby(["dataset", "epsilon", "protocol"], sort=False)["value"].idxmax()]
    best = best.sort_values(
        ["dataset", "epsilon"], key=lambda c: c.map(float) if c.name == "epsilon" else c, kind="stable"
    )
    names = {**{name: title.removesuffix(" accuracy %") for name, title in _COLUMNS.items()}, **_OTHER}
    cells = pd.DataFrame({
        "Data set": best["dataset"], "ε": best["epsilon"], "Protocol": best["protocol"],
        "Method": best["method"], "Best accuracy %": best["quoted"] + " (" + best["metric"].map(names) + ")",
        "Privacy status": best["privacy_status"], "Source": best["source"],
    })  # fmt: skip
    keys = ["dataset", "epsilon", "protocol", "method", "metric", "value", "privacy_status", "source"]
    groups = tuple(pd.factorize(best["dataset"] + best["epsilon"])[0].tolist())
    return Table(best[keys], cells, frozenset(["ε", "Best accuracy %"]), groups=groups)


def privacy_table(published: pd.DataFrame) -> Table:
    """Rows: each method and protocol once, in the order of the file; columns: its privacy status and why."""
    data = published[["method", "protocol", "privacy_status", "privacy_note"]].drop_duplicates(ignore_index=True)
    cells = data.set_axis(["Method", "Protocol", "Privacy status", "Note"], axis=1)
    return Table(data, cells.replace({"Note": {"": MISSING}}))
