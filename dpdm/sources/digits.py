"""scikit-learn's digits: 1,797 images of 8x8, shipped with the library."""

from typing import TYPE_CHECKING, Literal

from dpdm.sources.base import Source

if TYPE_CHECKING:
    from dpdm.data import ImageMeta, ImageSet

TOTAL, TEST = 1797, 360  # stratified, split seed 0


class Digits(Source):
    """Real handwritten digits, 8x8; ships with scikit-learn."""

    source: Literal["digits"] = "digits"

    def published_as(self) -> tuple[str, int | None]:
        return ("digits", None)

    def meta(self) -> "ImageMeta":
        """1,437 training images of 1x8x8, 10 classes."""
        from dpdm.data import ImageMeta

        return ImageMeta(TOTAL - TEST, (1, 8, 8), 10)

    def load(self) -> "dict[str, ImageSet]":
        """A fixed stratified split; pixels 0..16 become 0..255."""
        import numpy as np
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        from dpdm.data import ImageSet

        digits = load_digits()
        images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        labels = digits.target.astype(np.int64)
        split = train_test_split(images, labels, test_size=TEST, stratify=labels, random_state=0)
        return {
            "train": ImageSet(split[0], split[2], 10, "digits train"),
            "test": ImageSet(split[1], split[3], 10, "digits test"),
        }
