"""Tests of dpdm/smoothing.py: the minimizer against closed forms and a general solver, and the key `tv_weight`."""

import numpy as np
import pytest
import torch
from scipy import optimize

from dpdm.api import train_arrays
from dpdm.errors import UserError
from dpdm.method import load_method
from dpdm.smoothing import BATCH, denoised, parse_sampler, smoothed

METHODS = ["baselines.class_mean:ClassMean", "baselines.dp_merf:DPMERF", "dpdm.diffusion.method:DPDM"]


def total_variation(u: np.ndarray) -> float:
    """Of one channel [H, W], by its definition."""
    down, right = np.zeros_like(u), np.zeros_like(u)
    down[:-1], right[:, :-1] = np.diff(u, axis=0), np.diff(u, axis=1)
    return float(np.hypot(down, right).sum())


def objective(u: np.ndarray, x: np.ndarray, weight: float) -> float:
    return float(((u - x) ** 2).sum()) / 2 + weight * total_variation(u)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1)])
def test_two_pixels_move_towards_each_other_by_the_weight(shape):
    x = torch.tensor([0.2, 0.9]).view(shape)
    torch.testing.assert_close(denoised(x, 0.1).flatten(), torch.tensor([0.3, 0.8]), atol=1e-4, rtol=0)
    torch.testing.assert_close(denoised(x, 0.5).flatten(), torch.tensor([0.55, 0.55]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("weight", [0.05, 0.2])
def test_no_general_solver_finds_a_better_image(weight):
    x = np.random.default_rng(0).random((4, 5))
    found = denoised(torch.from_numpy(x), weight).numpy()
    best = optimize.minimize(
        lambda u: objective(u.reshape(x.shape), x, weight), x.ravel(), method="Powell", options={"maxiter": 200}
    ).fun
    assert objective(found, x, weight) <= best + 1e-3
    assert objective(found, x, weight) < objective(x, x, weight)


def test_grain_goes_and_edges_stay():
    clean = np.full((1, 1, 28, 28), 60.0)
    clean[..., 8:20, 8:20] = 200
    noisy = np.clip(clean + 20 * np.random.default_rng(0).standard_normal(clean.shape), 0, 255).astype(np.uint8)
    done = smoothed(noisy, 0.1).astype(float)
    assert np.abs(done - clean).mean() < np.abs(noisy - clean).mean() / 2
    assert (done[..., 14, 9] - done[..., 14, 6] > 100).all()


def test_each_image_and_each_channel_is_smoothed_by_itself():
    images = np.random.default_rng(0).integers(0, 256, (BATCH + 2, 3, 4, 4), np.uint8)
    done = smoothed(images, 0.1)
    assert done.dtype == np.uint8
    assert done.shape == images.shape
    for i in (0, BATCH - 1, BATCH + 1):
        np.testing.assert_array_equal(smoothed(images[i : i + 1], 0.1)[0], done[i])
        np.testing.assert_array_equal(smoothed(images[i : i + 1, 1:2], 0.1)[0, 0], done[i, 1])


def test_without_a_weight_and_without_images_nothing_happens():
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4), np.uint8)
    assert smoothed(images, 0) is images
    assert smoothed(images[:0], 0.1).shape == (0, 1, 4, 4)


@pytest.mark.parametrize("impl", METHODS)
def test_every_generator_has_the_key_besides_its_own(impl):
    sampler = parse_sampler(load_method(impl), {"tv_weight": 0.25}, "samplers.a")
    assert sampler.smoothing.tv_weight == 0.25
    assert sampler.own == parse_sampler(load_method(impl), {}, "samplers.a").own
    assert parse_sampler(load_method(impl), {}, "samplers.a").smoothing.tv_weight == 0


@pytest.mark.parametrize("entry", [{"tv_weight": -0.1}, {"tv_weight": "0.1"}, {"tv_weihgt": 0.1}])
def test_a_wrong_weight_is_refused_by_its_place(entry):
    with pytest.raises(UserError) as refused:
        parse_sampler(load_method("baselines.class_mean:ClassMean"), entry, "methods.m.samplers.a")
    assert "methods.m.samplers.a" in str(refused.value)
    assert next(iter(entry)) in str(refused.value)


def test_a_run_draws_smoothed_images(digits64):
    def drawn(sampler: dict[str, float]) -> np.ndarray:
        run = train_arrays(
            digits64.images, digits64.labels, num_classes=10, method="dp_gaussian", epsilon=1000,
            params={"max_image_norm": 8.0}, sampler=sampler,
        )  # fmt: skip
        return run.draw(np.arange(10))

    np.testing.assert_array_equal(drawn({"tv_weight": 0.2}), smoothed(drawn({}), 0.2))
