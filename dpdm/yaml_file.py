"""Reading of YAML, strictly (PyYAML keeps the last of two equal keys silently), and laying it over other YAML."""

from pathlib import Path
from typing import Any

import yaml

from dpdm.errors import UserError


class _NoDuplicates(yaml.SafeLoader):
    """YAML loader that refuses a key written twice."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` is meant to be overlaid
            continue
        mark = key_node.start_mark
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{mark.name}, line {mark.line + 1}: a key must be plain text, not a list or mapping")
        key = loader.construct_object(key_node)
        if key in seen:
            raise UserError(f"{mark.name}, line {mark.line + 1}: key {key!r} is written twice; delete one")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_NoDuplicates.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path) -> Any:
    """What a study file holds, before any check of its keys.

    Raises:
        UserError: the file cannot be read, is not YAML, or holds a key twice.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the study {path}: {error}") from error
    try:
        loader = _NoDuplicates(text)
        loader.name = str(path)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error


def overlay(base: Any, change: Any) -> Any:
    """`change` laid over `base` as Snakemake does it: mappings key by key, anything else replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: overlay(base.get(key), value) for key, value in change.items()}


def without_nulls(value: Any) -> Any:
    """The value without the keys that a null removes."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, nested mappings key by key; neither is modified.

    A mapping of another `kind` replaces the old one whole: keys of one kind mean nothing to another. Where the old one
    leaves `kind` to its default, which is not known here, its keys stay: one that means nothing is then refused.
    """
    if "kind" in base and change.get("kind", base["kind"]) != base["kind"]:
        return dict(change)
    out = dict(base)
    for key, value in change.items():
        nested = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merge(out[key], value) if nested else value
    return out
