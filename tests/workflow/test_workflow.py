"""The workflow as its user meets it: what runs, what runs again, what is left after a kill, what a mistake says."""

import csv
import html
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from dpdm.cli.studies import TARGETS

pytestmark = pytest.mark.slow

REPORTING = {
    "collect all scores and audits", "tables", "figure digits_curves", "figure digits_samples", "report"
}  # fmt: skip
RUN = "results/tiny/runs/digits/{method}/eps{epsilon}/seed{seed}"
CLASSIFIER = "dpsgd_logreg"
DPDM = RUN.format(method="dpdm", epsilon="10", seed=0)


def run_jobs(verb: str, methods, epsilons=("10", "inf"), seeds=(0,), sampler: str = "") -> set[str]:
    """What the terminal shows for one kind of job."""
    return {
        f"{verb} {method} on digits, epsilon {epsilon}, seed {seed}{sampler}"
        for method in methods
        for epsilon in epsilons
        for seed in seeds
    }


def set_jobs(methods, **grid) -> set[str]:
    """Sampling and scoring of a method's runs; a classifier is scored itself."""
    generators = [method for method in methods if method != CLASSIFIER]
    both = (run_jobs(verb, generators, sampler=", sampler default", **grid) for verb in ("sample", "score"))
    return run_jobs("score classifier", set(methods) & {CLASSIFIER}, **grid).union(*both)


def exactly(outcome) -> set[str]:
    """The announced jobs, each once."""
    jobs = outcome.jobs
    assert len(jobs) == len(set(jobs)), "two jobs are announced alike"
    return set(jobs)


# --- what a study implies -------------------------------------------------------------------------------------


def test_the_dry_run_counts_what_the_study_implies(folder, tiny, edit):
    study = edit(tiny)
    del study["methods"]["dp_gaussian"]
    study |= {"epsilons": [1, 10], "seeds": [3, 4]}
    study["methods"]["dpdm"]["overrides"] = []
    folder.write(study)
    assert folder.dry().counts == {
        "prepare": 1, "extractor": 1, "real_features": 1, "label_only": 1, "train": 12, "audit": 3, "sample": 8, "score": 8,
        "score_classifier": 4, "score_anchor": 4, "collect": 1, "tables": 1, "figure": 2, "report": 1, "all": 1,
    }  # fmt: skip
    assert not folder.made()


def test_datasets_samplers_and_anchors_multiply(folder, tiny, edit):
    study = edit(tiny)
    study["datasets"]["other"] = {"source": "digits", "delta": 1.0e-5}
    study["methods"]["dpdm"]["samplers"]["fine"] = {"num_sampling_steps": 5}
    study["anchors"] = ["real"]
    study["evaluation"]["extractors"] = ["efflite", "small_cnn"]
    folder.write(study)
    counts = folder.dry().counts
    assert counts["real_features"] == 4
    per_rule = {rule: counts.get(rule, 0) for rule in ("prepare", "extractor", "train", "audit", "sample", "figure")}
    assert per_rule == {"prepare": 2, "extractor": 2, "train": 16, "audit": 8, "sample": 16, "figure": 5}
    assert (counts["score"], counts["score_classifier"]) == (16, 4)
    assert counts["score_anchor"] == 2
    assert "label_only" not in counts


def test_a_sample_page_shows_every_way_of_sampling(folder, tiny, edit):
    study = edit(tiny)
    study["methods"]["dpdm"]["samplers"]["fine"] = {"num_sampling_steps": 5}
    folder.write(study)
    rows = folder.dry("results/tiny/figures/digits_samples.png").text
    for shown in ("dpdm/eps10/seed0/default", "dpdm/eps10/seed0/fine", "dpdm/epsinf/seed0/fine", "class_mean/eps10/seed0/default"):
        assert f"results/tiny/runs/digits/{shown}/synthetic.npz" in rows


def test_a_shell_command_fits_in_three_lines_and_holds_no_recipe(folder, checkout):
    plan = folder.snakemake("-n", "-p", "--configfile", str(checkout / "config" / "paper.yaml"), config=False)
    assert plan.code == 0, plan.text
    commands = re.findall(r"^Shell command: (.*)$", plan.text, re.MULTILINE)
    assert len(commands) > 1000
    assert max(map(len, commands)) < 300
    assert not [command for command in commands if "{" in command]


def test_dpdm_run_knows_the_target_rules(folder, tiny):
    folder.write(tiny)
    listed = folder.snakemake("--list-target-rules").text.splitlines()
    assert {line for line in listed if line.isidentifier()} == set(TARGETS)


