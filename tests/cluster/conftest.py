"""A real Slurm for the tests: munged, slurmctld and two slurmd of this machine's packages, on the loopback.

It shares nothing with a Slurm that this machine may belong to: own folder, own key, own ports, own configuration file.
Every daemon is stopped at the end, and every process that one of them started.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where Debian has the daemons
DAEMONS = ("munged", "slurmctld", "slurmd")
NODES = ("n1", "n2")
GPU_FILES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")  # harmless: no program looks for a GPU there


def missing() -> str:
    """What keeps the tests from running, or the empty string."""
    for name in (*DAEMONS, "sbatch", "srun"):
        if shutil.which(name, path=PATH) is None:
            return f"no Slurm here: {name} is missing (Debian: apt-get install slurm-wlm munge)"
    for extra in ("slurm", "cluster_generic"):
        if importlib.util.find_spec(f"snakemake_executor_plugin_{extra}") is None:
            return f"no snakemake-executor-plugin-{extra.replace('_', '-')} here: pip install -e .[slurm,generic]"
    return ""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or not ours."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(item.partition("=")[::2] for item in text.split("\0") if "=" in item)


def parent_of(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(pids: set[int]) -> None:
    for pid in pids - {os.getpid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Slurm:
    """The throw-away cluster."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.conf = folder, folder / "slurm.conf"
        # The job step that the plugin starts has lost SLURM_CONF on the way; this srun puts it back.
        wrapper = folder / "bin" / "srun"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={self.conf} exec {shutil.which("srun", path=PATH)} "$@"\n')
        wrapper.chmod(0o755)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SNAKEMAKE_"))}
        self.environment |= {
            "SLURM_CONF": str(self.conf),
            "PATH": f"{wrapper.parent}:{Path(sys.executable).parent}:{PATH}",
            "PYTHONPATH": str(checkout),
        }
        self.daemons: dict[str, subprocess.Popen] = {}

    @staticmethod
    def wait_for(condition: Callable[[], object], what: str, seconds: float = 300) -> None:
        """Waits until `condition()` is true; generous, since other work may share the cores."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.1)

    def start(self) -> None:
        for name in ("state", "log", "spool", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir()
        key, munge = self.folder / "munge.key", self.folder / "munge.sock"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "munged", "--foreground", f"--socket={munge}", *files)
        self.wait_for(munge.exists, "munged", 60)
        host = socket.gethostname().partition(".")[0]
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=4 Boards=1"
            f" SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:{len(GPU_FILES)}"
            for node in NODES
        )
        user, partition = self._say("id", "-un"), f"PartitionName=all Nodes={','.join(NODES)} Default=YES State=UP"
        self.conf.write_text(f"""
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool/%n
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd-%n.pid
SlurmctldLogFile={self.folder}/log/slurmctld.log
SlurmdLogFile={self.folder}/log/slurmd-%n.log
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_min_interval=200000,bf_interval=1
# Nodes that have more cores and memory than this machine.
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
# squeue, which is asked where no database is, remembers a finished job for so long.
MinJobAge=3600
GresTypes=gpu
{nodes}
{partition}
""")
        gres = [f"NodeName={node} Name=gpu File={file}\n" for node in NODES for file in GPU_FILES]
        (self.folder / "gres.conf").write_text("".join(gres))
        self._daemon("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon(node, "slurmd", "-D", "-N", node)
        self.wait_for(
            lambda: self._say("sinfo", "-hN", "-o", "%T", check=False).split() == ["idle"] * 2, "idle nodes", 120
        )

    def stop(self) -> None:
        """Stops the daemons, the processes that they started, and the Snakemakes that a failed test left."""
        for name in reversed(self.daemons):
            self.daemons[name].terminate()
        kill(self._processes())
        for daemon in self.daemons.values():
            daemon.wait(30)

    def fail_node(self, node: str) -> None:
        """The machine `node` dies: its daemon and all it ran are gone at once, and the controller is told so."""
        jobs = self._processes(SLURMD_NODENAME=node)
        # The steps' own daemons first, lest they report how their processes ended.
        kill({parent_of(pid) for pid in jobs if self._name(parent_of(pid)) == "slurmstepd"} | {self.daemons[node].pid})
        kill(jobs)
        self._say("scontrol", "update", f"nodename={node}", "state=down", "reason=failed")

    def jobs(self) -> dict[str, dict[str, str]]:
        """Every job that Slurm remembers, by its id."""
        lines = self._say("scontrol", "show", "job", "-o", check=False).splitlines()
        fields = [dict(word.partition("=")[::2] for word in line.split() if "=" in word) for line in lines]
        return {job["JobId"]: job for job in fields if "JobId" in job}

    def job_of(self, run: str) -> dict[str, str]:
        """The latest job that trains `DATASET_METHOD_EPSILON_SEED`."""
        found = [job for job in self.jobs().values() if job.get("Comment") == f"rule_train_wildcards_{run}"]
        return max(found, key=lambda job: int(job["JobId"]))

    def command(self, *arguments: str) -> None:
        self._say(*arguments)

    def _say(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / "log" / f"{name}.out").open("wb") as out:
            self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=out, stderr=out)

    def _processes(self, **variables: str) -> set[int]:
        """Every process that was started with this cluster's configuration, and with these variables."""
        wanted = {"SLURM_CONF": str(self.conf)} | variables
        pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        return {pid for pid in pids if wanted.items() <= environment_of(pid).items()}

    @staticmethod
    def _name(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            return ""


@contextmanager
def running_slurm(checkout: Path) -> Iterator[Slurm]:
    # Not below pytest's own folder: munge wants one that every user may enter.
    folder = Path(tempfile.mkdtemp(prefix="dpdm-slurm-"))
    folder.chmod(0o755)
    slurm = Slurm(folder, checkout)
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm(code_copy) -> Iterator[Slurm]:
    """The cluster; only what is started with its `environment` sees it."""
    if reason := missing():
        pytest.skip(reason)
    with running_slurm(code_copy) as cluster:
        yield cluster
