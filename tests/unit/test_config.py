"""The schema: what it refuses and how it says so, the grid, merging, and specs on a command line."""

import json
import math
import os
import re
import sys
import time
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from refusals import holds, refuses

from dpdm import config
from dpdm.config import MethodSpec, Study, check_writable, load_study, merge, parse_study
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.params import Strict
from dpdm.sources.mnist import Mnist
from dpdm.specs import (
    Coordinates,
    RunSpec,
    SampleSpec,
    epsilon_text,
    parse_spec,
    spec_json,
)
from dpdm.yaml_file import read_yaml

SHIPPED = sorted((Path(__file__).parents[2] / "config").glob("*.yaml"))
*SCALES, EQUAL_COMPUTE, HEADLINE = (
    Path(__file__).parents[2] / "config" / "scale" / f"laptop_{name}.yaml"
    for name in ("guidance", "multiplicity", "parametrisation", "sampler", "multiplicity_compute", "headline")
)


def put(value: dict, path: str, leaf) -> dict:
    """Sets `value` at a dotted path; numbers index lists."""
    *folders, last = path.split(".")
    at = value
    for part in folders:
        at = at[int(part)] if part.isdigit() else at[part]
    at[int(last) if last.isdigit() else last] = leaf
    return value


def refusal(value) -> str:
    with pytest.raises(UserError) as error:
        parse_study(value, "study.yaml")
    return str(error.value)


def refused(value, *parts: str) -> None:
    """The study is refused by a message that names its file and has all these parts, in whatever words."""
    holds(refusal(value), "study.yaml", *parts, lines=None)


# --- unknown keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "yaml_path", "nearest"),
    [
        ("epsilon", "epsilon", "epsilons"),
        ("datasets.digits.sorce", "datasets.digits.sorce", "source"),
        ("methods.dpdm.parms", "methods.dpdm.parms", "params"),
        ("methods.dpdm.overrides.0.parms", "methods.dpdm.overrides[0].parms", "params"),
        ("methods.dpdm.overrides.0.when.epsilons", "methods.dpdm.overrides[0].when.epsilons", "epsilon"),
        ("evaluation.synthetic_image", "evaluation.synthetic_image", "synthetic_images"),
        ("evaluation.synthetic-images", "evaluation.synthetic-images", "synthetic_images"),
    ],
)
def test_a_misspelt_key_is_named_with_its_path_and_the_nearest_key(tiny_study_dict, path, yaml_path, nearest):
    message = refusal(put(tiny_study_dict, path, 1))
    assert any(l.startswith(f"study.yaml: {yaml_path}: ") and repr(nearest) in l for l in message.splitlines())


def test_a_key_near_to_none_gets_the_list(tiny_study_dict):
    listed = "classifiers, extractors, fid, protocol, synthetic_images"
    refused(put(tiny_study_dict, "evaluation.xyz", 1), "evaluation.xyz", listed)


def test_every_mistake_has_its_line(tiny_study_dict):
    put(tiny_study_dict, "epsilonz", 1)
    put(tiny_study_dict, "evaluation.synthetic_images", 1)
    del tiny_study_dict["datasets"]["digits"]["source"]
    lines = refusal(tiny_study_dict).splitlines()
    assert len(lines) == 3
    assert all(line.startswith("study.yaml: ") for line in lines)
    assert any("datasets.digits.source" in line for line in lines)


def test_the_keys_of_an_ill_named_entry_keep_their_path(tiny_study_dict):
    put(tiny_study_dict, "datasets.my-data", {"source": "digits"})
    refused(tiny_study_dict, "datasets.my-data.delta")


def test_params_of_a_method_are_checked_alike():
    class Params(Strict):
        learning_rate: float

    with refuses("methods.m.params", "learning_rte", "'learning_rate'", lines=None):
        parse_params(Params, {"learning_rte": 1.0}, "methods.m.params")


# --- values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0, -1, math.nan, -math.inf])
def test_epsilon_must_be_above_zero(tiny_study_dict, epsilon):
    refused(tiny_study_dict | {"epsilons": [epsilon]}, "epsilons", str(epsilon), ".inf")


def test_an_epsilon_must_fit_into_a_path(tiny_study_dict):
    refused(tiny_study_dict | {"epsilons": [1.2345678]}, "epsilons", "1.2345678", "six digits")


@pytest.mark.parametrize("epsilon", [0.2, 10, 1e-5, 123456, math.inf])
def test_epsilon_text_round_trips(epsilon):
    assert float(epsilon_text(epsilon)) == epsilon


def test_the_text_inf_is_infinity(tiny_study_dict):
    study = parse_study(tiny_study_dict | {"epsilons": [10, "inf"]}, "s")
    assert study.epsilons == (10, math.inf)


def test_a_number_that_yaml_reads_as_text_gets_the_hint(tiny_study_dict):
    refused(put(tiny_study_dict, "datasets.digits.delta", "1e-5"), "datasets.digits.delta", "1e-5", "1.0e-5")


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan, "1/n", True])
def test_impossible_deltas(tiny_study_dict, delta):
    refused(put(tiny_study_dict, "datasets.digits.delta", delta), "datasets.digits.delta")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", [0, 0]),
        ("epsilons", [1, 1.0]),
        ("epsilons", ["inf", math.inf]),
        ("anchors", ["real", "real"]),
    ],
)
def test_a_value_twice(tiny_study_dict, key, value):
    refused(tiny_study_dict | {key: value}, key, "twice")


def test_a_classifier_twice(tiny_study_dict):
    twice = put(tiny_study_dict, "evaluation.classifiers", ["cnn", "logreg", "cnn"])
    refused(twice, "evaluation.classifiers", "twice")


