"""Wrong keys, paths, values and files: each ends in one sentence that names it, before any compute."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from refusals import holds, refused, refuses

import dpdm
from dpdm.artifacts import write_npz
from dpdm.config import load_study, parse_study
from dpdm.data import read_images
from dpdm.errors import UserError
from dpdm.plan import planned_runs
from dpdm.privacy import Mechanism
from dpdm.processes import joined
from dpdm.sources.mnist import Mnist
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


@pytest.mark.parametrize(
    "value", ["2020-13-45", "2020-01-01 99:00:00", "1" * 5000, "!!int abc", "!!bool abc", "!!timestamp abc", '!!int ""']
)
def test_what_yaml_cannot_read(work, run_cli, value):
    refused(run_cli("train", "study.yaml", RUN, "--set", f"max_image_norm={value}"), "max_image_norm", "YAML")
    (work / "study.yaml").write_text((work / "study.yaml").read_text() + f"attacks: {value}\n")
    lines = len((work / "study.yaml").read_text().splitlines())
    refused(run_cli("spec", "study.yaml", RUN), f"study.yaml, line {lines}", "YAML cannot read")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--cores", "1"], ["--cores", "before"]), (["-c1"], ["-c1", "before"]), (["--cores=1"], ["--cores=1"]),
        (["--configfile", "over.yaml"], ["--configfile", "STUDY,"]), (["--snakefile", "x"], ["--snakefile"]),
        (["--config", "attacks=true"], ["--config", "--only"]), (["-C", "a=b"], ["-C", "--only"]),
    ],
)  # fmt: skip
def test_options_that_run_passes_itself(work, run_cli, words, parts):
    refused(run_cli("run", "study.yaml", "--", *words), *parts)


def test_a_row_that_the_paper_does_not_have_is_refused_before_snakemake_starts(work, run_cli, tiny_study_dict):
    tables = {"table_1": [{"method": "dpdm", "published": "nope"}]}
    (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict | {"tables": tables}))
    refused(run_cli("run", "study.yaml", "-n"), "table_1", "nope")


def test_a_results_folder_in_a_path_with_a_space(work, run_cli, tiny_study_dict):
    folder = work / "with space" / "tiny"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(study_json(parse_study(tiny_study_dict, "s")))
    refused(run_cli("run", "with space/tiny"), "with space", "spaces")


def test_images_of_an_unknown_source(work, run_cli):
    assert run_cli("train", "study.yaml", RUN)[0] == 0
    (work / "results/data/digits/dataset.json").write_text("{}")
    refused(run_cli("train", "study.yaml", RUN, "--again"), "dataset.json", "source")


def test_a_refused_training_makes_no_results_folder(work, run_cli, monkeypatch):
    def damaged(*_):
        raise UserError("a.png cannot be read")

    monkeypatch.setattr("dpdm.jobs.make_missing", damaged)
    refused(run_cli("train", "study.yaml", RUN), "a.png")
    assert not (work / "results").exists()


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
    for nothing in ({}, None):
        study = parse_study({k: v for k, v in tiny_study_dict.items()} | {"only": nothing, "without": {}}, "tiny", True)
        assert (study.runs(), study.part()) == (whole, "")
    for key in ("only", "without"):  # as an unset variable of the shell gives
        with refuses(key, "empty"):
            parse_study(tiny_study_dict | {key: " "}, "tiny")


def test_a_word_without_a_key_is_no_part(tiny_study_dict):
    with refuses("only", "'dpdm'", "method=dpdm"):
        parse_study(tiny_study_dict | {"only": "dpdm"}, "tiny")


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


# --- runs of another recipe, and half runs ------------------------------------------------------------------------


@pytest.fixture
def trained(work, run_cli, tiny_study_dict):
    """The working folder after `train`; other.yaml has the same study with another recipe."""
    assert run_cli("train", "study.yaml", RUN)[0] == 0
    tiny_study_dict["methods"]["class_mean"]["params"]["max_image_norm"] = 0.5
    (work / "other.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    return work / "results" / tiny_study_dict["study"] / "runs/digits/class_mean/eps10/seed0"


@pytest.mark.parametrize("verb", ["sample", "audit"])
def test_a_run_of_another_recipe(trained, run_cli, verb):
    refused(run_cli(verb, "other.yaml", RUN), "ledger.json", RUN, "params.max_image_norm", "4.0", "0.5")
    assert not list(trained.glob("*/synthetic.npz"))
    assert run_cli(verb, "study.yaml", RUN)[0] == 0


def test_a_recipe_that_differs_by_a_null(trained, work, run_cli, tiny_study_dict):
    tiny_study_dict["methods"]["class_mean"]["params"] = {"max_image_norm": 4.0, "teacher": None}
    (work / "null.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    refused(run_cli("sample", "null.yaml", RUN), "params.teacher", "nothing there", "None")


def test_another_model_needs_no_images_of_the_data_set(trained, work, run_cli):
    (trained / "model.pt").rename(work / "mine.pt")
    shutil.rmtree(work / "results/data")
    assert run_cli("sample", "study.yaml", RUN, "--model", "mine.pt", "--out", "drawn")[0] == 0
    assert not (work / "results/data").exists()


def test_a_model_without_its_ledger(trained, run_cli):
    (trained / "ledger.json").unlink()
    refused(run_cli("sample", "study.yaml", RUN), RUN, "ledger.json")


def test_a_ledger_that_was_edited(trained, run_cli):
    path = trained / "ledger.json"
    path.write_text(path.read_text().replace('"num_classes": 10', '"num_classes": 0'))
    refused(run_cli("sample", "study.yaml", RUN), "ledger.json", "seal")


def test_an_edited_ledger_is_not_finished(trained, run_cli):
    whole = (trained / "ledger.json").read_bytes()
    (trained / "ledger.json").write_bytes(whole.replace(b'"num_classes": 10', b'"num_classes": 9'))
    code, said, _ = run_cli("train", "study.yaml", RUN)
    assert (code, "is finished" in said) == (0, False)
    assert json.loads((trained / "ledger.json").read_bytes())["events"] == json.loads(whole)["events"]


@pytest.mark.parametrize("ledger", ["{", None])
def test_a_secret_run_without_its_ledger_is_not_released_again(work, run_cli, ledger):
    words = "train", "study.yaml", RUN, "--noise", "secret", "--out", "own"
    assert run_cli(*words)[0] == 0
    model = (work / "own/model.pt").read_bytes()
    (work / "own/ledger.json").unlink()
    if ledger:
        (work / "own/ledger.json").write_text(ledger)
    refused(run_cli(*words), "own", "ledger.json", "--again")
    assert (work / "own/model.pt").read_bytes() == model
    assert run_cli(*words, "--again")[0] == 0


def test_results_of_a_study_are_no_place_to_write_to(trained, work, run_cli):
    other = RUN.replace("class_mean", "dpdm")
    for words in (
        ("train", "study.yaml", other), ("train", "study.yaml", RUN, "--set", "max_image_norm=1.0"),
        ("sample", "study.yaml", RUN), ("score", "study.yaml", RUN),
    ):  # fmt: skip
        refused(run_cli(*words, "--out", trained), str(trained), "results of a study")
    kept = work / "results/tiny/kept"
    shutil.copytree(trained, kept / "runs/digits/class_mean/eps10/seed0")
    shutil.copy(work / "results/tiny/study.json", kept)
    refused(run_cli("train", "study.yaml", RUN, "--out", kept / "runs/digits/class_mean/eps10/seed0"), "results of")
    for words in (
        ["collect"],
        ["tables"],
        ["figures"],
        ["report"],
        ["paper-table", kept, "1"],
        ["data", kept, "digits", "train.npz"],
    ):
        refused(run_cli(*(words if kept in words else [*words, kept])), "kept results") if words[0] != "data" else None
    assert run_cli("train", "study.yaml", RUN, "--out", trained)[0] == 0  # its own folder


@pytest.mark.parametrize("name", ["study.yaml", "results/tiny/study.json", "results/tiny/runs/x.json"])
def test_an_audit_does_not_replace_what_it_reads(trained, work, run_cli, name):
    for option in ("--out", "--export"):
        refused(run_cli("audit", "study.yaml", RUN, option, name), name)
    refused(run_cli("attack", "study.yaml", RUN, "--out", name), name)
    assert load_study("study.yaml").study == "tiny"


def files(folder):
    """The content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_option_replaces_a_file_of_a_study_its_images_or_another_file(trained, work, run_cli):
    audits = work / "results/tiny/audits/digits/class_mean.json"
    shutil.copytree(work / "results/tiny", work / "results/teachers/kept")
    (work / "results/tiny/metrics.csv").write_text("")
    (work / "mine.json").write_text("{}")
    (work / "list.json").write_text("[1")
    assert run_cli("audit", "study.yaml", "digits/class_mean", "--out", audits)[0] == 0  # as the workflow
    before = files(work)
    for name in (
        "results/tiny/metrics.csv", "results/tiny/audits.json", "results/tiny/tables/x.json", audits,
        "results/teachers/kept/x.json", "results/data/digits/train.npz", "results/data/digits/x.json", "study.yaml",
        "mine.json", "list.json", "Makefile", "results",
    ):  # fmt: skip
        for words in (["audit", "--out"], ["audit", "--export"], ["attack", "--out"]):
            refused(run_cli(words[0], "study.yaml", RUN, words[1], name), name)
        refused(run_cli("attack", "study.yaml", RUN, "--black-box", "--out", name), name)
    kept = "results/teachers/kept"
    for words in (
        ["study.yaml", "digits/class_mean", "--export", audits],
        [kept, "digits/class_mean", "--out", f"{kept}/audits/digits/class_mean.json"],
    ):
        code, _, said = run_cli("audit", *words)
        assert code == 2
        holds(said.splitlines()[-1], words[-1])  # below the number of runs that are left out
    refused(run_cli("audit", "study.yaml", RUN, "--out", "x.json", "--export", "x.json"), "x.json", "twice")
    for place in ("results/data/digits", "results/tiny/mine"):
        for words in (["train"], ["sample"], ["score"]):
            refused(run_cli(*words, "study.yaml", RUN, "--out", place), place)
    assert files(work) == before
    for _ in range(2):  # an audit may replace an audit
        assert run_cli("audit", "study.yaml", RUN, "--out", "x.json", "--export", "y.json")[0] == 0


