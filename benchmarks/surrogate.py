"""Writes the images on which MNIST's recipes are tuned: scikit-learn's digits, enlarged to 28x28, rotated and shifted.

    python benchmarks/surrogate.py FOLDER

Writes FOLDER/train.npz (60,000 images) and FOLDER/test.npz (10,000), from the digits' training and test images, for
`source: npz` with 10 classes. They contain nothing of MNIST.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from dpdm.data import ImageSet, write_images
from dpdm.sources.digits import Digits

SIZES = {"train": 60_000, "test": 10_000}
SIDE, INNER = 28, 20  # as MNIST's digits: 20 pixels in a frame of 28
DEGREES, PIXELS = 12.0, 2.0  # at most, each way


def enlarged(images: ImageSet, count: int, rng: np.random.Generator) -> ImageSet:
    """`count` images [n, 1, 28, 28]: the originals in turn, each rotated and shifted at random."""
    chosen = np.arange(count) % len(images.labels)
    out = np.zeros((count, 1, SIDE, SIDE), np.uint8)
    edge = (SIDE - INNER) // 2
    for i, original in enumerate(images.images[chosen, 0]):
        large = np.zeros((SIDE, SIDE), np.float32)
        large[edge : edge + INNER, edge : edge + INNER] = ndimage.zoom(original.astype(np.float32), INNER / 8, order=1)
        turned = ndimage.rotate(large, rng.uniform(-DEGREES, DEGREES), reshape=False, order=1)
        moved = ndimage.shift(turned, rng.uniform(-PIXELS, PIXELS, 2), order=1)
        out[i, 0] = np.clip(np.rint(moved), 0, 255)
    return ImageSet(out, images.labels[chosen], images.num_classes, "enlarged digits")


def main() -> None:
    """Both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, images) in enumerate(Digits().load().items()):
        write_images(folder / f"{name}.npz", enlarged(images, SIZES[name], np.random.default_rng(number)))


if __name__ == "__main__":
    main()
