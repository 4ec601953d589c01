"""collect: what is kept, refused, and listed as missing; csv and benchmark files."""

import math
import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
from measured import measured
from refusals import refuses

from dpdm import artifacts
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.report.collect import (
    AUDITS,
    METRICS,
    add_jobs,
    clock_seconds,
    collect,
    holes,
    read_benchmarks,
    read_csv,
    write_csv,
)
from dpdm.specs import Accountant

ONE = {"version": "0.1.0", "commit": "abc", "code": "1111"}
TWO = {"version": "0.1.0", "commit": "abd", "code": "2222"}


def make_study(**changes):
    study = {
        "study": "tiny",
        "datasets": {"digits": {"source": "digits", "delta": 1e-4}},
        "epsilons": [1, "inf"],
        "seeds": [0, 1],
        "methods": {"dpgan": {"impl": "a:B"}},
        "evaluation": {"synthetic_images": 20, "classifiers": ["logreg", "mlp"]},
    }
    return parse_study({**study, **changes}, "test")


def write_scores(folder, coordinates, provenance=ONE, value=1.5):
    c = coordinates.model_dump(mode="json")
    fidelity = [measured("fd", r) | {"value": value} for r in ("train", "test")]
    utility = [measured(f"acc_{n}") | {"value": value} for n in ("logreg", "mlp")]
    shared = {"coordinates": c, "provenance": provenance, "num_synthetic": 20}
    artifacts.write_json(folder / "fidelity.json", {**shared, "extractor": {"name": "digits"}, "metrics": fidelity})
    artifacts.write_json(folder / "utility.json", {**shared, "protocol": "standard", "metrics": utility})


def write_audit(path, runs, provenance=ONE):
    event = {
        "mechanism": "poisson_subsampled_gaussian", "name": "net", "noise_multiplier": 3.1, "sample_rate": 0.1,
        "steps": 5, "sensitivity": 1.0,
    }  # fmt: skip
    epsilon = [run.coordinates().model_dump(mode="json")["epsilon"] for run in runs]
    audited = [
        {
            "coordinates": run.coordinates().model_dump(mode="json"), "recipe": run.model_dump(mode="json"),
            "provenance": provenance, "n": 1437, "delta": 3.5e-4, "accountant": "rdp",
            "neighbouring_relation": "zero_out", "noise": "repeatable", "target_epsilon": e, "epsilon_rdp": e,
            "epsilon_prv": e, "epsilon_pld": e, "recipe_checked": True, "passed": True, "events": [event],
        }
        for run, e in zip(runs, epsilon, strict=True)
    ]  # fmt: skip
    artifacts.write_json(path, {"runs": audited})


@pytest.fixture
def results(tmp_path):
    """A complete small study on disk."""
    study = make_study()
    for i, run in enumerate(study.runs()):
        write_scores(tmp_path / f"runs/{i}", run.coordinates("default"), value=0.1 + i)
    for i, anchor in enumerate(study.anchor_coordinates()):
        write_scores(tmp_path / f"anchors/{i}", anchor)
    write_audit(tmp_path / "audits/digits_dpgan.json", study.runs())
    return tmp_path


def test_everything_is_collected_in_grid_order(results):
    metrics, audits = collect(make_study(), [results])
    assert list(metrics.columns) == list(METRICS)
    assert list(audits.columns) == list(AUDITS)
    assert len(metrics) == (4 + 4) * 4
    assert list(metrics["method"].drop_duplicates()) == ["dpgan", "real", "label_only"]
    assert list(metrics["epsilon"].drop_duplicates()) == ["1", "inf", ""]
    first = metrics.iloc[0]
    assert (first["metric"], first["reference"], first["value"], first["seed"]) == ("fd", "train", 0.1, 0)
    assert (first["delta"], first["accountant"], first["protocol"]) == (3.5e-4, "rdp", "")
    anchor = metrics[metrics["method"] == "real"].iloc[0]
    assert math.isnan(anchor["delta"])
    assert (anchor["accountant"], anchor["sampler"]) == ("", "")
    assert list(audits["target_epsilon"]) == [1, 1, math.inf, math.inf]
    assert holes(make_study(), metrics, audits) == []


