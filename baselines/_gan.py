"""What the conditional GANs share: networks, fakes, the generator's step, the trained model.

Only a discriminator sees records, and only inside a private step. A generator learns from the discriminator's
released weights, and from latents and labels that it draws: post-processing, free of charge. Hence three rules, kept
here: labels of fakes are uniform, never those of a private batch; a discriminator treats every row on its own (no
batch norm); and the generator's step reads the discriminator through a `frozen_view`, which cannot train it.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dpdm.data import to_uint8
from dpdm.errors import UserError
from dpdm.params import Count, Strict
from dpdm.privacy import DpSgdParams
from dpdm.rng import Streams

SLOPE = 0.2  # of every leaky ReLU

# Side of the square images -> sides of the convolutional networks' feature maps, from the image inwards.
LEVELS = {8: (8, 4, 2), 16: (16, 8, 4), 28: (28, 14, 7, 4), 32: (32, 16, 8, 4)}


def check_conv_shape(shape: tuple[int, int, int]) -> None:
    """Raises UserError if the convolutional networks serve no such images."""
    _, height, width = shape
    if height != width or height not in LEVELS:
        *first, last = LEVELS
        raise UserError(
            f"the convolutional GAN networks serve square images of side {', '.join(map(str, first))} or {last}, got "
            f"{height}x{width}; resize the images or choose another method"
        )


def check_generator_steps(dp: DpSgdParams, d_steps_per_g_step: int) -> None:
    """Raises UserError if the generator would never take a step."""
    if d_steps_per_g_step > dp.steps:
        raise UserError(
            f"d_steps_per_g_step = {d_steps_per_g_step} is more than dp.steps = {dp.steps}, so the generator would "
            f"never learn; choose at most {dp.steps}"
        )


# --- networks -------------------------------------------------------------------------------------------------
# A generator maps latents [n, latent_dim] and labels [n] to images [n, C, H, W] in [-1, 1]; its `arguments` rebuild it.
# A discriminator maps such images and labels to one number per row, [n]: a logit or a critic's value.


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Float [n, num_classes]; unlike torch's own it can be vectorised."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).float()


def _kernel(fine: int, coarse: int) -> int:
    """Of the convolution with stride 2 and padding 1 between feature maps of these sides."""
    return 4 if fine == 2 * coarse else 3


class ConvGenerator(nn.Module):
    """The generator of Bie et al. 2023: transposed convolutions, leaky ReLU, no normalization.

    Latent and one-hot label are the two halves of the coarsest map. With `width` m, the finest hidden map has m
    channels and each coarser one twice as many. At 28x28: 4m (4x4), 2m (7x7), m (14x14), C (28x28).
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: int, latent_dim: int):
        super().__init__()
        self.arguments = {
            "shape": list(shape), "num_classes": num_classes, "width": width, "latent_dim": latent_dim,
        }  # fmt: skip
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
        """Images [n, C, H, W] in [-1, 1]."""
        y = _one_hot(labels, self.num_classes)
        x = torch.cat([self.latent(latents[:, :, None, None]), self.label(y[:, :, None, None])], 1)
        for layer in self.up:
            x = layer(F.leaky_relu(x, SLOPE))
        return x.tanh()


class ConvDiscriminator(nn.Module):
    """The discriminator of Bie et al. 2023: convolutions, leaky ReLU, no normalization.

    Image (pixels in [0, 1]) and one-hot label map are convolved apart to m / 2 channels each. At 28x28 with `width` m:
    m (14x14), 2m (7x7), 4m (4x4), then one number. 1.72 million parameters at m = 128 and ten classes.
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
        # A label map is the same number everywhere, so that its convolution has but three different rows and columns:
        # first, middle, last. A 6x6 map has them all; repeating the middle gives the whole at a fraction of the cost.
        self.register_buffer("spread", torch.tensor([0, *[1] * (sides[1] - 2), 2]), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """One number per row, [n]."""
        y = self.label(_one_hot(labels, self.num_classes)[:, :, None, None].expand(-1, -1, 6, 6))
        y = y.index_select(2, self.spread).index_select(3, self.spread)
        x = torch.cat([self.image((images + 1) / 2), y], 1)
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
        self.arguments = {
            "shape": list(shape), "num_classes": num_classes, "hidden": list(hidden), "latent_dim": latent_dim,
        }  # fmt: skip
        self.shape, self.num_classes, self.latent_dim = tuple(shape), num_classes, latent_dim
        self.layers = _fully_connected([latent_dim + num_classes, *hidden, int(np.prod(shape))])

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Images [n, C, H, W] in [-1, 1]."""
        x = _apply(self.layers, torch.cat([latents, _one_hot(labels, self.num_classes)], 1))
        return (2 * x.sigmoid() - 1).unflatten(1, self.shape)


