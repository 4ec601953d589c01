"""The judging networks of DPImageBench: residual networks for small images, sized for a GPU.

Each has a 3x3 convolution, three stages of residual blocks (the second and third at half the resolution of the previous
stage), and a linear layer on the means. Sizes and dropout are those of the benchmark's runs on MNIST and Fashion-MNIST
(Gong et al. 2025); for CIFAR it uses larger ones. The code follows the papers of the networks; two of the blocks are
torchvision's.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dpdm.evaluation import _torchvision_cpu

WIDE_DROPOUT = 0.3


def resnet(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-110 (He et al. 2016, section 4.2): images in [-1, 1] of `shape` (C, H, W) -> logits."""
    _torchvision_cpu.ensure()
    from torchvision.models.resnet import BasicBlock

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        return BasicBlock(inputs, outputs, stride, _shortcut(inputs, outputs, stride))

    return _stages(shape, num_classes, block, 18, (16, 32, 64), 16, start=_after(16))


def resnext(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNeXt-29, 8x64d (Xie et al. 2017, section 5.3): images in [-1, 1] of `shape` (C, H, W) -> logits."""
    _torchvision_cpu.ensure()
    from torchvision.models.resnet import Bottleneck

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        planes = outputs // Bottleneck.expansion
        return Bottleneck(inputs, planes, stride, _shortcut(inputs, outputs, stride), groups=8, base_width=64)

    return _stages(shape, num_classes, block, 3, (256, 512, 1024), 64, start=_after(64))


def wrn(shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """WRN-40-4 with dropout (Zagoruyko and Komodakis 2016): images in [-1, 1] of `shape` (C, H, W) -> logits."""
    return _stages(shape, num_classes, _WideBlock, 6, (64, 128, 256), 16, end=_after(256))


class _WideBlock(nn.Module):
    """A block with activation before convolution, so that no activation follows the sum of the blocks."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.activation = nn.Sequential(*_after(inputs))
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            *_after(outputs),
            nn.Dropout(WIDE_DROPOUT),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x)
        return self.convolutions(active) + (x if self.shortcut is None else self.shortcut(active))


def _stages(
    shape: tuple[int, int, int],
    num_classes: int,
    block: Callable[[int, int, int], nn.Module],
    blocks: int,
    widths: tuple[int, ...],
    inputs: int,
    start: Sequence[nn.Module] = (),
    end: Sequence[nn.Module] = (),
) -> nn.Module:
    """`blocks` blocks in each stage of `widths` channels, after a convolution to `inputs` channels and `start`."""
    layers = [nn.Conv2d(shape[0], inputs, 3, padding=1, bias=False), *start]
    for stage, width in enumerate(widths):
        for number in range(blocks):
            layers.append(block(inputs, width, 2 if stage and not number else 1))
            inputs = width
    network = nn.Sequential(*layers, *end, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network


def _after(channels: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(channels), nn.ReLU()]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """The layers through which a block's input is added to its output; none if the shapes are equal."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
