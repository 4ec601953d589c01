"""A loop of private steps: each is handed out once and counted in the ledger; the loop continues from a checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from dpdm.checkpoint import Checkpoint
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.privacy.ledger import Event, Ledger
from dpdm.privacy.noise import NoCopy, Randomness


class Stateful(Protocol):
    """An object that a checkpoint can hold: a module, an optimizer, or a method's counter."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Step(NoCopy):
    """One private step; its release must be taken exactly once."""

    def __init__(self, loop: "PrivateLoop", index: int):
        self._loop, self.index, self.done = loop, index, False

    def _check(self) -> None:
        if self.done:
            raise RuntimeError("one private step can be updated only once")
        self._loop.refuse_failed()
        if self._loop.closed:
            raise RuntimeError(f"{self._loop.name}: the loop is closed; a step kept from it releases nothing more")

    def _take(self, *asked: Any) -> Any:
        """Refuses, counts, then releases. Errors name mechanism and step."""
        self._check()
        try:
            self._loop._test(*asked, self.index)
            self._check()  # `_test` calls the method's code
            self.done = True
            self._loop._count_step()  # before anything is released; an empty batch counts as well
            with self._loop.no_failure(f"{self._loop.name}, step {self.index}"):
                return self._loop._release(*asked, self.index)
        except UserError as error:
            raise UserError(f"{self._loop.name}, step {self.index}: {error}") from error


StepType = TypeVar("StepType", bound=Step)


@dataclass(frozen=True)
class Served:
    """The arguments of a loop from the door.

    Args:
        images: maps indices of records to images and labels.
        event: index of the mechanism's event in the ledger. The event determines sampling and noise, so that the steps
            and their accounting cannot differ.
        stateful: everything that the loop changes, for checkpoints.
    """

    name: str
    images: Callable[[np.ndarray], tuple[Tensor, Tensor]]
    meta: ImageMeta
    ledger: Ledger
    event: int
    rng: Randomness
    checkpoint: Checkpoint
    stateful: Sequence[Stateful]


class PrivateLoop(NoCopy, Generic[StepType]):
    """Iterates over exactly `steps` private steps of one planned mechanism."""

    step_type: type[StepType]

    def __init__(self, served: Served, steps: int):
        self.name = served.name
        self.declared = served.ledger.events[served.event]
        self.released_grad_norm = 0.0
        self.closed = False
        self._images, self._meta, self._n = served.images, served.meta, served.meta.n
        self._steps, self._ledger, self._event = steps, served.ledger, served.event
        self._rng, self._checkpoint, self._stateful = served.rng, served.checkpoint, served.stateful
        self.no_failure, self.refuse_failed = served.ledger.no_failure, served.ledger.refuse_failed
        self._next: int | None = None  # the first step not yet handed out; None before the loop looks for a checkpoint

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[StepType]:
        """Yields the remaining steps: a second loop continues where the first one stopped, never from the start.

        Loops must not nest: a checkpoint inside another loop's step would record that step as counted but not done.
        """
        if self._next is None:
            self._next = self._resume()
        with self._checkpoint.on_signal():
            while self._next < self._steps:
                step = self.step_type(self, self._next)
                self._next += 1
                yield step
                if not step.done:
                    raise RuntimeError(f"{self.name}: step {step.index} was not updated")
                self._checkpoint.step_done(self.name, self._state)
        self._checkpoint.finish(self.name, self._state)
        self.close()

    def _count_step(self) -> None:
        self._ledger.count_step(self._event)

    def _draw(self, index: int) -> np.ndarray:
        """Poisson sampling: the indices of a step's records, each drawn independently at the declared `sample_rate`."""
        u = self._rng.uniform("poisson", index, count=self._n)
        return np.flatnonzero(u < self.declared.sample_rate)

    def close(self) -> None:
        """Further private steps are impossible."""
        self.closed = True

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint: the event as spent so far, and every stateful object of the loop."""
        return {
            "next": self._next,
            "event": asdict(self._ledger.events[self._event]),
            "stateful": [item.state_dict() for item in self._stateful],
        }

    def _resume(self) -> int:
        """Loads the checkpoint, if there is one of this mechanism; returns the first step to do."""
        saved = self._checkpoint.restore(self.name)
        if saved is None:
            return 0
        event = Event(**saved["event"])
        if replace(event, steps=0) != self._ledger.events[self._event]:
            raise UserError(f"{self._checkpoint.path} spent its budget otherwise than this run would; delete it")
        for item, state in zip(self._stateful, saved["stateful"], strict=True):
            item.load_state_dict(state)
        self._ledger.events[self._event] = event
        self._checkpoint.say(f"{self.name}: resumed at step {saved['next']} of {self._steps}")
        self._checkpoint.log.resumed += saved["next"]
        return saved["next"]