def test_a_folder_that_cannot_be_written_is_found_before_the_work(trained, work, run_cli, monkeypatch):
    def work_begins(*_, **__):
        raise AssertionError

    assert run_cli("sample", "study.yaml", RUN)[0] == 0
    for name in ("sample", "score", "score_inception", "make_missing"):
        monkeypatch.setattr(f"dpdm.jobs.{name}", work_begins)
    monkeypatch.setattr("dpdm.attacks.white_box.attack", work_begins)
    (work / "Makefile").write_text("all:\n")
    (work / "folder.json").mkdir()
    (work / "out/default/synthetic.npz").mkdir(parents=True)
    (work / "out/nearest.png").mkdir()
    for verb in ("sample", "score"):
        for place in ("Makefile", "out"):
            refused(run_cli(verb, "study.yaml", f"{RUN}/default", "--out", place), "cannot write", place)
    refused(run_cli("score", "study.yaml", f"{RUN}/default", "--inception", "--out", "Makefile"), "Makefile")
    refused(run_cli("attack", "study.yaml", RUN, "--out", "folder.json"), "folder.json")
    refused(run_cli("attack", "study.yaml", RUN, "--out", "Makefile/x.json"), "Makefile")


def test_damaged_facts_of_a_data_set_do_not_hide_another_source(trained, work, run_cli, tiny_study_dict):
    (work / "results/data/digits/dataset.json").write_text("{")
    refused(run_cli("train", "study.yaml", RUN, "--again"), "dataset.json", "delete it")


