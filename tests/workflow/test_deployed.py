"""The workflow away from its clone: as a module of another workflow, and installed from a wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOYER = """
configfile: "config/tiny.yaml"


module dpdm:
    snakefile:
        "{snakefile}"
    config:
        config
{more}

use rule * from dpdm
"""


@pytest.fixture
def deployed(tmp_path, tiny, checkout):
    """`deployed(more) -> (folder, run)`: a folder with a space and an accent, and Snakemake in it; `more`: of the module."""

    def make(more: str = ""):
        folder = tmp_path / "my étude"
        (folder / "config").mkdir(parents=True)
        (folder / "Snakefile").write_text(DEPLOYER.format(snakefile=checkout / "workflow/Snakefile", more=more))
        study = {**tiny, "only": "method=dpdm,dp_gaussian epsilon=10"}
        (folder / "config/tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

        def run(*arguments: str) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            return subprocess.run(
                command, cwd=folder, env=environment, text=True, timeout=1800,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip

        return folder, run

    return make


@pytest.mark.slow
def test_a_module_makes_the_report_in_an_empty_folder(deployed):
    folder, run = deployed()
    done = run()
    assert done.returncode == 0, done.stdout
    assert re.search(r"^ *\d+ of \d+  train digits/dpdm/10/0: ", done.stdout, re.M)
    assert "Reason:" not in done.stdout
    page = (folder / "results/tiny/report.html").read_text()
    assert "snakemake --cores 2 report --configfile config/tiny.yaml" in page
    assert "dp_gaussian" in page
    second = run("-n")
    assert "Nothing to be done" in second.stdout, second.stdout


@pytest.mark.slow
def test_a_module_refuses_a_bad_study_before_any_job(deployed):
    """Snakemake does not run the onstart of a module by itself."""
    folder, run = deployed()
    study = yaml.safe_load((folder / "config/tiny.yaml").read_text())
    study["methods"]["dpdm"]["params"]["wrong"] = 1
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(study))
    done = run()
    assert done.returncode == 1
    assert "wrong" in done.stdout
    assert not list(folder.rglob("*.npz"))


@pytest.mark.slow
def test_a_prefix_that_jobs_would_not_follow_is_refused(deployed):
    _, run = deployed('    prefix:\n        "elsewhere"\n')
    done = run("-n")
    assert done.returncode == 1
    assert all(word in done.stdout for word in ("prefix", "results_dir", "results/tiny")), done.stdout


# --- conda and apptainer --------------------------------------------------------------------------------------

STAND_IN = """#!/bin/sh
if [ "$1" = --version ]; then echo "apptainer version 1.3.0"; exit; fi
echo "$@" >> "$0.log"
while [ "$1" != dpdm-bench.sif ]; do shift; done
shift
exec "$@"
"""


def test_every_job_has_an_environment(checkout):
    text = "\n".join(path.read_text() for path in (checkout / "workflow/rules").glob("*.smk"))
    bodies = [body for body in re.split(r"(?m)^(?= *rule\b.*:$|use rule )", text) if "    shell:\n" in body]
    assert len(bodies) > 10
    assert all('conda:\n' in body and '"../envs/dpdm.yaml"' in body for body in bodies if body.lstrip().startswith("rule"))


@pytest.mark.slow
def test_a_job_in_an_image_runs_the_python_of_the_image_on_this_code(folder, tiny, checkout):
    """With a stand-in that runs the command here: its environment is the activated one."""
    folder.write(tiny)
    tools = folder.path.parent / "tools"
    tools.mkdir()
    (tools / "apptainer").write_text(STAND_IN)
    (tools / "apptainer").chmod(0o755)
    (folder.path / "dpdm-bench.sif").write_text("")
    environment = folder.environment()
    environment["PATH"] = f"{tools}{os.pathsep}{environment['PATH']}"
    command = folder.command("--sdm", "apptainer", "--", "results/data/digits/train.npz")
    done = subprocess.run(
        command, cwd=folder.path, env=environment, text=True, timeout=600, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    assert (folder.path / "results/data/digits/train.npz").is_file()
    said = (tools / "apptainer.log").read_text()
    assert f"export PYTHONPATH={checkout}" in said
    assert "PATH=" not in said.replace("PYTHONPATH=", "")


# --- a wheel --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of what git tracks."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith("tests/") and not re.match(r"results/.*/kept/(?!jobs|study)", name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    pip(source, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), ".")
    return next(out.glob("*.whl"))


def pip(cwd: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, cwd=cwd, check=True, timeout=300)


@pytest.fixture
def installed(wheel, tmp_path):
    """`installed(verb, ...)`: the `dpdm` of a wheel, in an environment and a folder with difficult names."""
    home, folder = tmp_path / "my env's", tmp_path / "my étude"
    folder.mkdir()
    venv.create(home, with_pip=False)
    purelib = next((home / "lib").glob("python*/site-packages"))
    (purelib / "libraries.pth").write_text(sysconfig.get_path("purelib"))  # not the .pth files there: no editable dpdm
    pip(tmp_path, "--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def dpdm(*arguments: str) -> str:
        done = subprocess.run(
            [home / "bin" / "dpdm", *arguments], cwd=folder, env=environment, text=True, timeout=1800,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    dpdm.folder, dpdm.home = folder, home
    return dpdm


@pytest.mark.slow
def test_a_wheel_has_every_module_and_one_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"dpdm"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "dpdm").rglob("*.py")}
    baselines = {f"dpdm/_shipped/{path.relative_to(ROOT)}" for path in (ROOT / "baselines").glob("*.py")}
    assert names >= modules | baselines | {"dpdm/report/report.html.j2", "dpdm/_shipped/workflow/Snakefile"}


@pytest.mark.slow
def test_a_wheel_makes_the_report_in_an_empty_folder(installed):
    part = ["--only", "method=dp_gaussian", "--only", "epsilon=10", "--cores", "2"]
    assert "baselines.pearl:PEARL" in installed("list", "methods")
    assert "tiny" in installed("list", "studies")
    said = installed("run", "tiny", *part)
    assert re.search("^estimate: .* MB .*results/digits/kept", said, re.M)
    assert re.search(r"^ *\d+ of \d+  train digits/dp_gaussian/10/0: ", said, re.M)
    results = installed.folder / "results" / "tiny"
    page = (results / "report.html").read_text()
    assert "dpdm run tiny report" in page
    assert (results / "tables" / "results.csv").stat().st_size > 0
    ledger = json.loads((results / "runs/digits/dp_gaussian/eps10/seed0/ledger.json").read_text())
    assert ledger["recipe"]["impl"] == "baselines.dp_gaussian:DPGaussian"
    assert ledger["provenance"]["commit"] == "unknown"
    assert "Nothing to be done" in installed("run", "tiny", *part, "--dry-run")
    assert {path.name for path in installed.folder.iterdir()} == {"results", ".snakemake"}


@pytest.mark.slow
def test_a_wheel_and_its_clone_are_the_same_code(installed):
    script = "from dpdm.provenance import provenance; print(provenance()['code'])"
    found = [
        subprocess.run([python, "-c", script], cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout
        for python, cwd, env in (
            (installed.home / "bin" / "python", installed.folder, {"PATH": os.environ["PATH"]}),
            (sys.executable, ROOT, {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}),
        )
    ]
    assert found[0] == found[1] != ""
