"""Shared parts of the conditional GANs: networks, fakes, the generator's step, the trained model.

Only a discriminator sees records, and only inside a private step. A generator learns from the discriminator's released
weights and from latents and labels that it draws, which is post-processing. Hence three rules. Labels of fakes are
uniform, or equal the record's label inside the example that is clipped with it (dp_wgan, dp_wgan_gp). A discriminator
treats every row separately (no batch norm). The generator's step reads the discriminator through a `frozen_view`, which
cannot train it.

A generator maps latents [n, latent_dim] and labels [n] to images [n, C, H, W] in [-1, 1]. A discriminator maps such
images and labels to one number per row, [n]: a logit or a critic's value.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn import functional as F

from dpdm.data import ImageMeta, from_unit, to_unit
from dpdm.departures import changed, default, factor, side
from dpdm.errors import UserError
from dpdm.networks import GeneratorModel
from dpdm.privacy import DpSgd, DpSgdParams, PrivateData, PublicRows
from dpdm.privacy.dpsgd import DpSgdStep
from dpdm.rng import Streams

SLOPE = 0.2  # of every leaky ReLU
PUBLISHED_SIDE, PUBLISHED_IMAGES = 28, 60_000  # of MNIST and Fashion-MNIST, on which all are published

# Side of the square images -> sides of the convolutional networks' feature maps, from the image inward.
LEVELS = {8: (8, 4, 2), 16: (16, 8, 4), 28: (28, 14, 7, 4), 32: (32, 16, 8, 4)}


def check_conv_shape(shape: tuple[int, int, int]) -> None:
    """UserError if the convolutional networks do not support such images."""
    _, height, width = shape
    if height != width or height not in LEVELS:
        *first, last = LEVELS
        raise UserError(
            f"the convolutional GAN networks serve square images of side {', '.join(map(str, first))} or {last}, got "
            f"{height}x{width}; resize the images or choose another method"
        )


def check_sides(shape: tuple[int, int, int]) -> None:
    """UserError if a generator that doubles its resolution twice cannot make images of this shape."""
    _, height, width = shape
    if height % 4 or width % 4:
        raise UserError(
            f"the generator doubles its resolution twice: image sides must be multiples of 4, got {height}x{width}; "
            "pad or crop the images"
        )


def check_generator_steps(dp: DpSgdParams, d_steps_per_g_step: int) -> None:
    """UserError if the generator would never take a step."""
    if d_steps_per_g_step > dp.steps:
        raise UserError(
            f"d_steps_per_g_step = {d_steps_per_g_step} is more than dp.steps = {dp.steps}, so the generator would "
            f"never learn; choose at most {dp.steps}"
        )


def departures(params: BaseModel, meta: ImageMeta, **names: str) -> tuple[str, ...]:
    """The differences of a run with `dp` from the published one: side, the keys `names`, and the epochs."""

    def epochs(dp: DpSgdParams, n: int) -> float:
        return dp.expected_batch_size * dp.steps / n

    return (
        *side(meta, PUBLISHED_SIDE),
        *changed(params, **names),
        *factor("epochs", epochs(params.dp, meta.n), epochs(default(params, "dp"), PUBLISHED_IMAGES)),
    )


def block_departures(params: BaseModel, meta: ImageMeta) -> tuple[str, ...]:
    """The same for a method with `blocks`: side, width and steps."""
    return (
        *side(meta, PUBLISHED_SIDE),
        *changed(params, width="width"),
        *factor("steps", params.blocks.steps, default(params, "blocks").steps),
    )


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Float [n, num_classes]; unlike torch's version, it can be vectorized."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def _kernel(fine: int, coarse: int) -> int:
    """The kernel size of the convolution with stride 2 and padding 1 between feature maps of these sides."""
    return 4 if fine == 2 * coarse else 3


class ConvGenerator(nn.Module):
    """The generator of Bie et al. 2023: transposed convolutions, leaky ReLU, no normalization.

    Latent and one-hot label are the two halves of the coarsest map. With `width` m, the finest hidden map has m
    channels and each coarser one twice as many. At 28x28: 4m (4x4), 2m (7x7), m (14x14), C (28x28).
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int, latent_dim: int):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        sides = LEVELS[shape[1]][::-1]
        channels = [width * 2**level for level in reversed(range(len(sides) - 1))]
        self.latent = nn.ConvTranspose2d(latent_dim, channels[0] // 2, sides[0])
        self.label = nn.ConvTranspose2d(num_classes, channels[0] - channels[0] // 2, sides[0])
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(c_in, c_out, _kernel(fine, coarse), stride=2, padding=1)
            for (coarse, fine), (c_in, c_out) in zip(
                itertools.pairwise(sides), itertools.pairwise([*channels, shape[0]]), strict=True
            )
        )

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        y = _one_hot(labels, self.num_classes)
        x = torch.cat([self.latent(latents[:, :, None, None]), self.label(y[:, :, None, None])], 1)
        for layer in self.up:
            x = layer(F.leaky_relu(x, SLOPE))
        return x.tanh()


class ConvDiscriminator(nn.Module):
    """The discriminator of Bie et al. 2023: convolutions, leaky ReLU, no normalization.

    Image (pixels in [0, 1]) and one-hot label map are convolved separately to m / 2 channels each. At 28x28 with
    `width` m: m (14x14), 2m (7x7), 4m (4x4), then one number. 1.72 million parameters at m = 128 and ten classes.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int):
        super().__init__()
        self.num_classes = num_classes
        sides = LEVELS[shape[1]]
        channels = [width * 2**level for level in range(len(sides) - 1)]
        self.image = nn.Conv2d(shape[0], width // 2, 4, stride=2, padding=1)
        self.label = nn.Conv2d(num_classes, width - width // 2, 4, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(c_in, c_out, _kernel(fine, coarse), stride=2, padding=1)
            for (fine, coarse), (c_in, c_out) in zip(
                itertools.pairwise(sides[1:]), itertools.pairwise(channels), strict=True
            )
        )
        self.head = nn.Conv2d(channels[-1], 1, sides[-1])
        # A label map is constant, so its convolution has only three different rows and columns: first, middle, last. A
        # 6x6 map has them all; repeating the middle gives the whole map at a fraction of the cost.
        self.register_buffer("spread", torch.tensor([0, *[1] * (sides[1] - 2), 2]), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        y = self.label(_one_hot(labels, self.num_classes)[:, :, None, None].expand(-1, -1, 6, 6))
        y = y.index_select(2, self.spread).index_select(3, self.spread)
        x = torch.cat([self.image(to_unit(images)), y], 1)
        for layer in self.down:
            x = layer(F.leaky_relu(x, SLOPE))
        return self.head(F.leaky_relu(x, SLOPE)).flatten()


def _fully_connected(sizes: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))


def _apply(layers: nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers[:-1]:
        x = F.leaky_relu(layer(x), SLOPE)
    return layers[-1](x)


class FcGenerator(nn.Module):
    """Fully connected layers from latent and one-hot label to pixels; `hidden` holds the sizes in between."""

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: Sequence[int], latent_dim: int):
        super().__init__()
        self.shape, self.num_classes, self.latent_dim = tuple(shape), num_classes, latent_dim
        self.layers = _fully_connected([latent_dim + num_classes, *hidden, int(np.prod(shape))])

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        x = _apply(self.layers, torch.cat([latents, _one_hot(labels, self.num_classes)], 1))
        return from_unit(x.sigmoid()).unflatten(1, self.shape)


class FcDiscriminator(nn.Module):
    """Fully connected layers from pixels (in [0, 1]) and one-hot label to one number."""

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: Sequence[int]):
        super().__init__()
        self.num_classes = num_classes
        self.layers = _fully_connected([int(np.prod(shape)) + num_classes, *hidden, 1])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        pixels = to_unit(images.flatten(1))
        return _apply(self.layers, torch.cat([pixels, _one_hot(labels, self.num_classes)], 1)).flatten()


# name -> generator, discriminator, and the name of their size
NETWORKS = {
    "conv": (ConvGenerator, ConvDiscriminator, "width"),
    "fc": (FcGenerator, FcDiscriminator, "hidden"),
}
Generator = ConvGenerator | FcGenerator


class Model(GeneratorModel):
    @staticmethod
    def build(generator: str, arguments: dict[str, Any]) -> Generator:
        return NETWORKS[generator][0](**arguments)


def pair(
    private: PrivateData,
    rng: Streams,
    name: str,
    size: int | list[int],
    latent_dim: int,
    init: Callable[[nn.Module], None] | None = None,
) -> tuple[Model, nn.Module, nn.Module]:
    """An untrained generator, as its model; an untrained discriminator; and its `frozen_view`.

    `name` is a key of NETWORKS, and `size` the size of both; `init` is applied to every module.
    """
    make_generator, make_discriminator, size_name = NETWORKS[name]
    meta = private.meta
    arguments = {"shape": list(meta.shape), "num_classes": meta.num_classes, size_name: size}
    with rng.torch_default("init"):
        networks = make_generator(**arguments, latent_dim=latent_dim), make_discriminator(**arguments)
        if init:
            for network in networks:
                network.apply(init)
    g, d = (network.to(private.device) for network in networks)
    return Model(g, generator=name, arguments=arguments | {"latent_dim": latent_dim}), d, frozen_view(d)


def draw_inputs(generator: nn.Module, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Normal latents and uniform labels, from public randomness only."""
    latents = torch.randn(count, generator.latent_dim, generator=rng)
    labels = torch.randint(generator.num_classes, (count,), generator=rng)
    device = next(generator.parameters()).device
    return latents.to(device), labels.to(device)


@torch.no_grad()
def draw_fakes(generator: Generator, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Generated images [count, C, H, W] in [-1, 1] and their labels: the public rows of a private step."""
    latents, labels = draw_inputs(generator, count, rng)
    return generator(latents, labels), labels


def frozen_view(discriminator: nn.Module) -> nn.Module:
    """The same weights, always up to date, for the generator's step; this view gives them no gradient.

    Make it before the discriminator goes to `PrivateData.dpsgd`, so that it has no per-example hooks. Weights must be
    changed in place, as optimizers and `load_state_dict` do.
    """
    view = copy.deepcopy(discriminator).requires_grad_(False)
    for mine, shared in zip(view.parameters(), discriminator.parameters(), strict=True):
        mine.data = shared.data
    return view


def generator_step(
    generator: Generator,
    optimizer: torch.optim.Optimizer,
    view: nn.Module,
    loss: Callable[[Tensor], Tensor],
    count: int,
    rng: torch.Generator,
) -> Tensor:
    """A generator step down the mean of `loss` (elementwise, of the discriminator's numbers) over `count` fakes.

    Returns the discriminator's numbers for these fakes, [count], before the step.
    """
    latents, labels = draw_inputs(generator, count, rng)
    said = view(generator(latents, labels), labels)
    optimizer.zero_grad()
    loss(said).mean().backward()
    optimizer.step()
    return said.detach()


def discriminator_step(step: DpSgdStep, dp: DpSgd, generator: Generator, count: int, rng: torch.Generator) -> None:
    """A private step down the binary cross-entropy over the records and `count` fakes."""
    fakes, labels = draw_fakes(generator, count, rng)
    step.update(
        lambda x, y: F.softplus(-dp.module(x, y)),
        PublicRows(lambda x, y: F.softplus(dp.module(x, y)), fakes, labels),
    )