def test_order_of_folders_and_overlaps_do_not_matter(results):
    once = collect(make_study(), [results])
    again = collect(make_study(), [results / "anchors", results / "audits", results])
    for a, b in zip(once, again, strict=True):
        pd.testing.assert_frame_equal(a, b)


def test_csv_gives_back_every_bit(results, tmp_path):
    run = make_study().runs()[0]
    write_scores(results / "runs/0", run.coordinates("default"), value=0.1 + 0.2)
    metrics, audits = collect(make_study(), [results])
    for frame, columns in ((metrics, METRICS), (audits, AUDITS)):
        write_csv(tmp_path / "x.csv", frame)
        back = read_csv(tmp_path / "x.csv", columns)
        pd.testing.assert_frame_equal(frame, back, check_exact=True)
    write_csv(tmp_path / "x.csv", metrics)
    back = read_csv(tmp_path / "x.csv", METRICS)
    assert back["value"][0] == 0.1 + 0.2 != 0.3
    assert set(back["epsilon"]) == {"1", "inf", ""}


def test_the_spread_over_extractors_is_kept_where_there_is_one(results, tmp_path):
    metrics, _ = collect(make_study(), [results])
    write_csv(tmp_path / "without.csv", metrics)
    assert "spread" not in (tmp_path / "without.csv").read_text()
    path = results / "runs/0/fidelity.json"
    content = artifacts.read_json(path)
    content["metrics"][0]["spread"] = 0.25
    artifacts.write_json(path, content)
    metrics, _ = collect(make_study(), [results])
    assert (metrics["spread"][0], metrics["spread"].count()) == (0.25, 1)
    write_csv(tmp_path / "with.csv", metrics)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "with.csv", METRICS), metrics, check_exact=True)


def test_the_departures_of_a_run_are_those_of_its_audit(results, tmp_path):
    """A csv of before, without the column, can still be read."""
    metrics, audits = collect(make_study(), [results])
    for frame, columns in ((metrics, METRICS), (audits, AUDITS)):
        write_csv(tmp_path / "without.csv", frame)
        assert "departures" not in (tmp_path / "without.csv").read_text()
        assert set(read_csv(tmp_path / "without.csv", columns)["departures"]) == {""}
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    for run in content["runs"]:
        run["departures"] = "K = 4, 8 px"
    artifacts.write_json(path, content)
    metrics, audits = collect(make_study(), [results])
    assert set(metrics.loc[metrics["method"] == "dpgan", "departures"]) == set(audits["departures"]) == {"K = 4, 8 px"}
    assert set(metrics.loc[metrics["method"] != "dpgan", "departures"]) == {""}
    write_csv(tmp_path / "with.csv", metrics)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "with.csv", METRICS), metrics, check_exact=True)


def test_an_empty_csv_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    with refuses(tmp_path / "metrics.csv", "empty"):
        read_csv(tmp_path / "metrics.csv", METRICS)


def test_csv_of_another_kind_is_refused(results, tmp_path):
    metrics, _ = collect(make_study(), [results])
    write_csv(tmp_path / "x.csv", metrics)
    with refuses("x.csv"):
        read_csv(tmp_path / "x.csv", AUDITS)
    text = artifacts.read_bytes(tmp_path / "x.csv").decode()
    artifacts.write_text(tmp_path / "x.csv", text.replace("0.1,20", "many,20", 1))
    with pytest.raises(UserError, match="many"):
        read_csv(tmp_path / "x.csv", METRICS)


def test_two_studies_in_one_file_are_refused(results, tmp_path):
    """Their rows have the same methods and seeds, and a table would count them as more seeds of one."""
    for frame, columns in zip(collect(make_study(), [results]), (METRICS, AUDITS), strict=True):
        write_csv(tmp_path / "x.csv", pd.concat([frame, frame.assign(study="other")]))
        with refuses("x.csv", "tiny", "other", "dpdm compare"):
            read_csv(tmp_path / "x.csv", columns)


