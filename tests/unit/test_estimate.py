"""Hours and memory of a study, from the times that kept results measured."""

import copy
import re
from pathlib import Path

import pandas as pd
import pytest

from dpdm.cli.estimate import estimate, jobs, measured, read_kept
from dpdm.config import parse_study
from dpdm.report.collect import add_jobs
from dpdm.study import study_json

RESULTS = Path(__file__).parents[2] / "results"
SECONDS = {"train": 40.0, "sample": 10.0, "score": 6.0, "score_anchor": 5.0, "audit": 3.0, "prepare": 2.0}


@pytest.fixture
def study(tiny_study_dict):
    """`study(change)`: the tiny study after `change(its dictionary)`."""

    def make(change=lambda value: None):
        value = copy.deepcopy(tiny_study_dict)
        change(value)
        return parse_study(value, "s")

    return make


def keep(results: Path, study, recipe: bool = True) -> Path:
    """A kept result in which every job of a rule takes SECONDS, and a rule that it lacks was not measured."""
    rows = [
        {"rule": job.rule, "dataset": "digits", "method": job.method, "seconds": SECONDS[job.rule], "max_rss_mb": 300.0}
        for job in jobs(study)
        if job.rule in SECONDS
    ]
    rows[-1]["max_rss_mb"] = 1234.0
    folder = results / study.study / "kept"
    folder.mkdir(parents=True)
    times = pd.DataFrame(rows).assign(machine="Some Processor, 2 threads")
    add_jobs([times], ["machine", "rule", "dataset", "method"]).to_csv(folder / "jobs.csv", index=False)
    if recipe:
        (folder / "study.json").write_text(study_json(study))
    return folder


def seconds_of(kept, study, rule: str) -> float:
    rates = measured(kept)
    return sum(rates[job.kind][0] * job.amount for job in jobs(study) if job.rule == rule and job.kind in rates)


def test_the_kept_digits_add_up_to_their_own_total():
    (kept,) = (one for one in read_kept(RESULTS) if one.name == "results/digits/kept")
    planned = list(jobs(kept.study))
    assert len(planned) == sum(times.jobs for times in kept.table.values())
    rates = measured(kept)
    seconds = sum(rates[job.kind][0] * job.amount for job in planned)
    assert seconds == pytest.approx(sum(times.seconds for times in kept.table.values()))
    assert max(memory for _, memory in rates.values()) == max(times.memory for times in kept.table.values())


def test_every_kept_page_has_a_machine_and_times():
    pages = list(RESULTS.glob("*/kept/README.md"))
    kept = list(read_kept(RESULTS))
    assert len(kept) == len(pages) > 1
    for one in kept:
        assert "unknown" not in one.machine
        assert any(rule == "train" and times.seconds > 0 for (rule, _), times in one.table.items())


def test_of_jobs_that_did_not_all_run_the_others_are_taken_to_be_as_long(tmp_path, study):
    file = keep(tmp_path, study()) / "jobs.csv"
    times = pd.read_csv(file, keep_default_na=False)
    trained = times["rule"] == "train"
    times.loc[trained, ["jobs", "seconds"]] = (
        times.loc[trained, ["jobs", "seconds"]].to_numpy() / times.loc[trained, ["jobs"]].to_numpy()
    )  # one of each
    times.astype({"jobs": int}).to_csv(file, index=False)
    (kept,) = read_kept(tmp_path)
    assert seconds_of(kept, study(), "train") == pytest.approx(40 * len(study().runs()))


def test_an_estimate_names_hours_memory_machine_origin_and_what_is_not_measured(tmp_path, study):
    keep(tmp_path, study())
    text = estimate(study(), tmp_path)
    known = [job for job in jobs(study()) if job.rule in SECONDS]
    minutes = round(sum(SECONDS[job.rule] for job in known) / 60)
    for part in (
        f"about {minutes} min",
        "1,234 MB",
        "Some Processor, 2 threads",
        "results/tiny/kept",
        f"{len(known)} of",
    ):
        assert part in text, part
    assert "not measured: " in text
    assert re.search(r"\d+ real_features", text)


@pytest.mark.parametrize(("key", "factor"), [("steps", 10), ("expected_batch_size", 4), ("noise_multiplicity", 3)])
def test_a_training_takes_time_in_proportion_to_steps_batch_and_k(tmp_path, study, key, factor):
    def change(value):
        value["methods"]["dpdm"].pop("overrides")
        params = value["methods"]["dpdm"]["params"]
        place = params if key in params else params["dp"]
        place[key] *= factor

    plain = study(lambda value: value["methods"]["dpdm"].pop("overrides"))
    keep(tmp_path, plain)
    (kept,) = read_kept(tmp_path)
    runs = {method: sum(run.method == method for run in plain.runs()) for method in plain.methods}
    expected = 40 * (runs["class_mean"] + factor * runs["dpdm"])
    assert seconds_of(kept, plain, "train") == pytest.approx(40 * len(plain.runs()))
    assert seconds_of(kept, study(change), "train") == pytest.approx(expected)


def test_images_scale_sampling_and_scoring(tmp_path, study):
    keep(tmp_path, study())
    (kept,) = read_kept(tmp_path)
    more = study(lambda value: value["evaluation"].update(synthetic_images=60))
    for rule in ("sample", "score", "score_anchor"):
        assert seconds_of(kept, more, rule) == pytest.approx(3 * seconds_of(kept, study(), rule))


def other_network(value):
    value["methods"]["dpdm"]["params"]["network"]["channels"] = 16


def other_code(value):
    value["methods"]["dpdm"]["impl"] = "dpdm.diffusion.gauss:DPDMGauss"


@pytest.mark.parametrize("change", [other_network, other_code])
def test_another_recipe_is_not_measured(tmp_path, study, change):
    keep(tmp_path, study())
    (kept,) = read_kept(tmp_path)
    unknown = {(job.rule, job.method) for job in jobs(study(change)) if job.rule in SECONDS} - {
        (job.rule, job.method) for job in jobs(study(change)) if job.kind in measured(kept)
    }
    assert unknown == {("train", "dpdm"), ("sample", "dpdm")}
    assert "dpdm" in estimate(study(change), tmp_path).partition("not measured")[2]


def test_a_part_of_a_study_costs_less(tmp_path, study):
    keep(tmp_path, study())
    part = estimate(study(lambda value: value.update(only="method=class_mean epsilon=10 seed=0")), tmp_path)
    assert part != estimate(study(), tmp_path)
    assert "dpdm" not in part


def test_other_data_are_not_comparable(tmp_path, study):
    keep(tmp_path, study())
    other = study(lambda value: value["datasets"].update(digits={"source": "mnist", "delta": 1e-5}))
    assert "none" in estimate(other, tmp_path)


def test_without_a_kept_recipe_no_estimate_but_what_the_kept_study_took(tmp_path, study):
    keep(tmp_path, study(), recipe=False)
    text = estimate(study(), tmp_path)
    for part in ("none", "results/tiny/kept", "Some Processor", "1,234 MB"):
        assert part in text, part
    assert "results/tiny/kept" not in estimate(study(lambda value: value.update(study="other")), tmp_path)
    assert "none" in estimate(study(), tmp_path / "nothing")


def test_a_kept_study_of_another_version_does_not_stop_a_run(tmp_path, study):
    (keep(tmp_path, study()) / "study.json").write_text('{"version": -1}')
    assert "none" in estimate(study(), tmp_path)


def test_another_study_of_the_same_recipes_is_estimated_too(tmp_path, study):
    keep(tmp_path, study())
    assert "results/tiny/kept" in estimate(study(lambda value: value.update(study="other")), tmp_path)
