"""Comparisons: ranks by hand, intervals against the resamples they stand for, and which parameter is drawn."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from measured import measured

from dpdm.config import parse_study
from dpdm.report.collect import METRICS
from dpdm.report.comparisons import Ranks, bootstrap_note, mean_ranks, parameter_figure, rank_figure, ranked_columns
from dpdm.report.figures import save_figure

FD, CNN, MLP = ("fd", "train"), ("acc_cnn", "test"), ("acc_mlp", "test")


def rows(method, values, metric=FD, sampler="default", dataset="d", epsilon="1", **more):
    """One row per seed."""
    blank = {name: kind() for name, kind in METRICS.items()}
    place = {"dataset": dataset, "method": method, "epsilon": epsilon, "sampler": sampler}
    what = measured(*metric)
    return [{**blank, **place, **what, "seed": s, "value": v, **more} for s, v in enumerate(values)]


def ranks_of(*groups, column=0):
    """Method -> (rank, low, high, cells)."""
    metrics = pd.DataFrame([row for group in groups for row in group])
    table = mean_ranks(metrics, ranked_columns(metrics)[column]).table
    assert table["rank"].is_monotonic_increasing
    return {r.method: (r.rank, r.low, r.high, r.cells) for r in table.itertuples()}


def test_ranks_by_hand_the_direction_of_the_metric_decides():
    groups = [rows("a", [1.0, 9.0]), rows("b", [2.0, 2.0]), rows("c", [3.0, 3.0])]
    found = ranks_of(*groups)
    assert {m: r[0] for m, r in found.items()} == {"a": 2.0, "b": 1.5, "c": 2.5}
    accuracy = [rows(m, v, CNN) for m, v in (("a", [1.0, 9.0]), ("b", [2.0, 2.0]), ("c", [3.0, 3.0]))]
    assert {m: r[0] for m, r in ranks_of(*accuracy).items()} == {"a": 2.0, "b": 2.5, "c": 1.5}
    assert {r[3] for r in found.values()} == {2}


def test_ties_share_a_rank_and_what_could_not_be_computed_is_last():
    found = ranks_of(rows("a", [1.0]), rows("b", [1.0]), rows("c", [math.nan]), rows("d", [5.0]))
    assert {m: r[0] for m, r in found.items()} == {"a": 1.5, "b": 1.5, "d": 3.0, "c": 4.0}


def test_neither_anchors_nor_classifiers_nor_infinite_epsilon_are_ranked():
    found = ranks_of(
        rows("a", [2.0], CNN), rows("b", [1.0], CNN), rows("b", [9.0], CNN, epsilon="inf"),
        rows("a", [1.0], CNN, epsilon="inf"), rows("real", [99.0], CNN, epsilon="", sampler=""),
        rows("net", [50.0], CNN, sampler="", protocol="direct"),
    )  # fmt: skip
    assert {m: r[0] for m, r in found.items()} == {"a": 1.0, "b": 2.0}


def test_a_cell_with_fewer_rivals_is_stretched_and_one_without_rivals_left_out():
    """Else a method that serves one data set, with one rival there, could not be worse than second."""
    found = ranks_of(
        rows("a", [1.0], dataset="d"), rows("b", [2.0], dataset="d"), rows("c", [3.0], dataset="d"),
        rows("a", [1.0], dataset="e"), rows("e_only", [2.0], dataset="e"), rows("c", [1.0], dataset="f"),
    )  # fmt: skip
    assert {m: (r[0], r[3]) for m, r in found.items()} == {
        "a": (1.0, 2),
        "b": (2.0, 1),
        "c": (3.0, 1),
        "e_only": (3.0, 1),
    }


def test_ways_of_sampling_one_method_and_cells_without_any_value_are_no_contest():
    """As in the paper's grid: DPDM alone, sampled twice, on two data sets, one of them without labels."""
    twice = [rows("a", [9.0], CNN, sampler=s, dataset="alone") for s in "xy"]
    unlabelled = [rows(m, [math.nan], CNN, dataset="unlabelled") for m in "ab"]
    first = [rows(m, [v], CNN, sampler=s) for m, s, v in (("a", "x", 3.0), ("a", "y", 2.0), ("b", "x", 1.0))]
    metrics = pd.DataFrame([row for group in (*twice, *unlabelled, *first) for row in group])
    (columns,) = ranked_columns(metrics)
    ranks = mean_ranks(metrics, columns)
    assert ranks.table[["rank", "cells"]].to_numpy().tolist() == [[1.0, 1], [2.0, 1], [3.0, 1]]
    assert (ranks.datasets, ranks.seeds) == (1, 1)


