"""The runs of a report: every run in its place, its files, its recipe, and a command that repeats it."""

import math
import shlex
import subprocess

import numpy as np
import pandas as pd
import pytest

from dpdm import artifacts, data
from dpdm.__main__ import _parser
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.report.collect import AUDITS
from dpdm.report.runs import Places, run_anchor, runs_by_dataset
from dpdm.specs import InceptionScoreSpec, RunSpec, SampleSpec, ScoreSpec, parse_spec, spec_json


@pytest.fixture
def study(tiny_study_dict):
    return parse_study(tiny_study_dict, "tiny")


@pytest.fixture
def places(tmp_path):
    root = tmp_path / "results"
    return Places(
        f"{root}/tiny/runs/{{dataset}}/{{method}}/eps{{epsilon}}/seed{{seed}}",
        f"{root}/tiny/anchors/{{dataset}}/{{anchor}}/seed{{seed}}",
        f"{root}/data/{{dataset}}",
        root / "tiny" / "report.html",
    )


def finish(run, places, log="x"):
    """Writes what the report looks for in a finished run's folder."""
    folder = run.path(places.run)
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


def test_every_run_and_anchor_stands_below_the_id_that_its_row_links_to(study, places):
    for run in study.runs():
        finish(run, places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
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


def test_links_start_at_the_page_and_name_only_what_is_there(study, places):
    first, second, *_ = study.runs()
    finish(first, places)
    finish(second, places, log="")
    (section,) = runs_by_dataset(study, audits_of(study), places)
    one, two = section["methods"][0]["groups"][0]["runs"]
    base = "runs/digits/class_mean/eps10/seed0/"
    assert one["files"] == [("folder", base), ("ledger", base + "ledger.json"), ("log", base + "train.log")]
    assert [name for name, _ in two["files"]] == ["folder", "ledger"]
    for _, link in one["files"]:
        assert (places.page.parent / link).exists()
    artifacts.write_text(places.anchor.format(dataset="digits", anchor="real", seed=0) + "/score.log", "")
    (section,) = runs_by_dataset(study, audits_of(study), places)
    files = section["methods"][2]["groups"][0]["runs"][0]["files"]
    assert files == [("folder", "anchors/digits/real/seed0/"), ("score.log", "anchors/digits/real/seed0/score.log")]


def test_a_link_survives_an_odd_folder_name(study, tmp_path):
    places = Places(f"{tmp_path}/a b#c/seed{{seed}}", "x", "x", tmp_path / "report.html")
    finish(study.runs()[0], places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
    assert section["methods"][0]["groups"][0]["runs"][0]["files"][0] == ("folder", "a%20b%23c/seed0/")


def test_a_recipe_is_shown_once_for_all_seeds_and_twice_where_they_differ(study, places):
    runs = study.runs()[:2]
    for run in runs:
        finish(run, places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
    (recipe,) = section["methods"][0]["groups"][0]["recipes"]
    assert '"max_image_norm": 4.0' in recipe
    assert "seed" not in recipe
    finish(runs[1].model_copy(update={"params": {"max_image_norm": 9.0}}), places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
    assert len(section["methods"][0]["groups"][0]["recipes"]) == 2


def test_holes_and_failures_are_counted(study, places):
    for run in study.runs()[1:]:
        finish(run, places)
    (section,) = runs_by_dataset(study, audits_of(study, passed=False).iloc[:3], places)
    mean, dpdm, *_ = section["methods"]
    assert (mean["absent"], mean["failed"]) == (1, 2)  # a run without noise promised nothing
    absent = mean["groups"][0]["runs"][0]
    assert (absent["files"], absent["command"], absent["recipe"]) == ([], "", "")
    assert mean["groups"][0]["runs"][1]["verdict"].startswith("✗ FAILED, spent")
    assert mean["groups"][1]["runs"][1]["verdict"] == "not audited"
    assert dpdm["failed"] == 0


def test_a_ledger_that_is_none_is_named(study, places):
    artifacts.write_text(study.runs()[0].path(places.run) + "/ledger.json", "{")
    with pytest.raises(UserError, match=r"seed0/ledger\.json is not valid JSON"):
        runs_by_dataset(study, audits_of(study), places)


def test_the_command_is_the_ledgers_recipe_even_if_the_study_was_edited(study, places):
    run = study.runs()[0].model_copy(update={"params": {"max_image_norm": 7.0, "note": "it's"}})
    finish(run, places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
    words = shlex.split(section["methods"][0]["groups"][0]["runs"][0]["command"])
    assert words[:4] == ["python", "-m", "dpdm", "train"]
    args = _parser().parse_args(words[3 : words.index("&&")])
    assert parse_spec(RunSpec, args.spec) == run
    assert args.spec == spec_json(run)
    assert str(args.data) == places.data.format(dataset="digits") + "/train.npz"
    assert args.processes == 1


def test_a_set_has_its_files_and_the_command_that_samples_and_scores_it(tiny_study_dict, places):
    tiny_study_dict["methods"]["dpdm"]["samplers"] = {
        "fast": {"num_sampling_steps": 2},
        "fine": {"num_sampling_steps": 9},
    }
    without = dict(tiny_study_dict["evaluation"])
    tiny_study_dict["evaluation"]["fid"] = {}
    study = parse_study(tiny_study_dict, "tiny")
    run = study.run("digits", "dpdm", 10.0, 1)
    finish(run, places)
    folder = run.path(places.run)
    artifacts.write_text(f"{folder}/fine/sample.log", "")
    artifacts.write_text(f"{folder}/fine/synthetic.npz", "")
    for name in ("utility", "inception"):
        artifacts.write_json(f"{folder}/fine/{name}.json", {})
    (section,) = runs_by_dataset(study, audits_of(study), places)
    fast, fine = section["methods"][1]["groups"][0]["runs"][1]["sets"]
    assert fast == {"sampler": "fast", "files": [], "command": ""}
    base = "runs/digits/dpdm/eps10/seed1/fine/"
    assert fine["files"] == [(name, base + name) for name in ("sample.log", "utility.json", "inception.json")]
    sample, same, score, *compared, by_inception, last = (shlex.split(p) for p in fine["command"].split(" && "))
    args = _parser().parse_args(sample[3:])
    assert parse_spec(SampleSpec, args.spec) == study.sample(run, "fine")
    assert str(args.model) == f"{folder}/model.pt"
    assert same == ["cmp", "repeated/synthetic.npz", f"{folder}/fine/synthetic.npz"]
    args = _parser().parse_args(score[3:])
    assert parse_spec(ScoreSpec, args.spec) == study.score(run.coordinates("fine"))
    assert [words[2] for words in compared] == [f"{folder}/fine/{name}.json" for name in ("fidelity", "utility")]
    args = _parser().parse_args(by_inception[3:])
    assert args.verb == "score_inception"
    assert parse_spec(InceptionScoreSpec, args.spec) == study.score_inception(run.coordinates("fine"))
    assert (str(args.synthetic), str(args.out)) == ("repeated/synthetic.npz", "repeated/inception.json")
    assert str(args.reference) == places.data.format(dataset="digits") + "/inception.npz"
    assert last == ["cmp", "repeated/inception.json", f"{folder}/fine/inception.json"]
    study = parse_study(tiny_study_dict | {"evaluation": without}, "tiny")
    (section,) = runs_by_dataset(study, audits_of(study), places)
    _, fine = section["methods"][1]["groups"][0]["runs"][1]["sets"]
    assert "inception" not in str(fine)  # left from before the study was edited


def test_a_classifier_is_scored_by_the_command_that_trains_it(tiny_study_dict, places):
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier"}
    study = parse_study(tiny_study_dict, "tiny")
    run, other = (study.run("digits", "net", 10.0, seed) for seed in (0, 1))
    finish(run, places)
    for one in (run, other):  # of the second a score alone is left
        artifacts.write_json(f"{one.path(places.run)}/utility.json", {})
    (section,) = runs_by_dataset(study, audits_of(study), places)
    method = section["methods"][2]
    there, absent = method["groups"][0]["runs"]
    assert [name for name, _ in there["files"]] == ["folder", "ledger", "log", "utility.json"]
    assert (method["name"], absent["files"], absent["command"]) == ("net", [], "")
    *_, score, compared = (shlex.split(part) for part in there["command"].split(" && "))
    args = _parser().parse_args(score[3:])
    assert (args.verb, str(args.model)) == ("score_classifier", "repeated/model.pt")
    assert compared == ["cmp", "repeated/utility.json", f"{run.path(places.run)}/utility.json"]
    assert there["sets"] == []


def test_an_anchor_is_scored_again_by_its_own_command(study, places):
    for anchor in study.anchor_coordinates():
        artifacts.write_text(
            places.anchor.format(dataset="digits", anchor=anchor.method, seed=anchor.seed) + "/score.log", ""
        )
    (section,) = runs_by_dataset(study, audits_of(study), places)
    real, noise = (method["groups"][0]["runs"][1]["command"] for method in section["methods"][2:])
    assert f"--synthetic {places.data.format(dataset='digits')}/train.npz" in real
    images = places.anchor.format(dataset="digits", anchor="label_only", seed=1).replace(
        "label_only/seed1", "label_only.npz"
    )
    assert f"--synthetic {images} " in noise


def test_a_run_of_several_gpus_is_repeated_on_as_many(tiny_study_dict, places):
    tiny_study_dict["methods"]["class_mean"]["gpus_per_run"] = 4
    study = parse_study(tiny_study_dict, "x")
    finish(study.runs()[0], places)
    (section,) = runs_by_dataset(study, audits_of(study), places)
    assert " --processes 4 && cmp " in section["methods"][0]["groups"][0]["runs"][0]["command"]


def test_the_command_repeats_the_run_and_notices_another_model(study, places, digits64, run_cli, tmp_path, monkeypatch):
    run = study.run("digits", "class_mean", math.inf, 1)
    folder = run.path(places.run)
    images = f"{places.data.format(dataset='digits')}/train.npz"
    data.write_images(images, digits64)
    files = [f"--{n}={folder}/{f}" for n, f in (("model", "model.pt"), ("ledger", "ledger.json"), ("curve", "c"))]
    assert run_cli("train", "--spec", spec_json(run), "--data", images, *files)[0] == 0
    (section,) = runs_by_dataset(study, audits_of(study), places)
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
