"""The secret key of a run's noise: made by the operating system, kept next to the checkpoint, deleted at the end."""

import contextlib
import glob
import json
import os
import secrets
from pathlib import Path

from dpdm.errors import UserError
from dpdm.privacy.noise import KEY_BYTES
from dpdm.processes import Processes


def key_path(checkpoint: Path) -> Path:
    """The file of a checkpoint's key."""
    return checkpoint.with_name(f"{checkpoint.name}.key")


def secret_key(checkpoint: Path | None, run: str, processes: Processes) -> bytes:
    """The key of this run: a new one, or the first one if the run continues from `checkpoint`.

    Args:
        checkpoint: the key is next to it, readable only by its owner. None: the key is only in memory, and a killed run
            cannot continue.
        run: fingerprint of recipe, data and code. A key serves only one fingerprint: equal noise on two would cancel.
        processes: the first one makes the key, all read it.

    Raises:
        UserError: the checkpoint's key is missing, readable by others, of another run, or not a key;
            the operating system refuses to make or read it; the checkpoint is a folder.
    """
    if checkpoint is None:
        if processes.size > 1:
            raise UserError("noise: secret with several processes needs a checkpoint, next to which they share the key")
        return secrets.token_bytes(KEY_BYTES)
    path = key_path(checkpoint)
    try:
        if checkpoint.is_dir():
            raise UserError(
                f"the checkpoint {checkpoint} is a folder; name a file, such as {checkpoint / 'checkpoint.pt'}"
            )
        if processes.is_first and not path.exists():
            if checkpoint.exists():
                raise UserError(
                    f"{path} is missing, without which {checkpoint} cannot go on with the same noise; delete "
                    f"{checkpoint} to start again, with a new key"
                )
            _create(path, json.dumps({"run": run, "key": secrets.token_hex(KEY_BYTES)}))
        processes.any(False)  # the others wait for the file
        with path.open("rb") as file:
            facts, content = os.fstat(file.fileno()), file.read()
        if facts.st_nlink > 1 and processes.is_first:
            _drop_temporaries(path)
    except OSError as error:
        raise UserError(
            f"the key {path} cannot be made or read ({error.strerror or error}); make it and its folder yours to read "
            "and write, or choose another results folder"
        ) from error
    mode = facts.st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{path} has mode {mode:o}: whoever read it can subtract the noise; delete it and {checkpoint}, and start "
            "again with a new key"
        )
    try:
        saved = json.loads(content)
        key = bytes.fromhex(saved["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no key; delete it and {checkpoint}, and start again") from error
    if saved.get("run") != run:
        raise UserError(
            f"{path} is the key of another run (recipe, data or code differ), whose noise must not be used twice; "
            f"delete it and {checkpoint}, and start again"
        )
    return key


def _create(path: Path, text: str) -> None:
    """Makes the file of a key: never readable by others, and complete on disk before it gets its name.

    If two commands run at once, one makes the key and the other reads it, since a link, unlike a rename, replaces
    nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _drop_temporaries(path: Path) -> None:
    """Removes other names of the key that a killed command left; they would outlive the key."""
    for other in path.parent.glob(f"{glob.escape(path.name)}.*.new"):
        with contextlib.suppress(FileNotFoundError):  # a command that still runs removed it first
            if other.samefile(path):
                other.unlink()
