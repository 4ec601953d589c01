"""Schedules and samplers as pure functions of a denoiser."""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]  # (x [n, C, H, W], sigma [n]) -> denoised x


def karras_schedule(steps: int, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """Noise levels [steps], falling from sigma_max to sigma_min (Karras et al. 2022, eq. 5, without the zero)."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    return (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho


def ddim(denoiser: Denoiser, z: Tensor, sigmas: Tensor) -> Tensor:
    """DDIM (Song et al. 2021): Euler steps of dx/dsigma = (x - D) / sigma, then one last denoising.

    Args:
        z: standard normal start [n, C, H, W].
        sigmas: falling noise levels; len(sigmas) evaluations of the denoiser.
    """
    x = z * float(sigmas[0])
    for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        denoised = denoiser(x, x.new_full((len(x),), sigma))
        x = x + (following - sigma) * (x - denoised) / sigma
    return denoiser(x, x.new_full((len(x),), float(sigmas[-1])))
