"""Wrong keys, paths, values and files: each ends in one sentence that names it, before any compute."""

import os
import subprocess
import sys

import pytest
import yaml
from refusals import refused, refuses

from dpdm.artifacts import write_npz
from dpdm.config import load_study, parse_study
from dpdm.data import read_images
from dpdm.plan import planned_runs
from dpdm.privacy import Mechanism
from dpdm.processes import joined
from dpdm.study import study_json

RUN = "digits/class_mean/10/0"


@pytest.fixture
def work(tmp_path, tiny_study_dict, monkeypatch):
    """The working folder, with study.yaml, where Snakemake does not start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("os.execv")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    return tmp_path


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [".inf", ".nan", "NaN", "1e400", "2020-01-01"])
def test_a_change_that_json_cannot_hold(work, run_cli, value):
    refused(run_cli("train", "study.yaml", RUN, "--set", f"max_image_norm={value}"), f"--set max_image_norm={value}")


@pytest.mark.parametrize("verb", ["spec", "train", "audit"])
@pytest.mark.parametrize("named", ["", "study.yaml,"])
def test_an_empty_name_of_a_study(work, run_cli, verb, named):
    refused(run_cli(verb, named, RUN), repr(named), "comma")


@pytest.mark.parametrize(
    "words", [["spec", "deep.yaml", RUN], ["train", "--spec", "deep.json"], ["audit", "deep.json"]]
)
def test_what_is_nested_too_deeply(work, run_cli, words):
    for name in ("deep.yaml", "deep.json"):
        (work / name).write_text("[" * 5000 + "]" * 5000)
    refused(run_cli(*words), *words, "nested")


def test_a_name_that_no_file_can_have(work, run_cli):
    refused(run_cli("spec", "x" * 300, RUN), "x" * 300)


def test_a_binary_file_as_a_study(work, run_cli):
    (work / "junk").write_bytes(b"\xff\x00\x80")
    refused(run_cli("validate", "junk"), "junk")


@pytest.mark.parametrize("closed", [False, True])
def test_output_that_cannot_be_written_as_it_is(closed):
    program = "print('\\u2193') or main(['list', 'studies'])" if not closed else "main(['list', 'studies'])"
    code = f"from dpdm.cli import main; main(['--version']); {program}"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "latin-1"}, text=True,
        stderr=subprocess.PIPE, stdout=None if closed else subprocess.PIPE,
        preexec_fn=(lambda: os.close(1)) if closed else None,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("size", ["2", "x"])
def test_a_left_over_world_size(monkeypatch, size):
    monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with refuses(f"WORLD_SIZE = {size}", "LOCAL_RANK", "--processes"), joined():
        pass


@pytest.mark.parametrize("text", ["", "[1, 2]", "null"])
def test_a_file_without_a_study(work, run_cli, text):
    (work / "other.yaml").write_text(text)
    for named in ("other.yaml", "study.yaml,other.yaml"):
        assert "--configfile" not in refused(run_cli("spec", named, RUN), "other.yaml")


def test_a_file_that_is_no_ledger(work, run_cli):
    (work / "study.json").write_text(study_json(load_study("study.yaml")))
    refused(run_cli("audit", "study.json"), "study.json", "no ledger")


@pytest.mark.parametrize("content", [b"some text", b"\x80\x04\x95\x01"])
def test_a_file_that_is_no_npz(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with refuses("x.npz", repr(content)):
        read_images(tmp_path / "x.npz")


@pytest.mark.parametrize(("key", "value"), [("drawn_by", "junk"), ("num_classes", 0), ("num_classes", -3)])
def test_a_wrong_value_in_an_npz(tmp_path, digits64, key, value):
    arrays = {"images": digits64.images, "labels": digits64.labels, "num_classes": 10, key: value}
    write_npz(tmp_path / "x.npz", arrays)
    with refuses("x.npz", key, value):
        read_images(tmp_path / "x.npz")


def test_an_empty_part_is_the_whole(tiny_study_dict):
    whole = parse_study(tiny_study_dict, "tiny").runs()
    for nothing in ({}, ""):
        study = parse_study(tiny_study_dict | {"only": nothing, "without": nothing}, "tiny")
        assert (study.runs(), study.part()) == (whole, "")


def test_both_keys_that_leave_no_run(work, run_cli):
    words = ["--only", "epsilon=10", "--without", "method=class_mean", "--without", "method=dpdm"]
    refused(run_cli("run", "study.yaml", *words), "only epsilon=10", "without method=class_mean", "without method=dpdm")


def test_a_dataset_of_a_part_of_a_recipe(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["unverified"] = [{"what": "x", "when": {"dataset": "digit"}}]
    with refuses("methods.dpdm.unverified[0].when.dataset", "'digit'", "'digits'"):
        parse_study(tiny_study_dict, "tiny")


@pytest.mark.parametrize("words", [["study.yaml"], ["elsewhere/x"], ["--cores", "0"]])
def test_what_snakemake_cannot_do(work, run_cli, words):
    refused(run_cli("run", "study.yaml", *words), " ".join(words))


def test_a_missing_file_of_the_user_is_named_before_snakemake_starts(work, run_cli, tiny_study_dict):
    source = {"source": "npz", "train": "nope.npz", "test": "nope.npz", "num_classes": 10, "delta": 1e-5}
    (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict | {"datasets": {"own": source}}))
    refused(run_cli("run", "study.yaml"), "datasets.own", "nope.npz")


# --- your own method ------------------------------------------------------------------------------------------------


def test_a_plan_of_equal_names(tiny_study_dict, monkeypatch):
    monkeypatch.setattr("baselines.class_mean.ClassMean.plan", lambda *_: [Mechanism.gaussian("a", 0.5)] * 2)
    with refuses("methods.class_mean on digits", "a, a"):
        planned_runs(parse_study(tiny_study_dict, "tiny"))


@pytest.mark.parametrize("name", ["none", "true", "model", "mechanism", "class_mean", "gaussian"])
def test_a_new_method_whose_class_would_hide_another_name(tmp_path, monkeypatch, run_cli, name):
    monkeypatch.chdir(tmp_path)
    if name in ("class_mean", "gaussian"):
        assert run_cli("new", "method", name)[0] == 0
    else:
        refused(run_cli("new", "method", name), repr(name), name.capitalize())
        assert not list(tmp_path.iterdir())