class FcDiscriminator(nn.Module):
    """Fully connected layers from pixels (in [0, 1]) and one-hot label to one number."""

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: Sequence[int]):
        super().__init__()
        self.num_classes = num_classes
        self.layers = _fully_connected([int(np.prod(shape)) + num_classes, *hidden, 1])

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """One number per row, [n]."""
        pixels = (images.flatten(1) + 1) / 2
        return _apply(self.layers, torch.cat([pixels, _one_hot(labels, self.num_classes)], 1)).flatten()


GENERATORS = {"conv": ConvGenerator, "fc": FcGenerator}
Generator = ConvGenerator | FcGenerator


# --- training -------------------------------------------------------------------------------------------------


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
    """The same weights, always up to date, for the generator's step: they take no gradient through this view.

    To be made before the discriminator goes to `PrivateData.dpsgd`, whose per-example machinery it then lacks. Weights
    must be changed in place, as optimizers and `load_state_dict` do.
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
    """Moves the generator down the mean of `loss` (elementwise, of the discriminator's numbers) over `count` fakes.

    Returns:
        What the discriminator said of them, [count], before the move.
    """
    latents, labels = draw_inputs(generator, count, rng)
    said = view(generator(latents, labels), labels)
    optimizer.zero_grad(set_to_none=True)
    loss(said).mean().backward()
    optimizer.step()
    return said.detach()


@torch.no_grad()
def clip_weights(module: nn.Module, bound: float) -> None:
    """Cuts every parameter to [-bound, bound], in place."""
    for p in module.parameters():
        p.clamp_(-bound, bound)


# --- the trained model ----------------------------------------------------------------------------------------


class SamplerParams(Strict):
    """A generator has one way to sample."""

    max_batch_size: Count = Field(1000, description="images that are drawn at a time: memory only")


class Model:
    """A trained generator."""

    def __init__(self, generator: Generator):
        self.generator = generator

    def to(self, device: str | torch.device) -> None:
        """Where `sample` computes from now on."""
        self.generator.to(device)

    @torch.no_grad()
    def sample(self, labels: np.ndarray, sampler: SamplerParams, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i draws its latent from its own stream."""
        device = next(self.generator.parameters()).device
        out = np.empty((len(labels), *self.generator.arguments["shape"]), np.uint8)
        for start in range(0, len(labels), sampler.max_batch_size):
            y = torch.from_numpy(labels[start : start + sampler.max_batch_size]).to(device)
            latents = rng.normal_per_image("image", start, len(y), (self.generator.latent_dim,))
            out[start : start + len(y)] = to_uint8(self.generator(torch.from_numpy(latents).to(device), y))
        return out

    def state(self) -> dict[str, Any]:
        """Weights and what rebuilds the generator."""
        return {
            "generator": next(name for name, kind in GENERATORS.items() if isinstance(self.generator, kind)),
            "arguments": self.generator.arguments,
            "weights": {name: value.cpu() for name, value in self.generator.state_dict().items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        """The inverse of `state`."""
        generator = GENERATORS[state["generator"]](**state["arguments"])
        generator.load_state_dict(state["weights"])
        return cls(generator)


class RebuiltModel(Model):
    """A trained generator of class `generator_type`, rebuilt from its `arguments`."""

    generator_type: type[nn.Module]

    def state(self) -> dict[str, Any]:
        """Weights and what rebuilds the generator."""
        weights = {name: value.cpu() for name, value in self.generator.state_dict().items()}
        return {"arguments": self.generator.arguments, "weights": weights}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""
        generator = cls.generator_type(**state["arguments"])
        generator.load_state_dict(state["weights"])
        return cls(generator)
