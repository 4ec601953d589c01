"""Shared parts of the kernel methods: a private release of mean features, random Fourier features, and the generator.

Released once: the sum over records of phi(x) e_y^T and the class counts. Both have sensitivity 1 under adding or
removing one record, since phi has norm exactly 1. Training a generator on a released sum is post-processing.

phi of dp_merf and pearl: phi(x) = [cos(W x); sin(W x)] / sqrt(k), rows of W from N(0, I / s2), pixels of x in [0, 1],
approximates the Gaussian kernel: phi(x) . phi(y) -> exp(-|x - y|^2 / (2 s2)) (Rahimi and Recht 2007). W comes from the
public stream "frequencies"; s2 is a public constant, never a function of the data.

Unequal classes. The sums divided by the released counts give the mean embedding m_y of each class, and the distance of
a class to its m_y is weighted by the class's released share. So the noise of a rare class cannot dominate the others.
On balanced data this is the published objective up to a constant factor, which does not change Adam's steps.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._gan import check_sides
from dpdm.data import ImageMeta, balanced_labels, from_unit, to_unit
from dpdm.departures import changed, side
from dpdm.errors import UserError
from dpdm.networks import GeneratorModel
from dpdm.params import Count, Finite, Positive, Share, Strict
from dpdm.privacy import Mechanism, PrivateData
from dpdm.rng import Streams

EMBEDDINGS, COUNTS = "class_embeddings", "class_counts"


Features = Callable[[Tensor], Tensor]  # phi: pixels in [0, 1] [n, C, H, W] -> [n, d] of norm 1


class GeneratorParams(Strict):
    """Public constants of all kernel methods. A method may change the defaults."""

    count_share: Share = Field(0.05, description="part of the budget for the counts; the embeddings get the rest")
    latent_dim: Count = Field(5, description="dimension of the generator's noise z")
    hidden_units: Count = Field(200, description="units of the generator's first layer")
    generated_batch_size: Count = Field(100, description="images per step, balanced over the classes")
    steps: Count = Field(600, description="generator steps")
    lr: Positive = Field(1e-2, description="rate of Adam, of the generator")
    lr_decay: Annotated[Finite, Field(gt=0, le=1)] = Field(0.9, description="factor on lr every lr_decay_steps")
    lr_decay_steps: Count = Field(120, description="generator steps between two falls of lr")


class KernelParams(GeneratorParams):
    """Public constants of methods with random Fourier features."""

    num_frequencies: Count = Field(5000, description="k, rows of W; 2 k numbers are released per class")
    squared_length_scale: Positive = Field(
        105.0, description="s2 of the kernel, for pixels in [0, 1]; the default is for 28x28"
    )


class Generator(nn.Module):
    """DP-MERF's convolutional generator: noise and one-hot label -> pixels in [0, 1]; sides are divisible by 4.

    FC `hidden_units`, batch norm, ReLU; FC 16 x H/4 x W/4, batch norm, ReLU; twice: bilinear x2 and a 5x5 convolution
    (to 8 channels, then to the image's). 28 pixels start from 7x7 as published; 8 pixels (our small preset) start from
    2x2. Batch norm is harmless here because a generator never sees a record.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, latent_dim: int, hidden_units: int):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        channels, height, width = shape
        base = (16, height // 4, width // 4)
        self.layers = nn.Sequential(
            nn.Linear(latent_dim + num_classes, hidden_units), nn.BatchNorm1d(hidden_units), nn.ReLU(),
            nn.Linear(hidden_units, math.prod(base)), nn.BatchNorm1d(math.prod(base)), nn.ReLU(),
            nn.Unflatten(1, base),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(16, 8, 5, padding=2), nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, channels, 5, padding=2), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Noise [n, latent_dim] and labels [n] -> [n, C, H, W]."""
        return self.layers(torch.cat([z, F.one_hot(labels, self.num_classes).to(z.dtype)], dim=1))


class Model(GeneratorModel):
    @staticmethod
    def build(generator: dict[str, Any]) -> Generator:
        return Generator(**generator)

    def images(self, latents: Tensor, labels: Tensor) -> Tensor:
        return from_unit(self.network(latents, labels))


def departures(params: GeneratorParams, meta: ImageMeta, **names: str) -> tuple[str, ...]:
    """The differences of a run from the published one: the side of its images, and the keys `names`."""
    return (*side(meta, 28), *changed(params, **names))


def plan_releases(params: GeneratorParams, meta: ImageMeta) -> tuple[Mechanism, ...]:
    """The two Gaussian releases; UserError for an impossible image size, or a batch with fewer images than classes."""
    check_sides(meta.shape)
    if params.generated_batch_size < meta.num_classes:
        raise UserError(
            f"generated_batch_size = {params.generated_batch_size} misses some of {meta.num_classes} classes at every "
            f"step; choose at least {meta.num_classes}"
        )
    share = params.count_share
    return (
        Mechanism.gaussian(COUNTS, share, sensitivity=1.0),
        Mechanism.gaussian(EMBEDDINGS, 1 - share, sensitivity=1.0),
    )


def draw_frequencies(params: KernelParams, meta: ImageMeta, rng: Streams) -> Tensor:
    """W [k, pixels] with entries from N(0, 1 / s2)."""
    shape = (params.num_frequencies, math.prod(meta.shape))
    return torch.randn(shape, generator=rng.torch("frequencies")) / math.sqrt(params.squared_length_scale)


def fourier(frequencies: Tensor) -> Features:
    """phi for W [k, pixels]: [n, 2 k], all cosines before all sines."""

    def phi(pixels: Tensor) -> Tensor:
        angles = pixels.flatten(1) @ frequencies.T
        return torch.cat([angles.cos(), angles.sin()], dim=1) / math.sqrt(len(frequencies))

    return phi


def release_embeddings(private: PrivateData, phi: Features) -> tuple[Tensor, Tensor]:
    """The noised mean of phi in each class [classes, d], and each class's noised share of the records [classes]."""
    classes = private.meta.num_classes

    def embedding(images: Tensor, labels: Tensor) -> Tensor:
        found = phi(to_unit(images))
        return F.one_hot(labels, classes).to(found.dtype)[:, :, None] * found[:, None, :]

    counts = private.release_sum(COUNTS, lambda _, labels: F.one_hot(labels, classes).float(), 1.0).clamp(min=1)
    sums = private.release_sum(EMBEDDINGS, embedding, 1.0)
    means, shares = sums / counts[:, None], counts / counts.sum()
    return means.to(private.device, torch.float32), shares.to(private.device, torch.float32)


class Generated:
    """The generator in training: one balanced batch of fresh images per step, as class embeddings.

    The stream "init" draws its weights, and ("latent", step) the noise.

    Attributes:
        keep: everything that training changes, for checkpoints.
        counts: images of each class in a step, [classes].
    """

    def __init__(self, params: GeneratorParams, private: PrivateData, phi: Features, rng: Streams):
        meta, device = private.meta, private.device
        self._arguments = {
            "shape": list(meta.shape), "num_classes": meta.num_classes,
            "latent_dim": params.latent_dim, "hidden_units": params.hidden_units,
        }  # fmt: skip
        with rng.torch_default("init"):
            self.generator = Generator(**self._arguments).to(device)
        self.optimizer = torch.optim.Adam(self.generator.parameters(), lr=params.lr)
        self._decay = torch.optim.lr_scheduler.StepLR(self.optimizer, params.lr_decay_steps, params.lr_decay)
        self._labels = torch.from_numpy(balanced_labels(params.generated_batch_size, meta.num_classes)).to(device)
        one_hot = F.one_hot(self._labels, meta.num_classes).float()
        self.counts = one_hot.sum(0)
        self._averaging = (one_hot / self.counts).T
        self._shape = (params.generated_batch_size, params.latent_dim)
        self.keep = [self.generator, self.optimizer, self._decay]
        self._phi, self._rng, self._device = phi, rng, device

    def embeddings(self, step: int) -> Tensor:
        """The mean of phi over this step's images of each class: [classes, d]."""
        z = torch.randn(self._shape, generator=self._rng.torch("latent", step)).to(self._device)
        return self._averaging @ self._phi(self.generator(z, self._labels))

    def model(self) -> Model:
        return Model(self.generator, generator=self._arguments)

    def descend(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._decay.step()


def gaps(released: Tensor, generated: Tensor, shares: Tensor) -> Tensor:
    """Squared distance at each frequency [k], over cosine and sine parts, classes weighted by `shares` [classes].

    `released` and `generated` are class embeddings [classes, 2 k]; the shares sum to 1.
    """
    squares = (released - generated).square() * shares[:, None]
    return squares.sum(0).view(2, -1).sum(0)
