"""The command line `dpdm` (also `python -m dpdm`): thin verbs that parse, call the library, and print.

Only Click loads before a verb runs, so that help and completion are fast.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click

from dpdm.cli import runs, studies, workflow  # noqa: F401  (they define the verbs)
from dpdm.cli._verbs import verbs
from dpdm.cli.terminal import NO_SPACE
from dpdm.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; a UserError, or a wrong call, becomes one message on stderr and exit status 2.

    If a full disk refuses the message too, exit status NO_SPACE gives the reason to the workflow.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  (None where it was closed, as by `>&-`)
    if hasattr(sys.stdout, "reconfigure"):  # a replacement by calling code may lack it
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character such as ±
    try:
        return _run(arguments)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"error: {error.filename} is too long for the name of a file", file=sys.stderr, flush=True)
            return 2
        if error.errno in (errno.EACCES, errno.EPERM):
            what = f"{error.filename} cannot be opened: permission denied; change its rights, or name another file"
            print(f"error: {what}", file=sys.stderr, flush=True)
            return 2
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        with contextlib.suppress(OSError):
            print(f"error: {error}; free some space, and run the same command again", file=sys.stderr, flush=True)
        # Otherwise Python writes the rest again at exit, and exits with another status.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return NO_SPACE


def _run(arguments: Sequence[str] | None) -> int:
    if arguments is None:  # a user's method is imported from the current folder, as by `python -m dpdm`
        sys.path.append(os.getcwd())
    try:
        status = verbs.main(arguments, prog_name="dpdm", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:
        return 130
    except RecursionError:
        words = " ".join(sys.argv[1:] if arguments is None else arguments)
        print(f"error: `dpdm {words}` reads a value that is nested too deeply; flatten it", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # of `dpdm check ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