def test_a_folder_is_run_where_it_is(trained, work, run_cli, monkeypatch):
    called = []
    monkeypatch.setattr("os.execv", lambda _, command: called.append(command), raising=False)
    for folder in ("results/tiny", "moved/tiny"):
        assert run_cli("run", folder, "-n")[0] == 0
        if folder == "results/tiny":
            (work / "results").rename("moved")
    assert "results_dir=moved" in called[1]
    assert not any("results_dir" in word for word in called[0])
    (work / "moved/tiny").rename("moved/other")
    refused(run_cli("run", "moved/other", "-n"), "moved/other", "tiny")


def test_a_damaged_model_is_trained_again(trained, run_cli):
    whole = (trained / "model.pt").read_bytes()
    (trained / "model.pt").write_bytes(whole[:-100])
    assert run_cli("train", "study.yaml", RUN)[0] == 0
    assert (trained / "model.pt").read_bytes() == whole


def test_a_refused_training_leaves_the_folders_as_they_were(trained, work, run_cli):
    change = "init_from=[{public: digits, training: {dp: {steps: 1}}}]"
    refused(run_cli("train", "study.yaml", "digits/dpdm/10/0", "--set", change), "digits", "private")
    assert not list((work / "results").glob("by_hand/*"))
    (work / "own").mkdir()
    refused(run_cli("train", "study.yaml", "digits/dpdm/10/0", "--set", change, "--out", "own"), "private")
    assert (work / "own").is_dir()