def test_holes_name_run_and_what_is_missing(results):
    (results / "runs/1/utility.json").unlink()
    (results / "anchors/0/fidelity.json").unlink()
    write_audit(results / "audits/digits_dpgan.json", make_study().runs()[:3])
    study = make_study()
    metrics, audits = collect(study, [results])
    assert holes(study, metrics, audits) == [
        "digits, dpgan, epsilon 1, seed 1, sampler default: no utility",
        "digits, dpgan, epsilon inf, seed 1, sampler default: no audit",
        "digits, real, seed 0: no fidelity",
    ]
    assert metrics[metrics["epsilon"] == "inf"]["accountant"].tolist() == ["rdp"] * 4 + [""] * 4


FID = {"synthetic_images": 20, "classifiers": ["logreg", "mlp"], "fid": {}}


def write_inception(folder, coordinates, weights="aaaa", **changes):
    rows = [measured("fid", r) | {"value": 3.0} for r in ("train", "test")]
    shared = {"coordinates": coordinates.model_dump(mode="json"), "provenance": ONE, "num_synthetic": 20}
    content = shared | {"inception": {"weights_sha256": weights}, "metrics": rows}
    artifacts.write_json(folder / "inception.json", content | changes)


@pytest.fixture
def with_fid(results):
    """The small study's files and those by Inception, and where each lies."""
    study = make_study(evaluation=FID)
    for i, run in enumerate(study.runs()):
        write_inception(results / f"runs/{i}", run.coordinates("default"))
    for i, anchor in enumerate(study.anchor_coordinates()):
        write_inception(results / f"anchors/{i}", anchor)
    return results


def test_scores_without_a_direction_are_of_an_older_version(results):
    path = results / "runs/0/fidelity.json"
    content = artifacts.read_json(path)
    for row in content["metrics"]:
        del row["direction"]
    artifacts.write_json(path, content)
    with pytest.raises(UserError) as caught:
        collect(make_study(), [results])
    for part in (str(path), "direction", "--forcerun score"):
        assert part in str(caught.value)


def test_a_table_of_scores_without_directions_is_refused(results, tmp_path):
    metrics, _ = collect(make_study(), [results])
    for changed in (metrics.drop(columns="direction"), metrics.assign(direction="")):
        write_csv(tmp_path / "x.csv", changed)
        with pytest.raises(UserError, match=r"x\.csv"):
            read_csv(tmp_path / "x.csv", METRICS)


def test_scores_by_inception_stand_between_the_other_distances_and_the_accuracies(with_fid):
    study = make_study(evaluation=FID)
    metrics, audits = collect(study, [with_fid])
    names = ["fd", "fd", "fid", "fid", "acc_logreg", "acc_mlp"]
    assert metrics["metric"].tolist() == names * 8
    assert holes(study, metrics, audits) == []


def test_scores_by_inception_that_the_study_does_not_ask_for_any_more_do_not_show(with_fid):
    write_inception(with_fid / "runs/0", make_study().runs()[0].coordinates("default"), provenance=TWO)
    assert "fid" not in set(collect(make_study(), [with_fid])[0]["metric"])


def test_a_fid_that_the_study_asks_for_and_nobody_measured_is_a_hole(with_fid):
    study = make_study(evaluation=FID)
    (with_fid / "runs/0/inception.json").unlink()
    (with_fid / "runs/1/fidelity.json").unlink()
    (with_fid / "anchors/3/inception.json").unlink()
    assert holes(study, *collect(study, [with_fid])) == [
        "digits, dpgan, epsilon 1, seed 0, sampler default: no FID",
        "digits, dpgan, epsilon 1, seed 1, sampler default: no fidelity",
        "digits, label_only, seed 1: no FID",
    ]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"provenance": TWO}, r"made by different versions of the code \(.*1111"),
        ({"num_synthetic": 30}, r"runs/0/inception\.json: .*judged by 30 synthetic images, and the study says 20"),
        ({"drawn_by": {}}, r"runs/0/inception\.json: the images of .* were drawn otherwise than the study says"),
        ({"weights": "bbbb"}, r"runs/0/inception\.json .*different weights of Inception.*--forcerun reference"),
        (
            {"coordinates": make_study().runs()[1].coordinates("default")},
            r"twice, in .*runs/0/inception\.json and in .*runs/1/inception\.json; delete one",
        ),
    ],
)
def test_scores_by_inception_of_other_images_code_or_weights_are_refused_in_one_sentence(with_fid, changes, part):
    study = make_study(evaluation=FID)
    write_inception(with_fid / "runs/0", **{"coordinates": study.runs()[0].coordinates("default"), **changes})
    with pytest.raises(UserError, match=part) as caught:
        collect(study, [with_fid])
    assert "\n" not in str(caught.value)


