"""The secret key of a run: who may read it, whose it is, and that it goes when the run is done."""

import json
import stat

import pytest

from dpdm.errors import UserError
from dpdm.privacy import Randomness
from dpdm.privacy.key import key_path, secret_key
from dpdm.processes import Processes


def key(checkpoint, run: str = "run") -> bytes:
    return secret_key(checkpoint, run, Processes())


def test_a_key_is_made_once_for_its_owner_alone_and_found_again(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    first = key(checkpoint)
    assert len(first) == 32
    assert stat.S_IMODE(key_path(checkpoint).stat().st_mode) == 0o600
    assert key(checkpoint) == first
    checkpoint.write_bytes(b"saved")
    assert key(checkpoint) == first
    assert [p.name for p in checkpoint.parent.iterdir() if p != checkpoint] == [key_path(checkpoint).name]
    assert key(tmp_path / "other.pt") != first


def test_without_a_checkpoint_the_key_is_in_memory_alone():
    assert key(None) != key(None)
    with pytest.raises(UserError, match="--checkpoint"):
        secret_key(None, "run", Processes(0, 2))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_can_reach_is_refused(mode, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    key_path(checkpoint).chmod(mode)
    with pytest.raises(UserError, match=rf"checkpoint\.pt\.key has mode {mode:o}.*delete"):
        key(checkpoint)


def test_a_checkpoint_without_its_key_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(b"saved")
    with pytest.raises(UserError, match=r"checkpoint\.pt\.key is missing.*delete"):
        key(checkpoint)
    assert not key_path(checkpoint).exists()


def test_the_key_of_another_run_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint, "one")
    with pytest.raises(UserError, match="another run"):
        key(checkpoint, "two")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"key": 3}', '{"key": "zz", "run": "run"}', "\x00"])
def test_what_is_no_key_is_refused(content, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    key_path(checkpoint).write_text(content)
    with pytest.raises(UserError, match="holds no key"):
        key(checkpoint)


def test_a_short_key_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    key_path(checkpoint).write_text(json.dumps({"run": "run", "key": "00" * 16}))
    short = key(checkpoint)
    with pytest.raises(UserError, match="32 bytes, got 16"):
        Randomness(short)
