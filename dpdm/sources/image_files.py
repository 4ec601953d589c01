"""PNG and JPEG files, resized to one size."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpdm.errors import UserError

if TYPE_CHECKING:
    import numpy as np

PREPROCESSING = (  # in every dataset.json
    "turned as EXIF says, largest centered square, transparent pixels on white, resized by Pillow's antialiased "
    "bilinear filter"
)
PROGRESS_EVERY = 10_000  # images


def read_image(path: Path, size: int, channels: int) -> "np.ndarray":
    """A PNG or JPEG file -> uint8 [channels, size, size], by PREPROCESSING; an opaque image of that size stays exact.

    channels: 3 (RGB) or 1 (gray, ITU-R 601 luma). UserError for a file that is missing, damaged, of another format, or
    of more than 8 bits per channel.
    """
    import numpy as np
    from PIL import Image, ImageOps

    from dpdm.artifacts import instead

    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"mode {image.mode} has more than 8 bits per channel")
            upright = ImageOps.exif_transpose(image)
            square = min(upright.size)
            left, top = (upright.width - square) // 2, (upright.height - square) // 2
            cut = upright.crop((left, top, left + square, top + square))
            if cut.has_transparency_data:
                cut = Image.alpha_composite(Image.new("RGBA", cut.size, "white"), cut.convert("RGBA"))
            cut = cut.convert({1: "L", 3: "RGB"}[channels])
            pixels = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
    except Exception as error:  # depends on the damage: OSError, SyntaxError, ValueError, struct.error, ...
        reason = instead(path) or error or type(error).__name__
        raise UserError(f"{path} cannot be read as an image ({reason}); replace it") from error
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def read_image_files(paths: Sequence[Path], size: int, channels: int, title: str) -> "np.ndarray":
    """uint8 [n, channels, size, size], filled in place: CelebA at 64x64 is 2 GB."""
    import numpy as np

    images = np.empty((len(paths), channels, size, size), np.uint8)
    for number, path in enumerate(paths, 1):
        images[number - 1] = read_image(path, size, channels)
        if number % PROGRESS_EVERY == 0:
            print(f"{title}: {number}/{len(paths)} images", file=sys.stderr, flush=True)
    return images
