"""Memorization: whether synthetic images are copies of training images, by pixel distances.

It compares the distances of synthetic images to their nearest training images with those of held-out real images, which
no training saw. It reads the private images and shows some of them: its numbers and its picture are no release, and
differential privacy does not cover them.

    nearest_ratio  median distance of synthetic images to the training set over that of held-out ones, at most 1; below
                   1 they are nearer than unseen images: copies, or images that are smoother than real ones. Noise has
                   1, too: the ratio does not measure quality.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpdm import artifacts
from dpdm.data import ImageSet
from dpdm.errors import UserError
from dpdm.evaluation.fidelity import chosen

MOST = 2000  # synthetic images, and held-out ones
PAIRS = 8  # in the picture
NO_RELEASE = "computed from the private training images, and no release of a private mechanism"
_CHUNK = 5000  # training images at a time: memory only
_SEPARATOR = 255  # gray level between the images of the picture


def measure(
    synthetic: ImageSet, train: ImageSet, held_out: ImageSet
) -> tuple[list[dict[str, Any]], dict[str, Any], np.ndarray]:
    """The ratio as a row of scores, the quantiles behind it, and a picture of the nearest pairs.

    Args:
        synthetic, held_out: the images to judge, and real ones that no training saw; at most MOST, in a fixed choice.
        train: the possible originals; UserError if these images have another shape.

    Returns:
        One row; facts (JSON): `ratio` without the limit of 1, the quantiles 0, 0.01 and 0.5 of both distances (root
        mean square per pixel, 0..1), the share of synthetic images that are nearer to the training set than 99 % of the
        held-out ones, and a warning that all this is no release; a picture uint8 [H', W'] or [H', W', 3]: the PAIRS
        nearest synthetic images above their training images.
    """
    if synthetic.meta.shape != train.meta.shape:
        raise UserError(
            f"{synthetic.origin}: images have shape {synthetic.meta.shape} but {train.origin} has {train.meta.shape}; "
            "compare images of one data set"
        )
    some = chosen(synthetic, MOST)
    distances, places = nearest(some.images, train.images)
    unseen, _ = nearest(chosen(held_out, MOST).images, train.images)
    middle = float(np.median(unseen))
    ratio = float(np.median(distances)) / middle if middle > 0 else 1.0
    facts = {
        "warning": NO_RELEASE,
        "ratio": ratio,
        "share_below_held_out_0.01": float(np.mean(distances < np.quantile(unseen, 0.01))),
        "synthetic": _quantiles(distances),
        "held_out": _quantiles(unseen),
    }
    row = {"metric": "nearest_ratio", "extractor": "", "direction": "higher", "reference": "train"}
    order = np.argsort(distances, kind="stable")[:PAIRS]
    return [row | {"value": min(ratio, 1.0)}], facts, _picture(some.images[order], train.images[places[order]])


def nearest(images: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distance of each image (uint8 [n, C, H, W]) to its nearest training image, and the position of that image.

    A distance is the root mean square of the pixel differences, in 0..1; it is exactly 0 for a copy.
    """
    inputs = torch.from_numpy(images).flatten(1).float()
    best, places = torch.full((len(inputs),), torch.inf), torch.zeros(len(inputs), dtype=torch.int64)
    for start in range(0, len(train), _CHUNK):
        chunk = torch.from_numpy(train[start : start + _CHUNK]).flatten(1).float()
        found, place = torch.cdist(inputs, chunk).min(1)
        places = torch.where(found < best, place + start, places)
        best = torch.minimum(found, best)
    exact = (inputs - torch.from_numpy(train[places.numpy()]).flatten(1).float()).double()
    return (exact.square().mean(1).sqrt() / 255).numpy(), places.numpy()


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Writes the picture as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "png")
    artifacts.write_bytes(path, buffer.getvalue())


def _quantiles(distances: np.ndarray) -> dict[str, float]:
    return {f"{share:g}": float(np.quantile(distances, share)) for share in (0, 0.01, 0.5)}


def _picture(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Two rows of images [n, C, H, W] with lines between them, each enlarged to a width of about 112 pixels."""
    scale = max(1, 112 // above.shape[-1])
    rows = []
    for images in (above, below):
        enlarged = images.repeat(scale, axis=2).repeat(scale, axis=3)
        framed = np.pad(enlarged, ((0, 0), (0, 0), (2, 2), (2, 2)), constant_values=_SEPARATOR)
        rows.append(np.concatenate(list(framed), axis=2))
    pixels = np.concatenate(rows, axis=1).transpose(1, 2, 0)
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
