"""Shared parts of methods that train a network: its model, the draws of a generator, the average of weights.

Also the paper's classifiers, which judge synthetic images, and which DP-SGD trains on private images.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.data import to_uint8
from dpdm.errors import UserError
from dpdm.params import Count, Strict
from dpdm.rng import Streams


class NetworkModel:
    """A model that is one trained network. A subclass has `build(**facts)`, which makes it; facts are JSON values.

    The network is in evaluation mode, so that no row depends on its batch.
    """

    build: Callable[..., nn.Module]

    def __init__(self, network: nn.Module, **facts: Any):
        self.network, self.facts = network.eval(), facts

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> None:
        """Moves it to `device`."""
        self.network.to(device)

    @torch.no_grad()
    def draw(self, labels: np.ndarray, max_batch_size: int, batch: Callable[[int, Tensor], Tensor]) -> np.ndarray:
        """Images uint8 [n, C, H, W], `max_batch_size` at a time.

        `batch` maps the index of a batch's first image, and its labels, to its images in [-1, 1].
        """
        starts = range(0, max(len(labels), 1), max_batch_size)
        parts = (torch.from_numpy(labels[start : start + max_batch_size]).to(self.device) for start in starts)
        return np.concatenate([to_uint8(batch(start, part)) for start, part in zip(starts, parts, strict=True)])

    def state(self) -> dict[str, Any]:
        return {**self.facts, "weights": {name: value.cpu() for name, value in self.network.state_dict().items()}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        facts = {name: value for name, value in state.items() if name != "weights"}
        network = cls.build(**facts)
        network.load_state_dict(state["weights"])
        return cls(network, **facts)


class BatchSize(Strict):
    """The only way to draw: latents through the generator."""

    max_batch_size: Count = Field(1000, description="images that are drawn at a time: memory only")


class GeneratorModel(NetworkModel):
    """A network, with an attribute `latent_dim`, that maps latents [n, latent_dim] and labels [n] to images."""

    def images(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [n, C, H, W] in [-1, 1]."""
        return self.network(latents, labels)

    def sample(self, labels: np.ndarray, sampler: BatchSize, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i draws its latent from its own stream."""

        def batch(start: int, y: Tensor) -> Tensor:
            latents = rng.normal_per_image("image", start, len(y), (self.network.latent_dim,))
            return self.images(torch.from_numpy(latents).to(y.device), y)

        return self.draw(labels, sampler.max_batch_size, batch)


@torch.no_grad()
def update_ema(averaged: nn.Module, network: nn.Module, decay: float, n: int) -> None:
    """Exponential moving average with warm-up: decay min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ..."""
    for target, source in zip(averaged.parameters(), network.parameters(), strict=True):
        target.lerp_(source, 1 - min(decay, (1 + n) / (10 + n)))


# --- the classifiers of the paper: at 28x28 they have 7,850, 79,510 and 241,546 parameters ----------------------


def logreg(shape: Sequence[int], num_classes: int) -> nn.Module:
    """Logistic regression: images of `shape` (C, H, W) -> logits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), num_classes))


def mlp(shape: Sequence[int], num_classes: int) -> nn.Module:
    """One hidden layer of 100 ReLU: images of `shape` (C, H, W) -> logits."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 100), nn.ReLU(), nn.Linear(100, num_classes))


def paper_cnn(shape: Sequence[int], num_classes: int, dropout: Callable[[], nn.Module] = nn.Dropout) -> nn.Module:
    """The CNN of the paper's downstream task: images of `shape` (C, H, W) -> logits; UserError for a side below 4.

    If images are too small for its unpadded convolutions (a side below 18), they are padded; at 8x8 the linear layer
    then reads 512 numbers instead of 1152. `dropout` adds a layer that zeroes half of its inputs.
    """
    channels, *sides = shape
    if min(sides) < 4:
        raise UserError(f"the cnn needs sides of 4 pixels, got {tuple(sides)}; leave it out")
    padding = 0 if min(sides) >= 18 else 1
    height, width = (((side - 2 + 2 * padding) // 2 - 2 + 2 * padding) // 2 - 2 + 2 * padding for side in sides)
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU(), dropout(),
        nn.Conv2d(32, 64, 3, padding=padding), nn.MaxPool2d(2), nn.ReLU(), dropout(),
        nn.Conv2d(64, 128, 3, padding=padding), nn.ReLU(), nn.Flatten(),
        nn.Linear(128 * height * width, 128), nn.ReLU(), dropout(),
        nn.Linear(128, num_classes),
    )  # fmt: skip
