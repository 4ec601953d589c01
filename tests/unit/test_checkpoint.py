"""Resume: however a run was cut, its model and ledger end byte for byte as if it had not been."""

import io
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn

from dpdm import artifacts, jobs, method
from dpdm.checkpoint import STOPS, Checkpoint
from dpdm.data import ImageSet, write_images
from dpdm.errors import UserError
from dpdm.method import train
from dpdm.privacy import Budget, DpSgdParams, Ledger, PrivateData, Randomness
from dpdm.privacy.dpsgd import DpSgdStep
from dpdm.privacy.key import key_path
from dpdm.progress import Log
from dpdm.provenance import provenance
from dpdm.rng import Streams
from dpdm.specs import RunSpec, spec_json

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.fixture(scope="module")
def images() -> ImageSet:
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (40, 1, 8, 8), np.uint8), np.arange(40) % 10, 10)


def spec(**changes) -> RunSpec:
    params = {
        "network": {"channels": 8, "channel_mult": [1, 2], "blocks_per_level": 1, "attention_resolutions": []},
        "noise_multiplicity": 2,
        "lr_schedule": "linear",  # a continued run is as far down as one that was not cut
        "dp": {"expected_batch_size": 8, "steps": STEPS, "max_grad_norm": 1.0},
    }
    base = RunSpec(
        study="s", dataset="d", method="dpdm", impl="dpdm.diffusion.method:DPDM", params=params, epsilon=5.0,
        delta="1/(2n)", allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    return base.model_copy(update=changes)


def result(model, ledger) -> tuple[bytes, str]:
    buffer = io.BytesIO()
    torch.save(model.state(), buffer)
    return buffer.getvalue(), artifacts.canonical_json(ledger.to_json())


@pytest.fixture(scope="module")
def uninterrupted(images):
    return result(*train(spec(), images, Log("test")))


class Killed(BaseException):
    pass


def cut(images, path, step: int, interval: float, monkeypatch, run: RunSpec | None = None) -> None:
    """Trains with checkpoints until the middle of `step`, and dies there."""
    update = DpSgdStep.update

    def dying(self, row_losses):
        if self.index == step:
            raise Killed
        update(self, row_losses)

    with monkeypatch.context() as patch:
        patch.setattr(DpSgdStep, "update", dying)
        with pytest.raises(Killed):
            train(run or spec(), images, Log("test"), checkpoint=path, checkpoint_interval=interval)


@pytest.mark.parametrize("step", [1, 4, STEPS - 1])
def test_cut_and_continued_equals_uninterrupted(images, uninterrupted, tmp_path, monkeypatch, capsys, step):
    path = tmp_path / "checkpoint.pt"
    cut(images, path, step, 0.0, monkeypatch)
    capsys.readouterr()
    log = Log("test")
    assert result(*train(spec(), images, log, checkpoint=path)) == uninterrupted
    errors = capsys.readouterr().err
    assert f"resumed at step {step} of {STEPS}" in errors
    assert f"test: {step + 1}/{STEPS}, " in errors
    assert errors.splitlines()[-1].startswith(f"test: {STEPS}/{STEPS}, ")
    assert [row["step"] for row in log.rows] == list(range(STEPS))  # the curve has no hole and no double


def test_cut_twice(images, uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    for step in (2, 5):
        cut(images, path, step, 0.0, monkeypatch)
    assert result(*train(spec(), images, Log("test"), checkpoint=path)) == uninterrupted


def test_a_cut_before_the_first_save_starts_again(images, uninterrupted, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    cut(images, path, 3, 3600.0, monkeypatch)
    assert not path.exists()
    assert result(*train(spec(), images, Log("test"), checkpoint=path)) == uninterrupted


@pytest.mark.parametrize("left", [slice(-2000), slice(0)])
def test_a_truncated_checkpoint_starts_again(images, uninterrupted, tmp_path, monkeypatch, capsys, left):
    path = tmp_path / "checkpoint.pt"
    cut(images, path, 5, 0.0, monkeypatch)
    path.write_bytes(path.read_bytes()[left])
    capsys.readouterr()
    assert result(*train(spec(), images, Log("test"), checkpoint=path)) == uninterrupted
    assert "not resumed, starting at step 0" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["recipe", "budget", "data"])
def test_a_checkpoint_of_another_run_is_not_used(images, uninterrupted, tmp_path, monkeypatch, capsys, change):
    path = tmp_path / "checkpoint.pt"
    other_spec, other_images = spec(), images
    if change == "recipe":
        other_spec = spec(params=spec().params | {"lr": 1e-2})
    elif change == "budget":
        other_spec = spec(epsilon=1.0)
    else:
        other_images = ImageSet(images.images[::-1].copy(), images.labels, 10)
    cut(other_images, path, 5, 0.0, monkeypatch, other_spec)
    capsys.readouterr()
    unused = path.read_bytes()
    assert result(*train(spec(), images, Log("test"), checkpoint=path)) == uninterrupted
    assert "belongs to another recipe, other data or other code" in capsys.readouterr().err
    assert Checkpoint.aside(path).read_bytes() == unused  # a slip in the recipe costs nothing


@pytest.mark.parametrize(("changed", "resumed"), [("commit", True), ("version", True), ("code", False)])
def test_other_sources_start_again_but_another_commit_of_the_same_goes_on(
    images, tmp_path, monkeypatch, capsys, changed, resumed
):
    path = tmp_path / "checkpoint.pt"
    cut(images, path, 5, 0.0, monkeypatch)
    monkeypatch.setattr(method, "provenance", lambda: provenance() | {changed: "another"})
    capsys.readouterr()
    train(spec(), images, Log("test"), checkpoint=path)
    assert ("not resumed" in capsys.readouterr().err) is not resumed


def test_what_is_logged_between_a_release_and_a_loop_is_kept_once(tmp_path):
    def run() -> list:
        log = Log("test")
        saves = Checkpoint(tmp_path / "checkpoint.pt", "run", log, interval=0.0)
        saves.restore("release", loop=False)
        saves.finish("release", lambda: {})
        log.record(0, pretraining=1.0)
        if saves.restore("loop") is None:
            log.record(1, training=2.0)
            saves.step_done("loop", dict)
        return log.rows

    first = run()
    assert len(first) == 2
    assert run() == first


def test_a_checkpoint_with_another_event_is_refused(images, tmp_path, monkeypatch):
    """Nobody can hide steps by handing in cheaper ones."""
    path = tmp_path / "checkpoint.pt"
    cut(images, path, 5, 0.0, monkeypatch)
    content = artifacts.read_tensors(path)
    content["states"]["denoiser"]["event"]["noise_multiplier"] *= 10
    artifacts.write_tensors(path, content)
    with pytest.raises(UserError, match="spent its budget otherwise"):
        train(spec(), images, Log("test"), checkpoint=path)


@pytest.mark.parametrize("number", STOPS)
def test_a_signal_lets_the_step_finish_saves_and_exits(images, uninterrupted, tmp_path, monkeypatch, capsys, number):
    path = tmp_path / "checkpoint.pt"
    update = DpSgdStep.update
    handlers = [signal.getsignal(n) for n in STOPS]

    def signalling(self, row_losses):
        if self.index == 3:
            os.kill(os.getpid(), number)
        update(self, row_losses)

    with monkeypatch.context() as patch:
        patch.setattr(DpSgdStep, "update", signalling)
        with pytest.raises(SystemExit) as stopped:
            train(spec(), images, Log("test"), checkpoint=path)
    assert stopped.value.code == 128 + number
    assert artifacts.read_tensors(path)["states"]["denoiser"]["event"]["steps"] == 4
    assert [signal.getsignal(n) for n in STOPS] == handlers
    assert result(*train(spec(), images, Log("test"), checkpoint=path)) == uninterrupted


def test_the_ledger_counts_every_step_once(images, tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    cut(images, path, 6, 0.0, monkeypatch)
    _, ledger = train(spec(), images, Log("test"), checkpoint=path)
    assert [event.steps for event in ledger.events] == [STEPS]


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    saves = Checkpoint(tmp_path / "checkpoint.pt", "x", Log("test"))
    with saves.on_signal():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        saves._stop = None


# --- whole processes -----------------------------------------------------------------------------------------

OUTPUTS = ("model.pt", "ledger.json", "train.jsonl")


def command(folder, steps: int) -> list[str]:
    run = spec(params=spec().params | {"dp": spec().params["dp"] | {"steps": steps}})
    (folder / "recipe.json").write_text(spec_json(run))
    return [
        sys.executable, "-m", "dpdm", "train", "--spec", folder / "recipe.json", "--data", folder / "train.npz",
        "--out", folder, "--checkpoint-interval", "0",
    ]  # fmt: skip


def signalled(images, folder, number: int, steps: int = 80) -> subprocess.CompletedProcess:
    """Starts training, sends a signal at a random moment after the first checkpoint, waits for the end."""
    write_images(folder / "train.npz", images)
    process = subprocess.Popen(command(folder, steps), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.2))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=err)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_images(folder / "train.npz", images)
    subprocess.run(command(folder, 80), check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signalled_process_leaves_nothing_half_done_and_continues(images, whole, tmp_path, number, code):
    done = signalled(images, tmp_path, number)
    assert done.returncode == code
    assert not any((tmp_path / name).exists() for name in OUTPUTS)
    if number != signal.SIGKILL:
        assert "from which the same command continues" in done.stderr
    again = subprocess.run(command(tmp_path, 80), capture_output=True, text=True)
    assert again.returncode == 0
    assert "resumed at step" in again.stderr
    for name in ("model.pt", "ledger.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert not (tmp_path / "checkpoint.pt").exists()  # the run is complete


# --- a run of several private loops -----------------------------------------------------------------------------


class TwoLoops:
    """Two DP-SGD mechanisms one after the other on one network, the second with a tighter clip."""

    names = ("first", "second")

    def __init__(self):
        self.params = DpSgdParams(expected_batch_size=16, steps=4, max_grad_norm=1.0)

    def run(self, images, path=None, die_at: tuple[str, int] | None = None):
        with Streams(0).torch_default("net"):
            net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(net.parameters())
        loops = dict(zip(self.names, (self.params, self.params.model_copy(update={"max_grad_norm": 0.5})), strict=True))
        plan = tuple(p.mechanism(name, images.meta.n, ratio) for ratio, (name, p) in enumerate(loops.items(), 1))
        ledger = Ledger(n=images.meta.n, delta=1e-3, target_epsilon=5.0, accountant="rdp")
        private = PrivateData(
            images, plan, Budget(5.0, 1e-3), "rdp", Randomness.repeatable(0), ledger,
            checkpoint=Checkpoint(path, "print", Log("test"), 0.0),
        )  # fmt: skip
        done = []
        for name, params in loops.items():
            dp = private.dpsgd(name, net, optimizer, params)
            for step in dp:
                if (name, step.index) == die_at:
                    raise Killed
                done.append((name, step.index))
                step.update(lambda x, y, dp=dp: dp.module(x).square().sum(1))
        return [p.detach().clone() for p in net.parameters()], ledger.to_json(), done


def test_a_run_cut_in_its_second_loop_does_not_repeat_the_first(images, tmp_path):
    path, loops = tmp_path / "checkpoint.pt", TwoLoops()
    weights, ledger, _ = loops.run(images)
    with pytest.raises(Killed):
        loops.run(images, path, ("second", 2))
    again, ledger_again, done = loops.run(images, path)
    assert done == [("second", 2), ("second", 3)]
    assert all(torch.equal(a, b) for a, b in zip(again, weights, strict=True))
    assert ledger_again == ledger
    assert [event["steps"] for event in ledger["events"]] == [4, 4]


def test_a_run_cut_between_its_loops(images, tmp_path):
    path, loops = tmp_path / "checkpoint.pt", TwoLoops()
    weights, ledger, _ = loops.run(images)
    with pytest.raises(Killed):
        loops.run(images, path, ("second", 0))
    again, ledger_again, done = loops.run(images, path)
    assert done == [("second", i) for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(again, weights, strict=True))
    assert ledger_again == ledger


# --- secret noise ------------------------------------------------------------------------------------------------


def secret(images, path, monkeypatch, key: int) -> tuple[bytes, str]:
    """One whole run whose key is made of the byte `key`."""
    monkeypatch.setattr("secrets.token_hex", lambda count: f"{key:02x}" * count)
    return result(*train(spec(noise="secret"), images, Log("test"), checkpoint=path))


def test_secret_noise_follows_only_from_the_key(images, tmp_path, monkeypatch):
    first, again, other = (
        secret(images, tmp_path / f"{number}.pt", monkeypatch, key) for number, key in enumerate((1, 1, 2))
    )
    assert first == again
    assert first[0] != other[0]
    assert first[1] == other[1]  # the ledger knows nothing of the key
    assert '"noise": "secret"' in first[1]


def test_a_cut_secret_run_ends_byte_for_byte_with_its_key(images, tmp_path, monkeypatch):
    whole = secret(images, tmp_path / "whole.pt", monkeypatch, 1)
    path, run = tmp_path / "checkpoint.pt", spec(noise="secret")
    cut(images, path, 4, 0.0, monkeypatch, run)  # with the first run's key
    monkeypatch.setattr("secrets.token_hex", None)  # no other is made
    assert result(*train(run, images, Log("test"), checkpoint=path)) == whole
    assert bytes.fromhex("01" * 32) not in path.read_bytes()
    assert "01" * 32 not in path.read_bytes().decode("latin-1")


def test_secret_noise_needs_its_own_key_to_go_on(images, tmp_path, monkeypatch):
    path, run = tmp_path / "checkpoint.pt", spec(noise="secret")
    cut(images, path, 4, 0.0, monkeypatch, run)
    with pytest.raises(UserError, match="another run"):
        train(run.model_copy(update={"epsilon": 1.0}), images, Log("test"), checkpoint=path)
    changed = ImageSet(images.images[::-1].copy(), images.labels, 10)
    with pytest.raises(UserError, match="another run"):
        train(run, changed, Log("test"), checkpoint=path)
    key_path(path).unlink()
    with pytest.raises(UserError, match="is missing"):
        train(run, images, Log("test"), checkpoint=path)


def test_a_model_that_cannot_be_written_leaves_no_older_one(images, tmp_path, monkeypatch):
    """An older model next to the new ledger would pass for the new run."""
    jobs.train(spec(), images, tmp_path)
    write, run = artifacts.write_bytes, spec(epsilon=1.0)

    def full(path, content):
        if path.name == "model.pt":
            raise UserError("no space left")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_bytes", full)
        with pytest.raises(UserError, match="no space"):
            jobs.train(run, images, tmp_path)
    assert artifacts.read_json(tmp_path / "ledger.json")["recipe"] == run.model_dump(mode="json")
    assert not (tmp_path / "model.pt").exists()
    assert not jobs.finished(run, tmp_path / "train.npz", tmp_path)


def test_a_finished_secret_run_leaves_no_key_and_its_key_serves_no_other(images, tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "results/data/d/train.npz", images)
    command(tmp_path, 2)
    base = ["train", "--spec", "recipe.json", "--out", tmp_path, "--noise", "secret"]
    checkpoint, used = tmp_path / "checkpoint.pt", []
    begin = method.secret_key
    monkeypatch.setattr(method, "secret_key", lambda *a: used.append(begin(*a)) or used[-1])
    assert run_cli(*base, "--keep-key")[0] == 0
    checkpoint.write_bytes(b"x")
    os.utime(checkpoint, (1, 1))  # as if the run was killed when the model was safe
    assert "is finished" in run_cli(*base)[1]
    assert not checkpoint.exists()
    assert not key_path(checkpoint).exists()
    for extra in (["--keep-key"], ["--keep-key"], []):  # other releases: not with the key that was kept
        assert run_cli(*base, "--again", *extra)[0] == 0
    assert len(set(used)) == 4


def test_a_stopped_run_of_a_finished_one_goes_on_with_its_key(images, tmp_path, run_cli, monkeypatch):
    """Its checkpoint and key are newer than the model that is there."""
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "results/data/d/train.npz", images)
    command(tmp_path, 8)
    base = ["train", "--spec", "recipe.json", "--out", tmp_path, "--noise", "secret", "--checkpoint-interval", "0"]
    assert run_cli(*base)[0] == 0
    update, calls = DpSgdStep.update, []

    def stopped(step, *args, **kwargs):
        update(step, *args, **kwargs)
        calls.append(step.index)
        if step.index == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(DpSgdStep, "update", stopped)
        with pytest.raises(SystemExit):
            run_cli(*base, "--again")
    key = key_path(tmp_path / "checkpoint.pt").read_text()
    assert "is finished" in run_cli(*base)[1]
    assert key_path(tmp_path / "checkpoint.pt").read_text() == key
    code, _, said = run_cli(*base, "--again")
    assert (code, "resumed at step 3" in said) == (0, True)
    assert not key_path(tmp_path / "checkpoint.pt").exists()


def test_a_secret_run_whose_model_is_gone_is_not_released_again(images, tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "results/data/d/train.npz", images)
    command(tmp_path, 2)
    base = ["train", "--spec", "recipe.json", "--out", tmp_path, "--noise", "secret"]
    assert run_cli(*base)[0] == 0
    (tmp_path / "model.pt").unlink()
    code, _, said = run_cli(*base)
    assert (code, "--again" in said) == (2, True)


def test_the_command_line_destroys_the_key_when_the_run_is_done(images, tmp_path, run_cli):
    write_images(tmp_path / "train.npz", images)
    base = [str(part) for part in command(tmp_path, 2)[3:]]
    checkpoint = tmp_path / "checkpoint.pt"
    code, _, err = run_cli(*base, "--keep-key")
    assert code == 2
    assert "--keep-key needs secret noise" in err
    models = []
    for extra, kept in ([], False), (["--keep-key", "--again"], True):
        code, out, err = run_cli(*base, "--noise", "secret", *extra)
        assert code == 0
        models.append((tmp_path / "model.pt").read_bytes())
        assert artifacts.read_json(tmp_path / "ledger.json")["noise"] == "secret"
        assert not checkpoint.exists()
        assert key_path(checkpoint).exists() == kept
    key = artifacts.read_json(key_path(checkpoint))["key"]
    for name in OUTPUTS:
        content = (tmp_path / name).read_bytes()
        assert key.encode() not in content
        assert bytes.fromhex(key) not in content
    assert key not in out + err
    assert models[0] != models[1]
