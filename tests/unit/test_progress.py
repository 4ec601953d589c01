"""Progress: items pass unchanged, lines where there is no terminal, and the rows of the training curve."""

import sys

import pytest

from dpdm.progress import Log


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_items_pass_in_order(monkeypatch, terminal, count):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(Log("t").track(range(count), count)) == list(range(count))


def test_items_are_not_fetched_ahead():
    """A private step must not start before the loop asks for it."""
    fetched = []
    for item in Log("t").track((fetched.append(i) or i for i in range(5)), 5):
        assert len(fetched) == item + 1


def test_without_a_terminal_about_ten_lines_and_the_last(capsys):
    list(Log("train m").track(range(104), 104))
    lines = capsys.readouterr().err.splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0].startswith("train m: 10/104, ")
    assert lines[-1].startswith("train m: 104/104, ")


def resumed(log: Log, first: int, total: int):
    """A loop that finds a checkpoint when it is started: not before `track` asks for the first item."""
    log.resumed += first
    yield from range(first, total)


def test_what_a_checkpoint_spared_counts_as_done(capsys):
    log = Log("t")
    list(log.track(resumed(log, 12, 20), 20))
    numbers = [line.split()[1] for line in capsys.readouterr().err.splitlines()]
    assert numbers == ["14/20,", "16/20,", "18/20,", "20/20,"]


def test_the_bar_counts_what_a_checkpoint_spared_too(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    log = Log("t")
    list(log.track(resumed(log, 12, 20), 20))
    assert " 20/20 [" in capsys.readouterr().err


def test_progress_is_not_written_to_stdout(capsys):
    list(Log("t").track(range(3), 3))
    assert capsys.readouterr().out == ""


def test_rows_hold_what_was_released_and_no_times():
    log = Log("t")
    log.record(1, norm=0.5)
    log.record(2, norm=0.25, other=1.0)
    assert log.rows == [
        {"step": 1, "norm": 0.5},
        {"step": 2, "norm": 0.25, "other": 1.0},
    ]
