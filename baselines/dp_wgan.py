"""DP-WGAN, corrected: a weight-clipped Wasserstein critic trained by DP-SGD (Xie et al. 2018, arXiv 1802.06739).

For every record (x, y) the critic f minimizes (f(G(z, y), y) - f(x, y)) / 2 by RMSProp; after each step every weight is
clipped to [-weight_clip, weight_clip]. The generator minimizes -f(G(z), y), labels uniform, also by RMSProp, once in
`d_steps_per_g_step` critic steps.

Released: the critic's noised mean gradient of every step. Sensitivity max_grad_norm under adding or removing one
record. A record and its fake are two rows of one example, paired as in the paper and clipped together: the fake has
the record's label, which leaves the step only through this clipped gradient. The two gradients are nearly opposite and
far larger than their difference, so clipping each by itself would lose most of the difference.
Cost: DP-SGD.

What was wrong. The released code clips no example's gradient, adds noise of a fixed size to the batch gradient, and has
batch norm in the critic and no accountant, so it is not DP as released. Here every example's gradient is clipped, and
the noise is calibrated for the whole run. One conditional critic and generator replace one pair per digit.

Pitfall: clipped weights make the critic's gradients small, so the clip norm must be small too: 0.01, not 1.

Networks: those of DPGANr at width m, of the size of Xie's (64 and 128 filters). Defaults: rate and batch of Xie's
code, and max_grad_norm, weight_clip and 20 epochs of the DP-MERF authors' DP version of it. Xie's L1 penalty of
2.5e-5, and its 100 critic steps before each of the first 25 generator steps and every 500th, are left out.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize
from dpdm.params import Count, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "critic"


class Params(Strict):
    dp: DpSgdParams = DpSgdParams(expected_batch_size=64, steps=18_750, max_grad_norm=0.01)
    weight_clip: Positive = Field(0.01, description="the critic's weights are cut to [-this, this]")
    d_steps_per_g_step: Count = Field(5, description="critic steps per generator step")
    width: Annotated[int, Field(ge=2)] = Field(64, description="m, the width of both networks")
    latent_dim: Count = Field(100, description="dimension of the generator's noise")
    lr: Positive = Field(5e-5, description="rate of RMSProp, of both networks")


class DPWGAN:
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
        model, f, view = _gan.pair(private, rng, "conv", params.width, params.latent_dim)
        g = model.network
        g_optimizer = torch.optim.RMSprop(g.parameters(), lr=params.lr)
        f_optimizer = torch.optim.RMSprop(f.parameters(), lr=params.lr)
        dp = private.dpsgd(MECHANISM, f, f_optimizer, params.dp, rows_per_example=2, keep=[g, g_optimizer])

        def losses(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                fakes = g(torch.randn(len(y), params.latent_dim).to(x.device), y)  # drawn as DpSgdStep.update says
            values = dp.module(torch.cat([x, fakes]), torch.cat([y, y]))
            return torch.cat([-values[: len(y)], values[len(y) :]])

        for step in log.track(dp, len(dp)):
            step.update(losses)
            for p in f.parameters():
                p.data.clamp_(-params.weight_clip, params.weight_clip)
            log.record(step.index, released_grad_norm=dp.released_grad_norm)
            if (step.index + 1) % params.d_steps_per_g_step == 0:
                stream = rng.torch("generator", step.index)
                _gan.generator_step(g, g_optimizer, view, torch.neg, count, stream)
        return model
