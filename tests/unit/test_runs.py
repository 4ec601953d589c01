"""The runs of a report: every run in its place, its files, its recipe, and a command that repeats it."""

import math
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from refusals import refuses

from dpdm import artifacts, data
from dpdm.config import parse_study
from dpdm.layout import Layout
from dpdm.report.collect import AUDITS
from dpdm.report.runs import _link, run_anchor, runs_by_dataset
from dpdm.study import read_recipe


@pytest.fixture
def study(tiny_study_dict):
    return parse_study(tiny_study_dict, "tiny")


@pytest.fixture
def layout(tmp_path):
    return Layout(f"{tmp_path}/results", "tiny")


def finish(run, layout, log="x"):
    """Writes what the report looks for in a finished run's folder."""
    folder = layout.run(*run.place)
    artifacts.write_json(f"{folder}/ledger.json", {"recipe": run.model_dump(mode="json")})
    if log:
        artifacts.write_text(f"{folder}/train.log", log)


def audits_of(study, **changes):
    blank = {name: kind() for name, kind in AUDITS.items()}
    return pd.DataFrame([
        {
            **blank, "dataset": r.dataset, "method": r.method, "epsilon": f"{r.epsilon:g}", "seed": r.seed,
            "epsilon_rdp": r.epsilon, "epsilon_prv": r.epsilon * 0.9,
            "epsilon_pld": r.epsilon * 0.8, "passed": True, "recipe_checked": True,
        } | changes
        for r in study.runs()
    ])  # fmt: skip


def test_every_run_and_anchor_stands_below_the_id_that_its_row_links_to(study, layout):
    for run in study.runs():
        finish(run, layout)
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    assert [(m["name"], m["runs"], m["absent"]) for m in section["methods"]] == [
        ("class_mean", 4, 0), ("dpdm", 4, 0), ("real", 2, 2), ("label_only", 2, 2)
    ]  # fmt: skip
    groups = section["methods"][1]["groups"]
    assert [g["id"] for g in groups] == ["runs-digits-dpdm-10", "runs-digits-dpdm-inf"]
    assert [g["epsilon"] for g in groups] == ["10", "∞"]
    assert [r["seed"] for r in groups[0]["runs"]] == [0, 1]
    assert groups[0]["runs"][0]["verdict"] == "✓ passed, spent ε = 10 (RDP), 9 (PRV), 8 (PLD)"
    assert groups[1]["runs"][0]["verdict"] == "no noise: no guarantee"
    assert section["methods"][2]["groups"][0]["id"] == run_anchor("digits", "real", "") == "runs-digits-real"


def test_links_start_at_the_page_and_name_only_what_is_there(study, layout):
    first, second, *_ = study.runs()
    finish(first, layout)
    finish(second, layout, log="")
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    one, two = section["methods"][0]["groups"][0]["runs"]
    base = "runs/digits/class_mean/eps10/seed0/"
    assert one["files"] == [("folder", base), ("ledger", base + "ledger.json"), ("log", base + "train.log")]
    assert [name for name, _ in two["files"]] == ["folder", "ledger"]
    for _, link in one["files"]:
        assert (Path(layout.root) / link).exists()
    artifacts.write_text(layout.anchor("digits", "real", "0", "score.log"), "")
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    files = section["methods"][2]["groups"][0]["runs"][0]["files"]
    assert files == [("folder", "anchors/digits/real/seed0/"), ("score.log", "anchors/digits/real/seed0/score.log")]


def test_a_link_survives_an_odd_folder_name(tmp_path):
    (tmp_path / "a b#c").mkdir()
    assert _link(tmp_path / "a b#c", tmp_path / "report.html") == "a%20b%23c/"


def test_a_recipe_is_shown_once_for_all_seeds_and_twice_where_they_differ(study, layout):
    runs = study.runs()[:2]
    for run in runs:
        finish(run, layout)
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    (recipe,) = section["methods"][0]["groups"][0]["recipes"]
    assert '"max_image_norm": 4.0' in recipe
    assert "seed" not in recipe
    finish(runs[1].model_copy(update={"params": {"max_image_norm": 9.0}}), layout)
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    assert len(section["methods"][0]["groups"][0]["recipes"]) == 2


def test_holes_and_failures_are_counted(study, layout):
    for run in study.runs()[1:]:
        finish(run, layout)
    (section,) = runs_by_dataset(study, audits_of(study, passed=False).iloc[:3], layout)
    mean, dpdm, *_ = section["methods"]
    assert (mean["absent"], mean["failed"]) == (1, 2)  # a run without noise promised nothing
    absent = mean["groups"][0]["runs"][0]
    assert (absent["files"], absent["command"], absent["recipe"]) == ([], "", "")
    assert mean["groups"][0]["runs"][1]["verdict"].startswith("✗ FAILED, spent")
    assert mean["groups"][1]["runs"][1]["verdict"] == "not audited"
    assert dpdm["failed"] == 0


def test_a_ledger_that_is_none_is_named(study, layout):
    artifacts.write_text(layout.run(*study.runs()[0].place) + "/ledger.json", "{")
    with refuses("seed0/ledger.json", "JSON"):
        runs_by_dataset(study, audits_of(study), layout)


def test_the_command_is_the_ledgers_recipe_even_if_the_study_was_edited(study, layout, parse_cli):
    run = study.runs()[0].model_copy(update={"params": {"max_image_norm": 7.0, "note": "it's"}})
    finish(run, layout)
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    verb, given = parse_cli(section["methods"][0]["groups"][0]["runs"][0]["command"].partition(" && ")[0])
    assert (verb, given["out"], given["processes"]) == ("train", "repeated", 1)
    assert given["spec"] == layout.run(*run.place, "ledger.json")
    assert read_recipe(given["spec"]) == run


