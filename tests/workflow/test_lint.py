"""Snakemake's own linter, clean but for one rule that we break on purpose."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The environment is one virtual environment, pinned by constraints.txt: jobs run the Python that runs Snakemake.
ON_PURPOSE = "Specify a conda environment or container for each rule."


def test_snakemake_lint_finds_nothing_else():
    command = [sys.executable, "-m", "snakemake", "--lint", "--configfile", "config/tiny.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = re.findall(r"^    \* (.*?):$", done.stdout + done.stderr, re.M)
    assert ON_PURPOSE in found  # else this test reads the wrong thing
    assert set(found) == {ON_PURPOSE}
