"""Result files of one study -> tidy metrics, audits and run times; refuses what one table must not mix."""

import ast
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from dpdm import artifacts
from dpdm.config import ANCHORS, DIRECT, Study
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.params import Strict
from dpdm.specs import Coordinates, Epsilon, RunSpec, epsilon_text

# Columns and their types; epsilon is text ("0.2", "10", "inf", "" for anchors), as in paths.
METRICS: dict[str, type] = {
    "study": str, "dataset": str, "method": str, "epsilon": str, "delta": float, "accountant": str, "seed": int,
    "sampler": str, "metric": str, "extractor": str, "direction": str, "reference": str, "value": float,
    "num_synthetic": int, "protocol": str,
    "version": str, "commit": str, "code": str,
}  # fmt: skip
AUDITS: dict[str, type] = {
    "study": str, "dataset": str, "method": str, "epsilon": str, "seed": int, "n": int, "delta": float,
    "accountant": str, "neighbouring_relation": str, "noise": str, "target_epsilon": float, "epsilon_rdp": float,
    "epsilon_prv": float, "epsilon_pld": float, "passed": bool, "recipe_checked": bool, "mechanism": str, "name": str,
    "noise_multiplier": float, "sample_rate": float, "steps": int, "sensitivity": float, "version": str,
    "commit": str, "code": str,
    "attack": str, "attacked_epsilon": float, "attack_certified": float, "attack_confidence": float, "attack_runs": int,
    "attack_canaries": int, "attack_exceeded": bool,
}  # fmt: skip
NO_ATTACK = {
    "attack": "", "attacked_epsilon": math.nan, "attack_certified": math.nan, "attack_confidence": math.nan,
    "attack_runs": 0, "attack_canaries": 0, "attack_exceeded": False,
}  # fmt: skip
BENCHMARKS: dict[str, type] = {"rule": str, "dataset": str, "method": str, "seconds": float, "max_rss_mb": float}

_DTYPES = {str: "str", float: "float64", int: "int64", bool: "bool"}
_RULES = {  # that make a file of scores
    "fidelity.json": "score score_anchor",
    "inception.json": "score_inception score_inception_anchor",
    "utility.json": "score score_anchor score_classifier",
}
_SCORE_FILES = tuple(_RULES)


# --- what the files hold; they may have more keys, which the tables do not need --------------------------------


class _Record(Strict, extra="ignore"):
    pass


class _Provenance(_Record):
    method_code: str = ""  # trained runs only
    version: str
    commit: str
    code: str


class _Metric(_Record):
    metric: str
    extractor: str  # "" where there is none
    direction: Literal["lower", "higher"]  # which is better
    reference: str
    value: float | None  # None: could not be computed


class _Inception(_Record):
    weights_sha256: str


class _Scores(_Record):
    coordinates: Coordinates
    provenance: _Provenance
    num_synthetic: int
    metrics: list[_Metric]
    protocol: str = ""  # utility only
    inception: _Inception | None = None  # inception only
    drawn_by: dict[str, Any] | None = None  # the SampleSpec of synthetic images; anchors have none


class _Event(_Record):
    mechanism: str
    name: str = ""
    noise_multiplier: float
    sample_rate: float | None = None
    steps: int = 1
    sensitivity: float | None = None


class _Audited(_Record):
    coordinates: Coordinates
    recipe: dict[str, Any] | None = None  # what was trained
    n: int
    delta: float
    accountant: str
    neighbouring_relation: str
    noise: str
    target_epsilon: Epsilon
    epsilon_rdp: Epsilon
    epsilon_prv: Epsilon
    epsilon_pld: Epsilon
    passed: bool
    recipe_checked: bool
    events: list[_Event]
    provenance: _Provenance | None = None  # of the training; else that of the file


class _Audit(_Record):
    provenance: _Provenance | None = None
    runs: list[_Audited]


class _Bound(_Record):
    method: str
    epsilon: float
    certified: float
    confidence: float
    runs: int
    canaries: int
    exceeded: bool


class _Attacked(_Record):
    coordinates: Coordinates
    recipe: dict[str, Any]
    attack: _Bound
    provenance: _Provenance


class _Attacks(_Record):
    attacks: list[_Attacked]


# --- collecting -----------------------------------------------------------------------------------------------


