"""Traces of a callback: everything that it can reach must be the same after one random record as after another.

If a loss, statistic or block gradient keeps something of its records (a sum, an image, a running mean, a gradient in
another network), it carries private data past the ledger, or makes a later release depend on earlier records.
"""

import contextlib
import functools
import gc
import hashlib
import io
import itertools
import logging
import os
import random
import re
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dpdm.errors import UserError

Found = TypeVar("Found")

REACH = 100_000  # facts that `state_of` finds at most
_METHODS = ("dpdm.diffusion", "baselines")  # of this project; the rest of it is trusted
_OURS = re.compile(r"dpdm\.(privacy|checkpoint|processes)(\.|$)")  # a door, and what it holds
_PLAIN = (type(None), bool, int, float, complex, np.generic, str, bytes, torch.dtype, torch.device, torch.Size)
_NO_HOLDER = (
    types.ModuleType, types.BuiltinFunctionType, types.CodeType, types.FrameType, types.TracebackType, threading.Thread
)  # fmt: skip
_HOOKS = {name: hooks for name, hooks in vars(nn.modules.module).items() if name.startswith("_global_")}
_SENT = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "sqlite3.connect", "socket.connect"}
_UNSEEN = ((torch, "save", 1), (os, "write", 0), (logging.FileHandler, "emit", 0))  # write without an audit event
_OPENED: tuple[int, list[str]] | None = None  # during `_watched`: its thread, and what is written to


def without_traces(call: Callable[[int], Found], *roots: Any, records: Sequence[int] = (0, 1, 0)) -> list[Found]:
    """Results of `call` on random records: by default one, another with another label, and the first again.

    Args:
        call: maps the number of a record to a result.
        roots: the callables and modules that it uses. The search follows closures, arguments, attributes, containers,
            caches, hooks and named globals. The first call may build what later ones use.

    Raises:
        UserError: a later call changed something that they can reach (a tensor, its gradient, a number, a container, a
            generator or a cache), wrote to standard output or a file, or started a program or a connection.
    """
    found: list[Found] = []
    before: dict[str, Any] | None = None
    for record in records:
        with _watched() as written:
            found.append(call(record))
        after = state_of(*roots, _HOOKS)
        changes = [name for name in after if before and before.get(name) != after[name]]
        changes += [name for name in before or () if name not in after]
        if before is not None and (changes or written):
            what = f"remembers records: a call changes {changes[0]}" if changes else f"writes to {written[0]}"
            raise UserError(
                f"it {what}, and what private images leave there is a release outside the ledger; keep nothing from "
                "one call to the next, train no other network, call eval() on modules outside, and write nothing"
            )
        before = after
    return found


def dark_and_bright(images: Tensor) -> tuple[Tensor, Tensor]:
    """The images, darker and brighter than random ones: a running minimum or maximum moves with one of them."""
    return images / 10 - 0.9, images / 10 + 0.9


@contextlib.contextmanager
def _watched() -> Iterator[list[str]]:
    """Inside the block, names of what is written to (standard output, files, programs, hosts) are added to the list."""
    global _OPENED
    _install_hook()
    written: list[str] = []
    unseen = [(owner, name, getattr(owner, name), place) for owner, name, place in _UNSEEN]
    _OPENED = threading.get_ident(), written
    try:
        for owner, name, write, place in unseen:
            setattr(owner, name, _noting(write, place))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            yield written
        written += ["standard output"] * bool(printed.getvalue())
    finally:
        _OPENED = None
        for owner, name, write, _ in unseen:
            setattr(owner, name, write)


def _noting(write: Callable, place: int) -> Callable:
    """`write`, which also notes its argument at `place`: a file."""

    @functools.wraps(write)
    def noted(*args: Any, **kwargs: Any) -> Any:
        file = args[place] if len(args) > place else kwargs.get("f", "a file")
        if write.__name__ != "write":
            _note(str(file))
        elif file != 2:  # standard error
            _note(f"file {file}")
        return write(*args, **kwargs)

    return noted


def _note(name: str) -> None:
    if _OPENED is not None and _OPENED[0] == threading.get_ident():
        _OPENED[1].append(name)


@functools.cache
def _install_hook() -> None:
    """Runs once per process, since an audit hook cannot be removed."""

    def hook(event: str, arguments: tuple) -> None:
        if _OPENED is None:
            return
        if event == "open":
            path, _, flags = arguments
            if path != os.devnull and isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
                _note(str(path))
        elif event in _SENT:
            _note(f"a program, a database or a host ({event})")

    sys.addaudithook(hook)


