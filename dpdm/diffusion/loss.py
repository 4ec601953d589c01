"""The DPDM objective: one loss per row, noise_multiplicity rows per image (Dockhorn et al. 2022, eq. 7)."""

import torch
from torch import Tensor, nn

from dpdm.diffusion.denoiser import Denoiser


def row_losses(
    module: nn.Module,
    denoiser: Denoiser,
    images: Tensor,
    labels: Tensor,
    noise_multiplicity: int,
    label_dropout: float,
    null_label: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Denoising losses lambda(sigma) * mean((D(x + n, sigma) - x)^2), draw-major.

    Args:
        module: computes the output of `denoiser` (in a private step, with per-example gradients).
        denoiser: gives the training noise levels and the weight of the loss.
        images: [B, C, H, W] in [-1, 1].
        labels: [B]; dropped to `null_label` with probability `label_dropout`, once per image.
        noise_multiplicity: K, independent (sigma, n) draws per image.
        generator: on the CPU; None means torch's default, which a private step seeds for every chunk.

    Returns:
        [K * B]; row k * B + b is draw k of image b. Their mean over k is the image's loss l_b.
    """
    dropped = torch.rand(len(labels), generator=generator) < label_dropout
    labels = labels.masked_fill(dropped.to(labels.device), null_label).repeat(noise_multiplicity)
    x = images.repeat(noise_multiplicity, 1, 1, 1)
    sigma = denoiser.parametrisation.sample_sigma(len(x), generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device) * sigma[:, None, None, None]
    error = module(x + noise, sigma, labels) - x
    return denoiser.weight(sigma, labels) * error.square().mean(dim=(1, 2, 3))
