"""Strict reading of YAML (PyYAML silently keeps the last of two equal keys), and merging it over other YAML."""

import io
import re
from pathlib import Path
from typing import Any

import yaml

from dpdm.errors import UserError

PLAIN_NUMBER = r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]\d+)?|[+-]?\.\d+([eE][+-]\d+)?|[+-]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"


class _Strict(yaml.SafeLoader):
    """YAML loader that refuses values that YAML 1.1 reads in unexpected ways, or cannot read."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            ValueError,
            LookupError,
            AttributeError,
        ) as error:  # a date without such a day, a long number
            text, kind = str(node.value)[:40], node.tag.rpartition(":")[2]
            raise UserError(f"{_where(node)}: YAML cannot read {text} as {kind}; write text in quotes") from error


def _where(node: yaml.Node) -> str:
    return f"{node.start_mark.name}, line {node.start_mark.line + 1}"


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":  # `<<: *anchor` is meant to be overlaid
            continue
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{_where(key_node)}: a key must be plain text, not a list or mapping")
        key = loader.construct_object(key_node)
        if not isinstance(key, str):
            text = key_node.value
            raise UserError(f"{_where(key_node)}: YAML reads the key {text} as {key!r}; write it in quotes: '{text}'")
        if key in seen:
            raise UserError(f"{_where(key_node)}: key {key!r} is written twice; delete one")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """Octal (010), base 60 (1:30), and 1_0, 0x10 and 0b10 are refused."""
    read = yaml.SafeLoader.construct_yaml_int if node.tag.endswith(":int") else yaml.SafeLoader.construct_yaml_float
    value = read(loader, node)
    if not re.fullmatch(PLAIN_NUMBER, node.value):
        raise UserError(
            f"{_where(node)}: YAML reads {node.value} as {value}; write {value}, or text in quotes: '{node.value}'"
        )
    return value


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
for _kind in ("int", "float"):
    _Strict.add_constructor(f"tag:yaml.org,2002:{_kind}", _number)


def read_yaml(path: str | Path) -> Any:
    """The content of a study file, before any check of its keys.

    UserError if it cannot be read, is not YAML, or holds a key twice, a key that is no text, or a number that is not
    plain.
    """
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the study {path}: {reason}; `dpdm list studies` shows those of dpdm") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a text; UserError as in `read_yaml`, which names `origin`."""
    stream = io.StringIO(text)
    stream.name = origin
    try:
        return yaml.load(stream, _Strict)
    except yaml.YAMLError as error:
        raise UserError(f"{origin} is not valid YAML: {' '.join(str(error).split())}") from error


def overlay(base: Any, change: Any) -> Any:
    """`change` merged over `base` as Snakemake does: mappings key by key, any other value replaced."""
    if not isinstance(base, dict) or not isinstance(change, dict):
        return change
    return base | {key: overlay(base.get(key), value) for key, value in change.items()}


def without_nulls(value: Any) -> Any:
    """The value without the keys that a null removes."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return value


def merge(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` merged over it, nested mappings key by key; neither is modified.

    A mapping of another `kind` replaces the old one, since kinds have different keys. If the old one leaves `kind` at
    its default, which is not known here, its keys stay, and an unknown key is refused later.
    """
    if "kind" in base and change.get("kind", base["kind"]) != base["kind"]:
        return dict(change)
    return base | {
        key: merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in change.items()
    }
