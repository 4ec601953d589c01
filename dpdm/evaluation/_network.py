"""Training and applying a classification network, for the extractor and the classifiers.

On the CPU by default: the networks are small, and equal seeds give equal numbers on every machine of one kind.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from dpdm.data import ImageSet, to_network
from dpdm.progress import Log
from dpdm.rng import Streams

_CHUNK = 500  # images per forward pass when a network is applied: memory only


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, by shuffled batches; the last step is the result.

    Training takes `steps`, but at most `most_epochs` on a small set, and at least `least_epochs` on a large one.
    """

    steps: int
    batch_size: int  # fewer if there are fewer images
    lr: float  # the highest rate
    least_epochs: int = 0  # minimum number of passes, which raises `steps`
    most_epochs: float = math.inf  # maximum number of passes, which lowers `steps`
    one_cycle: bool = False  # the rate rises and falls (Smith and Topin 2017); else it falls linearly to zero

    def steps_for(self, count: int) -> int:
        """Steps on `count` images."""
        most, least = (passes * count / self.batch_size for passes in (self.most_epochs, self.least_epochs))
        return math.ceil(max(min(self.steps, most), least))


def train(build: Callable[[], nn.Module], data: ImageSet, recipe: Recipe, streams: Streams) -> nn.Module:
    """A network that maps images in [-1, 1] to class logits, trained by cross-entropy on `data`, which is not empty.

    `build` makes the network; all randomness is from `streams`, and torch's global generators are unchanged.
    """
    count, size = len(data.labels), min(recipe.batch_size, len(data.labels))
    steps, shuffle = recipe.steps_for(count), streams.torch("batches")
    passes = math.ceil(steps * size / count)
    order = torch.cat([torch.randperm(count, generator=shuffle) for _ in range(passes)]).numpy()
    with streams.torch_default("network"):  # initialization and dropout draw from it
        network = _made(build).train()
        optimizer = _optimizer(network, recipe.lr)
        if recipe.one_cycle:
            rate = lr_scheduler.OneCycleLR(optimizer, recipe.lr, steps)
        else:
            rate = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for step in range(steps):
            _learn(network, optimizer, data, order[step * size : (step + 1) * size])
            rate.step()
    return network.eval()


def _made(build: Callable[[], nn.Module]) -> nn.Module:
    """The untrained network, with weights in a memory order that makes convolutions faster on CPUs."""
    return build().to(memory_format=torch.channels_last)


def _optimizer(network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam in one pass over each tensor, since separate passes take a sixth of a step at 8x8."""
    return torch.optim.Adam(network.parameters(), lr=lr, fused=True)


def _learn(network: nn.Module, optimizer: torch.optim.Optimizer, data: ImageSet, rows: np.ndarray) -> None:
    """One step on the cross-entropy of some rows of `data`."""
    device = next(network.parameters()).device
    logits = network(to_network(data.images[rows]).to(device))
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(data.labels[rows]).to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@dataclass(frozen=True)
class EpochRecipe:
    """How a network is trained and one of its epochs chosen: Adam, by batches, reshuffled every epoch."""

    epochs: int
    batch_size: int
    lr: float
    held_out: float = 0.1  # share of every class that judges the epochs and is not used for training
    cut_every: int | None = None  # epochs after which the rate is multiplied by `cut`; None: a constant rate
    cut: float = 1.0
    average: float | None = None  # decay per step of averaged weights, which are judged; None: no average

    def average_after(self, steps: int) -> float:
        """The decay of the average at a step; small at first, so that the initialization is forgotten."""
        return min(self.average, (1 + steps) / (10 + steps))


def train_and_select(
    build: Callable[[], nn.Module],
    data: ImageSet,
    recipe: EpochRecipe,
    streams: Streams,
    log: Log,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """The network after the epoch that was best on held-out images of `data` itself; the first of equally good epochs.

    `build` makes the network, which maps images in [-1, 1] to class logits and sees no other image. If every class is
    too small to hold out an image, the last epoch is used. All randomness is from `streams`, and torch's global
    generators on the CPU are unchanged. But on a GPU dropout follows no seed, and networks differ slightly.
    """
    train_rows, held_out = _hold_out(data.labels, recipe.held_out, streams)
    best, best_weights = -1.0, None
    with streams.torch_default("network"):  # initialization and dropout draw from it
        network = judged = _made(build).to(device)
        optimizer = _optimizer(network, recipe.lr)
        rate = lr_scheduler.StepLR(optimizer, recipe.cut_every or recipe.epochs, recipe.cut)
        if recipe.average is not None:
            averaged = AveragedModel(
                network, avg_fn=lambda mean, new, n: torch.lerp(new, mean, recipe.average_after(int(n)))
            )
            judged = averaged.module
        for epoch in log.track(range(recipe.epochs), recipe.epochs):
            network.train()
            order = train_rows[torch.randperm(len(train_rows), generator=streams.torch("epoch", epoch)).numpy()]
            for start in range(0, len(order), recipe.batch_size):
                _learn(network, optimizer, data, order[start : start + recipe.batch_size])
                if judged is not network:
                    averaged.update_parameters(network)
            rate.step()
            judged.eval()
            if len(held_out):
                accuracy = accuracy_percent(predict(judged, data.images[held_out]), data.labels[held_out])
                if accuracy > best:
                    best, best_weights = accuracy, copy.deepcopy(judged.state_dict())
    if best_weights is not None:
        judged.load_state_dict(best_weights)
    return judged


def _hold_out(labels: np.ndarray, share: float, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on, and the `share` of every class, rounded down, that is held out."""
    held_out = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = streams.numpy("held_out", int(label)).permutation(np.flatnonzero(labels == label))
        held_out[rows[: int(share * len(rows))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


@torch.no_grad()
def predict(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """The most likely class (int64 [n]) of uint8 images [n, C, H, W]."""
    device = next(network.parameters()).device
    chunks = (to_network(images[i : i + _CHUNK]).to(device) for i in range(0, len(images), _CHUNK))
    return np.concatenate([network(chunk).argmax(1).cpu().numpy() for chunk in chunks])


def accuracy_percent(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of equal labels, in percent 0..100."""
    return float(100 * np.mean(predicted == labels))
