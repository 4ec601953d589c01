"""Reading and writing of every artifact: atomically, byte-stable, and with errors that name the file."""

import contextlib
import hashlib
import io
import json
import os
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from dpdm.errors import UserError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Writes `content`, and creates its folder; after the return, a crash of the machine loses nothing.

    Nobody sees a half-written file, even on a shared file system: a rename within one folder is atomic.

    Raises:
        UserError: it cannot be written.
    """
    path = Path(path)
    handle, temporary = _temporary(path)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(handle)  # else the new name can outlive the content
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; artifacts are shared like any other file
        os.replace(temporary, path)
    except IsADirectoryError as error:
        raise UserError(f"cannot write {path}: it is a folder; name a file in it") from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free space, or change the folder's rights") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[int, str]:
    """An open file next to `path`, whose folder is created; UserError if it cannot be made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except (FileExistsError, NotADirectoryError) as error:
        there = next(parent for parent in path.parents if parent.exists())
        raise UserError(f"cannot write {path}: {there} is a file and no folder; choose another folder") from error
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; choose another folder, or change this one's rights"
        ) from error


def check_folder(folder: str | Path, *names: str) -> None:
    """UserError if these files cannot be written in a folder; called before any compute is spent."""
    handle, temporary = _temporary(Path(folder, names[0]))
    os.close(handle)
    Path(temporary).unlink()
    for path in (Path(folder, name) for name in names):
        if path.is_dir():
            raise UserError(f"cannot write {path}: it is a folder; move it, or choose another folder")


def write_text(path: str | Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def read_bytes(path: str | Path) -> bytes:
    """Reads a file whole; raises UserError that names it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        fix = "check the path; `dpdm run STUDY` makes the files of a results folder"
        raise UserError(f"cannot read {path}: {error.strerror}; {fix}") from error


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no inf or nan (write "inf" as a string)."""
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False, indent=2) + "\n"


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` by `canonical_json`."""
    write_text(path, canonical_json(value))


def read_json(path: str | Path, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads a JSON object; UserError if the file is missing, is no JSON object, or lacks a `required` key."""
    again = "delete it and run snakemake again"
    try:
        value = json.loads(read_bytes(path))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {again}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; {again}")
    missing = [key for key in required if key not in value]
    if missing:
        raise UserError(f"{path} lacks the key {missing[0]!r}; {again}")
    return value


def write_jsonl(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes one JSON object per line."""
    write_text(path, "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in rows))


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays, compressed; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: np.asarray(a, order="C") for name, a in arrays.items()})
    write_bytes(path, buffer.getvalue())


def read_npz(path: str | Path, names: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads the named arrays, and the optional ones if present; UserError if one is missing or the file is damaged."""
    content = read_bytes(path)
    try:
        archive = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive of named ones")
        with archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise UserError(f"{path} lacks the array {missing[0]!r}; it must hold {', '.join(names)}")
            return {name: archive[name] for name in (*names, *optional) if name in archive}
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error) as error:
        # zipfile raises RuntimeError if damage looks like encryption or an unknown compression.
        if found := instead(path):
            raise UserError(f"{path} is no npz file: it is {found}") from error
        if content and not content.startswith((b"PK", b"\x93NUMPY")):
            raise UserError(f"{path} is no npz file: it begins with {content[:10]!r}; name another file") from error
        if "pickle" in str(error):
            raise UserError(
                f"{path} holds Python objects, which are not read since that can run code; save plain arrays of numbers"
            ) from error
        raise UserError(f"{path} is corrupt or truncated ({error}); delete it and make or fetch it again") from error


def instead(path: str | Path) -> str:
    """What a file is after a common mistake (Git LFS pointer, gzip, web page), with the fix; "" for any other file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        begin = file.read(200).lstrip().lower()
        if begin.startswith(b"version https://git-lfs"):
            return "a Git LFS pointer; get the data by `git lfs pull`"
        if begin.startswith(b"\x1f\x8b"):
            return "gzipped; unpack it by `gunzip`"
        if begin.startswith((b"<!doctype html", b"<html", b"<?xml")):
            return "a web page; download the file itself"
    return ""


_REMAKE = "name another file; if the workflow made it, delete it and run snakemake again"


def write_tensors(path: str | Path, state: dict[str, Any]) -> None:
    """Writes a dict of tensors and JSON values; equal states give equal bytes, no code is pickled."""
    write_bytes(path, packed(state))


def packed(state: dict[str, Any]) -> bytes:
    """The content of a file of tensors."""
    import torch

    buffer = io.BytesIO()  # a path would put its own (temporary) name into the archive
    torch.save(state, buffer)
    return buffer.getvalue()


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Reads what `write_tensors` wrote: tensors and plain values; UserError for any other file."""
    return unpacked(read_bytes(path), path)


def unpacked(content: bytes, path: str | Path) -> dict[str, Any]:
    """The inverse of `packed`; for any other content, a UserError names `path`."""
    import torch

    try:
        state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, zipfile errors, ...
        raise UserError(f"{path} is damaged, or no file of tensors that dpdm wrote; {_REMAKE}") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no tensors by name but one {type(state).__name__}; {_REMAKE}")
    return state


def download(url: str, sha256: str) -> bytes:
    """The content of a URL; UserError with the reason if the transfer fails or the SHA-256 differs."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            content = response.read()
    except (OSError, HTTPException) as error:  # HTTPException: a transfer that broke off
        raise UserError(" ".join(str(error).split()) or type(error).__name__) from error
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(f"its SHA-256 begins with {found[:8]}")
    return content


def sha256_of(*parts: bytes) -> str:
    """Hex SHA-256 of the parts, each preceded by its length, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
