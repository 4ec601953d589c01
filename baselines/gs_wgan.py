"""GS-WGAN with sound accounting: a generator behind noised gradients of secretly drawn critics (Chen, Orekondy, Fritz
2020, NeurIPS, arXiv 2006.08265).

Records are dealt to K shards, each record separately. A shard's critic is a Wasserstein critic with gradient penalty,
trained on its shard without noise, against a separate generator. Every step draws one shard, brings its critic up to
date with the public generator G, and takes the gradient of the critic's loss at one batch of G's images. This block of
gradients is clipped as a whole and noised. Critics are never released.

Released: one noised block of gradients per step, of one of K shards. Sensitivity 2 max_block_norm under adding or
removing one record, which is in one shard only; accounted as a draw of one of K shards (`ShardBlocks`).
Cost: one noised block per step, and a critic's steps before it.
Published as: GS-WGAN.

What was wrong; both points are our derivation, not a published erratum.
1. The count. The original clips and noises the gradient of each of B = 32 images separately, and accounts for steps x B
   independently subsampled Gaussians. But the B gradients of a step share one draw of a shard. A step is one subsampled
   Gaussian of noise z / sqrt(B): at the published z = 1.07, K = 1000 and 20,000 steps the least epsilon that we can
   prove is 347 (PLD; 377 by RDP), not 10. Here clipping, noise and accounting are joint for the block.
2. The memory. The original's critics go on training at every visit, so a critic remembers when it was drawn, which is
   secret; a bound that amplifies each step by its own fresh draw does not cover that. Here every visit starts from the
   shard's critic as `prepare` left it, takes `critic_steps` steps against the present G on a copy, and is forgotten.
Also, the original deals records by a permutation, which moves other records when one is removed.

Loss. The penalty pushes the critic's gradient to norm 1 at every image, which gives a block of norm sqrt(B). The loss
is -sum D / sqrt(B), so that max_block_norm = 1 corresponds to C = 1 per image in the original.

Networks. G: Bernoulli(1/2) latent and one-hot label -> linear -> residual blocks of upsampling and 3x3 convolutions, 4
`width` channels, pixel norm -> tanh. D: 5x5 convolutions of stride 2 to `width`, 2 `width`, 4 `width` channels, then a
linear head plus a projection on the label. Spectral norm is left out, since its estimates would be additional state.
Defaults are the original's.
"""

import copy
import itertools
import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize, GeneratorModel, update_ema
from dpdm.params import Count, Fraction, Natural, Positive, Strict
from dpdm.privacy import Mechanism, PrivateData, ShardBlocks
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "generator"
BETAS = (0.5, 0.9)  # of Adam, for every network
GRADIENT_PENALTY, DRIFT = 10.0, 1e-3


class Params(Strict):
    """The recipe; defaults are the original's for 28x28, whose noise does not give epsilon 10."""

    blocks: ShardBlocks = ShardBlocks(steps=20_000, max_block_norm=1.0, shards=1000)
    generated_batch_size: Count = Field(32, description="B: images of a block, and rows of every critic step")
    warm_up_steps: Natural = Field(2000, description="steps of a shard's own generator, once per shard")
    critic_steps: Count = Field(5, description="before every generator step, in the warm-up and at every visit")
    width: Count = Field(64, description="width of the networks")
    latent_dim: Count = Field(10, description="dimension of the generator's noise")
    g_lr: Positive = Field(1e-4, description="rate of Adam, of the generator")
    critic_lr: Positive = Field(1e-4, description="rate of Adam, of the critics")
    ema_decay: Fraction = Field(0.999, description="of the weights of the generator that is kept")


def _pixel_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class _UpBlock(nn.Module):
    """Residual: upsampling to `side` and two 3x3 convolutions; the shortcut only upsamples."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.side = side
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        short = F.interpolate(x, size=(self.side, self.side))
        h = self.first(F.relu(_pixel_norm(short)))
        return short + self.second(F.relu(_pixel_norm(h)))


class Generator(nn.Module):
    """Maps latents [n, latent_dim] and labels [n] to images [n, C, H, W] in [-1, 1].

    Latents are standard normal numbers, whose signs are the method's Bernoulli(1/2) bits.
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int, latent_dim: int):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        start, *sides = reversed(_gan.LEVELS[shape[1]])
        self.base = (4 * width, start, start)
        self.linear = nn.Linear(latent_dim + num_classes, math.prod(self.base))
        self.up = nn.Sequential(*(_UpBlock(4 * width, side) for side in sides))
        self.to_pixels = nn.Conv2d(4 * width, shape[0], 3, padding=1)

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.cat([(latents > 0).float(), F.one_hot(labels, self.num_classes).float()], 1)
        x = self.up(self.linear(inputs).unflatten(1, self.base))
        return self.to_pixels(F.relu(_pixel_norm(x))).tanh()


