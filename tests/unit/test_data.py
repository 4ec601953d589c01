"""Images: their form, the converter, the sources, and delta."""

import dataclasses
import gzip
import hashlib
import http.client
import io
import os
import struct
import tarfile
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from dpdm import artifacts, data
from dpdm.config import SourceSpec
from dpdm.data import ImageMeta, ImageSet, parse_cifar10, parse_idx, read_image, resolve_delta
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
    assert read.drawn_by == ""
    data.write_images(tmp_path / "a.npz", dataclasses.replace(digits64, drawn_by='{"é": 1}'))
    assert data.read_images(tmp_path / "a.npz").drawn_by == '{"é": 1}'
    assert data.read_images(tmp_path / "a.npz").digest() == digits64.digest()


@pytest.mark.parametrize("classes", [np.array([10]), np.float64(10), np.str_("ten")])
def test_num_classes_of_a_file_must_be_one_integer(tmp_path, digits64, classes):
    path = tmp_path / "a.npz"
    artifacts.write_npz(path, {"images": digits64.images, "labels": digits64.labels, "num_classes": classes})
    with pytest.raises(UserError, match="num_classes must be one integer") as error:
        data.read_images(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", [{"n": 3}, {"n": {"test": 1}}, {"shape": [1, 8]}, {"num_classes": "10"}])
def test_facts_of_a_wrong_kind_are_named(tmp_path, digits64, damage):
    facts = data.dataset_facts(SourceSpec(source="digits"), {"train": digits64, "test": digits64})
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
    with pytest.raises(UserError, match="allow_large_delta: true"):
        resolve_delta(delta, 1000)
    assert resolve_delta(delta, 1000, allow_large=True) == delta
    assert resolve_delta(delta, 1) == delta


def test_delta_of_no_images():
    with pytest.raises(UserError, match="no images"):
        resolve_delta("1/(2n)", 0)


# --- sources --------------------------------------------------------------------------------------------------


def test_every_source_of_the_schema_can_be_loaded():
    assert set(data._SOURCES) == set(get_args(SourceSpec.model_fields["source"].annotation)) == set(SourceSpec.KEYS)


@pytest.mark.parametrize(
    ("keys", "meta"),
    [
        ({"source": "mnist"}, ImageMeta(60_000, (1, 28, 28), 10)),
        ({"source": "cifar10"}, ImageMeta(50_000, (3, 32, 32), 10)),
        ({"source": "celeba", "image_size": 32}, ImageMeta(162_770, (3, 32, 32), 1)),
        ({"source": "celeba", "image_size": 64, "label": "Male"}, ImageMeta(162_770, (3, 64, 64), 2)),
    ],
)
def test_public_facts_are_known_without_the_files(monkeypatch, tmp_path, keys, meta):
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path / "nowhere"))
    assert data.known_meta(SourceSpec(**keys)) == meta


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
    known = data._Published(
        (1, 3, 4), 2, {n: hashlib.sha256(c).hexdigest() for n, c in contents.items()}, ("http://m/",)
    )
    monkeypatch.setitem(data._PUBLISHED, "mnist", known)
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


@pytest.mark.parametrize("source", data._PUBLISHED)
def test_missing_files_without_network_are_one_sentence(tmp_path, monkeypatch, no_network, source):
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as error:
        data.load_dataset(SourceSpec(source=source))
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in data._PUBLISHED[source].sha256)
    assert str(tmp_path / source) in message
    assert data.DATA_DIR_VARIABLE in message
    assert len(no_network) == len(data._PUBLISHED[source].mirrors)  # every mirror was tried, for one file
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
    known = data._PUBLISHED["mnist"]
    both = data._Published(known.shape, known.train, known.sha256, ("http://bad/", "http://good/"))
    monkeypatch.setitem(data._PUBLISHED, "mnist", both)
    contents = {"http://bad/" + name: bad, "http://good/" + name: good}
    monkeypatch.setattr("urllib.request.urlopen", lambda url, **_: Response(contents[url]))
    assert np.array_equal(data.load_dataset(SourceSpec(source="mnist"))["train"].images, IMAGES[:, None])
    assert (small_mnist / name).read_bytes() == good
    contents["http://good/" + name] = bad
    (small_mnist / name).unlink()
    with pytest.raises(UserError, match=r"missing and (no mirror could be reached|http://good/ gave another file)"):
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


# --- CIFAR-10 -------------------------------------------------------------------------------------------------

BATCHES = [*(f"data_batch_{number}.bin" for number in (1, 2, 3, 4, 5)), "test_batch.bin"]


