"""`dpdm list` and `dpdm new`, and what is behind them: `dpdm.catalog` and `dpdm.scaffold`."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from refusals import refused

from dpdm import catalog
from dpdm.config import load_study
from dpdm.errors import UserError
from dpdm.method import load_method
from dpdm.scaffold import new_method

ROOT = Path(__file__).parents[2]


# --- list -----------------------------------------------------------------------------------------------------


def test_every_method_says_what_it_is_releases_and_costs():
    entries = {entry.name: entry for entry in catalog.methods()}
    files = {path.stem for path in (ROOT / "baselines").glob("[!_]*.py")}
    assert set(entries) == files | {"dpdm", "dpdm_gauss"}
    for entry in entries.values():
        load_method(entry.impl)
        assert "not stated" not in entry, entry
        assert all(entry)
    published = {name: entry.published for name, entry in entries.items()}
    assert published["gs_wgan"] == "understated"
    assert published["dpdm"] == "sound"
    assert published["class_mean"] == catalog.NOT_PUBLISHED
    assert "arXiv 2210.09929" in entries["dpdm"].paper
    assert entries["class_mean"].paper == catalog.NO_PAPER
    papers = [entry.paper for entry in entries.values() if entry.published != catalog.NOT_PUBLISHED]
    assert all(re.search(r"\d{4}.*arXiv \d{4}\.\d{5}", paper) for paper in papers)


def test_published_names_are_those_of_the_file():
    """A misspelt `Published as:` would pass for a method of which nothing is known."""
    named = sum("Published as: " in path.read_text() for path in (ROOT / "baselines").glob("[!_]*.py")) + 1
    assert named == sum(entry.published != catalog.NOT_PUBLISHED for entry in catalog.methods())


def test_methods_of_shipped_studies_are_listed():
    impls = {entry.impl for entry in catalog.methods()}
    study = load_study(ROOT / "config" / "paper.yaml")
    assert {spec.impl for spec in study.methods.values()} <= impls


def test_an_unknown_method_names_the_nearest():
    assert catalog.find_impl("pearl") == "baselines.pearl:PEARL"
    assert catalog.find_impl("a.b:C") == "a.b:C"
    with pytest.raises(UserError, match=r"pearls.*pearl"):
        catalog.find_impl("pearls")


@pytest.mark.parametrize(
    ("what", "lines"),
    [
        ("methods", {"pearl": ["one-shot releases", "sound"], "dpcgan": ["DP-SGD", "understated"]}),
        ("datasets", {"digits": ["8x8"], "npz": ["train, test, num_classes"]}),
        ("samplers", {"churn": ["dpdm", "s_churn"], "class_mean": ["default", "pixel_noise"]}),
        ("metrics", {"fid": ["inception", "lower"], "recall": ["small_cnn", "higher"], "acc_cnn": ["higher"]}),
        ("studies", {"digits": ["default study", "class_mean"]}),
    ],
)
def test_list(run_cli, what, lines):
    code, stdout, _ = run_cli("list", what)
    assert code == 0
    for word, expected in lines.items():
        found = [line for line in stdout.splitlines() if word in line.split()]
        assert any(all(text in line for text in expected) for line in found), (word, found)
    assert "not described" not in stdout


def test_listing_methods_loads_no_torch(run_python):
    code = "import sys; from dpdm.cli import main; main(['list', 'methods']); print(*sys.modules, file=sys.stderr)"
    found = run_python("-c", code)
    assert "pearl" in found.stdout
    assert not {"torch", "pandas"} & set(found.stderr.split())


# --- new ------------------------------------------------------------------------------------------------------


def test_a_new_method_goes_where_baselines_are(tmp_path, monkeypatch, run_cli):
    """That it passes the contract is tested there."""
    monkeypatch.chdir(tmp_path)
    code, stdout, _ = run_cli("new", "method", "my_idea")
    assert code == 0
    assert "my_idea:MyIdea" in stdout
    (tmp_path / "baselines").mkdir()
    path, entry = new_method("my_idea")
    assert path == "baselines/my_idea.py"
    assert yaml.safe_load(entry)["methods"]["my_idea"]["impl"] == "baselines.my_idea:MyIdea"
    assert (tmp_path / "my_idea.py").read_text() == (tmp_path / path).read_text()
    text = ast.get_docstring(ast.parse(Path(path).read_text()))
    assert catalog._said(text, "Released") != "not stated"
    assert catalog._said(text, "Cost") != "not stated"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["MyIdea"], ["MyIdea"]),
        (["class"], ["class"]),
        (["real"], ["real"]),
        (["taken"], ["taken.py", "--out"]),
        (["x", "--out", "my-methods/x.py"], ["my-methods/x.py"]),
        (["x", "--out", "x.txt"], ["x.txt", ".py"]),
        (["x", "--out", "/x.py"], ["/x.py"]),
    ],
)
def test_what_cannot_be_a_method_is_refused(arguments, named, tmp_path, monkeypatch, run_cli):
    monkeypatch.chdir(tmp_path)
    Path("taken.py").write_text("mine")
    refused(run_cli("new", "method", *arguments), *named)
    assert os.listdir() == ["taken.py"]
    assert Path("taken.py").read_text() == "mine"


def test_the_console_script_finds_methods_of_the_current_folder(tmp_path, monkeypatch, tiny_study_dict):
    monkeypatch.chdir(tmp_path)
    _, entry = new_method("mine", "own/mine.py")
    study = tiny_study_dict | yaml.safe_load(entry) | {"epsilons": [10]}
    Path("study.yaml").write_text(yaml.safe_dump(study))
    script = "import sys; from dpdm.cli import main; sys.path.pop(0); sys.exit(main())"
    command = [sys.executable, "-c", script, "check", "study.yaml"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr
    assert "class_sums" in found.stdout
