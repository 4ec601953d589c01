"""Images: their form, the converter, labels, and delta."""

import dataclasses

import numpy as np
import pytest
import torch
from refusals import holds, refuses

from dpdm import artifacts, data
from dpdm.data import ImageMeta, ImageSet, doubts, resolve_delta
from dpdm.errors import UserError
from dpdm.sources.digits import Digits

# --- the form -------------------------------------------------------------------------------------------------


def make(images=None, labels=None, classes=3) -> ImageSet:
    images = np.zeros((4, 1, 2, 2), np.uint8) if images is None else images
    return ImageSet(images, np.array([0, 1, 2, 0]) if labels is None else labels, classes, "here")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((4, 1, 2, 2), np.float32), None),
        (np.zeros((4, 2, 2), np.uint8), None),
        (np.zeros((4, 1, 0, 2), np.uint8), None),
        (None, np.zeros(4, np.int32)),
        (None, np.zeros(3, np.int64)),
        (None, np.zeros((4, 1), np.int64)),
        (None, np.array([0, 1, 2, 3])),
        (None, np.array([0, 1, 2, -1])),
    ],
)
def test_another_form_is_refused_and_names_its_origin(images, labels):
    with pytest.raises(UserError, match=r"^here: "):
        make(images, labels)


def test_meta():
    assert make().meta == ImageMeta(4, (1, 2, 2), 3)


def test_the_digest_covers_pixels_labels_shape_and_classes(digits64):
    def digest(images=digits64.images, labels=digits64.labels, classes=10) -> str:
        return ImageSet(images, labels, classes).digest()

    images, labels = digits64.images.copy(), digits64.labels.copy()
    images[3, 0, 1, 1] += 1
    labels[5] = (labels[5] + 1) % 10
    digests = {
        digest(), digest(images=images), digest(labels=labels), digest(classes=11),
        digest(images=digits64.images.reshape(64, 1, 4, 16)), digest(digits64.images[::-1], digits64.labels[::-1]),
    }  # fmt: skip
    assert len(digests) == 6
    assert digest() == digits64.digest()


def test_image_files_round_trip(tmp_path, digits64):
    data.write_images(tmp_path / "a.npz", digits64)
    read = data.read_images(tmp_path / "a.npz")
    assert read.digest() == digits64.digest()
    assert read.origin == str(tmp_path / "a.npz")
    assert read.drawn_by == ""
    data.write_images(tmp_path / "a.npz", dataclasses.replace(digits64, drawn_by='{"é": 1}'))
    assert data.read_images(tmp_path / "a.npz").drawn_by == '{"é": 1}'
    assert data.read_images(tmp_path / "a.npz").digest() == digits64.digest()


@pytest.mark.parametrize("classes", [np.array([10]), np.float64(10), np.str_("ten")])
def test_num_classes_of_a_file_must_be_one_integer(tmp_path, digits64, classes):
    path = tmp_path / "a.npz"
    artifacts.write_npz(path, {"images": digits64.images, "labels": digits64.labels, "num_classes": classes})
    with refuses("num_classes") as error:
        data.read_images(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", [{"n": 3}, {"n": {"test": 1}}, {"shape": [1, 8]}, {"num_classes": "10"}])
def test_facts_of_a_wrong_kind_are_named(tmp_path, digits64, damage):
    facts = Digits().facts({"train": digits64, "test": digits64})
    artifacts.write_json(tmp_path / "dataset.json", facts)
    assert data.read_meta(tmp_path / "dataset.json") == digits64.meta
    artifacts.write_json(tmp_path / "dataset.json", facts | damage)
    with pytest.raises(UserError, match=rf"dataset\.json .*{next(iter(damage))}"):
        data.read_meta(tmp_path / "dataset.json")


# --- the converter --------------------------------------------------------------------------------------------


def test_the_converters_are_inverse_for_every_value():
    images = np.arange(256, dtype=np.uint8).reshape(4, 1, 8, 8)
    network = data.to_network(images)
    assert network.dtype == torch.float32
    assert (network.min(), network.max()) == (-1, 1)
    assert np.array_equal(data.to_uint8(network), images)
    assert np.array_equal(data.to_uint8(network.double()), images)


def test_values_outside_are_clipped_and_values_between_are_rounded():
    out = data.to_uint8(torch.tensor([-7.0, 7.0, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1]))
    assert out.tolist() == [0, 255, 0, 1]


# --- labels, delta --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "classes"), [(20, 10), (23, 10), (3, 10), (0, 10), (7, 1)])
def test_balanced_labels(count, classes):
    labels = data.balanced_labels(count, classes)
    assert labels.dtype == np.int64
    assert len(labels) == count
    counts = np.bincount(labels, minlength=classes)
    assert counts.max() - counts.min() <= 1
    assert len(counts) == classes


def test_label_only_is_noise_that_looked_at_nothing():
    meta = ImageMeta(1000, (1, 8, 8), 10)
    one, other = data.label_only(meta, 30), data.label_only(meta, 30)
    assert one.digest() == other.digest()
    assert data.label_only(ImageMeta(7, (1, 8, 8), 10), 30).digest() == one.digest()  # not even at n
    assert one.meta == ImageMeta(30, (1, 8, 8), 10)
    assert np.array_equal(one.labels, data.balanced_labels(30, 10))
    assert abs(one.images.mean() - 127.5) < 5 * 73.9 / np.sqrt(one.images.size)
    assert (one.images.min(), one.images.max()) == (0, 255)


def test_delta():
    assert resolve_delta("1/(2n)", 1000) == 1 / 2000
    assert resolve_delta(1e-5, 1000) == 1e-5


@pytest.mark.parametrize("delta", [1e-3, 0.5])
def test_delta_from_1_over_n_on_needs_permission(delta):
    with refuses("allow_large_delta"):
        resolve_delta(delta, 1000)
    assert resolve_delta(delta, 1000, allow_large=True) == delta
    assert resolve_delta(delta, 1) == delta


def test_delta_of_no_images():
    with pytest.raises(UserError, match="no images"):
        resolve_delta("1/(2n)", 0)


def test_the_two_ranges_of_pixels():
    network = torch.tensor([-1.0, -0.5, 0.0, 1.0])
    assert data.to_unit(network).tolist() == [0.0, 0.25, 0.5, 1.0]
    assert torch.equal(data.from_unit(data.to_unit(network)), network)


def test_what_is_probably_a_mistake_is_said(digits64):
    binary = ImageSet((digits64.images > 99).astype(np.uint8), digits64.labels, 10, "binary")
    for splits in ({"train": digits64, "test": binary}, {"train": binary, "test": digits64}):
        (found,) = doubts(splits)
        holds(found, "binary", "255")
    (found,) = doubts({"train": digits64, "test": digits64})
    holds(found, "digits64", "same")