def test_each_way_of_sampling_is_ranked_for_itself():
    metrics = pd.DataFrame([*rows("a", [1.0], sampler="x"), *rows("a", [3.0], sampler="y"), *rows("b", [2.0])])
    table = mean_ranks(metrics, ranked_columns(metrics)[0]).table
    assert table[["method", "sampler", "rank"]].to_numpy().tolist() == [
        ["a", "x", 1.0], ["b", "default", 2.0], ["a", "y", 3.0]
    ]  # fmt: skip


def test_the_distance_and_the_cnn_are_ranked_by():
    metrics = pd.DataFrame([*rows("a", [1.0], CNN), *rows("a", [1.0], MLP), *rows("a", [1.0], FD)])
    assert [columns["d"].metric for columns in ranked_columns(metrics)] == ["fd", "acc_cnn"]
    less = metrics[metrics["metric"] != "acc_cnn"]
    assert [columns["d"].metric for columns in ranked_columns(less)] == ["fd", "acc_mlp"]


def test_each_dataset_has_a_distance_of_its_own_and_fid_goes_before():
    metrics = pd.DataFrame([
        *rows("a", [1.0], ("fd", "train")), *rows("b", [2.0], ("fd", "train")),
        *rows("a", [1.0], ("fid", "train"), dataset="e"), *rows("b", [2.0], ("fid", "train"), dataset="e"),
        *rows("a", [1.0], ("fid", "test"), dataset="e"), *rows("b", [2.0], ("fd", "train"), dataset="e"),
    ])  # fmt: skip
    (columns,) = ranked_columns(metrics)
    assert {dataset: (c.metric, c.reference) for dataset, c in columns.items()} == {
        "d": ("fd", "train"), "e": ("fid", "train")
    }  # fmt: skip
    ranks = mean_ranks(metrics, columns)
    assert ranks.title == "FD (train) ↓ / FID (train) ↓"
    assert ranks.table["cells"].tolist() == [2, 2]
    assert ranks.table["rank"].tolist() == [1.0, 2.0]


def test_below_six_seeds_there_is_no_interval():
    groups = [rows("a", [1.0] * 5), rows("b", [2.0] * 5), rows("c", [3.0] * 5)]
    assert np.isnan([ends for r in ranks_of(*groups).values() for ends in r[1:3]]).all()
    six = ranks_of(*(rows(m, [v] * 6) for m, v in (("a", 1.0), ("b", 2.0))))
    assert {m: r[1:3] for m, r in six.items()} == {"a": (1.0, 1.0), "b": (2.0, 2.0)}


def test_the_interval_is_the_quantiles_of_all_resamples():
    """Six seeds, one data set: 46,656 equally likely resamples can be counted out."""
    places = [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]
    found = ranks_of(rows("a", places), rows("b", [1.5] * 6))
    means = [np.mean(drawn) for drawn in itertools.product(places, repeat=6)]
    assert found["a"][0] == pytest.approx(1.5)
    assert found["a"][1:3] == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.01)


def test_datasets_are_resampled_too():
    """Without it, data sets on which the seeds agree would leave an interval of no width."""
    found = ranks_of(
        rows("a", [1.0] * 6, dataset="d"), rows("b", [2.0] * 6, dataset="d"),
        rows("a", [2.0] * 6, dataset="e"), rows("b", [1.0] * 6, dataset="e"),
    )  # fmt: skip
    assert found["a"][:3] == (1.5, 1.0, 2.0)


def test_the_note_says_what_the_intervals_rest_on_or_why_there_are_none():
    def note(datasets, seeds):
        runs = [rows(m, [1.0] * seeds, dataset=d) for d in datasets for m in "ab"]
        metrics = pd.DataFrame([row for group in (*runs, rows("a", [1.0] * 9, dataset="alone")) for row in group])
        (columns,) = ranked_columns(metrics)
        return bootstrap_note([mean_ranks(metrics, columns)])

    for part in ("No intervals", "1 dataset ", "2 seeds", "6 seeds"):
        assert part in note("d", 2)
    assert "2,000 resamples of 2 datasets and 6 seeds" in note("de", 6)
    assert "One dataset" in note("d", 6)
    assert "One dataset" not in note("de", 6)
    none = pd.DataFrame()
    both = bootstrap_note([Ranks("", none, 5, 6), Ranks("", none, 1, 6)])
    assert "resamples of 5 (left) and 1 (right) datasets and 6 seeds. One dataset: " in both


