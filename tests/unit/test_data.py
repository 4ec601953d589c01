"""Images: their form, the converter, the sources, and delta."""

import gzip
import hashlib
import http.client
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from dpdm import artifacts, data
from dpdm.config import SourceSpec
from dpdm.data import ImageMeta, ImageSet, parse_idx, resolve_delta
from dpdm.errors import UserError

DIGITS = SourceSpec(source="digits")


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


@pytest.mark.parametrize("classes", [np.array([10]), np.float64(10), np.str_("ten")])
def test_num_classes_of_a_file_must_be_one_integer(tmp_path, digits64, classes):
    path = tmp_path / "a.npz"
    artifacts.write_npz(path, {"images": digits64.images, "labels": digits64.labels, "num_classes": classes})
    with pytest.raises(UserError, match="num_classes must be one integer") as error:
        data.read_images(path)
    assert str(path) in str(error.value)


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
    with pytest.raises(UserError, match="allow_large_delta: true"):
        resolve_delta(delta, 1000)
    assert resolve_delta(delta, 1000, allow_large=True) == delta
    assert resolve_delta(delta, 1) == delta


def test_delta_of_no_images():
    with pytest.raises(UserError, match="no images"):
        resolve_delta("1/(2n)", 0)


# --- digits ---------------------------------------------------------------------------------------------------


def test_the_split_of_the_digits_is_fixed_stratified_and_disjoint():
    splits = data.load_dataset(DIGITS)
    train, test = splits["train"], splits["test"]
    assert (len(train.images), len(test.images)) == (1437, 360)
    assert train.meta == data.known_meta(DIGITS)
    shares = [np.bincount(s.labels, minlength=10) / len(s.labels) for s in (train, test)]
    assert np.abs(shares[0] - shares[1]).max() < 1 / 360
    assert train.images.max() == 255
    # Whoever changes the split changes every published number; this digest makes it deliberate.
    assert train.digest() == "4832738f98e2e321291416ef09f3d6dde70d9500df67c150863a6184909051b3"
    assert test.digest() == "73a45c21e00b683ac412374c1b32be7a3318389184dffd7d9b69f90221582925"


def test_train_and_test_together_are_all_digits():
    from sklearn.datasets import load_digits

    splits = data.load_dataset(DIGITS)
    both = np.concatenate([splits["train"].images, splits["test"].images]).reshape(1797, -1)
    original = np.rint(load_digits().data * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, both)) == sorted(map(bytes, original))


def test_dataset_facts(digits64):
    facts = data.dataset_facts(DIGITS, {"train": digits64, "test": digits64})
    assert facts == {
        "source": "digits", "shape": [1, 8, 8], "num_classes": 10, "n": {"train": 64, "test": 64},
        "sha256": {"train": digits64.digest(), "test": digits64.digest()},
    }  # fmt: skip


# --- IDX ------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return gzip.compress(header + array.tobytes(), mtime=0)


IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def test_a_good_idx_file():
    parsed = parse_idx(idx(IMAGES), "f")
    assert np.array_equal(parsed, IMAGES)
    assert parsed.flags.writeable
    assert np.array_equal(parse_idx(idx(np.array([3, 1], np.uint8)), "f"), [3, 1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not gzip",
        idx(IMAGES)[:-9],
        idx(IMAGES)[:20] + b"\x00\x00" + idx(IMAGES)[22:],
        gzip.compress(b""),
        gzip.compress(b"\x00\x00"),
        gzip.compress(gzip.decompress(idx(IMAGES))[:10]),
        gzip.compress(gzip.decompress(idx(IMAGES))[:-1]),
        gzip.compress(gzip.decompress(idx(IMAGES)) + b"\x00"),
        gzip.compress(b"\x01" + gzip.decompress(idx(IMAGES))[1:]),
        idx(IMAGES, kind=9),
    ],
    ids=[
        "empty", "no gzip", "cut", "damaged", "gzip of nothing", "no magic", "cut header", "cut body", "long body",
        "wrong magic", "wrong type",
    ],
)  # fmt: skip
def test_a_bad_idx_file_is_named(content):
    with pytest.raises(UserError, match=r"^folder/file\.gz is .*; fetch it again$"):
        parse_idx(content, "folder/file.gz")


