"""A mixture of Gaussians per class, learned from Gaussian releases only: it draws images, and denoises exactly.

Released, in this order: class counts; class sums; the scatter of all images around their released class mean; with more
than one component, `rounds` rounds of k-means within each class; the scatter of each class around its components. Every
release clips what one record adds, so its sensitivity is known. Images are first centered by released means. They are
then shorter and are clipped to a smaller norm, so the noise of the second moments is smaller. With `frequencies`, the
sums and moments have only the lowest frequencies of the images: images have little else, and fewer coordinates have
less noise together. Everything else (basis, shrinkage, eigenvalues, sampling, denoising) is post-processing. DP-PCA by
a noised second moment: Dwork et al. 2014, "Analyze Gauss". Private k-means by noised sums and counts: Blum et al. 2005
(SuLQ).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dpdm.data import to_unit
from dpdm.errors import UserError
from dpdm.params import Count, Positive, Share, Strict
from dpdm.privacy import Mechanism, PrivateData, clipped_rows
from dpdm.rng import Streams

COUNT_WEIGHT = 2.0  # of a record's count, relative to its clipped image, in one round of k-means
SPREAD = 0.7  # of the first centers, as a part of the class's standard deviation


class MixtureParams(Strict):
    """Public constants, fixed without looking at the data. Shares are parts of the budget of all releases together."""

    max_image_norm: Positive = Field(description="L2 norm to which an image in [0, 1] is clipped")
    max_centered_norm: Positive = Field(description="L2 norm to which an image minus its class mean is clipped")
    max_component_norm: Positive = Field(description="L2 norm to which an image minus its component's mean is clipped")
    components: Count = Field(1, description="Gaussians per class; 1: no k-means")
    rounds: Count = Field(4, description="rounds of k-means")
    count_share: Share = Field(0.02, description="part of the budget for the class counts")
    sum_share: Share = Field(0.13, description="part of the budget for the class sums")
    scatter_share: Share = Field(0.2, description="part of the budget for the scatter around the class means")
    component_share: Share = Field(0.35, description="part of the budget for all rounds; unused with one component")
    frequencies: Count | None = Field(
        None, description="lowest frequencies of an image's cosine transform that are kept along each axis; null: all"
    )
    variance_floor: Positive = Field(1e-3, description="smallest variance in any direction, pixels in [0, 1]")

    def plan(self, part: float = 1.0) -> tuple[Mechanism, ...]:
        """The releases. The scatter of each class gets the rest of the shares; UserError if nothing is left.

        Args:
            part: their common part of the plan's Gaussian budget, above 0 and at most 1.
        """
        rounds = self.rounds if self.components > 1 else 0
        rest = 1 - self.count_share - self.sum_share - self.scatter_share - (self.component_share if rounds else 0)
        if rest <= 0:
            raise UserError("count_share + sum_share + scatter_share + component_share must stay below 1")
        bound = self.max_component_norm if rounds else self.max_centered_norm
        shares = [
            ("class_counts", self.count_share, 1.0),
            ("class_sums", self.sum_share, self.max_image_norm),
            ("scatter", self.scatter_share, self.max_centered_norm**2),
            *((f"k_means_{i}", self.component_share / rounds, self.round_bound()) for i in range(rounds)),
            ("class_scatter", rest, bound**2),
        ]
        return tuple(Mechanism.gaussian(name, part * share, sensitivity) for name, share, sensitivity in shares)

    def round_bound(self) -> float:
        """The norm of a record's contribution to one round: its count, and its centered image."""
        return float(np.hypot(COUNT_WEIGHT, self.max_centered_norm))


