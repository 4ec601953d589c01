"""DP-CGAN, corrected: a conditional GAN with DP-SGD on the discriminator (Torkzadehmahani et al. 2019, CVPR-W,
arXiv 2001.09700).

g = (1/B) [sum of clipped gradients of records + noise] + (1/B) sum of clipped gradients of B fakes: plain SGD on the
discriminator D, its rate falling linearly; Adam on the generator G; binary cross-entropy.

Released: the discriminator's noised gradient of every step. Sensitivity max_grad_norm under adding or removing one
record, by one clip over all of D's parameters together.
Cost: DP-SGD.
Published as: DP-CGAN.

What was wrong. The released code clips and noises each of D's four tensors separately but accounts for one (joint
sensitivity 2C), passes noise std / C times C as noise multiplier, feeds G the private batch's labels without noise, and
accounts shuffled fixed batches as Poisson batches. It states 9.6; the least epsilon that we can prove is 65 (PLD; 70 by
RDP). Here the whole gradient is clipped at once, labels are uniform, batches are Poisson, and the noise is calibrated.

Networks: the published ones, G 110-128-784 and D 794-128-1 at 28x28 with ten classes. Defaults are the paper's, with
the steps at which its accounting reached 9.6. G's rate, the latents (normal here) and the hidden layers (leaky ReLU
here) are ours.
"""

import torch
from pydantic import Field
from torch.nn import functional as F

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize
from dpdm.params import Count, Positive, Strict
from dpdm.privacy import DpSgdParams, Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "discriminator"


class Params(Strict):
    dp: DpSgdParams = DpSgdParams(expected_batch_size=600, steps=35_000, max_grad_norm=1.1)
    width: Count = Field(128, description="hidden units of both networks")
    latent_dim: Count = Field(100, description="dimension of the generator's noise")
    d_lr_start: Positive = Field(0.1, description="first rate of SGD, of the discriminator; it falls linearly")
    d_lr_end: Positive = Field(0.052, description="last rate of SGD, of the discriminator")
    d_lr_steps: Count = Field(10_000, description="steps over which it falls, or all of a shorter run")
    g_lr: Positive = Field(1e-3, description="rate of Adam, of the generator")
    d_steps_per_g_step: Count = Field(1, description="discriminator steps per generator step")

    def d_lr(self, step: int) -> float:
        done = min(1.0, step / max(1, min(self.d_lr_steps, self.dp.steps) - 1))
        return self.d_lr_start + done * (self.d_lr_end - self.d_lr_start)


class DPCGAN:
    Params = Params
    SamplerParams = BatchSize
    Model = _gan.Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        _gan.check_generator_steps(params.dp, params.d_steps_per_g_step)
        return (params.dp.mechanism(MECHANISM, meta.n),)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _gan.departures(params, meta, width="width")

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> _gan.Model:
        """Trains both networks; the generator of the last step is the model."""
        count = params.dp.expected_batch_size
        model, d, view = _gan.pair(private, rng, "fc", [params.width], params.latent_dim)
        g = model.network
        g_optimizer = torch.optim.Adam(g.parameters(), lr=params.g_lr)
        d_optimizer = torch.optim.SGD(d.parameters(), lr=params.d_lr(0))
        dp = private.dpsgd(MECHANISM, d, d_optimizer, params.dp, keep=[g, g_optimizer])
        for step in log.track(dp, len(dp)):
            d_optimizer.param_groups[0]["lr"] = 2 * params.d_lr(step.index)  # the door's mean is over 2B rows, not B
            _gan.discriminator_step(step, dp, g, count, rng.torch("fakes", step.index))
            log.record(step.index, released_grad_norm=dp.released_grad_norm)
            if (step.index + 1) % params.d_steps_per_g_step == 0:
                stream = rng.torch("generator", step.index)
                _gan.generator_step(g, g_optimizer, view, lambda logit: F.softplus(-logit), count, stream)
        return model
