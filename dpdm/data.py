"""Images: the one in-memory form, the sources it comes from, and the one converter to network range."""

import difflib
import gzip
import hashlib
import http.client
import io
import os
import struct
import sys
import tarfile
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from dpdm import artifacts
from dpdm.config import DELTA_RULE, SourceSpec, Strict, parse_params
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

    Args:
        origin: names the source in errors.
        drawn_by: of a synthetic set, the spec by which it was drawn, as JSON; stays with it in its file.

    Raises:
        UserError: on another dtype, rank, length or label.
    """

    images: np.ndarray
    labels: np.ndarray
    num_classes: int
    origin: str = "images"
    drawn_by: str = ""

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
    arrays = {"images": images.images, "labels": images.labels, "num_classes": np.int64(images.num_classes)}
    artifacts.write_npz(path, arrays | ({"drawn_by": np.array(images.drawn_by)} if images.drawn_by else {}))


def read_images(path: str | Path) -> ImageSet:
    """Reads what `write_images` wrote.

    Raises:
        UserError: missing, truncated, corrupt, or not an image set.
    """
    arrays = artifacts.read_npz(path, ("images", "labels", "num_classes"), ("drawn_by",))
    if arrays["num_classes"].shape != () or arrays["num_classes"].dtype.kind not in "iu":
        raise UserError(f"{path}: num_classes must be one integer; make or fetch the file again")
    drawn_by = str(arrays.get("drawn_by", ""))
    return ImageSet(arrays["images"], arrays["labels"], int(arrays["num_classes"]), str(path), drawn_by)


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


def known_meta(spec: SourceSpec) -> ImageMeta:
    """Public facts of a dataset's training split; reads files only of the sources npz and folder, whose n is theirs.

    Raises:
        UserError: a file of source npz is missing or corrupt, or the folders of source folder do not fit the spec.
    """
    return _SOURCES[spec.source].meta(spec)


def load_dataset(spec: SourceSpec) -> dict[str, ImageSet]:
    """The `train` and `test` splits of a dataset.

    Raises:
        UserError: a file is missing (and cannot be fetched), has another checksum, or is corrupt.
    """
    return _SOURCES[spec.source].load(spec)


class _Sizes(Strict, extra="ignore"):
    train: Annotated[int, Field(ge=1)]


class _Facts(Strict, extra="ignore"):
    n: _Sizes
    shape: Annotated[tuple[int, int, int], Field(strict=False)]
    num_classes: Annotated[int, Field(ge=1)]


def read_meta(path: str | Path) -> ImageMeta:
    """What is public about the training images, from dataset.json.

    Raises:
        UserError: the file is missing or corrupt.
    """
    facts = parse_params(_Facts, artifacts.read_json(path), f"{path} (delete it and run snakemake again)")
    return ImageMeta(facts.n.train, facts.shape, facts.num_classes)


def dataset_facts(spec: SourceSpec, splits: dict[str, ImageSet]) -> dict[str, Any]:
    """What dataset.json records: source, sizes, shape, classes, digests, and how image files were brought to size."""
    meta = splits["train"].meta
    facts = {
        "source": spec.source,
        "shape": list(meta.shape),
        "num_classes": meta.num_classes,
        "n": {split: len(images.images) for split, images in splits.items()},
        "sha256": {split: images.digest() for split, images in splits.items()},
    }
    return facts if spec.image_size is None else facts | {"preprocessing": PREPROCESSING}


def _folder(spec: SourceSpec) -> Path:
    if spec.data_dir is not None:
        return Path(spec.data_dir)
    return Path(os.environ.get(DATA_DIR_VARIABLE, "data")) / spec.source


# --- digits and npz -----------------------------------------------------------------------------------------


def _load_digits(_: SourceSpec) -> dict[str, ImageSet]:
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


def _load_npz_dataset(spec: SourceSpec) -> dict[str, ImageSet]:
    splits = {split: _load_npz(spec, split) for split in ("train", "test")}
    if splits["train"].meta.shape != splits["test"].meta.shape:
        raise UserError(
            f"{spec.train} and {spec.test} hold images of different shapes: "
            f"{splits['train'].meta.shape} and {splits['test'].meta.shape}"
        )
    return splits


def _load_npz(spec: SourceSpec, split: str) -> ImageSet:
    path = getattr(spec, split)
    arrays = artifacts.read_npz(path, ("images", "labels"))
    labels = arrays["labels"]
    if labels.dtype.kind in "iu":
        labels = labels.astype(np.int64)
    images = ImageSet(arrays["images"], labels, spec.num_classes, path)
    if images.meta.shape[0] not in (1, 3):
        raise UserError(
            f"{path}: images must be [n, C, H, W] with 1 or 3 channels, got {images.images.shape}; move the channels"
        )
    if not images.meta.n:
        raise UserError(f"{path} holds no images")
    return images


# --- published files: MNIST, Fashion-MNIST, CIFAR-10 --------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """A data set of ten classes that is published as files: its public facts, and where the files are fetched."""

    shape: tuple[int, int, int]
    train: int
    sha256: dict[str, str]
    mirrors: tuple[str, ...]
    note: str = ""  # ends the sentence that says a file is missing


_IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
_CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
_CIFAR10_BATCHES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PUBLISHED = {
    "mnist": _Published(
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
    "fashion_mnist": _Published(
        (1, 28, 28), 60000,
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    ),
    "cifar10": _Published(
        (3, 32, 32), 50000,
        # TensorFlow Datasets' SHA-256 of the file whose MD5 is the authors' c32a1d4ab5d03f1284b67883e8d87530
        {_CIFAR10_ARCHIVE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        ("https://www.cs.toronto.edu/~kriz/",),
        " (cifar-10-python.tar.gz is not read: it is pickled, and unpickling runs code)",
    ),
}  # fmt: skip


def _published_meta(spec: SourceSpec) -> ImageMeta:
    return ImageMeta(_PUBLISHED[spec.source].train, _PUBLISHED[spec.source].shape, 10)


def _published_files(spec: SourceSpec) -> dict[str, bytes]:
    """Name -> content of each original file, fetched where it is missing, its checksum verified."""
    known, folder = _PUBLISHED[spec.source], _folder(spec)
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
        contents[name] = content
    return contents


def _fetch(known: _Published, folder: Path, name: str, source: str) -> None:
    answer = "no mirror could be reached"
    for mirror in known.mirrors:
        try:
            with urllib.request.urlopen(mirror + name, timeout=20) as response:
                content = response.read()
        except (OSError, http.client.HTTPException):  # the latter: a transfer that broke off
            continue
        if hashlib.sha256(content).hexdigest() == known.sha256[name]:
            artifacts.write_bytes(folder / name, content)
            return
        answer = f"{mirror} gave another file under that name"
    raise UserError(
        f"{source}: {folder / name} is missing and {answer}; put {', '.join(known.sha256)} "
        f"into {folder}, or set {DATA_DIR_VARIABLE} to the folder that holds {source}/{known.note}"
    )


def _load_idx(spec: SourceSpec) -> dict[str, ImageSet]:
    arrays = {name: parse_idx(content, str(_folder(spec) / name)) for name, content in _published_files(spec).items()}
    return {
        split: ImageSet(arrays[images][:, None], arrays[labels].astype(np.int64), 10, f"{spec.source} {split}")
        for split, (images, labels) in _IDX_FILES.items()
    }


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


def _load_cifar10(spec: SourceSpec) -> dict[str, ImageSet]:
    return parse_cifar10(_published_files(spec)[_CIFAR10_ARCHIVE], str(_folder(spec) / _CIFAR10_ARCHIVE))


def parse_cifar10(content: bytes, origin: str) -> dict[str, ImageSet]:
    """The binary archive of CIFAR-10 (Krizhevsky 2009) -> its splits, in the order of its batches.

    A batch holds records of one label byte and 3072 pixel bytes: red, green, blue, each 32x32 row by row.

    Raises:
        UserError: not a gzipped tar, a batch is missing or not whole records, or a label is above 9.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
            batches = {Path(m.name).name: archive.extractfile(m).read() for m in archive if m.isfile()}
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{origin} is corrupt or truncated ({error}); fetch it again") from error
    splits = {}
    for split, names in _CIFAR10_BATCHES.items():
        for name in names:
            if not batches.get(name) or len(batches[name]) % 3073:
                raise UserError(f"{origin} holds no {name} of whole 3073-byte records; fetch it again")
        records = np.frombuffer(b"".join(batches[name] for name in names), np.uint8).reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32)
        splits[split] = ImageSet(images, records[:, 0].astype(np.int64), 10, f"{origin} ({split})")
    return splits