def test_nothing_collected_is_all_holes(tmp_path):
    metrics, audits = collect(make_study(), [tmp_path])
    assert len(metrics) == len(audits) == 0
    assert len(holes(make_study(), metrics, audits)) == 4 + 4


@pytest.fixture
def with_classifier(results):
    """A study with a classifier beside its generator, and the files of both."""
    study = make_study(methods={"dpgan": {"impl": "a:B"}, "net": {"impl": "a:C", "kind": "classifier"}})
    runs = [run for run in study.runs() if run.method == "net"]
    for i, run in enumerate(runs):
        row = measured("acc_mlp") | {"value": 90.0 + i}
        content = {"coordinates": run.coordinates().model_dump(mode="json"), "provenance": ONE, "metrics": [row]}
        artifacts.write_json(
            results / f"runs/net{i}/utility.json", {**content, "num_synthetic": 0, "protocol": "direct"}
        )
    write_audit(results / "audits/digits_net.json", runs)
    return study


def test_a_classifier_has_one_accuracy_and_no_synthetic_images(results, with_classifier):
    metrics, audits = collect(with_classifier, [results])
    found = metrics[metrics["method"] == "net"]
    assert found["metric"].tolist() == ["acc_mlp"] * 4
    assert found["value"].tolist() == [90, 91, 92, 93]
    assert found["epsilon"].tolist() == ["1", "1", "inf", "inf"]
    assert set(zip(found["sampler"], found["num_synthetic"], found["protocol"], strict=True)) == {("", 0, "direct")}
    assert set(found["accountant"]) == {"rdp"}  # its audit is found
    assert list(metrics["method"].drop_duplicates()) == ["dpgan", "net", "real", "label_only"]
    assert holes(with_classifier, metrics, audits) == []


def test_holes_of_a_classifier(results, with_classifier):
    (results / "runs/net2/utility.json").unlink()
    (results / "audits/digits_net.json").unlink()
    assert holes(with_classifier, *collect(with_classifier, [results])) == [
        "digits, net, epsilon 1, seed 0: no audit",
        "digits, net, epsilon 1, seed 1: no audit",
        "digits, net, epsilon inf, seed 0: no accuracy, no audit",
        "digits, net, epsilon inf, seed 1: no audit",
    ]


def test_scores_from_before_a_method_changed_its_kind_do_not_show(results, with_classifier):
    """A classifier that became a generator: its own accuracy is no synthetic set's."""
    study = make_study(methods={name: {"impl": spec.impl} for name, spec in with_classifier.methods.items()})
    metrics, audits = collect(study, [results])
    assert set(metrics["method"]) == {"dpgan", "real", "label_only"}
    assert "digits, net, epsilon 1, seed 0, sampler default: no fidelity, no utility" in holes(study, metrics, audits)


def test_stale_results_do_not_show_and_do_not_count_as_mixed_code(results):
    old = make_study(methods={"gone": {"impl": "a:B"}})
    write_scores(results / "runs/old", old.runs()[0].coordinates("default"), TWO)
    write_audit(results / "audits/digits_gone.json", old.runs(), TWO)
    write_scores(results / "runs/sampler", make_study().runs()[0].coordinates("gone"), TWO)
    metrics, audits = collect(make_study(), [results])
    assert "gone" not in {*metrics["method"], *audits["method"], *metrics["sampler"]}
    assert set(metrics["code"]) == {"1111"}


def test_mixed_code_is_refused_in_one_sentence_unless_allowed(results):
    write_scores(results / "runs/2", make_study().runs()[2].coordinates("default"), TWO)
    with pytest.raises(UserError) as caught:
        collect(make_study(), [results])
    message = str(caught.value)
    assert str(results / "runs/2/fidelity.json") in message
    assert "1111" in message
    assert "2222" in message
    assert "snakemake --forcerun train" in message
    assert "allow_mixed_code: true" in message
    assert "\n" not in message
    metrics, _ = collect(make_study(allow_mixed_code=True), [results])
    assert set(metrics["code"]) == {"1111", "2222"}


