"""The command line: verbs make their artifacts byte for byte alike, and mistakes end in one `error:` and status 2."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from dpdm import artifacts, data
from dpdm.config import load_study, parse_study
from dpdm.evaluation import inception
from dpdm.method import load_method, prepare_run
from dpdm.privacy import Ledger, calibrate, epsilon_spent
from dpdm.privacy.audit import audit
from dpdm.privacy.ledger import _seal
from dpdm.sources.digits import Digits
from dpdm.specs import epsilon_text, spec_json

VERBS = [
    "schema", "check", "validate", "prepare", "label_only", "train", "audit", "attack", "sample", "extractor",
    "reference", "score", "score_inception", "score_classifier", "collect", "tables", "paper_table", "figures",
    "comparison", "report",
]  # fmt: skip


@pytest.fixture
def study(tiny_study_dict):
    return parse_study(tiny_study_dict, "tiny")


@pytest.fixture
def study_file(tmp_path, tiny_study_dict):
    """Writes the tiny study, changed by the test, and returns its path."""

    def write(study=tiny_study_dict) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    return write


@pytest.fixture
def prepared(tmp_path, digits64) -> Path:
    """A folder with train.npz and dataset.json of 64 digits."""
    data.write_images(tmp_path / "train.npz", digits64)
    facts = Digits().facts({"train": digits64})
    artifacts.write_json(tmp_path / "dataset.json", facts)
    return tmp_path


@pytest.fixture
def train(run_cli, prepared, study):
    """`train(method, folder, ...)` runs the verb; returns (code, stdout, stderr)."""

    def run(method="class_mean", folder="run", epsilon=10.0, seed=0, spec=None, train="train.npz"):
        spec = spec or study.run("digits", method, epsilon, seed)
        out = prepared / folder
        return run_cli(
            "train", "--spec", spec_json(spec), "--data", prepared / train, "--model", out / "model.pt",
            "--ledger", out / "ledger.json", "--curve", out / "train.jsonl",
        )  # fmt: skip

    return run


@pytest.fixture
def sample(run_cli, prepared, study):
    """`sample(method, folder, ...)` runs the verb; returns (code, stdout, stderr)."""

    def run(method="class_mean", folder="run", epsilon=10.0, seed=0):
        spec = study.sample(study.run("digits", method, epsilon, seed), "default")
        return run_cli(
            "sample", "--spec", spec_json(spec), "--model", prepared / folder / "model.pt",
            "--dataset", prepared / "dataset.json", "--out", prepared / folder / "synthetic.npz",
        )  # fmt: skip

    return run


def only_error(result: tuple[int, str, str]) -> str:
    """The message of a run that failed as the user should see it."""
    code, _, stderr = result
    assert code == 2
    assert "Traceback" not in stderr
    assert stderr.count("error: ") == 1
    assert stderr.startswith("error: ")
    return stderr


def write_sealed(path: Path, ledger: dict) -> Path:
    """Writes a ledger with the seal that fits it, as a determined cheat would."""
    facts = {key: value for key, value in ledger.items() if key != "seal"}
    artifacts.write_json(path, facts | {"seal": _seal(facts)})
    return path


# --- FID ------------------------------------------------------------------------------------------------------


@pytest.fixture
def fid_study(tiny_study_dict, inception_weights):
    """The tiny study, which asks for the FID with random weights."""
    tiny_study_dict["evaluation"]["fid"] = {"weights_path": str(inception_weights)}
    return parse_study(tiny_study_dict, "tiny")


def test_validate_finds_missing_weights_before_any_run(run_cli, tmp_path, tiny_study_dict, monkeypatch):
    def urlopen(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for asked, part in (
        ({}, "put weights-inception-2015-12-05-6726825d.pth into "),
        ({"weights_path": "x"}, "file x;"),
    ):
        tiny_study_dict["evaluation"]["fid"] = asked
        spec = spec_json(parse_study(tiny_study_dict, "tiny"))
        message = only_error(run_cli("validate", "--spec", spec, "--out", tmp_path / "study.json"))
        assert part in message
        assert message.count("\n") == 1
        assert not (tmp_path / "study.json").exists()


def test_validate_warns_of_weights_that_are_not_torch_fidelity_s(run_cli, fid_study, inception_weights, monkeypatch):
    code, _, stderr = run_cli("validate", "--spec", spec_json(fid_study))
    assert code == 0
    assert stderr.startswith(f"warning: {inception_weights} is not the file that torch-fidelity publishes")
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", inception.load_inception(inception_weights).weights_sha256)
    assert run_cli("validate", "--spec", spec_json(fid_study)) == (0, "", "")


def test_validate_reads_the_weights(run_cli, tmp_path, tiny_study_dict):
    (tmp_path / "page.pth").write_text("<html>")
    tiny_study_dict["evaluation"]["fid"] = {"weights_path": str(tmp_path / "page.pth")}
    message = only_error(run_cli("validate", "--spec", spec_json(parse_study(tiny_study_dict, "tiny"))))
    assert "page.pth does not hold the weights of torch-fidelity's Inception" in message


@pytest.mark.slow
def test_the_fid_has_a_file_of_its_own_beside_the_other_scores(run_cli, tmp_path, digits64, fid_study, monkeypatch):
    monkeypatch.setattr(inception, "LAYER", "64")  # the whole network takes minutes
    few = data.ImageSet(digits64.images[:20], digits64.labels[:20], 10, "few")
    drawn_by = fid_study.sample(fid_study.runs()[0], "default")
    images = tmp_path / "images.npz"
    data.write_images(images, dataclasses.replace(few, drawn_by=spec_json(drawn_by)))
    sides = ["--train", images, "--test", images]
    assert run_cli("extractor", *sides, "--out", tmp_path / "extractor.pt")[0] == 0
    spec = spec_json(fid_study.evaluation.fid)
    assert run_cli("reference", "--spec", spec, *sides, "--out", tmp_path / "inception.npz")[0] == 0
    anchor = fid_study.anchor_coordinates()[0]
    files = [tmp_path / f"{name}.json" for name in ("fidelity", "utility", "inception")]
    more = ["--extractor", tmp_path / "extractor.pt", "--fidelity", files[0], "--utility", files[1]]
    assert run_cli("score", "--spec", spec_json(fid_study.score(anchor)), "--synthetic", images, *sides, *more)[0] == 0
    more = ["--reference", tmp_path / "inception.npz", "--out", files[2]]
    spec = spec_json(fid_study.score_inception(anchor))
    assert run_cli("score_inception", "--spec", spec, "--synthetic", images, *more)[0] == 0

    fidelity, utility, by_inception = map(artifacts.read_json, files)
    shared = {"coordinates", "provenance", "num_synthetic", "drawn_by"}
    assert [set(file) - shared for file in (fidelity, utility, by_inception)] == [
        {"extractor", "metrics"}, {"protocol", "metrics"}, {"inception", "metrics"}
    ]  # fmt: skip
    for file in (fidelity, utility):
        assert {key: file[key] for key in shared} == {key: by_inception[key] for key in shared}
    assert by_inception["drawn_by"] == drawn_by.model_dump(mode="json")
    assert not [row for row in fidelity["metrics"] if not row["metric"].endswith("_digits")]
    names = ["fid", "kid_inception", "precision_inception", "recall_inception"]
    found = [(row["metric"], row["reference"]) for row in by_inception["metrics"]]
    assert found == [(name, side) for side in ("train", "test") for name in names]
    assert by_inception["metrics"][0]["value"] == pytest.approx(0, abs=1e-5)
    assert by_inception["inception"]["n"] == {"train": 20, "test": 20}


# --- train, audit, sample -------------------------------------------------------------------------------------


def test_train_audit_and_sample_make_their_artifacts(run_cli, prepared, train, sample, study):
    assert train()[0] == 0
    folder = prepared / "run"
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.json", "model.pt", "train.jsonl"]
    state = artifacts.read_tensors(folder / "model.pt")
    assert set(state) == {"impl", "state"}
    assert state["impl"] == "baselines.class_mean:ClassMean"
    ledger = Ledger.from_json(artifacts.read_json(folder / "ledger.json"))
    assert ledger.n == 64
    assert [event.name for event in ledger.events] == ["class_counts", "class_sums"]

    code, stdout, _ = run_cli("audit", folder / "ledger.json", "--out", folder / "audit.json")
    assert code == 0
    assert stdout.startswith("passed  target epsilon 10.0, spent ")
    (row,) = artifacts.read_json(folder / "audit.json")["runs"]
    assert row["passed"] is True
    assert 9.9 < row["epsilon_rdp"] <= 10
    assert 0.8 * row["epsilon_rdp"] < row["epsilon_pld"] < row["epsilon_prv"] * 1.003 < row["epsilon_rdp"]
    for name in ("rdp", "prv", "pld"):
        assert row[f"epsilon_{name}"] == epsilon_spent(ledger.events, ledger.delta, name)
        assert f"{row[f'epsilon_{name}']:.4f} ({name.upper()})" in stdout
    assert row["recipe_checked"] is True
    assert row["coordinates"] == study.run("digits", "class_mean", 10.0, 0).coordinates().model_dump(mode="json")

    assert sample()[0] == 0
    synthetic = data.read_images(folder / "synthetic.npz")
    assert synthetic.meta == data.ImageMeta(20, (1, 8, 8), 10)
    assert np.array_equal(synthetic.labels, data.balanced_labels(20, 10))
    assert json.loads(synthetic.drawn_by) == study.sample(
        study.run("digits", "class_mean", 10.0, 0), "default"
    ).model_dump(mode="json")


@pytest.mark.parametrize("method", ["class_mean", "dpdm"])
def test_the_same_spec_twice_gives_the_same_bytes(prepared, train, sample, method):
    for folder in ("one", "two"):
        assert train(method, folder)[0] == 0
        assert sample(method, folder)[0] == 0
    for name in ("model.pt", "ledger.json", "synthetic.npz"):
        assert (prepared / "one" / name).read_bytes() == (prepared / "two" / name).read_bytes(), name


@pytest.mark.parametrize("gpu", [False, True])
def test_a_model_of_networks_samples_on_the_gpu_where_there_is_one(prepared, train, sample, monkeypatch, gpu):
    assert train("dpdm")[0] == 0
    went_to = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("dpdm.diffusion.method.Model.to", lambda model, device: went_to.append(device))
    assert sample("dpdm")[0] == 0
    assert went_to == ["cuda" if gpu else "cpu"]


def test_another_seed_gives_another_model_and_other_samples(prepared, train, sample):
    for seed in (0, 1):
        assert train(folder=f"seed{seed}", seed=seed)[0] == 0
        assert sample(folder=f"seed{seed}", seed=seed)[0] == 0
    for name in ("model.pt", "synthetic.npz"):
        assert (prepared / "seed0" / name).read_bytes() != (prepared / "seed1" / name).read_bytes()


def test_training_rows_hold_no_private_loss(prepared, train):
    train("dpdm")
    rows = artifacts.read_jsonl(prepared / "run" / "train.jsonl")
    assert rows
    assert not any("loss" in key for row in rows for key in row)


def test_without_noise_the_audit_says_infinity_and_passes(run_cli, prepared, train):
    assert train(epsilon=float("inf"))[0] == 0
    code, stdout, _ = run_cli("audit", prepared / "run" / "ledger.json")
    assert code == 0
    assert stdout.startswith("passed  target epsilon inf, spent inf (RDP), inf (PRV), inf (PLD)")


# --- score_classifier -----------------------------------------------------------------------------------------


@pytest.fixture
def classifier_study(tiny_study_dict):
    """The tiny study with a classifier."""
    dp = {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0}
    tiny_study_dict["methods"]["net"] = {
        "impl": "baselines.dpsgd_classifier:DPSGDClassifier", "kind": "classifier",
        "params": {"network": "mlp", "lr": 1.0, "dp": dp},
    }  # fmt: skip
    return parse_study(tiny_study_dict, "tiny")


@pytest.fixture
def score_classifier(run_cli, prepared, classifier_study):
    """`score_classifier(method, folder)` runs the verb; returns (code, stdout, stderr)."""

    def run(method="net", folder="run"):
        spec = classifier_study.score_classifier(classifier_study.run("digits", method, 10.0, 0))
        return run_cli(
            "score_classifier", "--spec", spec_json(spec), "--model", prepared / folder / "model.pt",
            "--test", prepared / "train.npz", "--utility", prepared / folder / "utility.json",
        )  # fmt: skip

    return run


def test_a_classifier_is_trained_and_scored_without_images(
    prepared, train, score_classifier, classifier_study, digits64
):
    spec = classifier_study.run("digits", "net", 10.0, 0)
    for folder in ("run", "again"):
        assert train(spec=spec, folder=folder)[0] == 0
        assert score_classifier(folder=folder)[0] == 0
    assert (prepared / "run" / "utility.json").read_bytes() == (prepared / "again" / "utility.json").read_bytes()
    content = artifacts.read_json(prepared / "run" / "utility.json")
    assert content["coordinates"] == spec.coordinates().model_dump(mode="json")
    assert (content["num_synthetic"], content["protocol"]) == (0, "direct")
    (row,) = content["metrics"]
    assert (row["metric"], row["reference"]) == ("acc_mlp", "test")
    state = artifacts.read_tensors(prepared / "run" / "model.pt")["state"]
    predicted = load_method(spec.impl).Model.from_state(state).predict(digits64.images)
    assert row["value"] == 100 * float((predicted == digits64.labels).mean())


def test_a_generator_is_no_classifier_to_score(prepared, train, score_classifier):
    train("class_mean")
    message = only_error(score_classifier("class_mean"))
    assert "baselines.class_mean:ClassMean: lacks Model.predict, so it is no classifier; set kind: generator" in message
    assert "was made by baselines.class_mean:ClassMean, not by baselines.dpsgd_classifier" in only_error(
        score_classifier()
    )
    assert not (prepared / "run" / "utility.json").exists()


# --- refusals of train, sample, audit -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + b"\0" * 9 + b[209:]])
def test_train_names_a_corrupt_npz(prepared, train, damage):
    path = prepared / "train.npz"
    path.write_bytes(damage(path.read_bytes()))
    assert str(path) in only_error(train())
    assert not (prepared / "run").exists()


def test_train_names_a_missing_npz(prepared, train):
    assert str(prepared / "nowhere.npz") in only_error(train(train="nowhere.npz"))


def test_train_refuses_a_budget_or_batch_the_data_cannot_meet(prepared, train, study):
    run = study.run("digits", "dpdm", 10.0, 0)
    dp = run.params["dp"] | {"expected_batch_size": 65}
    too_large = run.model_copy(update={"params": run.params | {"dp": dp}})
    assert "expected_batch_size = 65 is larger than the 64 training images" in only_error(train(spec=too_large))
    assert "is not below 1/n" in only_error(train(spec=run.model_copy(update={"delta": 0.1})))


def test_a_spec_that_is_none(run_cli, tmp_path):
    paths = [part for name in ("data", "model", "ledger", "curve") for part in (f"--{name}", tmp_path / name)]
    message = only_error(run_cli("train", "--spec", '{"study": "a"}', *paths))
    assert "--spec: dataset: missing key" in message


def test_an_output_that_cannot_be_written(prepared, train):
    (prepared / "file").write_text("")
    assert "cannot write" in only_error(train(folder="file"))


def test_sample_refuses_the_model_of_another_method(prepared, train, sample):
    train("class_mean")
    message = only_error(sample("dpdm"))
    assert "was made by baselines.class_mean:ClassMean, not by dpdm.diffusion.method:DPDM" in message
    assert not (prepared / "run" / "synthetic.npz").exists()


def test_sample_names_a_model_that_an_edit_of_the_code_has_left_behind(prepared, train, sample):
    train("dpdm")
    path = prepared / "run" / "model.pt"
    saved = artifacts.read_tensors(path)
    _, dropped = saved["state"]["weights"].popitem()
    assert dropped is not None
    artifacts.write_tensors(path, saved)
    message = only_error(sample("dpdm"))
    assert f"{path} does not fit the code of dpdm.diffusion.method:DPDM as it is now" in message
    assert "--forcerun train" in message


def test_sample_names_a_corrupt_model(prepared, train, sample):
    train()
    path = prepared / "run" / "model.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in only_error(sample())


@pytest.fixture
def ledger(tmp_path, study) -> dict:
    """A ledger of DP-SGD that just meets epsilon = 10, as JSON, also written to good.json."""
    run = study.run("digits", "dpdm", 10.0, 0)
    _, _, plan, budget = prepare_run(run, data.ImageMeta(64, (1, 8, 8), 10))
    scale = calibrate(plan, budget, "rdp")
    out = Ledger(
        64, budget.delta, 10.0, "rdp", run.coordinates().model_dump(mode="json"), run.model_dump(mode="json"),
        shape=(1, 8, 8), num_classes=10,
        events=[mechanism.event(scale) for mechanism in plan],
    )  # fmt: skip
    artifacts.write_json(tmp_path / "good.json", out.to_json())
    return out.to_json()


def test_audit_refuses_a_ledger_that_was_edited(run_cli, tmp_path, ledger):
    path = tmp_path / "edited.json"
    event = ledger["events"][0]
    for change in ({"noise_multiplier": event["noise_multiplier"] * 9}, {"steps": 1}, {"sample_rate": 0.01}):
        artifacts.write_json(path, ledger | {"events": [event | change]})
        message = only_error(run_cli("audit", path, "--out", tmp_path / "audit.json"))
        assert f"{path} was changed after it was written" in message
    artifacts.write_json(path, ledger | {"target_epsilon": 100.0})
    only_error(run_cli("audit", path))
    assert not (tmp_path / "audit.json").exists()


def test_audit_fails_above_the_target_however_well_sealed(run_cli, tmp_path, ledger):
    event = ledger["events"][0]
    for change in ({"noise_multiplier": event["noise_multiplier"] * 0.8}, {"steps": 20}, {"noise_multiplier": 0}):
        path = write_sealed(tmp_path / "resealed.json", ledger | {"events": [event | change]})
        code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
        assert stdout.startswith("FAILED")
        assert f"epsilon is above its target in {path}" in only_error((code, stdout, stderr))
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"steps": 1}, ("'denoiser'", "steps = 1", "2")),
        ({"sample_rate": 0.125}, ("'denoiser'", "sample_rate = 0.125", "0.25")),
        ({"sensitivity": 0.5}, ("'denoiser'", "sensitivity = 0.5", "1.0")),
        ({"noise_multiplier": 99.0}, ("'denoiser'", "noise_multiplier = 99.0")),
        ({"name": "other"}, ("events = ['other']", "['denoiser']")),
        (None, ("events = []", "['denoiser']")),
    ],
    ids=str,
)
def test_audit_compares_the_events_with_the_recipe_however_well_sealed(run_cli, tmp_path, ledger, change, parts):
    """Each of these costs less than the target: the accountants alone would let them pass."""
    events = [] if change is None else [ledger["events"][0] | change]
    path = write_sealed(tmp_path / "resealed.json", ledger | {"events": events})
    assert audit(artifacts.read_json(path), "l")["passed"]
    code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
    assert stdout.startswith("FAILED")
    message = only_error((code, stdout, stderr))
    assert all(part in message for part in (str(path), *parts))
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize("key", ["target_epsilon", "delta", "accountant", "recipe"])
def test_audit_compares_the_budget_with_the_recipe(run_cli, tmp_path, ledger, key):
    change = {"target_epsilon": 20.0, "delta": 1 / 100, "accountant": "prv", "recipe": {}}[key]
    path = write_sealed(tmp_path / "resealed.json", ledger | {key: change})
    message = only_error(run_cli("audit", path))
    assert str(path) in message
    assert key in message


@pytest.mark.parametrize("impl", ["somewhere.else:Method", "dpdm.diffusion.method:Else", "dpdm.rng:Streams"])
def test_audit_fails_where_the_method_is_not_here(run_cli, tmp_path, ledger, impl):
    """One changed word must not turn the comparison off: unasked, nothing passes without it."""
    events = [event | {"noise_multiplier": 99.0} for event in ledger["events"]]
    path = write_sealed(
        tmp_path / "foreign.json", ledger | {"recipe": ledger["recipe"] | {"impl": impl}, "events": events}
    )
    code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
    assert re.match(r"FAILED .*NOT compared with the recipe", stdout)
    message = only_error((code, stdout, stderr))
    assert all(part in message for part in (str(path), f"impl {impl}", "--without-recipe"))
    assert message.count("\n") == 1
    assert not (tmp_path / "audit.json").exists()

    code, stdout, _ = run_cli("audit", path, "--without-recipe", "--out", tmp_path / "audit.json")
    assert code == 0
    assert re.match(r"passed .*NOT compared with the recipe", stdout)
    (row,) = artifacts.read_json(tmp_path / "audit.json")["runs"]
    assert (row["passed"], row["recipe_checked"]) == (True, False)


def test_audit_without_recipe_still_compares_where_the_method_is_here(run_cli, tmp_path, ledger):
    event = ledger["events"][0]
    path = write_sealed(tmp_path / "resealed.json", ledger | {"events": [event | {"noise_multiplier": 99.0}]})
    code, stdout, stderr = run_cli("audit", path, "--without-recipe")
    assert stdout.startswith("FAILED")
    assert "noise_multiplier = 99.0" in only_error((code, stdout, stderr))
    path = write_sealed(
        tmp_path / "resealed.json",
        ledger | {"recipe": ledger["recipe"] | {"impl": "no.where:X"}, "events": [event | {"noise_multiplier": 0.1}]},
    )
    assert "above its target" in only_error(run_cli("audit", path, "--without-recipe"))
    assert "NOT compared" not in run_cli("audit", tmp_path / "good.json", "--without-recipe")[1]


def test_audit_of_an_older_ledger_says_so(run_cli, tmp_path, ledger):
    old = {key: item for key, item in ledger.items() if key not in ("version", "shape", "num_classes", "noise")}
    path = write_sealed(tmp_path / "old.json", old | {"neighbouring_relation": "add_or_remove_one"})
    message = only_error(run_cli("audit", path))
    assert all(part in message for part in (str(path), "version", "add_or_remove_one", "train the run again"))


def test_audit_of_several_names_the_ones_that_fail(run_cli, tmp_path, ledger):
    good = tmp_path / "good.json"
    bad = write_sealed(tmp_path / "bad.json", ledger | {"target_epsilon": 1.0})
    code, stdout, stderr = run_cli("audit", good, bad)
    assert [line.split()[0] for line in stdout.splitlines()] == ["passed", "FAILED"]
    message = only_error((code, stdout, stderr))
    assert str(bad) in message
    assert str(good) not in message


@pytest.mark.parametrize(
    "change",
    [
        {"events": [{"mechanism": "laplace"}]}, {"events": None}, {"events": [3]}, {"n": "many"}, {"extra": 1},
        {"delta": "1e-5"}, {"target_epsilon": None}, {"accountant": "moments"},
    ],
    ids=str,
)  # fmt: skip
def test_audit_refuses_what_is_no_ledger(run_cli, tmp_path, ledger, change):
    path = write_sealed(tmp_path / "odd.json", ledger | change)
    assert str(path) in only_error(run_cli("audit", path))


def test_audit_names_what_is_no_json(run_cli, tmp_path):
    (tmp_path / "ledger.json").write_text("{")
    assert str(tmp_path / "ledger.json") in only_error(run_cli("audit", tmp_path / "ledger.json"))


# --- check, validate, prepare, label_only, schema -------------------------------------------------------------


def test_check_lists_the_runs_of_the_default_study(run_cli):
    path = Path(__file__).parents[2] / "config" / "digits.yaml"
    study = load_study(path)
    code, stdout, stderr = run_cli("check", path)
    assert (code, stderr) == (0, "")
    assert stdout.startswith(f"study digits: {len(study.runs())} runs")
    for run in study.runs():
        head = f"^{run.method} on digits: target epsilon {epsilon_text(run.epsilon)}, expected "
        (found,) = re.finditer(head + r"(\S+) \(RDP\), (\S+) \(PRV\), (\S+) \(PLD\).*\n(.*)", stdout, re.MULTILINE)
        assert 0.99 * run.epsilon <= float(found[1]) <= run.epsilon
        assert all(0.5 * run.epsilon <= float(found[i]) <= run.epsilon for i in (2, 3))
        noise = float(re.search(r"noise multiplier (\S+)$", found[4])[1])
        assert (noise == 0) == math.isinf(run.epsilon)
        if "dp" in run.params:
            assert f"{run.params['dp']['steps']} x Poisson-subsampled Gaussian" in found[4]


@pytest.mark.parametrize(
    ("method", "change", "part"),
    [
        ("class_mean", {"impl": "baselines.class_mean:ClassMeen"}, "has no ClassMeen"),
        ("class_mean", {"impl": "baselines.nowhere:X"}, "cannot import baselines.nowhere"),
        ("class_mean", {"params": {"max_image_nrm": 4.0}}, "params: max_image_nrm: unknown key; did you mean"),
        ("class_mean", {"parms": {}}, "methods.class_mean.parms: unknown key; did you mean 'params'?"),
        ("class_mean", {"samplers": {"default": {"pixel_noise": -1.0}}}, "samplers.default: pixel_noise: "),
    ],
)
def test_check_and_validate_refuse_a_wrong_method(run_cli, study_file, tiny_study_dict, method, change, part):
    tiny_study_dict["methods"] = {method: tiny_study_dict["methods"][method] | change}
    assert part in only_error(run_cli("check", study_file()))
    out = study_file().parent / "study.json"
    spec = json.dumps(tiny_study_dict).replace("Infinity", '"inf"')
    assert part in only_error(run_cli("validate", "--spec", spec, "--out", out))
    assert not out.exists()


def test_check_refuses_a_batch_larger_than_the_data(run_cli, study_file, tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["params"]["dp"]["expected_batch_size"] = 1438
    message = only_error(run_cli("check", study_file()))
    assert "methods.dpdm on digits: expected_batch_size = 1438 is larger than the 1437 training images" in message


def test_check_names_a_missing_study(run_cli, tmp_path):
    assert str(tmp_path / "none.yaml") in only_error(run_cli("check", tmp_path / "none.yaml"))


def test_validate_writes_the_resolved_study(run_cli, tmp_path, study):
    assert run_cli("validate", "--spec", spec_json(study), "--out", tmp_path / "study.json")[0] == 0
    assert parse_study(artifacts.read_json(tmp_path / "study.json"), "written") == study


def test_prepare_and_label_only(run_cli, tmp_path):
    assert run_cli("prepare", "--spec", '{"source": "digits"}', "--out", tmp_path)[0] == 0
    facts = artifacts.read_json(tmp_path / "dataset.json")
    for split in ("train", "test"):
        assert data.read_images(tmp_path / f"{split}.npz").digest() == facts["sha256"][split]
    arguments = ["--dataset", tmp_path / "dataset.json", "--images", 30, "--out", tmp_path / "noise.npz"]
    assert run_cli("label_only", *arguments)[0] == 0
    assert data.read_images(tmp_path / "noise.npz").meta == data.ImageMeta(30, (1, 8, 8), 10)


def test_prepare_names_missing_files(run_cli, tmp_path, monkeypatch):
    def urlopen(*_, **__):
        raise OSError

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    spec = json.dumps({"source": "mnist", "data_dir": str(tmp_path / "mnist")})
    message = only_error(run_cli("prepare", "--spec", spec, "--out", tmp_path / "out"))
    assert message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_schema_is_json(run_cli):
    code, stdout, _ = run_cli("schema")
    schema = json.loads(stdout)
    assert code == 0
    assert schema["additionalProperties"] is False
    assert {"datasets", "epsilons", "methods", "study"} <= set(schema["properties"])


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["train"], ["check"], ["check", "a", "--threads", "two"]])
def test_a_wrong_call_prints_the_usage(run_cli, arguments):
    code, _, stderr = run_cli(*arguments)
    assert code == 2
    assert stderr.startswith("usage: python -m dpdm")


def test_help_lists_every_verb(run_cli):
    code, stdout, _ = run_cli("--help")
    assert code == 0
    listed = [line.split()[0] for line in stdout.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == VERBS


# --- another process ------------------------------------------------------------------------------------------


def test_a_mistake_in_another_process(run_python, tmp_path):
    done = run_python("-m", "dpdm", "check", tmp_path / "none.yaml")
    only_error((done.returncode, done.stdout, done.stderr))
    assert done.stderr.count("\n") == 1


def test_bytes_do_not_depend_on_the_process(run_python, prepared, train, study):
    """What one process made, another makes again: no state, hash seed or import order in an artifact."""
    assert train()[0] == 0
    out = prepared / "again"
    done = run_python(
        "-m", "dpdm", "train", "--spec", spec_json(study.run("digits", "class_mean", 10.0, 0)),
        "--data", prepared / "train.npz", "--model", out / "model.pt", "--ledger", out / "ledger.json",
        "--curve", out / "train.jsonl",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "model.pt").read_bytes() == (prepared / "run" / "model.pt").read_bytes()
    ledgers = [artifacts.read_json(folder / "ledger.json") for folder in (out, prepared / "run")]
    # Provenance is read from the tree, which somebody may be editing while tests run.
    assert ledgers[0] | {"provenance": 0, "seal": 0} == ledgers[1] | {"provenance": 0, "seal": 0}


def test_schema_needs_no_numerical_library_but_numpy(run_python):
    code = "import sys; from dpdm.__main__ import main; main(['schema']); sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["study", "--ledgers"]),
        (["STUDY", "--ledgers", "x.json"], ["study", "--ledgers"]),
        (["STUDY", "digits/class_mean/3/0"], ["digits/class_mean/3/0", "DATASET/METHOD/EPSILON/SEED"]),
        (["STUDY", "digits/class_mean/10/0"], ["cannot read", "runs/digits/class_mean/eps10/seed0/ledger.json"]),
        (["STUDY", "digits/class_mean/10/0", "--black-box"], ["cannot read", "data/digits/train.npz"]),
    ],
)
def test_an_attack_without_what_it_needs_is_refused(run_cli, tmp_path, tiny_study_dict, arguments, parts):
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(tiny_study_dict | {"results_dir": str(tmp_path)}))
    code, _, stderr = run_cli("attack", *[str(study) if a == "STUDY" else a for a in arguments])
    assert code == 2
    assert [part for part in parts if part not in stderr] == []


def test_an_attack_above_its_target_is_written_and_fails(run_cli, tmp_path, monkeypatch):
    found = {
        "attack": {"epsilon": 3.0, "certified": 3.0, "method": "one_run", "confidence": 0.95, "runs": 1, "canaries": 9,
                   "exceeded": True},
        "coordinates": {"dataset": "digits", "method": "m", "epsilon": 1.0}, "target_epsilon": 1.0, "delta": 1e-5,
    }  # fmt: skip
    monkeypatch.setattr("dpdm.attacks.white_box.attack", lambda *_: found)
    (tmp_path / "ledger.json").write_text("{}")
    code, stdout, stderr = run_cli("attack", "--ledgers", tmp_path / "ledger.json", "--out", tmp_path / "out.json")
    assert code == 2
    assert "BROKEN" in stdout
    assert "digits/m/1" in stderr
    assert artifacts.read_json(tmp_path / "out.json") == {"attacks": [found]}