# --- folders of image files: CelebA, and the user's own -----------------------------------------------------

PREPROCESSING = "largest centred square, resized by Pillow's antialiased bilinear filter"
_PROGRESS_EVERY = 10_000
_SUFFIXES = (".png", ".jpg", ".jpeg")


def read_image(path: Path, size: int, channels: int) -> np.ndarray:
    """A PNG or JPEG file -> uint8 [channels, size, size]; channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).

    The largest centred square is cut out, then resized (bilinear, antialiased); an image of that size stays exact.

    Raises:
        UserError: the file is missing or damaged, of another format, or of more than 8 bits per channel.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            square = min(image.size)
            left, top = (image.width - square) // 2, (image.height - square) // 2
            cut = image.crop((left, top, left + square, top + square)).convert({1: "L", 3: "RGB"}[channels])
            pixels = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # by the kind of damage: OSError, SyntaxError, ValueError, struct.error, ...
        raise UserError(f"{path} cannot be read as an image ({error or type(error).__name__}); replace it") from error
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def _read_images(paths: Sequence[Path], spec: SourceSpec, title: str) -> np.ndarray:
    """uint8 [n, C, size, size], filled in place: CelebA at 64x64 is 2 GB."""
    channels = spec.channels or 3
    images = np.empty((len(paths), channels, spec.image_size, spec.image_size), np.uint8)
    for number, path in enumerate(paths, 1):
        images[number - 1] = read_image(path, spec.image_size, channels)
        if number % _PROGRESS_EVERY == 0:
            print(f"{title}: {number}/{len(paths)} images", file=sys.stderr, flush=True)
    return images


_CELEBA_PARTITIONS = {"train": "0", "test": "2"}  # 1, validation, is not used
_CELEBA_SIZES = {"train": 162_770, "test": 19_962}
_CELEBA_IMAGES, _CELEBA_SPLITS, _CELEBA_ATTRIBUTES = (
    "img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt",
)  # fmt: skip


def _celeba_meta(spec: SourceSpec) -> ImageMeta:
    return ImageMeta(_CELEBA_SIZES["train"], (3, spec.image_size, spec.image_size), 1 if spec.label is None else 2)


def _load_celeba(spec: SourceSpec) -> dict[str, ImageSet]:
    """CelebA (Liu et al. 2015), aligned 178x218 images: the centred 178x178, resized to image_size.

    This crop is the customary one; the preprocessing of the paper's CelebA could not be verified.
    Without `label` every image has label 0 of one class; with it, 1 where the attribute is present.
    """
    folder = _folder(spec)
    needed = (_CELEBA_IMAGES, _CELEBA_SPLITS, *([] if spec.label is None else [_CELEBA_ATTRIBUTES]))
    for name in needed:
        if not (folder / name).exists():
            raise UserError(
                f"celeba: {folder / name} is missing; get CelebA from "
                "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (it is not fetched for you), unpack its "
                f"aligned images, and put {', '.join(needed)} into {folder}, or set {DATA_DIR_VARIABLE} to the "
                "folder that holds celeba/"
            )
    there = {path.name for path in (folder / _CELEBA_IMAGES).glob("*.jpg")}
    rows = _text_rows(folder / _CELEBA_SPLITS)
    names = {
        split: [row[0] for row in rows if row[1:] == [partition] and row[0] in there]
        for split, partition in _CELEBA_PARTITIONS.items()
    }
    for split, size in _CELEBA_SIZES.items():
        if len(names[split]) != size:
            raise UserError(
                f"celeba: {folder} holds {len(names[split])} of CelebA's {size} {split} images; unpack "
                f"{_CELEBA_IMAGES}.zip again, and fetch {_CELEBA_SPLITS} again"
            )
    classes = _celeba_meta(spec).num_classes
    labels = {split: _celeba_labels(folder / _CELEBA_ATTRIBUTES, spec.label, names[split]) for split in names}
    return {
        split: ImageSet(
            _read_images([folder / _CELEBA_IMAGES / name for name in names[split]], spec, f"celeba {split}"),
            labels[split], classes, f"celeba {split}",
        )
        for split in names
    }  # fmt: skip


def _celeba_labels(path: Path, attribute: str | None, names: Sequence[str]) -> np.ndarray:
    """int64 [n]: 1 where the image has the attribute, else 0; all 0 without an attribute."""
    if attribute is None:
        return np.zeros(len(names), np.int64)
    rows = _text_rows(path)  # the number of images; the attributes; then per image its name and -1 or 1 for each
    attributes = rows[1] if len(rows) > 1 else []
    if attribute not in attributes:
        close = difflib.get_close_matches(attribute, attributes, 1, 0) or ["none"]
        raise UserError(f"celeba: {path} knows no attribute {attribute!r}; the nearest is {close[0]!r}")
    values = {row[0]: row[1 + attributes.index(attribute)] for row in rows[2:] if len(row) == 1 + len(attributes)}
    if not all(values.get(name) in ("-1", "1") for name in names):
        raise UserError(f"celeba: {path} does not give {attribute} as -1 or 1 for every image; fetch it again")
    return np.array([values[name] == "1" for name in names], np.int64)


def _text_rows(path: Path) -> list[list[str]]:
    return [line.split() for line in artifacts.read_bytes(path).decode(errors="replace").splitlines() if line.strip()]


def _class_files(spec: SourceSpec) -> dict[str, list[list[Path]]]:
    """Per split and class the image files; classes and files in the order of their names."""
    classes, files = {}, {}
    for split in ("train", "test"):
        root = _folder(spec) / split
        try:
            folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
            files[split] = [sorted(p for p in f.iterdir() if not p.name.startswith(".")) for f in folders]
        except OSError as error:
            raise UserError(
                f"cannot read {error.filename}: {error.strerror}; source folder needs data_dir/train/CLASS/*.png|jpg "
                "and data_dir/test/CLASS/*"
            ) from error
        classes[split] = [path.name for path in folders]
        if len(folders) != spec.num_classes:
            raise UserError(f"{root} holds {len(folders)} class folders but num_classes is {spec.num_classes}")
        strange = next(
            (p for of_class in files[split] for p in of_class if p.suffix.lower() not in _SUFFIXES or not p.is_file()),
            None,
        )
        if strange:
            raise UserError(f"{strange} is no {', '.join(_SUFFIXES)} file; convert it or move it away")
        if not any(files[split]):
            raise UserError(f"{root} holds no images")
    if classes["train"] != classes["test"]:
        odd = min(set(classes["train"]) ^ set(classes["test"]))
        raise UserError(f"{_folder(spec)}: class {odd} is in one of train/ and test/ alone; both need the same classes")
    return files


def _folder_meta(spec: SourceSpec) -> ImageMeta:
    n = sum(map(len, _class_files(spec)["train"]))
    return ImageMeta(n, (spec.channels or 3, spec.image_size, spec.image_size), spec.num_classes)


def _load_folder(spec: SourceSpec) -> dict[str, ImageSet]:
    return {
        split: ImageSet(
            _read_images([path for of_class in files for path in of_class], spec, f"{_folder(spec) / split}"),
            np.repeat(np.arange(len(files)), list(map(len, files))), spec.num_classes, f"{_folder(spec) / split}",
        )
        for split, files in _class_files(spec).items()
    }  # fmt: skip


@dataclass(frozen=True)
class _Source:
    """How a source is known and how it is loaded."""

    meta: Callable[[SourceSpec], ImageMeta]
    load: Callable[[SourceSpec], dict[str, ImageSet]]


_SOURCES = {
    "digits": _Source(lambda _: ImageMeta(1797 - DIGITS_TEST, (1, 8, 8), 10), _load_digits),
    "mnist": _Source(_published_meta, _load_idx),
    "fashion_mnist": _Source(_published_meta, _load_idx),
    "cifar10": _Source(_published_meta, _load_cifar10),
    "celeba": _Source(_celeba_meta, _load_celeba),
    "folder": _Source(_folder_meta, _load_folder),
    "npz": _Source(lambda spec: _load_npz(spec, "train").meta, _load_npz_dataset),
}
