"""The workflow away from its clone: as a module of another workflow."""

import os
import subprocess
import sys
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
