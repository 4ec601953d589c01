"""The one exception type whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """An error that the user can fix: the message is one sentence that names the fault and the fix."""
