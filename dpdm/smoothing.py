"""Draws images from a generator's model: its sampler, then total variation denoising if requested.

The noise of DP-SGD leaves grain in a model's images. The key `tv_weight` of any entry of `samplers:` removes it. Every
channel x of an image, in [0, 1], becomes the u that minimizes ||u - x||^2 / 2 + tv_weight * TV(u), where TV adds up the
lengths of the gradients of all pixels (Rudin, Osher and Fatemi 1992). This sees only drawn images, so it is
post-processing.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dpdm.errors import UserError
from dpdm.explain import models_of, parse_params
from dpdm.params import NotNegative, Strict
from dpdm.rng import Streams

ITERATIONS = 100  # on grainy MNIST, at most 4 gray levels from the result of 1,000 iterations, 0.5 on average
STEP = 0.24  # of Chambolle's iteration, which converges below 1/4
LEAST = 1 / 2040  # a weight w moves a pixel by at most 4 w: below this, by less than half a gray level
BATCH = 1000  # images that are smoothed at a time: memory only


class Smoothing(Strict):
    """Total variation denoising of what is drawn: keys of every entry of `samplers:`, next to those of its method."""

    tv_weight: Annotated[NotNegative, Field(le=10)] = Field(
        0.0, description="weight of total variation denoising, for pixels in [0, 1]; 0: none"
    )


class Sampler(NamedTuple):
    """An entry of `samplers:`, checked: the method's `SamplerParams`, and the keys of every generator."""

    own: Any
    smoothing: Smoothing

    def draw(self, model: Any, labels: np.ndarray, rng: Streams, who: str = "sample()") -> np.ndarray:
        """One image per label (int64 [n]): uint8 [n, C, H, W]. Image i depends only on label i and its own streams.

        If the model returns something else, a UserError begins with `who`.
        """
        images = model.sample(labels, self.own, rng)
        kind, shape = getattr(images, "dtype", type(images).__name__), list(getattr(images, "shape", ()))
        if not isinstance(images, np.ndarray) or kind != np.uint8 or len(shape) != 4 or shape[0] != len(labels):
            raise UserError(f"{who} must return uint8 [{len(labels)}, C, H, W] for as many labels, got {kind} {shape}")
        return smoothed(images, self.smoothing.tv_weight)


def parse_sampler(method: Any, entry: Any, where: str) -> Sampler:
    """An entry of `samplers:` for a method; a UserError names `where`, its place in the study."""
    common, own = {}, entry
    if isinstance(entry, Mapping):
        common = {key: value for key, value in entry.items() if key in Smoothing.model_fields}
        own = {key: value for key, value in entry.items() if key not in common}
        known = {name for model in models_of(method.SamplerParams) for name in model.model_fields}
        for key in own.keys() - known:
            if meant := difflib.get_close_matches(str(key), Smoothing.model_fields, 1):
                raise UserError(f"{where}.{key}: unknown key; did you mean {meant[0]!r}?")
    return Sampler(parse_params(method.SamplerParams, own, where), parse_params(Smoothing, common, where))


def smoothed(images: np.ndarray, weight: float) -> np.ndarray:
    """Images uint8 [n, C, H, W] after total variation denoising; unchanged if the weight is below LEAST."""
    if weight < LEAST:
        return images
    parts = (torch.from_numpy(images[i : i + BATCH]) for i in range(0, len(images), BATCH))
    done = [(denoised(part.float() / 255, weight) * 255).round().clamp(0, 255).byte().numpy() for part in parts]
    return np.concatenate([images[:0], *done])


def denoised(images: Tensor, weight: float) -> Tensor:
    """The minimizer u of the module docstring for images [..., H, W], by Chambolle 2004: u = x - weight * div(p)."""
    dual, scaled = images.new_zeros(2, *images.shape), images / weight
    for _ in range(ITERATIONS):
        slope = _gradient(_divergence(dual) - scaled)
        dual = (dual + STEP * slope) / (1 + STEP * slope.square().sum(0).sqrt())
    return images - weight * _divergence(dual)


def _gradient(images: Tensor) -> Tensor:
    """Differences to the next pixel below and to the right, 0 at the border: [2, ..., H, W]."""
    out = images.new_zeros(2, *images.shape)
    out[0, ..., :-1, :] = images.diff(dim=-2)
    out[1, ..., :-1] = images.diff(dim=-1)
    return out


def _divergence(field: Tensor) -> Tensor:
    """Minus the adjoint of `_gradient`, of a field whose last row and last column have no slope: [..., H, W]."""
    out = field.sum(0)
    out[..., 1:, :] -= field[0, ..., :-1, :]
    out[..., 1:] -= field[1, ..., :-1]
    return out
