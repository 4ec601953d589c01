"""A study as a user names it: STUDY (a study file or a results folder), RUN (coordinates), --set, --spec.

Imports no numerical library: the Snakefile asks here which files a job needs.
"""

import contextlib
import difflib
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dpdm.config import ANCHORS, VERSION, Study, load_study, merge, parse_study, shipped_studies
from dpdm.errors import UserError, pasted
from dpdm.explain import parse_params
from dpdm.layout import KEPT, Layout
from dpdm.specs import Coordinates, RunSpec, epsilon_text, parse_spec, spec_json
from dpdm.yaml_file import parse_yaml

RUN_FORM, SET_FORM = "DATASET/METHOD/EPSILON/SEED", "DATASET/METHOD/EPSILON/SEED/SAMPLER"
Found = TypeVar("Found")


def open_study(path: str | Path) -> tuple[Study, Layout]:
    """Reads STUDY: a study file (YAML; several with commas), or a results folder, whose study.json the workflow wrote.

    UserError if a name is empty; the file or folder does not exist; the folder holds no study.json, or one of another
    version; the file is JSON, or breaks the schema.
    """
    if not all(str(path).split(",")):
        raise UserError(
            f"STUDY {str(path)!r} has an empty name: write one file, or several with only a comma between two"
        )
    path = Path(path)
    if path.is_dir() and (str(path) not in shipped_studies() or (path / "study.json").is_file()):
        layout = Layout.of(path)
        if not Path(layout.study).is_file():
            raise UserError(
                f"{path} is no results folder of a study: it holds no study.json; name the study file (YAML), or "
                + (
                    f"{path / KEPT}"
                    if (path / KEPT / "study.json").is_file()
                    else "a folder that `dpdm run STUDY` made"
                )
            )
        value = _read_json(layout.study)
        return parse_study({"version": 0} | value, layout.study), layout  # the first ones had no version
    if path.suffix in (".json", ".jsonl"):
        raise UserError(
            f"{path} is a JSON file where a study is wanted; name a study file (YAML), or the results folder that "
            "holds study.json"
        )
    study = load_study(path)
    return study, Layout(study.results_dir, study.study)


def is_kept(layout: Layout) -> bool:
    """Whether a results folder holds kept results."""
    return Path(layout.root).name == KEPT


def refuse_kept(layout: Layout) -> None:
    """UserError if a results folder holds kept results, which no command is allowed to replace."""
    if is_kept(layout):
        raise UserError(f"{layout.root} holds kept results, which stay as they are; name the study file, or an --out")


def refuse_results(path: str | Path, own: str | Path | None = None) -> None:
    """UserError if a file or folder to write is in the results of a study, or in a data set's folder of images.

    Args:
        own: a file or folder that is allowed.
    """
    target = Path(path).resolve()
    if own and target == Path(own).resolve():
        return
    if study := next((f for f in (target, *target.parents) if (f / "study.json").is_file()), None):
        raise UserError(f"{path} is in the results of a study, {study}; choose another place to write to")
    for folder in (target, target.parent):
        if all((folder / name).is_file() for name in ("dataset.json", "train.npz")):
            raise UserError(
                f"{path} is in the folder of a data set's images, {folder}; choose another place to write to"
            )


