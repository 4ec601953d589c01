"""Figures of the runs: which curves stand where, what a one-shot release looks like, and what bad input says."""

import math

import numpy as np
import pytest

from dpdm import artifacts
from dpdm.errors import UserError
from dpdm.report import run_figures
from dpdm.report.figures import save_figure, series_look
from dpdm.report.run_figures import Curve, privacy_spent, read_curve, read_spending, training_curves


@pytest.fixture
def curve(tmp_path):
    """Writes a train.jsonl of some values and returns its place in the grid."""

    def write(method, epsilon, seed, values=(), start=0, **more):
        path = tmp_path / f"{method}-{epsilon}-{seed}" / "train.jsonl"
        rows = [{"step": start + i, "released_grad_norm": v, **more} for i, v in enumerate(values)]
        artifacts.write_jsonl(path, rows)
        return Curve(method, epsilon, seed, path)

    return write


def lines_of(panel):
    return [(line.get_xdata().tolist(), line.get_ydata().tolist(), line.get_linewidth()) for line in panel.lines]


def texts_of(figure):
    return [text.get_text() for text in figure.texts]


def test_a_panel_per_method_a_line_per_epsilon_and_a_thick_mean_of_the_seeds(curve):
    curves = [
        curve("gan", math.inf, 0, [1.0, 2.0]), curve("gan", 1.0, 1, [5.0, 7.0]), curve("gan", 1.0, 0, [3.0, 4.0]),
        curve("mean", 1.0, 0), curve("mean", math.inf, 0), curve("other", 1.0, 0, [9.0]),
    ]  # fmt: skip
    figure = training_curves("digits", curves)
    gan, other = figure.axes
    assert [gan.get_title("left"), other.get_title("left")] == ["gan", "other"]
    assert gan.get_ylabel() == "released grad norm"
    thin, thin_too, thick, alone = lines_of(gan)
    assert thin[:2] == ([0, 1], [3, 4])
    assert thin_too[:2] == ([0, 1], [5, 7])
    assert thick[:2] == ([0, 1], [4, 5.5])
    assert alone[:2] == ([0, 1], [1, 2])
    assert thin[2] < thick[2]
    assert thin[2] < alone[2]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ε = 1", "ε = ∞"]
    assert len({line.get_linestyle() for line in gan.lines}) == 2  # for grey print
    assert figure.legends[0].get_title().get_text() == ""


def test_every_released_quantity_has_a_panel_whatever_its_name(curve):
    figure = training_curves("digits", [curve("gan", 1.0, 0, [1.0, 2.0], d_steps_per_g_step=4)])
    assert [panel.get_ylabel() for panel in figure.axes] == ["d steps per g step", "released grad norm"]
    assert lines_of(figure.axes[0])[0][1] == [4, 4]


def test_long_curves_are_means_of_blocks(curve):
    steps, values = read_curve(curve("gan", 1.0, 0, np.arange(1000.0).tolist(), start=1).path)["released_grad_norm"]
    assert len(steps) == len(values) == run_figures.POINTS
    assert values[:2].tolist() == [4.5, 14.5]
    assert steps[-1] == 995.5
    assert len(read_curve(curve("gan", 1.0, 1, [1.0] * 99).path)["released_grad_norm"][0]) == 99


def test_the_range_of_many_seeds_is_shaded(curve):
    five, six = (
        training_curves("d", [curve(f"gan{n}", 1.0, s, [1.0 + s, 9.0]) for s in range(n)]).axes[0] for n in (5, 6)
    )
    assert (len(five.lines), len(five.collections)) == (6, 0)
    ((mean_steps, mean, _),) = lines_of(six)
    assert (mean_steps, mean) == ([0, 1], [3.5, 9.0])
    corners = six.collections[0].get_paths()[0].vertices.tolist()
    assert [0.0, 1.0] in corners
    assert [0.0, 6.0] in corners


def test_seeds_of_unlike_lengths_have_no_mean(curve):
    figure = training_curves("digits", [curve("gan", 1.0, 0, [1.0, 2.0]), curve("gan", 1.0, 1, [3.0])])
    assert [y for _, y, _ in lines_of(figure.axes[0])] == [[1, 2], [3]]


def test_wide_curves_get_a_log_axis_and_constant_or_zero_ones_do_not(curve, tmp_path):
    figure = training_curves(
        "digits",
        [curve("wide", 1.0, 0, [1.0, 100.0]), curve("flat", 1.0, 0, [5.0] * 3), curve("zero", 1.0, 0, [0.0, 90.0])],
    )
    assert [panel.get_yscale() for panel in figure.axes] == ["log", "linear", "linear"]
    low, high = figure.axes[1].get_ylim()
    assert low < 5 < high
    save_figure(figure, tmp_path / "figure")


