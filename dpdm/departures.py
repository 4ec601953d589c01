"""Words for how a run is not the published one of its method: a method's `departures` is made of them.

They follow the name of the method in tables, so each is short. All come from the recipe and public facts of the data.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dpdm.data import ImageMeta

TOLERANCE = 1.05  # a smaller factor is none


def side(meta: ImageMeta, *published: int) -> Iterator[str]:
    """The side of the images in pixels, where the method was published on other sizes."""
    if meta.shape[1] not in published:
        yield f"{meta.shape[1]} px"


def changed(params: BaseModel, **names: str) -> Iterator[str]:
    """The keys of a recipe that do not have their default, the published value: `changed(params, k="frequencies")`."""
    for name, key in names.items():
        if (value := getattr(params, key)) != default(params, key):
            yield f"{name} = {value}"


def factor(name: str, ours: float, published: float) -> Iterator[str]:
    """How many times less or more a run has of something than the published one, in two digits."""
    ratio = published / ours
    sign, size = ("÷", ratio) if ratio >= 1 else ("×", 1 / ratio)  # noqa: RUF001
    if size > TOLERANCE:
        yield f"{name} {sign} {float(f'{size:.2g}'):,.9g}"


def default(params: BaseModel, key: str) -> Any:
    """What a key of a recipe has where a study does not say it."""
    return type(params).model_fields[key].get_default(call_default_factory=True)
