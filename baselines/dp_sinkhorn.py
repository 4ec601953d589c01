"""DP-Sinkhorn: a generator that learns by optimal transport to noised batches (Cao, Bie, Vahdat, Fidler, Kreis 2021,
NeurIPS, arXiv 2111.01177). No adversary: only the generator is trained.

Every step draws a Poisson batch X of records and generates two sets of images, G and G', that share all but a fraction.
The loss is the semi-debiased Sinkhorn loss 2 S(G, X) - S(G, G'): S is the entropic transport cost between points
[pixels in [-1, 1]; 15 onehot(label)], with ground cost |a - b|_2^2 + l1_weight |a - b|_1. Its gradient at the block of
images G is clipped jointly and noised, then goes through the generator. Images that are only in G' are never compared
with a record: their gradient is scaled down to the same norm, as in the original, but gets no noise.

A fixed number of log-domain iterations lowers the regularization geometrically from the largest cost to `blur`. The
gradient at the images comes from a last half-step with the other side's potential held fixed; by the envelope theorem,
it is the gradient of the converged cost.

Released: one noised block of gradients per step. Sensitivity 2 max_block_norm under adding or removing one record,
since one record can flip the sign of a clipped block.
Cost: one noised block per step.
Published as: DP-Sinkhorn.

What was loose. The original uses an add/remove bound of Poisson sampling with the sensitivity of replacing a record;
for our sensitivity, 2 max_block_norm is correct. It generates as many images as records were drawn, which leaks their
number; here the number is the constant `generated_batch_size`. It reports the checkpoint with the best score on real
test data; here the last step counts. Apart from the neighboring relation, its epsilon is sound.

Networks: 16 uniform numbers and a label embedding of 8 -> transposed convolutions to 4 `width` (a quarter of the side),
2 `width` (half), `width` (the side) -> 3x3 convolution, tanh; batch norm in between.

Defaults are the original's for MNIST, with the 4 million steps that its noise of 1.1 allows at epsilon 10: GPU days. We
do not know its number of solver iterations; 100 come within 2 % of the exact cost. With the few steps of a small study,
the noise is far above the signal.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from baselines import _gan
from dpdm.data import ImageMeta
from dpdm.networks import BatchSize, GeneratorModel
from dpdm.params import Count, Fraction, NotNegative, Positive, Strict
from dpdm.privacy import Mechanism, PoissonBlocks, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

MECHANISM = "generator"


class Params(Strict):
    """The recipe; defaults are the original's for MNIST at epsilon 10."""

    blocks: PoissonBlocks = Field(
        PoissonBlocks(steps=4_000_000, max_block_norm=0.5, expected_batch_size=50),
        description="steps, batches and clip norm of the noised gradients",
    )
    generated_batch_size: Count = Field(50, description="images of G, and of G', per step")
    fresh_fraction: Fraction = Field(0.2, description="part of the images of G' that is not in G; rounded up")
    l1_weight: NotNegative = Field(1.0, description="m of the ground cost; 1 or 3 in the original")
    label_weight: NotNegative = Field(15.0, description="weight of the label in the ground cost")
    blur: Positive = Field(0.05, description="entropic regularization")
    sinkhorn_iterations: Count = Field(100, description="iterations per loss")
    width: Count = Field(64, description="m, the width of the generator")
    latent_dim: Count = Field(16, description="dimension of its noise")
    label_dim: Count = Field(8, description="dimension of its label embedding")
    lr: Positive = Field(1e-5, description="rate of Adam")


def ground_cost(x: Tensor, y: Tensor, l1_weight: float) -> Tensor:
    """|a - b|_2^2 + l1_weight |a - b|_1 for all pairs of rows: [n, d] and [m, d] -> [n, m]."""
    exact = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")  # products would lose digits at x = y
    return exact.square() + l1_weight * torch.cdist(x, y, p=1)


def sinkhorn(x: Tensor, y: Tensor, l1_weight: float, blur: float, iterations: int) -> Tensor:
    """Entropic transport cost between uniform weights on the rows of x [n, d] and y [m, d], a number.

    min over plans P of <P, cost> + blur KL(P | uniform). With converged potentials f, g it is mean f + mean g, where
    f_i = -blur log mean_j exp((g_j - cost_ij) / blur), and likewise for g (Feydy et al. 2019, section 3.1).

    Differentiable in x and y: see the head of this file.
    """
    forth, back = ground_cost(x, y.detach(), l1_weight), ground_cost(y, x.detach(), l1_weight)
    c = forth.detach()
    g = c.new_zeros(c.shape[1])
    start = max(float(c.max()), blur)
    for step in range(1, iterations + 1):
        eps = start * (blur / start) ** (step / iterations)
        f = _softmin(c, g, eps)
        g = _softmin(c.T, f, eps)
    return _softmin(forth, g, blur).mean() + _softmin(back, f, blur).mean()