# --- a method's own code ------------------------------------------------------------------------------------------


class Faulty:
    """A class of floor with one fault."""

    fault = ""

    def __new__(cls):
        from baselines.class_mean import ClassMean

        class Mine(ClassMean):
            def fit(self, private, params, rng, log):
                model = super().fit(private, params, rng, log)
                log.record(0, loss=math.nan)
                return None if cls.fault == "no model" else model

            def check_sampler(self, params, sampler, meta):
                if cls.fault == "check_sampler":
                    raise ValueError("oh")

            def doubts(self, params, sampler, meta):
                return 3 if cls.fault == "doubts" else ()

        class Drawing(ClassMean.Model):
            def sample(self, labels, sampler, rng):
                images = super().sample(labels, sampler, rng)
                return {"floats": images / 255, "small": images[..., 1:]}.get(cls.fault, images)

        Mine.Model = Drawing
        return Mine()


@pytest.fixture
def faulty(work, tiny_study_dict, monkeypatch):
    """Makes the one method of the study a faulty one."""

    def chosen(fault: str) -> None:
        monkeypatch.setattr(Faulty, "fault", fault)
        method = tiny_study_dict["methods"]["class_mean"] | {"impl": f"{__name__}:Faulty"}
        (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict | {"methods": {"class_mean": method}}))

    return chosen


@pytest.mark.parametrize("fault", ["check_sampler", "doubts"])
def test_a_member_of_a_method_that_fails(faulty, run_cli, fault):
    faulty(fault)
    refused(run_cli("check", "study.yaml"), "methods.class_mean", f"{__name__}:Faulty", fault)


def test_a_fit_that_returns_no_model(trained, faulty, run_cli):
    faulty("no model")
    before = (trained / "model.pt").read_bytes()
    refused(run_cli("train", "study.yaml", RUN), "study.yaml", "methods.class_mean", f"{__name__}:Faulty", "None")
    assert (trained / "model.pt").read_bytes() == before


@pytest.mark.parametrize(("fault", "facts"), [("floats", ["float64", "uint8"]), ("small", ["[1, 8, 7]", "[1, 8, 8]"])])
def test_images_that_a_method_must_not_draw(faulty, run_cli, work, fault, facts):
    faulty("")
    assert run_cli("train", "study.yaml", RUN)[0] == 0
    assert '"loss": null' in next(work.rglob("train.jsonl")).read_text()
    faulty(fault)
    refused(run_cli("sample", "study.yaml", RUN), "methods.class_mean.samplers", f"{__name__}:Faulty", *facts)
    assert not list(work.rglob("synthetic.npz"))


# --- the images of another study ----------------------------------------------------------------------------------


def test_images_of_another_study_are_not_replaced(work, run_cli, tiny_study_dict):
    assert run_cli("train", "study.yaml", RUN)[0] == 0  # makes the images
    images = read_images(work / "results/data/digits/train.npz")
    for split in ("train", "test"):
        write_npz(work / f"{split}.npz", {"images": images.images, "labels": images.labels})
    other = {"source": "npz", "train": "train.npz", "test": "test.npz", "num_classes": 10, "delta": "1/(2n)"}
    for name in ("other", "tiny"):
        changed = tiny_study_dict | {"study": name, "datasets": {"digits": other}}
        (work / f"{name}.yaml").write_text(yaml.safe_dump(changed))
        (work / f"{name}.json").write_text(load_study(f"{name}.yaml").model_dump_json())
    for words in (["validate", "other.json"], ["data", "other.yaml", "digits", "dataset.json"]):
        refused(run_cli(*words), "results/data/digits", "source: digits", "source: npz")
    assert (
        run_cli("validate", "tiny.json")[0] == 0
    )  # an edit of the study that made them: the workflow makes them again


