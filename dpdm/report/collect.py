"""Result files of one study -> tidy metrics, audits and run times; refuses results that one table must not mix."""

import ast
import contextlib
import csv
import io
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pandas as pd
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model

from dpdm import artifacts
from dpdm.config import DIRECT, Study
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.layout import Layout
from dpdm.params import Natural
from dpdm.specs import Accountant, Coordinates, RunSpec, epsilon_text, refuse_other_recipe

_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value in (None, "") else value)]


def rule(holds: Callable[[Any], bool], words: str) -> AfterValidator:
    """A check of a field; `words` say what its value must be."""

    def checked(value: Any) -> Any:
        if not holds(value):
            raise ValueError(f"{words}, got {value!r}")
        return value

    return AfterValidator(checked)


class _Row(BaseModel):
    study: str
    dataset: str
    method: str
    # text: "0.2", "10", "inf", "" for anchors, as in paths
    epsilon: Annotated[str, rule(lambda text: not text or float(text) > 0, "epsilon must be above 0")]


class _Metric(_Row):
    delta: _Number = math.nan
    accountant: str = ""
    seed: Natural
    sampler: str
    metric: str
    extractor: str  # "" where there is none
    direction: Literal["lower", "higher"]  # which is better
    reference: str
    value: Annotated[_Number, rule(lambda value: not math.isinf(value), "must be finite, or empty")]  # NaN: has none
    num_synthetic: Annotated[Natural, Field(le=10**9)]
    protocol: str = ""  # of accuracies
    version: str
    commit: str
    code: str
    public_data: str = ""  # from which the method learned, by its audit
    departures: str = ""  # how its run differs from the published method, by its audit: parts with ", " between them
    spread: _Number = math.nan  # standard deviation over several extractors, if `value` is their mean


class _Run(_Row):
    seed: Natural
    n: int
    delta: float
    accountant: str
    neighbouring_relation: str
    noise: str
    target_epsilon: float


SPENT = {name: f"epsilon_{name}" for name in get_args(Accountant)}  # columns of the spent epsilon, by accountant
_Spent = create_model("_Spent", __base__=_Run, **dict.fromkeys(SPENT.values(), (float, ...)))


class _Event(_Spent):
    passed: bool
    recipe_checked: bool
    mechanism: str = ""
    name: str = ""
    noise_multiplier: _Number = math.nan
    sample_rate: _Number = math.nan
    steps: int = 0
    sensitivity: _Number = math.nan
    share_rdp: _Number = math.nan  # of the run's budget, 0 to 1; NaN if there is nothing to divide
    share_prv: _Number = math.nan
    version: str
    commit: str
    code: str
    attack: str = ""
    attacked_epsilon: _Number = math.nan
    attack_certified: _Number = math.nan
    attack_confidence: _Number = math.nan
    attack_runs: int = 0
    attack_canaries: int = 0
    attack_exceeded: bool = False
    public_data: str = ""
    departures: str = ""


# Columns and their types.
METRICS, AUDITS = (
    {name: of.annotation if isinstance(of.annotation, type) else str for name, of in row.model_fields.items()}
    for row in (_Metric, _Event)
)
BENCHMARKS: dict[str, type] = {
    "rule": str, "dataset": str, "method": str, "seconds": float, "max_rss_mb": float, "ended": float
}  # fmt: skip
JOBS = "jobs.csv"  # of kept results: their TIMES by JOB_KEYS
JOB_KEYS = ("machine", "rule", "dataset", "method")
TIMES = ("jobs", "seconds", "longest", "max_rss_mb")  # columns of jobs added up

SHARES = ("share_rdp", "share_prv")
OPTIONAL = ("public_data", "departures", "spread", *SHARES)  # columns missing from a csv if all their cells are empty

