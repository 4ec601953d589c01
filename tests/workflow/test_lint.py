"""Snakemake's linter and formatter find nothing."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*words: str) -> tuple[int, str]:
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    return done.returncode, done.stdout


def test_snakemake_lint_finds_nothing():
    code, text = run("snakemake", "--lint", "--configfile", "config/paper.yaml")  # it has the most rules
    assert code == 0, text
    assert "in a good condition" in text


def test_snakefmt_finds_nothing():
    code, text = run("snakefmt", "--check", "Snakefile", "workflow")
    assert code == 0, text
    assert "9 file(s) would be left unchanged" in text