def cifar_record(number: int) -> bytes:
    """Label number % 10; each colour plane counts up from another start, so that any mix-up shows."""
    planes = [(np.arange(1024) + 7 * number + 50 * colour) % 256 for colour in range(3)]
    return bytes([number % 10, *np.concatenate(planes).astype(np.uint8)])


def cifar_archive(contents: dict[str, bytes] | None = None, order=BATCHES, records: int = 2) -> bytes:
    """A gzipped tar like the original: six batches of `records` records each, numbered on through the batches."""
    contents = {
        name: b"".join(cifar_record(batch * records + i) for i in range(records)) for batch, name in enumerate(BATCHES)
    } | (contents or {})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name in ("readme.html", *order):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(contents.get(name, b""))
            archive.addfile(info, io.BytesIO(contents.get(name, b"")))
    return buffer.getvalue()


@pytest.mark.parametrize("order", [BATCHES, BATCHES[::-1]], ids=["in order", "reversed"])
def test_a_good_cifar10_archive(order):
    splits = parse_cifar10(cifar_archive(order=order), "f")
    assert {split: len(images.images) for split, images in splits.items()} == {"train": 10, "test": 2}
    numbers = {"train": range(10), "test": range(10, 12)}
    for split, images in splits.items():
        assert images.meta == ImageMeta(len(numbers[split]), (3, 32, 32), 10)
        assert images.labels.tolist() == [number % 10 for number in numbers[split]]
        for image, number in zip(images.images, numbers[split], strict=True):
            for colour, row, column in ((0, 0, 0), (1, 0, 5), (2, 31, 30)):
                assert image[colour, row, column] == (32 * row + column + 7 * number + 50 * colour) % 256


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is corrupt or truncated"),
        (b"not gzip", "is corrupt or truncated"),
        (gzip.compress(b"no tar, but as long as a block of one" * 20), "is corrupt or truncated"),
        (cifar_archive()[:-200], "is corrupt or truncated"),
        (cifar_archive()[:200] + b"\x00\x00" + cifar_archive()[202:], "is corrupt or truncated"),
        (cifar_archive(order=BATCHES[1:]), "holds no data_batch_1.bin of"),
        (cifar_archive({"test_batch.bin": b""}), "holds no test_batch.bin of"),
        (cifar_archive({"data_batch_3.bin": cifar_record(1)[:-1]}), "holds no data_batch_3.bin of whole 3073-byte"),
        (cifar_archive({"test_batch.bin": b"\x0a" + cifar_record(1)[1:]}), "labels must lie in 0..9"),
    ],
    ids=["empty", "not gzip", "no tar", "cut short", "damaged", "file missing", "file empty", "record cut", "label"],
)
def test_a_bad_cifar10_archive_is_named(content, part):
    with pytest.raises(UserError, match=r"^folder/archive\.tar\.gz") as error:
        parse_cifar10(content, "folder/archive.tar.gz")
    assert part in str(error.value)


@pytest.fixture
def small_cifar10(monkeypatch, tmp_path):
    """A folder with a small archive, and a source "cifar10" that expects exactly it."""
    content = cifar_archive()
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(content)
    sha256 = {"cifar-10-binary.tar.gz": hashlib.sha256(content).hexdigest()}
    known = data._Published((3, 32, 32), 10, sha256, ("http://m/",), data._PUBLISHED["cifar10"].note)
    monkeypatch.setitem(data._PUBLISHED, "cifar10", known)
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path))
    return tmp_path / "cifar10"


def test_the_cifar10_archive_becomes_splits(small_cifar10, no_network):
    for spec in (SourceSpec(source="cifar10"), SourceSpec(source="cifar10", data_dir=str(small_cifar10))):
        splits = data.load_dataset(spec)
        assert splits["train"].meta == data.known_meta(spec)
        assert splits["test"].labels.tolist() == [0, 1]
    assert no_network == []


def test_another_cifar10_archive_is_refused(small_cifar10, no_network):
    path = small_cifar10 / "cifar-10-binary.tar.gz"
    path.write_bytes(cifar_archive(records=3))
    with pytest.raises(UserError, match="has another SHA-256 than cifar10's original") as error:
        data.load_dataset(SourceSpec(source="cifar10"))
    assert str(path) in str(error.value)


def test_cifar10_is_fetched_where_it_is_missing(small_cifar10, monkeypatch):
    path = small_cifar10 / "cifar-10-binary.tar.gz"
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, **_: Response({f"http://m/{path.name}": content}[url]))
    assert len(data.load_dataset(SourceSpec(source="cifar10"))["train"].images) == 10
    assert path.read_bytes() == content


