"""What the workflow relies on, or works around, in Snakemake: each fact on a workflow of a few lines."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def toy(tmp_path):
    """A function that writes a Snakefile (and files beside it) and runs snakemake on it."""

    def run(snakefile: str, *arguments: str, **files: str) -> tuple[int, str]:
        (tmp_path / "Snakefile").write_text(snakefile)
        for name, text in files.items():
            (tmp_path / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name.replace("__", "/")).write_text(text)
        command = [sys.executable, "-m", "snakemake", "--cores", "1", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
        )
        return done.returncode, done.stdout

    return run


BEHIND_ANCIENT = """
rule train:
    input: ancient("study")
    output: "model"
    params: spec=config["recipe"]
    shell: "echo {params.spec} > {output}"

rule validate:
    output: "study"
    params: config["recipe"]
    shell: "echo {params} > {output}"
"""


def test_a_job_behind_an_ancient_output_is_not_asked_for_its_params_when_that_is_made_anew(toy):
    """Why the study is no input of `train` (workflow/rules/data.smk, onstart). If this fails, Snakemake was fixed."""
    assert toy(BEHIND_ANCIENT, "--config", "recipe=old")[0] == 0
    first = toy(BEHIND_ANCIENT, "--config", "recipe=new")[1]
    assert "rule validate" in first
    assert "rule train" not in first
    assert "rule train" in toy(BEHIND_ANCIENT, "--config", "recipe=new")[1]  # one run too late


MERGED = """
configfile: "default.yaml"
print("methods:", *sorted(config["methods"]))
rule all:
"""
PROFILED = 'print("methods:", *sorted(config["methods"]))\nrule all:\n'
STUDIES = {"default.yaml": "methods: {one: 1}\n", "own.yaml": "methods: {two: 2}\n"}


def test_a_configfile_directive_is_merged_with_configfile(toy):
    """Why the default study stands in profiles/default and not in the Snakefile."""
    assert "methods: one two" in toy(MERGED, "--configfile", "own.yaml", **STUDIES)[1]


def test_a_profiles_configfile_is_replaced_by_configfile(toy):
    files = STUDIES | {"profiles__default__config.yaml": "configfile: default.yaml\n"}
    assert "methods: one" in toy(PROFILED, **files)[1]
    assert "methods: two" in toy(PROFILED, "--configfile", "own.yaml", **files)[1]


ONSTART = """
onstart:
    shell("echo begun > begun; exit 3")
rule all:
    output: "made"
    shell: "touch {output}"
"""


def test_onstart_guards_every_job_but_no_dry_run(toy, tmp_path):
    assert toy(ONSTART, "-n")[0] == 0
    assert not (tmp_path / "begun").exists()
    assert toy(ONSTART)[0] != 0
    assert (tmp_path / "begun").exists()
    assert not (tmp_path / "made").exists()


def test_an_output_that_a_killed_run_left_is_refused_until_rerun_incomplete(toy, tmp_path):
    snakefile = 'rule all:\n    output: "made"\n    shell: "echo half > {output}; sleep 1; kill -9 $PPID"\n'
    assert toy(snakefile)[0] != 0
    assert (tmp_path / "made").read_text() == "half\n"
    whole = snakefile.replace("half", "whole").replace("sleep 1; kill -9 $PPID", "true")
    assert "--rerun-incomplete" in toy(whole)[1]
    assert "--unlock" in toy(whole, "--rerun-incomplete")[1]
    assert toy(whole, "--unlock")[0] == 0
    assert toy(whole, "--rerun-incomplete")[0] == 0
    assert (tmp_path / "made").read_text() == "whole\n"