def _softmin(cost: Tensor, potential: Tensor, eps: float) -> Tensor:
    """-eps log mean_j exp((potential_j - cost_ij) / eps), one number per row."""
    return eps * (math.log(cost.shape[1]) - torch.logsumexp((potential - cost) / eps, 1))


class Loss:
    """The two parts of the semi-debiased loss, as gradients at images."""

    def __init__(self, params: Params, num_classes: int):
        self.params, self.num_classes = params, num_classes

    def towards(self, fakes: Tensor, fake_labels: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient at `fakes` of 2 S(fakes, images): private, only for a callback."""
        fakes = fakes.detach().requires_grad_()
        loss = 2 * self._cost(self._points(fakes, fake_labels), self._points(images, labels))
        return torch.autograd.grad(loss, fakes)[0]

    def apart(self, fakes: Tensor, labels: Tensor) -> Tensor:
        """The gradient at fakes of -S(G, G'): G is all but the last images, G' all but the first; public."""
        fakes, size = fakes.detach().requires_grad_(), self.params.generated_batch_size
        points = self._points(fakes, labels)
        return torch.autograd.grad(-self._cost(points[:size], points[-size:]), fakes)[0]

    def _points(self, images: Tensor, labels: Tensor) -> Tensor:
        one_hot = F.one_hot(labels, self.num_classes).to(images.dtype)
        return torch.cat([images.flatten(1), self.params.label_weight * one_hot], 1)

    def _cost(self, x: Tensor, y: Tensor) -> Tensor:
        return sinkhorn(x, y, self.params.l1_weight, self.params.blur, self.params.sinkhorn_iterations)


class Generator(nn.Module):
    """Maps latents [n, latent_dim] and labels [n] to images [n, C, H, W] in [-1, 1]; H and W divisible by 4.

    Latents are standard normal numbers z; erf(z / sqrt 2) turns them into the method's uniform ones in [-1, 1].
    """

    def __init__(self, shape: tuple[int, int, int], num_classes: int, width: int, latent_dim: int, label_dim: int):
        super().__init__()
        self.num_classes, self.latent_dim = num_classes, latent_dim
        channels, base = shape[0], (shape[1] // 4, shape[2] // 4)
        self.label = nn.Embedding(num_classes, label_dim)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_dim + label_dim, 4 * width, base), nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        inputs = torch.cat([torch.erf(latents / math.sqrt(2)), self.label(labels)], 1)
        return self.layers(inputs[:, :, None, None])


class Model(GeneratorModel):
    """A trained generator, which draws with running statistics of batch norm."""

    @staticmethod
    def build(arguments: dict[str, Any]) -> Generator:
        return Generator(**arguments)


class DPSinkhorn:
    Params = Params
    SamplerParams = BatchSize
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        _gan.check_sides(meta.shape)
        return (params.blocks.mechanism(MECHANISM, meta.n),)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        return _gan.block_departures(params, meta)

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Trains the generator; the one of the last step is the model."""
        classes, size = private.meta.num_classes, params.generated_batch_size
        fresh = math.ceil(params.fresh_fraction * size)
        arguments = {
            "shape": list(private.meta.shape), "num_classes": classes,
            "width": params.width, "latent_dim": params.latent_dim, "label_dim": params.label_dim,
        }  # fmt: skip
        with rng.torch_default("init"):
            g = Generator(**arguments).to(private.device)
        optimizer = torch.optim.Adam(g.parameters(), lr=params.lr)
        loss = Loss(params, classes)
        loop = private.block_gradients(MECHANISM, params.blocks, keep=[g, optimizer])
        for step in log.track(loop, len(loop)):
            latents, y = _gan.draw_inputs(g, size + fresh, rng.torch("fakes", step.index))
            fakes = g(latents, y)
            apart = loss.apart(fakes, y)

            def gradient(block: Tensor, images: Tensor, labels: Tensor, y=y, apart=apart) -> Tensor:
                return loss.towards(block, y[:size], images, labels) + apart[:size]

            noised = step.release(fakes[:size], gradient)
            rest = apart[size:]  # public: scaled like the block, not for privacy
            rest = rest * (params.blocks.max_block_norm / rest.norm().clamp(min=params.blocks.max_block_norm))
            optimizer.zero_grad()
            fakes.backward(torch.cat([noised, rest]))
            optimizer.step()
            log.record(step.index, released_grad_norm=loop.released_grad_norm)
        return Model(g, arguments=arguments)