def test_the_pickled_cifar10_archive_is_not_read_and_the_error_says_so(small_cifar10, no_network):
    (small_cifar10 / "cifar-10-binary.tar.gz").rename(small_cifar10 / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"put cifar-10-binary\.tar\.gz into .*python\.tar\.gz is not read.*unpickling"):
        data.load_dataset(SourceSpec(source="cifar10"))


@pytest.mark.data
def test_the_real_cifar10():
    if not (Path(os.environ.get(data.DATA_DIR_VARIABLE, "data")) / "cifar10").is_dir():
        pytest.skip(f"cifar10 is not at ${data.DATA_DIR_VARIABLE}")
    splits = data.load_dataset(SourceSpec(source="cifar10"))
    assert splits["train"].meta == data.known_meta(SourceSpec(source="cifar10"))
    assert np.bincount(splits["train"].labels).tolist() == [5000] * 10
    assert np.bincount(splits["test"].labels).tolist() == [1000] * 10


# --- image files ----------------------------------------------------------------------------------------------


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_an_image_of_the_right_size_stays_exact(tmp_path):
    pixels = picture(8, 8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 3), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(("height", "width"), [(12, 8), (8, 12), (13, 8)])
def test_the_largest_centred_square_is_cut_out(tmp_path, height, width):
    pixels = picture(height, width)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    top, left = (height - 8) // 2, (width - 8) // 2
    expected = pixels[top : top + 8, left : left + 8].transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", 8, 3), expected)


def test_shrinking_averages_over_all_pixels(tmp_path):
    """Without antialiasing, a fine checkerboard becomes black or white instead of grey."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png", 8, 3).astype(int)
    assert np.abs(out - 127.5).max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_mode_is_converted(tmp_path, mode, channels):
    original = Image.fromarray(picture(8, 8)).convert(mode)
    original.save(tmp_path / "a.png")
    expected = np.asarray(original.convert({1: "L", 3: "RGB"}[channels])).reshape(8, 8, channels).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", 8, channels), expected)


def test_16_bits_are_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="more than 8 bits per channel"):
        read_image(tmp_path / "a.png", 8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_image_is_named(tmp_path, kind):
    buffer, path = io.BytesIO(), tmp_path / "a.png"
    Image.fromarray(picture(16, 16)).save(buffer, kind)
    content = buffer.getvalue()
    for damaged in (b"", b"text", content[:20], content[: len(content) // 2], content[:-60]):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            read_image(path, 8, 3)
        message = str(error.value)
        assert message.startswith(f"{path} cannot be read as an image (")
        assert "\n" not in message


def test_other_formats_and_missing_files_are_refused(tmp_path):
    Image.fromarray(picture(8, 8)).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    for name in ("a.png", "missing.png", "folder.png"):
        with pytest.raises(UserError, match="cannot be read as an image"):
            read_image(tmp_path / name, 8, 3)


# --- CelebA ---------------------------------------------------------------------------------------------------

CELEBA = SourceSpec(source="celeba", image_size=16)
CELEBA_MALE = SourceSpec(source="celeba", image_size=16, label="Male")


def celeba_pixels(number: int) -> np.ndarray:
    """A smooth 178x218 image (JPEG keeps it nearly) whose top and bottom bars the crop must remove."""
    image = np.empty((218, 178, 3), np.uint8)
    image[:] = [20 * number, 255 - 20 * number, 100]
    image[:20], image[198:] = 255, 255
    return image


@pytest.fixture
def small_celeba(monkeypatch, tmp_path):
    """Eight images: 1, 4, 6, 8 to train, 2 and 5 to validate, 3 and 7 to test; odd ones are Male."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    partition = {1: 0, 2: 1, 3: 2, 4: 0, 5: 1, 6: 0, 7: 2, 8: 0}
    for number in partition:
        path = folder / "img_align_celeba" / f"{number:06}.jpg"
        Image.fromarray(celeba_pixels(number)).save(path, quality=95)
    splits = "".join(f"{number:06}.jpg {split}\n" for number, split in partition.items())
    (folder / "list_eval_partition.txt").write_text(splits)
    rows = "".join(f"{number:06}.jpg -1 {' 1' if number % 2 else '-1'}  1\n" for number in partition)
    (folder / "list_attr_celeba.txt").write_text(f"8\nBald Male Young \n{rows}")
    monkeypatch.setattr(data, "_CELEBA_SIZES", {"train": 4, "test": 2})
    monkeypatch.setenv(data.DATA_DIR_VARIABLE, str(tmp_path))
    return folder