def test_another_protocol_than_the_studys_is_refused_unless_allowed(results):
    paper = {"synthetic_images": 20, "classifiers": ["logreg", "mlp"], "protocol": "paper"}
    with pytest.raises(UserError) as caught:
        collect(make_study(evaluation=paper), [results])
    message = str(caught.value)
    assert re.search(r"0/utility\.json: .* was scored by the protocol standard, and the study says paper;", message)
    assert "--forcerun score score_anchor" in message
    assert "\n" not in message
    metrics, _ = collect(make_study(evaluation=paper, allow_mixed_protocols=True), [results])
    assert set(metrics["protocol"]) == {"", "standard"}


def test_scores_by_a_protocol_that_is_gone_can_be_read(results):
    for path in results.rglob("utility.json"):
        artifacts.write_json(path, artifacts.read_json(path) | {"protocol": "quick"})
    with refuses("protocol quick", "study says standard"):
        collect(make_study(), [results])
    metrics, _ = collect(make_study(allow_mixed_protocols=True), [results])
    assert set(metrics["protocol"]) == {"", "quick"}


def test_protocols_within_one_cell_are_refused_whatever_is_allowed(results, with_classifier):
    """40 and 90 % by two protocols are no 65 % +- 35."""
    seed, other, *_ = (results / f"runs/{i}/utility.json" for i in range(4))
    study = make_study(methods=with_classifier.model_dump(mode="json")["methods"], allow_mixed_protocols=True)
    for path in (seed, other):  # a cell of its own
        artifacts.write_json(path, artifacts.read_json(path) | {"protocol": "paper"})
    metrics, _ = collect(study, [results])
    assert set(metrics["protocol"]) == {"", "paper", "standard", "direct"}
    artifacts.write_json(other, artifacts.read_json(other) | {"protocol": "standard"})
    with pytest.raises(UserError) as caught:
        collect(study, [results])
    assert str(caught.value) == (
        "the seeds of digits, dpgan, epsilon 1, sampler default were scored by the protocols paper and standard, whose "
        f"accuracies have no mean; delete {seed} and run snakemake again"
    )


def test_another_number_of_synthetic_images_than_the_studys_is_refused(results):
    more = {"synthetic_images": 30, "classifiers": ["logreg", "mlp"]}
    with refuses("20", "30", "--forcerun sample"):
        collect(make_study(evaluation=more), [results])


def drawn_by(study, run, sampler="default"):
    return {"drawn_by": study.sample(run, sampler).model_dump(mode="json")}


def test_images_that_were_drawn_by_another_sampler_than_the_studys_are_refused(results):
    study = make_study()
    other = make_study(methods={"dpgan": {"impl": "a:B", "samplers": {"default": {"guidance": 1.0}}}})
    path = results / "runs/2/utility.json"
    written = artifacts.read_json(path)
    artifacts.write_json(path, written | drawn_by(study, study.runs()[2]))
    assert len(collect(study, [results])[0]) == 32
    with pytest.raises(
        UserError, match=r"runs/2/utility\.json: .*epsilon inf, seed 0.* were drawn otherwise .* sample`"
    ):
        collect(other, [results])


def test_a_floor_of_another_number_of_images_is_refused_and_a_ceiling_has_its_own(results):
    real, _, floor, _ = make_study().anchor_coordinates()
    for i, (anchor, n) in enumerate(((real, 1437), (floor, 7))):
        write_scores(results / f"anchors/{2 * i}", anchor)
        for name in ("fidelity.json", "utility.json"):
            path = results / f"anchors/{2 * i}" / name
            artifacts.write_json(path, artifacts.read_json(path) | {"num_synthetic": n})
    with refuses("anchors/2/", "label_only, seed 0", "7"):
        collect(make_study(), [results])


def test_mixed_code_counts_audits_and_says_how_to_redo_an_anchor(results):
    write_audit(results / "audits/digits_dpgan.json", make_study().runs(), TWO)
    with pytest.raises(UserError, match=r"digits_dpgan\.json"):
        collect(make_study(), [results])
    write_audit(results / "audits/digits_dpgan.json", make_study().runs())
    write_scores(results / "anchors/0", make_study().anchor_coordinates()[0], TWO)
    with pytest.raises(UserError, match=r"anchors/0/fidelity.json.*score_anchor"):
        collect(make_study(), [results])


