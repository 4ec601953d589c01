"""Artifacts: atomic, byte-stable, with errors that name the file."""

import io
import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refuses

from dpdm import artifacts
from dpdm.errors import UserError

ARRAYS = {"images": np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4), "labels": np.array([2, 0, 1])}
STATE = {"impl": "a:B", "state": {"weight": torch.arange(6.0).reshape(2, 3), "shape": [1, 2], "name": None}}


def files(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- atomicity ------------------------------------------------------------------------------------------------


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted(*_):
        assert len(files(tmp_path)) == 2
        raise KeyboardInterrupt  # no Exception: nothing may be left of it either

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_text(path, "half")
    assert path.read_text() == "old"
    assert files(tmp_path) == ["a.json"]


def test_nothing_is_seen_before_the_end(tmp_path, monkeypatch):
    path, renamed = tmp_path / "deep" / "a.txt", []

    def replace(temporary, target, replace=os.replace):
        assert not path.exists()
        assert Path(temporary).read_text() == "new"
        renamed.append(Path(temporary).parent)
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", replace)
    artifacts.write_text(path, "new")
    assert renamed == [path.parent]  # a rename across file systems would not be atomic
    assert path.read_text() == "new"
    assert files(path.parent) == ["a.txt"]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: artifacts.write_json(path, {"a": object()}),
        lambda path: artifacts.write_json(path, {"a": float("nan")}),
        lambda path: artifacts.write_jsonl(path, [{"a": 1}, {"a": float("inf")}]),
        lambda path: artifacts.write_tensors(path, {"a": lambda: 0}),
    ],
)
def test_what_cannot_be_written_leaves_no_file(tmp_path, write):
    with pytest.raises((TypeError, ValueError, AttributeError, pickle.PicklingError)):
        write(tmp_path / "a")
    assert files(tmp_path) == []


def test_a_path_through_a_file_and_a_path_that_is_a_folder_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with refuses(tmp_path / "file" / "x" / "y", "is a file"):
        artifacts.write_text(tmp_path / "file" / "x" / "y", "")
    with refuses(tmp_path / "folder", "it is a folder"):
        artifacts.write_text(tmp_path / "folder", "")


def test_a_path_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.json", tmp_path / "folder"):
        with refuses(path):
            artifacts.write_json(path, {})
    assert files(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_the_mode_honours_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        artifacts.write_text(tmp_path / "a", "")
        assert os.umask(umask) == umask  # left as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


# --- bytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (artifacts.write_npz, ARRAYS),
        (artifacts.write_tensors, STATE),
        (artifacts.write_json, {"b": 1, "a": [1.5, "é"]}),
        (artifacts.write_jsonl, [{"b": 1, "a": 2}]),
    ],
)
def test_equal_values_give_equal_bytes_under_any_path(tmp_path, write, value, monkeypatch):
    write(tmp_path / "one", value)
    monkeypatch.setattr("time.time", lambda: 2e9)  # a zip entry may carry a date
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    write(tmp_path / "another" / "name.with.dots", value)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "another" / "name.with.dots").read_bytes()


def test_npz_bytes_do_not_depend_on_the_memory_layout(tmp_path):
    array = np.arange(6).reshape(2, 3)
    artifacts.write_npz(tmp_path / "c", {"a": array})
    artifacts.write_npz(tmp_path / "f", {"a": np.asfortranarray(array)})
    assert (tmp_path / "c").read_bytes() == (tmp_path / "f").read_bytes()


def test_json_is_canonical():
    assert artifacts.canonical_json({"b": 1, "a": "é"}) == '{\n  "a": "é",\n  "b": 1\n}\n'


def test_round_trips(tmp_path):
    path = tmp_path / "a"
    artifacts.write_npz(path, ARRAYS)
    read = artifacts.read_npz(path, ("labels", "images"))
    assert list(read) == ["labels", "images"]
    assert all(np.array_equal(read[name], ARRAYS[name]) and read[name].dtype == ARRAYS[name].dtype for name in read)
    artifacts.write_tensors(path, STATE)
    state = artifacts.read_tensors(path)
    assert torch.equal(state["state"].pop("weight"), STATE["state"]["weight"])
    assert state == {"impl": "a:B", "state": {"shape": [1, 2], "name": None}}
    artifacts.write_json(path, {"a": [1, "é", None]})
    assert artifacts.read_json(path, ("a",)) == {"a": [1, "é", None]}
    artifacts.write_jsonl(path, [{"a": 1}, {"b": 2}])
    assert path.read_text() == '{"a": 1}\n{"b": 2}\n'