@pytest.mark.parametrize(
    ("protocol", "classifiers", "wrong", "known"),
    [
        ("dpimagebench", ["resnet", "cnn"], "'cnn'", "resnet, wrn, resnext"),
        ("dpimagebench", ["logreg"], "'logreg'", "resnet, wrn, resnext"),
        ("standard", ["wrn", "cnn"], "'wrn'", "logreg, mlp, cnn"),
        ("paper", ["resnext"], "'resnext'", "logreg, mlp, cnn"),
    ],
)
def test_a_protocol_has_its_own_classifiers(tiny_study_dict, protocol, classifiers, wrong, known):
    put(tiny_study_dict, "evaluation.protocol", protocol)
    asked = put(tiny_study_dict, "evaluation.classifiers", classifiers)
    refused(asked, "evaluation", protocol, wrong, known)
    fine = put(tiny_study_dict, "evaluation.classifiers", known.split(", "))
    assert parse_study(fine, "t").evaluation.classifiers == tuple(known.split(", "))


@pytest.mark.parametrize("seeds", [["0"], [True], [0.0], [-1], [], 0])
def test_types_are_not_guessed(tiny_study_dict, seeds):
    refused(tiny_study_dict | {"seeds": seeds}, "seeds")


@pytest.mark.parametrize("key", ["datasets", "methods", "epsilons", "evaluation", "study", "seeds"])
def test_a_missing_key(tiny_study_dict, key):
    del tiny_study_dict[key]
    refused(tiny_study_dict, key)
    assert "\n" not in refusal(tiny_study_dict)


@pytest.mark.parametrize(
    ("path", "value", "parts"),  # the message names the path, or what is in `parts`
    [
        ("methods.real", {"impl": "a:B"}, []),
        ("methods.label_only", {"impl": "a:B"}, []),
        ("methods.dpdm.impl", "no_colon", ["'no_colon'"]),
        ("methods.dpdm.samplers", {}, ["leave them out"]),
        ("methods.dpdm.kind", "gan", ["'gan'", "'generator'", "'classifier'"]),
        ("study", "data", ["'data'"]),
        ("study", "published", ["'published'"]),
        ("study", "examples", ["'examples'"]),
        ("study", "../up", ["'../up'"]),
        ("results_dir", "", ["''"]),
        ("results_dir", "my results", ["'my results'"]),
        ("results_dir", "r/{dataset}", ["'r/{dataset}'"]),
        ("accountant", "moments", ["'moments'", "'rdp'", "'prv'", "'pld'"]),
        ("evaluation.fid", None, ["`fid: {}`"]),
        ("evaluation.fid", {"weights_path": " "}, ["evaluation.fid.weights_path"]),
        ("evaluation.fid", {"weights_pth": "a"}, ["evaluation.fid.weights_pth", "'weights_path'"]),
        ("evaluation.classifiers", ["svm"], ["evaluation.classifiers[0]", "'svm'", "'mlp'"]),
        ("methods.dpdm.tuning", {"settings": -1, "data": "a"}, ["tuning.settings", "-1"]),
        ("methods.dpdm.tuning", {"settings": 2.0, "data": "a"}, ["tuning.settings", "whole", "2.0"]),
        ("methods.dpdm.tuning", {"settings": True, "data": "a"}, ["tuning.settings", "whole", "True"]),
        ("methods.dpdm.tuning", {"settings": 2, "data": " "}, ["tuning.data"]),
        ("methods.dpdm.tuning", {"settings": 2}, ["tuning.data"]),
        ("methods.dpdm.tuning", {"setting": 2, "data": "a"}, ["tuning.setting", "'settings'"]),
        ("methods.dpdm.tuning", 5, ["5"]),
        ("datasets.digits.num_classes", 10, ["'digits'", "allow_large_delta, delta, epsilons, source"]),
        ("datasets.digits.source", "npz", ["digits.train", "digits.test", "digits.num_classes"]),
        ("datasets.digits.source", "celeba", ["digits.image_size"]),
        ("datasets.digits.source", "folder", ["digits.data_dir", "digits.image_size", "digits.num_classes"]),
        ("datasets.digits.source", "minst", ["datasets.digits.source", "'minst'", "'mnist'"]),
        ("datasets.mnist", {"source": "celeba", "delta": 0.1, "image_size": 7}, ["datasets.mnist.image_size", "7"]),
        ("datasets.mnist", {"source": "mnist", "delta": 0.1, "data_dri": "a"}, ["mnist.data_dri", "'data_dir'"]),
    ],
)
def test_refused_values(tiny_study_dict, path, value, parts):
    own_path = [] if path == "datasets.digits.source" else [path]
    refused(put(tiny_study_dict, path, value), *own_path, *parts)


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("epsilons", 10, ["epsilons", "list", "got 10"]),
        ("seeds", [], ["seeds", "at least one", "got []"]),
        ("study", "a/b", ["study", "lower-case", "got 'a/b'"]),
        ("datasets.digits.delta", 2, ["datasets.digits.delta", "less than 1", "'1/(2n)'", "got 2"]),
        ("evaluation.synthetic_images", 0, ["evaluation.synthetic_images", "10", "got 0"]),
        ("evaluation.synthetic_images", [1, 2], ["evaluation.synthetic_images", "whole number", "got [1, 2]"]),
        ("methods.dpdm.params", 5, ["methods.dpdm.params", "keys and values", "got 5"]),
    ],
)
def test_a_wrong_value_is_one_plain_line_with_the_value(tiny_study_dict, path, value, parts):
    message = refusal(put(tiny_study_dict, path, value))
    holds(message, *parts)
    assert not re.search("valid (tuple|dict|list)|pattern|unable to parse", message)


def test_a_study_without_fid_has_the_specs_it_had_before_there_was_such_a_key(tiny_study_dict):
    """Snakemake compares specs as text: a null in them would score every finished study again."""
    study = parse_study(tiny_study_dict, "t")
    spec = study.scoring(study.anchor_coordinates()[0])
    assert "fid" not in spec_json(study)
    assert json.loads(spec_json(spec))["evaluation"] == {
        "synthetic_images": 20, "classifiers": ["logreg"], "protocol": "standard"
    }  # fmt: skip


