"""DP-SGD: Poisson batches, per-example clipping, noise, and the count of steps in the ledger.

Abadi et al. 2016; with several rows per example, Dockhorn et al. 2022, algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.checkpoint import Checkpoint
from dpdm.config import Finite, Strict
from dpdm.errors import UserError
from dpdm.privacy.accounting import Mechanism
from dpdm.privacy.ledger import Ledger
from dpdm.privacy.loop import PrivateLoop, Stateful, Step
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.processes import Processes
from dpdm.rng import Streams

RowLosses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PublicRows:
    """Rows of a step that carry no record, such as a GAN's fakes: clipped one by one like records, never noised.

    Args:
        losses: like `row_losses` of `Step.update`, but over `images` and `labels`.
        images: [M, C, H, W]; labels: int64 [M]. M must not depend on the records drawn.
    """

    losses: RowLosses
    images: Tensor
    labels: Tensor


class DpSgdParams(Strict):
    """What decides a DP-SGD run's privacy, next to the noise; `max_physical_batch_size` alone does not."""

    expected_batch_size: Annotated[int, Field(ge=1)]  # mean of the Poisson batch; sample_rate = this / n
    steps: Annotated[int, Field(ge=1)]
    max_grad_norm: Annotated[Finite, Field(gt=0)]
    # Examples per backward pass. The guarantee does not depend on it; a loss's random draws may.
    max_physical_batch_size: Annotated[int, Field(ge=1)] = 512

    def mechanism(self, name: str, n: int, noise_ratio: float = 1.0) -> Mechanism:
        """The planned mechanism on n records; `noise_ratio` is its noise relative to others of the same plan.

        Raises:
            UserError: the expected batch is larger than the data set.
        """
        return Mechanism.poisson(name, self.expected_batch_size, n, self.steps, noise_ratio, self.max_grad_norm)


class DpSgdStep(Step):
    """One private step; `update` must be called exactly once."""

    def update(self, row_losses: RowLosses, public: PublicRows | None = None) -> None:
        """Draws a Poisson batch, and moves the parameters along its clipped, noised mean gradient.

        Args:
            row_losses: maps images (float in [-1, 1], [B, C, H, W]) and labels (int64, [B]) to one loss per row,
                [rows_per_example * B], in draw-major order, with one call of `DpSgd.module`. Not called when the
                batch is empty; called once per chunk when it exceeds `max_physical_batch_size`. It draws on the CPU,
                from torch's default generator, which is seeded for each chunk: whichever process computes it, a chunk
                draws the same.
            public: rows that are added to the mean: the gradient is (clipped sum over records + noise + clipped
                sum over public rows) / (expected_batch_size + number of public rows).

        Raises:
            RuntimeError: called twice, `row_losses` breaks the unit (see PerExampleGradients), or the number of
                public rows changed since the last step.
            UserError: loss or gradient not finite; the parameters were not touched.
        """
        self._begin()
        try:
            self._loop.descend(row_losses, public, self.index)
        except UserError as error:
            raise UserError(f"{self._loop.name}, step {self.index}: {error}") from error


class DpSgd(PrivateLoop[DpSgdStep]):
    """Iterates over exactly `params.steps` private steps. Made by `PrivateData.dpsgd`.

    `module` is the module to call in the loss. `released_grad_norm` is the norm of the last noised mean
    gradient: a release, so free to log (the loss is not).
    """

    step_type = DpSgdStep

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
        second_order: bool,
        ledger: Ledger,
        event: int,
        rng: Streams,
        checkpoint: Checkpoint,
        keep: Sequence[Stateful],
        processes: Processes,
    ):
        from opacus.optimizers import DPOptimizer  # late: see accounting

        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if owned != {id(p) for p in module.parameters() if p.requires_grad}:
            raise UserError(f"{name}: the optimizer must hold exactly the module's trainable parameters")
        super().__init__(name, params.steps, ledger, event, rng, checkpoint, (module, optimizer, *keep))
        self.params = params
        self._images, self._n = images, n
        self._processes = processes
        self._public_count: int | None = None
        self._closed = False
        self._gradients = PerExampleGradients(module, rows_per_example, "vmap" if second_order else "auto")
        self.module = self._gradients.module
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=self.declared.noise_multiplier,
            max_grad_norm=self.declared.sensitivity,
            expected_batch_size=params.expected_batch_size,
            loss_reduction="sum",  # we divide by the number of rows ourselves, in `descend`
        )

    def close(self) -> None:
        """Takes the per-example machinery off the module; further private steps are impossible."""
        if not self._closed:
            self._closed = True
            self._gradients.close()

    def descend(self, row_losses: RowLosses, public: PublicRows | None, index: int) -> None:
        """What `DpSgdStep.update` says; the step was counted before."""
        optimizer, parameters = self._optimizer, self._optimizer.params
        if public is not None:
            self._check_public(public)
        batch = self._draw(index)
        optimizer.zero_grad(set_to_none=True)
        private_sums = self._clipped_sums(
            row_losses, len(batch), lambda chunk: self._images(batch[chunk]), f"private/{index}"
        )
        rows = self.params.expected_batch_size
        if public is not None:
            rows += len(public.images)
            public_sums = self._clipped_sums(
                public.losses,
                len(public.images),
                lambda chunk: (public.images[chunk], public.labels[chunk]),
                f"public/{index}",
            )
        for p, private_sum in zip(parameters, private_sums, strict=True):
            p.summed_grad = private_sum
        # Every process draws the same noise and adds it to the same sum: once, wherever the weights are looked at.
        optimizer.generator = self._rng.torch("noise", index, device=parameters[0].device)
        optimizer.add_noise()
        # Constant numbers of rows, never the number drawn: that is secret.
        for i, p in enumerate(parameters):
            p.grad = (p.grad if public is None else p.grad + public_sums[i]) / rows
        self.released_grad_norm = float(torch.stack([p.grad.norm() for p in parameters]).norm())
        optimizer.original_optimizer.step()

    def _clipped_sums(
        self, row_losses: RowLosses, count: int, load: Callable[[slice], tuple[Tensor, Tensor]], stream: str
    ) -> list[Tensor]:
        """The exact sum of clipped per-example gradients over all processes, for each parameter. Not a release.

        Args:
            load: images and labels of a chunk of the `count` examples.
        """
        parameters, size = self._optimizer.params, self.params.max_physical_batch_size
        for p in parameters:
            p.summed_grad = torch.zeros_like(p)
        for number, start in enumerate(range(0, count, size)):
            if not self._processes.mine(number):
                continue
            images, labels = load(slice(start, start + size))
            # The default generator, since under vmap a loss cannot be given one.
            with self._rng.torch_default(f"{stream}/{number}"):
                self._gradients.backward(row_losses, images, labels)
            self._optimizer.clip_and_accumulate()
            for p in parameters:
                p.grad_sample = None
        sums = [p.summed_grad for p in parameters]
        self._processes.add_up(sums)
        if not torch.stack([total.isfinite().all() for total in sums]).all():  # one wait for a GPU, not one for each
            raise UserError("a gradient is not finite; lower the learning rate or check the images")
        return sums

    def _check_public(self, public: PublicRows) -> None:
        if self._gradients.rows_per_example != 1:
            raise UserError(f"{self.name}: public rows need rows_per_example = 1")
        if self._public_count not in (None, len(public.images)):
            raise RuntimeError(
                f"{self.name}: {len(public.images)} public rows after {self._public_count}; keep their number"
            )
        self._public_count = len(public.images)

    def _draw(self, index: int) -> np.ndarray:
        """The records of a step."""
        return self._poisson_batch(index, self._n)