def test_the_rank_figure_names_methods_in_order_with_their_ranks():
    metrics = pd.DataFrame([
        *rows("a", [3.0] * 6), *rows("b", [1.0] * 6), *rows("a", [90.0, 80.0] * 3, CNN),
        *rows("b", [10.0, 85.0] * 3, CNN),
    ])  # fmt: skip
    fd, cnn = rank_figure(metrics).axes
    assert (fd.get_title("left"), cnn.get_title("left")) == ("by FD (train) ↓", "by CNN accuracy % ↑")
    assert [t.get_text() for t in fd.get_yticklabels()] == ["b  1.0", "a  2.0"]
    assert [t.get_text() for t in cnn.get_yticklabels()] == ["a  1.5", "b  1.5"]
    assert fd.get_ylim()[0] > fd.get_ylim()[1]  # the first is on top
    low, high = cnn.containers[0].lines[2][0].get_segments()[0][:, 0]
    assert 1 <= low < 1.5 < high <= 2
    few, _ = rank_figure(metrics[metrics["seed"] < 5]).axes
    assert not few.containers[0].lines[2]  # no bars


def test_without_a_contest_there_is_a_sentence():
    figure = rank_figure(pd.DataFrame(rows("a", [1.0])))
    assert [t.get_text() for t in figure.texts] == ["No cell in which two generators have a score."]


# --- a parameter ----------------------------------------------------------------------------------------------


def make_study(**changes):
    value = {
        "study": "s",
        "datasets": {"d": {"source": "digits", "delta": 1e-5}},
        "epsilons": [1, "inf"],
        "seeds": [0, 1],
        "methods": {f"m{i}": {"impl": "a:B", "params": {"k": k, "lr": 0.1}} for i, k in enumerate((8, 1, 2))},
        "evaluation": {"synthetic_images": 10},
    }
    return parse_study(value | changes, "test")


def scores():
    return pd.DataFrame([
        row
        for i, value in enumerate((80.0, 10.0, 20.0))
        for epsilon, more in (("1", 0.0), ("inf", 5.0))
        for row in rows(f"m{i}", [value + more, value + more + 2], CNN, epsilon=epsilon)
    ])  # fmt: skip


def test_scores_stand_at_the_value_of_the_parameter_whatever_the_methods_are_called():
    figure = parameter_figure(scores(), make_study())
    (panel,) = figure.axes
    assert panel.get_xlabel() == "k"
    assert panel.get_xscale() == "log"
    assert [t.get_text() for t in panel.get_xticklabels()] == ["1", "2", "8"]
    first, second = (container.lines[0] for container in panel.containers)
    assert first.get_xdata().tolist() == [1, 2, 8]
    assert first.get_ydata().tolist() == [11, 21, 81]
    assert second.get_ydata().tolist() == [16, 26, 86]
    assert first.get_linestyle() != second.get_linestyle()
    bar = panel.containers[0].lines[2][0].get_segments()[0]
    assert bar[1][1] - bar[0][1] == pytest.approx(2 * math.sqrt(2))
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ε = 1", "ε = ∞"]


def test_labels_of_values_that_are_near_to_each_other_do_not_overlap():
    methods = {f"m{i}": {"impl": "a:B", "params": {"k": k}} for i, k in enumerate((0, 0.25, 0.5, 1, 2))}
    metrics = pd.DataFrame([row for name in methods for row in rows(name, [50.0, 60.0], CNN)])
    (panel,) = parameter_figure(metrics, make_study(methods=methods)).axes
    assert panel.get_xticks().tolist() == [0, 0.25, 0.5, 1, 2]
    assert [t.get_text() for t in panel.get_xticklabels()] == ["0", "", "0.5", "1", "2"]


