"""The released mixture: exact without noise, its eigenvalues against random matrices, its draws, its sensitivities."""

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn

from dpdm.data import ImageMeta, ImageSet
from dpdm.errors import UserError
from dpdm.method import NoParams, train
from dpdm.mixture import Mixture, MixtureParams, coordinates, left_outside, release, semicircle, shrunk
from dpdm.privacy import Budget, Ledger, PrivateData, Randomness
from dpdm.progress import Log
from dpdm.rng import Streams
from dpdm.specs import RunSpec

BOUNDS = {"max_image_norm": 10.0, "max_centered_norm": 10.0, "max_component_norm": 10.0}


def released(images: ImageSet, epsilon: float, **params) -> Mixture:
    spec = RunSpec(
        study="s", dataset="d", method="m", impl="baselines.dp_mixture:DPMixture", params={**BOUNDS, **params},
        epsilon=epsilon, delta=1e-5, allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    return train(spec, images, Log("test"))[0].mixture


def two_clusters(n: int = 4000) -> tuple[ImageSet, np.ndarray]:
    """Two classes of 2x2 images, each of two Gaussian clusters (70 % and 30 %), and the centers [class, cluster, 4]."""
    rng = np.random.default_rng(0)
    centers = np.array([[[60, 60, 200, 60], [200, 60, 60, 60]], [[60, 200, 60, 60], [60, 60, 60, 200.0]]])
    labels = np.arange(n) % 2
    cluster = (rng.uniform(size=n) < 0.3).astype(int)
    x = centers[labels, cluster] + rng.normal(size=(n, 4)) * [4, 8, 12, 16]
    return ImageSet(x.clip(0, 255).round().astype(np.uint8).reshape(n, 1, 2, 2), labels, 2), centers / 255


def test_without_noise_k_means_finds_the_clusters():
    images, centers = two_clusters()
    mixture = released(images, math.inf, components=2, rounds=6, variance_floor=1e-6)
    found = mixture.means[:, None] + mixture.offsets @ mixture.basis.T
    for y in range(2):
        order = found[y, :, 0 if y == 0 else 3].argsort()
        np.testing.assert_allclose(found[y, order], centers[y], atol=0.01)
        np.testing.assert_allclose(mixture.weights[y, order], [0.7, 0.3], atol=0.03)
    axes = mixture.basis @ mixture.vectors[0]
    covariance = axes @ torch.diag(mixture.variances[0]) @ axes.T
    np.testing.assert_allclose(covariance.diagonal().sqrt() * 255, [4, 8, 12, 16], rtol=0.1)


def test_draws_have_the_moments_of_the_mixture_and_each_image_its_stream():
    mixture = released(two_clusters()[0], math.inf, components=2, variance_floor=1e-6)
    labels = np.arange(5_000) % 2
    drawn = mixture.draw(labels, Streams(0))
    for y in range(2):
        of_class = drawn[labels == y]
        mean = mixture.means[y] + mixture.weights[y] @ mixture.offsets[y] @ mixture.basis.T
        np.testing.assert_allclose(of_class.mean(0), mean, atol=0.01)
        between = mixture.offsets[y] - mixture.weights[y] @ mixture.offsets[y]
        inside = mixture.vectors[y] @ torch.diag(mixture.variances[y]) @ mixture.vectors[y].T
        total = mixture.basis @ (inside + between.T @ torch.diag(mixture.weights[y]) @ between) @ mixture.basis.T
        np.testing.assert_allclose(torch.cov(of_class.T), total, atol=0.006)
    np.testing.assert_array_equal(drawn[:7], mixture.draw(labels[:7], Streams(0)))


def test_shrunk_eigenvalues_are_those_of_the_clean_matrix():
    """A few large eigenvalues among noise: each is seen too large, and is set back."""
    k, std, clean = 200, 0.1, torch.tensor([10.0, 5.0, 3.0], dtype=torch.float64)
    seen, found = [], []
    for seed in range(20):
        noise = torch.randn(k, k, generator=Streams(seed).torch("z"), dtype=torch.float64) * std
        noise = (noise + noise.T) / 2
        assert float(torch.linalg.eigvalsh(noise).max()) == pytest.approx(semicircle(std, k), rel=0.1)
        matrix = noise + torch.diag(torch.cat([clean, torch.zeros(k - 3)]))
        variances = shrunk(matrix, std, 1e-6)[1].sort(descending=True).values
        assert variances[3:].max() < 0.05  # the others share what is left of the trace
        seen.append(torch.linalg.eigvalsh(matrix).flip(0)[:3])
        found.append(variances[:3])
    np.testing.assert_allclose(torch.stack(found).mean(0), clean, atol=0.06)
    assert float(torch.stack(seen).mean(0)[2]) > 3.25  # by theory 3 + 1 / 3


def test_what_is_left_outside_the_basis_is_that_of_the_clean_matrix():
    """Variance 0.02 in all directions and more in five, the basis being the top five of the noised eigenvectors."""
    d, k, std = 300, 5, 0.02
    clean = torch.full((d,), 0.02, dtype=torch.float64)
    clean[:k] += torch.tensor([4.0, 2.0, 1.0, 0.8, 0.6])
    formula, truth, naive = [], [], []
    for seed in range(10):
        noise = torch.randn(d, d, generator=Streams(seed).torch("z"), dtype=torch.float64) * std
        values, vectors = torch.linalg.eigh((noise + noise.T) / 2 + torch.diag(clean))
        formula.append(float(left_outside(values, k, std)))
        truth.append(float(clean.sum() - (vectors[:, -k:].square() * clean[:, None]).sum()))
        naive.append(float(values[:-k].sum()))
    assert np.mean(formula) == pytest.approx(np.mean(truth), rel=0.05)
    assert np.mean(naive) < 0.9 * np.mean(truth)  # it misses what the noise turned out of the basis


def test_the_residual_is_the_variance_of_the_images_outside_the_basis():
    rng = np.random.default_rng(0)
    n, d = 5000, 144
    x = rng.normal(size=(n, d)) * np.where(np.arange(d) < 12, 40, 6) + 128
    images = ImageSet(x.clip(0, 255).round().astype(np.uint8).reshape(n, 1, 12, 12), np.zeros(n, np.int64), 1)
    for epsilon in (1.0, 5.0):
        mixture = released(images, epsilon, max_image_norm=8.0, max_centered_norm=1.0, variance_floor=1e-6)
        centered = images.images.reshape(n, d) / 255 - mixture.means[0].double().numpy()
        outside = centered - centered @ mixture.basis.double().numpy() @ mixture.basis.double().numpy().T
        per_direction = np.square(outside).sum(1).mean() / (d - mixture.basis.shape[1])
        assert float(mixture.residual) == pytest.approx(per_direction, rel=0.1)


def test_coordinates_are_the_lowest_frequencies():
    """Against scipy's transform. All frequencies are a rotation, fewer a projection, None the pixels themselves."""
    rows = torch.randn(4, 2 * 6 * 5, dtype=torch.float64, generator=Streams(0).torch("x"))
    into, back = coordinates((2, 6, 5), 3)
    wanted = dctn(rows.reshape(4, 2, 6, 5).numpy(), axes=(2, 3), norm="ortho")[:, :, :3, :3]
    np.testing.assert_allclose(into(rows), wanted.reshape(4, -1), atol=1e-12)
    np.testing.assert_allclose(into(back(into(rows))), into(rows), atol=1e-12)
    into, back = coordinates((2, 6, 5), 9)
    np.testing.assert_allclose(back(into(rows)), rows, atol=1e-12)
    into, back = coordinates((2, 6, 5), None)
    assert into(rows) is back(rows) is rows


def test_frequencies_lose_nothing_of_smooth_images_and_keep_noise_out():
    """Class means of smooth images: exact without noise, and with noise nearer than those of all pixels."""
    rng = np.random.default_rng(0)
    into, back = coordinates((1, 12, 12), 4)
    smooth = back(torch.from_numpy(rng.normal(size=(4000, 16)) * 0.1)).numpy() + 0.5
    pixels = (smooth.clip(0, 1) * 255).round().astype(np.uint8).reshape(-1, 1, 12, 12)
    images = ImageSet(pixels, np.arange(4000) % 2, 2)
    truth = np.stack([images.images[y::2].mean(0).ravel() / 255 for y in range(2)])
    exact = released(images, math.inf, frequencies=4)
    np.testing.assert_allclose(exact.means, truth, atol=2e-3)
    np.testing.assert_allclose(exact.basis.T @ exact.basis, torch.eye(exact.basis.shape[1]), atol=1e-5)
    errors = [
        np.square(released(images, 1.0, frequencies=kept).means.numpy() - truth).mean() for kept in (None, 4)
    ]  # 16 of 144 coordinates have noise
    assert errors[1] < 0.2 * errors[0]
    rest = exact.draw(np.zeros(50, np.int64), Streams(0)).double()
    np.testing.assert_allclose(back(into(rest)), rest, atol=1e-5)


def test_cells_of_few_records_keep_their_weight_where_noise_is_low():
    images, _ = two_clusters(60)
    weights = released(images, 1000, components=2, rounds=6, variance_floor=1e-6).weights
    assert sorted(weights[0].tolist()) == pytest.approx([0.3, 0.7], abs=0.1)


def test_cells_without_records_do_not_move_far_by_noise():
    images, _ = two_clusters()
    empty = released(ImageSet(images.images, images.labels, 3), 0.2, components=8).offsets[2]
    assert float(empty.norm(dim=1).max()) < 10.0  # max_centered_norm


@pytest.mark.parametrize("frequencies", [None, 3])
def test_a_record_moves_no_release_by_more_than_its_sensitivity(frequencies):
    """Every statistic that the door is given, over bright, dark and random images of every class."""
    bounds = {"max_image_norm": 1.0, "max_centered_norm": 0.8, "max_component_norm": 0.5}
    params = MixtureParams(**bounds, components=3, rounds=2, frequencies=frequencies)
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (200, 1, 4, 4)).astype(np.uint8)
    pictures[:2], pictures[2:4] = 0, 255
    images = ImageSet(pictures, np.arange(200) % 4, 4)
    plan = params.plan()
    seen: dict[str, float] = {}

    class Watching(PrivateData):
        def _clipped_total(self, name, statistic, l2_bound, reduce, rng):
            every = [
                reduce(v * min(1.0, l2_bound / max(float(v.norm()), 1e-30)))
                for i in range(len(pictures))
                for v in [statistic(*self._batch(np.array([i]))).double()]
            ]
            seen[name] = max(float(one.norm()) for one in every)
            raw = max(float(statistic(*self._batch(np.array([i]))).norm()) for i in range(len(pictures)))
            if name.startswith("k_means"):
                assert raw <= l2_bound * (1 + 1e-6)  # clipped by the method: the count keeps its weight
            return super()._clipped_total(name, statistic, l2_bound, reduce, rng)

    spec = RunSpec(
        study="s", dataset="d", method="m", impl="baselines.dp_mixture:DPMixture", params={}, epsilon=5.0, delta=1e-5,
        allow_large_delta=False, accountant="rdp", seed=0,
    )  # fmt: skip
    ledger = empty_ledger(spec, images.meta)
    private = Watching(images, plan, Budget(5.0, 1e-5), "rdp", Randomness.repeatable(0), ledger)
    release(private, params, Streams(0))
    assert set(seen) == {mechanism.name for mechanism in plan}
    for mechanism in plan:
        assert seen[mechanism.name] <= mechanism.sensitivity * (1 + 1e-6)


