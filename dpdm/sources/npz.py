"""The user's own images in two npz files."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dpdm.errors import UserError
from dpdm.sources.base import NumClasses, Source

if TYPE_CHECKING:
    from dpdm.data import ImageMeta, ImageSet

ARRAYS = "npz file with `images` (uint8 [n, C, H, W], C 1 or 3) and `labels` (integers [n])"


class Npz(Source):
    """Your own images, in the files named by `train` and `test`."""

    source: Literal["npz"] = "npz"
    train: str = Field(description=f"training split: {ARRAYS}")
    test: str = Field(description=f"test split: {ARRAYS}")
    num_classes: NumClasses

    def files(self) -> list[str]:
        """Both."""
        return [self.train, self.test]

    def meta(self) -> "ImageMeta":
        """Read from the training file."""
        return self._read(self.train).meta

    def load(self) -> "dict[str, ImageSet]":
        """Both splits, of one image shape."""
        train, test = self._read(self.train), self._read(self.test)
        if train.meta.shape != test.meta.shape:
            raise UserError(
                f"{self.train} and {self.test} hold images of different shapes: "
                f"{train.meta.shape} and {test.meta.shape}"
            )
        return {"train": train, "test": test}

    def _read(self, path: str) -> "ImageSet":
        import numpy as np

        from dpdm import artifacts
        from dpdm.data import ImageSet

        arrays = artifacts.read_npz(path, ("images", "labels"))
        labels = arrays["labels"]
        if labels.dtype.kind in "iu":
            labels = labels.astype(np.int64)
        images = ImageSet(arrays["images"], labels, self.num_classes, path)
        if images.meta.shape[0] not in (1, 3):
            raise UserError(
                f"{path}: images must be [n, C, H, W] with 1 or 3 channels, got {images.images.shape}; "
                "move the channels"
            )
        if not images.meta.n:
            raise UserError(f"{path} holds no images")
        return images
