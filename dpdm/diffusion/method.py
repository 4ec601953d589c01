"""DPDM: a diffusion model trained by DP-SGD (Dockhorn, Cao, Vahdat, Kreis 2022, algorithm 1).

Released: the noised mean gradient of every step. Sensitivity: max_grad_norm, since an image's K noise draws
are averaged before its gradient is clipped. Everything after (Adam, EMA, sampling) is post-processing.
To compare with: the DPDM rows of published.csv, `FID` and `Acc` being two samplers of one model.
Cost: DP-SGD, its batches multiplied by K.
Published as: DPDM.
"""

import copy
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, RootModel, model_validator
from torch import Tensor, nn

from dpdm.data import ImageMeta, to_uint8
from dpdm.diffusion import samplers
from dpdm.diffusion.denoiser import Denoiser, Edm, Parametrisation
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.network import NetworkParams, UNet
from dpdm.errors import UserError
from dpdm.params import Count, Fraction, NotNegative, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "denoiser"


class ModelParams(Strict):
    """The part of the recipe that sampling needs as well."""

    network: NetworkParams = Field(NetworkParams(), description="size of the U-Net")
    parametrisation: Parametrisation = Field(
        Edm(), description="how the denoiser is parametrized, and its noise levels"
    )
    label_dropout: Fraction = Field(
        0.1, description="probability that an image is trained without its label, which guidance needs"
    )
    conditional: bool = Field(True, description="false: labels are ignored")


class Params(ModelParams):
    """The recipe; defaults are the paper's where it has one value for all data sets."""

    dp: DpSgdParams
    noise_multiplicity: Count = Field(
        32, description="K, noise draws per image, averaged before its gradient is clipped"
    )
    lr: Positive = Field(3e-4, description="rate of Adam")
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="`linear`: the rate falls to 0 over the steps; not in the paper"
    )
    ema_decay: Fraction = Field(0.999, description="of the weights that are kept, per step")


class _Sampler(Strict):
    num_sampling_steps: Count = Field(50, description="N, steps of the sampler")
    sigma_min: Positive = Field(0.002, description="lowest noise level")
    sigma_max: Positive = Field(80.0, description="highest noise level")
    rho: Positive = Field(7.0, description="how the steps are spread over the noise levels (Karras et al. 2022)")
    guidance: NotNegative = Field(0.0, description="w of classifier-free guidance; doubles the cost if > 0")
    max_batch_size: Count = Field(1000, description="images that are drawn at a time: memory only")

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min} must be below sigma_max = {self.sigma_max}")
        return self

    def sigmas(self) -> list[float]:
        """The schedule."""
        return samplers.karras_schedule(self.num_sampling_steps, self.sigma_min, self.sigma_max, self.rho)


class Ddim(_Sampler):
    """Deterministic; N evaluations for N steps."""

    kind: Literal["ddim"] = "ddim"

    def run(self, denoise: samplers.DenoiseFn, noise: samplers.NoiseFn) -> Tensor:
        """Draws one batch."""
        return samplers.ddim(denoise, noise, self.sigmas())


class StochasticDdim(_Sampler):
    """Fresh noise at every step; N evaluations."""

    kind: Literal["stochastic_ddim"]

    def run(self, denoise: samplers.DenoiseFn, noise: samplers.NoiseFn) -> Tensor:
        """Draws one batch."""
        return samplers.stochastic_ddim(denoise, noise, self.sigmas())


class Churn(_Sampler):
    """EDM's stochastic Heun sampler; 2 N - 1 evaluations."""

    kind: Literal["churn"]
    s_churn: NotNegative = Field(description="how much noise is added, over all steps")
    s_min: NotNegative = Field(description="lowest noise level at which noise is added")
    s_max: Positive = Field(50.0, description="highest noise level at which noise is added")
    s_noise: Positive = Field(1.0, description="factor on the standard deviation of the added noise")

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.s_min > self.s_max:
            raise ValueError(f"s_min = {self.s_min} must not be above s_max = {self.s_max}")
        return self

    def run(self, denoise: samplers.DenoiseFn, noise: samplers.NoiseFn) -> Tensor:
        """Draws one batch."""
        names = ("s_churn", "s_min", "s_max", "s_noise")
        return samplers.churn(denoise, noise, self.sigmas(), **{name: getattr(self, name) for name in names})


