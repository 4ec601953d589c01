"""DP-MEPF: a generator that matches one noised mean of a public network's features (Harder, Jalali Asadabadi,
Sutherland, Park, TMLR 2023, arXiv 2205.12900).

The data are summarized once, by the sum per class of perceptual features: the outputs of a network trained on public
images, and their squares. The generator minimizes the squared distance between the released means and the mean features
of its images.

Released: class counts and a sum of features per class, by two Gaussian mechanisms. Sensitivity 1 under adding or
removing one record: both halves of the features have norm 1 / sqrt(2). More in `_kernel`.
Cost: one-shot releases, then a generator: about half an hour of one core at 28 pixels.
Published as: DP-MEPF.

Public data: the network is EfficientNet-Lite0, trained on ImageNet, and the features are those of its blocks 2, 4, 10
and 15 at every position, each block's scaled to norm 1. The paper's networks are VGG-19 and ResNet-18, so its published
numbers are for other features. `fd_efflite` uses the same network and favors this method: judge it by accuracy.

Other differences from the paper: it releases the two halves by two mechanisms, which is equivalent; its bound is for
replacing a record; and its generator is larger. The squared mean of a few images has a bias from their variance, by
which a generator would learn to draw equal images. The paper averages the generated means over steps. Here the estimate
of the squared distance is unbiased: for features of norm 1, n / (n - 1) |mean|^2 replaces |mean|^2.
"""

import functools
import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from baselines import _kernel
from dpdm import efflite
from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.networks import BatchSize
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams

BLOCKS = (2, 4, 10, 15)  # the last block of each size from 1/4 on


class Params(_kernel.GeneratorParams):
    squares: bool = Field(
        True, description="also match the features' squares (phi1 + phi2 of the paper), not only phi1"
    )


class DPMEPF:
    Params = Params
    SamplerParams = BatchSize
    Model = _kernel.Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        if params.generated_batch_size < 2 * meta.num_classes:
            raise UserError(
                f"generated_batch_size = {params.generated_batch_size} draws fewer than two images of some of "
                f"{meta.num_classes} classes at a step; choose at least {2 * meta.num_classes}"
            )
        if meta.shape[0] not in (1, 3):
            raise UserError(f"images have {meta.shape[0]} channels but EfficientNet-Lite0 reads gray or RGB")
        efflite.find_weights()
        return _kernel.plan_releases(params, meta)

    def public_data(self, params: Params) -> tuple[str, ...]:
        """The public data on which the feature network was trained."""
        return ("imagenet",)

    def departures(self, params: Params, meta: ImageMeta) -> tuple[str, ...]:
        """The feature network always differs from the paper's."""
        return ("EfficientNet", *_kernel.departures(params, meta))

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> _kernel.Model:
        """Releases the class embeddings, then trains the generator on them."""
        phi = functools.partial(perceptual, network=efflite.load().to(private.device), squares=params.squares)
        released, shares = _kernel.release_embeddings(private, phi)
        generated = _kernel.Generated(params, private, phi, rng)
        for step in log.track(private.public_steps("generator", params.steps, generated.keep), params.steps):
            generated.descend(shares @ squared_distances(generated.embeddings(step), released, generated.counts))
        return generated.model()


def squared_distances(means: Tensor, released: Tensor, counts: Tensor) -> Tensor:
    """For each class, an unbiased estimate of |E phi - released|^2, up to a constant: [classes].

    `means` and `released` are [classes, d]; each mean is of phi, of norm 1, over `counts` [classes] independent images.
    """
    return counts / (counts - 1) * means.square().sum(1) - 2 * (means * released).sum(1)


def perceptual(pixels: Tensor, network: efflite.EffLite, squares: bool) -> Tensor:
    """phi of images [n, 1 or 3, H, W] in [0, 1]: [n, d] of norm 1; half of it are the squares, if requested."""
    found = [out.flatten(1) for number, out in enumerate(network.blocks(255 * pixels)) if number in BLOCKS]
    first = torch.cat([F.normalize(part) for part in found], dim=1) / math.sqrt(len(BLOCKS))
    return torch.cat([first, F.normalize(first.square())], dim=1) / math.sqrt(2) if squares else first