@pytest.mark.parametrize(("value", "path"), [({}, None), ({"weights_path": "a/b.pth"}, "a/b.pth")])
def test_fid_is_part_of_the_score_by_inception_alone(tiny_study_dict, value, path):
    without = parse_study(tiny_study_dict, "t")
    study = parse_study(put(tiny_study_dict, "evaluation.fid", value), "t")
    anchor = study.anchor_coordinates()[0]
    assert study.fid().weights_path == path
    assert spec_json(study.scoring(anchor)) == spec_json(without.scoring(anchor))  # or all would be scored again
    assert parse_spec(Study, study.model_dump_json()) == study


@pytest.mark.parametrize("value", [math.inf, math.nan, b"\xff", yaml.safe_load("2020-01-01"), [1, math.inf], {1: 2}])
@pytest.mark.parametrize("path", ["methods.dpdm.params", "methods.dpdm.overrides.0.params"])
def test_a_recipe_that_json_would_change_is_refused(tiny_study_dict, path, value):
    """.inf used to reach `train` as null, and a date as text."""
    message = refusal(put(tiny_study_dict, f"{path}.lr", value))
    assert "params: lr: " in message


def test_the_tuning_budget_is_no_part_of_a_run(tiny_study_dict):
    """Or else writing it down would train again."""
    before = parse_study(tiny_study_dict, "s")
    after = parse_study(put(tiny_study_dict, "methods.dpdm.tuning", {"settings": 5, "data": "MNIST"}), "s")
    assert (before.methods["dpdm"].tuning, after.methods["dpdm"].tuning.settings) == (None, 5)
    assert list(map(spec_json, after.runs())) == list(map(spec_json, before.runs()))


# --- classifiers ----------------------------------------------------------------------------------------------


@pytest.fixture
def with_classifier(tiny_study_dict):
    """The tiny study with a classifier in it."""
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier", "params": {"lr": 1.0}}
    return tiny_study_dict


def test_a_method_is_a_generator_unless_it_says_otherwise(with_classifier):
    study = parse_study(with_classifier, "s")
    assert [study.is_classifier(name) for name in (*study.methods, "real")] == [False, False, True, False]
    assert study.methods["net"].samplers == {}
    assert study.methods["class_mean"].samplers == {"default": {}}


def test_a_classifier_with_samplers_is_refused(with_classifier):
    with_classifier["methods"]["net"]["samplers"] = {"default": {}}
    refused(with_classifier, "methods.net.samplers", "leave them out", "kind: generator")
    del with_classifier["methods"]["net"]["samplers"]
    with_classifier["methods"]["net"]["overrides"] = [{"when": {}, "samplers": {"default": {}}}]
    refused(with_classifier, "methods.net.overrides[0].samplers", "'default'", "classifier")


def test_a_study_with_a_classifier_survives_json(with_classifier):
    study = parse_study(with_classifier, "s")
    assert parse_spec(Study, study.model_dump_json()) == study


def test_the_kind_decides_no_training(with_classifier):
    """A run's spec is its identity (noise, checkpoints, reruns); what is done with its model is no part of it."""
    run = parse_study(with_classifier, "s").run("digits", "net", 10.0, 0)
    with_classifier["methods"]["net"]["kind"] = "generator"
    assert parse_study(with_classifier, "s").run("digits", "net", 10.0, 0) == run


@pytest.mark.parametrize("name", ["classifier", "generator"])
def test_a_method_may_be_called_by_the_name_of_a_kind(tiny_study_dict, name):
    """Errors used to drop such a name from the path, as if it chose a branch of a union."""
    tiny_study_dict["methods"][name] = {"impl": "a:B", "parms": {}}
    refused(tiny_study_dict, f"methods.{name}.parms", "'params'")


# --- the paper's tables, scale, and datasets of a method ----------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "parts"),
    [
        ({"table 1": []}, ["tables", "'table 1'"]),
        ({"table_1": [{"method": "dpdm", "published": "x", "variants": "FID"}]}, ["table_1[0].variants", "'variant'"]),
        ({"table_1": [{"method": "dpdm", "published": " "}]}, ["table_1[0].published", "' '"]),
    ],
)
def test_tables_that_cannot_be(tiny_study_dict, tables, parts):
    refused(tiny_study_dict | {"tables": tables}, *parts)


def test_tables_and_scale_are_no_part_of_a_run(tiny_study_dict):
    before = parse_study(tiny_study_dict, "s")
    put(tiny_study_dict, "methods.dpdm.scale", "width 16")
    after = parse_study(tiny_study_dict | {"tables": {"table_1": [{"method": "dpdm", "published": "DPDM"}]}}, "s")
    assert (before.methods["dpdm"].scale, after.methods["dpdm"].scale) == (None, "width 16")
    assert list(map(spec_json, after.runs())) == list(map(spec_json, before.runs()))
    refused(put(tiny_study_dict, "methods.dpdm.scale", ""), "methods.dpdm.scale")


def test_a_method_may_serve_some_datasets(tiny_study_dict):
    put(tiny_study_dict, "datasets.mnist", {"source": "mnist", "delta": 1e-5})
    put(tiny_study_dict, "methods.class_mean.datasets", ["mnist"])
    study = parse_study(tiny_study_dict, "s")
    assert (study.datasets_of("class_mean"), study.datasets_of("dpdm")) == (("mnist",), ("digits", "mnist"))
    served = {(run.dataset, run.method) for run in study.runs()}
    assert served == {("digits", "dpdm"), ("mnist", "dpdm"), ("mnist", "class_mean")}
    with refuses("class_mean", "digits", "methods.class_mean.datasets"):
        study.run("digits", "class_mean", 10.0, 0)


