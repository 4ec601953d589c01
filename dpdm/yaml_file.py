"""Reading of YAML, strictly: a key that is written twice is an error (PyYAML keeps the last one silently)."""

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