class SamplerParams(RootModel[Annotated[Ddim | StochasticDdim | Churn, Field(discriminator="kind")]]):
    """One entry of `samplers:`; `kind` chooses: ddim (the default), stochastic_ddim or churn."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "ddim", **value} if isinstance(value, dict) else value


class Model:
    """The averaged denoiser.

    Args:
        network: raw U-Net holding the EMA weights.
        shape: image shape (C, H, W); num_classes: 0 if unconditional; params: the recipe it was trained by.
    """

    def __init__(self, network: UNet, shape: tuple[int, int, int], num_classes: int, params: "ModelParams"):
        self.network, self.shape, self.num_classes, self.params = network, shape, num_classes, params

    def to(self, device: str | torch.device) -> None:
        """Where `sample` computes from now on."""
        self.network.to(device)

    @torch.no_grad()
    def sample(self, labels: np.ndarray, sampler: SamplerParams, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i draws from its own stream.

        Raises:
            UserError: guidance on a model that never learnt to go without a label.
        """
        chosen = sampler.root
        check_guidance(chosen.guidance, self.num_classes, self.params)
        denoiser = Denoiser(self.network, self.params.parametrisation).eval()
        device = next(denoiser.parameters()).device
        out = np.empty((len(labels), *self.shape), np.uint8)
        for start in range(0, len(labels), chosen.max_batch_size):
            y = torch.from_numpy(labels[start : start + chosen.max_batch_size]).to(device)
            source = rng.noise_per_image("image", start, len(y), self.shape)

            def with_labels(y: Tensor) -> samplers.DenoiseFn:
                return lambda x, sigma: denoiser(x, x.new_full((len(x),), sigma), y)

            denoise = samplers.guided(
                with_labels(y), with_labels(torch.full_like(y, self.num_classes)), chosen.guidance
            )
            images = chosen.run(denoise, lambda source=source: torch.from_numpy(source()).to(device))
            out[start : start + len(y)] = to_uint8(images)
        return out

    def state(self) -> dict[str, Any]:
        """Weights and what rebuilds the network."""
        return {
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "params": self.params.model_dump(mode="json"),
            "weights": {name: value.cpu() for name, value in self.network.state_dict().items()},
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        """The inverse of `state`."""
        params = ModelParams.model_validate(state["params"])
        network = UNet(tuple(state["shape"]), state["num_classes"], params.network)
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

    def check_sampler(self, params: Params, sampler: SamplerParams, meta: ImageMeta) -> None:
        """Refuses before training what `sample` would refuse after it."""
        check_guidance(sampler.root.guidance, meta.num_classes if params.conditional else 0, params)

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains the denoiser; returns the EMA of its weights at the last step."""
        meta = private.meta
        classes = meta.num_classes if params.conditional else 0
        with rng.torch_default("init"):
            network = UNet(meta.shape, classes, params.network).to(private.device)
        averaged = copy.deepcopy(network).requires_grad_(False)
        denoiser = Denoiser(network, params.parametrisation)
        optimizer = torch.optim.Adam(network.parameters(), lr=params.lr)
        dp = private.dpsgd(MECHANISM, denoiser, optimizer, params.dp, params.noise_multiplicity, keep=[averaged])

        def losses(images: Tensor, labels: Tensor) -> Tensor:
            return row_losses(
                dp.module,
                params.parametrisation,
                images,
                labels,
                noise_multiplicity=params.noise_multiplicity,
                label_dropout=params.label_dropout,
                null_label=classes,
            )

        for step in log.track(dp, len(dp)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(params, step.index, len(dp))
            step.update(losses)
            update_ema(averaged, network, params.ema_decay, step.index)
            log.record(step.index, released_grad_norm=dp.released_grad_norm)
        kept = ModelParams(**{name: getattr(params, name) for name in ModelParams.model_fields})
        return Model(averaged, meta.shape, classes, kept)


def check_guidance(guidance: float, num_classes: int, params: ModelParams) -> None:
    """Raises UserError where a model cannot be guided: it never learnt to go with a label, or without one."""
    if guidance > 0 and not (num_classes and params.label_dropout > 0):
        raise UserError("guidance needs a conditional model trained with label_dropout > 0; set guidance: 0")


def learning_rate(params: Params, index: int, steps: int) -> float:
    """The rate of step index = 0, 1, ..., steps - 1, by `lr_schedule`; never 0."""
    return params.lr * (1 - index / steps) if params.lr_schedule == "linear" else params.lr


@torch.no_grad()
def update_ema(averaged: nn.Module, network: nn.Module, decay: float, index: int) -> None:
    """Exponential moving average with warm-up: decay min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ..."""
    n = index + 1
    decay = min(decay, (1 + n) / (10 + n))
    for target, source in zip(averaged.parameters(), network.parameters(), strict=True):
        target.lerp_(source, 1 - decay)