# --- numbers and names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "facts"),
    [
        ("evaluation.synthetic_images", 10**18, ["synthetic_images"]),
        ("methods.class_mean.samplers", {"default": {"tv_weight": 1e39}}, ["tv_weight", "1e+39"]),
        ("methods.class_mean.samplers", {"default": {"tv_wieght": 1.0}}, ["tv_wieght", "'tv_weight'"]),
        ("methods.class_mean.impl", "baselines.class_mean", ["impl", "module:Class", "'baselines.class_mean'"]),
        ("study", "kept", ["'kept'"]),
        ("study", "a" * 101, ["100"]),
        ("evaluation.classifiers", "logreg", ["classifiers", "list", "'logreg'"]),
        ("datasets.digits.delta", "1/n", ["delta", "'1/n'", "'1/(2n)'"]),
        ("datasets.digits.delta", "1e-5", ["delta", "1.0e-5"]),
    ],
)
def test_one_sentence_says_what_to_write(work, run_cli, tiny_study_dict, key, value, facts):
    *parents, last = key.split(".")
    inner = tiny_study_dict
    for name in parents:
        inner = inner[name]
    inner[last] = value
    (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict))
    refused(run_cli("check", "study.yaml"), "study.yaml", *facts)


@pytest.mark.parametrize("path", ["~nobodyhere/x.npz", "a\0b.npz"])
def test_a_path_that_leads_nowhere(work, run_cli, tiny_study_dict, path):
    source = {"source": "npz", "train": path, "test": path, "num_classes": 10, "delta": "1/(2n)"}
    (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict | {"datasets": {"digits": source}}))
    refused(run_cli("check", "study.yaml"), "datasets.digits", repr(path)[1:-1])


def test_an_empty_variable_for_the_data_means_the_default(monkeypatch):
    monkeypatch.setenv("DPDM_DATA_DIR", "")
    assert str(Mnist().folder()) == "data/mnist"


def test_a_recipe_of_a_data_set_that_the_study_lacks(trained, work, run_cli):
    text = run_cli("spec", "study.yaml", RUN)[1].replace('"dataset": "digits"', '"dataset": "digit"')
    (work / "recipe.json").write_text(text)
    refused(run_cli("train", "--spec", "recipe.json"), "'digit'", "digits")


@pytest.mark.parametrize("content", ["{}", '{"study": "tiny", "methods": {}}'])
def test_a_file_without_a_recipe(work, run_cli, content):
    (work / "recipe.json").write_text(content)
    refused(run_cli("train", "--spec", "recipe.json"), "recipe.json", "dpdm spec")


def test_commands_that_are_printed_can_be_pasted(work, run_cli):
    (work / "study.yaml").rename(work / "my study.yaml")
    for verb in ("sample", "audit"):
        said = refused(run_cli(verb, "my study.yaml", RUN), RUN)
        assert shlex.split(re.search(r"`(.*?)`", said)[1]) == ["dpdm", "train", "my study.yaml", RUN]
    with refuses("dpdm train 'my study.yaml'"):
        dpdm.open_results("my study.yaml").run(RUN).epsilon()


def test_tables_that_the_paper_does_not_have(work, run_cli, tiny_study_dict):
    (work / "study.yaml").write_text(yaml.safe_dump(tiny_study_dict | {"tables": {"main": []}}))
    refused(run_cli("tables", "study.yaml", "--partial"), "tables.main", "table_1")


@pytest.mark.parametrize("option", ["--only", "--without"])
def test_an_empty_part(work, run_cli, option):
    refused(run_cli("run", "study.yaml", option, ""), option)


@pytest.mark.parametrize(("change", "facts"), [("noise=secret", ["--noise"]), ("delta=1", ["delta", "params"])])
def test_a_key_of_the_recipe_is_no_parameter(work, run_cli, change, facts):
    refused(run_cli("train", "study.yaml", RUN, "--set", change), f"--set {change}", *facts)


def test_a_study_without_a_run_to_train(work, run_cli):
    refused(run_cli("train", "study.yaml"), "RUN", "DATASET/METHOD/EPSILON/SEED")


@pytest.mark.parametrize(
    ("coordinates", "nearest"),
    [
        ("digits/dpdm/11/0", "digits/dpdm/10/0"), ("digits/dpdm/10/7", "digits/dpdm/10/1"),
        ("digits/dpmd/10/1", "digits/dpdm/10/1"), ("digit/class_means/inf/0", "digits/class_mean/inf/0"),
    ],
)  # fmt: skip
def test_the_nearest_run_is_nearest_part_by_part(work, run_cli, coordinates, nearest):
    assert refused(run_cli("spec", "study.yaml", coordinates), coordinates).endswith(f"the nearest is {nearest}")


