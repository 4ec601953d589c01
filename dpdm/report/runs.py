"""The runs behind a report's numbers: where their files are, how the audit went, the commands that repeat each."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd

from dpdm import artifacts
from dpdm.config import Study
from dpdm.report.tables import accounting_verdict, epsilon_label
from dpdm.specs import Coordinates, RunSpec, epsilon_text, spec_json

REPEATED = "repeated"  # folder that a printed command writes to: never the results themselves
_SCORES = ("score.log", "fidelity.json", "utility.json")
_INCEPTION_SCORES = ("score_inception.log", "inception.json")  # where the study asks for the FID


class Places(NamedTuple):
    """Where things lie, as patterns; commands start where Snakemake ran.

    What these folders hold is told in results/README.md. The workflow alone decides their names; those of the files in
    them are known here as well, since a page links and repeats what every rule made.
    """

    run: str  # folder, with {dataset}, {method}, {epsilon} and {seed}
    anchor: str  # folder, with {dataset}, {anchor} and {seed}
    data: str  # folder of a dataset, with {dataset}
    page: Path  # the report itself, from which links start


def run_anchor(dataset: str, method: str, epsilon: str) -> str:
    """The id, within the page, of the runs behind a row of results."""
    return "-".join(["runs", dataset, method, *([epsilon] if epsilon else [])])


def runs_by_dataset(study: Study, audits: pd.DataFrame, places: Places) -> list[dict[str, Any]]:
    """What the section "Runs" shows: per dataset its methods (anchors last), per method its epsilons, then its runs.

    Every ledger is read once. A run without one is there as a hole, with neither recipe nor command.

    Raises:
        UserError: a ledger is not JSON or holds no recipe.
    """
    judged = {(r["dataset"], r["method"], r["epsilon"], r["seed"]): r for r in audits.to_dict("records")}
    found: dict[str, dict[str, dict[str, list[dict[str, Any]]]]] = {dataset: {} for dataset in study.datasets}

    def place(c: RunSpec | Coordinates, epsilon: str, row: dict[str, Any]) -> None:
        found[c.dataset].setdefault(c.method, {}).setdefault(epsilon, []).append(row)

    for run in study.runs():
        epsilon = epsilon_text(run.epsilon)
        audit = judged.get((run.dataset, run.method, epsilon, run.seed))
        place(run, epsilon, _run(study, run, audit, places))
    for anchor in study.anchor_coordinates():
        place(anchor, "", _anchor(study, anchor, places))
    return [
        {"dataset": dataset, "methods": [_method(dataset, name, groups) for name, groups in methods.items()]}
        for dataset, methods in found.items()
    ]


def _method(dataset: str, name: str, groups: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """A method's epsilons, and the counts that its folded line shows."""
    runs = [run for group in groups.values() for run in group]
    return {
        "name": name,
        "runs": len(runs),
        "absent": sum(not run["files"] for run in runs),
        "failed": sum("FAILED" in run["verdict"] for run in runs),
        "groups": [
            {
                "id": run_anchor(dataset, name, epsilon),
                "epsilon": epsilon_label(epsilon) if epsilon else "",
                "recipes": list(dict.fromkeys(run["recipe"] for run in group if run["recipe"])),  # one, but for seeds
                "runs": group,
            }
            for epsilon, group in groups.items()
        ],
    }


def _run(study: Study, run: RunSpec, audit: Mapping[str, Any] | None, places: Places) -> dict[str, Any]:
    folder = Path(run.path(places.run))
    ledger = folder / "ledger.json"
    there = ledger.exists()
    recipe = artifacts.read_json(ledger, ("recipe",))["recipe"] if there else {}
    verdict = "not audited"
    if audit is not None and math.isinf(run.epsilon):
        verdict = accounting_verdict(audit["passed"], run.epsilon, audit["recipe_checked"])
    elif audit is not None:
        names = ("rdp", "prv", "pld")
        spent = ", ".join(epsilon_label(format(audit[f"epsilon_{a}"], ".4g")) + f" ({a.upper()})" for a in names)
        verdict = accounting_verdict(audit["passed"], run.epsilon, audit["recipe_checked"]) + f", spent ε = {spent}"
    files = {"folder": folder, "ledger": ledger, "log": folder / "train.log"} if there else {}
    spec, data = study.methods[run.method], _data(run, places)
    command = _training(run, recipe, folder, data, spec.gpus_per_run) if there else ""
    if there and study.is_classifier(run.method):
        files |= {name: folder / name for name in _SCORES}
        command += f" && {_scoring_of_classifier(study, run, folder, data)}"
    return {
        "seed": run.seed,
        "files": _links(files, places.page),
        "verdict": verdict,
        "recipe": _readable(recipe),
        "command": command,
        "sets": [_set(study, run, sampler, folder, places) for sampler in spec.samplers] if there else [],
    }