def test_overrides_decide_the_value_of_each_dataset_and_a_hole_is_left_open():
    study = make_study(
        datasets={name: {"source": "digits", "delta": 1e-5} for name in ("d", "e")},
        methods={
            "one": {"impl": "a:B", "params": {"dp": {"steps": 10}}},
            "two": {"impl": "a:B", "params": {"dp": {"steps": 20}}, "overrides": [
                {"when": {"dataset": "e"}, "params": {"dp": {"steps": 30}}}
            ]},
        },
    )  # fmt: skip
    metrics = pd.DataFrame(
        [*rows("one", [5.0]), *rows("two", [6.0]), *rows("two", [7.0], ("fd", "train"), dataset="e")]
    )
    d, e = parameter_figure(metrics, study).axes
    assert (d.get_title("left"), e.get_title("left")) == ("d: FD (train) ↓", "e: FD (train) ↓")
    assert d.get_xlabel() == "dp.steps"
    assert d.get_xscale() == "linear"
    assert d.containers[0].lines[0].get_xdata().tolist() == [10, 20]
    assert e.containers[0].lines[0].get_xdata().tolist() == [10, 30]
    assert np.isnan(e.containers[0].lines[0].get_ydata()).tolist() == [True, False]


def test_a_line_looks_alike_in_every_row_and_in_the_legend():
    samplers = {"much": {"guidance": 2.0}, "none": {"guidance": 0.0}}
    study = make_study(
        datasets={name: {"source": "digits", "delta": 1e-5} for name in ("d", "e")},
        methods={
            "gan": {"impl": "a:A", "samplers": samplers, "datasets": ["d"]},
            "net": {"impl": "a:B", "samplers": samplers},
        },
    )
    places = [("gan", "d"), ("net", "d"), ("net", "e")]
    metrics = pd.DataFrame([r for m, d in places for s in samplers for r in rows(m, [1.0], CNN, sampler=s, dataset=d)])
    figure = parameter_figure(metrics, study)
    legend = figure.legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    colour = dict(zip(names, [line.get_color() for line in legend.get_lines()], strict=True))
    (on_e,) = [panel for panel in figure.axes if panel.get_title("left").startswith("e: ")]
    drawn = [container.lines[0].get_color() for container in on_e.containers]
    assert drawn == [colour["ε = 1, net"], colour["ε = ∞, net"]]


def test_the_number_of_a_methods_samplers_is_drawn_likewise():
    samplers = {"much": {"guidance": 2.0}, "none": {"guidance": 0.0}}
    study = make_study(methods={"gan": {"impl": "a:B", "samplers": samplers}})
    kinds = [
        (sampler, value, epsilon) for sampler, value in (("much", 30.0), ("none", 10.0)) for epsilon in ("1", "inf")
    ]
    metrics = pd.DataFrame([row for s, v, e in kinds for row in rows("gan", [v], CNN, sampler=s, epsilon=e)])
    figure = parameter_figure(metrics, study)
    (panel,) = figure.axes
    assert panel.get_xlabel() == "guidance"
    assert [c.lines[0].get_xdata().tolist() for c in panel.containers] == [[0, 2]] * 2
    assert [c.lines[0].get_ydata().tolist() for c in panel.containers] == [[10, 30]] * 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ε = 1", "ε = ∞"]
    study = make_study(methods={name: {"impl": f"a:{name}", "samplers": samplers} for name in ("gan", "net")})
    figure = parameter_figure(pd.concat([metrics, metrics.assign(method="net")]), study)
    assert len(figure.axes) == 1  # of the same number: methods are lines
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "ε = 1, gan", "ε = 1, net", "ε = ∞, gan", "ε = ∞, net"
    ]  # fmt: skip


def test_constant_scores_and_wide_distances_keep_sensible_axes(tmp_path):
    constant = pd.DataFrame([r for i in range(3) for r in rows(f"m{i}", [50.0, 50.0], CNN)])
    wide = pd.DataFrame([r for i, v in enumerate((1.0, 900.0, 30.0)) for r in rows(f"m{i}", [v], FD)])
    fd, cnn = parameter_figure(pd.concat([constant, wide]), make_study()).axes
    assert (fd.get_yscale(), cnn.get_yscale()) == ("log", "linear")
    assert cnn.get_ylim()[0] < 50 < cnn.get_ylim()[1]
    save_figure(parameter_figure(pd.concat([constant, wide]), make_study()), tmp_path / "x")


def test_saved_figures_have_equal_bytes(tmp_path):
    metrics = scores()
    for name in ("one", "two"):
        save_figure(rank_figure(metrics), tmp_path / name / "ranks")
        save_figure(parameter_figure(metrics, make_study()), tmp_path / name / "parameter")
    made = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(made) == 6
    for name in made:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