def test_celeba(small_celeba):
    for spec in (CELEBA, CELEBA.model_copy(update={"data_dir": str(small_celeba)})):
        splits = data.load_dataset(spec)
        assert splits["train"].meta == data.known_meta(spec) == ImageMeta(4, (3, 16, 16), 1)
        for split, numbers in (("train", (1, 4, 6, 8)), ("test", (3, 7))):
            assert splits[split].labels.tolist() == [0] * len(numbers)
            expected = np.array([[20 * number, 255 - 20 * number, 100] for number in numbers])
            difference = splits[split].images.astype(int) - expected[:, :, None, None]
            assert np.abs(difference[..., 2:-2, :]).max() <= 3
            assert np.abs(difference).max() <= 20  # the white bars bleed into the crop by JPEG's blocks alone


def test_an_attribute_makes_two_classes(small_celeba):
    splits = data.load_dataset(CELEBA_MALE)
    assert splits["train"].meta == data.known_meta(CELEBA_MALE) == ImageMeta(4, (3, 16, 16), 2)
    assert splits["train"].labels.tolist() == [1, 0, 0, 0]
    assert splits["test"].labels.tolist() == [1, 1]


def test_celeba_without_attributes_needs_no_list_of_them(small_celeba):
    (small_celeba / "list_attr_celeba.txt").unlink()
    assert len(data.load_dataset(CELEBA)["train"].images) == 4
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt is missing"):
        data.load_dataset(CELEBA_MALE)


@pytest.mark.parametrize("name", ["img_align_celeba", "list_eval_partition.txt"])
def test_missing_celeba_is_one_sentence(small_celeba, name):
    (small_celeba / name).rename(small_celeba / "elsewhere")
    with pytest.raises(UserError) as error:
        data.load_dataset(CELEBA)
    message = str(error.value)
    assert message.startswith(f"celeba: {small_celeba / name} is missing; ")
    assert "\n" not in message
    for part in ("img_align_celeba, list_eval_partition.txt", str(small_celeba), data.DATA_DIR_VARIABLE, "https://"):
        assert part in message


def test_a_part_of_celeba_is_refused(small_celeba):
    (small_celeba / "img_align_celeba" / "000007.jpg").unlink()
    with pytest.raises(UserError, match=r"holds 1 of CelebA's 2 test images; unpack img_align_celeba\.zip again"):
        data.load_dataset(CELEBA)
    for number in (1, 4):
        (small_celeba / "img_align_celeba" / f"00000{number}.jpg").unlink()
    with pytest.raises(UserError, match="holds 2 of CelebA's 4 train images"):
        data.load_dataset(CELEBA)


def test_a_file_in_the_place_of_celebas_images(small_celeba):
    (small_celeba / "img_align_celeba").rename(small_celeba / "elsewhere")
    (small_celeba / "img_align_celeba").write_bytes(b"")
    with pytest.raises(UserError, match="holds 0 of CelebA's 4 train images"):
        data.load_dataset(CELEBA)


def test_another_list_of_splits_is_refused(small_celeba):
    (small_celeba / "list_eval_partition.txt").write_bytes(b"\xff\n000001.jpg 0 0\n000004.jpg 0\n")
    with pytest.raises(UserError, match=r"holds 1 of CelebA's 4 train images.*fetch list_eval_partition\.txt again"):
        data.load_dataset(CELEBA)


def test_the_real_totals_of_celeba_are_asked_for(small_celeba, monkeypatch):
    monkeypatch.setattr(data, "_CELEBA_SIZES", {"train": 162_770, "test": 19_962})
    with pytest.raises(UserError, match="holds 4 of CelebA's 162770 train images"):
        data.load_dataset(CELEBA)


def test_an_unknown_attribute_gets_the_nearest(small_celeba):
    with pytest.raises(UserError, match="knows no attribute 'male'; the nearest is 'Male'"):
        data.load_dataset(CELEBA.model_copy(update={"label": "male"}))


@pytest.mark.parametrize(
    ("old", "new"),
    [("000006.jpg -1", "000009.jpg -1"), ("000003.jpg -1  1", "000003.jpg -1  0"), (" 1\n000008", "\n8")],
)
def test_a_list_of_attributes_with_gaps_is_refused(small_celeba, old, new):
    path = small_celeba / "list_attr_celeba.txt"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="does not give Male as -1 or 1 for every image"):
        data.load_dataset(CELEBA_MALE)