def test_datasets_of_a_method_that_are_wrong(tiny_study_dict):
    put(tiny_study_dict, "datasets.mnist", {"source": "mnist", "delta": 1e-5})
    for value, parts in (
        (["mnits"], ("datasets[0]", "'mnits'", "'mnist'")),
        (["mnist", "mnist"], ("twice",)),
        ([], ()),
    ):
        refused(put(tiny_study_dict, "methods.dpdm.datasets", value), "methods.dpdm.datasets", *parts)
    put(tiny_study_dict, "methods.dpdm.datasets", ["mnist"])
    put(tiny_study_dict, "methods.dpdm.overrides.0.when", {"dataset": "digits"})
    refused(tiny_study_dict, "methods.dpdm.overrides[0].when", "mnist at epsilon 10, inf")


def test_a_method_is_run_at_its_own_epsilons(tiny_study_dict):
    place = "methods.class_mean.epsilons"
    before = parse_study(tiny_study_dict, "s")
    put(tiny_study_dict, place, [10])
    study = parse_study(tiny_study_dict, "s")
    assert study.epsilons_of("digits", "class_mean") == (10,)
    gone = {run.name for run in before.runs()} - {run.name for run in study.runs()}
    assert gone == {f"digits/class_mean/inf/{seed}" for seed in study.seeds}
    with refuses("class_mean", "digits", "epsilon inf", place):
        study.run("digits", "class_mean", float("inf"), 0)
    for value, parts in (([1], ("1", "10, inf")), ([], ()), ([10, 10.0], ())):
        refused(put(tiny_study_dict, place, value), place, *parts)
    put(tiny_study_dict, place, [10])
    put(tiny_study_dict, "methods.class_mean.overrides", [{"when": {"epsilon": float("inf")}}])
    refused(tiny_study_dict, "methods.class_mean.overrides[0].when", "class_mean", "epsilon 10")


def test_a_method_is_run_with_its_own_seeds(tiny_study_dict):
    place = "methods.class_mean.seeds"
    before = parse_study(tiny_study_dict | {"seeds": [0, 1, 2]}, "s")
    study = parse_study(put(tiny_study_dict | {"seeds": [0, 1, 2]}, place, [2, 0]), "s")
    assert (study.seeds_of("class_mean"), study.seeds_of("dpdm")) == ((0, 2), (0, 1, 2))
    gone = {run.name for run in before.runs()} - {run.name for run in study.runs()}
    assert gone == {f"digits/class_mean/{epsilon}/1" for epsilon in ("10", "inf")}
    assert {c.seed for c in study.anchor_coordinates()} == {0, 1, 2}
    with refuses("class_mean", "seed 1", place):
        study.run("digits", "class_mean", 10.0, 1)
    for value, parts in (([3], ("3", "0, 1, 2")), ([], ()), ([0, 0], ("twice",))):
        refused(put(tiny_study_dict | {"seeds": [0, 1, 2]}, place, value), place, *parts)
    for method in tiny_study_dict["methods"]:
        put(tiny_study_dict, f"methods.{method}.seeds", [0])
    refused(tiny_study_dict | {"seeds": [0, 1]}, "seeds", "no method", "1")


def test_a_dataset_is_run_at_its_own_epsilons(tiny_study_dict):
    put(tiny_study_dict, "datasets.mnist", {"source": "mnist", "delta": 1e-5, "epsilons": [float("inf")]})
    study = parse_study(tiny_study_dict, "s")
    cells = {(run.dataset, run.epsilon) for run in study.runs()}
    assert cells == {("digits", 10.0), ("digits", float("inf")), ("mnist", float("inf"))}
    with refuses("mnist", "epsilon 10", "datasets.mnist.epsilons"):
        study.run("mnist", "dpdm", 10.0, 0)
    for value, parts in (
        ([10, 10], ("twice",)),
        ([3], ("3", "10, inf")),
        ([], ()),
    ):
        refused(put(tiny_study_dict, "datasets.mnist.epsilons", value), "datasets.mnist.epsilons", *parts)
    put(tiny_study_dict, "datasets.mnist.epsilons", [10])
    put(tiny_study_dict, "methods.dpdm.overrides.0.when", {"dataset": "mnist", "epsilon": "inf"})
    refused(tiny_study_dict, "methods.dpdm.overrides[0].when", "digits at epsilon 10, inf", "mnist at epsilon 10")
    put(tiny_study_dict, "datasets.digits.epsilons", [10])
    refused(tiny_study_dict, "epsilons", "inf")


# --- overrides, and what could not be verified ----------------------------------------------------------------


@pytest.mark.parametrize("when", [{"epsilon": 3}, {"dataset": "digits", "epsilon": 3}])
def test_a_when_that_matches_no_run(tiny_study_dict, when):
    message = refusal(put(tiny_study_dict, "methods.dpdm.overrides.0.when", when))
    assert all(part in message for part in ("methods.dpdm.overrides[0].when", "digits at epsilon 10, inf"))


def test_an_override_of_a_sampler_that_is_not_there(tiny_study_dict):
    message = refusal(put(tiny_study_dict, "methods.dpdm.overrides.0.samplers", {"fast": {}}))
    assert all(part in message for part in ("methods.dpdm.overrides[0].samplers", "'fast'", "default"))


@pytest.mark.parametrize(
    ("part", "key", "facts"),
    [
        ({"when": {"epsilon": 3}}, "when", ["digits at epsilon 10, inf"]),
        ({"samplers": ["fast"]}, "samplers", ["'fast'", "default"]),
        ({"samplers": []}, "samplers", []),
        ({"what": " "}, "what", ["' '"]),
    ],
)
def test_what_could_not_be_verified_is_of_some_run(tiny_study_dict, part, key, facts):
    put(tiny_study_dict, "methods.dpdm.unverified", [{"what": "the batch", **part}])
    refused(tiny_study_dict, f"methods.dpdm.unverified[0].{key}", *facts)