def state_of(*roots: Any) -> dict[str, Any]:
    """Digests of everything reachable from `roots`, by the path to it. Objects of the door are left out.

    It uses `type(value)`, which a proxy cannot override.

    Raises:
        UserError: there are more than `REACH`.
    """
    own = frozenset(map(_package, map(_home, roots))) - {"torch"}
    state: dict[str, Any] = {}
    seen: dict[int, tuple[str, Any]] = {}  # keeps the visited objects, so that no id is used twice
    todo = deque(("", root) for root in roots)
    while todo:
        if len(state) == REACH:
            raise UserError(
                f"it can reach more than {REACH:,} objects, too many to look for traces of records; hold many public "
                "values in a tensor or an array, not in a list of objects"
            )
        name, value = todo.popleft()  # nearest first
        while name in state:
            name += "'"
        if issubclass(type(value), _PLAIN):
            number = issubclass(type(value), float | complex | np.generic)
            state[name] = repr(value) if number else value  # nan is not nan
        elif id(value) in seen:
            state[name] = seen[id(value)][0]
        elif not _is_ours(value):
            seen[id(value)] = name, value
            state[name] = id(value) if issubclass(type(value), Tensor) else ""  # for values that cannot be read
            with contextlib.suppress(Exception):  # whatever a proxy raises when it is inspected
                state[name] = _fact(value)
                todo += [(f"{name}{part}".lstrip("."), held) for part, held in _parts(value, own)]
    return state


def _is_ours(value: Any) -> bool:
    kind = type(value)
    if issubclass(kind, types.MethodType):
        return _is_ours(value.__self__) or _is_ours(value.__func__)
    module = value.__module__ if issubclass(kind, types.FunctionType) else kind.__module__
    return bool(_OURS.match(str(module)))


def _fact(value: Any) -> Any:
    """The value itself, without its parts: the content of a tensor or array, the length of a container."""
    kind = type(value)
    if issubclass(kind, Tensor):
        return _content(value)
    if issubclass(kind, np.ndarray):
        return value.shape, str(value.dtype), b"" if value.dtype == object else _digest(value.tobytes())
    if issubclass(kind, torch.Generator):
        return _digest(value.get_state().numpy().tobytes())
    if issubclass(kind, np.random.Generator):
        return repr(value.bit_generator.state)
    if issubclass(kind, np.random.RandomState | random.Random):
        return repr((value.get_state if issubclass(kind, np.random.RandomState) else value.getstate)())
    if issubclass(kind, functools._lru_cache_wrapper):
        return value.cache_info().misses
    if issubclass(kind, itertools.count):
        return repr(value)
    if issubclass(kind, types.GeneratorType):
        return value.gi_frame and value.gi_frame.f_lasti
    if issubclass(kind, io.BytesIO | io.StringIO):
        return _digest(repr(value.getvalue()).encode())
    if issubclass(kind, io.IOBase):
        return value.tell() if value.writable() and value is not sys.stderr else None
    if issubclass(kind, Mapping | list | tuple | set | frozenset | deque):
        items = [*(itertools.chain(*value.items()) if issubclass(kind, Mapping) else value)]
        plain = [item for item in items if issubclass(type(item), _PLAIN)]
        return kind.__name__, len(items), _digest(repr(plain).encode())
    try:
        return _digest(memoryview(value).tobytes())  # of a bytearray, an array, or a value in shared memory
    except TypeError:
        return kind.__name__


def _content(value: Tensor) -> Any:
    if value.is_meta or nn.parameter.is_lazy(value):
        return type(value).__name__
    whole = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    whole = whole.dequantize() if whole.is_quantized else whole
    content = whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return tuple(whole.shape), str(whole.dtype), _digest(content)


def _digest(content: bytes | np.ndarray) -> bytes:
    return hashlib.sha256(content).digest()


