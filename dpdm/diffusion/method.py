"""DPDM: a diffusion model trained by DP-SGD with noise multiplicity (Dockhorn, Cao, Vahdat, Kreis 2022,
arXiv 2210.09929, algorithm 1).

Released: the noised mean gradient of every step. Sensitivity: max_grad_norm, since an image's K noise draws are
averaged before its gradient is clipped. Everything after (Adam, EMA, sampling) is post-processing.
Cost: DP-SGD, its batches multiplied by K.
Published as: DPDM.
"""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import ConfigDict, Field, RootModel, model_validator
from torch import Tensor

from dpdm import departures
from dpdm.data import ImageMeta
from dpdm.diffusion import samplers
from dpdm.diffusion.denoiser import Denoiser, Edm, Parametrisation, Precision
from dpdm.diffusion.loss import row_losses
from dpdm.diffusion.network import NetworkParams, Part, UNet
from dpdm.errors import UserError
from dpdm.networks import NetworkModel, update_ema
from dpdm.params import Count, Finite, Fraction, NotNegative, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "denoiser"
Decay = Annotated[Finite, Field(ge=0, lt=1)]
SPREAD_TOLERANCE = 0.05
# The paper's noise draws per training image (K times epochs), by side of the images and whether they have labels.
PAPER_DRAWS = {(28, True): 32 * 300, (32, True): 8 * 500, (32, False): 32 * 300, (64, False): 8 * 300}


class ModelParams(Strict):
    """The part of the recipe that sampling also needs."""

    network: NetworkParams = Field(NetworkParams(), description="size of the U-Net")
    parametrisation: Parametrisation = Field(
        Edm(), description="how the denoiser is parametrized, and its noise levels"
    )
    label_dropout: Fraction = Field(
        0.1, description="probability that an image is trained without its label, which guidance needs"
    )
    conditional: bool = Field(True, description="false: labels are ignored")


class Params(ModelParams):
    """The recipe; defaults are the paper's if it has one value for all data sets."""

    dp: DpSgdParams
    noise_multiplicity: Count = Field(
        32, description="K, noise draws per image, averaged before its gradient is clipped"
    )
    lr: Positive = Field(3e-4, description="rate of Adam")
    lr_schedule: Literal["constant", "linear"] = Field(
        "constant", description="`linear`: the rate falls to 0 over the steps; not in the paper"
    )
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="of Adam: what its two moving averages keep at each step"
    )
    ema_decay: Fraction = Field(0.999, description="of the weights that are kept, per step")
    train_only: Annotated[tuple[Part, ...], Field(strict=False)] = Field(
        (),
        description="parts of the network that DP-SGD trains: norms, biases, embeddings, last_level; default: all. "
        "Stages of a warm start train all, unless their `training` has this key. Not in the paper",
    )
    precision: Precision = Field(
        "float32",
        description="of the layers in training. bf16 is faster on processors with avx512_bf16 or AMX, much slower on "
        "others; norms, clipping, sums, noise and Adam stay in float32. Not in the paper",
    )


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
        try:
            levels = self.levels()
            falling = all(low < high < math.inf for high, low in pairwise(levels))
        except OverflowError:
            falling = False
        if not falling:
            raise ValueError(f"rho = {self.rho:g} gives no falling noise levels; take a value from 1 to 100")
        return self

    def levels(self) -> list[float]:
        """The noise levels, decreasing."""
        return samplers.karras_schedule(self.num_sampling_steps, self.sigma_min, self.sigma_max, self.rho)

    def run(self, denoise: samplers.DenoiseFn, noise: samplers.NoiseFn) -> Tensor:
        """Draws one batch by the function of samplers.py that `kind` names."""
        churn = {name: getattr(self, name) for name in type(self).model_fields if name.startswith("s_")}
        return getattr(samplers, self.kind)(denoise, noise, self.levels(), **churn)


class Ddim(_Sampler):
    """Deterministic; N evaluations for N steps."""

    kind: Literal["ddim"] = "ddim"


class StochasticDdim(_Sampler):
    """Fresh noise at every step; N evaluations."""

    kind: Literal["stochastic_ddim"]


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


class Dpmpp2m(_Sampler):
    """DPM-Solver++(2M), deterministic, of second order; N evaluations. Not in the paper."""

    kind: Literal["dpmpp_2m"]


