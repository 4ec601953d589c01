"""Figures: what is drawn where, which images are chosen, and equal bytes for equal inputs."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from measured import measured
from refusals import refuses

from dpdm import artifacts
from dpdm.config import parse_study
from dpdm.errors import UserError
from dpdm.layout import Layout
from dpdm.report import figures
from dpdm.report.collect import METRICS
from dpdm.report.figures import curves, sample_grid, save_figure
from dpdm.report.registry import Material


def make_metrics(fd=(100.0, 80.0, 60.0)):
    blank = {name: kind() for name, kind in METRICS.items()}
    rows = []
    for method, epsilon, accuracy, distance in (
        ("dp_gan", "inf", 80.0, fd[2]), ("dp_gan", "0.2", 30.0, fd[0]), ("dp_gan", "10", 60.0, fd[1]),
        ("mean", "10", 50.0, fd[1]), ("real", "", 98.0, 1e-9), ("label_only", "", 10.0, 150.0),
    ):  # fmt: skip
        for seed in (0, 1, 2):
            place = {"dataset": "digits", "method": method, "epsilon": epsilon, "seed": seed}
            rows.append({**blank, **place, **measured("acc_cnn"), "value": accuracy + seed})
            rows.append({**blank, **place, **measured("fd", "train"), "value": distance})
    return pd.DataFrame(rows)


def epsilon_curves(metrics, dataset):
    return curves(Material(None, None, metrics, None, dataset))


def test_curves_show_means_in_order_of_epsilon_and_both_anchors():
    figure = epsilon_curves(make_metrics(), "digits")
    fd, cnn = figure.axes[:2]
    assert fd.get_title("left") == "FD (train) ↓"
    assert [t.get_text() for t in cnn.get_xticklabels()] == ["0.2", "10", "∞"]
    assert cnn.containers[0].lines[0].get_ydata().tolist() == [31.0, 61.0, 81.0]
    flat = {line.get_linestyle(): line.get_ydata()[0] for line in cnn.lines if len(set(line.get_ydata())) == 1}
    assert flat["--"] == 99
    assert flat[":"] == 11
    bar = cnn.containers[0].lines[2][0].get_segments()[0]
    assert bar[1][1] - bar[0][1] == pytest.approx(2)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["dp_gan", "mean", "real (ceiling)", "label_only (floor)"]


def test_two_seeds_have_no_bar():
    metrics = make_metrics()
    (_, cnn, *_) = epsilon_curves(metrics[metrics["seed"] < 2], "digits").axes
    assert np.ptp([point[1] for point in cnn.containers[0].lines[2][0].get_segments()[0]]) == 0


def test_the_distance_is_the_fid_to_the_training_images_where_there_is_one():
    metrics = make_metrics()
    fid = metrics[metrics["metric"] == "fd"].assign(metric="fid", extractor="inception")
    both = pd.concat([metrics, fid.assign(reference="test", value=fid["value"] + 1), fid], ignore_index=True)
    figure = epsilon_curves(both, "digits")
    assert [axes.get_title("left") for axes in figure.axes] == ["FID (train) ↓", "CNN accuracy % ↑"]
    assert figure.axes[0].containers[0].lines[0].get_ydata().tolist() == [100.0, 80.0, 60.0]


@pytest.mark.parametrize(("real", "note"), [(-2.8e-13, "0"), (1e-9, "0"), (0.0123, "0.012")])
def test_wide_distances_get_a_log_axis_and_a_note_for_real(real, note):
    metrics = make_metrics(fd=(900.0, 90.0, 9.0))
    metrics.loc[(metrics["method"] == "real") & (metrics["metric"] == "fd"), "value"] = real
    figure = epsilon_curves(metrics, "digits")
    fd, cnn = figure.axes[:2]
    assert (fd.get_yscale(), cnn.get_yscale()) == ("log", "linear")
    assert below(fd) == [f"↓ real (ceiling): {note}"]
    assert below(cnn) == []


def test_a_floor_far_below_the_accuracies_is_told_and_not_drawn():
    metrics = make_metrics()
    accuracies = metrics["metric"] == "acc_cnn"
    metrics.loc[accuracies & (metrics["epsilon"] == "0.2"), "value"] += 25
    cnn = epsilon_curves(metrics, "digits").axes[1]
    assert below(cnn) == ["↓ label_only (floor): 11"]
    assert {"--", ":"} & {line.get_linestyle() for line in cnn.lines} == {"--"}  # the ceiling is
    metrics.loc[accuracies & (metrics["epsilon"] == "0.2"), "value"] -= 25
    assert below(epsilon_curves(metrics, "digits").axes[1]) == []


def test_accuracies_begin_at_half_where_most_are_above_and_the_rest_is_written():
    metrics = make_metrics()
    accuracies = metrics["metric"] == "acc_cnn"
    assert epsilon_curves(metrics, "digits").axes[1].get_ylim()[0] < 50  # one point of four is below
    more = pd.concat([metrics, *(metrics[metrics["method"] == "mean"].assign(method=m) for m in ("a", "b"))])
    cnn = epsilon_curves(more.reset_index(drop=True), "digits").axes[1]
    assert cnn.get_ylim()[0] == 50
    assert cnn.get_ylim()[1] > 99  # the real images have 98
    assert below(cnn) == ["↓ 31.0", "↓ label_only (floor): 11"]
    assert cnn.texts[0].get_color() == cnn.containers[0].lines[0].get_color()
    wide = more.copy()  # a bar below the middle lengthens the axis
    chosen = (wide["metric"] == "acc_cnn") & (wide["epsilon"] == "10") & (wide["method"] == "dp_gan")
    wide.loc[chosen, "value"] = [52.0, 92.0, 60.0]
    assert epsilon_curves(wide.reset_index(drop=True), "digits").axes[1].get_ylim()[0] < 50
    metrics.loc[accuracies & (metrics["epsilon"] != ""), "value"] -= 40
    assert epsilon_curves(metrics, "digits").axes[1].get_ylim()[0] < 0.5


def below(panel):
    return [text.get_text() for text in panel.texts]


def test_an_svg_follows_a_dark_page_and_has_no_ground(tmp_path):
    svg, png = save_figure(epsilon_curves(make_metrics(), "digits"), tmp_path / "x", ("svg", "png"))
    style, _, drawn = svg.read_text().partition("</style>")
    assert "prefers-color-scheme: dark" in style
    assert "fill: #ffffff" not in drawn
    used = set(re.findall(r"(?:fill|stroke): (#\w{6})", drawn))
    assert used & set(figures.DARK) == {"#333333", "#555555", "#666666", "#e3e3e3", "#0072b2"}
    assert png.exists()


def test_a_method_of_several_sets_has_one_line_of_the_best_by_each_panel():
    metrics = make_metrics()
    gan = metrics[metrics["method"] == "dp_gan"]
    other = gan.assign(sampler="other", value=gan["value"] + 5)  # better accuracies, worse distances
    one_seed = gan[gan["seed"] == 0].assign(sampler="third", value=99.0)  # fewer seeds do not count
    figure = epsilon_curves(pd.concat([metrics, other, one_seed], ignore_index=True), "digits")
    fd, cnn = ([c.lines[0] for c in panel.containers] for panel in figure.axes[:2])
    assert cnn[0].get_ydata().tolist() == [36.0, 66.0, 86.0]
    assert fd[0].get_ydata().tolist() == [100.0, 80.0, 60.0]
    assert len(fd) == len(cnn) == 2
    assert cnn[0].get_color() != cnn[1].get_color()
    assert cnn[0].get_marker() != cnn[1].get_marker()
    assert len(figures.PALETTE) == len(figures.MARKERS)


def test_a_line_joins_points_of_one_sampler():
    """What smoothing changes would else look like an effect of epsilon."""
    metrics = make_metrics()
    gan = metrics[metrics["method"] == "dp_gan"]
    smooth = gan[gan["epsilon"] != "0.2"].assign(sampler="smooth", value=gan["value"] + 5)
    panel = epsilon_curves(pd.concat([metrics, smooth], ignore_index=True), "digits").axes[1]
    plain, smoothed = (container.lines[0].get_ydata() for container in panel.containers[:2])
    np.testing.assert_array_equal(plain, [31.0, np.nan, np.nan])
    np.testing.assert_array_equal(smoothed, [np.nan, 66.0, 86.0])


def test_a_point_is_at_its_epsilon():
    """Neighbors were once drawn beside it, so that epsilon 1 read as 0.7."""
    for panel in epsilon_curves(make_metrics(), "digits").axes:
        for container in panel.containers:
            assert container.lines[0].get_xdata().tolist() == [0, 1, 2]


def test_no_two_of_many_series_look_alike():
    looks = {(look["color"], look["marker"]) for look in (figures.series_look(i) for i in range(49))}
    assert len(looks) == 49


def test_classifiers_have_a_panel_for_themselves():
    metrics = make_metrics()
    rows = metrics[(metrics["method"] == "dp_gan") & (metrics["metric"] == "acc_cnn")]
    net = rows.assign(method="net", protocol="direct", value=rows["value"] + 10)
    mlp = rows.assign(method="mlp", protocol="direct", metric="acc_mlp")
    figure = epsilon_curves(pd.concat([metrics, net, mlp], ignore_index=True), "digits")
    fd, cnn, direct = figure.axes[:3]
    assert cnn.get_title("left") == "CNN accuracy % ↑"
    assert "trained on the private images" in direct.get_title("left")
    assert [len(panel.containers) for panel in (fd, cnn, direct)] == [2, 2, 2]
    assert direct.containers[0].lines[0].get_ydata().tolist() == [41.0, 71.0, 91.0]
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels == ["dp_gan", "mean", "net", "mlp", "real (ceiling)", "label_only (floor)"]


def test_the_samplers_of_a_single_method_look_unlike_each_other():
    metrics = make_metrics()
    one = metrics[metrics["method"] == "dp_gan"]
    five = pd.concat([one.assign(sampler=f"s{i}") for i in range(5)])
    looks = figures.method_looks(five).values()
    assert len({(look["color"], look["marker"]) for look in looks}) == 5
    both = figures.method_looks(pd.concat([five, metrics[metrics["method"] == "mean"]]))
    assert len({look["color"] for (method, _), look in both.items() if method == "dp_gan"}) == 1


def test_the_legend_says_what_learnt_from_public_data_and_where_all_runs_of_a_method_depart():
    metrics = make_metrics()
    metrics.loc[metrics["method"] == "mean", "public_data"] = "imagenet"
    gan = metrics["method"] == "dp_gan"
    metrics.loc[gan, "departures"] = "K = 4, draws ÷ 90"
    metrics.loc[gan & (metrics["epsilon"] == "10"), "departures"] = "K = 4"
    labels = [text.get_text() for text in epsilon_curves(metrics, "digits").legends[0].get_texts()]
    assert labels[:2] == ["dp_gan (K = 4)", "mean (public data)"]


@pytest.mark.filterwarnings("error")  # matplotlib warns when a wide legend leaves no room for the panels
def test_long_names_stand_below_each_other_in_the_legend(tmp_path):
    metrics = make_metrics()
    columns = [epsilon_curves(metrics, "digits").legends[0]._ncols]
    metrics["method"] = metrics["method"].replace("dp_gan", "a_method_with_a_name_" * 4)
    figure = epsilon_curves(metrics, "digits")
    columns.append(figure.legends[0]._ncols)
    assert columns[0] > columns[1] >= 1
    figure.savefig(tmp_path / "figure.png")
    many = pd.concat([metrics.assign(method=metrics["method"].replace("mean", f"mean_{i}")) for i in range(30)])
    tall = epsilon_curves(many, "digits")
    assert tall.get_figheight() > figure.get_figheight() + 3
    tall.savefig(tmp_path / "tall.png")


def test_a_classifier_has_no_sampler_to_name():
    metrics = make_metrics()
    other = metrics[metrics["method"] == "dp_gan"].assign(sampler="other")
    net = metrics[metrics["method"] == "mean"].assign(method="net", protocol="direct")
    figure = epsilon_curves(pd.concat([metrics.assign(sampler="one"), other, net], ignore_index=True), "digits")
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[:3] == ["dp_gan", "mean", "net"]


def test_a_method_has_the_same_rows_of_samples_at_every_epsilon(monkeypatch):
    """Also where a part of a study leaves out one of its samplers at one epsilon."""
    study = parse_study(
        {
            "study": "s", "datasets": {"digits": {"source": "digits", "delta": 1e-4}}, "epsilons": [1, 10],
            "seeds": [0], "evaluation": {"synthetic_images": 20},
            "methods": {
                "two": {"impl": "a:B", "samplers": {"plain": {}, "smooth": {"tv_weight": 0.1}}}, "one": {"impl": "a:C"},
            },
            "without": {"sampler": ["smooth"], "epsilon": [1]},
        },
        "test",
    )  # fmt: skip
    drawn = {}
    monkeypatch.setattr(figures, "sample_grid", lambda dataset, real, sets: drawn.update(sets))
    figures.samples(Material(study, Layout("results/s", "results/data"), None, None, "digits"))
    assert list(drawn) == [
        ("two, plain", 1.0),
        ("two, plain", 10.0),
        ("two, smooth", 10.0),
        ("one", 1.0),
        ("one", 10.0),
    ]


@pytest.fixture
def sets(tmp_path):
    """Real and synthetic digits-like files; image i of a set is flat grey 10 * i."""

    def write(name, labels, channels=1, size=8, first=0):
        grey = (np.arange(len(labels), dtype=np.uint8) * 10 + first)[:, None, None, None]
        images = np.broadcast_to(grey, (len(labels), channels, size, size))
        path = tmp_path / f"{name}.npz"
        artifacts.write_npz(path, {"images": images, "labels": np.array(labels, np.int64)})
        return path

    return write


def blocks_of(figure):
    return [axes.images[0].get_array() for axes in figure.axes if axes.images]


def test_grid_takes_the_first_images_of_each_class(sets):
    real = sets("real", [1, 0, 1, 0, 1, 0, 1, 0])
    (block,) = blocks_of(sample_grid("digits", real, {}))
    cell = 8 * 4 + 2  # enlarged to 32 pixels, gap of 2
    assert block.shape == (3 * cell - 2, 2 * cell - 2, 3)
    centres = block[16::cell, 16::cell, 0]
    assert centres.tolist() == [[10, 0], [30, 20], [50, 40]]
    assert (block[32] == 255).all()


def test_grid_places_methods_down_epsilons_across(sets):
    labels = [0, 1] * 3
    files = {name: sets(name, labels, first=f) for name, f in (("real", 0), ("a", 1), ("b", 2), ("c", 3))}
    samples = {("gan", math.inf): files["a"], ("gan", 0.2): files["b"], ("mean", 0.2): files["c"]}
    figure = sample_grid("digits", files["real"], samples)
    assert [int(b[0, 0, 0]) for b in blocks_of(figure)] == [0, 2, 1, 3]
    figure.canvas.draw()
    boxes = [axes.get_position() for axes in figure.axes if axes.images]
    assert boxes[1].x0 < boxes[2].x0
    assert boxes[1].y0 == boxes[2].y0 > boxes[3].y0
    assert [text for axes in figure.axes if (text := axes.get_title("center"))] == ["ε = 0.2", "ε = ∞"]
    assert [text for axes in figure.axes if (text := axes.get_ylabel())] == ["real", "gan", "mean"]


def test_grid_of_one_class_lays_it_across_under_a_heading_that_fits(sets):
    real = sets("real", [0] * 7)
    figure = sample_grid("celeba_64", real, {("gan", 1.0): real})
    block, _ = blocks_of(figure)
    cell = 8 * 4 + 2
    assert block.shape == (3 * cell - 2, 10 * cell - 2, 3)
    assert block[16::cell, 16::cell, 0][:, :4].tolist() == [[0, 30, 60, 255], [10, 40, 255, 255], [20, 50, 255, 255]]
    for dataset in ("celeba_64", "a_data_set_of_a_very_long_name_indeed"):
        figure = sample_grid(dataset, sets("two", [0, 1]), {})
        figure.canvas.draw()
        (heading,) = [text for text in figure.texts if text.get_text().startswith(dataset)]
        assert heading.get_window_extent().x1 <= figure.bbox.width


def test_the_legend_of_long_names_stays_on_the_figure():
    names = [f"a_method_of_a_rather_long_name_{i}" for i in range(4)]
    metrics = make_metrics()
    one = metrics[~metrics["method"].isin(["real", "label_only"])]
    figure = epsilon_curves(pd.concat([one.assign(method=name) for name in names]), one["dataset"].iloc[0])
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_grid_of_colour_images_and_of_missing_classes(sets):
    real, poor = sets("real", [0, 1], 3, 28), sets("poor", [1], 3, 28, first=7)
    blocks = blocks_of(sample_grid("digits", real, {("gan", 1.0): poor}))
    assert blocks[0].shape == (3 * 30 - 2, 2 * 30 - 2, 3)
    assert (blocks[1][:, :28] == 255).all()
    assert (blocks[1][:28, 30:] == 7).all()


def test_grid_refuses_what_it_cannot_draw(sets):
    real = sets("real", [0, 1])
    with pytest.raises(UserError, match=r"two\.npz.*1 or 3"):
        sample_grid("digits", sets("two", [0], channels=2), {})
    with refuses("large.npz"):
        sample_grid("digits", real, {("gan", 1.0): sets("large", [0], size=28)})


def test_saved_figures_have_equal_bytes(sets, tmp_path):
    real = sets("real", [0, 1])
    for name in ("one", "two"):
        save_figure(epsilon_curves(make_metrics(), "digits"), tmp_path / name / "curves.v1")
        save_figure(sample_grid("digits", real, {}), tmp_path / name / "grid", ("png", "pdf"))
    made = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert made == ["curves.v1.pdf", "curves.v1.png", "curves.v1.svg", "grid.pdf", "grid.png"]
    for name in made:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert b"CreationDate" not in content
        assert b"<dc:date>" not in content