@pytest.fixture
def no_network(monkeypatch):
    """Every request fails; the list of requested addresses is returned."""
    requested = []

    def urlopen(url, **_):
        requested.append(url)
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return requested


@pytest.fixture
def small_mnist(monkeypatch, tmp_path):
    """A folder with four small IDX files, and a source "mnist" that expects exactly them."""
    labels = np.array([4, 2], np.uint8)
    contents = {
        "train-images-idx3-ubyte.gz": idx(IMAGES), "train-labels-idx1-ubyte.gz": idx(labels),
        "t10k-images-idx3-ubyte.gz": idx(IMAGES[1:]), "t10k-labels-idx1-ubyte.gz": idx(labels[1:]),
    }  # fmt: skip
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    known = data._Idx((1, 3, 4), 2, {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()}, ("http://m/",))
    monkeypatch.setitem(data._IDX, "mnist", known)
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path))
    return folder


def test_idx_files_become_splits(small_mnist, no_network):
    for spec in (SourceSpec(source="mnist"), SourceSpec(source="mnist", data_dir=str(small_mnist))):
        splits = data.load_dataset(spec)
        assert np.array_equal(splits["train"].images, IMAGES[:, None])
        assert splits["train"].labels.tolist() == [4, 2]
        assert np.array_equal(splits["test"].images, IMAGES[1:, None])
        assert splits["test"].labels.tolist() == [2]
    assert no_network == []


def test_the_folder_in_the_study_comes_before_the_environment(small_mnist, tmp_path, no_network):
    with pytest.raises(UserError, match="elsewhere"):
        data.load_dataset(SourceSpec(source="mnist", data_dir=str(tmp_path / "elsewhere")))


def test_a_wrong_checksum_is_refused(small_mnist):
    path = small_mnist / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(idx(IMAGES[:1]))
    with pytest.raises(UserError, match="has another SHA-256 than mnist's original") as error:
        data.load_dataset(SourceSpec(source="mnist"))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("source", ["mnist", "fashion_mnist"])
def test_missing_files_without_network_are_one_sentence(tmp_path, monkeypatch, no_network, source):
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as error:
        data.load_dataset(SourceSpec(source=source))
    message = str(error.value)
    assert "\n" not in message
    for names in data._IDX_FILES.values():
        assert all(name in message for name in names)
    assert str(tmp_path / source) in message
    assert data.DATA_DIR_VARIABLE in message
    assert len(no_network) == len(data._IDX[source].mirrors)  # every mirror was tried, for one file
    assert list(tmp_path.iterdir()) == []


class Response(io.BytesIO):
    """What urlopen gives, with a content or a failure."""

    def read(self, *_):
        if not self.getvalue():
            raise http.client.IncompleteRead(b"")
        return super().read()


@pytest.mark.parametrize("bad", [b"", b"a login page"], ids=["broken off", "other content"])
def test_a_bad_download_is_passed_over_for_the_next_mirror(small_mnist, monkeypatch, bad):
    name = "train-images-idx3-ubyte.gz"
    good = (small_mnist / name).read_bytes()
    (small_mnist / name).unlink()
    known = data._IDX["mnist"]
    both = data._Idx(known.shape, known.train, known.sha256, ("http://bad/", "http://good/"))
    monkeypatch.setitem(data._IDX, "mnist", both)
    contents = {"http://bad/" + name: bad, "http://good/" + name: good}
    monkeypatch.setattr("urllib.request.urlopen", lambda url, **_: Response(contents[url]))
    assert np.array_equal(data.load_dataset(SourceSpec(source="mnist"))["train"].images, IMAGES[:, None])
    assert (small_mnist / name).read_bytes() == good
    contents["http://good/" + name] = bad
    (small_mnist / name).unlink()
    with pytest.raises(UserError, match="no mirror"):
        data.load_dataset(SourceSpec(source="mnist"))
    assert not (small_mnist / name).exists()


