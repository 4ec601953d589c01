"""Messages for a file or spec that breaks its schema: one line per mistake, with its path and the fix."""

import difflib
import importlib
import pkgutil
import re
import reprlib
from collections.abc import Iterable
from types import ModuleType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError

from dpdm.errors import UserError

TAGS = ("kind", "source")  # keys that choose a model of a union
SHOULD = "Input should be "  # how pydantic begins most messages
PLAIN = {  # what to write, by pydantic's type of error
    "tuple_type": "write a list, [A, B]",
    "list_type": "write a list, [A, B]",
    "too_short": "write at least one entry",
    "too_long": "write fewer entries",
    "dict_type": "write keys and values",
    "model_type": "write keys and values",
    "model_attributes_type": "write keys and values",
    "float_type": "write a number",
    "float_parsing": "write a number",
    "int_type": "write a whole number",
    "int_parsing": "write a whole number",
}
NAME, IMPL, FOLDER, TEXT = r"^[a-z][a-z0-9_]{0,99}$", r"^[\w.]+:\w+$", r"^[\w./@=+][\w./@=+-]*$", r"\S"
PLAIN_PATTERNS = {  # what to write, by the pattern of a text
    NAME: "write lower-case letters, digits and underscores, a letter first, at most 100",
    IMPL: "write module:Class, such as baselines.pearl:PEARL",
    FOLDER: "write a path without spaces, of letters, digits and _ . / @ = + - only",
    TEXT: "write some words",
}


def nearest(name: str, known: Iterable[str], otherwise: str = "there are") -> str:
    """The end of an error about a misspelled name: the nearest name, or `otherwise` and all names."""
    close = difflib.get_close_matches(name, known := list(known), 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise} {', '.join(known)}"