def test_what_could_not_be_verified_is_part_of_no_run(tiny_study_dict):
    before = parse_study(tiny_study_dict, "s").runs()
    put(tiny_study_dict, "methods.dpdm.unverified", [{"what": "the batch", "when": {"epsilon": 10}}])
    assert parse_study(tiny_study_dict, "s").runs() == before


def test_overrides_reach_their_runs_alone_and_later_ones_win(tiny_study_dict):
    put(
        tiny_study_dict,
        "methods.dpdm.overrides",
        [
            {"when": {"epsilon": 10}, "samplers": {"default": {"num_sampling_steps": 9}}},
            {"when": {"epsilon": 10}, "params": {"dp": {"steps": 5}}},
            {"when": {"dataset": "digits", "epsilon": "inf"}, "params": {"dp": {"steps": 6}}},
            {"when": {}, "params": {"dp": {"max_grad_norm": 0.5}}},
            {"when": {"epsilon": 10}, "params": {"dp": {"steps": 7}}},
        ],
    )
    study = parse_study(tiny_study_dict, "s")
    ten, inf = (study.run("digits", "dpdm", epsilon, 0) for epsilon in study.epsilons)
    assert ten.params["dp"] == {"expected_batch_size": 16, "steps": 7, "max_grad_norm": 0.5}
    assert inf.params["dp"] == {"expected_batch_size": 16, "steps": 6, "max_grad_norm": 0.5}
    assert ten.params["network"] == tiny_study_dict["methods"]["dpdm"]["params"]["network"]
    assert study.sample(ten, "default").sampler_params == {"num_sampling_steps": 9}
    assert study.sample(inf, "default").sampler_params == {"num_sampling_steps": 2}


def test_merge_is_deep():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2}
    assert merge({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert merge({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}  # a list is one value


def test_merge_is_pure():
    base, change = {"a": {"b": {"c": 1}}}, {"a": {"b": {"d": 2}}}
    merge(base, change)
    assert base == {"a": {"b": {"c": 1}}}
    assert change == {"a": {"b": {"d": 2}}}


# --- the grid -------------------------------------------------------------------------------------------------


@pytest.fixture
def grid(tiny_study_dict) -> Study:
    put(tiny_study_dict, "datasets.mnist", {"source": "mnist", "delta": 1e-5, "allow_large_delta": True})
    return parse_study(tiny_study_dict | {"accountant": "prv"}, "s")


def test_runs_enumerate_the_grid_in_the_order_of_the_file(grid):
    assert [(r.dataset, r.method, r.epsilon, r.seed) for r in grid.runs()] == [
        (dataset, method, epsilon, seed)
        for dataset in ("digits", "mnist")
        for method in ("class_mean", "dpdm")
        for epsilon in (10, math.inf)
        for seed in (0, 1)
    ]


def test_a_run_holds_what_decides_it(grid):
    run = grid.run("mnist", "class_mean", 10.0, 1)
    assert run == RunSpec(
        study="tiny", dataset="mnist", method="class_mean", impl="baselines.class_mean:ClassMean",
        params={"max_image_norm": 4.0}, epsilon=10.0, delta=1e-5, allow_large_delta=True, accountant="prv", seed=1,
    )  # fmt: skip
    assert run.coordinates("default").model_dump() == {
        "study": "tiny", "dataset": "mnist", "method": "class_mean", "epsilon": 10.0, "seed": 1, "sampler": "default",
    }  # fmt: skip


def test_the_spec_of_a_sample(grid):
    run = grid.run("mnist", "dpdm", 10.0, 1)
    assert grid.sample(run, "default") == SampleSpec(
        coordinates=run.coordinates("default"), impl="dpdm.diffusion.method:DPDM",
        sampler_params={"num_sampling_steps": 2}, synthetic_images=20,
    )  # fmt: skip


def test_anchor_rows(grid):
    rows = [(c.dataset, c.method, c.epsilon, c.seed) for c in grid.anchor_coordinates()]
    assert rows == [(d, a, None, s) for d in ("digits", "mnist") for a in ("real", "label_only") for s in (0, 1)]


def test_the_source_spec_leaves_delta_out(grid):
    """A change of delta must not prepare the images again."""
    assert grid.datasets["mnist"].source_spec() == Mnist()


def test_models_are_frozen(grid):
    for model in (grid, grid.evaluation, grid.datasets["mnist"], grid.methods["dpdm"], grid.runs()[0]):
        name = next(iter(type(model).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, name, getattr(model, name))


# --- specs on a command line ----------------------------------------------------------------------------------


def specs(study: Study) -> list[Strict]:
    run = study.run("digits", "dpdm", math.inf, 1)
    finite = study.run("digits", "class_mean", 10.0, 0)
    return [
        study, run, finite, study.sample(run, "default"), study.anchor_coordinates()[0],
        study.datasets["mnist"].source_spec(), study.datasets["digits"],
    ]  # fmt: skip


def test_every_spec_round_trips_through_one_line_of_json(grid):
    for spec in specs(grid):
        text = spec_json(spec)
        assert "\n" not in text
        assert parse_spec(type(spec), text) == spec
        assert spec_json(parse_spec(type(spec), text)) == text


def test_infinity_travels_as_text(grid):
    spec = grid.run("digits", "dpdm", math.inf, 1)
    assert json.loads(spec_json(spec))["epsilon"] == "inf"
    assert parse_spec(RunSpec, spec_json(spec)).epsilon == math.inf


def test_the_json_does_not_depend_on_the_order_of_keys(tiny_study_dict):
    """Or else moving a line in a study would train its runs again."""
    one = parse_study(tiny_study_dict, "s").run("digits", "dpdm", 10.0, 0)
    other = one.model_copy(update={"params": {key: one.params[key] for key in reversed(one.params)}})
    assert list(one.params) != list(other.params)
    assert spec_json(one) == spec_json(other)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"study": "a"}', '{"x": 1}'])
@pytest.mark.parametrize("kind", [RunSpec, SampleSpec, Study, Coordinates])
def test_a_broken_spec(kind, text):
    with pytest.raises(UserError, match="the recipe"):
        parse_spec(kind, text)


# --- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("study: a\nstudy: b\n", "line 2: key 'study' "),
        ("study: a\nmethods:\n  m: {impl: a}\n  m: {impl: b}\n", "line 4: key 'm' "),
        ("? [a, b]\n: 1\n", "line 1: a key "),
        ("study: [\n", "YAML"),
        ("a:\n\t- b\n", "YAML"),
        ("a: 1\n---\nb: 2\n", "YAML"),
        ("a: !!python/object/apply:os.getcwd []\n", "YAML"),
        ("a: \0\n", "YAML"),
        ("", "study"),
        ("- a\n", "study"),
        ("just text\n", "study"),
    ],
)
def test_a_file_that_is_no_study(tmp_path, text, part):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with refuses(path, part):
        load_study(path)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "binary.yaml"):
        with refuses(path):
            load_study(path)


