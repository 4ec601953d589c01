"""Images: their one in-memory form, its files, and the one conversion to the range of networks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from dpdm import artifacts
from dpdm.errors import UserError
from dpdm.explain import parse_params
from dpdm.params import Count, Strict
from dpdm.rng import Streams

if TYPE_CHECKING:
    import torch

LABEL_ONLY_SEED = 0
DELTA_RULE = "1/(2n)"


@dataclass(frozen=True)
class ImageMeta:
    """What is public about a data set: its size, the image shape (C, H, W), and the number of classes."""

    n: int
    shape: tuple[int, int, int]
    num_classes: int


@dataclass(frozen=True)
class ImageSet:
    """Images (uint8, [n, C, H, W]) with labels (int64, [n], in 0..num_classes-1); UserError for any other.

    Args:
        origin: names the source in errors.
        drawn_by: for a synthetic set, the spec of its sampler as JSON; kept in its file.
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
        """SHA-256 of shape, pixels and labels; identifies the data of a model."""
        return artifacts.sha256_of(
            repr((self.images.shape, self.num_classes)).encode(), self.images.tobytes(), self.labels.tobytes()
        )


def fix_of_images(images: np.ndarray) -> str:
    """What is wrong with images that are not uint8 [n, 1 or 3, H, W], and the line that corrects it; else ""."""
    found = f"images must be uint8 [n, 1 or 3, H, W], got {images.dtype} {list(images.shape)}"
    if images.ndim == 3:
        return f"{found}: add the channel by images[:, None]"
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        return f"{found}: put the channels first by images.transpose(0, 3, 1, 2)"
    if images.ndim == 4 and 0 in images.shape[2:]:
        return f"{found}: a picture has at least one row and one column"
    if images.dtype.kind == "f" and images.size:
        if not np.isfinite(images).all():
            return f"{found} with numbers that are not finite: correct those first"
        low, high = images.min(), images.max()
        unit, signed = 0 <= low <= high <= 1, -1 <= low < 0 < high <= 1
        scaled = "images * 255" if unit else "(images + 1) * 127.5" if signed else "images"
        return f"{found} from {low:g} to {high:g}: round them to 0..255 by ({scaled}).round().astype('uint8')"
    if images.dtype != "uint8":
        return f"{found}: convert them by images.astype('uint8'), if they lie in 0..255"
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        return f"{found}: a picture has 1 (gray) or 3 (RGB) channels"
    return ""


def write_images(path: str | Path, images: ImageSet) -> None:
    """Writes an image set as npz, by one schema for real and synthetic sets."""
    arrays = {"images": images.images, "labels": images.labels, "num_classes": np.int64(images.num_classes)}
    artifacts.write_npz(path, arrays | ({"drawn_by": np.array(images.drawn_by)} if images.drawn_by else {}))


def read_images(path: str | Path) -> ImageSet:
    """Reads what `write_images` wrote; UserError for any other file."""
    arrays = artifacts.read_npz(path, ("images", "labels", "num_classes"), ("drawn_by",))
    classes, drawn_by = arrays["num_classes"], str(arrays.get("drawn_by", ""))
    if classes.shape != () or classes.dtype.kind not in "iu" or classes < 1:
        raise UserError(
            f"{path}: num_classes must be one positive integer, got {classes}; make or fetch the file again"
        )
    try:
        json.loads(drawn_by or "{}")
    except ValueError as error:
        raise UserError(f"{path}: drawn_by must be JSON, got {drawn_by!r}; make or fetch the file again") from error
    return ImageSet(arrays["images"], arrays["labels"], int(classes), str(path), drawn_by)


def doubts(splits: Mapping[str, ImageSet]) -> list[str]:
    """Probable mistakes in the splits of a data set, one sentence each."""
    found = [
        f"{images.origin}: no pixel is above 1 of 255, so all images are black; if pixels are 0 or 1, multiply by 255"
        for images in splits.values()
        if images.images.size and images.images.max() <= 1
    ]
    if splits["train"].digest() == splits["test"].digest():
        found.append(f"{splits['train'].origin} and {splits['test'].origin} hold the same images")
    return found


def to_network(images: np.ndarray) -> "torch.Tensor":
    """uint8 [n, C, H, W] -> float32 tensor in [-1, 1]."""
    import torch

    return torch.from_numpy(images).to(torch.float32) / 127.5 - 1


def to_unit(images: "torch.Tensor") -> "torch.Tensor":
    """Network range [-1, 1] -> pixels in [0, 1]."""
    return (images + 1) / 2


def from_unit(pixels: "torch.Tensor") -> "torch.Tensor":
    """The inverse of `to_unit`."""
    return 2 * pixels - 1


def to_uint8(images: "torch.Tensor") -> np.ndarray:
    """Float images in [-1, 1] -> uint8, clipped and rounded: the exact inverse of `to_network`."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()


def balanced_labels(count: int, num_classes: int) -> np.ndarray:
    """Labels 0, 1, ..., num_classes-1, 0, 1, ...: chosen by the harness, never from private class counts."""
    return np.arange(count, dtype=np.int64) % num_classes


def label_only(meta: ImageMeta, count: int) -> ImageSet:
    """The floor: uniform noise images with balanced labels, made without any data."""
    images = Streams(LABEL_ONLY_SEED, "label_only").numpy("images").integers(0, 256, (count, *meta.shape), np.uint8)
    return ImageSet(images, balanced_labels(count, meta.num_classes), meta.num_classes, "label_only")


def resolve_delta(delta: float | str, n: int, allow_large: bool = False) -> float:
    """The delta of a run: a number, or the rule 1/(2n); UserError for 1/n or more, unless `allow_large`, and n = 0."""
    if n == 0:
        raise UserError("the training split holds no images")
    value = 1 / (2 * n) if delta == DELTA_RULE else float(delta)
    if value >= 1 / n and not allow_large:
        raise UserError(
            f"delta = {value:g} is not below 1/n = {1 / n:g}: such a mechanism may publish a record outright; "
            "choose a smaller delta, or set allow_large_delta: true on the dataset"
        )
    return value


class _Sizes(Strict, extra="ignore"):
    train: Count


class _Facts(Strict, extra="ignore"):
    n: _Sizes
    shape: Annotated[tuple[int, int, int], Field(strict=False)]
    num_classes: Count


def read_meta(path: str | Path) -> ImageMeta:
    """What is public about the training images, from dataset.json; UserError if it is missing or corrupt."""
    facts = parse_params(_Facts, artifacts.read_json(path), f"{path} (delete it and run snakemake again)")
    return ImageMeta(facts.n.train, facts.shape, facts.num_classes)
