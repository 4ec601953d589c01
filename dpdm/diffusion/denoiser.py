"""Preconditioning: wraps a raw network F into a denoiser D(x, sigma, labels) (Karras et al. 2022, EDM)."""

import torch
from torch import Tensor, nn

SIGMA_DATA = 1 / 3**0.5  # s_d of the paper: the std of images spread evenly over [-1, 1]


class EdmDenoiser(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (EDM eq. 7, coefficients of table 1).

    Forward: noisy images [n, C, H, W], noise levels sigma [n] > 0, labels [n] -> denoised images.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = edm_scalings(sigma)
        output = self.network(_expand(c_in) * x, c_noise, labels)
        return _expand(c_skip) * x + _expand(c_out) * output


def edm_scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """c_skip, c_out, c_in, c_noise at noise levels sigma [n] (EDM table 1)."""
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4


def edm_weight(sigma: Tensor) -> Tensor:
    """lambda(sigma) = 1 / c_out^2: equal effective loss at all noise levels (EDM table 1)."""
    return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2


def sample_sigma(count: int, p_mean: float, p_std: float, generator: torch.Generator) -> Tensor:
    """Training noise levels [count]: ln sigma ~ N(P_mean, P_std^2) (EDM table 1)."""
    return torch.exp(p_mean + p_std * torch.randn(count, generator=generator))


def _expand(values: Tensor) -> Tensor:
    return values[:, None, None, None]