def test_yaml_merge_keys_work(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "study: a\nepsilons: [1]\nseeds: [0]\nevaluation: {synthetic_images: 10}\nmethods: {m: {impl: 'a:B'}}\n"
        "datasets:\n  one: &one {source: digits, delta: 1.0e-5}\n  two:\n    <<: *one\n    delta: 1.0e-6\n"
    )
    study = load_study(path)
    assert [(d.source, d.delta) for d in study.datasets.values()] == [("digits", 1e-5), ("digits", 1e-6)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_is_valid(path):
    jsonschema = pytest.importorskip("jsonschema")
    assert load_study(path).runs()
    schema = Study.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    jsonschema.validate(load_study(path).model_dump(mode="json"), schema)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_study_points_editors_at_its_schema(path):
    name = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())[1]
    assert (path.parent / name).is_file()


@pytest.mark.parametrize(
    ("text", "value"),
    [("010", 8), ("1:30", 90), ("1_0", 10), ("0x10", 16), ("0b11", 3), ("-010", -8), ("1:30.5", 90.5), ("1_0.5", 10.5)],
)
def test_a_number_that_yaml_reads_otherwise_than_it_looks_is_refused(tmp_path, text, value):
    (tmp_path / "s.yaml").write_text(f"study: a\nseeds: [{text}]\n")
    with refuses(tmp_path / "s.yaml", "line 2", text, value):
        read_yaml(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["0", "-0", "10", "+1", "1.0", "0.10", ".5", "1.", "1.0e-5", "1.e+6", ".inf", "-.inf"])
def test_plain_decimals_are_read_as_they_look(tmp_path, text):
    (tmp_path / "s.yaml").write_text(f"a: {text}\n")
    assert read_yaml(tmp_path / "s.yaml") == {"a": float(text.replace(".inf", "inf"))}


@pytest.mark.parametrize("key", ["no", "on", "1", "2020-01-01", "null"])
def test_a_key_that_yaml_reads_as_no_text_is_refused(tmp_path, key):
    (tmp_path / "s.yaml").write_text(f"study: a\nmethods:\n  {key}: {{}}\n")
    with refuses(tmp_path / "s.yaml", "line 3", f"'{key}'"):
        read_yaml(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["1e6", "1.0e6", "1e-5", "2.5E6", "-1e3"])
def test_the_hint_for_a_number_that_yaml_reads_as_text_is_a_number(tmp_path, tiny_study_dict, text):
    message = refusal(put(tiny_study_dict, "datasets.digits.delta", text))
    hint = re.search(r"write (\S+)", message)[1]
    (tmp_path / "s.yaml").write_text(f"a: {hint}\n")
    assert read_yaml(tmp_path / "s.yaml") == {"a": float(text)}


@pytest.mark.parametrize(("path", "wrong", "meant"), [
    ("accountant", "prb", "'prv'"), ("noise", "secrte", "'secret'"), ("methods.dpdm.kind", "clasifier", "'classifier'"),
    ("datasets.digits.source", "digit", "'digits'"), ("evaluation.protocol", "standrad", "'standard'"),
])  # fmt: skip
def test_a_misspelt_word_gets_the_nearest(tiny_study_dict, path, wrong, meant):
    refused(put(tiny_study_dict, path, wrong), path, repr(wrong), f"{meant}?")


@pytest.mark.parametrize(
    ("written", "folder"), [("./res", "res"), ("res/", "res"), ("a//b/./c/", "a/b/c"), ("/x/", "/x")]
)
def test_a_results_folder_has_one_spelling(tiny_study_dict, written, folder):
    assert parse_study(tiny_study_dict | {"results_dir": written}, "s").results_dir == folder


def test_a_results_folder_that_looks_like_an_option_is_refused(tiny_study_dict):
    refused(tiny_study_dict | {"results_dir": "-x"}, "results_dir", "'-x'")


# --- several files, and shared recipes --------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_every_scale_is_laid_over_its_ablation(path):
    base = path.parents[1] / f"{path.stem.replace('laptop', 'ablation')}.yaml"
    large, small = load_study(base), load_study(f"{base},{path}")
    assert small.study == path.stem
    assert small.evaluation.fid is None is not large.evaluation.fid
    assert set(small.methods) <= set(large.methods)
    for name, method in small.methods.items():
        assert method.params["lr"] == 5e-3
        kept = {part.what for part in method.unverified} & {part.what for part in large.methods[name].unverified}
        assert kept <= {"the constants of VP and VE"}  # the rest speaks of the large study
        assert method.params["network"]["channels"] == 16 < large.methods[name].params["network"]["channels"]
        assert set(method.samplers) >= set(large.methods[name].samplers)


