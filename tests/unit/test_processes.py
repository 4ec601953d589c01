"""Several processes for one run: the same private mechanism, whoever computes it. Real processes, gloo, on the CPU."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dpdm import artifacts
from dpdm.data import ImageSet, write_images
from dpdm.specs import RunSpec, spec_json

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def spec(**changes) -> RunSpec:
    params = {
        "network": {"channels": 8, "channel_mult": [1, 2], "blocks_per_level": 1, "attention_resolutions": []},
        "noise_multiplicity": 2,
        "lr": 1e-3,
        "dp": {"expected_batch_size": 12, "steps": 4, "max_grad_norm": 1.0, "max_physical_batch_size": 4},
    }
    dp = changes.pop("dp", {})
    base = RunSpec(
        study="s", dataset="d", method="dpdm", impl="dpdm.diffusion.method:DPDM",
        params=params | {"dp": params["dp"] | dp}, epsilon=math.inf, delta="1/(2n)", allow_large_delta=False,
        accountant="rdp", seed=0,
    )  # fmt: skip
    return base.model_copy(update=changes)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "train.npz"
    write_images(path, ImageSet(rng.integers(0, 256, (40, 1, 8, 8), np.uint8), np.arange(40) % 10, 10))
    return path


def start(run: RunSpec, images: Path, folder: Path, count: int, *more: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.json").write_text(spec_json(run))
    recipe = f"--spec={folder / 'recipe.json'}"
    command = [sys.executable, "-m", "dpdm", "train", recipe, f"--data={images}", f"--out={folder}"]
    return subprocess.Popen(
        [*command, f"--processes={count}", *more], cwd=ROOT, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


FILES = {"model": "model.pt", "ledger": "ledger.json", "curve": "train.jsonl", "checkpoint": "checkpoint.pt"}


def finish(run: RunSpec, images: Path, folder: Path, count: int) -> tuple[dict[str, torch.Tensor], dict]:
    process = start(run, images, folder, count)
    errors = process.communicate(timeout=180)[1]
    assert process.returncode == 0, errors
    weights = artifacts.read_tensors(folder / "model.pt")["state"]["weights"]
    return weights, artifacts.read_json(folder / "ledger.json")


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """What one process makes of a spec; each is trained once."""
    known = {}

    def train(run: RunSpec) -> tuple[dict[str, torch.Tensor], dict]:
        key = spec_json(run)
        if key not in known:
            known[key] = finish(run, images, tmp_path_factory.mktemp("one"), 1)
        return known[key]

    return train


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_without_noise_the_weights_equal_those_of_one_process(images, alone, tmp_path):
    weights, ledger = alone(spec())
    together, same_ledger = finish(spec(), images, tmp_path, 3)
    assert distance(weights, together) < 1e-6
    assert same_ledger == ledger


def test_with_noise_it_is_added_once(images, alone, tmp_path):
    """Twice the noise, or other noise in one of the processes, would move the weights far more than rounding does."""
    noisy = spec(epsilon=1.0)
    weights, ledger = alone(noisy)
    together, same_ledger = finish(noisy, images, tmp_path, 2)
    assert ledger["events"][0]["noise_multiplier"] > 1
    assert distance(weights, alone(spec())[0]) > 1e-4  # so noise does show here
    assert distance(weights, together) < 1e-6
    assert same_ledger == ledger


def test_processes_without_a_record(images, alone, tmp_path):
    """An expected batch of one record: most steps leave a process, and some all of them, without any."""
    few = spec(dp={"expected_batch_size": 1, "steps": 6})
    assert distance(alone(few)[0], finish(few, images, tmp_path, 3)[0]) < 1e-6


def workers(process: subprocess.Popen) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in found.split()]


LONG = spec(epsilon=1.0, dp={"steps": 40})


@pytest.fixture(scope="module")
def uncut(images, tmp_path_factory):
    """What two processes make of LONG when nobody disturbs them."""
    return finish(LONG, images, tmp_path_factory.mktemp("uncut"), 2)


@pytest.mark.parametrize("how", ["a worker is killed", "the launcher is asked to stop"])
def test_a_cut_run_fails_cleanly_and_goes_on_where_it_was(images, uncut, tmp_path, how):
    whole, ledger = uncut
    folder = tmp_path / "cut"
    process = start(LONG, images, folder, 2, "--checkpoint-interval=0")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    if how == "a worker is killed":
        os.kill(workers(process)[-1], signal.SIGKILL)
    else:
        process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert not (folder / "model.pt").exists(), "the run was over before it was cut"
    assert (folder / "checkpoint.pt").exists(), errors
    again = start(LONG, images, folder, 2)
    errors = again.communicate(timeout=180)[1]
    assert again.returncode == 0, errors
    assert errors.count("resumed at step") == 1
    assert artifacts.read_json(folder / "ledger.json") == ledger
    assert distance(artifacts.read_tensors(folder / "model.pt")["state"]["weights"], whole) == 0
    assert not (folder / "checkpoint.pt").exists()