class Critic(nn.Module):
    """Maps images [n, C, H, W] and labels [n] to one number per row, [n], each row separately."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int):
        super().__init__()
        sides = _gan.LEVELS[shape[1]]
        channels = [shape[0], *(width * 2**level for level in range(len(sides) - 1))]
        self.down = nn.ModuleList(nn.Conv2d(a, b, 5, stride=2, padding=2) for a, b in itertools.pairwise(channels))
        features = channels[-1] * sides[-1] ** 2
        self.linear, self.label = nn.Linear(features, 1), nn.Embedding(num_classes, features)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images
        for layer in self.down:
            x = F.leaky_relu(layer(x), _gan.SLOPE)
        h = x.flatten(1)
        # torch starts embeddings with entries of size 1: unscaled, the label would dominate the rest at first
        return self.linear(h).flatten() + (self.label(labels) * h).sum(1) / math.sqrt(h.shape[1])


# The code below sees records without noise. Only a block of gradients leaves it, and goes through the door.


State = tuple[Critic, torch.optim.Optimizer]  # of a shard


def train_critic(
    state: State, generator: Generator, images: Tensor, labels: Tensor, params: Params, rng: torch.Generator
) -> None:
    """`critic_steps` steps of Wasserstein loss with gradient penalty and drift, on rows drawn with replacement.

    Fakes have the labels of their paired real rows, so that the interpolates of the penalty have a label.
    """
    critic, optimizer = state
    batch_size = params.generated_batch_size
    for _ in range(params.critic_steps):
        rows = torch.randint(len(images), (batch_size,), generator=rng).to(images.device)
        real, y = images[rows], labels[rows]
        latents = torch.randn(batch_size, generator.latent_dim, generator=rng).to(images.device)
        with torch.no_grad():
            fake = generator(latents, y)
        mix = torch.rand(batch_size, 1, 1, 1, generator=rng).to(images.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between, y).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        of_real, of_fake = critic(torch.cat([real, fake]), torch.cat([y, y])).chunk(2)
        loss = of_fake.mean() - of_real.mean() + GRADIENT_PENALTY * penalty + DRIFT * of_real.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


class Shards:
    """The critics' part: `prepare` once per shard, `gradient` at every visit.

    The networks and `rng` are public: critics start from copies of their present weights, and a visit uses the current
    weights of `generator`.
    """

    def __init__(self, params: Params, generator: Generator, critic: Critic, rng: Streams, log: Log):
        self.params, self._generator, self._rng = params, generator, rng
        self._log = log.aside("warm-up", quiet=True)
        self._start, self._critic = copy.deepcopy(generator), copy.deepcopy(critic)

    def prepare(self, images: Tensor, labels: Tensor, shard: int) -> State:
        """A critic warmed up against a separate generator, and its optimizer: a function of only the shard."""
        generator, critic = copy.deepcopy(self._start), copy.deepcopy(self._critic)
        g_optimizer = torch.optim.Adam(generator.parameters(), lr=self.params.g_lr, betas=BETAS)
        optimizer = torch.optim.Adam(critic.parameters(), lr=self.params.critic_lr, betas=BETAS)
        for step in self._log.track(range(self.params.warm_up_steps), self.params.warm_up_steps):
            stream = self._rng.torch("warm_up", shard, step)
            train_critic((critic, optimizer), generator, images, labels, self.params, stream)
            latents, y = _gan.draw_inputs(generator, self.params.generated_batch_size, stream)
            g_optimizer.zero_grad(set_to_none=True)
            generator_loss(critic, generator(latents, y), y).backward()
            g_optimizer.step()
        return critic, optimizer

    def gradient(
        self, fakes: Tensor, images: Tensor, labels: Tensor, state: State, fake_labels: Tensor, index: int
    ) -> Tensor:
        """The gradient of the generator's loss at `fakes`, after training this copy of the critic on the present G."""
        train_critic(state, self._generator, images, labels, self.params, self._rng.torch("visit", index))
        fakes = fakes.detach().requires_grad_()
        return torch.autograd.grad(generator_loss(state[0], fakes, fake_labels), fakes)[0]


def generator_loss(critic: Critic, fakes: Tensor, labels: Tensor) -> Tensor:
    """-sum D / sqrt(B): see the head of this file."""
    return -critic(fakes, labels).sum() / math.sqrt(len(fakes))


class Model(GeneratorModel):
    @staticmethod
    def build(arguments: dict[str, Any]) -> Generator:
        return Generator(**arguments)


class GSWGAN:
    Params = Params
    SamplerParams = BatchSize
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        _gan.check_conv_shape(meta.shape)
        return (params.blocks.mechanism(MECHANISM, meta.n),)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _gan.block_departures(params, meta)

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains the generator; returns the average of its weights at the last step."""
        sizes = {"shape": list(private.meta.shape), "num_classes": private.meta.num_classes, "width": params.width}
        arguments = sizes | {"latent_dim": params.latent_dim}
        with rng.torch_default("init"):
            g = Generator(**arguments).to(private.device)
            critic = Critic(**sizes).to(private.device)
        averaged = copy.deepcopy(g).requires_grad_(False)
        shards = Shards(params, g, critic, rng, log)
        optimizer = torch.optim.Adam(g.parameters(), lr=params.g_lr, betas=BETAS)
        loop = private.block_gradients(MECHANISM, params.blocks, shards.prepare, keep=[g, optimizer, averaged])
        for step in log.track(loop, len(loop)):
            latents, labels = _gan.draw_inputs(g, params.generated_batch_size, rng.torch("fakes", step.index))
            fakes = g(latents, labels)
            of_step = {"fake_labels": labels, "index": step.index}
            noised = step.release(fakes, lambda *drawn, of_step=of_step: shards.gradient(*drawn, **of_step))
            optimizer.zero_grad()
            fakes.backward(noised)
            optimizer.step()
            update_ema(averaged, g, params.ema_decay, step.index + 1)
            log.record(step.index, released_grad_norm=loop.released_grad_norm)
        return Model(averaged, arguments=arguments)
