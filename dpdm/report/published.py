"""Numbers quoted from papers, each with what is known about its privacy claim; never mixed with ours, never ranked."""

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dpdm import artifacts
from dpdm.config import Study
from dpdm.errors import UserError
from dpdm.explain import nearest
from dpdm.report.selection import check_entries
from dpdm.report.tables import MISSING, Table, epsilon_label
from dpdm.specs import epsilon_text

# What is known about the epsilon that a paper states; the report prints these meanings.
PRIVACY_STATUS = {
    "sound": "no fault was found in algorithm and code, which is no proof",
    "understated": "the true ε is larger than the stated one",
    "data-dependent": "ε was computed from the private data: not a guarantee that was given beforehand",
    "not DP as released": "the released code gives no guarantee",
    "unknown": "not examined, or not in full",
}

# Metric -> title of its column; what was measured in another way shares the last column and says so in the cell.
_COLUMNS = {"fid": "Published FID", "acc_logreg": "LogReg accuracy %", "acc_mlp": "MLP accuracy %",
            "acc_cnn": "CNN accuracy %"}  # fmt: skip
_OTHER = {"acc_cnn (its own cnn)": "own CNN", "acc_mean": "best of 3"}
_OTHER_TITLE = "Other accuracy %"
PAPER = "paper"  # the protocol of the DPDM paper's own tables
# The variant of this metric's rows says how a classifier was chosen, not what was run.
_VARIANT_IS_PROTOCOL = "acc_mean"


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
    numbers = _read(path, _NUMBER_COLUMNS)
    seen: dict[tuple[Any, ...], int] = {}
    for line, row in numbers:
        row["quoted"], row["value"] = row["value"], float(row["value"])
        if row["metric"].startswith("acc") and row["value"] > 100:
            raise UserError(f"{path}, line {line}: an accuracy of {row['quoted']} is above 100; write per cent")
        key = tuple(row[name] for name in _NUMBER_COLUMNS if name not in ("value", "status"))
        if key in seen:
            raise UserError(f"{path}, line {line}: the same number stands in line {seen[key]}; delete one")
        seen[key] = line
    known: dict[tuple[str, str], dict[str, str]] = {}
    used = {(row["method"], row["protocol"]) for _, row in numbers}
    for line, row in _read(status_path, _STATUS_COLUMNS):
        key = (row.pop("method"), row.pop("protocol"))
        if key in known:
            raise UserError(f"{status_path}, line {line}: {key[0]} of {key[1]} stands twice; delete one")
        if key not in used:
            raise UserError(
                f"{status_path}, line {line}: {path} holds no number of {key[0]} of {key[1]}; "
                "write both names as they stand there, or delete the line"
            )
        known[key] = row
    for line, row in numbers:
        key = (row["method"], row["protocol"])
        if key not in known:
            raise UserError(
                f"{path}, line {line}: {status_path} lacks {key[0]} of {key[1]}; "
                f"add a line with its privacy status ({', '.join(PRIVACY_STATUS)})"
            )
        row |= known[key]
    columns = [*_NUMBER_COLUMNS, "quoted", "privacy_status", "privacy_note"]
    return pd.DataFrame([row for _, row in numbers], columns=columns)


def published_table(published: pd.DataFrame, dataset: str) -> Table:
    """Rows: method, protocol and variant at each epsilon, in the order of the file; columns: metrics, privacy, source.

    Nothing is bold: these numbers come from different protocols. Metrics without any value have no column.

    Args:
        published: what `read_published` returned.
        dataset: a name in its column `dataset`.
    """
    chosen = published[published["dataset"] == dataset]
    keys = ["epsilon", "method", "protocol", "variant", "resolution", "delta", "source", "status", "privacy_status"]
    found: dict[tuple[Any, ...], dict[str, tuple[float, str]]] = {}
    for row in chosen.to_dict("records"):
        if row["metric"] == _VARIANT_IS_PROTOCOL:
            row["variant"] = ""
        found.setdefault(tuple(row[key] for key in keys), {})[row["metric"]] = (row["value"], row["quoted"])
    rows = sorted(found.items(), key=lambda item: float(item[0][0]))  # stable: the order of the file within an epsilon

    metrics = [name for name in (*_COLUMNS, *_OTHER) if any(name in values for _, values in rows)]
    titles = {name: f"{title} {'↓' if name == 'fid' else '↑'}" for name, title in _COLUMNS.items() if name in metrics}
    others = [name for name in _OTHER if name in metrics]
    other_title = f"{_OTHER_TITLE} ↑"
    data, cells = [], []
    for key, values in rows:
        row = dict(zip(keys, key, strict=True))
        data.append({"dataset": dataset, **row, **{name: values.get(name, (math.nan, ""))[0] for name in metrics}})
        text = {title: values[name][1] if name in values else MISSING for name, title in titles.items()}
        if others:
            stated = [f"{values[name][1]} ({_OTHER[name]})" for name in others if name in values]
            text[other_title] = ", ".join(stated) or MISSING
        cells.append(
            {
                "ε": epsilon_label(row["epsilon"]), "Method": row["method"],
                "Protocol": row["protocol"].partition(" (")[0],  # in full in `privacy_table`
                "Variant": row["variant"] or MISSING, "Size": str(row["resolution"]), **text,
                # without a finite epsilon there is no claim to judge
                "Privacy status": MISSING if row["epsilon"] == "inf" else row["privacy_status"],
                "δ": row["delta"] or MISSING, "Status": row["status"], "Source": row["source"],
            }
        )  # fmt: skip
    headers = ["ε", "Method", "Protocol", "Variant", "Size", *titles.values(), *([other_title] if others else []),
               "Privacy status", "δ", "Status", "Source"]  # fmt: skip
    return Table(
        pd.DataFrame(data, columns=["dataset", *keys, *metrics]),
        pd.DataFrame(cells, columns=headers),
        frozenset(["ε", *titles.values(), other_title]),
        groups=tuple(pd.factorize(pd.Series([row["epsilon"] for row in data], dtype=str))[0].tolist()),
    )