def test_missing_files_are_named_and_the_rest_is_drawn(curve, tmp_path):
    gone = [Curve("gan", 1.0, seed, tmp_path / "absent") for seed in (1, 2)]
    figure = training_curves("digits", [curve("gan", 1.0, 0, [1.0]), *gone, Curve("x", math.inf, 0, tmp_path / "no")])
    note = figure.legends[0].get_title().get_text().replace("\n", " ")
    assert note == "Runs without train.jsonl: gan (2: ε = 1, seed 1 ...); x (1: ε = ∞, seed 0)."
    assert len(figure.axes) == 1
    nothing = training_curves("digits", gone)
    assert "no run logged a training curve.\nRuns without train.jsonl: gan (2:" in texts_of(nothing)[0]
    assert texts_of(training_curves("digits", [curve("m", 1.0, 0)])) == ["digits: no run logged a training curve."]


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"released_grad_norm": 1.0}', '{"step": 0, "released_grad_norm": null}', '{"step": "0"}']
)
def test_a_corrupt_curve_is_one_sentence(tmp_path, line):
    path = tmp_path / "train.jsonl"
    artifacts.write_text(path, f'{{"step": 0, "released_grad_norm": 1.0}}\n{line}\n')
    with pytest.raises(UserError, match=r"train\.jsonl is (no training curve|not valid JSON).*delete it and run snak"):
        training_curves("digits", [Curve("gan", 1.0, 0, path)])


# --- privacy spent --------------------------------------------------------------------------------------------


@pytest.fixture
def spending(tmp_path):
    """Writes one file of spending rows and reads it back."""

    def write(*rows):
        path = tmp_path / "x.spending.jsonl"
        place = {"study": "s", "dataset": "digits", "sampler": None}
        artifacts.write_jsonl(
            path,
            [
                {"coordinates": {**place, "method": m, "epsilon": e, "seed": seed}, "steps": s, "epsilon": values}
                for m, e, seed, s, values in rows
            ],
        )
        return read_spending([path])

    return write


LOOKS = {"net": series_look(0), "sums": series_look(1)}


def plain(panel):
    """Lines without markers: the target, then the spending."""
    return [
        (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in panel.lines
        if line.get_marker() in ("None", None)
    ]


def test_spending_is_drawn_over_the_share_of_steps_and_one_shot_is_a_jump(spending):
    rows = spending(
        ("net", 1.0, 0, [0, 100, 200], [0, 0.6, 1.0]), ("net", 1.0, 1, [0, 100, 200], [0, 0.6, 1.0]),
        ("sums", 1.0, 0, [0, 0, 0], [0, 0.5, 0.9]), ("net", 10.0, 0, [0, 4], [0, 9.0]), ("net", "inf", 0, [], []),
    )  # fmt: skip
    figure = privacy_spent("digits", rows, LOOKS)
    one, ten = figure.axes
    assert [one.get_title("left"), ten.get_title("left")] == ["ε = 1", "ε = 10"]
    target, net, sums = plain(one)  # equal seeds share a line
    assert target[1] == [1, 1]
    assert net == ([0, 50, 100], [0, 0.6, 1.0])
    assert sums == ([0, 0, 0, 100], [0, 0.5, 0.9, 0.9])
    markers = [line for line in one.lines if line.get_linestyle() == "None"]
    assert [line.get_marker() for line in markers] == ["o", "s"]
    assert not set(markers[0].get_xdata()) & set(markers[1].get_xdata())  # lines on top of each other stay visible
    assert set(markers[1].get_ydata()) == {0.9}
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["net", "sums (at once)", "target"]
    assert one.get_ylim()[0] == 0


def test_seeds_that_spend_differently_have_a_line_each(spending):
    rows = spending(("net", 1.0, 0, [0, 2], [0, 0.5]), ("net", 1.0, 1, [0, 2], [0, 0.7]))
    assert len(plain(privacy_spent("digits", rows, LOOKS).axes[0])) == 1 + 2


def test_a_method_without_scores_is_drawn_all_the_same(spending):
    rows = spending(("net", 1.0, 0, [0, 2], [0, 0.5]), ("late", 1.0, 0, [0, 2], [0, 0.5]))
    figure = privacy_spent("digits", rows, LOOKS)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["net", "late", "target"]
    looks = {(line.get_color(), line.get_marker()) for line in figure.axes[0].lines if line.get_linestyle() == "None"}
    assert len(looks) == 2


def test_other_datasets_and_runs_without_noise_leave_a_sentence(spending):
    rows = spending(("net", "inf", 0, [], []))
    assert texts_of(privacy_spent("digits", rows, LOOKS)) == ["digits: no run has a finite epsilon."]
    assert texts_of(privacy_spent("x", spending(("net", 1.0, 0, [0, 2], [0, 1])), LOOKS)) == [
        "x: no run has a finite epsilon."
    ]


def test_malformed_spending_names_the_file(spending, tmp_path):
    with pytest.raises(UserError, match=r"x\.spending\.jsonl: steps and epsilon are not of one length"):
        spending(("net", 1.0, 0, [0, 1], [0]))
    for text in ("[1]\n", '{"steps": [0]}\n', "{\n"):
        artifacts.write_text(tmp_path / "bad.jsonl", text)
        with pytest.raises(UserError, match=r"bad\.jsonl"):
            read_spending([tmp_path / "bad.jsonl"])
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        read_spending([tmp_path / "absent.jsonl"])


def test_saved_figures_have_equal_bytes(curve, spending, tmp_path):
    curves = [curve("gan", 1.0, 0, [1.0, 2.0])]
    rows = spending(("net", 1.0, 0, [0, 2], [0, 0.5]))
    for name in ("one", "two"):
        save_figure(training_curves("digits", curves), tmp_path / name / "training")
        save_figure(privacy_spent("digits", rows, LOOKS), tmp_path / name / "spent")
    made = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(made) == 6
    for name in made:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
