"""What a release consists of: pins, environments, and the files about the project."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import dpdm
from dpdm.config import load_study

ROOT = Path(__file__).parents[1]
SETS = ("cpu", "cuda")


def pins(name: str) -> dict[str, tuple[str, list[str]]]:
    """Of each package of a set: version and hashes."""
    blocks = re.findall(
        r"^([a-z0-9-]+)==([^ ]+) .*\n((?: +--hash=.*\n)*)", (ROOT / f"requirements/{name}.txt").read_text(), re.M
    )
    return {package: (version, re.findall(r"sha256:[0-9a-f]{64}\b", hashes)) for package, version, hashes in blocks}


@pytest.mark.parametrize("name", SETS)
def test_the_pins_are_of_every_requirement_and_have_hashes(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = pins(name)
    assert len(found) > 100
    assert all(hashes for _, hashes in found.values())
    assert min(len(found[package][1]) for package in ("numpy", "pillow")) > 10  # of other Pythons and systems too
    for text in [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]:
        required = Requirement(text)
        version, _ = found[re.sub(r"[._]", "-", required.name).lower()]
        assert required.specifier.contains(version), text


def test_the_two_sets_differ_in_pytorch_only():
    cpu, cuda = pins("cpu"), pins("cuda")
    assert {name for name in cpu if cpu[name] != cuda[name]} == {"torch"}
    assert cpu["torch"][0] == cuda["torch"][0] + "+cpu"
    assert all(name.startswith(("nvidia", "cuda", "triton")) for name in set(cuda) - set(cpu))


def test_the_environment_of_conda_has_the_pins():
    environment = yaml.safe_load((ROOT / "workflow/envs/dpdm.yaml").read_text())
    listed = [line.partition(" ")[0] for line in environment["dependencies"][-1]["pip"]]
    assert listed == [f"{name}=={version}" for name, (version, _) in pins("cuda").items()]


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert citation["version"] == newest == dpdm.__version__
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)


def test_make_clean_leaves_kept_results(tmp_path):
    for path in (
        "results/digits/kept/metrics.csv",
        "results/digits/report.html",
        "results/tiny/runs/x",
        "results/data/x",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert [str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.*")] == [
        "digits/kept/metrics.csv"
    ]
    assert not (tmp_path / "results/data").exists()
    assert not list((tmp_path / "results/tiny").iterdir())


def test_what_the_ci_of_a_public_host_runs_exists():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for words in ("make lint", "make test", "--lint", "--report", "--directory .test"):
        assert any(words in command for command in commands), words
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        for path in re.findall(r"(?<=--configfile )\S+", command):
            load_study(ROOT / path)
        if match := re.match(r"make (\w+)$", command):
            assert re.search(rf"^{match[1]}:", makefile, re.M), command
    classes = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    supported = {text.rpartition(" ")[2] for text in classes if re.search(r"Python :: 3\.\d+$", text)}
    assert {"3.11"} <= supported <= set(jobs["test"]["strategy"]["matrix"]["python"])


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name)
def test_an_issue_template_asks_something(path):
    form = yaml.safe_load(path.read_text())
    if path.name != "config.yml":
        assert {"name", "description", "body"} <= set(form)
        assert all(field["id"] and field["attributes"]["label"] for field in form["body"])


def test_the_workflow_catalog_finds_what_it_asks_for():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment"}
    assert set(usage["software-stack-deployment"]) == {"conda", "apptainer", "apptainer+conda", "report"}
    load_study(ROOT / usage["mandatory-flags"]["flags"].removeprefix("--configfile "))
    assert (ROOT / "workflow/Snakefile").is_file()
    assert load_study(ROOT / ".test/config/config.yaml").study == "tiny"


def test_the_image_is_made_from_what_there_is():
    text = (ROOT / "Dockerfile").read_text()
    default = re.search(r"^ARG PINS=(\w+)", text, re.M)[1]
    assert default in SETS
    assert "requirements/$PINS.txt" in text
    assert 'container: "dpdm-bench.sif"' in (ROOT / "workflow/rules/common.smk").read_text()
