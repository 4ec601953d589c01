"""Verdicts: sentences for what the numbers support, none for what they do not."""

import pandas as pd
import pytest
from measured import measured
from refusals import holds

from dpdm.config import parse_study
from dpdm.layout import PRIVACY_STATUS, PUBLISHED, Layout
from dpdm.report.collect import AUDITS, METRICS, write_csv
from dpdm.report.published import read_published
from dpdm.report.registry import Material
from dpdm.report.verdicts import CAUTION, FINDING, WRONG, leads_table, verdicts
from dpdm.study import study_json

SUBJECT = {"impl": "dpdm.diffusion.method:DPDM"}
STUDY = {
    "study": "s",
    "datasets": {"d": {"source": "mnist", "delta": 1e-5}},
    "epsilons": [1],
    "seeds": [0, 1, 2, 3, 4],
    "methods": {"dpdm": SUBJECT, "gan": {"impl": "a:B"}, "mean": {"impl": "a:C"}},
    "evaluation": {"synthetic_images": 10, "classifiers": ["cnn"]},
}


def scored(method, values, metric="acc_cnn", epsilon="1", sampler="default", protocol="standard"):
    blank = {name: kind() for name, kind in METRICS.items()}
    place = {"dataset": "d", "method": method, "epsilon": epsilon, "sampler": sampler, "protocol": protocol}
    what = measured(metric, "train" if metric in ("fd", "fid") else "test")
    return [{**blank, **place, **what, "seed": seed, "value": value} for seed, value in enumerate(values)]


def material(*groups, audits=(), published=None, **changes):
    metrics = pd.DataFrame([row for group in groups for row in group], columns=list(METRICS))
    frame = pd.DataFrame(audits, columns=list(AUDITS))
    return Material(parse_study(STUDY | changes, "s"), Layout("r", "s"), metrics, frame, published=published)


def said(*groups, level=None, audits=(), published=None, **changes):
    found = verdicts(material(*groups, audits=audits, published=published, **changes))
    return "\n".join(v.text for v in found if level in (None, v.level))


BEST, WORST = [80.0, 81.0, 82.0, 83.0, 84.0], [70.0, 71.0, 72.5, 73.0, 74.0]


def test_who_wins_in_every_measure_beats_and_who_does_not_is_below():
    rows = [scored("dpdm", BEST), scored("gan", WORST), scored("dpdm", [1.0, 1.1, 1.0, 1.2, 1.0], "fd"),
            scored("gan", [2.0, 2.2, 2.1, 2.0, 2.1], "fd")]  # fmt: skip
    text = said(*rows, level=FINDING)
    assert "dpdm beats gan by FD (small CNN) and CNN (5 seeds)" in text
    swapped = said(*(
        [r | {"method": {"dpdm": "gan", "gan": "dpdm"}[r["method"]]} for r in group] for group in rows
    ), level=FINDING)  # fmt: skip
    assert "dpdm is below gan by FD (small CNN) and CNN (5 seeds)" in swapped


def test_a_gap_within_the_spread_of_seeds_is_no_victory():
    text = said(scored("dpdm", BEST), scored("gan", [79.0, 82.5, 81.0, 83.5, 83.0]), level=FINDING)
    assert "cannot be distinguished from gan by CNN" in text
    assert "beats" not in text


def test_measures_that_disagree_are_all_named():
    text = said(scored("dpdm", BEST), scored("gan", WORST), scored("dpdm", [2.0] * 5, "fd"),
                scored("gan", [1.0] * 5, "fd"), level=FINDING)  # fmt: skip
    assert "dpdm against gan is better by CNN; worse by FD (small CNN) (5 seeds)" in text


