"""Noised class means: the smallest method, and the example of the contract.

Released: class counts and class sums, by two Gaussian mechanisms. One record changes the counts by 1, and the sums by
at most `max_image_norm`, to which images are clipped. An image of class y is the released mean of y plus pixel noise.
This is a floor: a method below it does not work.
Cost: one-shot releases.
"""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dpdm.data import ImageMeta, from_unit, to_uint8, to_unit
from dpdm.params import NotNegative, Positive, Share, Strict
from dpdm.privacy import Mechanism, PrivateData
from dpdm.progress import Log
from dpdm.rng import Streams


class Params(Strict):
    """Public constants, fixed without looking at the data."""

    max_image_norm: Positive = Field(description="L2 norm to which an image in [0, 1] is clipped")
    count_share: Share = Field(0.1, description="part of the budget for the counts; the class sums get the rest")


class SamplerParams(Strict):
    """Class means with Gaussian scatter around them."""

    pixel_noise: NotNegative = Field(0.1, description="standard deviation of the noise on a pixel in [0, 1]")


class Model:
    """Class means (float32 [classes, C, H, W] in [0, 1])."""

    def __init__(self, means: Tensor):
        self.means = means

    def sample(self, labels: np.ndarray, sampler: SamplerParams, rng: Streams) -> np.ndarray:
        """Class mean plus pixel noise: uint8 [n, C, H, W]."""
        noise = torch.from_numpy(rng.normal_per_image("image", 0, len(labels), tuple(self.means.shape[1:])))
        return to_uint8(from_unit(self.means[torch.from_numpy(labels)] + sampler.pixel_noise * noise))

    def state(self) -> dict[str, Any]:
        """The means."""
        return {"means": self.means}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        """The inverse of `state`."""
        return cls(state["means"])


class ClassMean:
    """The method, by the contract of dpdm.method."""

    Params = Params
    SamplerParams = SamplerParams
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        """Two Gaussian releases that share the budget."""
        return (
            Mechanism.gaussian("class_counts", params.count_share, sensitivity=1.0),
            Mechanism.gaussian("class_sums", 1 - params.count_share, sensitivity=params.max_image_norm),
        )

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Divides the noised class sums by the noised class counts."""
        classes = private.meta.num_classes

        def class_count(images: Tensor, labels: Tensor) -> Tensor:
            return F.one_hot(labels, classes).to(images.dtype)

        def class_sum(images: Tensor, labels: Tensor) -> Tensor:
            return torch.einsum("bk,bchw->bkchw", class_count(images, labels), to_unit(images))

        counts = private.release_sum("class_counts", class_count, 1.0)
        sums = private.release_sum("class_sums", class_sum, params.max_image_norm)
        return Model((sums / counts.clamp(min=1)[:, None, None, None]).clamp(0, 1).float())
