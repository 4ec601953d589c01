"""DP-SGD: Poisson batches, per-example clipping, noise, and the count of steps in the ledger.

Abadi et al. 2016; with several rows per example, Dockhorn et al. 2022, algorithm 1.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from pydantic import Field
from torch import Tensor, nn

from dpdm.checkpoint import Checkpoint
from dpdm.config import Finite, Strict
from dpdm.errors import UserError
from dpdm.privacy.accounting import Mechanism
from dpdm.privacy.ledger import Event, Ledger
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.rng import Streams

RowLosses = Callable[[Tensor, Tensor], Tensor]


class Stateful(Protocol):
    """What a checkpoint can hold: a module, an optimizer, or a counter of a method's own."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse."""


class DpSgdParams(Strict):
    """What decides a DP-SGD run's privacy, next to the noise; `max_physical_batch_size` alone does not."""

    expected_batch_size: Annotated[int, Field(ge=1)]  # mean of the Poisson batch; sample_rate = this / n
    steps: Annotated[int, Field(ge=1)]
    max_grad_norm: Annotated[Finite, Field(gt=0)]
    # Examples per backward pass. The guarantee does not depend on it; a loss's random draws may.
    max_physical_batch_size: Annotated[int, Field(ge=1)] = 512

    def mechanism(self, name: str, n: int) -> Mechanism:
        """The planned mechanism on n records.

        Raises:
            UserError: the expected batch is larger than the data set.
        """
        if self.expected_batch_size > n:
            raise UserError(
                f"expected_batch_size = {self.expected_batch_size} is larger than the {n} training images; "
                f"choose at most {n}"
            )
        return Mechanism(name, "poisson_subsampled_gaussian", self.expected_batch_size / n, self.steps)


class Step:
    """One private step; `update` must be called exactly once."""

    def __init__(self, run: "DpSgd", index: int):
        self._run, self.index, self.done = run, index, False

    def update(self, row_losses: RowLosses) -> None:
        """Draws a Poisson batch, and moves the parameters along its clipped, noised mean gradient.

        Args:
            row_losses: maps images (float in [-1, 1], [B, C, H, W]) and labels (int64, [B]) to one loss per row,
                [rows_per_example * B], in draw-major order, with one call of `DpSgd.module`. Not called when the
                batch is empty; called once per chunk when it exceeds `max_physical_batch_size`.

        Raises:
            RuntimeError: called twice, or `row_losses` breaks the unit (see PerExampleGradients).
            UserError: loss or gradient not finite; the parameters were not touched.
        """
        if self.done:
            raise RuntimeError("one private step can be updated only once")
        self.done = True
        try:
            self._run._update(row_losses, self.index)
        except UserError as error:
            raise UserError(f"{self._run.name}, step {self.index}: {error}") from error


class DpSgd:
    """Iterates over exactly `params.steps` private steps. Made by `PrivateData.dpsgd`.

    `module` is the module to call in the loss. `released_grad_norm` is the norm of the last noised mean
    gradient: a release, so free to log (the loss is not).
    """

    def __init__(
        self,
        *,
        name: str,
        images: Callable[[np.ndarray], tuple[Tensor, Tensor]],
        n: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: DpSgdParams,
        rows_per_example: int,
        ledger: Ledger,
        event: int,
        rng: Streams,
        checkpoint: Checkpoint,
        keep: Sequence[Stateful],
    ):
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if owned != {id(p) for p in module.parameters() if p.requires_grad}:
            raise UserError(f"{name}: the optimizer must hold exactly the module's trainable parameters")
        self.name = name
        self.params = params
        # Sampling and noise are read off the event, so that what is done and what is accounted cannot differ.
        declared = ledger.events[event]
        self.sample_rate = declared.sample_rate
        self.released_grad_norm = 0.0
        self._images, self._n, self._rng = images, n, rng
        self._ledger, self._event = ledger, event
        self._checkpoint = checkpoint
        self._closed = False
        self._next: int | None = None  # the first step not yet handed out; None before a checkpoint was looked for
        self._stateful = (module, optimizer, *keep)
        self._gradients = PerExampleGradients(module, rows_per_example)
        self.module = self._gradients.module
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=declared.noise_multiplier,
            max_grad_norm=declared.sensitivity,
            expected_batch_size=params.expected_batch_size,
            loss_reduction="sum",  # we divide by the expected batch size ourselves, in `_update`
        )

    def __len__(self) -> int:
        return self.params.steps

    def __iter__(self) -> Iterator[Step]:
        """Yields the steps that are left: a second loop goes on where the first one was left, never from the start."""
        if self._next is None:
            self._next = self._resume()
        with self._checkpoint.on_signal():
            while self._next < self.params.steps:
                step = Step(self, self._next)
                self._next += 1
                yield step
                if not step.done:
                    raise RuntimeError(f"{self.name}: step {step.index} was not updated")
                self._checkpoint.step_done(self.name, self._state)
        self.close()

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds: the event as spent so far, and every stateful object of the loop."""
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
        print(f"{self.name}: resumed at step {saved['next']} of {self.params.steps}", file=sys.stderr, flush=True)
        return saved["next"]

    def close(self) -> None:
        """Takes the per-example machinery off the module; further private steps are impossible."""
        if not self._closed:
            self._closed = True
            self._gradients.close()

    def _draw(self, index: int) -> np.ndarray:
        """Poisson sampling: every record independently with probability `sample_rate`."""
        return np.flatnonzero(self._rng.numpy("poisson", index).random(self._n) < self.sample_rate)

    def _update(self, row_losses: RowLosses, index: int) -> None:
        self._ledger.count_step(self._event)  # before anything is released; an empty batch counts as well
        optimizer, parameters = self._optimizer, self._optimizer.params
        optimizer.zero_grad(set_to_none=True)
        for p in parameters:
            p.summed_grad = torch.zeros_like(p)
        batch = self._draw(index)
        for start in range(0, len(batch), self.params.max_physical_batch_size):
            images, labels = self._images(batch[start : start + self.params.max_physical_batch_size])
            self._gradients.backward(lambda x=images, y=labels: row_losses(x, y), len(labels))
            optimizer.clip_and_accumulate()
            for p in parameters:
                p.grad_sample = None
        if not all(torch.isfinite(p.summed_grad).all() for p in parameters):
            raise UserError("a gradient is not finite; lower the learning rate or check the images")
        optimizer.generator = self._rng.torch("noise", index, device=parameters[0].device)
        optimizer.add_noise()
        # The constant expected batch size, never the size drawn: that is secret.
        for p in parameters:
            p.grad /= self.params.expected_batch_size
        self.released_grad_norm = float(torch.stack([p.grad.norm() for p in parameters]).norm())
        optimizer.original_optimizer.step()