def test_the_shares_of_the_budget_are_those_of_the_audit(results, tmp_path):
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    content["runs"][0]["budget_shares"] = {"net": {"rdp": 0.9, "prv": 0.8}}
    artifacts.write_json(path, content)
    _, audits = collect(make_study(), [results])
    write_csv(tmp_path / "audits.csv", audits)
    audits = read_csv(tmp_path / "audits.csv", AUDITS)
    assert audits[["share_rdp", "share_prv"]].values.tolist()[0] == [0.9, 0.8]
    assert audits["share_rdp"].notna().tolist() == [True, False, False, False]


def test_an_audit_without_provenance_is_refused(results):
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    content["runs"][0]["provenance"] = TWO
    artifacts.write_json(path, content)
    _, audits = collect(make_study(allow_mixed_code=True), [results])
    assert audits["code"].tolist() == ["2222", "1111", "1111", "1111"]
    del content["runs"][0]["provenance"]
    artifacts.write_json(path, content)
    with pytest.raises(UserError, match=r"digits_dpgan\.json.*provenance"):
        collect(make_study(), [results])


def test_one_result_twice_is_refused(results):
    write_scores(results / "copy", make_study().runs()[0].coordinates("default"))
    with refuses("copy/fidelity.json", "runs/0/fidelity.json"):
        collect(make_study(), [results])


def test_one_audit_twice_is_refused(results):
    write_audit(results / "audits/copy.json", make_study().runs()[:1])
    with refuses("audit", "twice"):
        collect(make_study(), [results])


def test_malformed_files_are_named(results):
    path = results / "runs/0/fidelity.json"
    content = artifacts.read_json(path)
    content["metrics"][1]["value"] = "many"
    artifacts.write_json(path, content)
    with pytest.raises(UserError, match=r"runs/0/fidelity.json: metrics\[1\]: value.*many"):
        collect(make_study(), [results])


HEADER = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time"


def test_benchmarks_of_snakemake_plain_and_extended(tmp_path):
    extended = "\tjobid\trule_name\twildcards\tparams\tthreads\tcpu_usage\tresources\tinput_size_mb"
    more = "3\ttrain\t{'dataset': 'digits', 'method': 'dpgan'}\t{}\t1\t9\t{}\t{}"
    measured = "12.50\t0:00:12\t400.25\t1\t1\t1\t0\t0\t99.0\t12.00"
    artifacts.write_text(tmp_path / "a/one.tsv", f"{HEADER}{extended}\n{measured}\t{more}\n")
    artifacts.write_text(tmp_path / "b/prepare.tsv", f"{HEADER}\n0.10\t0:00:00" + "\tNA" * 8 + "\n")
    artifacts.write_jsonl(tmp_path / "c/train.jsonl", [{"step": 1, "loss": 0.5}])  # a loss curve, no benchmark
    frame = read_benchmarks(tmp_path, make_study())
    assert frame.to_dict("list") == {
        "rule": ["train", "prepare"],
        "dataset": ["digits", ""],
        "method": ["dpgan", ""],
        "seconds": [12.5, 0.1],
        "max_rss_mb": pytest.approx([400.25, math.nan], nan_ok=True),
        "ended": [path.stat().st_mtime for path in sorted(tmp_path.rglob("*.tsv"))],
    }
    assert len(read_benchmarks(tmp_path / "absent", make_study())) == 0


def test_times_of_jobs_are_added_up_with_those_added_up_before():
    new = pd.DataFrame({"rule": ["train", "train", "train", "score"], "seconds": [3.0, 5.0, math.nan, math.nan]})
    before = pd.DataFrame({"rule": ["train"], "jobs": [2], "seconds": [20.0], "longest": [15.0], "max_rss_mb": [400.0]})
    (row,) = add_jobs([before, new.assign(max_rss_mb=300.0)], ["rule"]).to_dict("records")
    assert row == {"rule": "train", "jobs": 4, "seconds": 28.0, "longest": 15.0, "max_rss_mb": 400.0}