@dataclass(frozen=True)
class Mixture:
    """N(means[y] + basis offsets[y, j], basis vectors[y] diag(variances[y]) (basis vectors[y])^T + residual (I - P)).

    P projects on the basis. Pixels are in [0, 1] and flattened to d; tensors are float32.

    Args:
        class_weights: [classes], the released share of each class among the records.
        weights: [classes, components], of each class's components; they sum to 1.
        means: [classes, d].
        offsets: [classes, components, k], of the components from the class mean, within the basis.
        basis: [d, k], orthonormal columns, shared by all classes.
        vectors: [classes, k, k], orthonormal columns: the axes of a class's covariance within the basis.
        variances: [classes, k], along these axes.
        residual: [], the variance in each direction outside the basis.
    """

    class_weights: Tensor
    weights: Tensor
    means: Tensor
    offsets: Tensor
    basis: Tensor
    vectors: Tensor
    variances: Tensor
    residual: Tensor

    def draw(self, labels: np.ndarray, rng: Streams) -> Tensor:
        """Images [n, d] of `labels`, without the noise outside the basis; image i draws from its own stream."""
        noise = torch.from_numpy(rng.normal_per_image("image", 0, len(labels), (1 + self.basis.shape[1],)))
        out = torch.empty(len(labels), len(self.basis))
        for y in np.unique(labels):  # one class at a time: [n, k, k] would not fit for many images
            of_class = torch.from_numpy(labels == y)
            z = noise[of_class]
            edges = self.weights[y].cumsum(0)[:-1].contiguous()
            component = torch.searchsorted(edges, torch.special.ndtr(z[:, 0]).contiguous())
            within = self.offsets[y][component] + (z[:, 1:] * self.variances[y].sqrt()) @ self.vectors[y].T
            out[of_class] = self.means[y] + within @ self.basis.T
        return out

    def state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def release(private: PrivateData, params: MixtureParams, rng: Streams) -> Mixture:
    """Requests every release of `params.plan()` from the door, in order; the rest is linear algebra (in float64).

    `rng` draws the first centers of k-means.
    """
    classes, device = private.meta.num_classes, private.device
    into, back = coordinates(private.meta.shape, params.frequencies)

    def rows(images: Tensor) -> Tensor:
        return into(to_unit(images).flatten(1))

    counts = private.release_sum("class_counts", lambda x, y: F.one_hot(y, classes).float(), 1.0)
    counts = counts.clamp(min=max(1.0, private.noise_multiplier("class_counts")))  # we divide by them
    sums = private.release_sum("class_sums", lambda x, y: by_class(rows(x), y, classes), params.max_image_norm)
    means, total = clipped_rows(back(sums / counts[:, None]), params.max_image_norm), counts.sum()
    centers = into(means).to(device, torch.float32)

    moment = private.release_second_moment("scatter", lambda x, y: rows(x) - centers[y], params.max_centered_norm)
    std = private.noise_multiplier("scatter") * params.max_centered_norm**2 / total
    values, vectors = torch.linalg.eigh(moment / total)
    k = max(1, int((values > max(semicircle(std, len(values)), params.variance_floor)).sum()))
    basis = vectors[:, -k:].flip(1).contiguous()
    outside = (left_outside(values, k, std) / max(means.shape[1] - k, 1)).clamp(min=params.variance_floor)
    projection = basis.to(device, torch.float32)

    def projected(images: Tensor, labels: Tensor) -> Tensor:
        return (rows(images) - centers[labels]) @ projection

    weights, offsets = torch.ones(classes, 1, dtype=torch.float64), torch.zeros(classes, 1, k, dtype=torch.float64)
    bound = params.max_centered_norm
    if params.components > 1:
        within = shrunk(torch.diag(values[-k:].flip(0)), std, params.variance_floor)
        first = torch.from_numpy(rng.numpy("centers").standard_normal((classes, params.components, k)))
        offsets = SPREAD * first * within[1].sqrt() @ within[0].T
        for i in range(params.rounds):
            weights, offsets = _round(private, f"k_means_{i}", params, projected, offsets)
        bound = params.max_component_norm
    nearest = offsets.to(device, torch.float32)

    def scattered(images: Tensor, labels: Tensor) -> Tensor:
        vectors = projected(images, labels)
        return by_class(vectors - nearest[labels, _nearest(vectors, nearest[labels])], labels, classes)

    moments = private.release_second_moment("class_scatter", scattered, bound)
    std = private.noise_multiplier("class_scatter") * bound**2
    pooled = moments.sum(0) / total
    axes = []
    for scatter, count in zip(moments, counts, strict=True):
        # Each class's covariance is shrunk toward the pooled one, by an amount that follows from its noise.
        share = (std / 2**0.5 * k / count / pooled.norm().clamp(min=1e-12)).square().clamp(max=1)
        mixed = share * pooled + (1 - share) * scatter / count
        noise = torch.hypot(share * std * classes**0.5 / total, (1 - share) * std / count)
        axes.append(shrunk(mixed, float(noise), params.variance_floor))
    vectors, variances = (torch.stack(part) for part in zip(*axes, strict=True))
    basis = back(basis.T).T
    return Mixture(*(t.float() for t in (counts / total, weights, means, offsets, basis, vectors, variances, outside)))