def test_the_best_by_each_measure_is_named_with_all_that_may_be_as_good():
    near = [value + 0.1 * (-1) ** i for i, value in enumerate(BEST)]
    distances = {"dpdm": [2.0, 2.1, 2.0, 2.2, 2.0], "gan": [1.0, 1.2, 1.1, 1.0, 1.1], "mean": [3.0, 3.1, 3.0, 3.2, 3.0]}
    rows = [scored("dpdm", BEST), scored("gan", near), scored("mean", WORST)]
    text = said(*rows, *(scored(name, values, "fd") for name, values in distances.items()), level="best")
    mean = sum(near) / len(near)
    assert (
        f"best generator by FD (small CNN): gan, 1.08; by CNN: gan, {mean:.1f} % (not distinguished from dpdm)." in text
    )
    assert "best generator" not in said(*(group[:2] for group in rows))  # two seeds


def test_the_table_of_the_best_has_classifiers_on_private_images_and_published_numbers():
    near = [value + 0.1 * (-1) ** i for i, value in enumerate(BEST)]
    direct = (
        scored("dpsgd", [90.0] * 3, protocol="direct"),
        scored("dpsgd", [95.0] * 3, epsilon="inf", protocol="direct"),
    )
    rows = scored("dpdm", BEST), scored("gan", near), scored("mean", WORST), *direct
    table = leads_table(material(*rows, published=read_published(PUBLISHED, PRIVACY_STATUS)))
    best = sum(near) / len(near)
    assert list(table) == ["d, ε = 1"]
    assert table.loc["CNN accuracy % ↑"].item() == f"{best:.1f} gan; even: dpdm"
    assert table.loc["CNN accuracy %, DP-SGD on private images"].item() == "90.0 dpsgd"
    assert table.loc["published, protocol paper"].item() == "95.3 DPDM (CNN)"
    assert leads_table(material(*(group[:2] for group in rows))).empty  # two seeds


def test_every_diffusion_model_is_compared():
    gauss = {"impl": "dpdm.diffusion.gauss:DPDMGauss"}
    methods = {"mean": {"impl": "a:C"}, "dpdm": SUBJECT, "gauss": gauss}
    text = said(scored("mean", WORST), scored("gauss", BEST), methods=methods, level=FINDING)
    assert "gauss beats mean by CNN" in text
    text = said(scored("mean", WORST), scored("gauss", BEST), scored("dpdm", BEST), methods=methods, level=FINDING)
    assert "gauss beats mean by CNN" in text
    assert "dpdm beats mean by CNN" in text


def test_two_seeds_prove_nothing():
    text = said(scored("dpdm", BEST[:2]), scored("gan", WORST[:2]))
    assert "Fewer than 3 seeds (2)" in text
    assert "dpdm is ahead of gan by CNN (2 seeds, too few for a claim)" in text
    assert "beats" not in text


def other_seeds(rows, first=3):
    return [row | {"seed": row["seed"] + first} for row in rows]


def test_seeds_that_do_not_pair_are_compared_by_welchs_interval():
    near, far = scored("gan", [82.0, 80.5, 81.0]), scored("gan", [60.0, 60.5, 61.0])
    text = said(scored("dpdm", BEST[:3]), other_seeds(far))
    assert "dpdm beats gan by CNN (3 and 3 seeds, unpaired)" in text
    assert "not distinguished" not in text
    assert "cannot be distinguished from gan by CNN" in said(scored("dpdm", BEST[:3]), other_seeds(near))
    wide = [[95.0, 60.0, 85.0], [60.0, 50.0, 70.0]]  # a normal interval would distinguish them
    assert "cannot be distinguished" in said(scored("dpdm", wide[0]), other_seeds(scored("gan", wide[1])))
    assert "too few" in said(scored("dpdm", BEST[:3]), other_seeds(far[:2], 2))


def test_a_claim_rests_on_no_measure_of_one_seed():
    rows = scored("dpdm", BEST), scored("gan", WORST), scored("dpdm", [1.0], "fd"), scored("gan", [2.0], "fd")
    text = said(*rows, level=FINDING)
    assert "dpdm beats gan by CNN (5 seeds)" in text
    assert "FD" not in text


def test_accuracies_of_several_protocols_are_not_compared():
    paper = scored("dpdm", BEST, protocol="paper")
    text = said(paper, scored("gan", WORST), scored("dpdm", [1.0] * 5, "fd"), scored("gan", [2.0] * 5, "fd"))
    assert "several protocols" in text
    assert "dpdm beats gan by FD (small CNN) (5 seeds)" in text
    assert "CNN," not in text
    assert "by CNN" not in text