@pytest.mark.parametrize(
    ("jobs", "seconds"),
    [
        ([(2, 102), (50, 152), (40, 150)], 52),  # two at once
        ([(2, 102), (50, 152), (10, 1000)], 62),  # a pause
        ([(2, 102), (50, 152), (math.nan, 1000)], 52),  # a job that Snakemake could not measure
        ([(2, 500), (50, 500.1), (40, 500.2)], math.nan),  # a copy
        ([(2, 102)], math.nan), ([], math.nan),
    ],
)  # fmt: skip
def test_seconds_by_the_clock(jobs, seconds):
    assert clock_seconds(pd.DataFrame(jobs, columns=["seconds", "ended"])) == pytest.approx(seconds, nan_ok=True)


def test_benchmarks_of_what_has_left_the_study_are_passed_over(tmp_path):
    run = {"dataset": "digits", "method": "dpgan", "epsilon": "inf", "seed": "1", "sampler": "default"}
    others = {"dataset": "mnist", "method": "gone", "epsilon": "10", "seed": "2", "sampler": "churn"}
    all_wildcards = [run, *({**run, name: other} for name, other in others.items()), {"anchor": "real", "seed": "7"}]
    for i, wildcards in enumerate(all_wildcards):
        text = f"s\tmax_rss\trule_name\twildcards\n{1.0 + i}\t1\tscore\t{wildcards}\n"
        artifacts.write_text(tmp_path / f"{i}.tsv", text)
    assert read_benchmarks(tmp_path, make_study())["seconds"].tolist() == [1.0]
    fewer = make_study(methods={"dpgan": {"impl": "a:B", "seeds": [0]}, "other": {"impl": "a:B"}})
    assert read_benchmarks(tmp_path, fewer).empty


def test_snakemake_still_writes_these_columns(tmp_path):
    record = pytest.importorskip("snakemake.benchmark")
    made = record.BenchmarkRecord(running_time=2.0)
    made.jobid, made.rule_name, made.threads, made.params, made.resources, made.input = 1, "train", 1, {}, {}, []
    made.wildcards = {"dataset": "digits", "method": "dpgan"}
    record.write_benchmark_records([made], str(tmp_path / "x.tsv"), True)
    frame = read_benchmarks(tmp_path, make_study())
    assert frame["rule"].tolist() == ["train"]
    assert frame["method"].tolist() == ["dpgan"]
    assert frame["seconds"].tolist() == [2.0]
    assert frame["max_rss_mb"].isna().all()


def test_a_run_of_another_recipe_is_refused(results):
    """Say somebody edited the study after `.snakemake` was deleted: old runs must not pass for new ones."""
    study = make_study()
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    for audited, run in zip(content["runs"], study.runs(), strict=True):
        audited["recipe"] = run.model_dump(mode="json")
    artifacts.write_json(path, content)
    assert len(collect(study, [results])[1]) == 4
    content["runs"][2]["recipe"]["params"] = {"lr": 1.0}
    artifacts.write_json(path, content)
    with refuses("dpgan/inf/0", "recipe", "params.lr"):
        collect(study, [results])


def test_an_audit_of_an_older_version_is_refused(results):
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    for audited in content["runs"]:
        del audited["epsilon_pld"]
    artifacts.write_json(path, content)
    with pytest.raises(UserError, match=r"digits_dpgan\.json: .*epsilon_pld.*version.*forcerun audit"):
        collect(make_study(), [results])


def test_runs_of_one_method_made_by_different_versions_of_its_code_are_refused(results):
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    for number, audited in enumerate(content["runs"]):
        audited["provenance"] |= {"method_code": "new" if number else "old"}
    artifacts.write_json(path, content)
    with refuses("dpgan", "old", "new"):
        collect(make_study(), [results])
    assert len(collect(make_study(allow_mixed_code=True), [results])[1]) == 4


def test_distances_by_different_weights_of_an_extractor_are_refused(results):
    for number, path in enumerate(sorted(results.glob("runs/*/fidelity.json"))[:2]):
        content = artifacts.read_json(path)
        artifacts.write_json(path, content | {"small_cnn": {"weights_sha256": f"{number}" * 64}})
    with refuses("runs/0/fidelity.json", "runs/1/fidelity.json", "small_cnn on digits", "--forcerun extractor"):
        collect(make_study(), [results])
    assert len(collect(make_study(allow_mixed_code=True), [results])[0])


