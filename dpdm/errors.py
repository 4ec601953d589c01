"""The one exception type whose message is meant for the user."""

import shlex


class UserError(Exception):
    """An error that the user can fix: the message is one sentence that names the fault and the fix."""


def pasted(*words: str) -> str:
    """A dpdm command as text that can be pasted into a shell, for an error message."""
    return shlex.join(("dpdm", *words))
