"""Images: the one in-memory form, the sources it comes from, and the one converter to network range."""

import gzip
import hashlib
import http.client
import os
import struct
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dpdm import artifacts
from dpdm.config import DELTA_RULE, SourceSpec
from dpdm.errors import UserError
from dpdm.rng import Streams

if TYPE_CHECKING:
    import torch

DIGITS_TEST = 360  # of 1,797; stratified, split seed 0
LABEL_ONLY_SEED = 0
DATA_DIR_VARIABLE = "DPDM_DATA_DIR"


@dataclass(frozen=True)
class ImageMeta:
    """What is public about a data set: its size, the image shape (C, H, W), and the number of classes."""

    n: int
    shape: tuple[int, int, int]
    num_classes: int


@dataclass(frozen=True)
class ImageSet:
    """Images (uint8, [n, C, H, W]) with labels (int64, [n], in 0..num_classes-1).

    Raises:
        UserError: on another dtype, rank, length or label; `origin` names the source.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    origin: str = "images"

    def __post_init__(self):
        images, labels = self.images, self.labels
        if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
            raise UserError(f"{self.origin}: images must be uint8 [n, C, H, W], got {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise UserError(f"{self.origin}: labels must be int64 [{len(images)}], got {labels.dtype} {labels.shape}")
        if len(labels) and (labels.min() < 0 or labels.max() >= self.num_classes):
            raise UserError(f"{self.origin}: labels must lie in 0..{self.num_classes - 1}")

    @property
    def meta(self) -> ImageMeta:
        """Size, shape and number of classes."""
        return ImageMeta(len(self.images), tuple(self.images.shape[1:]), self.num_classes)

    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels: which data a model was trained on."""
        return artifacts.sha256_of(
            repr((self.images.shape, self.num_classes)).encode(), self.images.tobytes(), self.labels.tobytes()
        )


def write_images(path: str | Path, images: ImageSet) -> None:
    """Writes an image set as npz: the schema of real and synthetic sets alike."""
    artifacts.write_npz(
        path,
        {"images": images.images, "labels": images.labels, "num_classes": np.int64(images.num_classes)},
    )


def read_images(path: str | Path) -> ImageSet:
    """Reads what `write_images` wrote.

    Raises:
        UserError: missing, truncated, corrupt, or not an image set.
    """
    arrays = artifacts.read_npz(path, ("images", "labels", "num_classes"))
    if arrays["num_classes"].shape != () or arrays["num_classes"].dtype.kind not in "iu":
        raise UserError(f"{path}: num_classes must be one integer; make or fetch the file again")
    return ImageSet(arrays["images"], arrays["labels"], int(arrays["num_classes"]), str(path))


def to_network(images: np.ndarray) -> "torch.Tensor":
    """uint8 [n, C, H, W] -> float32 tensor in [-1, 1]."""
    import torch

    return torch.from_numpy(images).to(torch.float32) / 127.5 - 1