def test_a_part_of_a_study_is_named_on_the_command_line(folder, tiny, edit):
    study = edit(tiny)
    study["epsilons"], study["seeds"] = [1, 10, float("inf")], [0, 1]
    folder.write(study)
    whole = folder.dry().jobs
    part = folder.dry("--config", "only=method=dpdm,class_mean epsilon=1 seed=1").jobs
    methods = ["dpdm", "class_mean"]
    grid = {"epsilons": ["1"], "seeds": [1]}
    assert {job for job in part if job.startswith(("train", "sample"))} == run_jobs("train", methods, **grid) | run_jobs(
        "sample", methods, sampler=", sampler default", **grid
    )
    assert "score anchor real on digits, seed 1" in part
    assert "score anchor real on digits, seed 0" not in part
    assert set(part) <= set(whole)
    left = folder.dry("--config", "without=method=dpdm epsilon=inf").jobs
    assert set(whole) - set(left) == run_jobs("train", ["dpdm"], ["inf"], [0, 1]) | set_jobs(
        ["dpdm"], epsilons=["inf"], seeds=[0, 1]
    )
    refused = folder.snakemake("-n", "--config", "only=method=dpmd")
    assert refused.code != 0
    assert [part for part in ("only.method", "'dpmd'", "'dpdm'") if part not in refused.text] == []
    for key in ("only", "without"):  # an unset variable of the shell
        refused = folder.snakemake("-n", "--config", f"{key}=")
        assert refused.code != 0
        assert f"--config {key}= is empty" in refused.text


def test_the_real_images_meet_inception_once_per_dataset_and_only_where_asked(folder, tiny, edit):
    study = edit(tiny)
    study["datasets"]["other"] = {"source": "digits", "delta": 1.0e-5}
    folder.write(study)
    without = folder.dry().counts
    study["evaluation"]["fid"] = {"weights_path": "not/there/yet.pth"}
    folder.write(study)
    added = {"reference": 2, "score_inception": without["score"], "score_inception_anchor": without["score_anchor"]}
    assert folder.dry().counts == without | added  # so none of them without
    for scored in ("anchors/digits/real/seed0", "runs/digits/dpdm/eps10/seed0/default"):
        counts = folder.dry(f"results/tiny/{scored}/inception.json").counts
        assert counts["reference"] == 1
        assert {"score", "score_anchor", "extractor"}.isdisjoint(counts)
    assert "reference" not in folder.dry(f"results/tiny/{scored}/fidelity.json").counts


def test_attacks_are_part_of_a_report_where_the_study_says_so_and_a_target_anywhere(folder, tiny, edit):
    study = edit(tiny)
    study["epsilons"] = [1, 10, float("inf")]
    study["seeds"] = [0, 1]
    folder.write(study)
    without = folder.dry().counts
    plan = folder.dry("attacks")
    methods = len(study["methods"])
    private = 2 * methods  # one seed of each finite epsilon
    assert plan.counts == {"prepare": 1, "train": private, "attack": methods, "attacks": 1}
    ledgers = set(re.findall(r"runs/digits/dp_gaussian/\w+/\w+/ledger.json", plan.text))
    assert "runs/digits/dp_gaussian/eps10/seed0/ledger.json" in ledgers
    assert [ledger for ledger in ledgers if "inf" in ledger or "seed1" in ledger] == []
    study["attacks"] = True
    folder.write(study)
    assert folder.dry().counts == without | {"attack": methods}


def test_a_named_target_leaves_out_what_it_does_not_need(folder, tiny):
    folder.write(tiny)
    assert set(folder.dry("audits").counts) == {"prepare", "train", "audit", "audits"}
    assert {"figure", "report"}.isdisjoint(folder.dry("tables").counts)


def test_a_table_of_the_paper_is_a_target_of_any_study(folder, tiny):
    folder.write(tiny)
    plan = folder.dry("table_3")  # to which nothing is mapped
    assert plan.counts == {"table_3": 1}
    assert all(f"results/tiny/tables/table_3.{kind}" in plan.text for kind in ("csv", "md", "tex", "html"))


def test_a_table_of_the_paper_waits_for_the_runs_that_it_shows_alone(folder, tiny, edit):
    study = edit(tiny)
    study["datasets"]["mnist"] = {"source": "mnist", "delta": 1.0e-5}
    study["tables"] = {"table_3": [{"method": "dpdm", "published": "DPDM", "variant": "noise multiplicity K=2"}]}
    folder.write(study)
    for table, methods in (
        ("table_1", ["dpdm", "dp_gaussian", "class_mean"]), ("table_2", [CLASSIFIER]), ("table_3", ["dpdm"]),
    ):  # fmt: skip
        plan = folder.dry(table)
        trained = {job for job in plan.jobs if job.startswith("train ")}
        assert trained == {job.replace("digits", "mnist") for job in run_jobs("train", methods)}
        assert {"collect", "figure", "report"}.isdisjoint(plan.counts)
    study["evaluation"]["fid"] = {}
    folder.write(study)
    counts = folder.dry("table_1").counts
    assert counts["score_inception"] == counts["score"] == 6
    assert "score_inception_anchor" not in counts


