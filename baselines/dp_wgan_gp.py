"""dpGAN, corrected: WGAN-GP by DP-SGD with clipping decay (Frigerio et al. 2019, IFIP SEC, arXiv 1901.02477).

For every record (x, y) the critic f minimizes f(G(z, y), y) - f(x, y) + gp_weight (|grad f(x^, y)| - 1)^2, where x^ = u
x + (1 - u) G(z, y), u uniform in [0, 1]; the gradient is with respect to an image in [-1, 1]. The generator G minimizes
-f(G(z), y), labels uniform, once in `d_steps_per_g_step` critic steps. Adam for both. Clipping decay: at step t clip
norm and noise multiplier are a_t times their first values, a_t = max(floor, 1 - rate floor(epoch / epochs)), an epoch
being n / expected_batch_size steps.

Released: the critic's noised mean gradient of every step. Sensitivity a_t max_grad_norm under adding or removing one
record. All three terms are the loss of one example and are clipped together (hence second-order gradients per example):
fake and x^ have the record's label, which leaves only in its clipped gradient. If a fake were clipped apart from its
record, f would only be pushed down on fakes, and nowhere up. Each segment of steps with the same a_t is a mechanism,
`critic/0`, `critic/1`, ...; the noise is calibrated for all of them together.
Cost: DP-SGD with second-order gradients.

What was wrong. The released code takes the gradient of the whole batch, not of its examples. It clips the rows of each
weight matrix, and biases with another norm and noise. Batches are drawn with replacement, and its accountant takes a
tensor's first dimension for the batch size. So it is not DP as released. Here every example's whole gradient is clipped
once, batches are Poisson, and the noise is calibrated. We leave out "n_critic falls by one when the generator's loss
shrinks": a critic is defined up to a constant, so that loss has no meaning.

Networks: the released repository is for tabular data; ours for images have its four fully connected layers with
`hidden` leaky ReLUs and He's initialization. Defaults are the code's, for 20 epochs of MNIST. Memory grows as
max_physical_batch_size hidden^2.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize
from dpdm.params import Count, Positive, Share, Strict
from dpdm.privacy import DpSgd, DpSgdParams, Mechanism, PrivateData
from dpdm.privacy.dpsgd import DpSgdStep
from dpdm.progress import Log
from dpdm.rng import Streams

BETAS = (0.5, 0.9)  # of Adam, for both networks


class Decay(Strict):
    """How clip norm and noise multiplier fall together."""

    epochs: Positive = Field(10.0, description="epochs between two falls")
    rate: Share = Field(0.1, description="by how much they fall each time, as a part of the first value")
    floor: Share = Field(0.35, description="where they stay, as a part of the first value")


class Params(Strict):
    """The recipe; defaults are the released code's."""

    # max_grad_norm is the first one
    dp: DpSgdParams = DpSgdParams(expected_batch_size=256, steps=4_700, max_grad_norm=0.2, max_physical_batch_size=64)
    decay: Decay | None = Field(Decay(), description="null: neither clip norm nor noise falls")
    gp_weight: Positive = Field(10.0, description="weight of the gradient penalty")
    d_steps_per_g_step: Count = Field(5, description="critic steps per generator step")
    hidden: Count = Field(512, description="hidden units of both networks")
    latent_dim: Count = Field(100, description="dimension of the generator's noise")
    d_lr: Positive = Field(1e-3, description="rate of Adam, of the critic")
    g_lr: Positive = Field(1e-4, description="rate of Adam, of the generator")


class Segment(NamedTuple):
    """A segment of steps with one clip norm and one noise multiplier."""

    name: str
    start: int  # its first step in the run
    factor: float  # a_t
    dp: DpSgdParams


def segments(params: Params, n: int) -> list[Segment]:
    """The run on n records, split where a_t changes; the steps of all segments add up to `dp.steps`."""

    def factor(step: int) -> float:
        if params.decay is None:
            return 1.0
        falls = step * params.dp.expected_batch_size // (n * params.decay.epochs)
        return max(params.decay.floor, 1 - params.decay.rate * falls)

    out: list[Segment] = []
    start = 0
    for a, group in itertools.groupby(range(params.dp.steps), factor):
        steps = len(list(group))
        changes = {"steps": steps, "max_grad_norm": a * params.dp.max_grad_norm}
        out.append(Segment(f"critic/{len(out)}", start, a, params.dp.model_copy(update=changes)))
        start += steps
    return out


def critic_loss(generator: nn.Module, gp_weight: float, critic: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The critic's loss [n] on records (images [n, C, H, W], labels [n]), each with its fake."""
    fakes, u = draw_partners(generator, images, labels)
    value = critic(fakes, labels) - critic(images, labels)
    slopes = torch.func.grad(lambda x: critic(x, labels).sum())(u * images + (1 - u) * fakes)
    return value + gp_weight * (slopes.flatten(1).norm(dim=1) - 1).square()


@torch.no_grad()
def draw_partners(generator: _gan.Generator, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """A fake of every record's label, and the record's weight u in x^ ([n, 1, 1, 1]).

    Drawn on the CPU by torch's default generator, which the door seeds for a loss with second-order gradients.
    """
    latents = torch.randn(len(images), generator.latent_dim).to(images.device)
    return generator(latents, labels), torch.rand(len(images), 1, 1, 1).to(images.device)


def he_init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)


class DPWGANGP:
    Params = Params
    SamplerParams = BatchSize
    Model = _gan.Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        _gan.check_generator_steps(params.dp, params.d_steps_per_g_step)
        return tuple(s.dp.mechanism(s.name, meta.n, noise_ratio=s.factor) for s in segments(params, meta.n))

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _gan.departures(params, meta, hidden="hidden")

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> _gan.Model:
        """Trains both networks; the generator of the last step is the model."""
        count = params.dp.expected_batch_size
        model, f, view = _gan.pair(private, rng, "fc", [params.hidden] * 3, params.latent_dim, he_init)
        g = model.network
        g_optimizer = torch.optim.Adam(g.parameters(), lr=params.g_lr, betas=BETAS)
        f_optimizer = torch.optim.Adam(f.parameters(), lr=params.d_lr, betas=BETAS)
        loss = functools.partial(critic_loss, g, params.gp_weight)

        def private_steps() -> Iterator[tuple[int, DpSgd, DpSgdStep]]:
            for segment in segments(params, private.meta.n):
                dp = private.dpsgd(segment.name, f, f_optimizer, segment.dp, second_order=True, keep=[g, g_optimizer])
                for step in dp:
                    yield segment.start + step.index, dp, step

        for index, dp, step in log.track(private_steps(), params.dp.steps):
            step.update(functools.partial(loss, dp.module))
            log.record(index, released_grad_norm=dp.released_grad_norm)
            if (index + 1) % params.d_steps_per_g_step == 0:
                stream = rng.torch("generator", index)
                _gan.generator_step(g, g_optimizer, view, torch.neg, count, stream)
        return model
