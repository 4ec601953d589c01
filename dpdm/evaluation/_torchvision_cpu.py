"""Makes torchvision importable with CPU-only torch, with which PyPI's wheel cannot load its compiled operators."""

import importlib

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries = []  # torch forgets an operator when the Library that declared it is collected


def ensure() -> None:
    """Imports torchvision: normally if possible, else after declaring the operator names that its Python part expects.

    The declared operators have no code: calling one fails. torch-fidelity, the only user, never does. ImportError if
    torchvision is not installed.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        if "torchvision::" not in str(error):
            raise
        _declare()
        importlib.import_module("torchvision")


def _declare() -> None:
    import torch

    if not _libraries:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _OPERATORS:
            library.define(schema)
        _libraries.append(library)
