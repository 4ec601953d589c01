"""DP-SGD: Poisson batches, per-example clipping, noise, and the count of steps in the ledger.

Abadi et al. 2016; with several rows per example, Dockhorn et al. 2022, algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.errors import UserError
from dpdm.params import Count, Positive, Strict
from dpdm.privacy.accounting import Mechanism
from dpdm.privacy.isolation import SwapTest
from dpdm.privacy.loop import PrivateLoop, Served, Step
from dpdm.privacy.noise import noised
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.processes import Processes

# Per-example gradients are clipped to max_grad_norm (1 - ROUNDING), which leaves room for rounding. With u = 2^-24, the
# relative error of the norm is at most 512 u = 2^-15 (squares are summed in float32 over 1,024 numbers, then in
# float64). The error of a float32 sum of SUMMED gradients is at most 2^6 u = 2^-18 of the clip norm, on each of two
# neighboring data sets. All other sums are in float64.
ROUNDING = 2.0**-14
NORM_BLOCK, SUMMED = 1024, 8
WHOLE = 2**22  # numbers copied to float64 at once; more would take longer than the sums themselves

RowLosses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PublicRows:
    """Rows of a step that carry no record, such as a GAN's fakes: clipped one by one like records, never noised.

    Args:
        losses: like `row_losses` of `Step.update`, but over `images` and `labels`.
        images: [M, C, H, W]; labels: int64 [M]. M must not depend on the drawn records.
    """

    losses: RowLosses
    images: Tensor
    labels: Tensor

    def load(self, chunk: slice) -> tuple[Tensor, Tensor]:
        return self.images[chunk], self.labels[chunk]


class DpSgdParams(Strict):
    """The parameters that, with the noise, determine the privacy of DP-SGD (except `max_physical_batch_size`)."""

    expected_batch_size: Count = Field(description="mean size of the Poisson batch; sample rate q = this / n")
    steps: Count = Field(description="private steps")
    max_grad_norm: Positive = Field(description="L2 norm to which each example's gradient is clipped")
    max_physical_batch_size: Count = Field(
        512,
        description="examples per backward pass: limits memory; random draws can depend on it, the guarantee does not",
    )

    def mechanism(self, name: str, n: int, noise_ratio: float = 1.0) -> Mechanism:
        """The planned mechanism on n records; UserError if the expected batch is larger. See `Mechanism`."""
        return Mechanism.poisson(name, self.expected_batch_size, n, self.steps, noise_ratio, self.max_grad_norm)


class DpSgdStep(Step):
    """One private step; `update` must be called exactly once."""

    def update(self, row_losses: RowLosses, public: PublicRows | None = None) -> None:
        """Draws a Poisson batch, and updates the parameters by its clipped, noised mean gradient.

        Args:
            row_losses: maps images (float in [-1, 1], [B, C, H, W]) and labels (int64, [B]) to one loss per row,
                [rows_per_example * B], in draw-major order, with one call of `DpSgd.module`. Not called if the batch is
                empty; called once per chunk if the batch exceeds `max_physical_batch_size`. It draws on the CPU, from
                torch's default generator, which is seeded for each chunk, so a chunk has the same draws in any process.
            public: rows that are added to the mean. The gradient is (clipped sum over records + noise + clipped sum
                over public rows) / (expected_batch_size + number of public rows).

        Raises:
            RuntimeError: called twice or after the loop was closed, `row_losses` breaks the unit (see
                PerExampleGradients), or the number of public rows changed since the last step.
            UserError: `row_losses` or a layer mixes records (see dpdm.privacy.isolation), or loss or gradient are not
                finite. The parameters are unchanged.
        """
        self._take(row_losses, public)


class DpSgd(PrivateLoop[DpSgdStep]):
    """Iterates over exactly `params.steps` private steps. Made by `PrivateData.dpsgd`.

    The loss must call `module`. `released_grad_norm` is the norm of the last noised mean gradient. It is a release and
    may be logged; the loss may not.
    """

    step_type = DpSgdStep

    def __init__(
        self,
        served: Served,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        params: DpSgdParams,
        rows_per_example: int,
        second_order: bool,
        processes: Processes,
    ):
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if owned != {id(p) for p in module.parameters() if p.requires_grad}:
            raise UserError(f"{served.name}: the optimizer must hold exactly the module's trainable parameters")
        super().__init__(served, params.steps)
        self.params = params
        self._processes = processes
        self._public_count: int | None = None
        self._module, self._optimizer = module, optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._gradients = PerExampleGradients(module, rows_per_example, "vmap" if second_order else "auto")
        self.module = self._gradients.module
        self._swap_test = SwapTest(self._gradients, self._meta, params.max_physical_batch_size)

    def close(self) -> None:
        """Removes the per-example hooks from the module; further private steps are impossible."""
        if not self.closed:
            self._gradients.close()
        super().close()

    def _test(self, row_losses: RowLosses, public: PublicRows | None = None, index: int = 0) -> None:
        """Refuses a forbidden loss before the step is counted: see `SwapTest` and `DpSgdStep.update`."""
        for losses in (row_losses, *([] if public is None else [public.losses])):
            if not callable(losses):
                raise UserError(f"a loss must be a function of images and labels, got {losses!r}")
        if public is not None:
            self._check_public(public)
        self._optimizer.zero_grad(set_to_none=True)
        self._swap_test.run(row_losses, self._module, index)

    def _release(self, row_losses: RowLosses, public: PublicRows | None, index: int) -> None:
        """See `DpSgdStep.update`; the step was counted before."""
        batch = self._draw(index)
        total = self._clipped_sum(row_losses, len(batch), lambda chunk: self._images(batch[chunk]), "private", index)
        # Every process draws the same noise and adds it to the same sum, so that all processes get the same weights.
        total = noised(total, self.declared.noise_multiplier * self.declared.sensitivity, self._rng, "noise", index)
        # Constant numbers of rows, never the drawn number, which is secret.
        rows = self.params.expected_batch_size
        if public is not None:
            rows += len(public.images)
            total += self._clipped_sum(public.losses, len(public.images), public.load, "public", index)
        total /= rows
        self.released_grad_norm = float(total.norm())
        for p, part in zip(self._parameters, total.split([p.numel() for p in self._parameters]), strict=True):
            p.grad = part.view_as(p).to(p.dtype)
        self._optimizer.step()

    def _clipped_sum(
        self, row_losses: RowLosses, count: int, load: Callable[[slice], tuple[Tensor, Tensor]], stream: str, index: int
    ) -> Tensor:
        """The sum of clipped per-example gradients over all processes: float64, all parameters side by side.

        Not a release. A record changes the sum by at most max_grad_norm, including rounding.

        Args:
            load: images and labels of a chunk of the `count` examples.
        """
        size = self.params.max_physical_batch_size
        total = torch.zeros(
            sum(p.numel() for p in self._parameters), dtype=torch.float64, device=self._parameters[0].device
        )
        for number, start in enumerate(range(0, count, size)):
            if not self._processes.mine(number):
                continue
            images, labels = load(slice(start, start + size))
            # The default generator, since a loss under vmap cannot receive one.
            with self._rng.torch_default(stream, index, number):
                self._gradients.backward(row_losses, images, labels)
            add_clipped(total, [p.grad_sample for p in self._parameters], self.declared.sensitivity)
            for p in self._parameters:
                p.grad_sample = None
        self._processes.add_up([total])
        if not total.isfinite().all():
            raise UserError("a gradient is not finite; lower the learning rate or check the images")
        return total

    def _check_public(self, public: PublicRows) -> None:
        if self._gradients.rows_per_example != 1:
            raise UserError(f"{self.name}: public rows need rows_per_example = 1")
        if self._public_count not in (None, len(public.images)):
            raise RuntimeError(
                f"{self.name}: {len(public.images)} public rows after {self._public_count}; keep their number"
            )
        self._public_count = len(public.images)


def add_clipped(total: Tensor, gradients: Sequence[Tensor], max_grad_norm: float) -> None:
    """Adds to `total` the sum over examples of their gradients, each clipped over all parameters together.

    Args:
        total: float64 [P], changed in place.
        gradients: per parameter [B, *shape], of any floating-point dtype; P numbers per example in total.
        max_grad_norm: the sum moves by at most this L2 norm if one example is left out, including rounding.
    """
    flat = [g.detach().flatten(1).float() for g in gradients]
    bound = max_grad_norm * (1 - ROUNDING)
    weights = bound / torch.stack([_squared_norms(g) for g in flat]).sum(0).sqrt().clamp(min=bound)
    for part, g in zip(total.split([g.shape[1] for g in flat]), flat, strict=True):
        if g.is_cuda:  # few large kernels; float64 costs little on a GPU
            part.add_(g.mul_(weights[:, None].float()).sum(0, dtype=torch.float64))
        elif g.numel() <= WHOLE:
            part.addmv_(g.double().T, weights)
        else:
            w = weights.float()
            for rows in range(0, len(g), SUMMED):
                part.add_(torch.mv(g[rows : rows + SUMMED].T, w[rows : rows + SUMMED]))


def _squared_norms(g: Tensor) -> Tensor:
    """float64 [B] of float32 [B, p]."""
    whole = g.shape[1] // NORM_BLOCK * NORM_BLOCK
    parts = [g[:, :whole].unflatten(1, (-1, NORM_BLOCK)).norm(dim=2)] if whole else []
    if whole < g.shape[1]:
        parts.append(g[:, whole:].norm(dim=1, keepdim=True))
    return torch.cat(parts, 1).double().square().sum(1)
