"""Runs the workflow the way a user does: `snakemake` as a process of its own.

How the tests keep out of each other's way, and out of the repository's:

- Every test has its own working folder (`--directory`): Snakemake keeps its lock and its memory of parameters in
  `.snakemake` there, and the default `results_dir: results` lands beside it. Such a folder can be copied whole.
- The code under test is a snapshot, made once per session: results of two versions of the code are refused by
  `collect`, so a file saved in an editor while the tests run must not reach them.
- Snakemake looks for `profiles/default` in the working folder and beside the Snakefile, so `--snakefile` alone brings
  the profile along. The study it names is a path relative to the caller's folder, hence always `--configfile` here.
"""

import copy
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a snakemake process said."""

    code: int
    text: str

    @property
    def jobs(self) -> list[str]:
        """The line that announces each job, in the order of announcement."""
        return re.findall(r"^Job \d+: (.*)$", self.text, re.MULTILINE)

    @property
    def counts(self) -> dict[str, int]:
        """Jobs per rule, from the table Snakemake prints first (empty: nothing to do)."""
        table = re.search(r"^Job stats:\njob +count\n-[- ]+\n(.*?)\n\n", self.text, re.MULTILINE | re.DOTALL)
        rows = [line.split() for line in table[1].splitlines()] if table else []
        return {rule: int(count) for rule, count in rows if rule != "total"}


@dataclass(frozen=True)
class Folder:
    """One working folder with a study in it."""

    path: Path
    checkout: Path
    python_path: tuple[Path, ...] = field(default=())

    def write(self, study: dict[str, Any], comment: str = "") -> None:
        """Makes `study` the folder's study."""
        (self.path / "study.yaml").write_text(comment + yaml.safe_dump(study, sort_keys=False))

    def command(self, *arguments: str, config: bool = True, short: bool = False) -> list[str]:
        """The snakemake command line; without `short` every job is announced with its command, as `Outcome` needs."""
        study = ["--configfile", "study.yaml"] if config else []
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.checkout / "Snakefile"),
            "--directory", str(self.path), "--cores", "2", *["-p"] * (not short), *study, *arguments,
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """The environment in which snakemake and its jobs find the snapshot first; activated, as printed commands need."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SNAKEMAKE_")}
        return kept | {
            "PYTHONPATH": os.pathsep.join(map(str, (*self.python_path, self.checkout))),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}",
        }

    def snakemake(self, *arguments: str, cwd: Path | None = None, **options: bool) -> Outcome:
        """Runs snakemake to its end."""
        done = subprocess.run(
            self.command(*arguments, **options), cwd=cwd or self.path, env=self.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1800,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout)

    def dry(self, *targets: str, **options: Any) -> Outcome:
        """A dry run, which must succeed."""
        outcome = self.snakemake("-n", *targets, **options)
        assert outcome.code == 0, outcome.text
        return outcome

    def made(self) -> set[str]:
        """Every file here but the study and Snakemake's own."""
        files = (p.relative_to(self.path) for p in self.path.rglob("*") if p.is_file())
        return {str(p) for p in files if p.parts[0] not in (".snakemake", "study.yaml")}


def sources(checkout: Path) -> set[str]:
    """The files of the snapshot, without Python's and Snakemake's caches."""
    files = (p.relative_to(checkout) for p in checkout.rglob("*") if p.is_file())
    return {str(p) for p in files if not {"__pycache__", ".snakemake"} & set(p.parts)}


@pytest.fixture(scope="session")
def snapshot(code_copy) -> tuple[Path, set[str]]:
    """A copy of the code, and the files it has before any workflow ran."""
    return code_copy, sources(code_copy)


@pytest.fixture(scope="session")
def checkout(snapshot) -> Path:
    """The code under test, which the workflow must not write into."""
    return snapshot[0]


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """config/tiny.yaml with its quickest classifier alone; do not change it, take `edit(tiny)`."""
    study = yaml.safe_load((REPOSITORY / "config" / "tiny.yaml").read_text())
    study["evaluation"]["classifiers"] = ["logreg"]  # the others are tested by themselves, and cost a third of it all
    return study


@pytest.fixture
def folder(tmp_path, checkout) -> Folder:
    """An empty working folder."""
    (tmp_path / "work").mkdir()
    return Folder(tmp_path / "work", checkout)


@pytest.fixture(scope="session")
def killed_folder(tmp_path_factory, checkout, tiny) -> Folder:
    """The folder of the run that is killed."""
    folder = Folder(tmp_path_factory.mktemp("killed"), checkout)
    folder.write(tiny)
    return folder


@dataclass(frozen=True)
class Finished:
    """The tiny study, run once to its end."""

    folder: Folder
    outcome: Outcome  # with all that Snakemake's log file has
    shown: str  # on the terminal
    littered: set[str]  # files that the run left in the checkout


@pytest.fixture(scope="session")
def finished(snapshot, tiny, tmp_path_factory) -> Finished:
    """Never modified: tests that would change it take `again`."""
    checkout, before = snapshot
    folder = Folder(tmp_path_factory.mktemp("finished"), checkout)
    folder.write(tiny)
    outcome = folder.snakemake(short=True)
    shown = outcome.text
    if outcome.code == 0:
        (log,) = folder.path.glob(".snakemake/log/*.log")
        outcome = Outcome(0, log.read_text())
    return Finished(folder, outcome, shown, sources(checkout) - before)


@pytest.fixture
def again(finished, tmp_path, checkout) -> Folder:
    """A copy of the finished tiny study, with Snakemake's memory of it."""
    assert finished.outcome.code == 0, finished.outcome.text
    shutil.copytree(finished.folder.path, tmp_path / "again")
    return Folder(tmp_path / "again", checkout)


@pytest.fixture
def edit():
    """A deep copy to edit."""
    return copy.deepcopy
