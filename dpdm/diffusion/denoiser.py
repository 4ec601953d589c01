"""Parametrizations: how a raw network F becomes a denoiser D, and which noise levels it is trained on.

D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Karras et al. 2022 (EDM) eq. 7. There are the four of the paper's
ablation. Each class has the parameters and formulas of one; tensors of noise levels are [n], positive.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.params import Finite, Positive, Share, Strict

SIGMA_DATA = 1 / 3**0.5  # s_d of the paper: the std of pixels uniform in [-1, 1]
Scalings = tuple[Tensor, Tensor, Tensor, Tensor]


class _Parametrisation(Strict, ABC):
    @abstractmethod
    def scalings(self, sigma: Tensor) -> Scalings:
        """c_skip, c_out, c_in, c_noise."""

    def weight(self, sigma: Tensor) -> Tensor:
        """lambda(sigma) of the loss: 1 / c_out^2."""
        return 1 / sigma**2

    @abstractmethod
    def sigma(self, u: Tensor) -> Tensor:
        """Training noise levels: the quantile function of p(sigma) at u in (0, 1)."""

    def sample_sigma(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Training noise levels [count], drawn from p(sigma)."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        return self.sigma(u.clamp(1e-12, 1 - 1e-12)).float()


class Edm(_Parametrisation):
    """EDM table 1: ln sigma ~ N(P_mean, P_std^2); unit variance of inputs and targets at every sigma."""

    kind: Literal["edm"] = "edm"
    p_mean: Finite = Field(-1.2, description="mean of ln sigma in training")
    p_std: Positive = Field(1.2, description="standard deviation of ln sigma in training")

    def scalings(self, sigma: Tensor) -> Scalings:
        total = sigma**2 + SIGMA_DATA**2
        return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt(), sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2

    def sigma(self, u: Tensor) -> Tensor:
        return torch.exp(self.p_mean + self.p_std * torch.special.ndtri(u))


class VPrediction(_Parametrisation):
    """v-prediction (Salimans and Ho 2022) on a cosine schedule: sigma = tan(pi t / 2), t uniform."""

    kind: Literal["v"] = "v"
    log_snr_min: Finite = Field(-9.0, description="sigma = exp(-log_snr / 2): up to 90 by default")
    log_snr_max: Finite = Field(13.0, description="sigma = exp(-log_snr / 2): from 0.0015 by default")

    def scalings(self, sigma: Tensor) -> Scalings:
        """c_noise is t itself."""
        root = (1 + sigma**2).sqrt()
        return 1 / root**2, sigma / root, 1 / root, torch.atan(sigma) * (2 / math.pi)

    def weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + 1) / sigma**2

    def sigma(self, u: Tensor) -> Tensor:
        low, high = (2 / math.pi * math.atan(math.exp(-s / 2)) for s in (self.log_snr_max, self.log_snr_min))
        return torch.tan(math.pi / 2 * (low + u * (high - low)))


class Vp(_Parametrisation):
    """The VP SDE (Song et al. 2021) with t uniform. The paper prints no constants; very likely these are its own."""

    kind: Literal["vp"] = "vp"
    beta_d: Positive = 19.9
    beta_min: Positive = 0.1
    t_min: Share = 1e-5
    noise_scale: Positive = Field(1000.0, description="M: c_noise = M t")

    def scalings(self, sigma: Tensor) -> Scalings:
        one = torch.ones_like(sigma)
        return one, -sigma, 1 / (sigma**2 + 1).sqrt(), self.noise_scale * self.t(sigma)

    def t(self, sigma: Tensor) -> Tensor:
        """The inverse of sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)."""
        return ((self.beta_min**2 + 2 * self.beta_d * torch.log1p(sigma**2)).sqrt() - self.beta_min) / self.beta_d

    def sigma(self, u: Tensor) -> Tensor:
        t = self.t_min + u * (1 - self.t_min)
        return torch.expm1(self.beta_d * t**2 / 2 + self.beta_min * t).sqrt()


class Ve(_Parametrisation):
    """The VE SDE (Song et al. 2021): ln sigma uniform. The paper prints no constants; very likely these are its own."""

    kind: Literal["ve"] = "ve"
    sigma_min: Positive = 0.002
    sigma_max: Positive = 80.0

    def scalings(self, sigma: Tensor) -> Scalings:
        one = torch.ones_like(sigma)
        return one, sigma, one, (sigma / 2).log()

    def sigma(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


Parametrisation = Annotated[Edm | VPrediction | Vp | Ve, Field(discriminator="kind")]
Precision = Literal["float32", "bf16"]


class Denoiser(nn.Module):
    """D(x; sigma) of a raw network.

    Forward: noisy images [n, C, H, W], noise levels sigma [n] > 0, labels [n] -> denoised images.

    Args:
        precision: with bf16, the layers of the network compute in bfloat16 (torch.autocast), and everything else in
            float32.
    """

    def __init__(self, network: nn.Module, parametrisation: Parametrisation, precision: Precision = "float32"):
        super().__init__()
        self.network, self.parametrisation, self.precision = network, parametrisation, precision

    def output(self, x: Tensor, c_noise: Tensor, labels: Tensor) -> Tensor:
        """The output of the network, [n, C, H, W] in the dtype of `x`."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network(x, c_noise, labels).to(x.dtype)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        c_skip, c_out, c_in, c_noise = self.parametrisation.scalings(sigma)
        output = self.output(_expand(c_in) * x, c_noise, labels)
        return _expand(c_skip) * x + _expand(c_out) * output

    def weight(self, sigma: Tensor, labels: Tensor) -> Tensor:
        """The weight [n] of the loss at noise levels and labels [n]."""
        return self.parametrisation.weight(sigma)


def _expand(values: Tensor) -> Tensor:
    return values[:, None, None, None]
