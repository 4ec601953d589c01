"""Checkpoints of a training run: after a kill it continues from one, bit for bit, and spends nothing twice.

All randomness of a step is derived from (seed, step), so a checkpoint holds no generator. A step that is repeated after
a kill draws the same batch and the same noise, and releases the same values.
"""

import copy
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpdm import artifacts
from dpdm.errors import UserError
from dpdm.processes import Processes
from dpdm.progress import Log

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)  # of a scheduler, of its time limit, of Ctrl-C


class Checkpoint:
    """Saves the state of one run every `interval` seconds, and on a signal of STOPS before it exits.

    Args:
        path: the file; None never saves (a run that can afford to start again).
        fingerprint: digest of spec, data and code; a checkpoint with another digest is not used.
        log: its rows are saved and restored too.
        interval: seconds between two saves.
        processes: all of them read it and stop after the same step; only the first one writes it.
    """

    def __init__(
        self, path: Path | None, fingerprint: str, log: Log, interval: float = 300.0, processes: Processes | None = None
    ):
        self.path, self.fingerprint, self.log, self.interval = path, fingerprint, log, interval
        self._processes = processes or Processes()
        self._last = time.monotonic()
        self._begun = False  # whether a loop has asked for its state
        self._stop: int | None = None  # the signal that asked to stop
        self._states: dict[str, Callable[[], dict[str, Any]]] = {}  # of every mechanism so far

    @staticmethod
    def aside(path: Path) -> Path:
        """The file that keeps a checkpoint that could not be used until the run is done."""
        return path.with_name(f"{path.name}.unused")

    def say(self, text: str) -> None:
        """A line on stderr, from the first process only."""
        if self._processes.is_first:
            print(text, file=sys.stderr, flush=True)

    def restore(self, name: str, loop: bool = True) -> dict[str, Any] | None:
        """The state that mechanism `name` last saved, or None to start from the beginning; stderr says why.

        `loop`: whether the mechanism has steps; the first loop also restores the rows of the log.
        """
        first, self._begun = loop and not self._begun, self._begun or loop
        if self.path is None or not self.path.exists():
            return None
        try:
            saved = artifacts.read_tensors(self.path)
            if saved.get("fingerprint") != self.fingerprint:
                raise UserError(f"{self.path} belongs to another recipe, other data or other code")
        except UserError as error:
            aside = self.aside(self.path)
            if self._processes.is_first:
                self.path.replace(aside)  # may be hours of work, which a slip in the recipe must not delete
            self.say(f"not resumed, starting at step 0: {error} (kept as {aside})")
            return None
        if first:  # a later loop must not: it would drop the rows since the last save
            self.log.rows[:] = saved["rows"]
        for other, state in saved["states"].items():
            self._states.setdefault(other, lambda state=state: state)
        return saved["states"].get(name)

    def step_done(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Called between two steps of mechanism `name`; saves `state()` (tensors, plain values) when it is due.

        Raises:
            SystemExit: a signal asked to stop; the state was saved before.
        """
        if self.path is None:
            return
        self._states[name] = state
        stop = self._processes.any(self._stop is not None)
        if not stop and time.monotonic() - self._last < self.interval:
            return
        if self._processes.is_first:
            states = {name: state() for name, state in self._states.items()}
            content = {"fingerprint": self.fingerprint, "rows": self.log.rows, "states": states}
            artifacts.write_tensors(self.path, content)
        self._last = time.monotonic()
        if stop:
            number, self._stop = self._stop or signal.SIGTERM, None  # perhaps only another process got the signal
            by = signal.Signals(number).name
            self.say(f"stopped by {by}: {self.path} saved, from which the same command continues")
            raise SystemExit(128 + number)

    def finish(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Called after the last step of mechanism `name`: checkpoints of later mechanisms keep its end state."""
        if self.path is not None:
            end = copy.deepcopy(state())  # later mechanisms may go on changing the same tensors
            self._states[name] = lambda: end

    @contextmanager
    def on_signal(self) -> Iterator[None]:
        """Inside the block, a signal of STOPS lets the current step finish; then the run saves and exits.

        A second Ctrl-C stops at once. If no step follows the signal, it acts as usual at the end of the block.
        """
        if self.path is None:
            yield
            return

        def ask(number: int, _: Any) -> None:
            if self._stop == number == signal.SIGINT:
                raise KeyboardInterrupt
            self._stop = number

        before = [signal.signal(number, ask) for number in STOPS]
        try:
            yield
        finally:
            for number, handler in zip(STOPS, before, strict=True):
                signal.signal(number, handler)
            if self._stop is not None:
                os.kill(os.getpid(), self._stop)
