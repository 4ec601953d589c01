"""Writes the files that follow from the schema of a study: study.schema.json, and the tables of config/README.md.

    python benchmarks/schema.py

Run it after a change of a key; a test compares both files with the output.
"""

import inspect
import json
from pathlib import Path
from typing import Any, get_args, get_origin

from _page import between
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dpdm.artifacts import canonical_json
from dpdm.config import Study
from dpdm.privacy import DpSgdParams, PoissonBlocks, ShardBlocks
from dpdm.sources import SOURCES

ROOT = Path(__file__).parents[1]
SCHEMA, PAGE = ROOT / "workflow" / "schemas" / "study.schema.json", ROOT / "config" / "README.md"


def schema() -> str:
    """The JSON Schema of a study file."""
    return canonical_json(Study.model_json_schema())


def keys() -> str:
    """A table of all keys: each with its default and its meaning, from the descriptions in the schema."""
    return _table(_rows([Study], ""))


def private() -> str:
    """The same for the parameters of the private training loops that methods share."""
    return _table(_rows([DpSgdParams], "dp.") + _rows([PoissonBlocks, ShardBlocks], "blocks."))


def sources() -> str:
    """A list of the sources with their files."""
    return "\n".join(f"- `{name}`: {' '.join(inspect.getdoc(kind).split())}" for name, kind in SOURCES.items())


def page(text: str) -> str:
    """config/README.md with updated blocks."""
    for name, block in (("keys", keys()), ("private", private()), ("sources", sources())):
        text = between(text, name, f"\n\n{block}\n\n")
    return text


def _table(rows: list[str]) -> str:
    return "\n".join(["| key | default | meaning |", "| --- | --- | --- |", *rows])


def _rows(models: list[type[BaseModel]], prefix: str) -> list[str]:
    """One row per key of these models (branches of one union); the keys of a nested model follow their key."""
    rows = []
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        having = [model for model in models if name in model.model_fields]
        fields = [model.model_fields[name] for model in having]
        meanings = dict.fromkeys(field.description or "" for field in fields)
        for meaning in meanings:
            same = [(m, f) for m, f in zip(having, fields, strict=True) if (f.description or "") == meaning]
            meant = _source_names() if name == "source" else meaning
            if name != "source" and "source" in models[0].model_fields and len(same) < len(models):
                meant = ", ".join(f"`{m.model_fields['source'].default}`" for m, _ in same) + f": {meant}"
            rows.append(f"| `{prefix}{name}` | {'required' if name == 'source' else _default(same[0][1])} | {meant} |")
        inner, path = _inner(fields[0].annotation)
        if inner:
            rows += _rows(inner, f"{prefix}{name}{path}.")
    return rows


def _inner(annotation: Any) -> tuple[list[type[BaseModel]], str]:
    """The models that a key's value holds, and the path to one of them: .NAME of a mapping, [] of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation], ""
    found, path = [], ""
    for argument in get_args(annotation):
        models, below = _inner(argument)
        found, path = found + models, below or path
    if found and get_origin(annotation) is dict:
        return found, f".NAME{path}"
    return found, f"[]{path}" if found and get_origin(annotation) is tuple else path


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default in (None, "") or field.default_factory or isinstance(field.default, BaseModel):
        return ""
    value = field.default
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def _source_names() -> str:
    return "where the images come from: " + ", ".join(f"`{name}`" for name in SOURCES)


if __name__ == "__main__":
    SCHEMA.write_text(schema())
    PAGE.write_text(page(PAGE.read_text()))