def _set(study: Study, run: RunSpec, sampler: str, model: Path, places: Places) -> dict[str, Any]:
    """One synthetic set: its logs and scores, and the command that samples and scores once more, if it is there."""
    folder, data, images = model / sampler, _data(run, places), f"{REPEATED}/synthetic.npz"
    if not (folder / "synthetic.npz").exists():
        return {"sampler": sampler, "files": [], "command": ""}
    sample = (
        f"python -m dpdm sample --spec {shlex.quote(spec_json(study.sample(run, sampler)))}"
        f" --model {_quoted(model / 'model.pt')} --dataset {_quoted(data / 'dataset.json')} --out {images}"
    )
    score = _scoring(study, run.coordinates(sampler), images, folder, data)
    files = {name: folder / name for name in ("sample.log", *_scores(study))}
    return {
        "sampler": sampler,
        "files": _links(files, places.page),
        "command": f"{sample} && cmp {images} {_quoted(folder / 'synthetic.npz')} && {score}",
    }


def _anchor(study: Study, anchor: Coordinates, places: Places) -> dict[str, Any]:
    """No training, so neither recipe nor audit."""
    folder = Path(places.anchor.format(dataset=anchor.dataset, anchor=anchor.method, seed=anchor.seed))
    data = _data(anchor, places)
    images = data / "train.npz" if anchor.method == "real" else folder.parent.parent / f"{anchor.method}.npz"
    there = folder.exists()
    files = {"folder": folder} | {name: folder / name for name in _scores(study)} if there else {}
    return {
        "seed": anchor.seed, "files": _links(files, places.page), "verdict": "", "recipe": "", "sets": [],
        "command": _scoring(study, anchor, str(images), folder, data) if there else "",
    }  # fmt: skip


def _scores(study: Study) -> tuple[str, ...]:
    """The files of the scores of one synthetic set."""
    return _SCORES + _INCEPTION_SCORES if study.evaluation.fid else _SCORES


def _data(of: RunSpec | Coordinates, places: Places) -> Path:
    return Path(places.data.format(dataset=of.dataset))


def _links(files: Mapping[str, Path], page: Path) -> list[tuple[str, str]]:
    """Name and link of each file that is there."""
    return [(name, _link(path, page)) for name, path in files.items() if path.exists()]


def _link(path: Path, page: Path) -> str:
    """`path` as a relative link of the page, so that a results folder can be moved whole."""
    return quote(Path(os.path.relpath(path, page.parent)).as_posix()) + ("/" if path.is_dir() else "")


def _readable(recipe: Mapping[str, Any]) -> str:
    """The recipe without its seed, for people."""
    shown = {key: value for key, value in recipe.items() if key != "seed"}
    return json.dumps(shown, indent=2, ensure_ascii=False) if shown else ""


def _training(run: RunSpec, recipe: Mapping[str, Any], folder: Path, data: Path, processes: int) -> str:
    """Trains by the ledger's own recipe, beside the results, and compares: no output of `cmp` means equal bytes."""
    several = f" --processes {processes}" if processes > 1 else ""
    train = (
        f"python -m dpdm train --spec {shlex.quote(json.dumps(recipe))} --data {_quoted(data / 'train.npz')}"
        f" --model {REPEATED}/model.pt --ledger {REPEATED}/ledger.json --curve {REPEATED}/train.jsonl{several}"
    )
    return f"{train} && {_compared('model.pt', folder)}"


def _scoring(study: Study, coordinates: Coordinates, images: str, folder: Path, data: Path) -> str:
    """Scores images, and compares as `_training` does; of another commit the files say so, and differ."""
    inputs = (("train", "train.npz"), ("test", "test.npz"), ("extractor", "extractor.pt"))
    score = (
        f"python -m dpdm score --spec {shlex.quote(spec_json(study.score(coordinates)))}"
        f" --synthetic {shlex.quote(images)}"
        + "".join(f" --{option} {_quoted(data / name)}" for option, name in inputs)
        + f" --fidelity {REPEATED}/fidelity.json --utility {REPEATED}/utility.json"
    )
    commands = [score, *(_compared(name, folder) for name in ("fidelity.json", "utility.json"))]
    if study.evaluation.fid:
        commands += [
            f"python -m dpdm score_inception --spec {shlex.quote(spec_json(study.score_inception(coordinates)))}"
            f" --synthetic {shlex.quote(images)} --reference {_quoted(data / 'inception.npz')}"
            f" --out {REPEATED}/inception.json",
            _compared("inception.json", folder),
        ]
    return " && ".join(commands)


def _compared(name: str, folder: Path) -> str:
    """Is silent where what was repeated has the bytes of the folder's own."""
    return f"cmp {REPEATED}/{name} {_quoted(folder / name)}"


def _scoring_of_classifier(study: Study, run: RunSpec, folder: Path, data: Path) -> str:
    """Scores the model that `_training` wrote."""
    return (
        f"python -m dpdm score_classifier --spec {shlex.quote(spec_json(study.score_classifier(run)))}"
        f" --model {REPEATED}/model.pt --test {_quoted(data / 'test.npz')} --utility {REPEATED}/utility.json"
        f" && {_compared('utility.json', folder)}"
    )


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
