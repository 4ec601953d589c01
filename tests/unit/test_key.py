"""The secret key of a run: who may read it, whose it is, and that it goes when the run is done."""

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
from refusals import refuses

from dpdm.errors import UserError
from dpdm.privacy import Randomness
from dpdm.privacy.key import key_path, secret_key
from dpdm.processes import Processes


def key(checkpoint, run: str = "run") -> bytes:
    return secret_key(checkpoint, run, Processes())


def test_a_key_is_made_once_for_its_owner_and_found_again(tmp_path):
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
    with pytest.raises(UserError, match="checkpoint"):
        secret_key(None, "run", Processes(0, 2))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_can_reach_is_refused(mode, tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    key_path(checkpoint).chmod(mode)
    with refuses("checkpoint.pt.key", f"{mode:o}"):
        key(checkpoint)


def test_a_checkpoint_without_its_key_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    checkpoint.write_bytes(b"saved")
    with refuses("checkpoint.pt.key"):
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
    with refuses("checkpoint.pt.key"):
        key(checkpoint)


def test_a_short_key_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    key_path(checkpoint).write_text(json.dumps({"run": "run", "key": "00" * 16}))
    short = key(checkpoint)
    with refuses("32", "16"):
        Randomness(short)


# --- what the operating system refuses ------------------------------------------------------------------------


def refused(error: int):
    def refuse(*_, **__):
        raise OSError(error, os.strerror(error))

    return refuse


def test_a_folder_as_the_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=rf"{re.escape(str(tmp_path))} is a folder.*file"):
        key(tmp_path)
    assert not key_path(tmp_path).exists()


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_in_the_key_s_place_is_refused(mode, tmp_path):
    path = key_path(tmp_path / "checkpoint.pt")
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*{os.strerror(errno.EISDIR)}"):
        key(tmp_path / "checkpoint.pt")


@pytest.mark.parametrize("inside", ["checkpoint.pt", "deeper/checkpoint.pt"])
def test_a_file_in_the_folder_s_place_is_refused(inside, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/.*checkpoint\.pt\.key.*\(.+\)"):
        key(tmp_path / "file" / inside)


@pytest.mark.parametrize(("owner", "name"), [(Path, "exists"), (Path, "mkdir"), (os, "open"), (os, "link")])
def test_what_the_system_does_not_permit_is_said_and_leaves_nothing(owner, name, tmp_path, monkeypatch):
    """By a system that refuses, as these tests may be run by one to whom all is permitted."""
    checkpoint = tmp_path / "checkpoint.pt"
    monkeypatch.setattr(owner, name, refused(errno.EACCES))
    with pytest.raises(UserError, match=rf"checkpoint\.pt\.key.*{os.strerror(errno.EACCES)}.*folder"):
        key(checkpoint)
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint.pt"
    key(checkpoint)
    monkeypatch.setattr(Path, "open", refused(errno.EACCES))
    with pytest.raises(UserError, match=rf"checkpoint\.pt\.key.*{os.strerror(errno.EACCES)}"):
        key(checkpoint)


def test_a_folder_named_like_a_temporary_is_in_nobody_s_way(tmp_path):
    checkpoint = tmp_path / "checkpoint.pt"
    key_path(checkpoint).with_name("checkpoint.pt.key.new").mkdir()
    assert key(checkpoint) == key(checkpoint)


def test_of_two_commands_at_once_both_take_the_key_of_the_first(tmp_path, monkeypatch):
    checkpoint, link, found = tmp_path / "checkpoint.pt", os.link, []

    def later(source, target):
        """Another command makes its key at the last moment."""
        assert len(json.loads(Path(source).read_text())["key"]) == 64  # complete before it has its name
        monkeypatch.setattr(os, "link", link)
        found.append(key(checkpoint))
        link(source, target)

    monkeypatch.setattr(os, "link", later)
    assert key(checkpoint) == found[0] == key(checkpoint)
    assert list(tmp_path.iterdir()) == [key_path(checkpoint)]


def test_another_name_of_the_key_that_a_killed_command_left_is_dropped(tmp_path):
    checkpoint = tmp_path / "[a] checkpoint.pt"
    first = key(checkpoint)
    left, another = (tmp_path / f"{key_path(checkpoint).name}.{name}.new" for name in ("left", "another"))
    os.link(key_path(checkpoint), left)
    another.write_text("of a command that is about to link it")
    assert key(checkpoint) == first
    assert sorted(tmp_path.iterdir()) == sorted([key_path(checkpoint), another])
