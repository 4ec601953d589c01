"""The judges of synthetic images: a line per metric, extractor and classifier, as "module:name".

A new one needs a file and one line here: see docs/extending.md. This module imports no library, so that a study is
checked against these names in milliseconds.
"""

from collections.abc import Mapping
from typing import Any

from dpdm.errors import UserError
from dpdm.parts import Part

METRICS = {  # distances between the features of two sets of images: a `fidelity.Metric` each
    "fd": "dpdm.evaluation.fidelity:FD",
    "kid": "dpdm.evaluation.fidelity:KID",
    "precision_recall": "dpdm.evaluation.fidelity:PRECISION_RECALL",
}
EXTRACTORS = {  # images and the path of the dataset's extractor.pt -> features [n, d], or [k, n, d] of k networks
    "small_cnn": "dpdm.evaluation.extractor:features",
}
PUBLIC_EXTRACTORS = {  # nothing -> a network trained without private images; Inception has separate rules
    "efflite": "dpdm.evaluation.efflite:load",
}
CLASSIFIERS = {  # trained on synthetic images: shape (C, H, W) and number of classes -> an untrained network
    "logreg": "dpdm.evaluation.classifiers:logreg",
    "mlp": "dpdm.evaluation.classifiers:mlp",
    "cnn": "dpdm.evaluation.classifiers:paper_cnn",
}
DPIMAGEBENCH = {  # those of DPImageBench, sized for a GPU
    "resnet": "dpdm.evaluation.residual:resnet",
    "wrn": "dpdm.evaluation.residual:wrn",
    "resnext": "dpdm.evaluation.residual:resnext",
}
PROTOCOLS = {  # how classifiers are trained, and which: see `classifiers`
    "standard": CLASSIFIERS,
    "paper": CLASSIFIERS,
    "dpimagebench": DPIMAGEBENCH,
}


def part(registry: Mapping[str, str], name: str, kind: str) -> Part:
    """The line of a registry; UserError if none has this name (`kind` says what the registry holds)."""
    check(registry, name, kind)
    own = next(key for key, value in globals().items() if value is registry)
    return Part("dpdm/evaluation/registry.py", own, name, registry[name])


def load(registry: Mapping[str, str], name: str, kind: str) -> Any:
    """The object that a line of `registry` names; UserError as in `part` and `Part.load`."""
    return part(registry, name, kind).load()


def check(registry: Mapping[str, Any], name: str, kind: str) -> None:
    """Refuses (UserError) a name that `registry` does not have; `kind` says what it holds."""
    if name not in registry:
        raise UserError(f"unknown {kind} {name!r}; choose from {', '.join(registry)}")
