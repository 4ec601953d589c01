"""Which parameter a study varies, and how it is drawn."""

import numpy as np
import pandas as pd
import pytest
from measured import measured

from dpdm.config import parse_study
from dpdm.layout import Layout
from dpdm.report.collect import AUDITS, METRICS
from dpdm.report.figures import parameter_figure, save_figure
from dpdm.report.registry import Material

FD, CNN, MLP = ("fd", "train"), ("acc_cnn", "test"), ("acc_mlp", "test")


def rows(method, values, metric=FD, sampler="default", dataset="d", epsilon="1", **more):
    """One row per seed."""
    blank = {name: kind() for name, kind in METRICS.items()}
    place = {"dataset": dataset, "method": method, "epsilon": epsilon, "sampler": sampler}
    what = measured(*metric)
    return [{**blank, **place, **what, "seed": s, "value": v, **more} for s, v in enumerate(values)]


def material(metrics, study=None):
    return Material(study or make_study(), Layout("r", "s"), metrics, pd.DataFrame(columns=list(AUDITS)))


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


def drawn(metrics, study):
    return parameter_figure(material(metrics, study))


def scores():
    return pd.DataFrame([
        row
        for i, value in enumerate((80.0, 10.0, 20.0))
        for epsilon, more in (("1", 0.0), ("inf", 5.0))
        for row in rows(f"m{i}", [value + more + s for s in range(3)], CNN, epsilon=epsilon)
    ])  # fmt: skip


def test_scores_stand_at_the_value_of_the_parameter_whatever_the_methods_are_called():
    figure = drawn(scores(), make_study())
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
    assert bar[1][1] - bar[0][1] == pytest.approx(2)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ε = 1", "ε = ∞"]


def test_every_value_has_its_label_and_many_are_turned():
    methods = {f"m{i}": {"impl": "a:B", "params": {"k": k}} for i, k in enumerate((0, 0.25, 0.5, 1, 2))}
    metrics = pd.DataFrame([row for name in methods for row in rows(name, [50.0, 60.0], CNN)])
    (panel,) = drawn(metrics, make_study(methods=methods)).axes
    assert panel.get_xticks().tolist() == [0, 0.25, 0.5, 1, 2]
    assert [t.get_text() for t in panel.get_xticklabels()] == ["0", "0.25", "0.5", "1", "2"]
    assert {t.get_rotation() for t in panel.get_xticklabels()} == {45}


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
    d, e = drawn(metrics, study).axes
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
    figure = drawn(metrics, study)
    legend = figure.legends[0]
    names = [text.get_text() for text in legend.get_texts()]
    colour = dict(zip(names, [line.get_color() for line in legend.get_lines()], strict=True))
    (on_e,) = [panel for panel in figure.axes if panel.get_title("left").startswith("e: ")]
    colors = [container.lines[0].get_color() for container in on_e.containers]
    assert colors == [colour["ε = 1, net"], colour["ε = ∞, net"]]


def test_the_number_of_a_methods_samplers_is_drawn_likewise():
    samplers = {"much": {"guidance": 2.0}, "none": {"guidance": 0.0}}
    study = make_study(methods={"gan": {"impl": "a:B", "samplers": samplers}})
    kinds = [
        (sampler, value, epsilon) for sampler, value in (("much", 30.0), ("none", 10.0)) for epsilon in ("1", "inf")
    ]
    metrics = pd.DataFrame([row for s, v, e in kinds for row in rows("gan", [v], CNN, sampler=s, epsilon=e)])
    figure = drawn(metrics, study)
    (panel,) = figure.axes
    assert panel.get_xlabel() == "guidance"
    assert [c.lines[0].get_xdata().tolist() for c in panel.containers] == [[0, 2]] * 2
    assert [c.lines[0].get_ydata().tolist() for c in panel.containers] == [[10, 30]] * 2
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["ε = 1", "ε = ∞"]
    study = make_study(methods={name: {"impl": f"a:{name}", "samplers": samplers} for name in ("gan", "net")})
    figure = drawn(pd.concat([metrics, metrics.assign(method="net")]), study)
    assert len(figure.axes) == 1  # of the same number: methods are lines
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "ε = 1, gan", "ε = 1, net", "ε = ∞, gan", "ε = ∞, net"
    ]  # fmt: skip


def test_constant_scores_and_wide_distances_keep_sensible_axes(tmp_path):
    constant = pd.DataFrame([r for i in range(3) for r in rows(f"m{i}", [50.0, 50.0], CNN)])
    wide = pd.DataFrame([r for i, v in enumerate((1.0, 900.0, 30.0)) for r in rows(f"m{i}", [v], FD)])
    fd, cnn = drawn(pd.concat([constant, wide]), make_study()).axes
    assert (fd.get_yscale(), cnn.get_yscale()) == ("log", "linear")
    assert cnn.get_ylim()[0] < 50 < cnn.get_ylim()[1]
    save_figure(drawn(pd.concat([constant, wide]), make_study()), tmp_path / "x")


def test_saved_figures_have_equal_bytes(tmp_path):
    metrics = scores()
    for name in ("one", "two"):
        save_figure(drawn(metrics, make_study()), tmp_path / name / "parameter")
    made = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(made) == 3
    for name in made:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
