"""The bug matrix: plants one bug at a time in a copy of the code, and runs the check that must notice it.

`make mutants` runs all; `python tests/mutants/run.py stream clip` those with one of these words in their name;
`--table` prints the table of docs/privacy.md. Exits with 1 if a bug survives its check, if a bug is no bug but broken
code, or if a check fails without any bug.

Every check has a process of its own, forked from this one, which has imported the libraries but none of this project.
"""

import argparse
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from matrix import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
SECONDS = 300  # that a process may take
LIBRARIES = (
    "cryptography.hazmat.primitives.ciphers", "dp_accounting.pld.privacy_loss_distribution", "numpy",
    "opacus.accountants.analysis.prv", "opacus.accountants.analysis.rdp", "pydantic", "pytest", "scipy.signal",
    "scipy.stats", "sklearn.datasets", "torch", "yaml",
)  # fmt: skip
# Not what a check should find: then the planted code could not run at all.
BROKEN = re.compile(
    r"\b(ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|UnboundLocalError|AttributeError)\b"
    r"|cannot import"
)


class Outcome(NamedTuple):
    """What became of one process with checks."""

    code: int  # pytest's, or -9 where it took too long
    tests: list[tuple[str, str]]  # "passed", "failure", "error" or "skipped", and a message
    output: str  # its end


def mutated(mutant: Mutant, source: str) -> str:
    """The source with the bug in it.

    Raises:
        ValueError: an old text does not occur exactly once.
        SyntaxError: what comes out is not Python.
    """
    for old, new in mutant.edits.items():
        if (count := source.count(old)) != 1:
            raise ValueError(f"{mutant.name}: {mutant.file} holds this text {count} times, not once: {old!r}")
        source = source.replace(old, new)
    compile(source, mutant.file, "exec")
    return source


def table() -> str:
    """The matrix in Markdown."""
    lines = ["| planted bug | where | caught by |", "| --- | --- | --- |"]
    for mutant in MUTANTS:
        test = mutant.check.partition("::")[2]
        lines.append(f"| {mutant.name} | `{mutant.file}` | {mutant.kind}: `{test}` |")
    return "\n".join(lines)


def verdict(outcome: Outcome) -> str:
    """'caught: ' and by what, 'survived', or why the process says nothing about the bug."""
    if outcome.code == 0:
        return "survived"
    failures = [message for kind, message in outcome.tests if kind == "failure"]
    if outcome.code != 1 or not failures:
        return f"no failure of a test (exit code {outcome.code}): {outcome.output}"
    if BROKEN.search(failures[0]):
        return f"broken code, not a bug: {failures[0]}"
    return f"caught: {failures[0]}"


# --- copies and processes ---------------------------------------------------------------------------------------


