"""Words for the differences of a run from its published method; a method's `departures` uses them.

Tables show them after the name of the method, so each is short. They follow from the recipe and public facts of the
data.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from dpdm.data import ImageMeta

TOLERANCE = 1.05  # a smaller factor does not count


def side(meta: ImageMeta, *published: int) -> Iterator[str]:
    """The side of the images in pixels, if the method was published only for other sizes."""
    if meta.shape[1] not in published:
        yield f"{meta.shape[1]} px"


def changed(params: BaseModel, **names: str) -> Iterator[str]:
    """The keys of a recipe that differ from their default, the published value: `changed(params, k="frequencies")`."""
    for name, key in names.items():
        if (value := getattr(params, key)) != default(params, key):
            yield f"{name} = {value}"


def factor(name: str, ours: float, published: float) -> Iterator[str]:
    """How many times less (÷) or more (×) of something a run has than the published one, in two digits."""
    ratio = published / ours
    sign, size = ("÷", ratio) if ratio >= 1 else ("×", 1 / ratio)  # noqa: RUF001
    if size > TOLERANCE:
        yield f"{name} {sign} {float(f'{size:.2g}'):,.9g}"


def default(params: BaseModel, key: str) -> Any:
    """The default value of a recipe's key."""
    return type(params).model_fields[key].get_default(call_default_factory=True)
