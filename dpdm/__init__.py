"""A reproducible benchmark around Differentially Private Diffusion Models. Importing this loads nothing else.

`dpdm.open_results`, `dpdm.train_arrays` and `dpdm.show` (see `dpdm.api`) load at their first use.
"""

from typing import Any

__version__ = "1.0.0"

_API = ("open_results", "show", "train_arrays")


def __getattr__(name: str) -> Any:
    if name in _API:
        from dpdm import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_API])
