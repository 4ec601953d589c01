"""The study on a real Slurm, through profiles/slurm as shipped: the same results as on one machine, whatever happens.

One run of the tiny study serves all tests. On its way one training is cancelled, one is told that its time is over, and
the node of a third one dies. What this cannot show: GPUs (the nodes claim some that are none), and the delays of a
network file system (both nodes are this machine).
"""

import csv
import re
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CANCELLED, WARNED, BEREFT = "digits_dpdm_10_0", "digits_dpsgd_logreg_10_0", "digits_dpdm_inf_0"
FOLDERS = {
    CANCELLED: "results/tiny/runs/digits/dpdm/eps10/seed0",
    WARNED: "results/tiny/runs/digits/dpsgd_logreg/eps10/seed0",
    BEREFT: "results/tiny/runs/digits/dpdm/epsinf/seed0",
}


def lasting(study: dict[str, Any]) -> dict[str, Any]:
    """The tiny study with trainings that last long enough to be hit, and two methods less for the time they take."""
    del study["methods"]["dp_gaussian"], study["methods"]["class_mean"]
    study["evaluation"]["classifiers"] = ["logreg"]
    study["methods"]["dpdm"]["params"]["dp"]["steps"] = 60
    study["methods"]["dpdm"]["overrides"][0]["params"]["dp"]["steps"] = 120
    study["methods"]["dpsgd_logreg"]["params"]["dp"]["steps"] = 1000
    return study