def collect(study: Study, folders: Sequence[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads all `fidelity.json`, `inception.json`, `utility.json`, `audits/*.json` and `attacks/*.json` in the folders.

    Results outside the study's grid are left out: they belong to entries that were deleted or to another study. So are
    results by Inception where the study does not ask for the FID (any more). Results that are missing are no error;
    `holes` lists them. `delta` and `accountant` of a score come from the run's audit and are empty without one.

    Args:
        study: whose grid decides what is kept and in which order, and whose `allow_mixed_code` and
            `allow_mixed_protocols` what one table may mix.
        folders: searched recursively, or single files, which need not be there; one inside another is read once.

    Returns:
        Metrics (columns METRICS, one row per run, sampler, metric and reference) and audits (columns AUDITS, one
        row per run and event; a run without events has one row with an empty mechanism). All seeds of a cell have the
        one attack on their common mechanism.

    Raises:
        UserError: a file is malformed, a result is there twice, it was trained or judged otherwise than the study says,
            code versions or weights of Inception are mixed, or, whatever is allowed, protocols within one cell.
    """
    places = {c: i for i, c in enumerate(_score_coordinates(study))}
    specs = study.runs()
    runs = {run.coordinates(): i for i, run in enumerate(specs)}
    codes: dict[str, Path] = {}
    weights: dict[str, list[Path]] = {}
    protocols: dict[Coordinates, dict[str, list[Path]]] = {}  # by cell: coordinates without the seed
    method_codes: dict[str, str] = {}
    anchors: set[Path] = set()
    scores: dict[tuple[Any, ...], tuple[Path, dict[str, Any]]] = {}
    audits: dict[Coordinates, tuple[Path, list[dict[str, Any]]]] = {}
    attacks: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}
    for path in _result_files(folders):
        content = artifacts.read_json(path)
        if path.name in _SCORE_FILES:
            if undirected := [row for row in content.get("metrics", ()) if "direction" not in row]:
                raise UserError(
                    f"{path}: {undirected[0].get('metric')} lacks its direction, so the file is of an older version; "
                    f"make it again with `snakemake --forcerun {_RULES[path.name]}`"
                )
            record = parse_params(_Scores, content, str(path))
            place = places.get(record.coordinates)
            if place is None or (path.name == "inception.json" and not study.evaluation.fid):
                continue
            if fault := _other_evaluation(record, study):
                raise UserError(f"{path}: {fault}")
            if record.coordinates.method in ANCHORS:
                anchors.add(path)
            kind = _SCORE_FILES.index(path.name)
            for position, row in enumerate(_score_rows(record)):
                key = (place, row["metric"], row["extractor"], row["reference"])
                if key in scores:
                    raise UserError(
                        f"{row['metric']} of one run stands twice, in {scores[key][0]} and in {path}; delete one"
                    )
                scores[key] = (path, {**row, "_order": (place, kind, position)})
            codes.setdefault(record.provenance.code, path)
            if record.inception:
                weights.setdefault(record.inception.weights_sha256, []).append(path)
            if record.protocol:
                cell = record.coordinates.model_copy(update={"seed": 0})
                protocols.setdefault(cell, {}).setdefault(record.protocol, []).append(path)
        elif "runs" in content:
            if any("epsilon_pld" not in run for run in content["runs"]):
                raise UserError(
                    f"{path} is an audit of an older version (it lacks epsilon_pld); make it again with "
                    "`snakemake --forcerun audit`, and where a ledger is of an older version too, train that run again"
                )
            record = parse_params(_Audit, content, str(path))
            for run in record.runs:
                if run.coordinates not in runs:
                    continue
                if run.coordinates in audits:
                    first = audits[run.coordinates][0]
                    raise UserError(f"the audit of one run stands twice, in {first} and in {path}; delete one")
                if run.recipe is not None and not _recipe_is(specs[runs[run.coordinates]], run.recipe):
                    raise _other_recipe(path, run.coordinates)
                made_by = run.provenance or record.provenance
                if made_by is None:
                    raise UserError(f"{path} lacks the key 'provenance'; delete it and run snakemake again")
                audits[run.coordinates] = (path, _audit_rows(run, made_by))
                codes.setdefault(made_by.code, path)
                one = method_codes.setdefault(run.coordinates.method, made_by.method_code)
                if one != made_by.method_code and not study.allow_mixed_code:
                    raise UserError(
                        f"{path}: runs of {run.coordinates.method} were made by different versions of its code "
                        f"({one} and {made_by.method_code}); redo them with `snakemake --forcerun train`, or set "
                        "`allow_mixed_code: true` in the study"
                    )
        elif "attacks" in content and study.attacks:
            for attacked in parse_params(_Attacks, content, str(path)).attacks:
                if attacked.coordinates not in runs:
                    continue
                if not _recipe_is(specs[runs[attacked.coordinates]], attacked.recipe):
                    raise _other_recipe(path, attacked.coordinates)
                cell = _run_key(_coordinate_row(attacked.coordinates))[:-1]
                if cell in attacks:
                    raise UserError(f"one attack stands twice, in {attacks[cell][0]} and in {path}; delete one")
                attacks[cell] = path, _attack_columns(attacked.attack)
                codes.setdefault(attacked.provenance.code, path)
    if len(codes) > 1 and not study.allow_mixed_code:
        raise UserError(_mixed(codes, anchors))
    if len(weights) > 1:
        one, two = [files[0] for files in weights.values()][:2]
        raise UserError(
            f"{one} and {two} were made with different weights of Inception, whose distances are not comparable; "
            "make them all again with `snakemake --forcerun reference`"
        )
    for cell, files in protocols.items():
        if len(files) > 1:
            raise UserError(_mixed_cell(cell, files, study))

    rows = [row for _, row in sorted(scores.values(), key=lambda item: item[1]["_order"])]
    facts = {_run_key(found[1][0]): found[1][0] for found in audits.values()}
    for row in rows:
        audit = facts.get(_run_key(row), {})
        row["delta"] = audit.get("delta", math.nan)
        row["accountant"] = audit.get("accountant", "")
    audit_rows = [
        row | attacks.get(_run_key(row)[:-1], ("", NO_ATTACK))[1]
        for c in sorted(audits, key=runs.__getitem__)
        for row in audits[c][1]
    ]
    return _frame(rows, METRICS), _frame(audit_rows, AUDITS)


def holes(study: Study, metrics: pd.DataFrame, audits: pd.DataFrame) -> list[str]:
    """One line per run and sampler whose fidelity, FID, utility or audit is missing, in the order of the grid.

    A classifier has one accuracy, that of its family, and no distance. An FID is expected where the study asks for it.
    """
    found = {(*_run_key(row), row["sampler"], row["metric"]) for row in metrics.to_dict("records")}
    judged = {_run_key(row) for row in metrics[metrics["protocol"] == DIRECT].to_dict("records")}
    audited = {_run_key(row) for row in audits.to_dict("records")}
    attacked = {_run_key(row) for row in audits[audits["attack"] != ""].to_dict("records")}
    lines = []
    for c in _score_coordinates(study):
        row = _coordinate_row(c)
        key, sampler = _run_key(row), row["sampler"]
        if study.is_classifier(c.method):
            missing = [] if key in judged else ["accuracy"]
        else:
            distances = {"fidelity": "fd"} | ({"FID": "fid"} if study.evaluation.fid else {})
            missing = [name for name, metric in distances.items() if (*key, sampler, metric) not in found]
            lacking = [n for n in study.evaluation.classifiers if (*key, sampler, f"acc_{n}") not in found]
            if len(lacking) == len(study.evaluation.classifiers):
                missing.append("utility")
            else:
                missing += [f"accuracy of {name}" for name in lacking]
        if c.epsilon is not None and key not in audited:
            missing.append("audit")
        elif study.attacks and c.epsilon is not None and math.isfinite(c.epsilon) and key not in attacked:
            missing.append("attack")
        if missing:
            lines.append(f"{_place(c)}: no {', no '.join(missing)}")
    return lines


def _place(c: Coordinates, seed: bool = True) -> str:
    epsilon = "" if c.epsilon is None else f"epsilon {epsilon_text(c.epsilon)}"
    sampler = f"sampler {c.sampler}" if c.sampler else ""
    parts = [c.dataset, c.method, epsilon, f"seed {c.seed}" if seed else "", sampler]
    return ", ".join(part for part in parts if part)


def _score_coordinates(study: Study) -> list[Coordinates]:
    scored = [
        run.coordinates(sampler)
        for run in study.runs()
        for sampler in ([None] if study.is_classifier(run.method) else study.samplers_of(run))
    ]
    return scored + study.anchor_coordinates()


def _result_files(folders: Sequence[Path]) -> list[Path]:
    found = {}
    for folder in map(Path, folders):
        if folder.suffix == ".json" and folder.is_file():
            found.setdefault(folder.resolve(), folder)
        for path in folder.rglob("*.json"):
            inside = (folder.name, *path.relative_to(folder).parts[:-1])
            if not path.name.startswith(".") and (path.name in _SCORE_FILES or {"audits", "attacks"} & set(inside)):
                found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _other_evaluation(record: _Scores, study: Study) -> str:
    """What is wrong with scores from before the study was edited, where Snakemake's own notes of it were lost."""
    place, expected = _place(record.coordinates), study.evaluation
    if record.protocol not in ("", DIRECT, expected.protocol) and not study.allow_mixed_protocols:
        return (
            f"{place} was scored by the protocol {record.protocol}, and the study says {expected.protocol}; score it "
            "again with `snakemake --forcerun score score_anchor`, or set `allow_mixed_protocols: true` in the study"
        )
    without_images = record.coordinates.method == "real" or record.protocol == DIRECT
    if not without_images and record.num_synthetic != expected.synthetic_images:
        return (
            f"{place} was judged by {record.num_synthetic:,} synthetic images, and the study says "
            f"{expected.synthetic_images:,}; make them again with `snakemake --forcerun sample label_only`"
        )
    if record.drawn_by is not None:
        run = study.run(**record.coordinates.model_dump(include={"dataset", "method", "epsilon", "seed"}))
        if record.drawn_by != study.sample(run, record.coordinates.sampler).model_dump(mode="json"):
            return (
                f"the images of {place} were drawn otherwise than the study says; draw them again with "
                "`snakemake --forcerun sample`"
            )
    return ""


def _recipe_is(expected: RunSpec, recipe: Mapping[str, Any]) -> bool:
    return recipe == expected.model_dump(mode="json")


def _other_recipe(path: Path, c: Coordinates) -> UserError:
    return UserError(
        f"{path}: {_place(c)} was trained by another recipe than the study's; "
        "train it again with `snakemake --forcerun train`"
    )


def _mixed(codes: Mapping[str, Path], anchors: set[Path]) -> str:
    (one, first), (two, second) = list(codes.items())[:2]
    old_anchor = next((p for p in (first, second) if p in anchors), None)
    by_hand = f" (and delete {old_anchor} if it is the older: no training makes an anchor)" if old_anchor else ""
    return (
        f"{first} and {second} were made by different versions of the code ({one} and {two}); redo the old runs "
        f"with `snakemake --forcerun train`{by_hand}, or set `allow_mixed_code: true` in the study"
    )


def _of_another_protocol(files: Mapping[str, Sequence[Path]], study: Study) -> list[Path]:
    return [path for name in files if name != study.evaluation.protocol for path in files[name]]


def _mixed_cell(cell: Coordinates, files: Mapping[str, Sequence[Path]], study: Study) -> str:
    """Says what is wrong with a cell whose seeds were scored by several protocols; `files` has them by protocol."""
    others = ", ".join(map(str, _of_another_protocol(files, study)))
    return (
        f"the seeds of {_place(cell, seed=False)} were scored by the protocols {' and '.join(sorted(files))}, whose "
        f"accuracies have no mean; delete {others} and run snakemake again"
    )


def _run_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["dataset"], row["method"], row["epsilon"], row["seed"]


def _coordinate_row(c: Coordinates) -> dict[str, Any]:
    epsilon = "" if c.epsilon is None else epsilon_text(c.epsilon)
    return {**c.model_dump(), "epsilon": epsilon, "sampler": c.sampler or ""}


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _score_rows(record: _Scores) -> Iterator[dict[str, Any]]:
    shared = {
        **_coordinate_row(record.coordinates), **record.provenance.model_dump(),
        "num_synthetic": record.num_synthetic, "protocol": record.protocol,
    }  # fmt: skip
    for m in record.metrics:
        yield {**shared, **m.model_dump(), "value": _number(m.value)}


def _audit_rows(run: _Audited, provenance: _Provenance) -> list[dict[str, Any]]:
    shared = {
        **_coordinate_row(run.coordinates), **provenance.model_dump(),
        **run.model_dump(exclude={"coordinates", "recipe", "events", "provenance"}),
    }  # fmt: skip
    none = {"mechanism": "", "name": "", "steps": 0}
    events = [event.model_dump() for event in run.events] or [none]
    numbers = ("noise_multiplier", "sample_rate", "sensitivity")
    return [{**shared, **event, **{name: _number(event.get(name)) for name in numbers}} for event in events]


def _attack_columns(bound: _Bound) -> dict[str, Any]:
    names = {"method": "attack", "epsilon": "attacked_epsilon"}
    return {names.get(name, f"attack_{name}"): value for name, value in bound.model_dump().items()}


def _frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=_DTYPES[kind]) for name, kind in columns.items()}
    )


