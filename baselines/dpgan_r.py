"""DPGANr: a GAN whose discriminator is trained by DP-SGD, well tuned (Bie, Kamath, Zhang 2023, TMLR,
arXiv 2302.02936).

Noise slows down the discriminator D, and the generator G gets ahead of it. The remedy is n_D steps of D for each step
of G, fixed or adaptive, and larger batches. D minimizes the binary cross-entropy over B records and as many fakes, with
each row clipped separately; G minimizes softplus(-D). Adam for both, networks without normalization.

Adaptive n_D. Before each G step, D's accuracy on the fakes of that step enters a moving average, which starts at the
first accuracy. After at least `patience` G steps at the present n_D, if the average is at most `threshold`, n_D
increases to the next value of the ladder. This uses only fakes and released weights, so it costs no privacy.

Released: the discriminator's noised mean gradient of every step. Sensitivity max_grad_norm under adding or removing one
record, since the number of fakes is the constant expected batch size and the mean is over that constant too. The
published accounting (RDP, Poisson batches) was recomputed and holds.
Cost: DP-SGD.
Published as: DPGANr (Private GANs revisited).

Networks: `ConvGenerator` and `ConvDiscriminator` of baselines._gan, width m; at 16x16 and 8x8 one resolution level is
dropped. Published on MNIST at epsilon 10 (FID on 10,000 test images / accuracy of a CNN), tuned on MNIST itself: n_D =
50: 19.4 / 93.0; adaptive: 13.3 / 94.4; without privacy (batch 128, 45,000 steps, n_D = 1): 3.4 / 97.1.

Defaults are the paper's for MNIST at epsilon 10 with n_D fixed; config/paper.yaml has its other recipes.
"""

from itertools import pairwise
from typing import Annotated, Any, Self

import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize
from dpdm.params import Count, Fraction, Natural, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "discriminator"
BETAS = (0.5, 0.999)  # of Adam, for both networks


class Adaptive(Strict):
    """When n_D increases, and to which values."""

    threshold: Fraction = Field(description="n_D climbs where D's average accuracy on fakes is at or below this")
    ladder: Annotated[tuple[Count, ...], Field(strict=False, min_length=1)] = (
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000,
    )  # fmt: skip
    ema_decay: Fraction = Field(0.99, description="of that average, per generator step")
    patience: Natural = Field(200, description="generator steps on each rung at least")

    @model_validator(mode="after")
    def _climbs(self) -> Self:
        if any(low >= high for low, high in pairwise(self.ladder)):
            raise ValueError(f"ladder = {list(self.ladder)} must rise from rung to rung")
        return self


class Params(Strict):
    """The recipe; defaults are the paper's for 28x28 at epsilon 10."""

    dp: DpSgdParams = DpSgdParams(expected_batch_size=128, steps=450_000, max_grad_norm=1.0)
    d_steps_per_g_step: Count = Field(
        50, description="n_D, discriminator steps per generator step; with `adaptive`, where it starts"
    )
    adaptive: Adaptive | None = Field(None, description="when n_D climbs; null: never")
    width: Annotated[int, Field(ge=2)] = Field(128, description="m, the width of both networks")
    latent_dim: Count = Field(128, description="dimension of the generator's noise")
    lr: Positive = Field(2e-4, description="rate of Adam, of both networks")

    @model_validator(mode="after")
    def _start(self) -> Self:
        if self.adaptive and "d_steps_per_g_step" not in self.model_fields_set:
            raise ValueError("adaptive needs d_steps_per_g_step, where it starts; the paper's is 1")
        return self


class Schedule:
    """Counts D steps and reports when a G step is due; raises n_D by the rule of `adaptive`, if there is one.

    Attributes:
        d_steps_per_g_step: n_D now.
        accuracy: the moving average of D's accuracy on fakes, None before the first G step.
    """

    def __init__(self, d_steps_per_g_step: int, adaptive: Adaptive | None = None):
        self.d_steps_per_g_step, self.adaptive = d_steps_per_g_step, adaptive
        self.accuracy: float | None = None
        self._d_steps = 0  # since the last G step
        self._g_steps = 0  # at this n_D

    def d_step_done(self) -> bool:
        """Counts one D step; returns whether a G step is due."""
        self._d_steps += 1
        return self._d_steps >= self.d_steps_per_g_step

    def g_step_done(self, accuracy: float) -> None:
        """Counts one G step; `accuracy` is D's share of correct answers on the step's fakes before the step."""
        self._d_steps = 0
        rule = self.adaptive
        if rule is None:
            return
        before = accuracy if self.accuracy is None else self.accuracy
        self.accuracy = rule.ema_decay * before + (1 - rule.ema_decay) * accuracy
        higher = [rung for rung in rule.ladder if rung > self.d_steps_per_g_step]
        beaten, stayed = self.accuracy <= rule.threshold, self._g_steps >= rule.patience
        if beaten and stayed and higher:
            self.d_steps_per_g_step, self._g_steps = higher[0], 0
        self._g_steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "adaptive"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class DPGANr:
    Params = Params
    SamplerParams = BatchSize
    Model = _gan.Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        _gan.check_conv_shape(meta.shape)
        _gan.check_generator_steps(params.dp, params.d_steps_per_g_step)
        return (params.dp.mechanism(MECHANISM, meta.n),)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _gan.departures(params, meta, width="width")

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> _gan.Model:
        """Trains both networks; the generator of the last step is the model."""
        count = params.dp.expected_batch_size
        model, d, view = _gan.pair(private, rng, "conv", params.width, params.latent_dim)
        g = model.network
        g_optimizer = torch.optim.Adam(g.parameters(), lr=params.lr, betas=BETAS)
        d_optimizer = torch.optim.Adam(d.parameters(), lr=params.lr, betas=BETAS)
        schedule = Schedule(params.d_steps_per_g_step, params.adaptive)
        dp = private.dpsgd(MECHANISM, d, d_optimizer, params.dp, keep=[g, g_optimizer, schedule])
        for step in log.track(dp, len(dp)):
            _gan.discriminator_step(step, dp, g, count, rng.torch("fakes", step.index))
            n_d = schedule.d_steps_per_g_step
            log.record(step.index, released_grad_norm=dp.released_grad_norm, d_steps_per_g_step=n_d)
            if schedule.d_step_done():
                stream = rng.torch("generator", step.index)
                logits = _gan.generator_step(g, g_optimizer, view, lambda logit: F.softplus(-logit), count, stream)
                schedule.g_step_done(float((logits < 0).float().mean()))
        return model