def test_a_file_is_laid_over_those_before_it_and_a_null_removes(tmp_path, tiny_study_dict):
    base, over = tmp_path / "base.yaml", tmp_path / "over.yaml"
    base.write_text(yaml.safe_dump(tiny_study_dict))
    over.write_text("seeds: [7]\nmethods:\n  class_mean: null\n  dpdm: {params: {dp: {steps: 1}}, overrides: null}\n")
    study = load_study(f"{base},{over}")
    assert (study.seeds, list(study.methods)) == ((7,), ["dpdm"])
    was = tiny_study_dict["methods"]["dpdm"]["params"]
    assert study.methods["dpdm"].params == was | {"dp": was["dp"] | {"steps": 1}}
    assert study.methods["dpdm"].overrides == ()
    over.write_text("seedz: [7]\n")
    with refuses("seedz", "'seeds'", base, over):
        load_study(f"{base},{over}")


def test_a_method_takes_a_shared_recipe_and_lays_its_own_keys_over(tiny_study_dict):
    tiny_study_dict["methods"]["class_mean"] = {"impl": "a:B", "recipe": "dpdm_paper", "params": {"dp": {"steps": 3}}}
    method = parse_study(tiny_study_dict, "s").methods["class_mean"]
    assert (method.scale, method.params["dp"]["steps"], method.params["dp"]["expected_batch_size"]) == (
        "paper",
        3,
        4000,
    )
    assert "recipe" not in method.model_dump()  # so that a study.json has no other file to follow
    tiny_study_dict["methods"]["class_mean"]["recipe"] = "dpdm_papre"
    refused(tiny_study_dict, "methods.class_mean.recipe", "'dpdm_papre'", "'dpdm_paper'")


def test_every_shared_recipe_is_used_and_has_the_keys_of_a_method():
    text = "".join(path.read_text() for path in (*SHIPPED, *SCALES))
    for name, recipe in read_yaml(config.RECIPES).items():
        assert re.search(rf"recipe: {name}\b", text), name
        assert set(recipe) <= set(MethodSpec.model_fields) - {"recipe", "impl"}


def test_the_multiplicities_of_equal_compute_have_as_many_noised_images():
    base = EQUAL_COMPUTE.parents[1] / "ablation_multiplicity.yaml"
    records, compute = (
        [run.params for run in load_study(files).runs() if run.seed == 0]
        for files in (f"{base},{SCALES[1]}", f"{base},{SCALES[1]},{EQUAL_COMPUTE}")
    )
    assert [params["noise_multiplicity"] for params in compute] == [1, 2, 4, 8]
    assert len({params["dp"]["expected_batch_size"] * params["noise_multiplicity"] for params in compute}) == 1
    assert len({params["dp"]["expected_batch_size"] for params in records}) == 1
    assert len({params["dp"]["steps"] for params in (*records, *compute)}) == 1


def test_the_headline_is_laptop_judged_by_as_many_images_as_in_the_paper():
    base = HEADLINE.parents[1] / "laptop.yaml"
    laptop, headline = load_study(base), load_study(f"{base},{HEADLINE}")
    assert headline.evaluation.synthetic_images == 60_000
    recipes = {run.place: (run.impl, run.params) for run in laptop.runs()}
    for run in headline.runs():
        if run.method == "dpdm_gauss_large":  # in laptop.yaml, its runs at epsilon 1 are older
            gauss = recipes[(run.dataset, "dpdm_gauss", *run.place[2:])][1]
            larger = {"noise_multiplicity": 2, "dp": gauss["dp"] | {"expected_batch_size": 4096}}
            assert run.params == gauss | larger
        else:
            assert (run.impl, run.params) == recipes[run.place]


def test_there_are_shipped_studies():
    assert {"digits", "tiny"} <= {path.stem for path in SHIPPED}
    assert {*SCALES, EQUAL_COMPUTE, HEADLINE} == set(SCALES[0].parent.glob("*.yaml"))


def test_the_json_schema_refuses_what_the_models_refuse(tiny_study_dict):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(tiny_study_dict, Study.model_json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tiny_study_dict | {"epsilonz": 1}, Study.model_json_schema())


# --- the results folder ---------------------------------------------------------------------------------------


