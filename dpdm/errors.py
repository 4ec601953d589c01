"""The one exception type whose message is meant for the person at the keyboard."""

import shlex


class UserError(Exception):
    """An error that the user can fix: the message is one sentence that names the fault and the fix."""


def pasted(*words: str) -> str:
    """A command of dpdm, for an error that names it: text that a shell takes back."""
    return shlex.join(("dpdm", *words))