def test_a_set_has_its_files_and_the_command_that_samples_and_scores_it(tiny_study_dict, layout, parse_cli):
    tiny_study_dict["methods"]["dpdm"]["samplers"] = {
        "fast": {"num_sampling_steps": 2},
        "fine": {"num_sampling_steps": 9},
    }
    without = dict(tiny_study_dict["evaluation"])
    tiny_study_dict["evaluation"]["fid"] = {}
    study = parse_study(tiny_study_dict, "tiny")
    run = study.run("digits", "dpdm", 10.0, 1)
    finish(run, layout)
    folder = layout.run(*run.place)
    artifacts.write_text(f"{folder}/fine/sample.log", "")
    artifacts.write_text(f"{folder}/fine/synthetic.npz", "")
    for name in ("utility", "inception"):
        artifacts.write_json(f"{folder}/fine/{name}.json", {})
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    fast, fine = section["methods"][1]["groups"][0]["runs"][1]["sets"]
    assert fast == {"sampler": "fast", "files": [], "command": ""}
    base = "runs/digits/dpdm/eps10/seed1/fine/"
    assert fine["files"] == [(name, base + name) for name in ("sample.log", "utility.json", "inception.json")]
    sample, same, score, *compared, by_inception, last = fine["command"].split(" && ")
    verb, given = parse_cli(sample)
    assert (verb, given["study"], given["run"], given["out"]) == ("sample", layout.root, f"{run.name}/fine", "repeated")
    assert same.split() == ["cmp", "repeated/fine/synthetic.npz", f"{folder}/fine/synthetic.npz"]
    for command, inception in ((score, False), (by_inception, True)):
        verb, given = parse_cli(command)
        assert (verb, given["coordinates"], given["inception"]) == ("score", f"{run.name}/fine", inception)
        assert (given["synthetic"], given["out"]) == ("repeated/fine/synthetic.npz", "repeated/fine")
    assert [words.split()[2] for words in compared] == [f"{folder}/fine/{n}.json" for n in ("fidelity", "utility")]
    assert last.split() == ["cmp", "repeated/fine/inception.json", f"{folder}/fine/inception.json"]
    study = parse_study(tiny_study_dict | {"evaluation": without}, "tiny")
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    _, fine = section["methods"][1]["groups"][0]["runs"][1]["sets"]
    assert "inception" not in str(fine)  # left from before the study was edited


def test_a_classifier_is_scored_by_the_command_that_trains_it(tiny_study_dict, layout, parse_cli):
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier"}
    study = parse_study(tiny_study_dict, "tiny")
    run, other = (study.run("digits", "net", 10.0, seed) for seed in (0, 1))
    finish(run, layout)
    for one in (run, other):  # of the second a score alone is left
        artifacts.write_json(f"{layout.run(*one.place)}/utility.json", {})
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    method = section["methods"][2]
    there, absent = method["groups"][0]["runs"]
    assert [name for name, _ in there["files"]] == ["folder", "ledger", "log", "utility.json"]
    assert (method["name"], absent["files"], absent["command"]) == ("net", [], "")
    *_, score, compared = there["command"].split(" && ")
    verb, given = parse_cli(score)
    assert (verb, given["coordinates"], given["model"]) == ("score", run.name, "repeated/model.pt")
    assert compared.split() == ["cmp", "repeated/utility.json", f"{layout.run(*run.place)}/utility.json"]
    assert there["sets"] == []


def test_an_anchor_is_scored_again_by_its_own_command(study, layout, parse_cli):
    for anchor in study.anchor_coordinates():
        artifacts.write_text(layout.anchor("digits", anchor.method, str(anchor.seed), "score.log"), "")
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    for method in section["methods"][2:]:
        score, *compared = method["groups"][0]["runs"][1]["command"].split(" && ")
        assert parse_cli(score)[1]["coordinates"] == f"digits/{method['name']}/1"
        assert compared[0].endswith(layout.anchor("digits", method["name"], "1", "fidelity.json"))


def test_a_run_of_several_gpus_is_repeated_on_as_many(tiny_study_dict, layout):
    tiny_study_dict["methods"]["class_mean"]["gpus_per_run"] = 4
    study = parse_study(tiny_study_dict, "x")
    finish(study.runs()[0], layout)
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    assert " --processes 4 && cmp " in section["methods"][0]["groups"][0]["runs"][0]["command"]


def test_the_command_repeats_the_run_and_notices_another_model(study, layout, digits64, run_cli, tmp_path, monkeypatch):
    run = study.run("digits", "class_mean", math.inf, 1)
    folder = layout.run(*run.place)
    data.write_images(layout.data("digits", "train.npz"), digits64)
    artifacts.write_json(tmp_path / "spec.json", run.model_dump(mode="json"))
    given = ["--spec", tmp_path / "spec.json", "--data", layout.data("digits", "train.npz"), "--out", folder]
    assert run_cli("train", *given)[0] == 0
    (section,) = runs_by_dataset(study, audits_of(study), layout)
    command = section["methods"][0]["groups"][1]["runs"][1]["command"]
    train, compare = command.split(" && ")
    monkeypatch.chdir(tmp_path)  # outputs are relative
    assert run_cli(*shlex.split(train)[3:])[0] == 0
    done = subprocess.run(compare, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    changed = artifacts.read_tensors(f"{folder}/model.pt")
    changed["state"]["more"] = float(np.pi)
    artifacts.write_tensors(f"{folder}/model.pt", changed)
    assert subprocess.run(compare, shell=True, capture_output=True, check=False).returncode == 1
