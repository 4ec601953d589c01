"""The runs behind a report's numbers: where their files are, how the audit went, and commands that repeat one."""

import json
import math
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from dpdm.config import Study
from dpdm.layout import Layout
from dpdm.report.collect import RUN, SPENT
from dpdm.report.selection import score_files
from dpdm.report.tables import accounting_verdict, epsilon_label, run_anchor
from dpdm.specs import Coordinates, RunSpec, epsilon_text

REPEATED = "repeated"  # folder that a printed command writes to: never the results themselves
_SHOWN = {".json": 1, ".log": 2, ".jsonl": 3, ".png": 4}  # files of a run that the page links to, in this order


def runs_by_dataset(study: Study, audits: pd.DataFrame, layout: Layout) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """What the section "Runs" shows: by data set and method (anchors last), a group of runs per epsilon.

    A group has `id`, `epsilon`, `recipe` (JSON without the seed) and `runs`: seed, verdict, whether it failed,
    and links to the files that are there, none of a run that is missing.
    """
    judged = {tuple(row[key] for key in RUN): row for row in audits.to_dict("records")}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def add(c: RunSpec | Coordinates, epsilon: str, recipe: str, folder: str, verdict: str) -> None:
        groups = found.setdefault(c.dataset, {}).setdefault(c.method, [])
        if not groups or groups[-1]["value"] != epsilon:
            shown = {"id": run_anchor(c.dataset, c.method, epsilon), "value": epsilon, "recipe": recipe}
            groups.append(shown | {"epsilon": epsilon and epsilon_label(epsilon), "runs": []})
        files = _links(Path(folder), layout) if not recipe or Path(folder, "ledger.json").exists() else []
        run = {"seed": c.seed, "verdict": verdict, "failed": "FAILED" in verdict, "files": files}
        groups[-1]["runs"].append(run)

    for run in study.runs():
        recipe = json.dumps(run.model_dump(mode="json", exclude={"seed"}), indent=2, ensure_ascii=False)
        epsilon = epsilon_text(run.epsilon)
        verdict = _verdict(run, judged.get((run.dataset, run.method, epsilon, run.seed)))
        add(run, epsilon, recipe, layout.run(*run.place), verdict)
    for c in study.anchor_coordinates():
        add(c, "", "", layout.anchor(c.dataset, c.method, str(c.seed)), "")
    return found


def _verdict(run: RunSpec, audit: Mapping[str, Any] | None) -> str:
    if audit is None:
        return "not audited"
    verdict = accounting_verdict(audit["passed"], run.epsilon, audit["recipe_checked"])
    spent = (f"{audit[column]:.4g} ({name.upper()})" for name, column in SPENT.items())
    return verdict if math.isinf(run.epsilon) else f"{verdict}, spent ε = {', '.join(spent)}"


def _links(folder: Path, layout: Layout) -> list[tuple[str, str]]:
    """Names of a folder's files, and links relative to the page, so that a results folder can be moved whole."""
    files = [path for path in folder.rglob("*") if path.suffix in _SHOWN]
    files.sort(key=lambda path: (path.parent, _SHOWN[path.suffix], path.name))
    return [
        (path.relative_to(folder).as_posix(), quote(Path(os.path.relpath(path, layout.root)).as_posix()))
        for path in files
    ]


def repeating(study: Study, layout: Layout) -> dict[str, str]:
    """By what it repeats a command, for one run of each kind; `cmp` is silent where the files have the same bytes."""
    commands: dict[str, str] = {}
    for run in study.runs():
        folder, out = layout.run(*run.place), REPEATED
        processes = study.methods[run.method].gpus_per_run
        train = f"train --spec {shlex.quote(f'{folder}/ledger.json')} --out {out}"
        train += f" --processes {processes}" if processes > 1 else ""
        if study.is_classifier(run.method):
            score = _scoring(layout, run.name, f"--model {out}/model.pt", folder, out, ("utility.json",))
            commands.setdefault(
                "a classifier", " && ".join([f"python -m dpdm {train}", _same("model.pt", folder, out), *score])
            )
            continue
        commands.setdefault("a training", f"python -m dpdm {train} && {_same('model.pt', folder, out)}")
        for sampler in study.samplers_of(run):
            place, made, again = f"{run.name}/{sampler}", f"{folder}/{sampler}", f"{out}/{sampler}"
            draw = f"python -m dpdm sample {shlex.quote(layout.root)} {place} --out {out}"
            score = _scoring(layout, place, f"--synthetic {again}/synthetic.npz", made, again, score_files(study))
            commands.setdefault("images and scores", " && ".join([draw, _same("synthetic.npz", made, again), *score]))
    for c in study.anchor_coordinates():
        folder, place = layout.anchor(c.dataset, c.method, str(c.seed)), f"{c.dataset}/{c.method}/{c.seed}"
        commands.setdefault("an anchor", " && ".join(_scoring(layout, place, "", folder, REPEATED, score_files(study))))
    return commands


def _scoring(layout: Layout, place: str, of: str, folder: str, out: str, files: tuple[str, ...]) -> list[str]:
    """Scores what `of` names (as an option), and compares; of another commit the files differ."""
    score = " ".join(filter(None, ["python -m dpdm score", shlex.quote(layout.root), place, of, "--out", out]))
    commands = [score, *(_same(name, folder, out) for name in files if name != "inception.json")]
    return commands + [f"{score} --inception", _same("inception.json", folder, out)] * ("inception.json" in files)


def _same(name: str, folder: str, out: str) -> str:
    return f"cmp {out}/{name} {shlex.quote(f'{folder}/{name}')}"