def own_profile(folder: Path, code_copy: Path) -> Path:
    """A copy of profiles/slurm with this site's facts, as docs/cluster.md tells its reader to make one."""
    profile = yaml.safe_load((code_copy / "profiles" / "slurm" / "config.yaml").read_text())
    profile |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1}
    profile["set-resources"]["train"]["checkpoint_interval"] = 0  # after every step
    profile["set-resources"]["sample"] = {"gpu": 0}  # as every rule on a site without GPUs
    (folder / "profile").mkdir()
    (folder / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    return folder / "profile"


def snakemake(folder: Path, *arguments: str) -> list[str]:
    """A command line in `folder`, to be given in a checkout."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--directory", folder]
    return [*map(str, command), "--configfile", str(folder / "study.yaml"), *arguments]


@dataclass
class Story:
    """What happened: one folder from this machine, one from the cluster."""

    local: Path
    cluster: Path
    struck: dict[str, dict[str, str]] = field(default_factory=dict)  # the job of each training that was hit, as it was
    logs: dict[str, str] = field(default_factory=dict)  # what it said at its end
    codes: list[int] = field(default_factory=list)  # of both Snakemakes
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)  # all of them, afterwards
    second: str = ""  # what a second Snakemake in the same folder said

    def jobs_of(self, run: str) -> int:
        """How many jobs trained it."""
        return sum(job["Comment"] == f"rule_train_wildcards_{run}" for job in self.jobs.values())

    def both(self, name: str) -> list[bytes]:
        return [(folder / name).read_bytes() for folder in (self.local, self.cluster)]


def strike(slurm, story: Story, run: str) -> None:
    """Does to a training what is planned for it."""
    job = story.struck[run] = slurm.job_of(run)
    if run == BEREFT:
        slurm.fail_node(job["NodeList"])
    elif run == WARNED:
        slurm.command("scancel", "--signal=TERM", job["JobId"])  # what --signal=TERM@180 does ahead of the limit
    else:
        slurm.command("scancel", job["JobId"])
    directory = story.cluster / FOLDERS[run]
    assert not (directory / "model.pt").exists(), f"{run} was done before it was hit"
    if run != BEREFT:
        log = directory / "train.log"
        slurm.wait_for(lambda: "saved" in log.read_text(), f"{run} to save and stop", 120)
        story.logs[run] = log.read_text()
        # To its very end: else the node that dies next takes the rest of it along, and Slurm starts it again.
        ended = ("CANCELLED", "FAILED")
        slurm.wait_for(lambda: slurm.jobs()[job["JobId"]]["JobState"] in ended, f"the end of {run}'s job", 120)


@pytest.fixture(scope="module")
def story(slurm, code_copy, tmp_path_factory) -> Story:
    story = Story(tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("cluster"))
    study = yaml.safe_dump(lasting(yaml.safe_load((code_copy / "config" / "tiny.yaml").read_text())), sort_keys=False)
    with ExitStack() as stack:

        def start(folder: Path, *arguments: str) -> subprocess.Popen:
            (folder / "study.yaml").write_text(study)
            out = stack.enter_context((folder / "terminal.txt").open("w"))
            command = snakemake(folder, *arguments)
            process = subprocess.Popen(command, cwd=code_copy, env=slurm.environment, stdout=out, stderr=out)
            stack.callback(process.kill)
            return process

        processes = [start(story.cluster, "--profile", str(own_profile(story.cluster, code_copy)))]
        processes.append(start(story.local, "--cores", "1"))
        for run in (CANCELLED, WARNED, BEREFT):
            slurm.wait_for((story.cluster / FOLDERS[run] / "checkpoint.pt").exists, f"a checkpoint of {run}", 600)
            strike(slurm, story, run)
        story.second = subprocess.run(
            snakemake(story.cluster, "--cores", "1"), cwd=code_copy, env=slurm.environment, capture_output=True,
            text=True, timeout=300, check=False,
        ).stderr  # fmt: skip
        job = story.struck[BEREFT]["JobId"]
        slurm.wait_for(lambda: slurm.jobs()[job]["JobState"] == "PENDING", "the dead node's job back in the queue", 120)
        for waiting in slurm.jobs().values():
            if waiting["Reason"] == "BeginTime":  # Slurm holds a requeued job back for two minutes: no need to wait
                slurm.command("scontrol", "update", f"jobid={waiting['JobId']}", "starttime=now")
        story.codes = [process.wait(1500) for process in processes]
        story.jobs = slurm.jobs()
    return story


def test_the_study_ends_on_the_cluster_as_on_one_machine(story):
    assert story.codes == [0, 0], (story.cluster / "terminal.txt").read_text()
    rows = [list(csv.DictReader(made.decode().splitlines())) for made in story.both("results/tiny/metrics.csv")]
    assert rows[0]
    assert rows[0] == rows[1]
    for table in ("results.csv", "audit.csv"):
        one, other = story.both(f"results/tiny/tables/{table}")
        assert one == other
    assert (story.cluster / "results" / "tiny" / "report.html").stat().st_size


@pytest.mark.parametrize("run", FOLDERS)
def test_a_training_that_was_cut_goes_on_and_ends_byte_for_byte_the_same(story, run):
    assert "resumed at step" in (story.cluster / FOLDERS[run] / "train.log").read_text()
    for name in ("model.pt", "ledger.json"):
        one, other = story.both(f"{FOLDERS[run]}/{name}")
        assert one == other, name
    assert not (story.cluster / FOLDERS[run] / "checkpoint.pt").exists()


def test_a_cancelled_job_saves_before_it_ends_and_snakemake_submits_it_again(story):
    assert "stopped by SIGTERM" in story.logs[CANCELLED]
    assert story.jobs[story.struck[CANCELLED]["JobId"]]["JobState"] in ("CANCELLED", "FAILED")
    assert story.jobs_of(CANCELLED) > 1


def test_a_job_that_is_warned_of_its_time_limit_saves_before_it_ends_and_snakemake_submits_it_again(story, code_copy):
    assert "--signal=TERM@180" in (code_copy / "profiles" / "slurm" / "config.yaml").read_text()
    assert "stopped by SIGTERM" in story.logs[WARNED]
    assert story.jobs[story.struck[WARNED]["JobId"]]["JobState"] == "FAILED"
    assert story.jobs_of(WARNED) > 1


def test_the_job_of_a_dead_node_is_put_back_into_the_queue_by_slurm_and_followed(story):
    job = story.jobs[story.struck[BEREFT]["JobId"]]
    assert job["Restarts"] == "1"
    assert job["JobState"] == "COMPLETED"
    assert job["NodeList"] != story.struck[BEREFT]["NodeList"]
    assert story.jobs_of(BEREFT) == 1  # not submitted a second time beside the requeued one


def test_the_terminal_has_a_line_per_finished_job_and_the_end_of_a_cancelled_ones_log(story):
    said = (story.cluster / "terminal.txt").read_text()
    assert re.search(r"^ *\d+ of \d+  train digits/dpdm/10/0: ", said, re.MULTILINE)
    assert "stopped by SIGTERM" in said
    assert "Trying to restart job" in said
    assert not re.search("Reason:|Shell command|SLURM jobid", said)


def test_jobs_say_what_they_are_and_ask_for_what_their_rule_wants(story):
    jobs = {job["Comment"]: job for job in story.jobs.values()}
    train = jobs[f"rule_train_wildcards_{WARNED}"]
    assert train["JobName"].startswith("dpdm")
    assert train["TresPerJob"] == "gres:gpu:1"
    assert train["TimeLimit"] == "04:00:00"
    for rule in ("sample", "score"):  # by the profile's gpu: 0; by itself, since only the FID is worth a GPU
        without = [job for comment, job in jobs.items() if comment.startswith(f"rule_{rule}_wildcards_")]
        assert without
        assert not [job for job in without if "TresPerJob" in job]
    first, *later = [job for job in story.jobs.values() if job["Comment"] == f"rule_train_wildcards_{CANCELLED}"]
    assert "mem=2000M" in first["TRES"]
    assert "mem=4000M" in later[0]["TRES"]  # the second attempt
    assert later[0]["TimeLimit"] == "04:00:00"


def test_jobs_of_seconds_share_one(story):
    grouped = [job["Comment"] for job in story.jobs.values() if "wildcards" not in job["Comment"]]
    assert len(grouped) == 2, grouped  # before the first training, and after the last score
    assert any("collect" in comment for comment in grouped), grouped


def test_a_second_snakemake_in_the_same_folder_is_refused(story):
    assert "Directory cannot be locked" in story.second


def test_another_scheduler_through_profiles_generic(slurm, story, code_copy, tmp_path):
    """Slurm's plain commands stand for it. The job is killed without a warning, and goes on from its checkpoint."""
    status = tmp_path / "status.sh"
    status.write_text("""#!/bin/sh
case $(squeue --noheader --states=all --format=%T --jobs="$1") in
  COMPLETED) echo success ;;
  FAILED | CANCELLED | TIMEOUT | NODE_FAIL | OUT_OF_MEMORY) echo failed ;;
  *) echo running ;;
esac
""")
    status.chmod(0o755)
    profile = yaml.safe_load((code_copy / "profiles" / "generic" / "config.yaml").read_text())
    profile |= {
        "cluster-generic-submit-cmd": "sbatch --parsable --comment={rule} --cpus-per-task={threads}"
        " --mem={resources.mem_mb} --time={resources.runtime} --gpus={resources.gpu} --output=jobs.log",
        "cluster-generic-status-cmd": str(status),
        "cluster-generic-cancel-cmd": "scancel",
        "set-resources": {"train": {"checkpoint_interval": 0}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "study.yaml").write_bytes((story.local / "study.yaml").read_bytes())
    directory = tmp_path / FOLDERS[CANCELLED]
    command = snakemake(tmp_path, "--profile", str(tmp_path), "--", f"{FOLDERS[CANCELLED]}/model.pt")
    with (tmp_path / "terminal.txt").open("w") as out:
        process = subprocess.Popen(command, cwd=code_copy, env=slurm.environment, stdout=out, stderr=out)
    try:
        slurm.wait_for((directory / "checkpoint.pt").exists, "a checkpoint", 600)
        (job,) = [job for job in slurm.jobs().values() if job["Comment"] == "train"]
        slurm.command("scancel", "--full", "--signal=KILL", job["JobId"])
        assert process.wait(600) == 0, (tmp_path / "terminal.txt").read_text()
    finally:
        process.kill()
    trained = [other for other in slurm.jobs().values() if other["Comment"] == "train"]
    assert len(trained) == 2  # the killed one, which Slurm calls cancelled, and the next attempt
    assert "resumed at step" in (directory / "train.log").read_text()
    for name in ("model.pt", "ledger.json"):
        assert (directory / name).read_bytes() == (story.local / FOLDERS[CANCELLED] / name).read_bytes()