def coordinates(shape: Sequence[int], frequencies: int | None) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Two maps: rows of pixels [n, d] to coordinates [n, m], and back; the identity if `frequencies` is None.

    Coordinates are the lowest `frequencies` of the cosine transform (orthonormal DCT-II, Ahmed et al. 1974) along each
    axis of each channel, so no row gets longer. `shape` is (C, H, W), and d its product.
    """
    if frequencies is None:
        return (lambda rows: rows,) * 2
    channels, *sides = shape
    axes = []
    for n in sides:
        place, frequency = (torch.arange(size, dtype=torch.float64) for size in (n, min(frequencies, n)))
        waves = torch.cos(math.pi / n * (place[:, None] + 0.5) * frequency)
        axes.append(waves / waves.norm(dim=0))
    waves = torch.kron(torch.eye(channels, dtype=torch.float64), torch.kron(*axes))
    return lambda rows: rows @ waves.to(rows), lambda rows: rows @ waves.T.to(rows)


def _nearest(vectors: Tensor, centers: Tensor) -> Tensor:
    """The index [b] of the nearest center of each row: vectors [b, k], centers [b, components, k]."""
    return (vectors[:, None] - centers).square().sum(2).argmin(1)


def _round(
    private: PrivateData,
    name: str,
    params: MixtureParams,
    projected: Callable[[Tensor, Tensor], Tensor],
    offsets: Tensor,
) -> tuple[Tensor, Tensor]:
    """One round of k-means in every class: weights [classes, components] and new offsets, from one release.

    A record adds (COUNT_WEIGHT, its clipped vector) to the cell of its nearest center and nothing to the others.
    """
    classes, components, k = offsets.shape
    centers = offsets.to(private.device, torch.float32)

    def statistic(images: Tensor, labels: Tensor) -> Tensor:
        vectors = projected(images, labels)
        cell = labels * components + _nearest(vectors, centers[labels])
        record = F.pad(clipped_rows(vectors, params.max_centered_norm), (1, 0), value=COUNT_WEIGHT)
        return by_class(record, cell, classes * components)

    found = private.release_sum(name, statistic, params.round_bound()).view(classes, components, k + 1)
    std = private.noise_multiplier(name) * params.round_bound()
    # We divide by counts: each is at least 1, and at least the standard deviation of its noise.
    counts = (found[..., :1] / COUNT_WEIGHT).clamp(min=max(1.0, std / COUNT_WEIGHT))
    centers = found[..., 1:] / counts
    noise = (std / counts).square() * k
    signal = (centers.square().sum(2, keepdim=True) - noise).clamp(min=0)
    centers = centers * signal / (signal + noise).clamp(min=1e-12)  # James and Stein 1961
    return (counts / counts.sum(1, keepdim=True)).squeeze(2), centers


def by_class(vectors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Each row [b, d] in the block of its class, zeros in the others: [b, classes, d]."""
    return torch.einsum("bk,bd->bkd", F.one_hot(labels, classes).to(vectors.dtype), vectors)


def semicircle(noise_std: float | Tensor, size: int) -> float:
    """The largest eigenvalue of pure noise [size, size], symmetric, of std noise_std / sqrt(2) off the diagonal."""
    return float(noise_std) * math.sqrt(2 * size)


def left_outside(values: Tensor, k: int, noise_std: float) -> Tensor:
    """The trace of a clean matrix [d, d] outside the span of the top k eigenvectors of its noised copy.

    Noise does not change the trace on average, but rotates the top eigenvectors. Along one whose eigenvalue t is above
    the `edge` of noise, the clean matrix has sqrt(t^2 - edge^2) (Benaych-Georges and Nadakuditi 2011).

    Args:
        values: [d], eigenvalues of the noised copy, in ascending order.
    """
    edge = semicircle(noise_std, len(values))
    return values.sum() - (values[-k:].square() - edge**2).clamp(min=0).sqrt().sum()


def shrunk(covariance: Tensor, noise_std: float, floor: float) -> tuple[Tensor, Tensor]:
    """Axes [k, k] and variances [k] of a covariance [k, k] that was released with noise.

    An eigenvalue l of the clean matrix appears at l + (edge / 2)^2 / l if that is above the `edge` of noise, and is
    then set back to l (Benaych-Georges and Nadakuditi 2011). All others get their mean. None is below `floor`.
    """
    values, vectors = torch.linalg.eigh(covariance)
    edge = semicircle(noise_std, len(values))
    above = values > edge * (1 + len(values) ** (-2 / 3))  # noise reaches this far (Tracy and Widom 1994)
    variances = torch.where(above, (values + (values.square() - edge**2).clamp(min=0).sqrt()) / 2, 0.0)
    rest = (values.sum() - variances.sum()) / max(int((~above).sum()), 1)
    return vectors, torch.where(above, variances, rest).clamp(min=floor)