_VALUE_OF = ["sampler", "metric", "extractor", "reference", "protocol", "commit"]  # with RUN, a value's coordinates
RUN = ["dataset", "method", "epsilon", "seed"]  # the coordinates of one
_run_key = operator.itemgetter(*RUN)
_DAMAGED = "the file is damaged or of another version: make it again with `snakemake --forcerun {}`"
_RULES = {  # the rules that make each file of scores; a table has the scores in this order
    "fidelity.json": "score score_anchor",
    "inception.json": "score_inception score_inception_anchor",
    "utility.json": "score score_anchor score_classifier",
}


def collect(study: Study, folders: Sequence[str | Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads all score files, `audits/*.json` and `attacks/*.json` in the folders.

    Results outside the study's grid are left out; so are the scores by Inception if the study has no `fid`. Missing
    results are no error: see `holes`. `delta`, `accountant`, `public_data` and `departures` of a score are from its
    audit; `departures` also names the smoothing of its images.

    Args:
        study: its grid determines the results that are kept, and their order; it also says what one table may mix.
        folders: searched recursively, or single files, which may be missing; a file in several of them is read once.

    Returns:
        Metrics (columns METRICS, one row per run, sampler, metric and reference) and audits (columns AUDITS, one row
        per run and event, with the attack on its cell; a run without events has one row with an empty mechanism).

    Raises:
        UserError: a file is malformed; a result exists twice, or was not trained or judged as the study says; code
            versions or weights of an extractor are mixed; or the seeds of one cell have several protocols, which is
            never allowed.
    """
    places = {c: i for i, c in enumerate(_score_coordinates(study))}
    specs = {run.coordinates(): run for run in study.runs()}
    # Kind, owner, value, file. An owner has one value of each kind in _ONE; results are numbered, so a second differs.
    seen: list[tuple[str, str, str, Path]] = []
    scores: list[tuple[tuple[int, ...], dict[str, Any]]] = []  # their place in the table, and row
    audits: dict[tuple[Any, ...], list[dict[str, Any]]] = {}  # by RUN
    attacks: dict[tuple[Any, ...], dict[str, Any]] = {}  # by the cell of all seeds
    for path in _result_files(folders):
        with _damaged(path, "make it again"):
            if path.name in _RULES:
                content = artifacts.read_json(path, ("coordinates", "provenance", "num_synthetic", "metrics"))
                c = parse_params(Coordinates, content["coordinates"], str(path))
                if c not in places or (path.name == "inception.json" and not study.evaluation.fid):
                    continue
                if fault := _other_evaluation(c, content, study):
                    raise UserError(f"{path}: {fault}")
                facts = {"num_synthetic": content["num_synthetic"], "protocol": content.get("protocol", "")}
                if weight := (content.get("drawn_by") or {}).get("sampler_params", {}).get("tv_weight"):
                    facts["departures"] = f"smoothed, TV weight {weight:g}"
                shared = _coordinate_row(c) | content["provenance"] | facts
                fix = _DAMAGED.format(_RULES[path.name])
                for position, measured in enumerate(content["metrics"]):
                    row = _parsed(_Metric, shared | measured, f"{path}: metrics[{position}]", fix)
                    scores.append(((places[c], list(_RULES).index(path.name), position), row))
                    what = ", ".join([_place(c), row["metric"], row["extractor"], row["reference"]])
                    seen.append(("score", what, str(len(seen)), path))
                seen.append(("code", "", content["provenance"]["code"], path))
                for name in study.evaluation.extractors:
                    if weights := content.get(name, {}).get("weights_sha256"):  # older files have none
                        seen.append(("features", f"{name} on {c.dataset}", weights, path))
                if "inception" in content:
                    seen.append(("weights", "", content["inception"]["weights_sha256"], path))
                if facts["protocol"]:
                    seen.append(("protocols", _place(c, seed=False), facts["protocol"], path))
                continue
            content = artifacts.read_json(path)
            for number, run in enumerate(content.get("runs", [])):
                if c := _trained(path, run, specs):
                    shared = _coordinate_row(c) | run["provenance"] | {k: run[k] for k in run if k in AUDITS}
                    parts = run.get("budget_shares", {})  # older audits have none
                    events = [
                        {"steps": 1}
                        | event
                        | {f"share_{by}": part for by, part in parts.get(event["name"], {}).items()}
                        for event in run["events"]
                    ] or [{}]
                    where, fix = f"{path}: runs[{number}]", _DAMAGED.format("audit")
                    audits[_run_key(shared)] = [_parsed(_Event, shared | event, where, fix) for event in events]
                    seen.append(("audit", _place(c), str(len(seen)), path))
                    seen.append(("code", "", run["provenance"]["code"], path))
                    seen.append(("method", c.method, run["provenance"].get("method_code", ""), path))
            for attacked in content.get("attacks", []) if study.attacks else []:
                if c := _trained(path, attacked, specs):
                    names = {"method": "attack", "epsilon": "attacked_epsilon"}
                    bound = {names.get(name, f"attack_{name}"): value for name, value in attacked["attack"].items()}
                    cell = _run_key(_coordinate_row(c))[:-1]
                    attacks[cell] = {name: value for name, value in bound.items() if name in AUDITS}
                    seen.append(("attack", _place(c, seed=False), str(len(seen)), path))
                    seen.append(("code", "", attacked["provenance"]["code"], path))
    _refuse_mixed(seen, study)
    rows = [row for _, row in sorted(scores, key=lambda score: score[0])]
    for row in rows:
        (audit, *_) = audits.get(_run_key(row), [{}])
        row |= {name: audit[name] for name in ("delta", "accountant", "public_data") if name in audit}
        row["departures"] = ", ".join(filter(None, [audit.get("departures", ""), row["departures"]]))
    keys = [_run_key(_coordinate_row(c)) for c in specs]
    audited = [row | attacks.get(key[:-1], {}) for key in keys for row in audits.get(key, ())]
    return _frame(rows, METRICS), _frame(audited, AUDITS)


_TWICE = "one {kind} is there twice, in {first} and in {second}; delete one of them"
_ONE = {  # kinds that must have only one value per owner
    **dict.fromkeys(["score", "audit", "attack"], _TWICE),
    "method": "{second}: runs of {owner} were made by different versions of its code ({one} and {two}); redo them with "
    "`snakemake --forcerun train`, or set `allow_mixed_code: true` in the study",
    "code": "{first} and {second} were made by different versions of the code ({one} and {two}); redo the old ones "
    "with `snakemake --forcerun train score_anchor`, or set `allow_mixed_code: true` in the study",
    "features": "{first} and {second} have distances by different weights of the extractor {owner} ({one:.8} and "
    "{two:.8}), which do not compare; make them again with `snakemake --forcerun extractor`, or set `allow_mixed_code: "
    "true` in the study",
    "weights": "{first} and {second} were made with different weights of Inception, whose distances are not "
    "comparable; make them all again with `snakemake --forcerun reference`",
    "protocols": "the seeds of {owner} were scored by the protocols {one} and {two}, whose accuracies have no mean; "
    "delete {others} and run snakemake again",
}


def _refuse_mixed(seen: Sequence[tuple[str, str, str, Path]], study: Study) -> None:
    """Raises if one owner has several values, unless the study allows them."""
    frame = pd.DataFrame(seen, columns=["kind", "owner", "value", "path"])
    frame = frame[frame.groupby(["kind", "owner"])["value"].transform("nunique") > 1]
    for kind, message in _ONE.items():
        files = frame[frame["kind"] == kind]
        if len(files) and not (kind in ("method", "code", "features") and study.allow_mixed_code):
            files = files[files["owner"] == files["owner"].iloc[0]]
            first, second = files.drop_duplicates("value").head(2).itertuples()
            others = ", ".join(map(str, files.loc[files["value"] != study.evaluation.protocol, "path"]))
            facts = {"one": first.value, "two": second.value, "first": first.path, "second": second.path}
            raise UserError(message.format(kind=kind, owner=first.owner, others=others, **facts))


def _parsed(kind: type[BaseModel], row: Mapping[str, Any], where: str, fix: str) -> dict[str, Any]:
    try:
        return parse_params(kind, row, where).model_dump()
    except UserError as error:
        raise UserError(f"{str(error).splitlines()[0]}; {fix}") from error


def _trained(path: Path, run: Mapping[str, Any], specs: Mapping[Coordinates, RunSpec]) -> Coordinates | None:
    """The coordinates of an audited or attacked run; None if the study does not have the run."""
    if missing := [key for key in ("coordinates", "recipe", "provenance") if key not in run]:
        raise UserError(f"{path} lacks the key {missing[0]!r}; make it again with `snakemake --forcerun audit`")
    c = parse_params(Coordinates, run["coordinates"], str(path))
    if c in specs:
        refuse_other_recipe(specs[c], run["recipe"], path)
    return c if c in specs else None


def holes(study: Study, metrics: pd.DataFrame, audits: pd.DataFrame) -> list[str]:
    """One line per run and sampler whose fidelity, FID, utility or audit is missing, in the order of the grid.

    A classifier has one accuracy, that of its family, and no distance. An FID is expected if the study has `fid`.
    """
    named = metrics.assign(metric=metrics["metric"].where(metrics["protocol"] != DIRECT, DIRECT))
    frames = (named[[*RUN, "sampler", "metric"]], audits[RUN], audits.loc[audits["attack"] != "", RUN])
    found, audited, attacked = (set(frame.itertuples(index=False, name=None)) for frame in frames)
    distances = {"fidelity": "fd"} | ({"FID": "fid"} if study.evaluation.fid else {})
    classifiers = {f"accuracy of {name}": f"acc_{name}" for name in study.evaluation.classifiers}
    lines = []
    for c in _score_coordinates(study):
        row = _coordinate_row(c)
        key = _run_key(row)
        wanted = {"accuracy": DIRECT} if study.is_classifier(c.method) else distances | classifiers
        missing = [name for name, metric in wanted.items() if (*key, row["sampler"], metric) not in found]
        if set(classifiers) <= set(missing):
            missing = [*(name for name in missing if name in distances), "utility"]
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
    return ", ".join(filter(None, [c.dataset, c.method, epsilon, f"seed {c.seed}" if seed else "", sampler]))


def _score_coordinates(study: Study) -> list[Coordinates]:
    scored = [run.coordinates(sampler) for run in study.runs() for sampler in study.samplers_of(run) or (None,)]
    return scored + study.anchor_coordinates()


def _result_files(folders: Sequence[str | Path]) -> list[Path]:
    found = {}
    for folder in map(Path, folders):
        if folder.suffix == ".json" and folder.is_file():
            found.setdefault(folder.resolve(), folder)
        for path in folder.rglob("*.json"):
            inside = (folder.name, *path.relative_to(folder).parts[:-1])
            if not path.name.startswith(".") and (path.name in _RULES or {"audits", "attacks"} & set(inside)):
                found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _other_evaluation(c: Coordinates, content: Mapping[str, Any], study: Study) -> str:
    """Why scores do not fit the study, for example after an edit that Snakemake did not record; "" if they fit."""
    place, expected, protocol = _place(c), study.evaluation, content.get("protocol", "")
    if protocol not in ("", DIRECT, expected.protocol) and not study.allow_mixed_protocols:
        return (
            f"{place} was scored by the protocol {protocol}, and the study says {expected.protocol}; score it "
            "again with `snakemake --forcerun score score_anchor`, or set `allow_mixed_protocols: true` in the study"
        )
    without_images = c.method == "real" or protocol == DIRECT
    if not without_images and content["num_synthetic"] != expected.synthetic_images:
        return (
            f"{place} was judged by {content['num_synthetic']:,} synthetic images, and the study says "
            f"{expected.synthetic_images:,}; make them again with `snakemake --forcerun sample label_only`"
        )
    if content.get("drawn_by") is not None:
        run = study.run(**c.model_dump(include={"dataset", "method", "epsilon", "seed"}))
        if content["drawn_by"] != study.sample(run, c.sampler).model_dump(mode="json"):
            return (
                f"the images of {place} were drawn otherwise than the study says; draw them again with "
                "`snakemake --forcerun sample`"
            )
    return ""


def _coordinate_row(c: Coordinates) -> dict[str, Any]:
    epsilon = "" if c.epsilon is None else epsilon_text(c.epsilon)
    return {**c.model_dump(), "epsilon": epsilon, "sampler": c.sampler or ""}


# --- csv ------------------------------------------------------------------------------------------------------


def _frame(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).astype(columns)


def write_csv(path: str | Path, frame: pd.DataFrame) -> None:
    """Writes a frame without its index; floats keep every digit, NaN is an empty field."""
    empty = [name for name in OPTIONAL if name in frame and frame[name].replace("", math.nan).isna().all()]
    artifacts.write_text(path, frame.drop(columns=empty).to_csv(index=False, lineterminator="\n"))


def read_csv(path: str | Path, columns: Mapping[str, type]) -> pd.DataFrame:
    """Reads a file of `write_csv`: the same values bit by bit, and epsilon stays text.

    Args:
        columns: METRICS or AUDITS.

    Raises:
        UserError: the file is missing, has other columns, or holds a malformed number or rows of several studies.
    """
    fix = "it is of another version: delete it and run snakemake again"
    reader = csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode(errors="replace")))
    if not (found := list(reader.fieldnames or [])):
        raise UserError(f"{path} is empty; delete it and run snakemake again")
    if found != [name for name in columns if name in found or name not in OPTIONAL]:
        raise UserError(f"{path} is not a table of this kind: its columns are {', '.join(found)}; {fix}")
    kind = _Metric if "metric" in columns else _Event
    rows = [_parsed(kind, row, f"{path}, line {reader.line_num}", fix) for row in reader]
    frame = _frame(rows, columns)
    if len(studies := frame["study"].unique()) > 1:
        raise UserError(
            f"{path} holds the studies {', '.join(studies)}, whose rows would count as more seeds of one; keep a "
            "file per study, and put their folders into one table by `dpdm compare FOLDER FOLDER`"
        )
    if kind is _Metric and (again := frame.duplicated([*RUN, *_VALUE_OF])).any():
        metric, *place = frame.loc[again, ["metric", *RUN, "sampler"]].iloc[0].map(str)
        where = "/".join(filter(None, place))
        raise UserError(f"{path} has {metric} of {where} twice, which would count as another seed; {fix}")
    return frame


# --- run times ------------------------------------------------------------------------------------------------


def read_benchmarks(folder: str | Path, study: Study) -> pd.DataFrame:
    """The study's present jobs below `folder`, from Snakemake's `benchmark:` files, plain or extended.

    Returns:
        Columns BENCHMARKS: seconds of wall time, peak resident memory in MB (NaN if Snakemake could not measure it),
        and when the file was written (seconds since 1970); dataset and method are "" if the rule has none.
    """
    rows = []
    for path in sorted(Path(folder).rglob("*.tsv")):
        with _damaged(path):
            rows += _read_times(path, study)
    return pd.DataFrame(rows, columns=list(BENCHMARKS)).astype(BENCHMARKS)


@contextlib.contextmanager
def _damaged(path: Path, fix: str = "delete it") -> Iterator[None]:
    """Inside the block, whatever the content of a file raises becomes a UserError that names the file."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, SyntaxError, IndexError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise UserError(f"{path} is damaged or of another version ({reason}); {fix}") from error


def _read_times(path: Path, study: Study) -> Iterator[dict[str, Any]]:
    ended = path.stat().st_mtime
    for record in csv.DictReader(io.StringIO(artifacts.read_bytes(path).decode()), delimiter="\t"):
        wildcards = ast.literal_eval(record.get("wildcards") or "{}")  # Python's repr of a dict
        if _in_grid(wildcards, study):
            names = {name: wildcards.get(name, "") for name in ("dataset", "method")}
            numbers = {
                name: math.nan if record[key] in ("NA", "-") else float(record[key])
                for name, key in {"seconds": "s", "max_rss_mb": "max_rss"}.items()
            }
            rule = record.get("rule_name") or path.stem  # a plain file has none
            yield {"rule": rule, **names, **numbers, "ended": ended}


def add_jobs(frames: Iterable[pd.DataFrame], by: Sequence[str]) -> pd.DataFrame:
    """Adds up the times of jobs, from frames of `read_benchmarks` or earlier sums; jobs without a time do not count.

    Returns:
        Per value of the columns `by`: number of jobs, seconds of all and of the longest, and peak memory in MB.
    """
    each = [frame if "jobs" in frame else frame.assign(jobs=1, longest=frame["seconds"]) for frame in frames]
    sums = {name: (name, "sum" if name in ("jobs", "seconds") else "max") for name in TIMES}
    return pd.concat(each).dropna(subset=["seconds"]).groupby(list(by)).agg(**sums).reset_index()


def job_times(layout: Layout, study: Study, machine: str = "") -> tuple[pd.DataFrame, float]:
    """The times of all jobs, by JOB_KEYS, and `clock_seconds`, which is NaN if a restored jobs.csv is added."""
    ours, restored = read_benchmarks(layout.benchmarks, study).assign(machine=machine), Path(layout.root, JOBS)
    if not restored.exists():
        return add_jobs([ours], JOB_KEYS), clock_seconds(ours)
    with _damaged(restored):
        jobs = pd.read_csv(restored, keep_default_na=False)[[*JOB_KEYS, *TIMES]]
        measured = jobs[[*TIMES]].replace("", math.nan).astype(float)  # Snakemake cannot always measure memory
        jobs = jobs.assign(**measured).astype({"jobs": int})
    return add_jobs([jobs, ours], JOB_KEYS), math.nan


def clock_seconds(benchmarks: pd.DataFrame) -> float:
    """Wall-clock seconds in which at least one job ran: a study's time from start to end without its pauses.

    A job ends when its file is written. In a copied folder all files have the same time, which gives NaN. The ends of
    jobs that ran here differ by more than the time of the longest job, since jobs follow each other.
    """
    jobs = benchmarks.dropna(subset=["seconds"])
    if not jobs["ended"].max() - jobs["ended"].min() >= jobs["seconds"].max():
        return math.nan
    spans = jobs.assign(began=jobs["ended"] - jobs["seconds"]).sort_values("began")[["began", "ended"]]
    return spans.clip(lower=spans["ended"].cummax().shift(), axis=0).diff(axis=1)["ended"].sum()


def _in_grid(wildcards: Mapping[str, str], study: Study) -> bool:
    """Whether the study still has the job of these wildcards."""
    method, dataset = study.methods.get(wildcards.get("method", "")), wildcards.get("dataset")
    epsilons = study.epsilons_of(dataset, method and wildcards["method"]) if dataset in study.datasets else ()
    seeds = study.seeds_of(wildcards["method"]) if method else study.seeds
    known = {
        "dataset": study.datasets, "method": study.methods, "anchor": study.anchors,
        "epsilon": list(map(epsilon_text, epsilons)), "seed": list(map(str, seeds)),
        "sampler": method.samplers if method else (),
    }  # fmt: skip
    return all(wildcards[name] in values for name, values in known.items() if name in wildcards)
