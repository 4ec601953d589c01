"""class_mean and dp_gaussian: exact without noise, and better than the label-only floor with it."""

import math

import numpy as np
import pytest
import torch
from refusals import refuses

from baselines.class_mean import ClassMean
from baselines.dp_gaussian import DPGaussian, Params, shrunk_covariances, standing_out
from dpdm.data import ImageMeta, ImageSet, balanced_labels
from dpdm.method import NoParams, train
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.sources.digits import Digits
from dpdm.specs import RunSpec


def fit(impl: str, images: ImageSet, epsilon: float, **params):
    spec = RunSpec(
        study="s", dataset="d", method="m", impl=impl, params=params, epsilon=epsilon, delta="1/(2n)",
        allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    return train(spec, images, Log("test"))


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


def nearest_mean_accuracy(model, sampler, test: ImageSet) -> float:
    """Of the simplest classifier trained on samples: enough to see whether a generator works."""
    labels = balanced_labels(2000, 10)
    images = model.sample(labels, sampler, Streams(0, "sample")).reshape(2000, -1).astype(float)
    means = np.stack([images[labels == c].mean(0) for c in range(10)])
    flat = test.images.reshape(len(test.images), -1).astype(float)
    guess = ((flat[:, None] - means) ** 2).sum(2).argmin(1)
    return 100 * float((guess == test.labels).mean())


def test_class_means_are_exact_without_noise(digits):
    model, _ = fit("baselines.class_mean:ClassMean", digits["train"], math.inf, max_image_norm=100.0)
    x, y = digits["train"].images / 255.0, digits["train"].labels
    for c in range(10):
        np.testing.assert_allclose(model.means[c], x[y == c].mean(0), atol=1e-5)


def test_class_mean_survives_classes_without_images():
    images = ImageSet(np.full((20, 1, 4, 4), 200, np.uint8), np.zeros(20, np.int64), 3)
    model, _ = fit("baselines.class_mean:ClassMean", images, 1.0, max_image_norm=4.0)
    out = model.sample(np.array([0, 1, 2]), ClassMean.SamplerParams(), Streams(0))
    assert out.shape == (3, 1, 4, 4)
    assert bool(torch.isfinite(model.means).all())


@pytest.mark.parametrize(("epsilon", "least"), [(1.0, 80), (10.0, 84), (math.inf, 84)])
def test_class_mean_on_digits(digits, epsilon, least):
    model, _ = fit("baselines.class_mean:ClassMean", digits["train"], epsilon, max_image_norm=4.0)
    assert nearest_mean_accuracy(model, ClassMean.SamplerParams(), digits["test"]) >= least


@pytest.mark.parametrize(("epsilon", "least"), [(1.0, 50), (10.0, 80), (math.inf, 84)])
def test_dp_gaussian_on_digits(digits, epsilon, least):
    model, _ = fit("baselines.dp_gaussian:DPGaussian", digits["train"], epsilon, max_image_norm=4.0)
    assert nearest_mean_accuracy(model, NoParams(), digits["test"]) >= least


def test_dp_gaussian_matches_the_moments_without_noise():
    """Gaussian data in, the same mean and covariance out."""
    rng = np.random.default_rng(0)
    n, classes = 6000, 2
    labels = np.arange(n) % classes
    mixing = rng.normal(size=(classes, 4, 4)) * 12
    x = 128 + np.einsum("nij,nj->ni", mixing[labels], rng.normal(size=(n, 4)))
    images = ImageSet(np.clip(x, 0, 255).astype(np.uint8).reshape(n, 1, 2, 2), labels, classes)
    model, _ = fit("baselines.dp_gaussian:DPGaussian", images, math.inf, max_image_norm=10.0)
    drawn = model.sample(labels, NoParams(), Streams(0)).reshape(n, 4).astype(float)
    real = images.images.reshape(n, 4).astype(float)
    for c in range(classes):
        of_class = labels == c
        np.testing.assert_allclose(drawn[of_class].mean(0), real[of_class].mean(0), atol=3)
        np.testing.assert_allclose(
            np.cov(drawn[of_class].T), np.cov(real[of_class].T), atol=0.15 * np.cov(real[of_class].T).max()
        )


def test_the_subspace_keeps_what_stands_out_of_the_noise():
    d, std = 200, 1.0
    noise = torch.randn(d, d, dtype=torch.float64, generator=Streams(0).torch("n")) * std
    noise = (noise + noise.T) / 2
    assert standing_out(noise, std).shape == (d, 1)  # nothing does: one direction is kept all the same
    signal = torch.zeros(d, dtype=torch.float64)
    signal[:3] = 60.0  # three times the edge of sqrt(2 * 200)
    basis = standing_out(noise + torch.diag(signal), std)
    assert basis.shape == (d, 3)
    assert float(basis[:3].norm() ** 2) > 2.5
    assert standing_out(torch.diag(torch.linspace(0.1, 1, d, dtype=torch.float64)), 0.0).shape == (d, d)


def test_shrinkage_goes_from_none_to_all():
    rng = torch.Generator().manual_seed(0)
    factors = torch.randn(3, 4, 4, dtype=torch.float64, generator=rng)
    covariances = factors @ factors.mT
    counts, means = torch.tensor([10.0, 20.0, 30.0]).double(), torch.randn(3, 4, dtype=torch.float64, generator=rng)
    moments = counts[:, None, None] * (covariances + means[:, :, None] * means[:, None, :])
    pooled = (covariances * counts[:, None, None]).sum(0) / 60
    torch.testing.assert_close(shrunk_covariances(moments, counts, means, 0.0, 0.0), covariances)
    torch.testing.assert_close(shrunk_covariances(moments, counts, means, 1e9, 0.0), pooled.expand(3, 4, 4))
    # The first count is within twice its noise: its class has no part in what all are drawn towards.
    counted = (20 * covariances[1] + 30 * covariances[2]) / 50
    torch.testing.assert_close(shrunk_covariances(moments, counts, means, 1e9, 6.0), counted.expand(3, 4, 4))
    torch.testing.assert_close(shrunk_covariances(moments, counts, means, 1e9, 99.0), pooled.expand(3, 4, 4))


def test_images_beyond_the_bound_have_one_length_in_all_releases_of_dp_gaussian():
    """All images of a class are one image, far beyond the bound: its Gaussian is a point at that bound."""
    images = np.zeros((200, 1, 2, 2), np.uint8)
    images[::2, 0, 0], images[1::2, 0, :, 0] = 250, 250
    model, _ = fit(
        "baselines.dp_gaussian:DPGaussian", ImageSet(images, np.arange(200) % 2, 2), math.inf,
        max_image_norm=0.5, variance_floor=0.0,
    )  # fmt: skip
    assert model.means.norm(dim=1).tolist() == pytest.approx([0.5, 0.5], rel=1e-6)
    assert float(model.factors.square().sum((1, 2)).max()) < 1e-6


def test_a_class_without_records_leaves_the_gaussians_of_the_others_as_they_are(digits):
    """Its released mean is noise of many times an image's norm."""
    train, ten = digits["train"], {}
    for classes in (10, 11):
        data = ImageSet(train.images.repeat(4, 0), train.labels.repeat(4), classes)
        ten[classes] = fit("baselines.dp_gaussian:DPGaussian", data, 1.0, max_image_norm=4.0)[0].factors
    spread = [float(ten[classes][:10].square().sum((1, 2)).mean()) for classes in (10, 11)]
    assert spread[1] < 1.5 * spread[0]


def test_shares_must_leave_something_for_the_class_moments():
    with refuses("1"):
        DPGaussian().plan(Params(max_image_norm=1.0, second_moment_share=0.9), ImageMeta(10, (1, 2, 2), 2))
