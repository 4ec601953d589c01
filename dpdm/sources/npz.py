"""The user's own images in two npz files."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from dpdm.errors import UserError
from dpdm.sources.base import NumClasses, Source, refuse_few, user_path

if TYPE_CHECKING:
    import numpy as np

    from dpdm.data import ImageMeta, ImageSet

ARRAYS = "npz file with `images` (uint8 [n, C, H, W], C 1 or 3) and `labels` (integers [n])"


class Npz(Source):
    """Your own images, in the files named by `train` and `test`, as [docs/real_data.md](../docs/real_data.md) writes
    them."""

    source: Literal["npz"] = "npz"
    train: str = Field(description=f"training split: {ARRAYS}")
    test: str = Field(description=f"test split: {ARRAYS}")
    num_classes: NumClasses

    def files(self) -> list[str]:
        return [str(user_path(path)) for path in (self.train, self.test)]

    def meta(self) -> "ImageMeta":
        """Facts of the training file; both files are read, so that `dpdm check` finds mistakes in either."""
        return self.load()["train"].meta

    def load(self) -> "dict[str, ImageSet]":
        """Both splits, of one image shape."""
        train, test = map(self._read, self.files())
        if train.meta.shape != test.meta.shape:
            raise UserError(
                f"{train.origin} and {test.origin} hold images of different shapes: {train.meta.shape} and "
                f"{test.meta.shape}"
            )
        return {"train": train, "test": test}

    def _read(self, path: str) -> "ImageSet":
        import numpy as np

        from dpdm import artifacts
        from dpdm.data import ImageSet, fix_of_images

        arrays = artifacts.read_npz(path, ("images", "labels"))
        images, labels = arrays["images"], arrays["labels"]
        if fix := fix_of_images(images) or _fix_of_labels(labels, self.num_classes):
            raise UserError(f"{path}: {fix}")
        refuse_few(path, len(images))
        return ImageSet(images, labels.astype(np.int64), self.num_classes, path)


def _fix_of_labels(labels: "np.ndarray", classes: int) -> str:
    """What is wrong with labels that are not integers [n] in 0..classes-1, and the line that corrects it; else ""."""
    found = f"labels must be integers [n] in 0..{classes - 1}, got {labels.dtype} {list(labels.shape)}"
    if labels.ndim == 2:
        return f"{found}: make them one per image by labels.{'argmax(1)' if labels.shape[1] > 1 else 'ravel()'}"
    if labels.dtype.kind not in "iu":
        return f"{found}: convert them by labels.astype('int64')"
    if not labels.size or 0 <= labels.min() <= labels.max() < classes:
        return ""
    found = f"labels must lie in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
    if (labels.min(), labels.max()) == (1, classes):
        return f"{found}: count from 0 by labels - 1"
    return f"{found}: correct them, or num_classes of the study"