def _parts(value: Any, own: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """The parts of a value, by their place in it; `own`: packages that do not count as libraries."""
    kind = type(value)
    if issubclass(kind, Tensor):
        yield from [(".grad", value.grad)] if value.is_leaf or value.retains_grad else []
        yield from _named(getattr(value, "__dict__", {}))
        yield "._backward_hooks", value._backward_hooks
    elif issubclass(kind, Mapping):
        for i, (key, item) in enumerate(value.items()):
            if not issubclass(type(key), _PLAIN):
                yield from [(f".keys()[{i}]", key), (f".values()[{i}]", item)]
            elif not issubclass(type(item), _PLAIN):
                yield f"[{key!r}]", item
        yield from _named(getattr(value, "__dict__", {}))
    elif issubclass(kind, list | tuple | set | frozenset | deque):
        for i, item in enumerate(value):
            if not issubclass(type(item), _PLAIN):
                yield f"[{i}]", item
        yield from _named(getattr(value, "__dict__", {}))
    elif issubclass(kind, property):
        yield ".fget", value.fget
    elif issubclass(kind, types.BuiltinMethodType) and not issubclass(type(value.__self__), types.ModuleType):
        yield ".__self__", value.__self__
    elif issubclass(kind, np.ndarray):
        yield from [(".tolist()", value.tolist())] if value.dtype == object else []
    elif issubclass(kind, types.FunctionType | types.MethodType | functools.partial):
        yield from _named(held_by(value))
        yield from _named(_globals_of(getattr(value, "__func__", value), own))
        yield ".func", getattr(value, "func", None)  # of functools.partial
        yield from _named(getattr(value, "__dict__", {}))
    elif issubclass(kind, functools._lru_cache_wrapper):
        yield ".__wrapped__", value.__wrapped__
    elif issubclass(kind, types.GeneratorType) and value.gi_frame:
        yield from _named(value.gi_frame.f_locals)
    elif issubclass(kind, type):
        for name, item in () if _library(value.__module__, own) else vars(value).items():
            inner = getattr(item, "__func__", item)  # of a static or class method
            if not name.startswith("__") or issubclass(type(inner), types.FunctionType):
                yield f".{name}", inner
    elif hasattr(kind, "to_numpy"):  # of pandas; only its values, since reading fills its caches
        yield ".index", getattr(value, "index", None)
        columns = ((f"[{name!r}]", column) for name, column in value.items()) if value.ndim == 2 else ()
        yield from columns or [(".to_numpy()", value.to_numpy())]
    elif kind.__module__ not in ("weakref", "_abc") and not issubclass(kind, _NO_HOLDER):
        if hasattr(value, "__dict__"):
            yield from _named(value.__dict__)
        else:  # written in C, such as a csv.writer
            yield from ((f".<{i}>", held) for i, held in enumerate(gc.get_referents(value)))
        for owner in kind.__mro__:
            if not _library(owner.__module__, own):
                yield from ((f".{name}", getattr(value, name, None)) for name in _slots(owner))
                yield f".{owner.__name__}", owner


def _named(items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((f".{name}", item) for name, item in items.items())


def _slots(owner: type) -> tuple[str, ...]:
    slots = vars(owner).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _home(value: Any) -> Any:
    """The module of a function, or of an object's class."""
    if issubclass(type(value), functools.partial):
        return _home(value.func)
    named = issubclass(type(value), types.FunctionType | types.MethodType)
    return value.__module__ if named else type(value).__module__


def _package(module: Any) -> str:
    return str(module).partition(".")[0]


@functools.cache
def _library(module: str | None, own: frozenset[str]) -> bool:
    """Whether a module belongs to Python, to a package installed next to torch, or to the trusted part of this project.

    Changes in their classes and globals do not depend on records; an example is the clock of a progress bar.
    """
    package = _package(module)
    if package in sys.stdlib_module_names or not module:
        return True
    if package in ("dpdm", "baselines"):
        return not module.startswith(_METHODS)
    file = None if package in own else getattr(sys.modules.get(package), "__file__", None)
    return file is not None and Path(torch.__file__).parents[1] in Path(file).parents


def held_by(function: Any) -> dict[str, Any]:
    """What a callable holds in its closure, its defaults, functools.partial, or as the object of a bound method."""
    inner = getattr(function, "func", function)  # of functools.partial
    plain = getattr(inner, "__func__", inner)  # of a bound method
    held = {}
    names = getattr(getattr(plain, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(plain, "__closure__", None) or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            held[name] = cell.cell_contents
    held |= {f"__defaults__[{i}]": item for i, item in enumerate(getattr(plain, "__defaults__", None) or ())}
    held |= getattr(plain, "__kwdefaults__", None) or {}
    held |= {f"args[{i}]": item for i, item in enumerate(getattr(function, "args", ()))}
    held |= getattr(function, "keywords", {})
    return held | {"__self__": getattr(inner, "__self__", None)}


def _globals_of(function: Any, own: frozenset[str]) -> dict[str, Any]:
    """The globals and imports that the code of a function names; for modules, the attributes that it names."""
    if _library(getattr(function, "__module__", None), own):
        return {}
    codes, names = [getattr(function, "__code__", None)], {}
    while codes:
        if code := codes.pop():
            names |= dict.fromkeys(code.co_names)
            codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    known = getattr(function, "__globals__", {})
    values = {name: known[name] for name in names if name in known}
    for name in names:  # of an import inside the function, absolute or relative
        for module in {name, f"{known.get('__package__')}.{name}".rstrip(".")} & sys.modules.keys():
            values.setdefault(module, sys.modules[module])
    modules, looked = [*values.values()], set()
    while modules:
        module = modules.pop()
        if not issubclass(type(module), types.ModuleType) or module in looked:
            continue
        looked.add(module)
        if not _library(module.__name__, own):
            inside = {name: vars(module)[name] for name in names if name in vars(module)}
            values |= {
                name if name not in values else f"{module.__name__}.{name}": item for name, item in inside.items()
            }
            modules += inside.values()
    return values