# --- attacks --------------------------------------------------------------------------------------------------


def write_attack(path, run, provenance=ONE, **changes):
    bound = {
        "method": "one_run",
        "epsilon": 0.4,
        "certified": 0.4,
        "confidence": 0.95,
        "runs": 1,
        "canaries": 1000,
        "exceeded": False,
    }
    attacked = {
        "coordinates": run.coordinates().model_dump(mode="json"), "recipe": run.model_dump(mode="json"),
        "provenance": provenance, "attack": bound | {"guesses": 300},
    } | changes  # fmt: skip
    artifacts.write_json(path, {"attacks": [attacked]})


def test_an_attack_stands_beside_every_seed_of_its_cell(results):
    study = make_study(attacks=True)
    write_attack(results / "attacks/digits/dpgan.json", study.attacked_runs()[0])
    metrics, audits = collect(study, [results])
    assert list(audits["attack"]) == ["one_run", "one_run", "", ""]
    assert list(audits["attacked_epsilon"][:2]) == [0.4, 0.4]
    assert math.isnan(audits["attacked_epsilon"][2])
    assert list(audits["attack_canaries"]) == [1000, 1000, 0, 0]
    assert holes(study, metrics, audits) == []


def test_a_study_that_wants_attacks_misses_them_for_its_private_runs(results):
    study = make_study(attacks=True)
    lines = holes(study, *collect(study, [results]))
    assert [line for line in lines if "no attack" in line] == lines
    assert len(lines) == 2
    assert all("epsilon 1" in line for line in lines)


def test_a_study_without_attacks_passes_over_them(results):
    write_attack(results / "attacks/x.json", make_study().runs()[0], TWO)
    _, audits = collect(make_study(), [results])
    assert set(audits["attack"]) == {""}


def test_an_attack_on_another_recipe_is_refused(results):
    study = make_study(attacks=True)
    run = study.runs()[0]
    write_attack(results / "attacks/x.json", run, recipe=run.model_dump(mode="json") | {"delta": 1e-3})
    with pytest.raises(UserError, match=r"x\.json.*dpgan.*another recipe"):
        collect(study, [results])


def test_an_attack_of_other_code_is_refused(results):
    study = make_study(attacks=True)
    write_attack(results / "attacks/x.json", study.runs()[0], TWO)
    with refuses("versions"):
        collect(study, [results])


def test_two_attacks_on_one_cell_are_refused(results):
    study = make_study(attacks=True)
    for seed in (0, 1):
        write_attack(results / f"attacks/{seed}.json", study.runs()[seed])
    with pytest.raises(UserError, match=r"twice.*0\.json.*1\.json"):
        collect(study, [results])


def test_every_accountant_has_its_column_next_to_the_target():
    at = list(AUDITS).index("target_epsilon") + 1
    spent = [f"epsilon_{name}" for name in get_args(Accountant)]
    assert list(AUDITS)[at : at + len(spent)] == spent
    kept = (Path(__file__).parents[2] / "results/digits/kept/audits.csv").read_text().splitlines()[0].split(",")
    assert kept[: at + len(spent)] == list(AUDITS)[: at + len(spent)]


def test_a_smoothed_set_says_so(results):
    samplers = {"default": {}, "smooth": {"tv_weight": 0.25}}
    study = make_study(methods={"dpgan": {"impl": "a:B", "samplers": samplers}})
    run = study.runs()[0]
    write_scores(results / "runs/0/smooth", run.coordinates("smooth"))
    for name in ("fidelity", "utility"):
        scored = results / f"runs/0/smooth/{name}.json"
        artifacts.write_json(scored, artifacts.read_json(scored) | drawn_by(study, run, "smooth"))
    path = results / "audits/digits_dpgan.json"
    content = artifacts.read_json(path)
    for run in content["runs"]:
        run["departures"] = "K = 4"
    artifacts.write_json(path, content)
    metrics, audits = collect(study, [results])
    marks = metrics[metrics["method"] == "dpgan"].groupby("sampler")["departures"].unique().map(list).to_dict()
    assert marks["default"] == ["K = 4"]
    assert marks["smooth"] == ["K = 4, smoothed, TV weight 0.25"]
    assert set(audits["departures"]) == {"K = 4"}
