"""The plan of a study: what it says is what training does; all mistakes at once."""

import math
import re
from pathlib import Path

import pytest
from refusals import refuses

from dpdm import plan
from dpdm.config import load_study, parse_study
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.method import train
from dpdm.plan import check_recipe, describe, describe_events, doubts, planned_runs, run_departures
from dpdm.privacy import Event
from dpdm.progress import Log
from dpdm.sources.digits import Digits
from dpdm.sources.npz import Npz


@pytest.fixture
def n64(monkeypatch):
    """The digits with 64 training images."""
    monkeypatch.setattr(Digits, "meta", lambda _: ImageMeta(64, (1, 8, 8), 10))


def test_the_planned_events_are_those_of_the_ledger(tiny_study_dict, digits64, n64):
    study = parse_study(tiny_study_dict, "s")
    planned = planned_runs(study)
    assert [run.spec for run in planned] == study.runs()
    for run in planned:
        if run.spec.seed == 0:
            _, ledger = train(run.spec, digits64, Log())
            released = [(e.mechanism, e.name, e.noise_multiplier, e.sample_rate, e.steps) for e in ledger.events]
            foreseen = [(e.mechanism, e.name, e.noise_multiplier, e.sample_rate, e.steps) for e in run.events]
            assert released == foreseen
            assert ledger.delta == run.delta


def test_the_planned_epsilon_meets_the_target_and_wastes_little(tiny_study_dict, n64):
    del tiny_study_dict["methods"]["dpdm"]
    spent = {}
    for accountant in ("rdp", "prv", "pld"):
        for run in planned_runs(parse_study(tiny_study_dict | {"accountant": accountant, "seeds": [0]}, "s")):
            if math.isinf(run.spec.epsilon):
                assert set(run.epsilons.values()) == {math.inf}
                assert all(event.noise_multiplier == 0 for event in run.events)
            else:
                judges = {accountant, "prv", "pld"}
                assert 0.99 * run.spec.epsilon < max(run.epsilons[name] for name in judges) <= run.spec.epsilon
                spent[accountant] = run.events[0].noise_multiplier
    assert spent["prv"] == pytest.approx(spent["pld"], rel=0.01)
    assert spent["prv"] < 0.99 * spent["rdp"]  # the tighter accountants ask for less noise


def test_a_plan_that_one_accountant_puts_above_its_target_is_refused(tiny_study_dict, n64, monkeypatch):
    """Whatever calibrated it: nothing trains that the audit would fail."""
    honest = plan.epsilons_spent
    monkeypatch.setattr(plan, "epsilons_spent", lambda *of: (found := honest(*of)) | {"pld": 2 * found["pld"]})
    del tiny_study_dict["methods"]["dpdm"]
    with refuses("pld", "10"):
        planned_runs(parse_study(tiny_study_dict, "s"))


def test_overrides_decide_what_is_planned(tiny_study_dict, n64):
    steps = {r.spec.epsilon: r.events[0].steps for r in planned_runs(parse_study(tiny_study_dict, "s"))[4:]}
    assert steps == {10.0: 2, math.inf: 3}


def test_seeds_share_a_calibration(tiny_study_dict, n64, monkeypatch):
    calls = []
    calibrate = plan.calibrate
    monkeypatch.setattr(plan, "calibrate", lambda *arguments: calls.append(arguments) or calibrate(*arguments))
    planned_runs(parse_study(tiny_study_dict | {"seeds": [0, 1, 2, 3]}, "s"))
    assert len(calls) == 4  # two methods, two epsilons


def test_all_mistakes_are_found_at_once_and_each_once(tiny_study_dict, tmp_path):
    methods = tiny_study_dict["methods"]
    methods["class_mean"]["params"] = {"max_norm": 1.0}
    methods["dpdm"]["params"]["dp"]["expected_batch_size"] = 2000
    methods["dpdm"]["samplers"]["default"] = {"num_steps": 2}
    methods["gone"] = {"impl": "baselines.gone:Gone"}
    missing = str(tmp_path / "missing.npz")
    tiny_study_dict["datasets"]["own"] = {
        "source": "npz", "train": missing, "test": missing, "num_classes": 2, "delta": 1e-5,
    }  # fmt: skip
    with pytest.raises(UserError) as error:
        planned_runs(parse_study(tiny_study_dict, "s"))
    lines = str(error.value).splitlines()
    assert len(lines) == len(set(lines))
    for part in (
        "methods.class_mean.params: max_norm: unknown key",
        "methods.dpdm on digits: expected_batch_size = 2000 is larger than the 1437 training images",
        "impl baselines.gone:Gone: cannot import",
        f"datasets.own: cannot read {missing}",
    ):
        assert sum(part in line for line in lines) == 1, part


