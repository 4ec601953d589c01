"""What a refusal looks like, in one place: tests ask for its facts (file, key, value, nearest name), not its words."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dpdm.errors import UserError


def holds(message: str, *facts: object, lines: int | None = 1) -> str:
    """The message, which has all of these facts, and as many lines (None: any number)."""
    assert [fact for fact in map(str, facts) if fact not in message] == [], message
    assert lines in (None, message.count("\n") + 1), message
    return message


@contextmanager
def refuses(
    *facts: object, lines: int | None = 1, error: type[Exception] = UserError
) -> Iterator[pytest.ExceptionInfo]:
    """Inside the block an error is raised whose message has these facts."""
    with pytest.raises(error) as caught:
        yield caught
    holds(str(caught.value), *facts, lines=lines)


def refused(result: tuple[int, str, str], *facts: object, lines: int | None = 1) -> str:
    """The message of a command (code, stdout, stderr) that ended in exit status 2 and `error:` on stderr."""
    code, _, stderr = result
    assert code == 2
    assert stderr.startswith("error: ")
    assert stderr.endswith("\n")
    assert "Traceback" not in stderr
    assert stderr.count("error: ") == 1
    return holds(stderr[len("error: ") : -1], *facts, lines=lines)
