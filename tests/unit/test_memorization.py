"""Memorization: copies are seen, honest images are not blamed, and the picture shows the nearest pairs."""

import numpy as np
import pytest
from refusals import refuses

from dpdm.data import ImageSet
from dpdm.evaluation import memorization


def images(n, seed, shape=(1, 8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)
    return ImageSet(pixels, np.zeros(n, np.int64), 1, f"set {seed}")


TRAIN, HELD_OUT = images(60, 0), images(50, 1)


def near(images_, most=8, seed=2):
    noise = np.random.default_rng(seed).integers(-most, most + 1, images_.images.shape)
    return ImageSet((images_.images.astype(int) + noise).clip(0, 255).astype(np.uint8), images_.labels, 1)


def test_fresh_images_have_a_ratio_of_about_one():
    (row,), facts, _ = memorization.measure(images(50, 3), TRAIN, HELD_OUT)
    assert (row["metric"], row["extractor"], row["direction"], row["reference"]) == (
        "nearest_ratio", "", "higher", "train",
    )  # fmt: skip
    assert row["value"] == pytest.approx(1, abs=0.03)
    assert facts["share_below_held_out_0.01"] <= 0.1


def test_held_out_images_have_a_ratio_of_one():
    (row,), facts, _ = memorization.measure(HELD_OUT, TRAIN, HELD_OUT)
    assert row["value"] == facts["ratio"] == 1


def test_copies_have_a_ratio_of_zero_and_near_copies_little_more():
    (row,), facts, _ = memorization.measure(TRAIN, TRAIN, HELD_OUT)
    assert row["value"] == 0 == facts["synthetic"]["0.5"]
    assert facts["share_below_held_out_0.01"] == 1
    (row,), facts, _ = memorization.measure(near(TRAIN), TRAIN, HELD_OUT)
    assert 0 < row["value"] < 0.1
    assert facts["share_below_held_out_0.01"] == 1


def test_a_few_copies_among_fresh_images_are_in_the_quantiles_and_in_the_picture():
    mixed = images(100, 4)
    mixed.images[::25] = TRAIN.images[:4]
    (row,), facts, picture = memorization.measure(mixed, TRAIN, HELD_OUT)
    assert row["value"] > 0.9
    assert facts["share_below_held_out_0.01"] >= 0.04
    assert facts["synthetic"]["0"] == 0 < facts["held_out"]["0"]
    above, below = np.split(picture, 2)
    width = picture.shape[1] // memorization.PAIRS
    for pair in range(memorization.PAIRS):
        here = slice(pair * width, (pair + 1) * width)
        assert np.array_equal(above[:, here], below[:, here]) == (pair < 4)


def test_noise_is_no_better_than_one():
    far = ImageSet(np.full((20, 1, 8, 8), 255, np.uint8), np.zeros(20, np.int64), 1)
    (row,), facts, _ = memorization.measure(far, TRAIN, HELD_OUT)
    assert row["value"] == 1 < facts["ratio"]


def test_the_output_says_that_it_is_no_release():
    _, facts, _ = memorization.measure(HELD_OUT, TRAIN, HELD_OUT)
    assert "private" in facts["warning"]
    assert "no release" in facts["warning"]


def test_distances_are_those_of_a_loop_whatever_the_chunk(monkeypatch):
    monkeypatch.setattr(memorization, "_CHUNK", 7)
    distances, places = memorization.nearest(HELD_OUT.images, TRAIN.images)
    every = (HELD_OUT.images[:, None].astype(float) - TRAIN.images[None]) / 255
    every = np.sqrt((every**2).mean((2, 3, 4)))
    np.testing.assert_array_equal(places, every.argmin(1))
    np.testing.assert_allclose(distances, every.min(1), rtol=1e-6)


def test_only_so_many_images_are_looked_at(monkeypatch):
    monkeypatch.setattr(memorization, "MOST", 5)
    seen, nearest = [], memorization.nearest
    monkeypatch.setattr(
        memorization, "nearest", lambda images, train: seen.append(len(images)) or nearest(images, train)
    )
    memorization.measure(TRAIN, TRAIN, HELD_OUT)
    assert seen == [5, 5]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (1, 5, 9)])
def test_the_picture_is_a_png_of_any_shape(tmp_path, shape):
    from PIL import Image

    *_, picture = memorization.measure(images(3, 0, shape), images(9, 1, shape), images(4, 2, shape))
    memorization.write_picture(tmp_path / "nearest.png", picture)
    assert Image.open(tmp_path / "nearest.png").mode == ("RGB" if shape[0] == 3 else "L")


def test_images_of_another_shape_are_refused():
    with refuses("set 3", "set 0", "shape"):
        memorization.measure(images(5, 3, (1, 8, 9)), TRAIN, HELD_OUT)
