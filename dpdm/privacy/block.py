"""Noised gradients at generated images: privacy for a generator, not for a critic.

A generator's loss on real data reaches its weights only through the generated images. So the gradient at the whole
block of generated images is clipped jointly, noised, and back-propagated through the generator as post-processing:
DP-Sinkhorn (Cao et al. 2021), GS-WGAN (Chen et al. 2020).

The block's gradient may be any function of the drawn records. So adding or removing one record can flip the sign of a
clipped block, and the sensitivity is twice the clip norm.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dpdm.errors import UserError
from dpdm.params import Count, Positive, Strict
from dpdm.privacy.accounting import Mechanism
from dpdm.privacy.isolation import is_due, random_records
from dpdm.privacy.loop import PrivateLoop, Served, Step
from dpdm.privacy.noise import clip_factor, noised
from dpdm.privacy.traces import dark_and_bright, state_of, without_traces
from dpdm.rng import Streams

BlockGradient = Callable[..., Tensor]
Prepare = Callable[[Tensor, Tensor, int], Any]


class BlockParams(Strict):
    """The parameters that, with the noise, determine the privacy of noised block gradients."""

    steps: Count = Field(description="private steps")
    max_block_norm: Positive = Field(description="L2 norm to which the gradient at a whole block of images is clipped")


class PoissonBlocks(BlockParams):
    """Every step draws a Poisson batch of records."""

    expected_batch_size: Count = Field(description="mean size of the Poisson batch; sample rate q = this / n")

    def mechanism(self, name: str, n: int) -> Mechanism:
        """The planned mechanism on n records; UserError if the expected batch is larger."""
        return Mechanism.poisson(name, self.expected_batch_size, n, self.steps, sensitivity=2 * self.max_block_norm)


class ShardBlocks(BlockParams):
    """Records are dealt to shards once, independently; every step draws one shard."""

    shards: Count = Field(description="shards to which the records are dealt; every step draws one of them")

    def mechanism(self, name: str, n: int) -> Mechanism:
        """The planned mechanism on n records; UserError if there are more shards."""
        if self.shards > n:
            raise UserError(f"shards = {self.shards} is more than the {n} training images; choose at most {n}")
        return Mechanism(
            name, "categorical_subsampled_gaussian", 1 / self.shards, self.steps, sensitivity=2 * self.max_block_norm
        )


class BlockStep(Step):
    """One private step; `release` must be called exactly once."""

    def release(self, fakes: Tensor, gradient: BlockGradient) -> Tensor:
        """The noised gradient at a block of generated images.

        Args:
            fakes: generated images [M, C, H, W] (or any tensor of the method), detached before `gradient` sees them.
            gradient: maps (fakes, images, labels) of the drawn records - with shards (fakes, images, labels, state) -
                to a gradient of the fakes' shape. Images are float in [-1, 1], [B, C, H, W], labels int64 [B]. Not
                called if no record was drawn.

        Returns:
            The gradient clipped jointly to L2 norm `max_block_norm`, plus N(0, (2 max_block_norm z)^2) per
            coordinate. Use it as `fakes.backward(...)`.

        Raises:
            RuntimeError: called twice or after the loop was closed, or the gradient has another shape.
            UserError: `gradient` remembers records (tested on random ones, see `is_due`), or returns no finite tensor;
                or the fakes are no floating-point numbers.
        """
        return self._take(fakes.detach(), gradient)


class BlockGradients(PrivateLoop[BlockStep]):
    """Iterates over exactly `params.steps` private steps. Made by `PrivateData.block_gradients`.

    With shards, the state that `prepare` made for a shard (such as a critic trained on it) stays here, and every step
    gets a fresh copy, so that no change by a step reaches a later one. It is secret which shards were drawn before, and
    the accountant assumes that a step depends on the past only through its releases.
    """

    step_type = BlockStep

    def __init__(self, served: Served, params: PoissonBlocks | ShardBlocks, prepare: Prepare | None):
        super().__init__(served, params.steps)
        self.params, self._prepare = params, prepare
        self._prepared: dict[int, Any] = {}
        self._passed = False
        self._rehearsed: tuple[Any, ...] = ()  # with shards: the state of a shard of random records
        if isinstance(params, ShardBlocks):
            # Each record is dealt separately, so that adding or removing one moves no other record to another shard.
            self._shard_of = (self._rng.uniform("shards", count=self._n) * params.shards).astype(np.int64)

    def _test(self, fakes: Tensor, gradient: BlockGradient, index: int) -> None:
        """Calls `gradient` on random records, on others, and on the first ones again, which must give the same result.

        If it remembers records (such as a critic that keeps learning), later releases depend on earlier secret draws,
        which no accountant here covers.
        """
        if not callable(gradient):
            raise UserError(f"a block's gradient must be a function of fakes, images and labels, got {gradient!r}")
        if not fakes.is_floating_point():
            raise UserError(f"generated images must be floating-point numbers, got {fakes.dtype}")
        if self._passed and not is_due(index):
            return
        drawn = [random_records(8, self._meta, f"block/{i}", fakes.device) for i in range(2)]
        again = index & (index - 1) == 0  # the generator may begin to move late
        if isinstance(self.params, ShardBlocks) and (again or not self._rehearsed):
            self._try_prepare(drawn)
        if not self._passed:
            drawn += [(images, drawn[0][1]) for images in dark_and_bright(drawn[0][0])]

        def of_batch(i: int) -> Tensor:
            images, labels = drawn[i]
            held = copy.deepcopy(self._rehearsed)
            with Streams(0, "block").torch_default("draws"):
                found = gradient(fakes.clone(), images.clone(), labels.clone(), *held)
            if not isinstance(found, Tensor) or found.layout != torch.strided:
                got = getattr(found, "layout", type(found).__name__)
                raise UserError(f"a block's gradient must be a dense tensor, got {got}")
            return found.detach().clone()  # may be a buffer that the next call changes

        first, *_, again = without_traces(of_batch, gradient, records=(*range(len(drawn)), 0))
        if not torch.equal(first.nan_to_num(), again.nan_to_num()):
            raise UserError(
                "the gradient remembers records: called again with the same random records, it gives another result; "
                "let it keep nothing between calls (train a copy of a critic), and draw from torch's default generator"
            )
        self._passed = True

    def _try_prepare(self, drawn: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Prepares a shard of random records, another one, and the first again, which must give the same state.

        Later it prepares only the first again.
        """

        def prepare(i: int) -> Any:
            return self._prepare_shard(*map(torch.clone, drawn[i]), 0)

        states = [*self._rehearsed, prepare(0)] if self._rehearsed else without_traces(prepare, self._prepare)[::2]
        differs = state_of(states[0]) != state_of(states[1])
        if differs and drawn[0][0].device.type == "cpu":  # on a GPU, sums can round differently each time
            raise UserError(
                "a shard's preparation depends on more than its records: done again on the same random records, it "
                "gives another state; let it use no generator in training, and make everything that it trains anew"
            )
        self._rehearsed = (states[0],)

    def _prepare_shard(self, images: Tensor, labels: Tensor, shard: int) -> Any:
        if self._prepare is None:
            return None
        with self._rng.torch_default("prepare", shard):
            return self._prepare(images, labels, shard)

    def _release(self, fakes: Tensor, gradient: BlockGradient, index: int) -> Tensor:
        """See `BlockStep.release`; the step was counted before."""
        block = self._clipped(fakes, gradient, index)
        std = self.declared.noise_multiplier * self.declared.sensitivity
        released = noised(block, std, self._rng, "noise", index).to(fakes.dtype)
        self.released_grad_norm = float(released.norm())
        return released

    def _clipped(self, fakes: Tensor, gradient: BlockGradient, index: int) -> Tensor:
        """The exact clipped block (float64). Not a release."""
        records, *state = self._drawn(index)
        block = torch.zeros_like(fakes)
        if len(records):
            with self._rng.torch_default("draws", index):
                block = gradient(fakes.clone(), *self._images(records), *state).detach()  # a copy: an edit stays inside
        if block.shape != fakes.shape:
            raise RuntimeError(f"{self.name}: a gradient {tuple(block.shape)} for a block {tuple(fakes.shape)}")
        block = block.double()
        norm = torch.linalg.vector_norm(block)
        if not torch.isfinite(norm):
            raise UserError("a gradient is not finite; lower the learning rate or check the images")
        return block * clip_factor(norm, self.params.max_block_norm)

    def _drawn(self, index: int) -> tuple[Any, ...]:
        """The records of a step, and with shards their shard's state."""
        if isinstance(self.params, PoissonBlocks):
            return (self._draw(index),)
        shard = int(self._rng.uniform("shard", index, count=1)[0] * self.params.shards)
        records = np.flatnonzero(self._shard_of == shard)
        if shard not in self._prepared and len(records):
            self._prepared[shard] = copy.deepcopy(self._prepare_shard(*self._images(records), shard))
        return records, copy.deepcopy(self._prepared.get(shard))
