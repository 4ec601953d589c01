"""Training and applying a small classification network: what the extractor and the CNN classifier share.

Always on the CPU: the networks are small, and equal seeds must give equal numbers on every machine of one kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dpdm.data import ImageSet, to_network
from dpdm.rng import Streams

_CHUNK = 500  # images per forward pass when applying a network: bounds memory, changes no result


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, its rate falling linearly to zero; the last step is the result.

    Steps, not epochs: small sets are then seen often enough, and the time hardly depends on the size of a set.
    """

    steps: int
    batch_size: int  # less where there are fewer images
    lr: float
    least_epochs: int = 0  # passes over a large set, for which `steps` are raised

    def steps_for(self, count: int) -> int:
        """Steps on `count` images."""
        return max(self.steps, math.ceil(self.least_epochs * count / self.batch_size))


def train(build: Callable[[], nn.Module], data: ImageSet, recipe: Recipe, streams: Streams) -> nn.Module:
    """A network that maps images in [-1, 1] to class logits, trained by cross-entropy.

    Args:
        build: makes the untrained network.
        data: images and labels, at least one.
        recipe: steps, batch size, learning rate.
        streams: all randomness; torch's global generators are left as they were.
    """
    count, size = len(data.labels), min(recipe.batch_size, len(data.labels))
    steps, shuffle = recipe.steps_for(count), streams.torch("batches")
    passes = math.ceil(steps * size / count)
    order = torch.cat([torch.randperm(count, generator=shuffle) for _ in range(passes)]).numpy()
    with streams.torch_default("network"):  # initialisation and dropout draw from it
        network = build().train()
        optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for step in range(steps):
            rows = order[step * size : (step + 1) * size]
            logits = network(to_network(data.images[rows]))
            loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    return network.eval()


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """The most likely class (int64 [n]) of uint8 images [n, C, H, W]."""
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    return np.concatenate([network(to_network(chunk)).argmax(1).numpy() for chunk in chunks])


def accuracy_percent(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal labels, in percent 0..100."""
    return float(100 * np.mean(predicted == labels))