def to_uint8(images: "torch.Tensor") -> np.ndarray:
    """Float images in [-1, 1] -> uint8, clipped and rounded: the exact inverse of `to_network`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """Labels 0, 1, ..., num_classes-1, 0, 1, ...: chosen by the harness, never from private class counts."""
    return np.arange(count, dtype=np.int64) % num_classes


def label_only(meta: ImageMeta, count: int) -> ImageSet:
    """The floor that looked at nothing: uniform noise images with balanced labels."""
    images = Streams(LABEL_ONLY_SEED, "label_only").numpy("images").integers(0, 256, (count, *meta.shape), np.uint8)
    return ImageSet(images, balanced_labels(count, meta.num_classes), meta.num_classes, "label_only")


def resolve_delta(delta: float | str, n: int, allow_large: bool = False) -> float:
    """The delta of a run: a number, or the rule 1/(2n).

    Raises:
        UserError: delta >= 1/n, unless `allow_large`; or n = 0.
    """
    if n == 0:
        raise UserError("the training split holds no images")
    value = 1 / (2 * n) if delta == DELTA_RULE else float(delta)
    if value >= 1 / n and not allow_large:
        raise UserError(
            f"delta = {value:g} is not below 1/n = {1 / n:g}: such a mechanism may publish a record outright; "
            "choose a smaller delta, or set allow_large_delta: true on the dataset"
        )
    return value


# --- sources ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Idx:
    shape: tuple[int, int, int]
    train: int
    sha256: dict[str, str]
    mirrors: tuple[str, ...]


_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_IDX = {
    "mnist": _Idx(
        (1, 28, 28), 60000,
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        # torchvision's mirrors
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    ),
    "fashion_mnist": _Idx(
        (1, 28, 28), 60000,
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ),
}  # fmt: skip


def known_meta(spec: SourceSpec) -> ImageMeta:
    """Public facts of a dataset's training split, as far as possible without loading it.

    Raises:
        UserError: a file of source npz is missing or corrupt.
    """
    if spec.source == "digits":
        return ImageMeta(1797 - DIGITS_TEST, (1, 8, 8), 10)
    if spec.source in _IDX:
        return ImageMeta(_IDX[spec.source].train, _IDX[spec.source].shape, 10)
    return _load_npz(spec, "train").meta


def load_dataset(spec: SourceSpec) -> dict[str, ImageSet]:
    """The `train` and `test` splits of a dataset.

    Raises:
        UserError: a file is missing (and cannot be fetched), has another checksum, or is corrupt.
    """
    if spec.source == "digits":
        return _load_digits()
    if spec.source == "npz":
        splits = {split: _load_npz(spec, split) for split in ("train", "test")}
        if splits["train"].meta.shape != splits["test"].meta.shape:
            raise UserError(
                f"{spec.train} and {spec.test} hold images of different shapes: "
                f"{splits['train'].meta.shape} and {splits['test'].meta.shape}"
            )
        return splits
    return _load_idx_dataset(spec)


def _load_digits() -> dict[str, ImageSet]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    split = train_test_split(images, labels, test_size=DIGITS_TEST, stratify=labels, random_state=0)
    return {
        "train": ImageSet(split[0], split[2], 10, "digits train"),
        "test": ImageSet(split[1], split[3], 10, "digits test"),
    }


def _load_npz(spec: SourceSpec, split: str) -> ImageSet:
    path = getattr(spec, split)
    arrays = artifacts.read_npz(path, ("images", "labels"))
    labels = arrays["labels"]
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
    images = ImageSet(arrays["images"], labels, spec.num_classes, path)
    if not images.meta.n:
        raise UserError(f"{path} holds no images")
    return images


def _idx_folder(spec: SourceSpec) -> Path:
    if spec.data_dir is not None:
        return Path(spec.data_dir)
    return Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / spec.source


def _load_idx_dataset(spec: SourceSpec) -> dict[str, ImageSet]:
    known, folder = _IDX[spec.source], _idx_folder(spec)
    contents = {}
    for name, sha256 in known.sha256.items():
        path = folder / name
        if not path.exists():
            _fetch(known, folder, name, spec.source)
        content = artifacts.read_bytes(path)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(
                f"{path} has another SHA-256 than {spec.source}'s original; delete it and fetch the original"
            )
        contents[name] = parse_idx(content, str(path))
    return {
        split: ImageSet(contents[images][:, None], contents[labels].astype(np.int64), 10, f"{spec.source} {split}")
        for split, (images, labels) in _IDX_FILES.items()
    }


def _fetch(known: _Idx, folder: Path, name: str, source: str) -> None:
    for mirror in known.mirrors:
        try:
            with urllib.request.urlopen(mirror + name, timeout=20) as response:
                content = response.read()
        except (OSError, http.client.HTTPException):  # the latter: a transfer that broke off
            continue
        if hashlib.sha256(content).hexdigest() == known.sha256[name]:
            artifacts.write_bytes(folder / name, content)
            return
    raise UserError(
        f"{source}: {folder / name} is missing and no mirror could be reached; put {', '.join(known.sha256)} "
        f"into {folder}, or set {DATA_DIR_VARIABLE} to the folder that holds {source}/"
    )


def parse_idx(content: bytes, origin: str) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes -> uint8 array of its dimensions.

    Raises:
        UserError: not gzip, truncated, or not IDX of unsigned bytes.
    """
    try:
        raw = gzip.decompress(content)
        zero, kind, rank = struct.unpack(">HBB", raw[:4])
        dims = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{origin} is corrupt or truncated ({error}); fetch it again") from error
    body = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank)
    if zero != 0 or kind != 8 or body.size != int(np.prod(dims, dtype=np.int64)):
        raise UserError(f"{origin} is not an IDX file of unsigned bytes with dimensions {dims}; fetch it again")
    return body.reshape(dims).copy()


def dataset_facts(spec: SourceSpec, splits: dict[str, ImageSet]) -> dict[str, Any]:
    """What dataset.json records: source, sizes, shape, classes, digests."""
    meta = splits["train"].meta
    return {
        "source": spec.source,
        "shape": list(meta.shape),
        "num_classes": meta.num_classes,
        "n": {split: len(images.images) for split, images in splits.items()},
        "sha256": {split: images.digest() for split, images in splits.items()},
    }