def imported(module: str) -> ModuleType:
    """The module of this name; UserError, which names the nearest one, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module raises while it is imported
        hint, package = "correct the module", module.rpartition(".")[0]
        if package and getattr(error, "name", None) == module:  # the package is there
            siblings = pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}.")
            hint = nearest(module, [one.name for one in siblings])
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"cannot import {module} ({reason}); {hint}") from error


def parse_params(kind: Any, params: Any, where: str) -> Any:
    """`params` as a checked value of `kind`, a model or a union of models; a UserError names their place `where`."""
    try:
        return TypeAdapter(kind).validate_python(params)
    except ValidationError as error:
        raise UserError(explain(error, kind, where)) from error


def explain(error: ValueError, kind: Any, origin: str) -> str:
    """One line per mistake: file or spec, YAML path, what is wrong, and the fix; `kind`: the model that refused."""
    if not isinstance(error, ValidationError):
        return f"{origin}: {error}"
    items = error.errors()
    found: dict[str, list[str]] = {}
    for item in items:
        if item["type"] == "too_short" and any(_is_below(i["loc"], item["loc"]) for i in items):
            continue  # pydantic counts only the valid entries; the invalid ones are named already
        if item["type"] == "default_factory_not_called":
            continue  # a default that depends on another key, whose mistake is named already
        path, around = _path(item["loc"], kind)
        message = _message(item, around)
        if item["type"].startswith("union_tag"):
            path = f"{path}.{_misspelt(item) or _discriminator(item)}".removeprefix(".")
        found.setdefault(f"{origin}: {path}" if path else origin, []).append(message)
    return "\n".join(f"{place}: {line}" for place, messages in found.items() for line in _joined(messages))


def _is_below(loc: tuple[str | int, ...], other: tuple[str | int, ...]) -> bool:
    return len(loc) > len(other) and loc[: len(other)] == other


def _joined(messages: list[str]) -> list[str]:
    """The distinct messages on one value; those of the branches of a union become one line."""
    if text := [message for message in messages if "YAML reads" in message]:
        return text[:1]
    wants = [message for message in dict.fromkeys(messages) if message.startswith(SHOULD)]
    plain = [message for message in messages if message.startswith("write ")]
    if plain and wants:  # such as "write a number, got 'x'", and "Input should be 'y', got 'x'"
        return [_either("write ", *plain, *wants)]
    if len(wants) > 1:
        one = _either(SHOULD, *wants)
        messages = [one if message == wants[0] else message for message in messages if message not in wants[1:]]
    return list(dict.fromkeys(messages))


def _either(begin: str, *wants: str) -> str:
    """Joins sentences on one value into one: each without its beginning, and only the last with the value."""
    *others, last = (want.removeprefix(SHOULD).removeprefix("write ") for want in wants)
    return begin + " or ".join([*(other.rpartition(", got ")[0] or other for other in others), last])


def _message(item: Any, around: list[type[BaseModel]]) -> str:
    """What is wrong with one value; `around`: the models whose key it is."""
    value, context = item["input"], item.get("ctx", {})
    if item["type"] == "extra_forbidden":
        tag = next((f" of {name} {tag!r}" for m in around if len(around) == 1 for name, tag in _tag(m).items()), "")
        keys = sorted({name for model in around for name in model.model_fields})
        return f"unknown key{tag}; {nearest(str(item['loc'][-1]), keys, 'valid keys:')}"
    if item["type"] == "union_tag_not_found" and _misspelt(item):
        return f"unknown key; did you mean {_discriminator(item)!r}?"
    if item["type"] in ("missing", "union_tag_not_found"):
        return "missing key"
    if item["type"] == "union_tag_invalid":
        known = re.findall(r"'([^']*)'", context["expected_tags"])
        return f"there is no {_discriminator(item)} {context['tag']!r}; {nearest(context['tag'], known)}"
    message = item["msg"].removeprefix("Value error, ")
    if isinstance(value, str) and (number := re.fullmatch(r"([+-]?\d+)(\.\d*)?[eE]([+-]?)(\d+)", value)):
        whole, fraction, sign, exponent = number.groups()
        return f"{message}; YAML reads {value} as text: write {whole}{fraction or '.0'}e{sign or '+'}{exponent}"
    message = PLAIN_PATTERNS.get(context.get("pattern"), PLAIN.get(item["type"], message))
    if not isinstance(value, dict) and not (item["type"] == "value_error" and repr(value) in message):
        message = f"{message}, got {reprlib.repr(value) if isinstance(value, list | tuple) else repr(value)}"
    if item["type"] == "literal_error":
        close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", context["expected"]), 1, 0.5)
        message += f"; did you mean {close[0]!r}?" if close else ""
    return message


def _discriminator(item: Any) -> str:
    return item["ctx"]["discriminator"].strip("'")


def _misspelt(item: Any) -> str | None:
    """A written key that is close to the name of the discriminator."""
    keys = [key for key in item["input"] if isinstance(key, str)] if item["type"] == "union_tag_not_found" else []
    return next(iter(difflib.get_close_matches(_discriminator(item), keys, 1)), None)


# Parts of an error's location that name branches of a union, not written keys.
_BRANCH = re.compile(r"float|int|str|bool|constrained-\w+|[\w-]*\[.*\]")


def _path(loc: tuple[str | int, ...], kind: Any) -> tuple[str, list[type[BaseModel]]]:
    """The path `a.b[0].c` of a location, and the models of its last key, found along the models' annotations."""
    path, at, around = "", [kind], []
    for part in loc:
        models = [model for annotation in at for model in models_of(annotation)]
        if tagged := [model for model in models if part in _tag(model).values()]:
            at = around = tagged
            continue
        inner = [value for annotation in at for value in _inner(annotation, part)]
        if isinstance(part, int):
            path += f"[{part}]"
        elif inner or not (path and _BRANCH.fullmatch(part)):
            path += f".{part}" if path else part
            around = models
        at = inner or at
    return path, around


def _inner(annotation: Any, part: str | int) -> list[Any]:
    """The annotations of the value at `part` (a key or an index)."""
    if _is_model(annotation):
        return [annotation.model_fields[part].annotation] if part in annotation.model_fields else []
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return [arguments[1]] if part != "[key]" else []
    if get_origin(annotation) in (tuple, list):
        return [arguments[0]] if isinstance(part, int) else []
    return [value for branch in _branches(annotation) for value in _inner(branch, part)]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value can have, without those of its keys."""
    if _is_model(annotation):
        return [annotation]
    return [model for branch in _branches(annotation) for model in models_of(branch)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, RootModel)


def _branches(annotation: Any) -> tuple[Any, ...]:
    """The parts of a union, the annotated type, or the root of a root model; nothing for any other type."""
    if isinstance(annotation, type) and issubclass(annotation, RootModel):
        return (annotation.model_fields["root"].annotation,)
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[:1]
    return get_args(annotation) if get_origin(annotation) in (Union, type(int | str)) else ()


def _tag(model: type[BaseModel]) -> dict[str, str]:
    """The key by which a union selects this model, and its one possible value."""
    for key in TAGS:
        annotation = model.model_fields[key].annotation if key in model.model_fields else None
        if get_origin(annotation) is Literal and len(get_args(annotation)) == 1:
            return {key: get_args(annotation)[0]}
    return {}
