"""Provenance: which edits part the runs, and what is said outside a checkout."""

import shutil
import subprocess
from pathlib import Path

import pytest

import dpdm
from dpdm import provenance as module


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package's sources that `provenance` takes for its own."""
    copy = tmp_path / "checkout" / "dpdm"
    shutil.copytree(Path(dpdm.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "__file__", str(copy / "provenance.py"))
    return copy


def provenance() -> dict[str, str]:
    return module.provenance.__wrapped__()


def test_keys():
    facts = module.provenance()
    assert set(facts) == {"version", "commit", "code"}
    assert facts["version"] == dpdm.__version__
    assert len(facts["code"]) == 16


def test_equal_sources_give_an_equal_digest_anywhere(package, tmp_path, monkeypatch):
    before = provenance()["code"]
    shutil.copytree(package, tmp_path / "elsewhere" / "dpdm")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "elsewhere" / "dpdm" / "provenance.py"))
    assert provenance()["code"] == before


@pytest.mark.parametrize("file", ["rng.py", "privacy/door.py", "diffusion/method.py"])
def test_an_edit_changes_the_digest(package, file):
    before = provenance()["code"]
    with (package / file).open("a") as text:
        text.write("edited = 1\n")
    assert provenance()["code"] != before


def test_comments_docstrings_and_layout_do_not_count(package):
    before = provenance()["code"]
    source = package / "rng.py"
    source.write_text("# a remark\n" + source.read_text().replace('"""', '"""Or rather: ', 1) + "\n\n# edited\n")
    assert provenance()["code"] == before


def test_a_renamed_file_changes_the_digest(package):
    before = provenance()["code"]
    (package / "rng.py").rename(package / "rngs.py")
    assert provenance()["code"] != before


def test_report_command_line_and_other_folders_do_not_count(package):
    before = provenance()["code"]
    (package / "cli" / "runs.py").write_text("rewritten = 1\n")
    (package / "report" / "tables.py").write_text("rewritten = 1\n")
    (package.parent / "baselines").mkdir()
    (package.parent / "baselines" / "new.py").write_text("")
    (package / "_shipped").mkdir()
    (package / "_shipped" / "new.py").write_text("")  # where a wheel has the baselines
    assert provenance()["code"] == before


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_and_whether_the_tree_differs(package):
    checkout = package.parent
    git(checkout, "init")
    git(checkout, "add", ".")
    git(checkout, "commit", "-m", "all")
    head = git(checkout, "rev-parse", "HEAD")
    assert provenance()["commit"] == head
    (checkout / "untracked").write_text("")
    assert provenance()["commit"] == head
    (package / "rng.py").write_text("")
    assert provenance()["commit"] == head + "-dirty"


def test_outside_a_checkout(package, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(package.parents[1]))
    assert provenance()["commit"] == "unknown"


def test_in_a_wheel_whose_environment_is_in_a_checkout(package):
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "of another project")
    (package / "_shipped").mkdir()
    assert provenance()["commit"] == "unknown"


def test_without_git(package, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance()["commit"] == "unknown"


def test_fields_that_a_python_has_and_leaves_empty_do_not_count(tmp_path):
    """Python 3.12 gave functions `type_params`, and 3.13 leaves empty fields out of `ast.dump`."""
    source = tmp_path / "source.py"
    source.write_text("def f(a, b=None):\n    return None\n")
    assert module.meaning(source) == (
        b"Module(body=[FunctionDef(name='f', args=arguments(args=[arg(arg='a'), arg(arg='b')], defaults=[Constant()]), "
        b"body=[Return(value=Constant())])])"
    )
