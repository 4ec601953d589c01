"""DPDM: a diffusion model trained by DP-SGD (Dockhorn, Cao, Vahdat, Kreis 2022, algorithm 1).

Released: the noised mean gradient of every step. Sensitivity: max_grad_norm, since an image's K noise draws
are averaged before its gradient is clipped. Everything after (Adam, EMA, sampling) is post-processing.
"""

import copy
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from dpdm.config import Finite, Strict
from dpdm.data import ImageMeta, to_uint8
from dpdm.diffusion.denoiser import EdmDenoiser
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.diffusion.samplers import ddim, karras_schedule
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "denoiser"
Fraction = Annotated[Finite, Field(ge=0, le=1)]


class Params(Strict):
    """The recipe; defaults are the paper's where it has one value for all data sets."""

    dp: DpSgdParams
    network: NetworkParams = NetworkParams()
    noise_multiplicity: Annotated[int, Field(ge=1)] = 32  # K
    lr: Annotated[Finite, Field(gt=0)] = 3e-4  # Adam
    p_mean: Finite = -1.2  # ln sigma ~ N(P_mean, P_std^2) in training
    p_std: Annotated[Finite, Field(gt=0)] = 1.2
    label_dropout: Fraction = 0.1
    ema_decay: Fraction = 0.999


class SamplerParams(Strict):
    """Deterministic DDIM on Karras' schedule."""

    num_sampling_steps: Annotated[int, Field(ge=1)] = 50
    sigma_min: Annotated[Finite, Field(gt=0)] = 0.002
    sigma_max: Annotated[Finite, Field(gt=0)] = 80.0
    rho: Annotated[Finite, Field(gt=0)] = 7.0
    max_batch_size: Annotated[int, Field(ge=1)] = 1000  # memory only


class Model:
    """The averaged denoiser.

    Args:
        network: raw U-Net holding the EMA weights.
        shape, num_classes, params: what it was built from.
    """

    def __init__(self, network: UNet, shape: tuple[int, int, int], num_classes: int, params: NetworkParams):
        self.network, self.shape, self.num_classes, self.params = network, shape, num_classes, params

    @torch.no_grad()
    def sample(self, labels: np.ndarray, sampler: SamplerParams, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i draws from its own stream."""
        denoiser = EdmDenoiser(self.network).eval()
        device = next(denoiser.parameters()).device
        sigmas = karras_schedule(sampler.num_sampling_steps, sampler.sigma_min, sampler.sigma_max, sampler.rho)
        out = np.empty((len(labels), *self.shape), np.uint8)
        for start in range(0, len(labels), sampler.max_batch_size):
            y = torch.from_numpy(labels[start : start + sampler.max_batch_size]).to(device)
            z = torch.from_numpy(rng.normal_per_image("image", start, len(y), self.shape)).to(device)

            def denoise(x: Tensor, sigma: Tensor, y: Tensor = y) -> Tensor:
                return denoiser(x, sigma, y)

            out[start : start + len(y)] = to_uint8(ddim(denoise, z, sigmas))
        return out

    def state(self) -> dict[str, Any]:
        """Weights and what rebuilds the network."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "network": self.params.model_dump(mode="json"),
            "weights": {name: value.cpu() for name, value in self.network.state_dict().items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        """The inverse of `state`."""
        params = NetworkParams.model_validate(state["network"])
        network = UNet(tuple(state["shape"]), state["num_classes"], params)
        network.load_state_dict(state["weights"])
        return cls(network, tuple(state["shape"]), state["num_classes"], params)


class DPDM:
    """The method, by the contract of dpdm.method."""

    Params = Params
    SamplerParams = SamplerParams
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """One DP-SGD run; the noise multiplicity K does not enter the accounting."""
        params.network.check(meta.shape)
        return (params.dp.mechanism(MECHANISM, meta.n),)

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains the denoiser; returns the EMA of its weights at the last step."""
        meta = private.meta
        with rng.torch_default("init"):
            network = UNet(meta.shape, meta.num_classes, params.network).to(private.device)
        averaged = copy.deepcopy(network).requires_grad_(False)
        denoiser = EdmDenoiser(network)
        optimizer = torch.optim.Adam(network.parameters(), lr=params.lr)
        dp = private.dpsgd(MECHANISM, denoiser, optimizer, params.dp, rows_per_example=params.noise_multiplicity)
        for step in log.track(dp, len(dp)):
            generator = rng.torch("diffusion", step.index)

            def losses(images: Tensor, labels: Tensor, generator: torch.Generator = generator) -> Tensor:
                return row_losses(
                    dp.module,
                    images,
                    labels,
                    noise_multiplicity=params.noise_multiplicity,
                    p_mean=params.p_mean,
                    p_std=params.p_std,
                    label_dropout=params.label_dropout,
                    null_label=meta.num_classes,
                    generator=generator,
                )

            step.update(losses)
            update_ema(averaged, network, params.ema_decay, step.index)
            log.record(step.index, released_grad_norm=dp.released_grad_norm)
        return Model(averaged, meta.shape, meta.num_classes, params.network)


@torch.no_grad()
def update_ema(averaged: nn.Module, network: nn.Module, decay: float, index: int) -> None:
    """Exponential moving average with warm-up: decay min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ..."""
    n = index + 1
    decay = min(decay, (1 + n) / (10 + n))
    for target, source in zip(averaged.parameters(), network.parameters(), strict=True):
        target.lerp_(source, 1 - decay)