def test_an_empty_list_of_attributes(small_celeba):
    (small_celeba / "list_attr_celeba.txt").write_text("")
    with pytest.raises(UserError, match="knows no attribute 'Male'"):
        data.load_dataset(CELEBA_MALE)


def test_the_crop_and_resize_are_recorded(small_celeba):
    facts = data.dataset_facts(CELEBA, data.load_dataset(CELEBA))
    assert facts["preprocessing"] == "largest centred square, resized by Pillow's antialiased bilinear filter"
    assert facts["n"] == {"train": 4, "test": 2}


def test_long_loading_shows_its_progress(small_celeba, monkeypatch, capsys):
    monkeypatch.setattr(data, "_PROGRESS_EVERY", 2)
    data.load_dataset(CELEBA)
    assert capsys.readouterr().err.splitlines() == [
        "celeba train: 2/4 images", "celeba train: 4/4 images", "celeba test: 2/2 images",
    ]  # fmt: skip


# --- the user's own folders -----------------------------------------------------------------------------------


@pytest.fixture
def own_folder(tmp_path):
    """Classes cat and dog; 3 + 1 training images and 1 + 2 test images of several sizes and endings."""
    names = {
        "train": {"dog": ["z.png", "a.JPG", "m.jpeg"], "cat": ["1.png"]},
        "test": {"cat": ["1.png"], "dog": ["1.png", "2.png"]},
    }
    for split, classes in names.items():
        for name, files in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number, file in enumerate(files):
                Image.fromarray(picture(8 + number, 9, number)).save(tmp_path / split / name / file)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "readme.txt").write_text("not a class")
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("not an image")
    return tmp_path


def folder_spec(folder, **keys) -> SourceSpec:
    return SourceSpec(**{"source": "folder", "data_dir": str(folder), "image_size": 8, "num_classes": 2} | keys)


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_a_folder_of_classes(own_folder, channels):
    spec = folder_spec(own_folder, channels=channels)
    splits = data.load_dataset(spec)
    assert splits["train"].meta == data.known_meta(spec) == ImageMeta(4, (channels or 3, 8, 8), 2)
    assert splits["train"].labels.tolist() == [0, 1, 1, 1]  # classes by name, not as the system lists them
    assert splits["test"].labels.tolist() == [0, 1, 1]
    files = ["cat/1.png", "dog/a.JPG", "dog/m.jpeg", "dog/z.png"]
    expected = [read_image(own_folder / "train" / name, 8, channels or 3) for name in files]
    assert np.array_equal(splits["train"].images, expected)
    assert "preprocessing" in data.dataset_facts(spec, splits)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_class_folders_must_match_num_classes(own_folder, split, classes):
    with pytest.raises(UserError, match=f"train holds 2 class folders but num_classes is {classes}"):
        data.known_meta(folder_spec(own_folder, num_classes=classes))
    (own_folder / split / "emu").mkdir()
    with pytest.raises(UserError, match=f"{split} holds 3 class folders but num_classes is 2"):
        data.load_dataset(folder_spec(own_folder))


def test_both_splits_need_the_same_classes(own_folder):
    (own_folder / "test" / "cat").rename(own_folder / "test" / "emu")
    with pytest.raises(UserError, match="class cat is in one of train/ and test/ alone"):
        data.load_dataset(folder_spec(own_folder))


@pytest.mark.parametrize("name", ["b.webp", "notes.txt", "more"])
def test_a_file_that_is_no_image_is_named(own_folder, name):
    (own_folder / "test" / "dog" / name).write_text("")
    with pytest.raises(UserError, match="convert it or move it away") as error:
        data.known_meta(folder_spec(own_folder))
    assert str(own_folder / "test" / "dog" / name) in str(error.value)


def test_an_unreadable_image_is_named(own_folder):
    path = own_folder / "train" / "dog" / "z.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError) as error:
        data.load_dataset(folder_spec(own_folder))
    assert str(error.value).startswith(f"{path} cannot be read as an image")


def test_a_split_without_images(own_folder):
    for path in (own_folder / "test").glob("*/*.png"):
        path.unlink()
    with pytest.raises(UserError, match="test holds no images"):
        data.load_dataset(folder_spec(own_folder))


def test_a_missing_folder_is_one_sentence(own_folder):
    for data_dir, missing in ((own_folder / "gone", "gone/train"), (own_folder / "train", "train/train")):
        with pytest.raises(UserError, match=f"cannot read .*{missing}: No such file.*data_dir/train/CLASS") as error:
            data.known_meta(folder_spec(data_dir))
        assert "\n" not in str(error.value)