def test_sampler_parameters_are_checked_before_training(tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["samplers"]["default"] = {"num_steps": 2}
    with refuses("methods.dpdm.samplers.default", "num_steps"):
        planned_runs(parse_study(tiny_study_dict, "s"))


def test_overridden_samplers_are_checked_as_well(tiny_study_dict):
    override = {"when": {"epsilon": 10}, "samplers": {"default": {"num_sampling_steps": "two"}}}
    tiny_study_dict["methods"]["dpdm"]["overrides"].append(override)
    with refuses("methods.dpdm.samplers.default", "num_sampling_steps"):
        planned_runs(parse_study(tiny_study_dict, "s"))


def test_the_description_lists_every_cell_of_the_grid_once(tiny_study_dict, n64):
    lines = describe(parse_study(tiny_study_dict, "s")).splitlines()
    for part in ("study tiny: 8 runs", "8 synthetic sets, 4 anchor rows", "8 train, 8 sample, 12 score"):
        assert part in lines[0]
    assert [line.partition(",")[0] for line in lines if " on " in line] == [
        "class_mean on digits: target epsilon 10",
        "class_mean on digits: target epsilon inf",
        "dpdm on digits: target epsilon 10",
        "dpdm on digits: target epsilon inf",
    ]


def test_public_data_are_in_the_description_and_may_not_be_the_private_images(tiny_study_dict, n64):
    start = {"public": "digits", "training": {"dp": {"steps": 1}}}
    del tiny_study_dict["methods"]["dpdm"]["overrides"]
    tiny_study_dict["methods"]["dpdm"]["params"]["init_from"] = [start]
    with refuses("methods.dpdm on digits", "public"):
        planned_runs(parse_study(tiny_study_dict, "s"))
    own = {"source": "npz", "train": "train.npz", "test": "test.npz", "num_classes": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Npz, "meta", lambda _: ImageMeta(64, (1, 8, 8), 10))
        study = parse_study(tiny_study_dict | {"datasets": {"own": own | {"delta": 1e-3}}, "epsilons": [10]}, "s")
        (marked,) = [line for line in describe(study).splitlines() if line.endswith("; uses public data: digits")]
    assert marked.startswith("dpdm on own")


def test_the_description_has_each_share_of_the_budget(tiny_study_dict, n64):
    start = {
        "impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 4.0}, "share": 0.2, "images": 10,
        "training": {"dp": {"steps": 1}},
    }  # fmt: skip
    tiny_study_dict["methods"]["dpdm"]["params"]["init_from"] = [start]
    del tiny_study_dict["methods"]["class_mean"], tiny_study_dict["methods"]["dpdm"]["overrides"]
    lines = [
        line for line in describe(parse_study(tiny_study_dict | {"epsilons": [10]}, "s")).splitlines() if "%" in line
    ]
    assert {line.split(":")[0].strip() for line in lines} == {"init_0.class_sums", "init_0.class_counts", "denoiser"}
    for name in ("RDP", "PRV"):
        parts = [float(re.search(rf"([\d.]+)% of the {name} budget", line)[1]) for line in lines]
        assert sum(parts) == pytest.approx(100, abs=0.2)
        assert min(parts) > 0


def test_sets_outside_a_part_are_neither_counted_nor_checked(tiny_study_dict, n64):
    tiny_study_dict["methods"]["dpdm"]["samplers"]["odd"] = {"kind": "none"}
    with refuses("methods.dpdm.samplers.odd"):
        planned_runs(parse_study(tiny_study_dict, "s"))
    part = parse_study(tiny_study_dict | {"without": "sampler=odd"}, "s")
    assert "8 runs (2 seeds each), 8 synthetic sets" in describe(part).splitlines()[0]


def test_the_numbers_of_seeds_are_those_of_the_runs(tiny_study_dict, n64):
    one = parse_study(tiny_study_dict | {"only": "seed=0"}, "s")
    assert "4 runs (1 seed each)" in describe(one).splitlines()[0]
    tiny_study_dict["methods"]["dpdm"]["seeds"] = [0]
    assert "6 runs (1 to 2 seeds each)" in describe(parse_study(tiny_study_dict, "s")).splitlines()[0]


@pytest.fixture
def classifier():
    """An entry of a study."""
    dp = {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0}
    params = {"network": "logreg", "lr": 1.0, "dp": dp}
    return {"impl": "baselines.dpsgd_classifier:DPSGDClassifier", "kind": "classifier", "params": params}


def test_a_classifier_is_counted_without_synthetic_sets(tiny_study_dict, n64, classifier):
    tiny_study_dict["methods"]["net"] = classifier
    first = describe(parse_study(tiny_study_dict, "s")).splitlines()[0]
    for part in ("study tiny: 12 runs", "8 synthetic sets, 4 trained classifiers, 4 anchor rows"):
        assert part in first
    assert first.endswith("jobs: 12 train, 8 sample, 16 score")
    tiny_study_dict["evaluation"]["fid"] = {}
    first = describe(parse_study(tiny_study_dict, "s")).splitlines()[0]
    assert first.endswith("16 score, 12 score_inception")


def test_an_impl_of_the_other_kind_is_refused(tiny_study_dict, n64, classifier):
    tiny_study_dict["methods"]["net"] = {**classifier, "kind": "generator"}
    tiny_study_dict["methods"]["class_mean"]["kind"] = "classifier"
    with pytest.raises(UserError) as error:
        planned_runs(parse_study(tiny_study_dict, "s"))
    assert sorted(str(error.value).splitlines()) == [
        "impl baselines.class_mean:ClassMean: lacks Model.predict, so it is no classifier; set kind: generator",
        "impl baselines.dpsgd_classifier:DPSGDClassifier: lacks SamplerParams, Model.sample, so it is no generator; "
        "set kind: classifier",
    ]


def test_events_in_words():
    assert describe_events([Event("gaussian", "sums", 2.5, 1.0)], 1e-5)[0] == "sums: Gaussian, noise multiplier 2.5"
    event = Event("poisson_subsampled_gaussian", "net", 1.25, 1.0, 0.25, 30)
    assert describe_events([event], 1e-5)[0] == "net: 30 x Poisson-subsampled Gaussian, q = 0.25, noise multiplier 1.25"


def test_a_ledger_is_compared_with_its_recipe_or_refused(tiny_study_dict, digits64):
    _, ledger = train(parse_study(tiny_study_dict, "s").run("digits", "class_mean", 10.0, 0), digits64, Log())
    assert check_recipe(ledger.to_json(), "l.json")
    assert check_recipe(ledger.to_json(), "l.json", or_without=True)
    ledger.recipe = dict(ledger.recipe) | {"impl": "baselines.gone:Gone"}
    with pytest.raises(UserError, match=r"l\.json: .*baselines\.gone.*recipe.*--without-recipe"):
        check_recipe(ledger.to_json(), "l.json")
    assert not check_recipe(ledger.to_json(), "l.json", or_without=True)


def test_the_departures_of_a_ledger_are_those_of_its_recipe(tiny_study_dict, digits64):
    study = parse_study(tiny_study_dict, "s")
    (run,) = [run for run in study.runs() if (run.method, run.epsilon, run.seed) == ("dpdm", 10.0, 0)]
    _, ledger = train(run, digits64, Log())
    found = run_departures(ledger.to_json(), "l.json").split(", ")
    assert found[:2] == [f"K = {run.params['noise_multiplicity']}", "8 px"]
    _, floor = train(study.run("digits", "class_mean", 10.0, 0), digits64, Log())
    assert run_departures(floor.to_json(), "l.json") == ""


CONFIG = Path(__file__).parents[2] / "config"
SCALES = [f"{CONFIG}/scale/laptop_{name}.yaml" for name in ("guidance", "multiplicity", "parametrisation", "sampler")]
OVERLAYS = [f"{CONFIG}/ablation_{Path(p).stem.removeprefix('laptop_')}.yaml,{p}" for p in SCALES]
OVERLAYS.append(f"{OVERLAYS[1]},{CONFIG}/scale/laptop_multiplicity_compute.yaml")
OVERLAYS.append(f"{CONFIG}/laptop.yaml,{CONFIG}/scale/laptop_headline.yaml")


@pytest.mark.parametrize(
    "path", [*map(str, sorted(CONFIG.glob("*.yaml"))), *OVERLAYS], ids=lambda path: Path(path).stem
)
def test_a_shipped_study_samples_well_or_says_that_it_does_not(path):
    """Where the error of the sampler changes the spread, `scale` says so, or that the recipe is the paper's."""
    study = load_study(path)
    for doubt in doubts(study):
        scale = study.methods[doubt.split(".")[1]].scale or ""
        assert "spread" in scale or scale == "paper", doubt
