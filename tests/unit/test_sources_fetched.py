"""Data sets that are fetched: MNIST and Fashion-MNIST (IDX), CIFAR-10; their checksums, mirrors and errors."""

import gzip
import hashlib
import http.client
import io
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from refusals import refuses

from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.sources import SOURCES
from dpdm.sources.base import DATA_DIR_VARIABLE
from dpdm.sources.cifar10 import Cifar10, parse_cifar10
from dpdm.sources.fetched import FetchedSource
from dpdm.sources.idx import parse_idx
from dpdm.sources.mnist import Mnist

FETCHED = [name for name, kind in SOURCES.items() if issubclass(kind, FetchedSource)]

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
    with refuses("folder/file.gz"):
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
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    for key, value in {"shape": (1, 3, 4), "train_size": 2, "sha256": sha256, "mirrors": ("http://m/",)}.items():
        monkeypatch.setattr(Mnist, key, value)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    return folder


def test_idx_files_become_splits(small_mnist, no_network):
    for spec in (Mnist(), Mnist(data_dir=str(small_mnist))):
        splits = spec.load()
        assert np.array_equal(splits["train"].images, IMAGES[:, None])
        assert splits["train"].labels.tolist() == [4, 2]
        assert np.array_equal(splits["test"].images, IMAGES[1:, None])
        assert splits["test"].labels.tolist() == [2]
    assert no_network == []


def test_the_folder_in_the_study_comes_before_the_environment(small_mnist, tmp_path, no_network):
    with pytest.raises(UserError, match="elsewhere"):
        Mnist(data_dir=str(tmp_path / "elsewhere")).load()


def test_a_wrong_checksum_is_refused(small_mnist):
    path = small_mnist / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(idx(IMAGES[:1]))
    with refuses("SHA-256", "mnist") as error:
        Mnist().load()
    assert str(path) in str(error.value)


@pytest.mark.parametrize("source", FETCHED)
def test_missing_files_without_network_are_one_sentence(tmp_path, monkeypatch, no_network, source):
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(UserError) as error:
        SOURCES[source]().load()
    message = str(error.value)
    assert "\n" not in message
    assert all(name in message for name in SOURCES[source].sha256)
    assert str(tmp_path / source) in message
    assert DATA_DIR_VARIABLE in message
    assert len(no_network) == len(SOURCES[source].mirrors)  # every mirror was tried, for one file
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
    monkeypatch.setattr(Mnist, "mirrors", ("http://bad/", "http://good/"))
    contents = {"http://bad/" + name: bad, "http://good/" + name: good}
    monkeypatch.setattr("urllib.request.urlopen", lambda url, **_: Response(contents[url]))
    assert np.array_equal(Mnist().load()["train"].images, IMAGES[:, None])
    assert (small_mnist / name).read_bytes() == good
    contents["http://good/" + name] = bad
    (small_mnist / name).unlink()
    with pytest.raises(
        UserError, match=r"could not be fetched \(http://bad/.*; http://good/: (IncompleteRead|its SHA-256)"
    ):
        Mnist().load()
    assert not (small_mnist / name).exists()


@pytest.mark.data
@pytest.mark.parametrize("source", ["mnist", "fashion_mnist"])
def test_the_real_files(source):
    folder = Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / source
    if not folder.is_dir():
        pytest.skip(f"{source} is not at ${DATA_DIR_VARIABLE}")
    spec = SOURCES[source]()
    splits = spec.load()
    assert splits["train"].meta == spec.meta() == ImageMeta(60000, (1, 28, 28), 10)
    assert splits["test"].meta == ImageMeta(10000, (1, 28, 28), 10)
    first = {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}[source]
    assert splits["train"].labels[:5].tolist() == first
    assert np.bincount(splits["test"].labels).min() >= 892
    assert splits["train"].images.mean() == pytest.approx({"mnist": 33.318, "fashion_mnist": 72.940}[source], abs=1e-3)


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
    for key, value in {"train_size": 10, "sha256": sha256, "mirrors": ("http://m/",)}.items():
        monkeypatch.setattr(Cifar10, key, value)
    monkeypatch.setenv(DATA_DIR_VARIABLE, str(tmp_path))
    return tmp_path / "cifar10"


def test_the_cifar10_archive_becomes_splits(small_cifar10, no_network):
    for spec in (Cifar10(), Cifar10(data_dir=str(small_cifar10))):
        splits = spec.load()
        assert splits["train"].meta == spec.meta()
        assert splits["test"].labels.tolist() == [0, 1]
    assert no_network == []


def test_another_cifar10_archive_is_refused(small_cifar10, no_network):
    path = small_cifar10 / "cifar-10-binary.tar.gz"
    path.write_bytes(cifar_archive(records=3))
    with refuses("SHA-256", "cifar10") as error:
        Cifar10().load()
    assert str(path) in str(error.value)


def test_cifar10_is_fetched_where_it_is_missing(small_cifar10, monkeypatch):
    path = small_cifar10 / "cifar-10-binary.tar.gz"
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr("urllib.request.urlopen", lambda url, **_: Response({f"http://m/{path.name}": content}[url]))
    assert len(Cifar10().load()["train"].images) == 10
    assert path.read_bytes() == content


def test_the_pickled_cifar10_archive_is_not_read_and_the_error_says_so(small_cifar10, no_network):
    (small_cifar10 / "cifar-10-binary.tar.gz").rename(small_cifar10 / "cifar-10-python.tar.gz")
    with refuses("cifar-10-binary.tar.gz", "python.tar.gz"):
        Cifar10().load()


@pytest.mark.data
def test_the_real_cifar10():
    if not (Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / "cifar10").is_dir():
        pytest.skip(f"cifar10 is not at ${DATA_DIR_VARIABLE}")
    splits = Cifar10().load()
    assert splits["train"].meta == Cifar10().meta()
    assert np.bincount(splits["train"].labels).tolist() == [5000] * 10
    assert np.bincount(splits["test"].labels).tolist() == [1000] * 10