class SamplerParams(RootModel[Annotated[Ddim | StochasticDdim | Churn | Dpmpp2m, Field(discriminator="kind")]]):
    """One entry of `samplers:`; `kind` chooses: ddim (the default), stochastic_ddim, churn or dpmpp_2m."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "ddim", **value} if isinstance(value, dict) else value


class Model(NetworkModel):
    """The averaged denoiser; its facts are image shape, number of classes (0: unconditional) and recipe."""

    denoiser_type = Denoiser

    @staticmethod
    def build(shape: Sequence[int], num_classes: int, params: dict[str, Any]) -> UNet:
        return UNet(tuple(shape), num_classes, ModelParams.model_validate(params).network)

    def sample(self, labels: np.ndarray, sampler: SamplerParams, rng: Streams) -> np.ndarray:
        """Images uint8 [n, C, H, W] for `labels`; image i draws from its own stream.

        Raises:
            UserError: guidance on a model that was not trained also without labels.
        """
        chosen, classes = sampler.root, self.facts["num_classes"]
        params = ModelParams.model_validate(self.facts["params"])
        check_guidance(chosen.guidance, classes, params)
        denoiser = self.denoiser_type(self.network, params.parametrisation)

        def with_labels(y: Tensor) -> samplers.DenoiseFn:
            return lambda x, sigma: denoiser(x, x.new_full((len(x),), sigma), y)

        def batch(start: int, y: Tensor) -> Tensor:
            source = rng.noise_per_image("image", start, len(y), tuple(self.facts["shape"]))
            without = with_labels(torch.full_like(y, classes))
            denoise = samplers.guided(with_labels(y), without, chosen.guidance)
            return chosen.run(denoise, lambda: torch.from_numpy(source()).to(y.device))

        return self.draw(labels, chosen.max_batch_size, batch)


class DPDM:
    Params = Params
    SamplerParams = SamplerParams
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        params.network.check(meta.shape)
        return (params.dp.mechanism(MECHANISM, meta.n),)

    def check_sampler(self, params: Params, sampler: SamplerParams, meta: ImageMeta) -> None:
        """Refuses, before training, a sampler that `sample` would refuse after it."""
        check_guidance(sampler.root.guidance, meta.num_classes if params.conditional else 0, params)

    def doubts(self, params: Params, sampler: SamplerParams, meta: ImageMeta) -> list[str]:
        """A warning if the error of the sampler changes the spread of the images."""
        run = sampler.root
        ratios = samplers.spread(run.run, run.num_sampling_steps + 1)
        if abs(ratios - 1).max() <= SPREAD_TOLERANCE:
            return []
        return [
            f"with an exact denoiser, images have {ratios.min():.2f} to {ratios.max():.2f} times the spread (standard "
            "deviation) of the data; take kind: dpmpp_2m or more num_sampling_steps, or say in `scale` that it is off"
        ]

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        """K, always; the side of the images, if the paper does not have it; and the noise draws per training image."""
        draws = params.noise_multiplicity * params.dp.expected_batch_size * params.dp.steps / meta.n
        published = PAPER_DRAWS.get((meta.shape[1], params.conditional and meta.num_classes > 1), 32 * 300)
        return (
            f"K = {params.noise_multiplicity}",
            *departures.side(meta, *(side for side, _ in PAPER_DRAWS)),
            *departures.factor("draws", draws, published),
        )

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains the denoiser; returns the EMA of its weights at the last step."""
        meta = private.meta
        classes = meta.num_classes if params.conditional else 0
        with rng.torch_default("init"):
            network = UNet(meta.shape, classes, params.network).to(private.device)
        averaged = train_denoiser(
            private, params, Denoiser(network, params.parametrisation, params.precision), classes, log
        )
        kept = params.model_dump(mode="json", include=set(ModelParams.model_fields))
        return Model(averaged, shape=list(meta.shape), num_classes=classes, params=kept)


def train_denoiser(private: PrivateData, params: Params, denoiser: Denoiser, classes: int, log: Log) -> UNet:
    """Trains the denoiser's network by DP-SGD; returns the EMA of its weights at the last step.

    With `train_only` the mechanism is the same on fewer coordinates: only their gradient is clipped and noised, and all
    other parameters keep their initial values. At the same multiplier, the noise in fewer coordinates has a smaller
    norm.

    With `precision: bf16` the layers compute outputs and per-example gradients in bfloat16. Such a gradient is less
    exact, but still depends on only one record. It becomes float32 before its norm is computed; norms, clipping, sums,
    noise, weights and Adam are as in float32. So one record moves the sum by at most max_grad_norm, as in float32.

    Args:
        classes: number of classes, which is also the null label; 0 for an unconditional network.
    """
    network = denoiser.network
    averaged = copy.deepcopy(network).requires_grad_(False)
    if params.train_only:
        for p in network.requires_grad_(False).parts(params.train_only):
            p.requires_grad_(True)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=params.lr, betas=params.betas)
    dp = private.dpsgd(MECHANISM, denoiser, optimizer, params.dp, params.noise_multiplicity, keep=[averaged])

    def losses(images: Tensor, labels: Tensor) -> Tensor:
        k, dropout = params.noise_multiplicity, params.label_dropout
        return row_losses(dp.module, denoiser, images, labels, k, dropout, null_label=classes)

    for step in log.track(dp, len(dp)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(params, step.index, len(dp))
        step.update(losses)
        update_ema(averaged, network, params.ema_decay, step.index + 1)
        log.record(step.index, released_grad_norm=dp.released_grad_norm)
    return averaged


def check_guidance(guidance: float, num_classes: int, params: ModelParams) -> None:
    """Raises UserError for guidance of a model that was not trained both with and without labels."""
    if guidance > 0 and not (num_classes and params.label_dropout > 0):
        raise UserError("guidance needs a conditional model trained with label_dropout > 0; set guidance: 0")


def learning_rate(params: Params, index: int, steps: int) -> float:
    """The rate at step index = 0, 1, ..., steps - 1, by `lr_schedule`; never 0."""
    return params.lr * (1 - index / steps) if params.lr_schedule == "linear" else params.lr