def test_who_is_ahead_with_fewer_seeds_is_named_with_the_best():
    rows = scored("dpdm", BEST), scored("gan", WORST), scored("mean", [99.0]), scored("mean", [1.0], sampler="low")
    text = said(*rows, level="best")
    assert "dpdm, 82.0 %" in text
    assert "with fewer seeds, mean (default), 99.0 % (1 seed) ahead" in text
    assert "low" not in text
    (cell,) = leads_table(material(*rows)).loc["CNN accuracy % ↑"]
    assert cell == "82.0 dpdm; ahead: mean (default), 99.0 % (1 seed)"


def test_of_equal_means_the_first_is_the_best_whatever_the_rounding():
    rows = scored("dpdm", [0.1 + 0.2] * 3), scored("gan", [0.3] * 3), scored("mean", [0.1] * 3)
    for methods in (rows, [rows[1], rows[0], rows[2]]):
        (cell,) = leads_table(material(*methods)).loc["CNN accuracy % ↑"]
        assert cell.startswith(f"0.3 {methods[0][0]['method']}; even")


def test_public_data_and_teachers_are_marked_in_every_sentence():
    net = scored("net", [97.3] * 5, sampler="", protocol="direct")
    public = [row | {"public_data": "digits"} for row in scored("dpdm", BEST)]
    taught = [row | {"departures": "K = 4, with a DP teacher"} for row in scored("gan", WORST)]
    text = said(public, taught, [row | {"public_data": "mnist"} for row in net])
    assert "82.0 % by dpdm (uses public data: digits)" in text
    assert "97.3 % by net (uses public data: mnist)" in text
    assert "gan (with a DP teacher)" in text
    assert "gan by" not in text
    table = leads_table(material(public, taught, [row | {"public_data": "mnist"} for row in net]))
    assert "net (uses public data: mnist)" in table.loc["CNN accuracy %, DP-SGD on private images"].item()


def test_published_numbers_without_public_data_are_set_against_ours_without():
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED

    published = read_published(PUBLISHED, PRIVACY_STATUS)
    public = [row | {"public_data": "digits"} for row in scored("dpdm", BEST, protocol="dpimagebench")]
    ours = scored("gan", WORST, protocol="dpimagebench")
    assert "72.1 % (gan, protocol dpimagebench)" in said(public, ours, published=published)


def test_methods_with_too_few_seeds_are_named():
    text = said(scored("dpdm", BEST), scored("gan", WORST[:2]), level=CAUTION)
    assert "Fewer than 3 seeds, too few for a claim: d, gan (default) at ε = 1." in text
    some = said(scored("dpdm", BEST, sampler="a"), scored("dpdm", WORST[:1], sampler="b"), level=CAUTION)
    assert "too few for a claim: d, dpdm (b) at ε = 1." in some
    assert "Fewer" not in said(scored("dpdm", BEST), scored("gan", WORST), level=CAUTION)


def test_a_tie_in_one_of_two_seeds_is_neither_ahead_nor_behind():
    text = said(scored("dpdm", [80.0, 80.0]), scored("gan", [80.0, 79.0]), level=FINDING)
    assert "neither ahead of gan nor behind" in text


def test_a_protocol_under_which_a_cnn_is_below_logistic_regression_is_wrong():
    real = {"method": "real", "epsilon": "", "sampler": ""}
    weak = (
        scored(values=[79.7] * 3, protocol="quick", **real),
        scored(values=[84.4] * 3, metric="acc_logreg", protocol="quick", **real),
    )
    text = said(*weak, level=WRONG)
    assert all(part in text for part in ("79.7", "84.4", "CNN", "LogReg", "protocol quick"))
    strong = scored(values=[88.0] * 3, **real), scored(values=[84.4] * 3, metric="acc_logreg", **real)
    assert said(*strong, level=WRONG) == ""


