"""STUDY, RUN, --set and --spec, as a person gives them: what they mean, and what a mistake says."""

import json
import math
import shutil
from pathlib import Path

import pytest
import yaml
from refusals import holds, refused, refuses

from dpdm.config import ANCHORS, VERSION, parse_study
from dpdm.errors import UserError
from dpdm.layout import Layout
from dpdm.specs import spec_json
from dpdm.study import (
    by_hand_name,
    changed,
    find_anchor,
    find_run,
    find_runs,
    find_sets,
    layout_of_run,
    open_study,
    read_recipe,
    selected,
    study_json,
)


@pytest.fixture
def study(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["samplers"] = {"fast": {"num_sampling_steps": 2}, "fine": {}}
    return parse_study(tiny_study_dict, "tiny")


def says(error: pytest.ExceptionInfo, *parts) -> None:
    """One sentence that contains all of this."""
    holds(str(error.value), *parts)


# --- STUDY ----------------------------------------------------------------------------------------------------


def test_a_study_is_a_file_or_the_folder_of_its_results(tmp_path, tiny_study_dict, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    study, layout = open_study("s.yaml")
    assert layout.root == "results/tiny"
    (tmp_path / layout.root).mkdir(parents=True)
    (tmp_path / layout.study).write_text(study_json(study))
    assert open_study("results/tiny")[0] == study
    shutil.move(tmp_path / "results", tmp_path / "moved")
    found, layout = open_study("moved/tiny")
    assert (found, layout.root) == (study, "moved/tiny")  # not where study.json says


def test_what_is_no_study_is_named(tmp_path, tiny_study_dict):
    for name in ("ledger.json", "study.json"):
        (tmp_path / name).write_text("{}")
        with pytest.raises(UserError) as error:
            open_study(tmp_path / name)
        says(error, tmp_path / name, "JSON", "YAML")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        open_study(tmp_path / "empty")
    says(error, tmp_path / "empty", "study.json")
    with pytest.raises(UserError) as error:
        open_study(tmp_path / "none.yaml")
    says(error, tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"study": "tiny"}', ["version 0", f"version {VERSION}", "dpdm run"]),
        (f'{{"version": {VERSION + 1}}}', [f"version {VERSION + 1}", f"version {VERSION}", "dpdm run"]),
        ("{", ["JSON"]),
        ("[]", ["JSON"]),
    ],
)
def test_a_results_folder_of_another_version_is_named(tmp_path, run_cli, content, parts):
    (tmp_path / "study.json").write_text(content)
    refused(run_cli("train", tmp_path, "digits/dpdm/10/0"), tmp_path / "study.json", *parts)


# --- RUN ------------------------------------------------------------------------------------------------------


def test_coordinates_name_one_run_or_all_below(study):
    assert find_run(study, "digits/dpdm/10/1") == study.run("digits", "dpdm", 10.0, 1)
    assert find_run(study, "digits/dpdm/10.0/1/") == study.run("digits", "dpdm", 10.0, 1)
    assert find_run(study, "digits/dpdm/inf/0").epsilon == float("inf")
    assert len(find_runs(study, "")) == len(study.runs()) == 8
    assert len(find_runs(study, "digits/dpdm")) == 4
    assert [run.seed for run in find_runs(study, "digits/dpdm/10")] == [0, 1]


def test_coordinates_of_a_set_name_one_sampler_or_all(study):
    assert find_sets(study, "digits/dpdm/10/0/fine")[1] == ("fine",)
    run, samplers = find_sets(study, "digits/dpdm/10/0")
    assert (run.name, samplers) == ("digits/dpdm/10/0", ("fast", "fine"))


def test_an_anchor_has_coordinates_without_epsilon(study):
    assert find_anchor(study, "digits/dpdm/10/0") is None
    for anchor in ANCHORS:
        assert find_anchor(study, f"digits/{anchor}/1").seed == 1


