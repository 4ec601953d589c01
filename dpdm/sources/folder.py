"""The user's own image files, one folder per class."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from dpdm.errors import UserError
from dpdm.sources.base import ImageSize, LocalSource, NumClasses, refuse_few
from dpdm.sources.image_files import PREPROCESSING, read_image_files

if TYPE_CHECKING:
    from dpdm.data import ImageMeta, ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg")


class Folder(LocalSource):
    """Your own image files: `train/CLASS/*.png` or `.jpg`, and `test/CLASS/*`; classes in the natural order of their
    names (2 before 10), which dataset.json lists; transparent pixels become white. After a change of the files delete
    `results/data/NAME`."""

    source: Literal["folder"] = "folder"
    data_dir: str = Field(description="folder that holds `train/` and `test/`")
    image_size: ImageSize
    num_classes: NumClasses
    channels: Literal[1, 3] | None = Field(None, description="1 (gray) or 3 (RGB, the default)")
    preprocessing: ClassVar[str] = PREPROCESSING

    def meta(self) -> "ImageMeta":
        from dpdm.data import ImageMeta

        n = sum(map(len, self._files()["train"].values()))
        return ImageMeta(n, (self.channels or 3, self.image_size, self.image_size), self.num_classes)

    def load(self) -> "dict[str, ImageSet]":
        """Both splits; files in the order of their names."""
        import numpy as np

        from dpdm.data import ImageSet

        splits = {}
        for split, classes in self._files().items():
            title = str(self.folder() / split)
            paths = [path for files in classes.values() for path in files]
            images = read_image_files(paths, self.image_size, self.channels or 3, title)
            labels = np.repeat(np.arange(len(classes)), list(map(len, classes.values())))
            splits[split] = ImageSet(images, labels, self.num_classes, title)
        return splits

    def facts(self, splits: "dict[str, ImageSet]") -> dict[str, Any]:
        """Also the names of the classes, by label."""
        return super().facts(splits) | {"classes": list(self._files()["train"])}

    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """The image files, per split and class."""
        found = {}
        for split in ("train", "test"):
            root = self.folder() / split
            try:
                folders = sorted((path for path in _shown(root) if path.is_dir()), key=_natural)
                found[split] = {folder.name: sorted(_shown(folder)) for folder in folders}
            except OSError as error:
                raise UserError(
                    f"cannot read {error.filename}: {error.strerror}; source folder needs "
                    "data_dir/train/CLASS/*.png|jpg and data_dir/test/CLASS/*"
                ) from error
            if len(folders) != self.num_classes:
                raise UserError(f"{root} holds {len(folders)} class folders but num_classes is {self.num_classes}")
            files = [path for of_class in found[split].values() for path in of_class]
            for path in files:
                if path.suffix.lower() not in SUFFIXES or not path.is_file():
                    raise UserError(f"{path} is no {', '.join(SUFFIXES)} file; convert it or move it away")
            refuse_few(str(root), len(files))
        if odd := found["train"].keys() ^ found["test"].keys():
            raise UserError(
                f"{self.folder()}: class {min(odd)} is in only one of train/ and test/; both need the same classes"
            )
        return found


def _shown(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _natural(path: Path) -> tuple[list[str | int], str]:
    """A sort key: numbers in names count by their value."""
    parts = re.split(r"(\d+)", path.name)
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name