@pytest.mark.data
@pytest.mark.parametrize("source", ["mnist", "fashion_mnist"])
def test_the_real_files(source):
    folder = Path(os.environ.get(data.DATA_DIR_VARIABLE, "data")) / source
    if not folder.is_dir():
        pytest.skip(f"{source} is not at ${data.DATA_DIR_VARIABLE}")
    spec = SourceSpec(source=source)
    splits = data.load_dataset(spec)
    assert splits["train"].meta == data.known_meta(spec) == ImageMeta(60000, (1, 28, 28), 10)
    assert splits["test"].meta == ImageMeta(10000, (1, 28, 28), 10)
    first = {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}[source]
    assert splits["train"].labels[:5].tolist() == first
    assert np.bincount(splits["test"].labels).min() >= 892
    assert splits["train"].images.mean() == pytest.approx({"mnist": 33.318, "fashion_mnist": 72.940}[source], abs=1e-3)


# --- npz ------------------------------------------------------------------------------------------------------


def npz_spec(tmp_path, train: dict, test: dict) -> SourceSpec:
    for split, arrays in (("train", train), ("test", test)):
        np.savez(tmp_path / f"{split}.npz", **arrays)
    return SourceSpec(source="npz", train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"), num_classes=3)


GOOD = {"images": np.zeros((4, 3, 5, 6), np.uint8), "labels": np.array([0, 1, 2, 0])}


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.int64, np.uint64])
def test_npz_files_of_any_integer_labels(tmp_path, kind):
    spec = npz_spec(tmp_path, GOOD | {"labels": GOOD["labels"].astype(kind)}, GOOD)
    splits = data.load_dataset(spec)
    assert splits["train"].meta == data.known_meta(spec) == ImageMeta(4, (3, 5, 6), 3)
    assert splits["train"].labels.dtype == np.int64


@pytest.mark.parametrize(
    ("split", "change", "part"),
    [
        ("train", {"images": np.zeros((4, 3, 5, 6))}, "images must be uint8"),
        ("test", {"images": np.zeros((4, 5, 6), np.uint8)}, "images must be uint8"),
        ("train", {"labels": np.array([0.0, 1, 2, 0])}, "labels must be int64"),
        ("train", {"labels": np.array([0, 1, 2])}, "labels must be int64"),
        ("train", {"labels": np.array([0, 1, 3, 0])}, "labels must lie in 0..2"),
        ("test", {"labels": np.array([0, 1, -1, 0])}, "labels must lie in 0..2"),
        ("test", {"images": np.zeros((4, 3, 6, 5), np.uint8)}, "different shapes"),
        ("train", {"images": np.zeros((0, 3, 5, 6), np.uint8), "labels": np.zeros(0, int)}, "holds no images"),
    ],
)
def test_npz_files_of_another_form(tmp_path, split, change, part):
    arrays = {"train": GOOD, "test": GOOD} | {split: GOOD | change}
    with pytest.raises(UserError, match=part) as error:
        data.load_dataset(npz_spec(tmp_path, **arrays))
    assert str(tmp_path / f"{split}.npz") in str(error.value)


@pytest.mark.parametrize("name", ["images", "labels"])
def test_an_npz_file_without_an_array(tmp_path, name):
    spec = npz_spec(tmp_path, {key: GOOD[key] for key in GOOD if key != name}, GOOD)
    for load in (data.load_dataset, data.known_meta):
        with pytest.raises(UserError, match=f"lacks the array '{name}'"):
            load(spec)