def test_a_method_above_the_real_images_is_named():
    text = said(scored("real", [70.0] * 3, epsilon="", sampler=""), scored("gan", BEST), level=CAUTION)
    assert "gan at ε = 1" in text
    assert "no ceiling" in text
    assert "no ceiling" not in said(scored("real", [90.0] * 3, epsilon="", sampler=""), scored("gan", BEST))
    far = scored("real", [5.0] * 3, "fd", epsilon="", sampler="")
    assert "no ceiling" in said(far, scored("gan", [1.0] * 3, "fd"), level=CAUTION)
    assert "no ceiling" not in said(far, scored("gan", [9.0] * 3, "fd"), level=CAUTION)


def test_no_fid_and_missing_results_are_cautions():
    text = said(scored("gan", BEST), level=CAUTION)
    assert "No Inception FID" in text
    assert "results are missing" in text
    assert "No Inception FID" not in said(scored("gan", BEST), scored("gan", [3.0] * 5, "fid"))


def test_a_failed_audit_and_a_successful_attack_are_wrong():
    blank = {name: kind() for name, kind in AUDITS.items()} | {"dataset": "d", "method": "gan", "epsilon": "1"}
    text = said(
        level=WRONG, audits=[blank | {"passed": False}, blank | {"seed": 1, "passed": True, "attack_exceeded": True}]
    )
    assert "1 of 2 private runs" in text
    assert "An attack on gan on d" in text
    assert said(level=WRONG, audits=[blank | {"passed": True}]) == ""


def test_classifiers_of_private_images_are_set_against_synthetic_ones():
    net = scored("net", [97.3] * 5, sampler="", protocol="direct")
    other = scored("gan", WORST, metric="acc_mlp")
    text = said(scored("gan", BEST), scored("gan", WORST, sampler="other"), other, net, level=FINDING)
    assert "CNN 97.3 % by net, 5 seeds, and 82.0 % by gan (default), 5 seeds" in text
    assert "MLP" not in text.partition("highest mean")[2]  # no private classifier of this kind


def test_published_numbers_name_their_protocol_and_ours_is_under_the_same():
    from dpdm.layout import PRIVACY_STATUS, PUBLISHED

    published = read_published(PUBLISHED, PRIVACY_STATUS)
    text = said(scored("dpdm", BEST), level=FINDING, published=published)
    assert "95.3 % (CNN, DPDM, protocol paper)" in text
    assert "97.26 % (WRN, FETA-Pro, protocol dpimagebench, privacy status understated)" in text
    assert "ours by these protocols: none" in text
    same = said(scored("dpdm", BEST, protocol="dpimagebench"), level=FINDING, published=published)
    assert "82.0 % (dpdm, protocol dpimagebench)" in same


@pytest.mark.parametrize("values", [[50.0] * 5, []])
def test_the_verb_prints_level_and_sentence(run_cli, tmp_path, values):
    study, layout = parse_study(STUDY, "s"), Layout(str(tmp_path), "s")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        from dpdm import artifacts

        artifacts.write_text(layout.study, study_json(study))
        write_csv(layout.metrics, pd.DataFrame(scored("dpdm", values), columns=list(METRICS)))
        write_csv(layout.audits, pd.DataFrame(columns=list(AUDITS)))
        code, stdout, _ = run_cli("verdict", layout.root)
    assert code == 0
    assert "caution: " in stdout


def test_extractors_that_order_sets_oppositely_are_a_caution():
    def distances(extractor, dpdm, gan):
        sets = zip(("dpdm", "gan"), (dpdm, gan), strict=True)
        return [row | {"extractor": extractor} for name, values in sets for row in scored(name, values, "fd")]

    low, high = [1.0, 1.1, 1.0, 1.2, 1.0], [2.0, 2.2, 2.1, 2.0, 2.1]
    text = said(distances("efflite", low, high), distances("small_cnn", high, low), level=CAUTION)
    assert holds(
        text.splitlines()[-1], "d: of the 1 pair", "FD (EfficientNet-Lite0)", "FD (small CNN)", "order 1 opposite"
    )
    assert "opposite" not in said(distances("efflite", low, high), distances("small_cnn", low, high), level=CAUTION)
    assert "opposite" not in said(distances("efflite", low, high), distances("small_cnn", low, low), level=CAUTION)


