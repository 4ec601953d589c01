"""DP-PCA with one Gaussian per class: a floor that beats many published methods.

Released: class counts, first and second moments, by four Gaussian mechanisms. Images x (pixels in [0, 1], flattened)
are clipped to norm C = `max_image_norm`. Sensitivities under adding or removing one record: 1 for class counts, C for
class sums, C^2 (Frobenius norm) for the second moment sum x x^T and for the second moments per class in its top-k
basis. DP-PCA by a noised second moment: Dwork et al. 2014, "Analyze Gauss". Everything else is post-processing.
Cost: one-shot releases.
"""

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dpdm.data import ImageMeta, from_unit, to_uint8, to_unit
from dpdm.errors import UserError
from dpdm.method import NoParams
from dpdm.mixture import by_class, semicircle
from dpdm.params import NotNegative, Positive, Share, Strict
from dpdm.privacy import Mechanism, PrivateData, clipped_rows
from dpdm.progress import Log
from dpdm.rng import Streams


class Params(Strict):
    """Public constants, fixed without looking at the data; the second moments per class get the remaining budget."""

    max_image_norm: Positive = Field(description="C: L2 norm to which an image in [0, 1] is clipped")
    count_share: Share = Field(0.02, description="part of the budget for the counts")
    sum_share: Share = Field(0.18, description="part of the budget for the class sums")
    second_moment_share: Share = Field(0.30, description="part of the budget for the second moment of all images")
    variance_floor: NotNegative = Field(1e-3, description="smallest variance of a class covariance in any direction")


class Model:
    """One Gaussian per class in a shared subspace.

    Args:
        basis: [d, k], orthonormal columns.
        means: [classes, d], pixels in [0, 1].
        factors: [classes, k, k], a square root of each covariance within the basis.
        shape: image shape (C, H, W).
    """

    def __init__(self, basis: Tensor, means: Tensor, factors: Tensor, shape: tuple[int, int, int]):
        self.basis, self.means, self.factors, self.shape = basis, means, factors, shape

    def sample(self, labels: np.ndarray, sampler: NoParams, rng: Streams) -> np.ndarray:
        """Draws from the Gaussian of each label: uint8 [n, C, H, W]."""
        y = torch.from_numpy(labels)
        z = torch.from_numpy(rng.normal_per_image("image", 0, len(labels), (self.basis.shape[1],)))
        pixels = self.means[y].clone()
        for label in y.unique():  # one class at a time: [n, k, k] would not fit for many images
            of_class = y == label
            pixels[of_class] += z[of_class] @ self.factors[label].T @ self.basis.T
        return to_uint8(from_unit(pixels.reshape(-1, *self.shape)))

    def state(self) -> dict[str, Any]:
        return {"basis": self.basis, "means": self.means, "factors": self.factors, "shape": list(self.shape)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Model":
        return cls(state["basis"], state["means"], state["factors"], tuple(state["shape"]))


class DPGaussian:
    Params = Params
    SamplerParams = NoParams
    Model = Model

    def plan(self, params: Params, meta: ImageMeta) -> tuple[Mechanism, ...]:
        rest = 1 - params.count_share - params.sum_share - params.second_moment_share
        if rest <= 0:
            raise UserError("count_share + sum_share + second_moment_share must stay below 1")
        bound = params.max_image_norm
        return (
            Mechanism.gaussian("class_counts", params.count_share, sensitivity=1.0),
            Mechanism.gaussian("class_sums", params.sum_share, sensitivity=bound),
            Mechanism.gaussian("second_moment", params.second_moment_share, sensitivity=bound**2),
            Mechanism.gaussian("class_second_moments", rest, sensitivity=bound**2),
        )

    def fit(self, private: PrivateData, params: Params, rng: Streams, log: Log) -> Model:
        """Four releases, then linear algebra on them (in float64)."""
        classes, bound = private.meta.num_classes, params.max_image_norm

        def pixels(images: Tensor) -> Tensor:
            """Clips before any projection, so that every release sums the same vectors."""
            return clipped_rows(to_unit(images).flatten(1), bound)

        counts = private.release_sum("class_counts", lambda x, y: F.one_hot(y, classes).float(), 1.0).clamp(min=1)
        sums = private.release_sum("class_sums", lambda x, y: by_class(pixels(x), y, classes), bound)
        moment = private.release_second_moment("second_moment", lambda x, y: pixels(x), bound)
        basis = standing_out(moment, private.noise_multiplier("second_moment") * bound**2)
        projection = basis.to(private.device, torch.float32)
        moments = private.release_second_moment(
            "class_second_moments", lambda x, y: by_class(pixels(x) @ projection, y, classes), bound
        )
        means = sums / counts[:, None]
        covariances = shrunk_covariances(
            moments, counts, means @ basis, private.noise_multiplier("class_second_moments") * bound**2,
            private.noise_multiplier("class_counts"),
        )  # fmt: skip
        values, vectors = torch.linalg.eigh(covariances)
        factors = vectors * values.clamp(min=params.variance_floor).sqrt()[:, None, :]
        return Model(basis.float(), means.float(), factors.float(), private.meta.shape)


def standing_out(moment: Tensor, noise_std: float) -> Tensor:
    """The eigenvectors [d, k] of a noised second moment [d, d] whose eigenvalues are above its noise.

    Symmetric noise of variance noise_std^2 / 2 off the diagonal has its spectrum within noise_std * sqrt(2 d)
    (the semicircle law). At least one vector is kept; without noise, all with a positive eigenvalue.
    """
    values, vectors = torch.linalg.eigh(moment)
    k = max(1, int((values > semicircle(noise_std, len(values))).sum()))
    return vectors.flip(1)[:, :k].contiguous()


def shrunk_covariances(
    moments: Tensor, counts: Tensor, means: Tensor, noise_std: float, count_noise_std: float
) -> Tensor:
    """Class covariances [classes, k, k], each shrunk toward the pooled one by an amount that follows from its noise.

    A class whose count is below twice its noise has hardly any mean, so the pooled covariance leaves it out, unless all
    classes are such.

    Args:
        moments: noised class second moments [classes, k, k]; counts: [classes]; means: [classes, k].
        noise_std: noise of a diagonal entry of `moments`; count_noise_std: noise of a count.
    """
    covariances = moments / counts[:, None, None] - means[:, :, None] * means[:, None, :]
    counted = counts * (counts > 2 * count_noise_std)
    weights = counted if counted.any() else counts
    pooled = (covariances * weights[:, None, None]).sum(0) / weights.sum()
    k = len(pooled)
    noise = noise_std * math.sqrt(k * (k + 1) / 2) / counts  # expected Frobenius norm
    weight = (noise / pooled.norm().clamp(min=1e-12)).square().clamp(max=1)[:, None, None]
    return weight * pooled + (1 - weight) * covariances
