"""The user's own image files, one folder per class."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from dpdm.errors import UserError
from dpdm.sources.base import ImageSize, LocalSource, NumClasses
from dpdm.sources.image_files import PREPROCESSING, read_image_files

if TYPE_CHECKING:
    from dpdm.data import ImageMeta, ImageSet

SUFFIXES = (".png", ".jpg", ".jpeg")


class Folder(LocalSource):
    """Your own image files: `train/CLASS/*.png` or `.jpg`, and `test/CLASS/*`; classes in the order of their names.
    After a change of the files delete `results/data/NAME`."""

    source: Literal["folder"] = "folder"
    data_dir: str = Field(description="folder that holds `train/` and `test/`")
    image_size: ImageSize
    num_classes: NumClasses
    channels: Literal[1, 3] | None = Field(None, description="1 (gray) or 3 (RGB, the default)")
    preprocessing: ClassVar[str] = PREPROCESSING

    def meta(self) -> "ImageMeta":
        """Counts the files."""
        from dpdm.data import ImageMeta

        n = sum(map(len, self._class_files()["train"]))
        return ImageMeta(n, (self.channels or 3, self.image_size, self.image_size), self.num_classes)

    def load(self) -> "dict[str, ImageSet]":
        """Both splits; classes and files in the order of their names."""
        import numpy as np

        from dpdm.data import ImageSet

        splits = {}
        for split, files in self._class_files().items():
            title = str(self.folder() / split)
            paths = [path for of_class in files for path in of_class]
            images = read_image_files(paths, self.image_size, self.channels or 3, title)
            labels = np.repeat(np.arange(len(files)), list(map(len, files)))
            splits[split] = ImageSet(images, labels, self.num_classes, title)
        return splits

    def _class_files(self) -> dict[str, list[list[Path]]]:
        """Per split and class the image files."""
        classes, files = {}, {}
        for split in ("train", "test"):
            root = self.folder() / split
            try:
                folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
                files[split] = [sorted(p for p in f.iterdir() if not p.name.startswith(".")) for f in folders]
            except OSError as error:
                raise UserError(
                    f"cannot read {error.filename}: {error.strerror}; source folder needs "
                    "data_dir/train/CLASS/*.png|jpg and data_dir/test/CLASS/*"
                ) from error
            classes[split] = [path.name for path in folders]
            if len(folders) != self.num_classes:
                raise UserError(f"{root} holds {len(folders)} class folders but num_classes is {self.num_classes}")
            strange = next(
                (
                    p
                    for of_class in files[split]
                    for p in of_class
                    if p.suffix.lower() not in SUFFIXES or not p.is_file()
                ),
                None,
            )
            if strange:
                raise UserError(f"{strange} is no {', '.join(SUFFIXES)} file; convert it or move it away")
            if not any(files[split]):
                raise UserError(f"{root} holds no images")
        if classes["train"] != classes["test"]:
            odd = min(set(classes["train"]) ^ set(classes["test"]))
            raise UserError(
                f"{self.folder()}: class {odd} is in only one of train/ and test/; both need the same classes"
            )
        return files