# --- csv ------------------------------------------------------------------------------------------------------


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Writes a frame without its index; floats keep every digit, NaN is an empty field."""
    artifacts.write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def read_csv(path: str | Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """Reads what `write_csv` wrote: the same values bit by bit, and epsilon stays text.

    Args:
        columns: METRICS or AUDITS.

    Raises:
        UserError: the file is missing, has other columns, or holds a malformed number.
    """
    parse = {str: str, float: lambda v: float(v) if v else math.nan, int: int, bool: {"True": True, "False": False}.get}
    try:
        raw = pd.read_csv(io.StringIO(artifacts.read_bytes(path).decode()), dtype=str, keep_default_na=False)
        if list(raw.columns) != list(columns):
            raise ValueError(f"its columns are {', '.join(raw.columns)}")
        if not raw.get("direction", pd.Series(dtype=str)).isin(["lower", "higher"]).all():
            raise ValueError("a metric has no direction")
        rows = [{name: parse[kind](row[name]) for name, kind in columns.items()} for row in raw.to_dict("records")]
        return _frame(rows, columns)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is not a table of this kind ({error}); delete it and run snakemake again") from error


# --- run times ------------------------------------------------------------------------------------------------


def read_benchmarks(folder: str | Path, study: Study) -> pd.DataFrame:
    """Wall time and peak memory of every job of the study below `folder`, from Snakemake's `benchmark:` files.

    Understands TSV and JSONL, plain and `--benchmark-extended`; a plain file does not name its rule, so its file
    name is used. A measurement that Snakemake could not take is NaN. Other files are skipped, and so are jobs of
    what the study no longer has, and a folder that does not exist.

    Returns:
        Columns BENCHMARKS: seconds of wall time, peak resident memory in MB; dataset and method are "" where the
        rule has none.
    """
    rows = []
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file() and not p.name.startswith(".")):
        for record in _benchmark_records(path):
            wildcards = _mapping(record.get("wildcards"))
            if not _in_grid(wildcards, study):
                continue
            rows.append(
                {
                    "rule": str(record.get("rule_name") or path.stem),
                    "dataset": str(wildcards.get("dataset", "")),
                    "method": str(wildcards.get("method", "")),
                    "seconds": _measured(record["s"]),
                    "max_rss_mb": _measured(record.get("max_rss")),
                }
            )
    return _frame(rows, BENCHMARKS)


def _in_grid(wildcards: Mapping[str, Any], study: Study) -> bool:
    """Whether the study still has what these wildcards name."""
    method = study.methods.get(wildcards.get("method", ""))
    dataset = wildcards.get("dataset")
    epsilons = study.epsilons_of(dataset) if dataset in study.datasets else study.epsilons
    known = {
        "dataset": study.datasets,
        "method": study.methods,
        "anchor": study.anchors,
        "epsilon": list(map(epsilon_text, epsilons)),
        "seed": list(map(str, study.seeds)),
        "sampler": method.samplers if method else (),
    }
    return all(str(wildcards[name]) in values for name, values in known.items() if name in wildcards)


def _benchmark_records(path: Path) -> list[dict[str, Any]]:
    try:
        text = artifacts.read_bytes(path).decode()
        if text.startswith("{"):
            records = [json.loads(line) for line in text.splitlines() if line]
        else:
            header, *lines = [line.split("\t") for line in text.splitlines() if line]
            records = [dict(zip(header, line, strict=True)) for line in lines]
    except ValueError:  # not text, not JSON, no header, ragged: no benchmark file
        return []
    return [record for record in records if isinstance(record, dict) and {"s", "h:m:s"} <= set(record)]


def _mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # TSV holds Python's repr of the dict
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return {}
    return value if isinstance(value, dict) else {}


def _measured(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):  # "NA", "-" or null
        return math.nan
