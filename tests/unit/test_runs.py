"""The runs of a report: every run in its place, its files, its recipe, and a command that repeats it."""

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dpdm import artifacts, data
from dpdm.config import parse_study
from dpdm.layout import Layout
from dpdm.report.collect import AUDITS
from dpdm.report.html import _links, repeating, runs_by_dataset
from dpdm.report.tables import run_anchor


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


def test_every_run_and_anchor_is_below_the_id_that_its_row_links_to(study, layout):
    for run in study.runs():
        finish(run, layout)
    methods = runs_by_dataset(study, audits_of(study), layout)["digits"]
    assert {name: sum(len(group["runs"]) for group in groups) for name, groups in methods.items()} == {
        "class_mean": 4, "dpdm": 4, "real": 2, "label_only": 2
    }  # fmt: skip
    ten, endless = methods["dpdm"]
    assert [g["id"] for g in (ten, endless)] == ["runs-digits-dpdm-10", "runs-digits-dpdm-inf"]
    assert [g["epsilon"] for g in (ten, endless)] == ["10", "∞"]
    assert [r["seed"] for r in ten["runs"]] == [0, 1]
    assert ten["runs"][0]["verdict"] == "✓ passed, spent ε = 10 (RDP), 9 (PRV), 8 (PLD)"
    assert endless["runs"][0]["verdict"] == "no noise: no guarantee"
    assert methods["real"][0]["id"] == run_anchor("digits", "real", "") == "runs-digits-real"


def test_links_start_at_the_page_and_name_only_what_is_there(study, layout):
    first, second, *_ = study.runs()
    finish(first, layout)
    finish(second, layout, log="")
    artifacts.write_text(layout.set(*second.place, "default", "fidelity.json"), "{}")
    artifacts.write_text(layout.anchor("digits", "real", "0", "score.log"), "")
    methods = runs_by_dataset(study, audits_of(study), layout)["digits"]
    one, two = methods["class_mean"][0]["runs"]
    base = "runs/digits/class_mean/eps10/seed0/"
    assert one["files"] == [("ledger.json", base + "ledger.json"), ("train.log", base + "train.log")]
    assert [name for name, _ in two["files"]] == ["ledger.json", "default/fidelity.json"]
    for _, link in one["files"] + two["files"]:
        assert (Path(layout.root) / link).exists()
    assert methods["real"][0]["runs"][0]["files"] == [("score.log", "anchors/digits/real/seed0/score.log")]


def test_a_link_survives_an_odd_folder_name(tmp_path):
    artifacts.write_text(tmp_path / "a b#c" / "x.log", "")
    assert _links(tmp_path, Layout.of(tmp_path)) == [("a b#c/x.log", "a%20b%23c/x.log")]


def test_a_recipe_is_shown_once_for_all_seeds(study, layout):
    group, _ = runs_by_dataset(study, audits_of(study), layout)["digits"]["class_mean"]
    assert '"max_image_norm": 4.0' in group["recipe"]
    assert "seed" not in group["recipe"]


def test_a_run_without_a_ledger_is_missing_and_a_failure_is_said(study, layout):
    for run in study.runs()[1:]:
        finish(run, layout)
    artifacts.write_text(layout.run(*study.runs()[0].place, "train.log"), "killed")
    ten, endless = runs_by_dataset(study, audits_of(study, passed=False).iloc[:3], layout)["digits"]["class_mean"]
    assert ten["runs"][0]["files"] == []
    assert ten["runs"][1]["verdict"].startswith("✗ FAILED, spent")
    assert endless["runs"][0]["verdict"] == "no noise: no guarantee"  # a run without noise promised nothing
    assert endless["runs"][1]["verdict"] == "not audited"


def test_a_set_is_sampled_and_scored_by_its_command(tiny_study_dict, layout, parse_cli):
    tiny_study_dict["methods"] = {"dpdm": tiny_study_dict["methods"]["dpdm"]}
    tiny_study_dict["evaluation"]["fid"] = {}
    study = parse_study(tiny_study_dict, "tiny")
    run = study.runs()[0]
    folder, place = layout.run(*run.place), f"{run.name}/default"
    sample, same, score, *compared, by_inception, last = repeating(study, layout)["images and scores"].split(" && ")
    verb, given = parse_cli(sample)
    assert (verb, given["study"], given["run"], given["out"]) == ("sample", layout.root, place, "repeated")
    assert same.split() == ["cmp", "repeated/default/synthetic.npz", f"{folder}/default/synthetic.npz"]
    for command, inception in ((score, False), (by_inception, True)):
        verb, given = parse_cli(command)
        assert (verb, given["coordinates"], given["inception"]) == ("score", place, inception)
        assert (given["synthetic"], given["out"]) == ("repeated/default/synthetic.npz", "repeated/default")
    assert [words.split()[2] for words in compared] == [f"{folder}/default/{n}.json" for n in ("fidelity", "utility")]
    assert last.split() == ["cmp", "repeated/default/inception.json", f"{folder}/default/inception.json"]


def test_a_classifier_is_scored_by_the_command_that_trains_it(tiny_study_dict, layout, parse_cli):
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier"}
    study = parse_study(tiny_study_dict, "tiny")
    run = study.run("digits", "net", 10.0, 0)
    *_, score, compared = repeating(study, layout)["a classifier"].split(" && ")
    verb, given = parse_cli(score)
    assert (verb, given["coordinates"], given["model"]) == ("score", run.name, "repeated/model.pt")
    assert compared.split() == ["cmp", "repeated/utility.json", f"{layout.run(*run.place)}/utility.json"]


def test_an_anchor_is_scored_again_by_its_own_command(study, layout, parse_cli):
    score, *compared = repeating(study, layout)["an anchor"].split(" && ")
    assert parse_cli(score)[1]["coordinates"] == "digits/real/0"
    assert compared[0].endswith(layout.anchor("digits", "real", "0", "fidelity.json"))


def test_a_run_of_several_gpus_is_repeated_on_as_many(tiny_study_dict, layout):
    tiny_study_dict["methods"]["class_mean"]["gpus_per_run"] = 4
    assert " --processes 4 && cmp " in repeating(parse_study(tiny_study_dict, "x"), layout)["a training"]


def test_the_command_repeats_the_run_and_notices_another_model(study, layout, digits64, run_cli, tmp_path, monkeypatch):
    run = study.runs()[0]
    folder = layout.run(*run.place)
    data.write_images(layout.data("digits", "train.npz"), digits64)
    artifacts.write_json(tmp_path / "spec.json", run.model_dump(mode="json"))
    given = ["--spec", tmp_path / "spec.json", "--data", layout.data("digits", "train.npz"), "--out", folder]
    assert run_cli("train", *given)[0] == 0
    train, compare = repeating(study, layout)["a training"].split(" && ")
    monkeypatch.chdir(tmp_path)  # outputs are relative
    assert run_cli(*shlex.split(train)[3:])[0] == 0
    done = subprocess.run(compare, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    changed = artifacts.read_tensors(f"{folder}/model.pt")
    changed["state"]["more"] = float(np.pi)
    artifacts.write_tensors(f"{folder}/model.pt", changed)
    assert subprocess.run(compare, shell=True, capture_output=True, check=False).returncode == 1
