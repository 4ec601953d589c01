"""The runs behind a report's numbers: where their files are, how the audit went, the commands that repeat each."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from dpdm import artifacts
from dpdm.config import Study
from dpdm.layout import Layout
from dpdm.report.tables import accounting_verdict, epsilon_label
from dpdm.specs import Coordinates, RunSpec, epsilon_text

REPEATED = "repeated"  # folder that a printed command writes to: never the results themselves
_SCORES = ("score.log", "fidelity.json", "utility.json")
_NEAREST = "nearest.png"  # the synthetic images that are nearest to training images
_INCEPTION_SCORES = ("score_inception.log", "inception.json")  # where the study asks for the FID


def run_anchor(dataset: str, method: str, epsilon: str) -> str:
    """The id, within the page, of the runs behind a row of results."""
    return "-".join(["runs", dataset, method, *([epsilon] if epsilon else [])])


def runs_by_dataset(study: Study, audits: pd.DataFrame, layout: Layout) -> list[dict[str, Any]]:
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
        place(run, epsilon, _run(study, run, audit, layout))
    for anchor in study.anchor_coordinates():
        place(anchor, "", _anchor(study, anchor, layout))
    return [
        {"dataset": dataset, "methods": [_method(dataset, name, groups) for name, groups in methods.items()]}
        for dataset, methods in found.items()
        if methods
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
                "recipes": list(dict.fromkeys(run["recipe"] for run in group if run["recipe"])),  # one, except seeds
                "runs": group,
            }
            for epsilon, group in groups.items()
        ],
    }


def _run(study: Study, run: RunSpec, audit: Mapping[str, Any] | None, layout: Layout) -> dict[str, Any]:
    folder = Path(layout.run(*run.place))
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
    command = _training(folder, study.methods[run.method].gpus_per_run) if there else ""
    if there and study.is_classifier(run.method):
        files |= {name: folder / name for name in _SCORES}
        command += f" && {_scoring(study, layout, run.name, f'--model {REPEATED}/model.pt', folder, ['utility.json'])}"
    return {
        "seed": run.seed,
        "files": _links(files, Path(layout.report)),
        "verdict": verdict,
        "recipe": _readable(recipe),
        "command": command,
        "sets": [_set(study, run, sampler, folder, layout) for sampler in study.samplers_of(run)] if there else [],
    }


def _set(study: Study, run: RunSpec, sampler: str, model: Path, layout: Layout) -> dict[str, Any]:
    """One synthetic set: its logs and scores, and the command that samples and scores once more, if it is there."""
    folder, place = model / sampler, f"{run.name}/{sampler}"
    if not (folder / "synthetic.npz").exists():
        return {"sampler": sampler, "files": [], "command": ""}
    sample = f"python -m dpdm sample {_quoted(layout.root)} {place} --out {REPEATED}"
    repeated = f"{REPEATED}/{sampler}"
    score = _scoring(
        study, layout, place, f"--synthetic {repeated}/synthetic.npz", folder, _judged_files(study), repeated
    )
    files = {name: folder / name for name in ("sample.log", *_scores(study), _NEAREST)}
    return {
        "sampler": sampler,
        "files": _links(files, Path(layout.report)),
        "command": f"{sample} && {_compared('synthetic.npz', folder, repeated)} && {score}",
    }


def _anchor(study: Study, anchor: Coordinates, layout: Layout) -> dict[str, Any]:
    """No training, so neither recipe nor audit."""
    folder = Path(layout.anchor(anchor.dataset, anchor.method, str(anchor.seed)))
    there, place = folder.exists(), f"{anchor.dataset}/{anchor.method}/{anchor.seed}"
    files = {"folder": folder} | {name: folder / name for name in _scores(study)} if there else {}
    return {
        "seed": anchor.seed, "files": _links(files, Path(layout.report)), "verdict": "", "recipe": "", "sets": [],
        "command": _scoring(study, layout, place, "", folder, _judged_files(study)) if there else "",
    }  # fmt: skip


def _scores(study: Study) -> tuple[str, ...]:
    """The files of the scores of one synthetic set."""
    return _SCORES + _INCEPTION_SCORES if study.evaluation.fid else _SCORES


def _judged_files(study: Study) -> list[str]:
    """The scores of `_scores`, without logs."""
    return [name for name in _scores(study) if name.endswith(".json")]


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


def _training(folder: Path, processes: int) -> str:
    """Trains by the ledger's own recipe, away from the results, and compares: no output of `cmp` means equal bytes."""
    several = f" --processes {processes}" if processes > 1 else ""
    train = f"python -m dpdm train --spec {_quoted(folder / 'ledger.json')} --out {REPEATED}{several}"
    return f"{train} && {_compared('model.pt', folder)}"


def _scoring(
    study: Study, layout: Layout, place: str, of: str, folder: Path, files: list[str], out: str = REPEATED
) -> str:
    """Scores what `of` names (as an option), and compares as `_training` does; of another commit the files differ."""
    score = " ".join(filter(None, ["python -m dpdm score", _quoted(layout.root), place, of, "--out", out]))
    commands = [score, *(_compared(name, folder, out) for name in files if name != "inception.json")]
    if "inception.json" in files:
        commands += [f"{score} --inception", _compared("inception.json", folder, out)]
    return " && ".join(commands)


def _compared(name: str, folder: Path, out: str = REPEATED) -> str:
    """Is silent where what was repeated has the bytes of the folder's own."""
    return f"cmp {out}/{name} {_quoted(folder / name)}"


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))
