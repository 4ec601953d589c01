"""CelebA (Liu et al. 2015), aligned images of 178x218."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dpdm.errors import UserError
from dpdm.sources.base import DATA_DIR_VARIABLE, ImageSize, LocalSource
from dpdm.sources.image_files import PREPROCESSING, read_image_files

if TYPE_CHECKING:
    import numpy as np

    from dpdm.data import ImageMeta, ImageSet

PARTITIONS = {"train": "0", "test": "2"}  # 1, validation, is not used
SIZES = {"train": 162_770, "test": 19_962}
IMAGES, SPLITS, ATTRIBUTES = "img_align_celeba", "list_eval_partition.txt", "list_attr_celeba.txt"


class Celeba(LocalSource):
    """CelebA: `img_align_celeba/*.jpg`, `list_eval_partition.txt` and, for `label`, `list_attr_celeba.txt`, as
    torchvision lays them out; all images must be there."""

    source: Literal["celeba"] = "celeba"
    image_size: ImageSize
    label: str | None = Field(
        None, description="an attribute such as `Male` makes two classes, 0 without and 1 with it; default: one class"
    )
    preprocessing: ClassVar[str] = PREPROCESSING

    def published_as(self) -> tuple[str, int | None]:
        """There are published numbers for one class, and for the attribute Male."""
        names = {None: "celeba", "Male": "celeba (male_conditional)"}
        return (names[self.label], self.image_size) if self.label in names else ("", None)

    def meta(self) -> "ImageMeta":
        from dpdm.data import ImageMeta

        return ImageMeta(SIZES["train"], (3, self.image_size, self.image_size), 1 if self.label is None else 2)

    def load(self) -> "dict[str, ImageSet]":
        """The centered 178x178 of each image, resized to image_size.

        This is the customary crop; we could not verify the paper's preprocessing of CelebA. Without `label`, every
        image has label 0 of one class; with it, images with the attribute have label 1.
        """
        from dpdm.data import ImageSet

        folder = self.folder()
        needed = (IMAGES, SPLITS, *([] if self.label is None else [ATTRIBUTES]))
        for name in needed:
            if not (folder / name).exists():
                raise UserError(
                    f"celeba: {folder / name} is missing; get CelebA from "
                    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (it is not fetched for you), unpack its "
                    f"aligned images, and put {', '.join(needed)} into {folder}, or set {DATA_DIR_VARIABLE} to the "
                    "folder that holds celeba/"
                )
        there = {path.name for path in (folder / IMAGES).glob("*.jpg")}
        rows = _text_rows(folder / SPLITS)
        names = {
            split: [row[0] for row in rows if row[1:] == [partition] and row[0] in there]
            for split, partition in PARTITIONS.items()
        }
        for split, size in SIZES.items():
            if len(names[split]) != size:
                raise UserError(
                    f"celeba: {folder} holds {len(names[split])} of CelebA's {size} {split} images; unpack "
                    f"{IMAGES}.zip again, and fetch {SPLITS} again"
                )
        labels = {split: _labels(folder / ATTRIBUTES, self.label, names[split]) for split in names}
        return {
            split: ImageSet(
                read_image_files([folder / IMAGES / name for name in found], self.image_size, 3, f"celeba {split}"),
                labels[split], self.meta().num_classes, f"celeba {split}",
            )
            for split, found in names.items()
        }  # fmt: skip


def _labels(path: Path, attribute: str | None, names: Sequence[str]) -> "np.ndarray":
    """int64 [n]: 1 where the image has the attribute, else 0; all 0 without an attribute."""
    import numpy as np

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
    from dpdm import artifacts

    return [line.split() for line in artifacts.read_bytes(path).decode(errors="replace").splitlines() if line.strip()]