def datasets_by_published_name(study: Study) -> dict[tuple[str, int | None], str]:
    """The study's data sets by their published names and sizes; those that nobody published under are left out.

    Raises:
        UserError: two data sets are the same one.
    """
    found: dict[tuple[str, int | None], str] = {}
    for name, spec in study.datasets.items():
        key = spec.published_as()
        if key[1] is None:
            continue
        if key in found:
            raise UserError(
                f"datasets.{found[key]} and datasets.{name} are both {key[0]} of side {key[1]}, so one row of the "
                "paper would have two runs; give each a study of its own"
            )
        found[key] = name
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
    rows = [row for _, row in _read(path, _NUMBER_COLUMNS) if row["protocol"] == PAPER]
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


def privacy_table(published: pd.DataFrame) -> Table:
    """Rows: each method and protocol once, in the order of the file; columns: its privacy status and why."""
    columns = ["method", "protocol", "privacy_status", "privacy_note"]
    data = published[columns].drop_duplicates(ignore_index=True)
    cells = data.set_axis(["Method", "Protocol", "Privacy status", "Note"], axis=1)
    return Table(data, cells.replace({"Note": {"": MISSING}}))


# --- files ----------------------------------------------------------------------------------------------------


def _text(text: str) -> str:
    if not text.strip() or text != text.strip():
        raise ValueError("must be text without space around it")
    return text


def _any_text(text: str) -> str:
    return text and _text(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be one of: {', '.join(words)}")
        return text

    return parse


def _epsilon(text: str) -> str:
    value = _number(text) if text != "inf" else math.inf
    if value <= 0 or epsilon_text(value) != text:
        raise ValueError("must be a number above 0, written shortly (0.2, 10), or inf")
    return text


def _delta(text: str) -> str:
    if text not in ("", "1/(N ln N)") and not 0 < _number(text) < 1:
        raise ValueError("must lie between 0 and 1, or be 1/(N ln N), or empty where none is stated")
    return text


def _resolution(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError("must be a whole number above 0")
    return int(text)


def _value(text: str) -> str:
    if _number(text) < 0:
        raise ValueError("must be 0 or above")
    return text  # as printed: 79 stays 79, and 79.0 stays 79.0


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


_NUMBER_COLUMNS: dict[str, Callable[[str], Any]] = {
    "source": _text, "protocol": _text, "table": _text, "dataset": _text, "resolution": _resolution, "method": _text,
    "variant": _any_text, "epsilon": _epsilon, "delta": _delta, "metric": _one_of(*_COLUMNS, *_OTHER),
    "value": _value, "status": _one_of("first-hand", "secondary"),
}  # fmt: skip
_STATUS_COLUMNS: dict[str, Callable[[str], Any]] = {
    "method": _text, "protocol": _text, "privacy_status": _one_of(*PRIVACY_STATUS), "privacy_note": _any_text,
}  # fmt: skip


def _read(path: str | Path, columns: Mapping[str, Callable[[str], Any]]) -> list[tuple[int, dict[str, Any]]]:
    """(line number, row) of each line after the header, every field checked."""
    try:
        reader = csv.reader(io.StringIO(artifacts.read_bytes(path).decode(), newline=""), strict=True)
        header = next(reader, [])
        _check_header(path, header, list(columns))
        rows = []
        for fields in reader:
            if len(fields) != len(header):
                raise UserError(f"{path}, line {reader.line_num}: {len(fields)} fields instead of {len(header)}")
            row = {}
            for name, text in zip(header, fields, strict=True):
                try:
                    row[name] = columns[name](text)
                except ValueError as error:
                    raise UserError(f"{path}, line {reader.line_num}: {name} {error}, got {text!r}") from error
            rows.append((reader.line_num, row))
        return rows
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a csv file in UTF-8 ({error})") from error


def _check_header(path: str | Path, header: list[str], expected: list[str]) -> None:
    problems = [f"unknown column {name!r}" for name in header if name not in expected]
    problems += [f"missing column {name!r}" for name in expected if name not in header]
    problems += [f"column {name!r} twice" for name in dict.fromkeys(header) if header.count(name) > 1]
    if problems:
        raise UserError(f"{path}: {', '.join(problems)}; the columns are {', '.join(expected)}")