# --- files that are not what they should be -------------------------------------------------------------------


def read_npz(path):
    return artifacts.read_npz(path, ("images", "labels"))


READERS = [
    (artifacts.write_npz, ARRAYS, read_npz),
    (artifacts.write_tensors, STATE, artifacts.read_tensors),
    (artifacts.write_json, {"key": [1, 2, 3]}, artifacts.read_json),
]
IDS = ["npz", "pt", "json"]


def refusal(read, path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    assert str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("write", "value", "read"), READERS, ids=IDS)
def test_truncated_files_are_named(tmp_path, write, value, read):
    path = tmp_path / "artifact"
    write(path, value)
    content = path.read_bytes()
    lengths = [1, 3, len(content) // 3, len(content) // 2 + 1, len(content) - 4]
    for length in [0, *lengths]:
        path.write_bytes(content[:length])
        refusal(read, path)


@pytest.mark.parametrize(("write", "value", "read"), READERS, ids=IDS)
def test_other_content_is_named(tmp_path, write, value, read):
    path = tmp_path / "artifact"
    for content in (b"\x00\xff garbage", b"PK\x03\x04 not really a zip", b"\x93NUMPY"):
        path.write_bytes(content)
        refusal(read, path)


@pytest.mark.parametrize("read", [read_npz, artifacts.read_tensors, artifacts.read_json], ids=IDS)
def test_missing_files_and_folders_are_named(tmp_path, read):
    assert "No such file" in refusal(read, tmp_path / "missing")
    assert "directory" in refusal(read, tmp_path)


def test_any_damaged_byte_of_an_npz_is_read_right_or_named(tmp_path):
    """zipfile answers some damage with NotImplementedError ("encrypted", "compression not supported")."""
    path = tmp_path / "a.npz"
    artifacts.write_npz(path, ARRAYS)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = content[position] ^ (1 << position % 8)
        path.write_bytes(content[:position] + bytes([damaged]) + content[position + 1 :])
        try:
            read = read_npz(path)
        except UserError:
            refused += 1
        else:  # dates, flags and the like
            assert all(np.array_equal(read[name], ARRAYS[name]) for name in ARRAYS)
    assert refused > len(content) / 2


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    refusal(read_npz, tmp_path / "a.npy")


def test_an_npz_without_an_array(tmp_path):
    artifacts.write_npz(tmp_path / "a.npz", {"images": ARRAYS["images"]})
    assert "lacks the array 'labels'" in refusal(read_npz, tmp_path / "a.npz")


def test_an_npz_with_pickled_objects(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{"a": 1}], dtype=object), labels=np.arange(1))
    refusal(read_npz, tmp_path / "a.npz")


@pytest.mark.parametrize("text", ["[1]", "3", '"a"', "null"])
def test_json_must_be_an_object(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert "does not hold a JSON object" in refusal(artifacts.read_json, tmp_path / "a.json")


def test_json_without_a_required_key(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert "lacks the key 'b'" in refusal(lambda path: artifacts.read_json(path, ("a", "b")), tmp_path / "a.json")


class Payload:
    """What a checkpoint must never be able to do."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_tensors_are_never_unpickled_into_code(tmp_path):
    path, target = tmp_path / "model.pt", tmp_path / "made by the checkpoint"
    buffer = io.BytesIO()
    torch.save({"state": Payload(target)}, buffer)
    path.write_bytes(buffer.getvalue())
    refusal(artifacts.read_tensors, path)
    path.write_bytes(pickle.dumps(Payload(target), protocol=2))
    refusal(artifacts.read_tensors, path)
    assert not target.exists()


@pytest.mark.parametrize("value", [torch.zeros(2), [1, 2]])
def test_a_model_file_holds_a_dict(tmp_path, value):
    artifacts.write_tensors(tmp_path / "model.pt", value)
    text = refusal(artifacts.read_tensors, tmp_path / "model.pt")
    assert "model.pt" in text
    assert type(value).__name__ in text


def test_sha256_counts_boundaries():
    assert artifacts.sha256_of(b"ab", b"c") != artifacts.sha256_of(b"a", b"bc")
    assert artifacts.sha256_of(b"ab", b"c") == artifacts.sha256_of(b"ab", b"c")
    assert artifacts.sha256_of(b"a") != artifacts.sha256_of(b"a", b"")
