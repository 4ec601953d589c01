"""The feature extractor behind our Frechet distance: a small CNN trained on the real training images, with SEEDS.

A distance is the mean over the networks. Its spread is recorded, since each network gives another value.

It is only for evaluation. It has seen private images without any noise, so neither it nor a number computed with it may
ever enter the training of a generator. Values by its features are named `small_cnn`, and are comparable on one data set
only.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dpdm import artifacts
from dpdm.data import ImageSet, to_network
from dpdm.errors import UserError
from dpdm.evaluation._network import Recipe, accuracy_percent, predict, train
from dpdm.rng import Streams

FEATURE_SIZE = 64
SEEDS = (0, 1, 2)
_BATCH_SIZE = 500  # images per pass: memory only
RECIPE = Recipe(steps=800, batch_size=64, lr=3e-3, least_epochs=2)


class SmallCnn(nn.Module):
    """Three convolutions and a bottleneck of FEATURE_SIZE for images of any `shape` (C, H, W)."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int):
        super().__init__()
        self.shape, self.num_classes = tuple(shape), num_classes

        def stage(inputs: int, outputs: int) -> list[nn.Module]:
            # ceil_mode: a side of 1 stays 1, so that no image is too small
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)]

        self.trunk = nn.Sequential(
            *stage(shape[0], 16),
            *stage(16, 32),
            *stage(32, 64)[:2],
            nn.AdaptiveAvgPool2d(2),  # a fixed size for any H and W
            nn.Flatten(),
            nn.Linear(4 * 64, FEATURE_SIZE),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURE_SIZE, num_classes)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images in [-1, 1] [n, C, H, W] -> logits [n, num_classes]."""
        return self.head(self.trunk(images))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images [n, C, H, W] -> features float32 [n, FEATURE_SIZE] on the network's device.

        They are not negative. `scale` makes their mean square over the training images 1, so that distances of all
        trained networks have the same scale (otherwise kid's cubic kernel would span orders of magnitude).
        """
        inputs = to_network(images.cpu().numpy())  # the one conversion reads NumPy
        return self.scale * self.trunk(inputs.to(self.scale.device))


def train_extractor(train_set: ImageSet, test_set: ImageSet, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """Trains one network per seed on real images; the test images only give one fact, after the last step.

    The networks learn to classify the images, or to predict an image's rotation if there is only one class. Returns a
    state for `artifacts.write_tensors`: `facts` (JSON), `weights` (one per seed), `shape` [C, H, W], `num_classes`.
    UserError for an empty set, sets of different shapes or classes, and images without any features.
    """
    kinds = [(images.meta.shape, images.meta.num_classes) for images in (train_set, test_set)]
    if not (train_set.meta.n and test_set.meta.n):
        raise UserError("an extractor needs training and test images; a set is empty")
    if kinds[0] != kinds[1]:
        raise UserError(f"an extractor needs sets of one kind (shape, classes), got {kinds[0]} and {kinds[1]}")
    task, trained_on = "classes", train_set.digest()
    if train_set.meta.num_classes == 1:
        task, train_set, test_set = "rotations", _turned(train_set), _turned(test_set)
    meta = train_set.meta
    networks = []
    for seed in seeds:
        network = train(lambda: SmallCnn(meta.shape, meta.num_classes), train_set, RECIPE, Streams(seed, "extractor"))
        network.scale.copy_(_scale(network, train_set))
        networks.append(network)

    def accuracies(images: ImageSet) -> list[float]:
        return [accuracy_percent(predict(network, images.images), images.labels) for network in networks]

    facts = {
        "architecture": "SmallCnn conv16-conv32-conv64-fc64",
        "task": task,
        "trained_on": trained_on,
        "n": meta.n,
        "seeds": list(seeds),
        "optimizer": "adam, linear decay to 0",
        "steps": RECIPE.steps_for(meta.n),
        "batch_size": min(RECIPE.batch_size, meta.n),
        "lr": RECIPE.lr,
        "epochs": RECIPE.steps_for(meta.n) * min(RECIPE.batch_size, meta.n) / meta.n,
        "feature_size": FEATURE_SIZE,
        "train_accuracy": accuracies(train_set),
        "test_accuracy": accuracies(test_set),
    }
    weights = [{name: value.detach().clone() for name, value in n.state_dict().items()} for n in networks]
    return {"facts": facts, "weights": weights, "shape": list(meta.shape), "num_classes": meta.num_classes}


def _turned(images: ImageSet) -> ImageSet:
    """Image i rotated by i mod 4 quarter turns, which is its label; by half turns if images are not square."""
    height, width = images.meta.shape[1:]
    turns = 4 if height == width else 2
    pixels = images.images.copy()
    for label in range(1, turns):
        pixels[label::turns] = np.rot90(pixels[label::turns], label * 4 // turns, axes=(2, 3))
    return ImageSet(pixels, np.arange(len(pixels), dtype=np.int64) % turns, turns, images.origin)


@torch.no_grad()
def _scale(network: SmallCnn, images: ImageSet) -> torch.Tensor:
    chunks = torch.from_numpy(images.images).split(_BATCH_SIZE)
    squares = sum(network.features(chunk).double().square().sum() for chunk in chunks)
    if not squares > 0:  # also nan
        raise UserError(f"{images.origin}: the extractor found no features in these images; check the data set")
    return torch.rsqrt(squares / (images.meta.n * FEATURE_SIZE))


def load_extractor(path: str | Path) -> tuple[list[SmallCnn], dict[str, Any]]:
    """The networks (in eval mode) and facts of a file of `train_extractor`'s state; UserError for any other file."""
    return _loaded(path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0)


@functools.lru_cache(1)  # a job asks for one file many times
def _loaded(path: str | Path, modified: int) -> tuple[list[SmallCnn], dict[str, Any]]:
    state = artifacts.read_tensors(path)
    try:
        networks = []
        for weights in state["weights"]:
            with torch.random.fork_rng(devices=[]):  # the initialization draws numbers and is overwritten below
                network = SmallCnn(tuple(state["shape"]), state["num_classes"])
            network.load_state_dict(weights)
            if not all(value.isfinite().all() for value in network.state_dict().values()):
                raise RuntimeError("its weights are not finite")
            networks.append(network.eval())
        return networks, dict(state["facts"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UserError(f"{path} is not a feature extractor ({reason}); delete it and run snakemake again") from error


@torch.no_grad()
def features(images: ImageSet, weights: str | Path) -> torch.Tensor:
    """Features float32 [networks, n, FEATURE_SIZE], always computed on the CPU: the same numbers on every machine.

    Raises:
        UserError: images have another shape than the networks read; or as in `load_extractor`.
    """
    networks, _ = load_extractor(weights)
    if images.meta.shape != networks[0].shape:
        raise UserError(
            f"{images.origin}: images have shape {images.meta.shape} but the extractor reads {networks[0].shape}; "
            "compare images of one data set"
        )
    chunks = torch.from_numpy(images.images).split(_BATCH_SIZE)
    return torch.stack([torch.cat([network.features(chunk) for chunk in chunks]) for network in networks])
