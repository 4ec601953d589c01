"""The common parts of all sources of images."""

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator

from dpdm.errors import UserError
from dpdm.params import Count, Strict

if TYPE_CHECKING:
    from dpdm.data import ImageMeta, ImageSet

DATA_DIR_VARIABLE = "DPDM_DATA_DIR"
LEAST = 4  # images of a split: precision and recall need three neighbors

ImageSize = Annotated[
    int, Field(ge=8, description="each image's largest centered square is resized to this height and width, in pixels")
]
NumClasses = Annotated[Count, Field(le=100_000, description="number of classes: public, never counted from the labels")]


def user_path(text: str) -> Path:
    """A path as a user writes it, with ~; UserError if ~ names no home folder, or the path is invalid."""
    if "\0" in text:
        raise UserError(f"the path {text!r} has a null character; correct it")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"the path {text} begins with the home folder of nobody here; write the whole path") from error


def refuse_few(where: str, images: int) -> None:
    """UserError for a split with fewer than 4 images, on which no distance can be measured."""
    if images < LEAST:
        raise UserError(f"{where} holds {images or 'no'} images; at least {LEAST} are needed to measure a distance")


Check = Callable[[str, "dict[str, ImageSet]"], None]
_ONLY: tuple[Collection[str], Check] | None = None  # the sources allowed, and a check; None: all


@contextlib.contextmanager
def loads_only(names: Collection[str], check: Check) -> Iterator[None]:
    """Inside the block, a method is trained: UserError if it loads images of a source that is not in `names`.

    They could be the private images, which only the door may show. `check` gets the name and the splits of loaded
    sources.
    """
    global _ONLY
    before, _ONLY = _ONLY, (names, check)
    try:
        yield
    finally:
        _ONLY = before


class Source(Strict):
    """Where the images of a data set come from; only a change of the source prepares the data set again.

    A subclass sets `source` to its name, as a Literal and as the default, and adds the keys that it needs.
    """

    source: str
    preprocessing: ClassVar[str] = ""  # how image files were resized, for dataset.json

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Lets `loads_only` watch the loader of every source."""
        super().__pydantic_init_subclass__(**kwargs)
        if load := vars(cls).get("load"):

            @functools.wraps(load)
            def watched(self: Source) -> "dict[str, ImageSet]":
                if _ONLY is not None and self.source not in _ONLY[0]:
                    raise UserError(
                        f"the method loads the images of the source {self.source} while it is trained; private images "
                        "come only from the door, and public ones must be named by its public_data()"
                    )
                splits = load(self)
                if _ONLY is not None:
                    _ONLY[1](self.source, splits)
                return splits

            cls.load = watched

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, value: Any) -> Any:
        return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value

    @classmethod
    def needs_keys(cls) -> bool:
        """Whether its name does not yet say which images it has."""
        return any(field.is_required() for field in cls.model_fields.values())

    def keys(self) -> dict[str, Any]:
        """The keys that are set, without the name."""
        return self.model_dump(mode="json", exclude={"source"}, exclude_none=True)

    def files(self) -> list[str]:
        """The user's files from which the images come."""
        return []

    def published_as(self) -> tuple[str, int | None]:
        """The columns `dataset` and `resolution` of numbers published on it; ("", None) if there can be none."""
        return ("", None)

    def meta(self) -> "ImageMeta":
        """Public facts of the training split; reads files only if they determine the number of images (npz, folder).

        UserError if such a file is missing or corrupt, or the folders do not fit the keys.
        """
        raise NotImplementedError

    def load(self) -> "dict[str, ImageSet]":
        """The `train` and `test` splits; UserError for a file that is missing (and not available) or differs."""
        raise NotImplementedError

    def facts(self, splits: "dict[str, ImageSet]") -> dict[str, Any]:
        """The content of dataset.json: source, keys, sizes, shape, classes, digests, how images were resized."""
        meta = splits["train"].meta
        facts = {
            "source": self.source,
            "keys": self.keys(),
            "shape": list(meta.shape),
            "num_classes": meta.num_classes,
            "n": {split: len(images.images) for split, images in splits.items()},
            "sha256": {split: images.digest() for split, images in splits.items()},
        }
        return facts | ({"preprocessing": self.preprocessing} if self.preprocessing else {})


class LocalSource(Source):
    """A source of files in a folder of this machine."""

    data_dir: str | None = Field(
        None, description=f"folder of the files; default `${DATA_DIR_VARIABLE}/SOURCE`, else `data/SOURCE`"
    )

    def folder(self) -> Path:
        """The folder of the files."""
        if self.data_dir is not None:
            return user_path(self.data_dir)
        return user_path(os.environ.get(DATA_DIR_VARIABLE) or "data") / self.source