def test_a_folder_that_can_be_made_is_writable(tmp_path):
    check_writable(tmp_path)
    check_writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "results").write_text("")
    for folder in (tmp_path / "results", tmp_path / "results" / "deep" / "er"):
        with refuses("results", "file"):
            check_writable(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with refuses(tmp_path):
        check_writable(tmp_path / "locked" / "results")


def test_an_unwritable_folder_as_the_system_reports_it(tmp_path, monkeypatch):
    """The same for root, whom the system lets write anywhere."""
    monkeypatch.setattr(config.os, "access", lambda path, mode: not (mode == os.W_OK and path == tmp_path))
    with refuses(tmp_path):
        check_writable(tmp_path / "results")


def test_a_run_has_its_coordinates_as_text(tiny_study_dict):
    run = parse_study(tiny_study_dict, "x").run("digits", "dpdm", math.inf, 1)
    assert (run.place, run.name) == (("digits", "dpdm", "inf", "1"), "digits/dpdm/inf/1")


# --- a part of a study ------------------------------------------------------------------------------------------


def names(study) -> set[str]:
    return {run.name for run in study.runs()}


@pytest.mark.parametrize(
    "only", ["method=dpdm epsilon=10,inf seed=1", "method=dpdm seed=1", {"method": "dpdm", "seed": [1]}]
)
def test_only_keeps_what_matches_all_its_keys(tiny_study_dict, only):
    study = parse_study(tiny_study_dict | {"only": only}, "x")
    assert names(study) == {"digits/dpdm/10/1", "digits/dpdm/inf/1"}
    assert [c.seed for c in study.anchor_coordinates()] == [1, 1]
    assert [run.name for run in study.attacked_runs()] == ["digits/dpdm/10/1"]
    assert "only" in study.part()
    assert parse_study(study.model_dump(mode="json"), "again") == study


def test_without_leaves_out_what_matches_all_its_keys(tiny_study_dict):
    whole = names(parse_study(tiny_study_dict, "x"))
    study = parse_study(tiny_study_dict | {"without": "method=dpdm epsilon=inf"}, "x")
    assert whole - names(study) == {"digits/dpdm/inf/0", "digits/dpdm/inf/1"}


@pytest.mark.parametrize(
    "form",
    [
        "method=class_mean or method=dpdm epsilon=inf",
        ["method=class_mean", {"method": "dpdm", "epsilon": math.inf}],
        ({"method": ["class_mean"]}, "method=dpdm epsilon=inf"),
    ],
)
def test_several_without_each_leave_out_what_matches_one(tiny_study_dict, form):
    study = parse_study(tiny_study_dict | {"without": form}, "x")
    assert names(study) == {"digits/dpdm/10/0", "digits/dpdm/10/1"}
    assert study.part() == "without method=class_mean, without method=dpdm epsilon=inf"
    assert parse_study(study.model_dump(mode="json"), "again") == study


def test_a_part_can_be_some_samplers(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["samplers"] = {"fast": {}, "fine": {}}
    tiny_study_dict["methods"]["net"] = {"impl": "a:B", "kind": "classifier"}
    fast = {"dpdm": ("fast",), "net": (), "class_mean": ("default",)}
    parts = ({"only": "sampler=fine"}, {"dpdm": ("fine",), "net": ()}), ({"without": "sampler=fine"}, fast)
    for part, kept in parts:
        study = parse_study(tiny_study_dict | part, "x")
        assert {run.method: study.samplers_of(run) for run in study.runs()} == kept


@pytest.mark.parametrize(
    ("part", "kept"),
    [
        ({"without": "method=net"}, {"dpdm", "class_mean"}),
        ({"only": "method=net"}, {"net"}),
        ({"only": "method=net,dpdm", "without": "method=dpdm"}, {"net"}),
        ({"only": "sampler=default", "without": "method=net sampler=default"}, {"dpdm", "class_mean", "net"}),
    ],
)
def test_a_part_of_a_study_with_a_classifier(with_classifier, part, kept):
    assert {run.method for run in parse_study(with_classifier | part, "x").runs()} == kept


def test_a_whole_study_has_no_word_of_a_part_in_its_json(tiny_study_dict):
    study = parse_study(tiny_study_dict, "x")
    assert not {"only", "without"} & set(study.model_dump(mode="json"))
    assert study.part() == ""


def test_the_recipe_of_a_run_is_the_same_in_a_part(tiny_study_dict):
    whole = {run.name: run for run in parse_study(tiny_study_dict, "x").runs()}
    for run in parse_study(tiny_study_dict | {"only": "seed=1"}, "x").runs():
        assert spec_json(run) == spec_json(whole[run.name])


@pytest.mark.parametrize(
    ("part", "parts"),
    [
        ({"only": "method=dpmd"}, ["only.method", "'dpmd'", "'dpdm'"]),
        ({"only": "methd=dpdm"}, ["only.methd", "'method'"]),
        ({"only": "epsilon=3"}, ["only.epsilon", "'3'", "10, inf"]),
        ({"without": {"seed": [7]}}, ["without.seed", "'7'"]),
        ({"without": "seed=1 or seed=7"}, ["without.seed", "'7'"]),
        ({"without": ["seed=1", "sed=1"]}, ["without[1].sed", "'seed'"]),
        ({"without": "seed=1 or"}, ["without", "'or'"]),
        ({"only": "seed=1 or seed=0"}, ["only", "'or'"]),
        ({"only": "epsilon=ten"}, ["only.epsilon", "ten"]),
        ({"without": "dataset=digits"}, ["without", "no run"]),
    ],
)
def test_a_part_of_what_is_not_there_is_refused(tiny_study_dict, part, parts):
    with refuses(*parts):
        parse_study(tiny_study_dict | part, "x")


# --- imports --------------------------------------------------------------------------------------------------

NUMERICAL = "torch numpy pandas scipy sklearn matplotlib opacus torchvision torch_fidelity"


def test_importing_dpdm_imports_nothing(run_python):
    code = "import sys; before = set(sys.modules); import dpdm; print(*sorted(set(sys.modules) - before))"
    done = run_python("-c", code)
    loaded = [name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names]
    assert loaded == ["dpdm"], done.stderr


def test_a_study_is_parsed_without_a_numerical_library(run_python):
    code = (
        "import sys; from dpdm.config import load_study; load_study('config/digits.yaml').runs();"
        f"print(*[name for name in {NUMERICAL.split()!r} if name in sys.modules], sep=',')"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_parsing_is_quick():
    """The Snakefile parses in every job."""
    start = time.process_time()
    load_study(SHIPPED[0]).runs()
    assert time.process_time() - start < 0.5


def test_a_mapping_of_another_kind_replaces_the_old_one():
    base = {"parametrisation": {"kind": "edm", "p_mean": -1.2}, "lr": 1.0}
    assert merge(base, {"parametrisation": {"kind": "v"}}) == {"parametrisation": {"kind": "v"}, "lr": 1.0}
    assert merge(base, {"parametrisation": {"kind": "edm", "p_std": 1.0}})["parametrisation"] == {
        "kind": "edm", "p_mean": -1.2, "p_std": 1.0,
    }  # fmt: skip
    by_default = {"num_sampling_steps": 100}  # whose kind it is not known here
    assert merge(by_default, {"kind": "ddim", "guidance": 1.0}) == {
        "num_sampling_steps": 100, "kind": "ddim", "guidance": 1.0,
    }  # fmt: skip