def test_a_warm_start_is_compared_by_the_same_sampler_and_with_what_it_spends():
    ours = SUBJECT | {"samplers": {"a": {"guidance": 1.0}, "b": {}}}
    methods = {"dpdm": ours, "start": ours | {"params": {"init_only": True}}}
    blank = {name: kind() for name, kind in AUDITS.items()} | {"dataset": "d", "epsilon": "1", "passed": True}
    audits = [blank | {"method": "start", "epsilon_rdp": 0.6861}]
    rows = [scored("dpdm", BEST, sampler="a"), scored("dpdm", BEST, sampler="b"), scored("start", WORST, sampler="a")]
    text = said(*rows, methods=methods, audits=audits, level=FINDING)
    assert "dpdm (a) beats start (which spends ε = 0.686) by CNN" in text
    assert "dpdm (b)" not in text
    for other in ({"params": {"init_only": True, "prior_share": 0.5}}, {"samplers": {"a": {"guidance": 2.0}}}):
        another = methods | {"start": methods["start"] | other}
        assert "start" not in said(*rows, methods=another, audits=audits, level=FINDING)


def test_a_method_with_several_sets_is_compared_by_the_best_of_them_for_each_measure():
    low, high = [1.0, 1.1, 1.0, 1.2, 1.0], [3.0, 3.1, 3.2, 3.0, 3.1]
    sets = [scored("dpdm", BEST, sampler="a"), scored("dpdm", WORST, sampler="b"),
            scored("dpdm", high, "fd", sampler="a"),
            scored("dpdm", low, "fd", sampler="b"), scored("gan", [75.0, 76.0, 77.5, 76.0, 78.0]),
            scored("gan", [2.0, 2.2, 2.1, 2.0, 2.1], "fd")]  # fmt: skip
    text = said(*sets, level=FINDING)
    assert "best set of each: dpdm beats gan by FD (small CNN) and CNN (5 seeds)" in text
    assert "best set" not in said(sets[0], sets[2], *sets[4:], level=FINDING)
    more = scored("dpdm", [99.0, 99.0], sampler="b")  # of two seeds, which proves nothing
    assert "dpdm beats gan by CNN (5 seeds)" in said(sets[0], more, sets[4], level=FINDING)


def test_the_best_by_the_distance_of_every_extractor_is_named():
    def distances(extractor, dpdm, gan):
        sets = zip(("dpdm", "gan"), (dpdm, gan), strict=True)
        return [row | {"extractor": extractor} for name, values in sets for row in scored(name, values, "fd")]

    low, high = [1.0, 1.1, 1.0, 1.2, 1.0], [2.0, 2.2, 2.1, 2.0, 2.1]
    text = said(distances("efflite", low, high), distances("small_cnn", high, low), level="best")
    assert "by FD (EfficientNet-Lite0): dpdm, 1.06; by FD (small CNN): gan, 1.06" in text


def test_the_sets_of_the_only_generator_are_compared_with_each_other():
    samplers = {"samplers": {name: {"kind": name} for name in ("ddim", "churn", "fast")}}
    sets = [scored("dpdm", BEST, sampler="ddim"), scored("dpdm", WORST, sampler="churn"),
            scored("dpdm", WORST, sampler="fast")]  # fmt: skip
    text = said(*sets, level=FINDING, methods={"dpdm": SUBJECT | samplers})
    assert "dpdm (ddim) beats dpdm (churn) and dpdm (fast) by CNN (5 seeds)" in text
    assert "dpdm (churn) cannot be distinguished from dpdm (fast) by CNN" in text
    assert "(churn)" not in said(*sets, scored("gan", WORST), level=FINDING, methods=STUDY["methods"] | {
        "dpdm": SUBJECT | samplers
    })  # fmt: skip
