"""The bug matrix fits the code: what it would plant is there, its checks exist, and the page shows its table."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAST = 40


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "mutants")
    return importlib.import_module("run")


def test_every_bug_can_be_planted_and_has_a_name_of_its_own(run):
    """An edit of the code that moves a text away must move the matrix too."""
    assert len({mutant.name for mutant in run.MUTANTS}) == len(run.MUTANTS) >= LEAST
    for mutant in run.MUTANTS:
        source = (ROOT / mutant.file).read_text()
        assert run.mutated(mutant, source) != source


def test_every_check_exists_and_its_kind_is_known(run):
    """Parameters in brackets are left to the run itself."""
    functions: dict[str, set[str]] = {}
    for mutant in run.MUTANTS:
        file, _, test = mutant.check.partition("::")
        if file not in functions:
            functions[file] = {node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")}
        assert test.partition("[")[0] in functions[file], mutant.check
        assert mutant.kind in run.Mutant.__annotations__["kind"].__args__


@pytest.mark.parametrize(("edits", "message"), [({"gone": ""}, "0 times"), ({"a": "b"}, "2 times")])
def test_a_text_that_is_not_there_once_is_an_error(run, edits, message):
    with pytest.raises(ValueError, match=rf"^bug: file\.py holds this text {message}"):
        run.mutated(run.Mutant("bug", "file.py", edits, "unit test", "x::y", ""), "a = a")


def test_what_is_no_python_is_an_error(run):
    with pytest.raises(SyntaxError):
        run.mutated(run.Mutant("bug", "file.py", {"= 1": "= ("}, "unit test", "x::y", ""), "a = 1")


@pytest.mark.parametrize(
    ("code", "tests", "found"),
    [
        (0, [("passed", "")], "survived"),
        (1, [("passed", ""), ("failure", "AssertionError: assert 1 == 2")], "caught"),
        (1, [("failure", "dpdm.errors.UserError: the loss mixes records")], "caught"),
        (1, [("failure", "NameError: name 'x' is not defined")], "broken code"),
        (1, [("failure", "UserError: impl m:C: cannot import m")], "broken code"),
        (1, [("error", "ValueError: in a fixture")], "no failure"),
        (2, [], "no failure"),
        (-9, [], "no failure"),
    ],
)
def test_only_a_test_that_fails_catches_a_bug(run, code, tests, found):
    assert run.verdict(run.Outcome(code, tests, "the end")).startswith(found)


def test_the_page_shows_exactly_the_matrix(run):
    """Written by `python tests/mutants/run.py --table`."""
    page = (ROOT / "docs" / "privacy.md").read_text()
    shown = page.partition("<!-- mutants -->\n")[2].partition("<!-- /mutants -->")[0].strip()
    assert shown == run.table()
