"""The U-Net of the paper ("DDPM++" of Song et al. 2021, small): no layer mixes examples."""

import math
from collections.abc import Collection
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dpdm.errors import UserError
from dpdm.params import Count, Strict

Part = Literal["norms", "biases", "embeddings", "last_level"]


class NetworkParams(Strict):
    """Size of the U-Net; the defaults are the paper's MNIST network (1.75 M parameters)."""

    channels: Annotated[int, Field(ge=8, multiple_of=4)] = Field(32, description="channels of the first level")
    channel_mult: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = Field(
        (1, 2, 2), description="channels of each level, as multiples of the first; each level has half the side"
    )
    blocks_per_level: Count = Field(2, description="residual blocks of each level")
    attention_resolutions: Annotated[tuple[int, ...], Field(strict=False)] = Field(
        (7,), description="sides of the feature maps, in pixels, that attend to themselves"
    )
    pixel_unshuffle: Count = Field(
        1,
        description="side of the pixel blocks that become channels at the stem: 2 quarters the cost; not in the paper",
    )

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuses images that the levels cannot halve evenly, and attention at a side that no level has.

        Raises:
            UserError: height and width differ or cannot be halved often enough, or no level has a side named for
                attention.
        """
        _, height, width = shape
        divisor = self.pixel_unshuffle * 2 ** (len(self.channel_mult) - 1)
        if height != width or height % divisor:
            raise UserError(
                f"the U-Net needs square images divisible by {divisor} (pixel_unshuffle = {self.pixel_unshuffle}, "
                f"{len(self.channel_mult)} entries in network.channel_mult), got {height} x {width}; pad the images "
                "or shorten channel_mult"
            )
        sides = [height // self.pixel_unshuffle // 2**level for level in range(len(self.channel_mult))]
        if other := sorted(set(self.attention_resolutions) - set(sides)):
            raise UserError(
                f"network.attention_resolutions: no level of the U-Net has side {other[0]} at images of {height} x "
                f"{width}; choose among {', '.join(map(str, sides))}, or write [] for attention in the middle only"
            )


def positional_embedding(position: Tensor, size: int) -> Tensor:
    """Sinusoidal embedding [n, size] of float positions [n] (Ho et al. 2020)."""
    half = size // 2
    frequencies = torch.exp(torch.arange(half, device=position.device) * (-math.log(10000) / (half - 1)))
    angles = position.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _init(layer: nn.Module, scale: float = 1.0) -> nn.Module:
    """Song et al.'s default: uniform with variance scale / mean of fan-in and fan-out, zero bias."""
    nn.init.xavier_uniform_(layer.weight, gain=math.sqrt(max(scale, 1e-10)))
    nn.init.zeros_(layer.bias)
    return layer


