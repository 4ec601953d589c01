"""The choices: methods, data sets, samplers, metrics and studies, each described by its own file.

A method is described by the docstring of its file: its first sentence, its paper (the first brackets with an arXiv
number), and the first sentences after `Released:` and `Cost:`. `Published as:` gives the method's name in
results/published/privacy_status.csv.
"""

import ast
import csv
import importlib
import re
from typing import NamedTuple, get_args

from dpdm.config import load_study
from dpdm.errors import UserError
from dpdm.explain import models_of, nearest
from dpdm.layout import BASELINES, PACKAGE, PRIVACY_STATUS, STUDIES

NOT_PUBLISHED = "none quoted"
NO_PAPER = "none"


class MethodEntry(NamedTuple):
    """One method; `impl` is its name in a study, `paper` its source, `published` the privacy status of its numbers."""

    name: str
    what: str
    releases: str
    cost: str
    published: str
    impl: str
    paper: str


def methods() -> list[MethodEntry]:
    """The methods of this repository, read from their files without importing them."""
    status: dict[str, str] = {}  # by published method; its first line in the file counts, that of its paper
    with open(PRIVACY_STATUS, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            status.setdefault(row["method"], row["privacy_status"])
    found = []
    own = {PACKAGE / "diffusion/method.py": "dpdm", PACKAGE / "diffusion/gauss.py": "dpdm_gauss"}
    for path in (*own, *sorted(BASELINES.glob("[!_]*.py"))):
        tree = ast.parse(path.read_text())
        text = (ast.get_docstring(tree) or "").replace("`", "")  # plain text
        module = f"dpdm.diffusion.{path.stem}" if path in own else f"baselines.{path.stem}"
        paper = re.search(r"\(([^()]*arXiv\s[^()]*)\)", text)
        known = re.search(r"^Published as: (.+)\.$", text, re.M)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and {"plan", "fit"} <= {getattr(part, "name", "") for part in node.body}:
                found.append(MethodEntry(
                    own.get(path, path.stem),
                    _sentence(text, r" \(|\.(?:\s|$)"),  # the bracket names authors
                    _said(text, "Released"), _said(text, "Cost"),
                    status.get(known[1], NOT_PUBLISHED) if known else NOT_PUBLISHED, f"{module}:{node.name}",
                    " ".join(paper[1].split()) if paper else NO_PAPER,
                ))  # fmt: skip
    return found


def datasets() -> list[tuple[str, str, str]]:
    """The sources of data sets: name, what it is, and its keys in a study, except those that all sources have."""
    from dpdm.sources import SOURCES
    from dpdm.sources.base import Source

    return [
        (name, _sentence(kind.__doc__ or ""), ", ".join(k for k in kind.model_fields if k not in Source.model_fields))
        for name, kind in SOURCES.items()
    ]


def samplers() -> list[tuple[str, str, str, str]]:
    """The ways in which each generator draws: method, kind of sampler, what it is, and its keys."""
    from dpdm.method import load_method  # loads torch
    from dpdm.smoothing import Smoothing

    found = [("every generator", "any", _sentence(Smoothing.__doc__ or ""), ", ".join(Smoothing.model_fields))]
    for entry in methods():
        kind = getattr(load_method(entry.impl), "SamplerParams", None)
        for choice in models_of(kind) if kind else ():
            field = choice.model_fields.get("kind")
            name = get_args(field.annotation)[0] if field else "default"
            keys = ", ".join(key for key in choice.model_fields if key != "kind")
            found.append((entry.name, name, _sentence(choice.__doc__ or ""), keys))
    return found


def metrics() -> list[tuple[str, str, str, str]]:
    """The metrics: name, extractor, which direction is better, and the definition from its module."""
    from dpdm.evaluation import fidelity, registry

    found = []
    for name, metric in fidelity.metrics().items():
        text = _docstring(registry.METRICS[name])
        for extractor in (*registry.EXTRACTORS, *registry.PUBLIC_EXTRACTORS, "inception"):
            for value, direction in metric.directions.items():
                shown = "fid" if (value, extractor) == ("fd", "inception") else value
                found.append((shown, extractor, direction, _defined(text, value)))
    place = "dpdm.evaluation.memorization:measure"
    found.append(("nearest_ratio", "", "higher", _defined(_docstring(place), "nearest_ratio")))
    found += [
        (f"acc_{name}", "", "higher", f"accuracy (%) on real test images of {name}, trained on synthetic ones")
        for name in registry.CLASSIFIERS | registry.DPIMAGEBENCH
    ]
    return sorted(found, key=lambda row: row[1])


def studies() -> list[tuple[str, str, str, str, str]]:
    """The shipped studies: name, what it is, number of runs, data sets and methods."""
    found = []
    for path in sorted(STUDIES.glob("*.yaml")):
        study = load_study(path)
        comment = re.match(r"(?:# yaml-language-server.*\n)?((?:#.*\n)*)", path.read_text())[1].replace("#", "")
        names = ", ".join(study.datasets), ", ".join(study.methods)
        found.append((path.stem, _sentence(comment), str(len(study.runs())), *names))
    return found


def find_impl(method: str) -> str:
    """The `module:Class` of a short name; a `module:Class` is unchanged. UserError names the nearest known name."""
    if ":" in method:
        return method
    known = {entry.name: entry.impl for entry in methods()}
    if method not in known:
        raise UserError(f"no method {method!r}, and no module:Class; {nearest(method, known)}")
    return known[method]


def _sentence(text: str, stop: str = r"(?<!et al)\.(?:\s|$)") -> str:
    """The first sentence of a text in one line, without its period and its links; `stop`: what ends it."""
    line = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", " ".join(text.split("\n\n")[0].split()))
    return re.split(stop, line, maxsplit=1)[0]


def _said(text: str, word: str) -> str:
    """The first sentence after `word: ` at the beginning of a line."""
    found = re.search(rf"^{word}: (.*?)(?:[.;:](?:\s|\Z)|\n\n|\Z)", text, re.M | re.S)
    return " ".join(found[1].split()) if found else "not stated"


def _docstring(place: str) -> str:
    """The docstring of the module in `module:name`."""
    return importlib.import_module(place.partition(":")[0]).__doc__ or ""


def _defined(text: str, name: str) -> str:
    """The entry of a name in a docstring's list, up to its first period or semicolon."""
    found = re.search(rf"^ *{name}  +(.*?)(?:(?<=[\w)])\.\s|;\s|\n +\w+  |\n\n|\Z)", text, re.M | re.S)
    return " ".join(found[1].split()) if found else "not described"