def make_copy(folder: Path) -> None:
    """Copies the working tree: what is tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def _check(folder: Path, checks: Sequence[str], stop: bool) -> None:
    """The process: runs tests of the copy in `folder`, `stop` at the first that fails."""
    with (folder / ".mutants.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = str(folder)
    # No bytecode: it goes by time and size of a source, which may be the same with and without a bug.
    os.environ["PYTHONDONTWRITEBYTECODE"], sys.dont_write_bytecode = "1", True
    sys.path[:] = [str(folder), *(path for path in sys.path if Path(path) not in (ROOT, Path(__file__).parent))]
    found = [importlib.util.find_spec(name).origin for name in ("dpdm", "baselines")]
    if found != [str(folder / name / "__init__.py") for name in ("dpdm", "baselines")] or "dpdm" in sys.modules:
        print(f"tests would import {found}, not the copy in {folder}", flush=True)
        os._exit(100)
    import pytest

    options = ["-q", "-p", "no:cacheprovider", "--junitxml", str(folder / ".mutants.xml"), *(["-x"] if stop else [])]
    code = pytest.main([*options, *checks])
    sys.stdout.flush()
    os._exit(int(code))


def outcomes(
    folders: Sequence[Path], tasks: Sequence[tuple[Mutant | None, Sequence[str]]]
) -> Iterator[tuple[Mutant | None, Outcome]]:
    """Runs the checks of each task with its bug planted, in as many processes as there are copies."""
    context = multiprocessing.get_context("fork")
    free, waiting, running = list(folders), list(tasks), {}
    while waiting or running:
        while waiting and free:
            folder, (mutant, checks) = free.pop(), waiting.pop(0)
            (folder / ".mutants.xml").unlink(missing_ok=True)
            source = "" if mutant is None else (folder / mutant.file).read_text()
            if mutant is not None:
                (folder / mutant.file).write_text(mutated(mutant, source))
            process = context.Process(target=_check, args=(folder, checks, mutant is not None))
            process.start()
            running[process.sentinel] = process, folder, mutant, source, time.monotonic() + SECONDS
        ended = wait(list(running), timeout=1)
        for sentinel in [s for s in running if s in ended or time.monotonic() > running[s][-1]]:
            process, folder, mutant, source, _ = running.pop(sentinel)
            process.kill()
            process.join()
            if mutant is not None:
                (folder / mutant.file).write_text(source)
            yield mutant, Outcome(process.exitcode, _tests(folder), (folder / ".mutants.txt").read_text()[-3000:])
            free.append(folder)


def _tests(folder: Path) -> list[tuple[str, str]]:
    if not (folder / ".mutants.xml").exists():
        return []
    found = []
    for case in ElementTree.parse(folder / ".mutants.xml").iter("testcase"):
        bad = next((part for part in case if part.tag in ("failure", "error", "skipped")), None)
        found.append(("passed", "") if bad is None else (bad.tag, bad.get("message", "")))
    return found


# --- the command line -------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the matrix, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only bugs whose name holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (2)")
    parser.add_argument("--table", action="store_true", help="print the table of docs/privacy.md and stop")
    chosen = parser.parse_args(arguments)
    if chosen.table:
        print(table())
        return 0
    mutants = [m for m in MUTANTS if not chosen.words or any(word in m.name for word in chosen.words)]
    if not mutants:
        parser.error(f"no bug has {' or '.join(chosen.words)} in its name")
    for mutant in mutants:
        mutated(mutant, (ROOT / mutant.file).read_text())
    began = time.monotonic()
    for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{library}_NUM_THREADS"] = "1"  # a process with threads should not be forked
    for library in LIBRARIES:
        importlib.import_module(library)
    problems = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary).resolve() / str(number) for number in range(max(1, chosen.jobs))]
        for folder in folders:
            make_copy(folder)
        checks = sorted({mutant.check for mutant in mutants})
        parts = [checks[start :: len(folders)] for start in range(min(len(folders), len(checks)))]
        for _, outcome in outcomes(folders, [(None, part) for part in parts]):
            if outcome.code or not outcome.tests or any(kind != "passed" for kind, _ in outcome.tests):
                problems.append(f"without any bug a check does not pass:\n{outcome.output}")
        print(f"{len(checks)} checks without any bug: {time.monotonic() - began:.0f} s", flush=True)
        if not problems:
            start = time.monotonic()
            found = outcomes(folders, [(mutant, [mutant.check]) for mutant in mutants])
            for number, (mutant, outcome) in enumerate(found, 1):
                left = (time.monotonic() - start) / number * (len(mutants) - number)
                said = verdict(outcome)
                brief = said.partition("\n")[0][:120]
                print(f"{number}/{len(mutants)}, {left:.0f} s left: {mutant.name}: {brief}", flush=True)
                if not said.startswith("caught: "):
                    problems.append(f"{mutant.name} ({mutant.why})\n  {mutant.check}\n  {said}")
            print(f"{len(mutants) - len(problems)} of {len(mutants)} bugs caught in {time.monotonic() - began:.0f} s")
    for problem in problems:
        print(f"NOT CAUGHT: {problem}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
