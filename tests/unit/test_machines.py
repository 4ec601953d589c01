"""How far scores move between machines: what is read from the measurement, and what is said of it."""

import pandas as pd
import pytest
from refusals import holds

from dpdm.report import machines
from dpdm.report.collect import METRICS
from dpdm.report.tables import machine_note


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    spreads = [
        ("loud", "acc_cnn", "", 2.04, 0.02), ("quiet", "acc_cnn", "", 0.5, 0.005), ("quiet", "acc_mlp", "", 1.0, 0.01),
        ("loud", "fd", "efflite", 3.0, 0.03), ("quiet", "fd", "efflite", 9.0, 0.01),
    ]  # fmt: skip
    columns = ["method", "metric", "extractor", "difference", "relative"]
    frame = pd.DataFrame(spreads, columns=columns).assign(study="digits")
    monkeypatch.setattr(machines, "spreads", lambda: frame)
    return frame


def test_accuracies_move_by_points_and_distances_in_proportion():
    assert machines.spread(("digits", "quiet"), "acc_mlp", "", 90.0) == 1.0
    assert machines.spread(("digits", "loud"), "fd", "efflite", 200.0) == pytest.approx(6.0)


def test_a_method_moves_as_it_was_measured_and_another_as_the_worst():
    assert machines.spread(("digits", "quiet"), "acc_cnn", "", 90.0) == 0.5
    assert machines.spread(("digits", "quiet"), "fd", "efflite", 200.0) == pytest.approx(2.0)
    assert machines.spread(("laptop", "quiet"), "acc_cnn", "", 90.0) == 0.5
    assert machines.spread(("laptop", "quiet"), "fd", "efflite", 200.0) == pytest.approx(2.0)
    for owner in (("digits", "new"), ("laptop", "new")):
        assert machines.spread(owner, "acc_cnn", "", 90.0) == 2.04
        assert machines.spread(owner, "fd", "efflite", 200.0) == pytest.approx(6.0)


def test_what_was_not_measured_moves_as_the_worst_of_its_kind():
    assert machines.spread(("digits", "new"), "acc_resnet", "", 90.0) == 2.04
    assert machines.spread(("digits", "new"), "fid", "inception", 200.0) == pytest.approx(6.0)
    assert machines.spread(("digits", "quiet"), "acc_resnet", "", 90.0) == 1.0


def test_fid_moves_as_fd_does(measured):
    measured.loc[len(measured)] = ("loud", "kid", "efflite", 9.0, 0.4, "digits")
    assert machines.spread(("digits", "loud"), "fid", "inception", 200.0) == pytest.approx(6.0)
    assert machines.spread(("digits", "loud"), "recall", "efflite", 200.0) == pytest.approx(80.0)


def test_another_study_s_methods_move_as_the_worst_of_that_study(measured):
    measured.loc[len(measured)] = ("third", "acc_cnn", "", 0.1, 0.001, "laptop")
    assert machines.spread(("laptop", "new"), "acc_cnn", "", 90.0) == 0.1
    assert machines.spread(("laptop", "quiet"), "acc_cnn", "", 90.0) == 0.5
    assert machines.spread(("teachers", "new"), "acc_cnn", "", 90.0) == 2.04


def test_the_note_has_the_moves_of_each_method_and_says_which_were_measured(measured):
    measured.loc[len(measured)] = ("third", "acc_cnn", "", 0.1, 0.001, "laptop")
    measured.loc[len(measured)] = ("third", "fd", "efflite", 0.1, 0.002, "laptop")

    def note(study, *methods):
        blank = {name: kind() for name, kind in METRICS.items()} | {"study": study, "epsilon": "1"}
        scores = (("acc_cnn", "", "higher", "test"), ("fd", "efflite", "lower", "train"))
        keys = ("metric", "extractor", "direction", "reference")
        return machine_note(
            pd.DataFrame(
                [blank | {"method": m} | dict(zip(keys, s, strict=True)) for m in methods for s in scores],
                columns=list(METRICS),
            )
        )

    assert holds(note("digits", "loud", "quiet"), "2 points, FD (EfficientNet-Lite0) 3 % (loud)", "machines.csv")
    assert holds(
        note("digits", "loud", "quiet"), "0.5 points, FD (EfficientNet-Lite0) 1 % (quiet)", "study: loud, quiet"
    )
    assert holds(
        note("laptop", "third", "other"), "0.1 points, FD (EfficientNet-Lite0) 0.2 % (third, other)", "study: third."
    )
    assert holds(note("teachers", "new"), "2 points", "study: none")
    measured.loc[len(measured)] = ("still", "fd", "efflite", 1e-9, 1e-12, "laptop")
    assert holds(note("laptop", "still"), "below 0.01 % (still)")
    assert not note("digits")


def test_the_measurement_in_the_repository_has_what_is_read(monkeypatch):
    monkeypatch.undo()
    machines.spreads.cache_clear()
    found = machines.spreads()
    for _, rows in found.groupby(["study", "method"]):
        assert {"fd", "acc_cnn", "acc_mlp", "acc_logreg"} <= set(rows["metric"])
    assert found["method"].nunique() > 1
    assert found["difference"].gt(0).any()
    assert found["commit"].str.fullmatch("[0-9a-f]{40}").all()