def _conv(inputs: int, outputs: int, kernel: int, scale: float = 1.0) -> nn.Module:
    return _init(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), scale)


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in range(min(channels // 4, 32), 0, -1) if channels % g == 0)  # the paper's: min(C/4, 32)
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """BigGAN-style residual block, optionally halving or doubling the resolution without learned weights."""

    def __init__(self, inputs: int, outputs: int, embedding: int, resample: str = "none"):
        super().__init__()
        self.resample = resample
        self.norm_in = _norm(inputs)
        self.conv_in = _conv(inputs, outputs, 3)
        self.embed = _init(nn.Linear(embedding, outputs))
        self.norm_out = _norm(outputs)
        self.conv_out = _conv(outputs, outputs, 3, scale=0)
        self.skip = _conv(inputs, outputs, 1) if inputs != outputs or resample != "none" else nn.Identity()

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self._resample(F.silu(self.norm_in(x)))
        h = self.conv_in(h) + self.embed(F.silu(embedding))[:, :, None, None]
        h = self.conv_out(F.silu(self.norm_out(h)))
        return (self.skip(self._resample(x)) + h) / math.sqrt(2)


class Attention(nn.Module):
    """Single-head self-attention over the pixels of one image."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.query = _conv(channels, channels, 1, scale=0.1)
        self.key = _conv(channels, channels, 1, scale=0.1)
        self.value = _conv(channels, channels, 1, scale=0.1)
        self.out = _conv(channels, channels, 1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        h = self.norm(x)
        query, key, value = (f(h).reshape(n, c, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        h = F.scaled_dot_product_attention(query, key, value)
        return (x + self.out(h.transpose(1, 2).reshape(n, c, height, width))) / math.sqrt(2)


class UNet(nn.Module):
    """Raw network F(x, c_noise, labels) of the preconditioned denoiser.

    Args:
        shape: image shape (C, H, W).
        num_classes: labels 0..num_classes-1; `num_classes` itself is the null label of guidance. With 0 the
            network is unconditional and ignores labels.
        params: size.

    Raises:
        UserError: the levels cannot halve the image (NetworkParams.check).
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, params: NetworkParams):
        super().__init__()
        params.check(shape)
        image_channels = shape[0] * params.pixel_unshuffle**2
        resolution = shape[1] // params.pixel_unshuffle
        self.block = params.pixel_unshuffle
        base, widths = params.channels, [params.channels * m for m in params.channel_mult]
        embedding = 4 * base
        self.base = base
        self.classes = nn.Embedding(num_classes + 1, base) if num_classes else None
        self.embed = nn.Sequential(_init(nn.Linear(base, embedding)), nn.SiLU(), _init(nn.Linear(embedding, embedding)))
        self.stem = _conv(image_channels, base, 3)

        channels, skips = base, [base]
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(params.blocks_per_level):
                block = [ResBlock(channels, width, embedding)]
                channels = width
                if resolution in params.attention_resolutions:
                    block.append(Attention(channels))
                self.down.append(nn.ModuleList(block))
                skips.append(channels)
            if level != len(widths) - 1:
                self.down.append(nn.ModuleList([ResBlock(channels, channels, embedding, "down")]))
                skips.append(channels)
                resolution //= 2

        self.middle = nn.ModuleList(
            [ResBlock(channels, channels, embedding), Attention(channels), ResBlock(channels, channels, embedding)]
        )

        self.up = nn.ModuleList()
        self._pops: list[int] = []  # how many of the first layers of each stage have a skip connection
        for level, width in reversed(list(enumerate(widths))):
            stage = []
            for _ in range(params.blocks_per_level + 1):
                stage.append(ResBlock(channels + skips.pop(), width, embedding))
                channels = width
            self._pops.append(len(stage))
            if resolution in params.attention_resolutions:
                stage.append(Attention(channels))
            if level != 0:
                stage.append(ResBlock(channels, channels, embedding, "up"))
                resolution *= 2
            self.up.append(nn.ModuleList(stage))
        self.norm = _norm(channels)
        self.head = _conv(channels, image_channels, 3, scale=0)

    def parts(self, names: Collection[Part]) -> list[nn.Parameter]:
        """The parameters of the named parts, in the order of `parameters`.

        norms: group norms. biases: biases of all layers. embeddings: embeddings of labels and noise levels, also in the
            blocks. last_level: the last blocks, at the size of the stem, with the norm and the head after them.
        """
        chosen: set[int] = set()
        for name, module in self.named_modules():
            places = {
                "norms": isinstance(module, nn.GroupNorm),
                "embeddings": name.startswith(("classes", "embed")) or name.endswith(".embed"),
                "last_level": name.startswith((f"up.{len(self.up) - 1}", "norm", "head")),
            }
            if any(places[part] for part in names if part in places):
                chosen |= {id(p) for p in module.parameters()}
        if "biases" in names:
            chosen |= {id(p) for name, p in self.named_parameters() if name.endswith("bias")}
        return [p for p in self.parameters() if id(p) in chosen]

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        """Images [n, C, H, W], noise conditioning [n], labels [n] -> [n, C, H, W]."""
        embedding = positional_embedding(c_noise, self.base)
        if self.classes is not None:
            embedding = embedding + self.classes(labels)
        embedding = self.embed(embedding)
        h = self.stem(F.pixel_unshuffle(x, self.block))
        skips = [h]
        for block in self.down:
            h = _apply(block, h, embedding)
            skips.append(h)
        h = _apply(self.middle, h, embedding)
        for stage, pops in zip(self.up, self._pops, strict=True):
            for layer in stage[:pops]:
                h = layer(torch.cat([h, skips.pop()], dim=1), embedding)
            h = _apply(stage[pops:], h, embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), self.block)


def _apply(layers: nn.ModuleList, h: Tensor, embedding: Tensor) -> Tensor:
    for layer in layers:
        h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
    return h