@pytest.mark.parametrize(
    ("find", "wrong", "nearest"),
    [
        (find_run, "digits/dpdm/3/0", "digits/dpdm/10/0"), (find_run, "digits/dpmd/inf/1", "digits/dpdm/inf/1"),
        (find_run, "digits/dpdm", "DATASET/METHOD/EPSILON/SEED"), (find_runs, "digit/dpdm", "digits/dpdm"),
        (find_sets, "digits/dpdm/10/0/fin", "digits/dpdm/10/0/fine"), (find_anchor, "digits/real/9", "digits/real/"),
        (find_run, "", "DATASET/METHOD/EPSILON/SEED"),
    ],
)  # fmt: skip
def test_a_run_that_the_study_lacks_is_named_with_the_nearest(study, find, wrong, nearest):
    with pytest.raises(UserError) as error:
        find(study, wrong)
    says(error, repr(wrong), nearest, "tiny")


def test_a_run_outside_the_part_that_ran_last_is_still_one_of_the_study(study):
    part = selected(study, {"only": "seed=1"})
    assert find_run(part, "digits/dpdm/10/0") == find_run(study, "digits/dpdm/10/0")
    assert find_runs(part, "digits/dpdm") == [run for run in find_runs(study, "digits/dpdm") if run.seed == 1]
    with pytest.raises(UserError) as error:
        find_run(part, "digits/dpdm/10/7")
    says(error, "digits/dpdm/10/")


# --- recipes --------------------------------------------------------------------------------------------------


def test_epsilon_without_noise_is_written_as_in_yaml_too(study):
    assert find_run(study, "digits/class_mean/.inf/0") == find_run(study, "digits/class_mean/inf/0")
    part = selected(study, {"only": "epsilon=.inf"})
    assert {run.epsilon for run in part.runs()} == {math.inf}


def test_the_name_of_a_study_is_a_file_before_it_is_a_list_or_a_folder(tmp_path, tiny_study_dict, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a,b.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    assert open_study("a,b.yaml")[0].study == "tiny"
    Path("digits").mkdir()
    assert open_study("digits")[0].study == "digits"  # the study of dpdm
    Path("mine").mkdir()
    with refuses("mine", "study.json"):
        open_study("mine")


def test_a_change_reaches_into_the_recipe_and_keeps_its_type(study):
    run = study.run("digits", "dpdm", 10.0, 0)
    other = changed(run, ["dp.steps=20", "lr=1e-3", "network.channel_mult=[1, 2]", "name=a b", "flag=true"])
    assert other.params["dp"] == run.params["dp"] | {"steps": 20}
    assert (other.params["lr"], other.params["flag"], other.params["name"]) == (0.001, True, "a b")
    assert other.params["network"]["channel_mult"] == [1, 2]
    assert run.params == study.run("digits", "dpdm", 10.0, 0).params
    assert by_hand_name(other) != by_hand_name(run)
    assert by_hand_name(other).startswith("tiny-digits-dpdm-eps10-seed0-")


@pytest.mark.parametrize("change", ["dp.steps", "=3", "dp..steps=3"])
def test_a_change_without_key_or_value_is_named(study, change):
    with pytest.raises(UserError) as error:
        changed(study.runs()[0], [change])
    says(error, change, "KEY=VALUE")


def test_a_recipe_is_read_from_its_own_json_or_from_a_ledger(study, tmp_path):
    run, path = study.runs()[0], tmp_path / "recipe.json"
    for content in (run.model_dump(mode="json"), {"recipe": run.model_dump(mode="json"), "events": []}):
        path.write_text(json.dumps(content))
        assert spec_json(read_recipe(path)) == spec_json(run)


def test_what_holds_no_recipe_is_named(study, tmp_path):
    for name, content, part in (
        ("s.yaml", "study: x", "study file"), ("no.json", "{", "JSON"), ("odd.json", '{"study": "tiny"}', "odd.json"),
        ("list.json", "[1]", "list.json"),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError) as error:
            read_recipe(tmp_path / name)
        assert part in str(error.value)
        assert str(tmp_path / name) in str(error.value)


def test_a_ledger_in_its_place_leads_to_the_data(study, tmp_path):
    run, layout = study.runs()[0], Layout(f"{tmp_path}/results", "tiny")
    assert layout_of_run(layout.run(*run.place, "ledger.json"), run).data("digits") == layout.data("digits")
    assert layout_of_run(tmp_path / "ledger.json", run) is None