def test_a_method_trains_and_is_audited_on_its_own_datasets_alone(folder, tiny, edit):
    study = edit(tiny)
    study["datasets"]["other"] = {"source": "digits", "delta": 1.0e-5}
    study["methods"]["class_mean"]["datasets"] = ["other"]
    folder.write(study)
    jobs = folder.dry().jobs
    assert "audit class_mean on other" in jobs
    assert not [job for job in jobs if "class_mean on digits" in job]


def test_a_dry_run_is_quick_and_loads_no_numerical_library(folder, tiny, tmp_path):
    poison = tmp_path / "poison"
    poison.mkdir()
    for name in ("torch", "opacus", "torch_fidelity", "torchvision", "sklearn", "matplotlib"):
        (poison / f"{name}.py").write_text(f"raise RuntimeError('a dry run imported {name}')")
    folder.write(tiny | {"evaluation": tiny["evaluation"] | {"fid": {}}})
    poisoned = type(folder)(folder.path, folder.checkout, (poison,))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    counts = poisoned.dry().counts
    assert (counts["train"], counts["reference"]) == (8, 1)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 6  # 1 s on the machine that wrote this


def test_a_study_replaces_the_default_one_and_is_not_merged_with_it(folder, checkout, tiny, edit):
    default = folder.dry(config=False, cwd=checkout)
    assert "train dpdm on digits, epsilon 1, seed 1" in default.jobs
    study = edit(tiny)
    study["methods"] = {"only": {"impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 4.0}}}
    folder.write(study)
    own = folder.dry(cwd=checkout, config=False, *["--configfile", str(folder.path / "study.yaml")])  # noqa: B026
    assert {job for job in own.jobs if job.startswith("train")} == run_jobs("train", ["only"])


def test_a_scale_is_laid_over_a_study(folder, checkout):
    files = [str(checkout / "config" / name) for name in ("ablation_sampler.yaml", "scale/laptop_sampler.yaml")]
    dry = folder.dry("--configfile", *files, "--", "table_6", cwd=checkout, config=False)
    assert (dry.counts["train"], dry.counts["sample"]) == (6, 24)
    assert "score_inception" not in dry.counts


# --- the whole tiny study -------------------------------------------------------------------------------------


def test_the_tiny_study_runs_to_its_end(finished, tiny):
    assert finished.outcome.code == 0, finished.outcome.text
    root = finished.folder.path / "results" / "tiny"
    expected = ["report.html", "metrics.csv", "audits.csv", "study.json"]
    expected += [f"tables/{table}.{kind}" for table in ("results", "audit") for kind in ("csv", "md", "tex", "html")]
    figures = ("digits_curves", "digits_samples")
    expected += [f"figures/{figure}.{kind}" for figure in figures for kind in ("svg", "pdf", "png")]
    assert [name for name in expected if not (root / name).is_file() or not (root / name).stat().st_size] == []
    with (root / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    methods = {(m, e) for m in tiny["methods"] for e in ("10", "inf")} | {("real", ""), ("label_only", "")}
    generators = {(method, epsilon) for method, epsilon in methods if method != CLASSIFIER}
    for metric, expected in (("fd", generators), ("acc_logreg", methods)):
        assert {(r["method"], r["epsilon"]) for r in rows if r["metric"] == metric} == expected
    (images,) = {r["num_synthetic"] for r in rows if r["method"] == CLASSIFIER}
    assert images == "0"
    assert not list((root / "runs" / "digits" / CLASSIFIER).rglob("*.npz"))
    page = (root / "report.html").read_text()
    assert [name for name in tiny["methods"] if name not in page] == []


def test_every_run_is_audited_and_passed(finished, tiny):
    root = finished.folder.path / "results" / "tiny"
    with (root / "audits.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {(r["method"], r["epsilon"]) for r in rows} == {(m, e) for m in tiny["methods"] for e in ("10", "inf")}
    assert {r["passed"] for r in rows} == {"True"}
    assert all(float(r["epsilon_rdp"]) <= 10 and float(r["epsilon_prv"]) <= 10 for r in rows if r["epsilon"] == "10")
    assert {p.stem for p in (root / "audits" / "digits").glob("*.json")} == set(tiny["methods"])
    page = (root / "report.html").read_text()
    assert page.count("; accounting: ✓ passed, spent ε") == len(tiny["methods"])
    assert page.count("; accounting: no noise: no guarantee") == len(tiny["methods"])


def test_every_job_is_announced_by_its_coordinates(finished, tiny):
    methods = list(tiny["methods"])
    assert exactly(finished.outcome) == (
        {"prepare digits", "feature extractor for digits", "small_cnn statistics of digits", "label-only floor for digits"}
        | run_jobs("train", methods)
        | set_jobs(methods)
        | {f"audit {method} on digits" for method in methods}
        | {f"score anchor {anchor} on digits, seed 0" for anchor in ("real", "label_only")}
        | REPORTING
    )


def test_the_terminal_has_a_line_per_job_and_the_log_has_all(finished):
    shown, kept = finished.shown, finished.outcome
    total = sum(kept.counts.values())
    lines = re.findall(r"^ *(\d+) of (\d+)  (\w+ ?\S*): [\d.]+ (?:s|min|h)", shown, re.M)
    assert [(int(number), int(all_)) for number, all_, _ in lines] == [(n, total) for n in range(1, total + 1)]
    assert {"prepare digits", "train digits/dpdm/10/0", "sample digits/dpdm/10/0/default"} <= {name for *_, name in lines}
    assert not re.findall("Reason|python -m|Select jobs", shown)
    assert len(shown) < 100 * total
    assert kept.text.count("Shell command: ") >= total - 1  # the target `all` has none


def test_a_dry_run_of_the_papers_study_fits_on_a_few_pages(folder, checkout):
    study = str(checkout / "config" / "paper.yaml")
    plan = folder.dry("--configfile", study, config=False, short=True)
    assert len(plan.text.splitlines()) < 300
    counts = dict.fromkeys(plan.counts, 0)
    for number, rule in re.findall(r"^ +(\d+)  (\w+)", plan.text, re.M):
        counts[rule] += int(number)
    assert counts == plan.counts


def test_a_failed_job_shows_the_end_of_its_log_and_no_command(folder, tiny):
    folder.write(tiny)
    (folder.path.parent / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'dataset.json' in sys.orig_argv:\n"
        "    os.write(2, b'error: made to fail\\n')\n"
        "    os._exit(3)\n"
    )
    outcome = replace(folder, python_path=(folder.path.parent,)).snakemake(short=True)
    assert outcome.code == 1
    for part in ("error: prepare digits failed", "results/data/digits/prepare.log", "error: made to fail", "status 3"):
        assert part in outcome.text, part
    assert "python -m" not in outcome.text


def test_a_printed_command_repeats_its_run(finished, again):
    command = re.search(
        r"^Shell command: (.* dpdm sample .*/dp_gaussian/10/.*)$", finished.outcome.text, re.MULTILINE
    )[1]
    output = again.path / RUN.format(method="dp_gaussian", epsilon="10", seed=0) / "default" / "synthetic.npz"
    whole = output.read_bytes()
    output.unlink()
    subprocess.run(command, shell=True, check=True, cwd=again.path, env=again.environment(), timeout=120)
    assert output.read_bytes() == whole


def test_the_reports_own_commands_repeat_their_runs(again):
    root = again.path / "results" / "tiny"
    commands = re.findall(r"<code>(python -m dpdm train .*?)</code>", (root / "report.html").read_text(), re.DOTALL)
    (command,) = [html.unescape(c) for c in commands if "dpsgd" not in c]  # of the first run of the study
    environment = again.environment()
    done = subprocess.run(command, shell=True, cwd=again.path, env=environment, capture_output=True, timeout=120)
    assert (done.returncode, b"differ" in done.stdout) == (0, False), done.stderr
    assert (again.path / "repeated" / "ledger.json").read_bytes() == (again.path / DPDM / "ledger.json").read_bytes()
    page = html.unescape((root / "report.html").read_text())
    sets = ((f"{DPDM}/default/synthetic.npz", "sample"), ("anchors/digits/real/seed0/utility", "score"))
    for sure, verb in sets:
        (scored,) = [c for c in re.findall(rf"<code>(python -m dpdm {verb} .*?)</code>", page, re.DOTALL) if sure in c]
        done = subprocess.run(scored, shell=True, cwd=again.path, env=environment, capture_output=True, timeout=120)
        assert (done.returncode, b"differ" in done.stdout) == (0, False), done.stderr
    other = command.replace("eps10/seed0/model.pt", "epsinf/seed0/model.pt")
    assert subprocess.run(other, shell=True, cwd=again.path, env=environment, timeout=120).returncode == 1


def test_links_of_the_report_lead_to_files(finished):
    root = finished.folder.path / "results" / "tiny"
    links = re.findall(r'<a href="([^#"][^"]*)"', (root / "report.html").read_text())
    # four files of two tables; ledger, log and losses of 8 runs;
    # logs, scores and nearest pairs of 6 sets (2 classifiers have none) and 2 anchors
    links = [link for link in links if not link.startswith("https://arxiv.org/abs/")]
    assert len(links) == 2 * 4 + 3 * 8 + (5 * 6 + 2 * 2) + 4 * 2
    assert [link for link in links if not (root / link).exists()] == []


def test_a_study_that_varies_a_parameter_gets_its_figure(folder, tiny, edit):
    study = edit(tiny)
    assert "figure parameter" not in folder_jobs(folder, study)
    study["methods"] = {f"n{n}": {**study["methods"]["class_mean"], "params": {"max_image_norm": n}} for n in (2.0, 4.0)}
    study["methods"] = {name.replace(".", "_"): spec for name, spec in study["methods"].items()}
    assert "figure parameter" in folder_jobs(folder, study)


def folder_jobs(folder, study) -> list[str]:
    """The jobs that a study in this folder would run."""
    folder.write(study)
    return folder.dry().jobs


def test_results_stay_inside_the_results_folder(finished):
    assert {Path(name).parts[0] for name in finished.folder.made()} == {"results"}
    assert not [name for name in finished.folder.made() if name.endswith(".tmp")]
    assert finished.littered == set()


def test_training_sees_no_test_image_and_no_score(finished):
    """Followed through to the sources: nothing that decides a model comes from the evaluation."""
    rows = finished.folder.snakemake("--detailed-summary").text.splitlines()
    table = [line.split("\t") for line in rows if line.count("\t") == 7]
    inputs = {row[0]: set(row[4].split(",")) - {""} for row in table[1:]}
    rule = {row[0]: row[2] for row in table[1:]}
    trained = [path for path in inputs if rule[path] == "train"]
    assert len(trained) == 3 * 8
    for path in trained:
        assert {Path(name).name for name in inputs[path]} == {"train.npz"}
        for source in inputs[path]:
            assert inputs.get(source, set()) == set()
    commands = [row[5] for row in table[1:] if row[2] == "train"]
    assert not [c for c in commands if re.search(r"test\.npz|fidelity|utility|extractor|metrics", c)]


def test_the_snakemake_report_needs_no_network(again):
    site = again.path.parent / "offline"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import socket\n"
        "def refuse(*_): raise OSError('this test is offline')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
    )
    offline = type(again)(again.path, again.checkout, (site,))
    outcome = offline.snakemake("--report", "shown.html")
    assert outcome.code == 0, outcome.text
    page = (again.path / "shown.html").read_text()
    figures = ("digits_curves.png", "digits_samples.png")
    for shown in ("report.html", *figures, "results.html", "audit.html"):
        assert shown in page


# --- what runs again ------------------------------------------------------------------------------------------


def test_what_a_profile_may_set_for_a_training_trains_nothing_again(again):
    values = ("gpu=4", "checkpoint_interval=60", "mem_mb=9000", "runtime=60", "nodes=1")
    assert again.dry("--set-resources", *(f"train:{value}" for value in values)).counts == {}


def test_nothing_is_done_twice(again, tiny):
    again.write(tiny, comment="# another comment, and another layout\n\n")
    outcome = again.dry()
    assert "Nothing to be done" in outcome.text
    assert outcome.counts == {}


def change_recipe(study):
    study["methods"]["dp_gaussian"]["params"]["max_image_norm"] = 3.0
    return run_jobs("train", ["dp_gaussian"]) | set_jobs(["dp_gaussian"]) | {"audit dp_gaussian on digits"}


def change_override(study):
    study["methods"]["dpdm"]["overrides"][0]["params"]["dp"]["steps"] = 5
    grid = {"methods": ["dpdm"], "epsilons": ["inf"]}
    return run_jobs("train", **grid) | set_jobs(**grid) | {"audit dpdm on digits"}


def change_sampler(study):
    study["methods"]["dpdm"]["samplers"]["default"]["num_sampling_steps"] = 4
    return set_jobs(["dpdm"])


def change_classifier(study):
    study["methods"][CLASSIFIER]["params"]["lr"] = 0.25
    return run_jobs("train", [CLASSIFIER]) | set_jobs([CLASSIFIER]) | {f"audit {CLASSIFIER} on digits"}


def change_evaluation(study):
    study["evaluation"]["classifiers"] = ["logreg", "mlp"]
    anchors = {f"score anchor {anchor} on digits, seed 0" for anchor in ("real", "label_only")}
    generators = [method for method in study["methods"] if method != CLASSIFIER]  # it is no set to be judged
    return anchors | {job for job in set_jobs(generators) if job.startswith("score")}


def ask_for_the_fid(study):
    study["evaluation"]["fid"] = {}
    generators = [method for method in study["methods"] if method != CLASSIFIER]
    anchors = {f"score anchor {anchor} by Inception on digits, seed 0" for anchor in ("real", "label_only")}
    sets = {job.replace(" on ", " by Inception on ") for job in set_jobs(generators) if job.startswith("score")}
    return {"Inception statistics of digits"} | anchors | sets


def add_seed(study):
    study["seeds"] = [0, 1]
    methods = list(study["methods"])
    anchors = {f"score anchor {anchor} on digits, seed 1" for anchor in ("real", "label_only")}
    audits = {f"audit {method} on digits" for method in methods}
    return run_jobs("train", methods, seeds=[1]) | set_jobs(methods, seeds=[1]) | audits | anchors


def add_method(study):
    study["methods"]["wide"] = {"impl": "baselines.class_mean:ClassMean", "params": {"max_image_norm": 9.0}}
    sweep = "figure parameter"  # class_mean and wide differ in one number alone
    return run_jobs("train", ["wide"]) | set_jobs(["wide"]) | {"audit wide on digits", sweep}


def drop_method(study):
    del study["methods"]["dp_gaussian"]
    return set()


def state_tuning(study):
    study["methods"]["dpdm"]["tuning"] = {"settings": 5, "data": "MNIST shrunk to 8x8"}
    return set()


EDITS = [change_recipe, change_override, change_sampler, change_evaluation, add_seed, add_method, drop_method,
         state_tuning, change_classifier, ask_for_the_fid]  # fmt: skip


@pytest.mark.parametrize("change", EDITS)
def test_an_edit_runs_again_only_what_it_changes(again, tiny, edit, change):
    study = edit(tiny)
    expected = change(study)
    again.write(study)
    assert exactly(again.dry()) == expected | REPORTING


def test_what_a_failed_collection_deleted_is_made_again(again):
    for name in ("metrics.csv", "audits.csv"):
        (again.path / "results" / "tiny" / name).unlink()
    assert exactly(again.dry()) == REPORTING


@pytest.mark.parametrize("name", ["published.csv", "privacy_status.csv"])
def test_an_edit_of_the_published_numbers_makes_the_report_alone_again(again, name):
    file = again.checkout / "results" / "published" / name
    whole = file.read_bytes()
    try:
        file.write_bytes(whole.replace(b"DPDM", b"DPXX"))
        assert again.dry().counts == {"report": 1, "all": 1}
    finally:
        file.write_bytes(whole)


def test_a_part_of_a_finished_study_makes_its_report_alone(again, tiny):
    root = again.path / "results" / "tiny"
    outcome = again.snakemake("--config", "only=method=dpdm,class_mean epsilon=10")
    assert outcome.code == 0, outcome.text
    assert exactly(outcome) == {f"audit {method} on digits" for method in ("dpdm", "class_mean")} | REPORTING
    assert "only method=dpdm, class_mean epsilon=10" in (root / "report.html").read_text()
    rows = pd.read_csv(root / "metrics.csv")
    assert set(rows["method"]) == {"dpdm", "class_mean", "real", "label_only"}
    assert {job for job in again.dry().jobs if not job.startswith("audit")} == REPORTING  # the whole again


def test_an_edit_of_the_study_does_not_reach_the_jobs_of_a_running_workflow(again, tiny, edit):
    """They read the study.json that was written before the first of them, and Snakemake alone rewrites it."""
    root = again.path / "results" / "tiny"
    before = (root / "study.json").read_bytes()
    study = edit(tiny)
    study["methods"]["dpdm"]["samplers"]["default"]["num_sampling_steps"] = 9
    again.write(study)
    command = re.search(r"python -m dpdm sample results/tiny digits/dpdm/10/0/default", again.dry().text)[0]
    assert (root / "study.json").read_bytes() == before  # a dry run writes nothing
    images = root / "runs/digits/dpdm/eps10/seed0/default/synthetic.npz"
    old = images.read_bytes()
    subprocess.run(command, shell=True, check=True, cwd=again.path, env=again.environment(), timeout=120)
    assert images.read_bytes() == old


def test_a_run_made_by_hand_is_done_for_the_workflow(folder, tiny):
    folder.write(tiny)
    command = "python -m dpdm train study.yaml digits/class_mean/10/0"
    subprocess.run(command, shell=True, check=True, cwd=folder.path, env=folder.environment(), timeout=120)
    jobs = folder.dry().jobs
    assert {"prepare digits", "train class_mean on digits, epsilon 10, seed 0"}.isdisjoint(jobs)
    assert "sample class_mean on digits, epsilon 10, seed 0, sampler default" in jobs


def test_code_that_changed_trains_nothing_again(again):
    """The printed shell line and the code are no trigger: a docstring must not cost a week of training."""
    changed = again.path.parent / "changed"
    subprocess.run(["cp", "-a", str(again.checkout), str(changed)], check=True)
    rules = changed / "workflow" / "rules" / "train.smk"
    rules.write_text(rules.read_text().replace(" --threads {threads}", " --threads 1"))
    (changed / "dpdm" / "method.py").open("a").write("\n# touched\n")
    # Only the report quotes a file of this checkout: the published numbers.
    assert type(again)(again.path, changed).dry().counts == {"report": 1, "all": 1}


def test_a_table_of_the_paper_is_made_and_a_wrong_mapping_refused_before_anything_runs(again, tiny, edit):
    study = edit(tiny)
    study["tables"] = {"table_1": [{"method": "dpdm", "published": "DPDM", "variant": "Fid"}]}
    again.write(study)
    refused = again.snakemake("--", "table_1")
    assert refused.code != 0
    assert "tables.table_1[0].variant" in refused.text
    assert "'Fid'" in refused.text
    assert refused.jobs == []
    study["tables"]["table_1"][0]["variant"] = "FID"
    again.write(study)
    assert again.dry().counts["table_1"] == 1  # the study names it, so that `all` makes it
    outcome = again.snakemake("--", "table_1")
    assert outcome.code == 0, outcome.text
    assert "train" not in outcome.counts
    page = (again.path / "results" / "tiny" / "tables" / "table_1.md").read_text()
    assert "DP-Sinkhorn" in page
    assert "† class_mean: scale not stated; protocol standard; 200 synthetic images instead of 60,000." in page


def test_the_path_of_the_environment_can_hold_spaces_quotes_and_braces(folder, tiny, tmp_path, monkeypatch):
    folder.write(tiny)
    environment = tmp_path / "it's my {own} $HOME \"env\""
    environment.mkdir()
    (environment / "bin").symlink_to(Path(sys.executable).parent)
    shutil.copy(Path(sys.executable).parents[1] / "pyvenv.cfg", environment)
    (environment / "lib").symlink_to(Path(sys.executable).parents[1] / "lib")
    monkeypatch.setattr(sys, "executable", str(environment / "bin" / "python"))
    outcome = folder.snakemake("--", "results/data/digits/dataset.json")
    assert outcome.code == 0, outcome.text


# --- killed ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def killed(killed_folder):
    """The tiny study, everything SIGKILLed in the middle of its first DPDM training."""
    folder = killed_folder
    with (folder.path / "terminal.txt").open("w") as terminal:
        process = subprocess.Popen(
            folder.command("--", f"{DPDM}/ledger.json"), cwd=folder.path, env=folder.environment(),
            stdout=terminal, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        log = folder.path / DPDM / "train.log"
        end = time.monotonic() + 120
        try:
            while process.poll() is None and time.monotonic() < end:
                if log.exists() and "seed 0: 1/3" in log.read_text():
                    break
                time.sleep(0.01)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # snakemake, its shells and the training: one process group
            process.wait()
    text = (folder.path / "terminal.txt").read_text()
    assert "train dpdm on digits, epsilon 10, seed 0" in text, text
    assert "seed 0: 3/3" not in log.read_text(), "the kill came too late to be in the middle"
    return folder


def test_a_killed_run_leaves_nothing_half_written_and_is_made_up_for(killed, finished):
    """Also the proof that two runs in different folders give the same bytes: one of them was killed and resumed."""
    run = killed.path / DPDM
    assert [p.name for p in run.iterdir() if p.name != "train.log"] == []

    # A kill can also come between the writes of two outputs, or in the middle of one: as if it had.
    (run / "model.pt").write_bytes(b"of a run that is not in the ledger")
    for name in (".ledger.json.x1.tmp", ".model.pt.x2.tmp"):
        (run / name).write_bytes(b"{")

    # Snakemake itself was killed too, so its lock remains; it says what to type.
    locked = killed.snakemake("--rerun-incomplete", f"{DPDM}/ledger.json")
    assert locked.code != 0
    assert "--unlock" in locked.text
    assert killed.snakemake("--unlock").code == 0
    resumed = killed.snakemake("--rerun-incomplete", f"{DPDM}/default/fidelity.json")
    assert resumed.code == 0, resumed.text
    assert resumed.counts["train"] == 1
    made = [f"{DPDM}/{name}" for name in ("model.pt", "ledger.json")]
    made += [f"{DPDM}/default/{name}" for name in ("synthetic.npz", "fidelity.json", "utility.json")]
    made += [f"results/data/digits/{name}" for name in ("train.npz", "test.npz", "dataset.json", "extractor.pt")]
    assert different(killed, finished.folder, made) == []

    # With the other runs beside it, the same tables. (The commands are the printed ones; their paths are relative.)
    derived = ["results/tiny/metrics.csv", "results/tiny/audits.csv"]
    derived += [name for name in finished.folder.made() if "/tables/" in name and not name.endswith(".log")]
    for name in finished.folder.made() - killed.made() - set(derived):
        (killed.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(finished.folder.path / name, killed.path / name)
    (killed.path / "results" / "tiny" / "tables").mkdir(exist_ok=True)
    for verb in ("collect", "tables"):
        command = re.search(rf"^Shell command: (.* dpdm {verb} .*)$", finished.outcome.text, re.MULTILINE)[1]
        subprocess.run(command, shell=True, check=True, cwd=killed.path, env=killed.environment(), timeout=120)
    assert len(derived) == 2 + 8
    assert different(killed, finished.folder, derived) == []


def different(one, two, names: list[str]) -> list[str]:
    """The files that are not the same, byte by byte."""
    return [name for name in names if (one.path / name).read_bytes() != (two.path / name).read_bytes()]


# --- mistakes -------------------------------------------------------------------------------------------------


def refused(folder, *sentences: str, **options) -> None:
    """Snakemake refuses the study: the sentences, nothing like a crash, nothing made."""
    before = folder.made()
    outcome = folder.snakemake(short=True, **options)
    assert outcome.code != 0
    for sentence in sentences:
        assert sentence in outcome.text
    assert "Traceback" not in outcome.text
    assert folder.made() == before


def test_a_misspelt_key_is_named_with_its_path(folder, tiny, edit):
    study = edit(tiny)
    study["methods"]["dpdm"]["parms"] = study["methods"]["dpdm"].pop("params")
    study["evaluation"]["synthetic_image"] = study["evaluation"].pop("synthetic_images")
    folder.write(study)
    refused(
        folder,
        "study.yaml: methods.dpdm.parms: unknown key; did you mean 'params'?",
        "study.yaml: evaluation.synthetic_image: unknown key; did you mean 'synthetic_images'?",
    )


def test_a_key_written_twice_is_named_with_its_line(folder, tiny):
    """By YAML's own rules the last one counts, and a method pasted twice would lose its first entry unseen."""
    folder.write(tiny)
    with (folder.path / "study.yaml").open("a") as study:
        study.write("seeds: [0, 1]\n")
    refused(folder, "study.yaml, line ", ": key 'seeds' ")


def test_missing_weights_of_the_fid_are_named_before_any_job(folder, tiny, edit):
    study = edit(tiny)
    study["evaluation"]["fid"] = {"weights_path": "nowhere/inception.pth"}
    folder.write(study)
    refused(folder, "error: evaluation.fid.weights_path: there is no file nowhere/inception.pth; put ", "nothing was run")


def test_a_results_folder_that_is_a_file_is_refused(folder, tiny):
    folder.write(tiny | {"results_dir": "taken"})
    (folder.path / "taken").write_text("a file")
    refused(folder, f"the results folder {folder.path}/taken cannot be made: {folder.path}/taken is a file")


def test_no_study_is_one_sentence(folder):
    outcome = folder.snakemake("--workflow-profile", "none", config=False)
    assert outcome.code != 0
    assert "holds no study; name one with --configfile, e.g. config/digits.yaml" in outcome.text
    assert "--workflow-profile replaces profiles/default" in outcome.text
    assert "Traceback" not in outcome.text
    assert not folder.made()


def test_a_method_of_the_other_kind_fails_before_any_training(folder, tiny, edit):
    study = edit(tiny)
    del study["methods"][CLASSIFIER]["kind"]
    study["methods"]["class_mean"]["kind"] = "classifier"
    folder.write(study)
    outcome = folder.snakemake()
    assert outcome.code != 0
    assert "ClassMean: lacks Model.predict, so it is no classifier; set kind: generator" in outcome.text
    assert "lacks SamplerParams, Model.sample, so it is no generator; set kind: classifier" in outcome.text
    assert "Traceback" not in outcome.text
    assert not outcome.jobs
    assert not folder.made()


def test_a_method_that_cannot_be_imported_fails_before_any_training(folder, tiny, edit):
    study = edit(tiny)
    study["methods"]["dp_gaussian"]["impl"] = "baselines.dp_gausian:DPGaussian"
    folder.write(study)
    outcome = folder.snakemake("--keep-going", "audits")
    assert outcome.code != 0
    assert "error: impl baselines.dp_gausian:DPGaussian: cannot import baselines.dp_gausian" in outcome.text
    assert "Traceback" not in outcome.text
    assert not outcome.jobs
    assert not folder.made()


# --- docs/adding_a_method.md, as its reader follows it -----------------------------------------------------------


def test_the_file_and_entry_of_adding_a_method_give_a_row(again, tiny, edit):
    page = (Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()
    name, code = re.search(r"```python\n# (my_methods/\w+\.py)\n(.*?)```", page, re.S).groups()
    entry = yaml.safe_load(re.search(r"```yaml\n(methods:.*?)```", page, re.S)[1])["methods"]
    (method,) = entry
    module = again.path / name
    module.parent.mkdir()
    module.write_text(code)
    study = edit(tiny)
    study["methods"] |= entry
    again.write(study)
    outcome = replace(again, python_path=(again.path,)).snakemake()
    assert outcome.code == 0, outcome.text
    assert outcome.counts["train"] == len(tiny["epsilons"])  # the new method alone
    rows = pd.read_csv(again.path / "results" / "tiny" / "tables" / "results.csv")
    row = rows[(rows["method"] == method) & (rows["epsilon"].astype(str).str.startswith("10"))].iloc[0]
    assert row["acc_logreg_test_mean"] > 20  # ten classes: it learnt something
    audits = pd.read_csv(again.path / "results" / "tiny" / "audits.csv")
    assert audits.loc[audits["method"] == method, "passed"].all()
    assert method in (again.path / "results" / "tiny" / "report.html").read_text()