def empty_ledger(spec: RunSpec, meta: ImageMeta) -> Ledger:
    return Ledger(
        n=meta.n, delta=1e-5, target_epsilon=spec.epsilon, accountant="rdp", coordinates={}, recipe={}, provenance={},
        shape=meta.shape, num_classes=meta.num_classes, noise="repeatable",
    )  # fmt: skip


@pytest.mark.parametrize("epsilon", [0.1, math.inf])
@pytest.mark.parametrize("components", [1, 3])
def test_classes_without_images_give_finite_images(components, epsilon):
    images = ImageSet(np.full((20, 1, 4, 4), 200, np.uint8), np.zeros(20, np.int64), 3)
    from baselines.dp_mixture import Model

    model = Model(released(images, epsilon, components=components), (1, 4, 4))
    again = Model.from_state(model.state())
    out = again.sample(np.array([0, 1, 2]), NoParams(), Streams(0))
    assert out.shape == (3, 1, 4, 4)
    assert all(torch.isfinite(value).all() for value in model.mixture.state().values())
    np.testing.assert_array_equal(out, model.sample(np.array([0, 1, 2]), NoParams(), Streams(0)))


def test_a_class_without_images_has_a_mean_no_longer_than_an_image():
    """Noise divided by a count near 0 would else be a mean of any length."""
    images = ImageSet(np.full((20, 1, 4, 4), 200, np.uint8), np.zeros(20, np.int64), 3)
    mixture = released(images, 0.1, max_image_norm=2.0)
    assert float(mixture.means.norm(dim=1).max()) <= 2.0 * (1 + 1e-6)
    assert float(mixture.class_weights.max()) < 0.9  # counts of noise only are at its standard deviation


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(UserError, match="component_share"):
        MixtureParams(**BOUNDS, components=2, scatter_share=0.6).plan()
    assert sum(m.noise_ratio**-2 for m in MixtureParams(**BOUNDS, components=2).plan(0.3)) == pytest.approx(0.3)
    without = [mechanism.name for mechanism in MixtureParams(**BOUNDS).plan()]
    assert without == ["class_counts", "class_sums", "scatter", "class_scatter"]
