"""The secret key of a run's noise: made by the operating system, kept beside the checkpoint, destroyed at the end."""

import json
import os
import secrets
from pathlib import Path

from dpdm.errors import UserError
from dpdm.privacy.noise import KEY_BYTES
from dpdm.processes import Processes


def key_path(checkpoint: Path) -> Path:
    """Where the key of a checkpoint lies."""
    return checkpoint.with_name(f"{checkpoint.name}.key")


def secret_key(checkpoint: Path | None, run: str, processes: Processes) -> bytes:
    """The key of this run: a new one, or for a run that goes on from `checkpoint` the one that it began with.

    Args:
        checkpoint: beside which the key is kept, readable by its owner alone; None: in memory only, and a killed run
            cannot go on.
        run: fingerprint of recipe, data and code. A key serves one of them: the same noise on two would cancel.
        processes: the first makes the key, all read it.

    Raises:
        UserError: the key is missing beside a checkpoint, readable by others, of another run, or no key at all.
    """
    if checkpoint is None:
        if processes.size > 1:
            raise UserError("noise: secret with several processes needs --checkpoint, beside which they share the key")
        return secrets.token_bytes(KEY_BYTES)
    path = key_path(checkpoint)
    if processes.is_first and not path.exists():
        if checkpoint.exists():
            raise UserError(
                f"{path} is missing, without which {checkpoint} cannot go on with the same noise; delete {checkpoint} "
                "to start again, with a new key"
            )
        _write(path, json.dumps({"run": run, "key": secrets.token_hex(KEY_BYTES)}))
    processes.any(False)  # the others wait for the file
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise UserError(
            f"{path} has mode {mode:o}: whoever read it can subtract the noise; delete it and {checkpoint}, and start "
            "again with a new key"
        )
    try:
        saved = json.loads(path.read_text())
        key = bytes.fromhex(saved["key"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no key; delete it and {checkpoint}, and start again") from error
    if saved.get("run") != run:
        raise UserError(
            f"{path} is the key of another run (recipe, data or code differ), whose noise must not be used twice; "
            f"delete it and {checkpoint}, and start again"
        )
    return key


def _write(path: Path, text: str) -> None:
    """Never readable by others, not even for a moment, and on the disk before it is used."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
