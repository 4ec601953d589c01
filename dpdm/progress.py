"""Progress of long work (a bar on a terminal, plain lines elsewhere) and the training curve."""

import copy
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def duration(seconds: float) -> str:
    """For people: 12 s, 34 min, 5.6 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Log:
    """Shows progress and collects the rows of train.jsonl.

    Only released quantities belong in a row: a training loss is private and would be an unaccounted release.
    """

    def __init__(self, title: str = "", quiet: bool = False):
        self.title, self.quiet = title, quiet  # quiet: all processes of a run except the first
        self.rows: list[dict[str, Any]] = []
        self.resumed = 0  # items of `track` before the checkpoint; they count as done
        self._start = time.monotonic()

    def aside(self, what: str, quiet: bool = False) -> "Log":
        """A log for a part of the work; its title names the part, and its rows are not in train.jsonl."""
        log = copy.copy(self)
        log.resumed = 0
        log.rows, log.title, log.quiet = [], f"{self.title}, {what}".lstrip(", "), self.quiet or quiet
        return log

    def track(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """Yields the items, and shows how many of `total` are done."""
        if self.quiet:
            yield from items
            return
        every, terminal = max(1, total // 10), sys.stderr.isatty()
        with tqdm(desc=self.title, total=total, disable=not terminal) as bar:
            for number, item in enumerate(items, 1):
                yield item
                done = self.resumed + number
                if terminal:
                    bar.initial = self.resumed  # done by an earlier process, and not counted in the speed
                    bar.update(done - bar.n)
                elif done % every == 0 or done == total:
                    seconds = time.monotonic() - self._start
                    print(f"{self.title}: {done}/{total}, {seconds:.0f} s", file=sys.stderr, flush=True)

    def record(self, step: int, **released: float) -> None:
        """Adds a row to the training curve; a number that is not finite becomes null.

        Never add times: the time of a step depends on the size of its secret batch.
        """
        self.rows.append({"step": step} | {key: x if math.isfinite(x) else None for key, x in released.items()})