def study_json(study: Study) -> str:
    """The text of study.json: a study, in the order of its file, with the version of its schema."""
    return json.dumps({"version": VERSION} | study.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _read_json(path: str | Path) -> dict[str, Any]:
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is no JSON ({error})"
        raise UserError(f"cannot read {path}: {reason}; make it again, or name another file") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; make it again, or name another file")
    return value


def selected(study: Study, part: Mapping[str, str]) -> Study:
    """The study with other `only` and `without`, in their text form; UserError as in a study file."""
    return parse_study(study.model_dump(mode="json") | dict(part), study.study)


# --- coordinates: a UserError names the nearest that the study has ---------------------------------------------------


def find_runs(study: Study, coordinates: str) -> list[RunSpec]:
    """The runs below coordinates: DATASET, DATASET/METHOD, and so on; all of them for ""."""
    depth = len(_parts(coordinates))

    def known(study: Study) -> dict[str, list[RunSpec]]:
        found: dict[str, list[RunSpec]] = {}
        for run in study.runs():
            found.setdefault("/".join(run.place[:depth]), []).append(run)
        return found

    return _find(study, coordinates, known, "/".join(RUN_FORM.split("/")[:depth]))


def find_run(study: Study, coordinates: str) -> RunSpec:
    """The one run of DATASET/METHOD/EPSILON/SEED."""
    return _find(study, coordinates, lambda study: {run.name: run for run in study.runs()}, RUN_FORM)


def find_sets(study: Study, coordinates: str) -> tuple[RunSpec, tuple[str, ...]]:
    """The run, and the samplers, of DATASET/METHOD/EPSILON/SEED/SAMPLER; without a sampler all of the method."""
    if len(_parts(coordinates)) != 5:
        run = find_run(study, coordinates)
        return run, study.samplers_of(run)

    def known(study: Study) -> dict[str, tuple[RunSpec, tuple[str, ...]]]:
        return {f"{run.name}/{name}": (run, (name,)) for run in study.runs() for name in study.samplers_of(run)}

    return _find(study, coordinates, known, SET_FORM)


def find_anchor(study: Study, coordinates: str) -> Coordinates | None:
    """The anchor row of DATASET/ANCHOR/SEED; None if the coordinates are not an anchor's."""
    if len(parts := _parts(coordinates)) != 3 and (*parts, "", "")[1] not in ANCHORS:
        return None

    def known(study: Study) -> dict[str, Coordinates]:
        return {f"{c.dataset}/{c.method}/{c.seed}": c for c in study.anchor_coordinates()}

    return _find(study, coordinates, known, "DATASET/ANCHOR/SEED")


def find_dataset(study: Study, name: str) -> str:
    """The data set of a study by its name."""
    return _find(study, name, lambda study: {dataset: dataset for dataset in study.datasets}, "DATASET")


def _parts(coordinates: str) -> list[str]:
    """The parts, with epsilon written as in paths."""
    parts = [part for part in coordinates.split("/") if part]
    if len(parts) > 2 and parts[1] not in ANCHORS:
        with contextlib.suppress(ValueError):
            parts[2] = epsilon_text(float(parts[2].replace(".inf", "inf")))
    return parts


def _find(study: Study, coordinates: str, known: Callable[[Study], Mapping[str, Found]], form: str) -> Found:
    """The study's runs at these coordinates; if only a part of the study is run, the rest is searched too."""
    key, found = "/".join(_parts(coordinates)), known(study)
    if key not in found and study.part():
        found = known(study.model_copy(update={"only": None, "without": None}))
    if key in found:
        return found[key]
    begun = [name for name in found if name.startswith(f"{key}/")]
    nearest = sorted(begun or found, key=lambda name: _distance(key, name))[:1]
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    raise UserError(f"the study {study.study} has no {coordinates!r}; write {form}{hint}")


def _distance(wanted: str, name: str) -> tuple[float, ...]:
    """How far two coordinates are apart, part by part: numbers by their ratio, names by their letters."""
    gaps = []
    for one, other in itertools.zip_longest(wanted.split("/"), name.split("/"), fillvalue=""):
        try:
            ratio = max(float(one), 1e-9) / max(float(other), 1e-9)
            gaps.append(0.0 if one == other else abs(math.log(ratio)) if 0 < ratio < math.inf else math.inf)
        except ValueError:  # no numbers
            gaps.append(1 - difflib.SequenceMatcher(None, one, other).ratio())
    return tuple(gaps)


# --- recipes ----------------------------------------------------------------------------------------------------------


def changed(run: RunSpec, changes: Sequence[str]) -> RunSpec:
    """The run with other params: each change is KEY=VALUE with a dotted key, such as dp.steps=20; else UserError.

    The params are not checked here: `dpdm.method.prepare_run` does, by the method's own schema.
    """
    params = run.params
    for change in changes:
        key, equals, text = change.partition("=")
        if not (equals and all(key.split("."))):
            raise UserError(f"--set {change}: write KEY=VALUE, for example --set dp.steps=20")
        if key in Coordinates.model_fields:
            raise UserError(
                f"--set {change}: {key} is no key of the recipe but a coordinate; write it into {RUN_FORM}, or into "
                "the file that `dpdm spec` prints and `dpdm train --spec` takes"
            )
        if (first := key.partition(".")[0]) in RunSpec.model_fields and first not in params:
            fix = "--noise changes it" if first == "noise" else "change it in the study, or in the file of --spec"
            raise UserError(f"--set {change}: {first} is no key of params; {fix}")
        nested = _value(text, f"--set {change}")
        for name in reversed(key.split(".")):
            nested = {name: nested}
        params = merge(params, nested)
    return parse_params(
        RunSpec, run.model_dump() | {"params": params}, " ".join(f"--set {change}" for change in changes)
    )


def _value(text: str, origin: str) -> Any:
    with contextlib.suppress(ValueError):
        return json.loads(text)
    return parse_yaml(text, origin)


def read_recipe(path: str | Path) -> RunSpec:
    """The recipe of one run: output of `dpdm spec`, or the `recipe` of a ledger.json; UserError for another file."""
    if Path(path).suffix in (".yaml", ".yml"):
        command = pasted("spec", str(path), RUN_FORM)
        raise UserError(f"{path} is a study file where the JSON of one run is wanted; `{command}` prints it")
    value = _read_json(path)
    value = value.get("recipe", value)
    if not (isinstance(value, dict) and {"impl", "params"} <= value.keys()):
        raise UserError(
            f"{path} holds no recipe of a run; `dpdm spec STUDY {RUN_FORM}` prints one, and a run's ledger.json has one"
        )
    return parse_spec(RunSpec, json.dumps(value), str(path))


def layout_of_run(path: str | Path, run: RunSpec) -> Layout | None:
    """The layout in which the run has the folder of `path`; None if there is no such layout."""
    folder, inside = Path(path).resolve().parent.as_posix(), Layout("", "").run(*run.place).removeprefix("/")
    return Layout.of(folder.removesuffix(inside)) if folder.endswith(inside) else None


def by_hand_name(run: RunSpec) -> str:
    """The folder name of a run outside every study: its place, and a digest of its recipe."""
    digest = hashlib.sha256(spec_json(run).encode()).hexdigest()[:8]
    dataset, method, epsilon, seed = run.place
    return f"{run.study}-{dataset}-{method}-eps{epsilon}-seed{seed}-{digest}"