def test_a_recipe_file_that_is_not_there(work, run_cli):
    said = refused(run_cli("train", "--spec", "nope.json"), "nope.json", "No such file")
    assert "Errno" not in said


def test_a_study_file_where_its_json_is_wanted(work, run_cli):
    refused(run_cli("validate", "study.yaml"), "study.yaml", "JSON", "dpdm check study.yaml")


@pytest.mark.parametrize("content", ["study,value\n", "", "[]", "\xff"])
def test_a_file_where_the_json_of_a_study_is_wanted(work, run_cli, content):
    (work / "metrics.csv").write_text(content, encoding="latin-1")
    refused(run_cli("validate", "metrics.csv"), "metrics.csv", "study")


def test_what_validate_writes_it_reads(work, run_cli, tiny_study_dict):
    tiny_study_dict["methods"].pop("dpdm")
    (work / "given.json").write_text(parse_study(tiny_study_dict, "tiny").model_dump_json())
    assert run_cli("validate", "given.json") == (0, "", "")
    written = (work / "results/tiny/study.json").read_bytes()
    assert run_cli("validate", "results/tiny/study.json") == (0, "", "")
    assert (work / "results/tiny/study.json").read_bytes() == written
    (work / "given.json").write_bytes(written.replace(b'"version": ', b'"version": 9'))
    refused(run_cli("validate", "given.json"), "given.json", "version 9")


def test_scores_that_are_not_there(work, run_cli):
    refused(run_cli("collect", "study.yaml"), "results/tiny", "no score", "no audit")
    assert not (work / "results").exists()


@pytest.mark.parametrize(
    "content", [b"\xff", b"rule\nx\n", b"machine,rule,method,jobs,seconds,max_rss_mb\na,b,c,x,1,1\n"]
)
def test_times_of_kept_jobs_that_cannot_be_read(work, content):
    from dpdm.cli.estimate import read_kept

    (work / "s/kept").mkdir(parents=True)
    (work / "s/kept/jobs.csv").write_bytes(content)
    with refuses("jobs.csv", "damaged"):
        list(read_kept(work))


@pytest.mark.parametrize("content", [b"\xff", b"s\tmax_rss\twildcards\n1\t1\t{oops\n", b"s\tmax_rss\nlong\t1\n"])
def test_times_of_jobs_that_cannot_be_read(work, tiny_study_dict, content):
    from dpdm.report.collect import read_benchmarks

    (work / "x.tsv").write_bytes(content)
    with refuses("x.tsv", "damaged"):
        read_benchmarks(work, parse_study(tiny_study_dict, "tiny"))


def test_restored_times_keep_rows_without_a_method_or_memory(work, tiny_study_dict):
    from dpdm.layout import Layout
    from dpdm.report.collect import JOB_KEYS, TIMES, job_times

    lines = [",".join((*JOB_KEYS, *TIMES)), "cpu,prepare,digits,,1,2.5,2.5,", "cpu,train,digits,dpdm,3,6.0,2.5,100.0"]
    (work / "tiny").mkdir()
    (work / "tiny/jobs.csv").write_text("\n".join(lines) + "\n")
    jobs, clock = job_times(Layout(".", "tiny"), parse_study(tiny_study_dict, "tiny"))
    assert math.isnan(clock)
    assert jobs[["rule", "method", "jobs", "seconds"]].to_numpy().tolist() == [
        ["prepare", "", 1, 2.5], ["train", "dpdm", 3, 6.0]
    ]  # fmt: skip
    assert jobs["max_rss_mb"].isna().tolist() == [True, False]
    assert jobs["jobs"].dtype == int
    (work / "tiny/jobs.csv").write_text(lines[0] + "\ncpu,train,digits,dpdm,3,long,2.5,1\n")
    with refuses("jobs.csv", "damaged"):
        job_times(Layout(".", "tiny"), parse_study(tiny_study_dict, "tiny"))


def test_too_many_threads(work, run_cli):
    code, _, said = run_cli("check", "study.yaml", "--threads", 10**21)
    assert code == 2
    assert "--threads" in said
