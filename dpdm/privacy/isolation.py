"""The swap test: a record's gradient must not depend on the other records of its batch.

DP-SGD's sensitivity is one clip norm only where every record acts only on its own gradient. Batch statistics, mixup,
negatives or class weights taken from the batch, a mean over the batch, a memory of earlier records, or rows in another
order than draw-major break that, and a look at the layers does not show it. So the loss is tried on random images with
equal draws: other records are replaced, left out, or come before, and the gradient of a record must stay the same. The
test never looks at the private images.
"""

import functools
import itertools
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.rng import Streams

TOLERANCE = 1e-4  # of the gradient's norm; without mixing the change is 0 or a rounding error
SIZE_TOLERANCE = 0.02  # between batches of different sizes, whose sums round differently
SIZES = (3, 8, 32)  # records per chunk; the smallest is always tried, the next while they fit into SECONDS
SECONDS = 0.4
REACH = 10_000  # objects among which `modules_in` looks
_LIBRARIES = frozenset(("torch", "numpy", "scipy", "sklearn", "pandas", *sys.stdlib_module_names))
_NO_HOLDER = (Tensor, np.ndarray, str, bytes, int, float, complex, type, types.ModuleType, types.BuiltinFunctionType)

# What replaces the other records: factor on the images' contrast, share of labels that are not the record's. They
# change the histogram of the labels, and the record's place among the losses: lower than the others', then higher.
SHARP, GREY, SOFT = (4.0, 1.0), (0.02, 0.5), (0.5, 1.0)


class SwapTest:
    """Runs the test when it is due.

    In full before the first step, and when the code of the loss, or the kind, mode or a flag of a module changes. In
    brief at steps 1, 2, 4, 8, ..., for what changes later: a schedule in the loss, a memory that fills.

    Args:
        gradients: the engine that the private steps use.
        meta: of the private images: their shape and number of classes, both public.
        max_size: the largest chunk of a step.
    """

    def __init__(self, gradients: PerExampleGradients, meta: ImageMeta, max_size: int):
        self._gradients, self._meta = gradients, meta
        self._sizes = [size for size in SIZES if size <= max_size]
        self._passed: set[Any] = set()

    def run(self, row_losses: Callable[[Tensor, Tensor], Tensor], module: nn.Module, step: int = 0) -> None:
        """Tries `row_losses` if it is time.

        Args:
            row_losses: what a private step differentiates; see `DpSgdStep.update`.
            module: the module in training, whose parameters are moved a little meanwhile (a layer that starts at
                zero would hide what comes before it) and put back.
            step: index of the step.

        Raises:
            UserError: a record's gradient moved; the message says which parameter's, and by how much.
        """
        key = _identity(row_losses), _signature(module)
        known = key in self._passed
        if known and not is_due(step):
            return
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        start = time.process_time()  # not the clock: a busy machine must not test less
        per_record = 0.0
        with _moved(list(parameters.values())), buffers_unchanged(row_losses):
            self._try_alone(row_losses, parameters, step, among=not known)
            for size in self._sizes[:1] if known else self._sizes:
                began = time.process_time()
                if per_record and began - start + per_record * size > SECONDS:
                    break
                self._try(row_losses, parameters, size, start + SECONDS)
                per_record = (time.process_time() - began) / size
        self._passed.add(key)

    def _try_alone(self, row_losses: Callable, parameters: dict[str, nn.Parameter], step: int, among: bool) -> None:
        """Tries a record by itself, after another one, and `among` others: other batch sizes, equal draws."""
        size = self._sizes[0] if self._sizes else 1
        images, labels = self._batch(max(size, 2), f"alone at {step}", next(iter(parameters.values())).device)
        rows = [(0, 1), (1, 2), (0, 1), *[(0, size)] * among]  # the record, another, the record, all of them
        with _SameDraws() if among else nullcontext():
            found = [self._backward(row_losses, parameters, images[a:b], labels[a:b]) for a, b in rows]
        alone, again, last = ([g[0] for g in found[i]] for i in (0, 2, -1))
        worst, moved = _movement(alone, again)
        if moved > TOLERANCE:
            raise UserError(
                f"the loss remembers records or draws: it gives the same record another gradient when it is called "
                f"again ({list(parameters)[worst]} moves by {moved:.2g} of its size); let it draw from torch's default "
                "generator on the CPU, and keep nothing from one call to the next"
            )
        worst, moved = _movement(alone, last)
        if moved > SIZE_TOLERANCE:
            raise UserError(
                f"the loss mixes records: the gradient of {list(parameters)[worst]} of one record moves by {moved:.2g} "
                f"of its size when {size - 1} others are in its batch; give one loss per row, not divided by their "
                "number, nor of anything taken from the batch (rows in draw-major order, row k * B + b)"
            )

    def _try(self, row_losses: Callable, parameters: dict[str, nn.Parameter], size: int, end: float) -> None:
        """A record among others that are replaced."""
        device = next(iter(parameters.values())).device
        images, labels = self._batch(size, "first", device)
        labels = labels[:1].expand(size).contiguous()
        first = self._backward(row_losses, parameters, images, labels)
        middle = size // 2
        trials = ((middle, SHARP), (middle, GREY), (size - 1, SOFT), (0, SHARP))
        for number, (kept, (contrast, differing)) in enumerate(trials):
            if number > 1 and time.process_time() > end:
                break
            others, other_labels = self._batch(size, f"other/{number}", device)
            others = (others * contrast).clamp(-1, 1)
            differ = torch.arange(size, device=device) < differing * size
            other_labels = torch.where(differ, (labels + 1 + other_labels) % max(1, self._meta.num_classes), labels)
            others[kept], other_labels[kept] = images[kept], labels[kept]
            second = self._backward(row_losses, parameters, others, other_labels)
            worst, moved = _movement([g[kept] for g in first], [g[kept] for g in second])
            if moved > TOLERANCE:
                raise UserError(
                    f"the loss mixes records: when {size - 1} of {size} random records are replaced, the gradient of "
                    f"{list(parameters)[worst]} of record {kept}, which is not, moves by {moved:.2g} of its size; let "
                    "the loss of a row depend only on its own record (no batch statistics, mixup, negatives or "
                    "weights from the batch), rows in draw-major order (row k * B + b)"
                )

    def _batch(self, size: int, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        return random_records(size, self._meta, f"{name}/{size}", device)

    def _backward(
        self, row_losses: Callable, parameters: dict[str, nn.Parameter], images: Tensor, labels: Tensor
    ) -> list[Tensor]:
        with Streams(0, "swap test").torch_default("loss"):
            self._gradients.backward(row_losses, images.clone(), labels.clone())
        found = [p.grad_sample.detach().float() for p in parameters.values()]
        for p in parameters.values():
            p.grad_sample = None
        if not torch.stack([g.isfinite().all() for g in found]).all():
            raise UserError("a gradient is not finite on random images; check the loss where it divides or takes roots")
        return found


def is_due(step: int) -> bool:
    """Whether a loss or gradient that passed before is tried again at this step: at 1, 2, 4, 8, ..."""
    return step > 0 and step & (step - 1) == 0


def random_records(size: int, meta: ImageMeta, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Public images [size, C, H, W], uniform in [-0.5, 0.5], and labels [size], never the last of several classes."""
    rng = Streams(0, "random records")
    images = torch.rand((size, *meta.shape), generator=rng.torch(f"{name}/images")) - 0.5
    labels = torch.randint(max(1, meta.num_classes - 1), (size,), generator=rng.torch(f"{name}/labels"))
    return images.to(device), labels.to(device)


def held_by(function: Any) -> list[Any]:
    """What a callable holds: in its closure, its defaults, functools.partial, or as the object of a bound method."""
    inner = getattr(function, "func", function)  # of functools.partial
    plain = getattr(inner, "__func__", inner)  # of a bound method
    held = [cell.cell_contents for cell in getattr(plain, "__closure__", None) or ()]
    held += [*(getattr(plain, "__defaults__", None) or ()), getattr(inner, "__self__", None)]
    held += (getattr(plain, "__kwdefaults__", None) or {}).values()
    return [*held, *getattr(function, "args", ()), *getattr(function, "keywords", {}).values()]


def modules_in(function: Any) -> list[nn.Module]:
    """The modules that a callable can reach: by what it holds, globals that its code names, and what these hold.

    Asks for `type(value)`, which a proxy cannot answer for itself.
    """
    found: list[nn.Module] = []
    seen: dict[int, Any] = {}  # holds what it saw, so that no id is used twice
    todo = deque([function])
    while todo and len(seen) < REACH:
        value = todo.popleft()  # what is near first
        if id(value) not in seen and not issubclass(type(value), _NO_HOLDER):
            seen[id(value)] = value
            found += [value] if issubclass(type(value), nn.Module) else []
            try:
                todo += _parts(value)
            except Exception:  # whatever a proxy raises when it is looked at
                continue
    return found


def _parts(value: Any) -> list[Any]:
    """What a value holds."""
    if issubclass(type(value), Mapping):
        return [*value, *value.values()]
    if issubclass(type(value), list | tuple | set | frozenset | deque):
        return list(itertools.islice(value, REACH))
    parts = list(getattr(value, "__dict__", {}).values())
    for owner in type(value).__mro__:
        if owner.__module__.partition(".")[0] not in _LIBRARIES:  # a class: its attributes, slots, and methods
            parts += [getattr(value, name, None) for name in getattr(owner, "__slots__", ())]
            parts += vars(owner).values()
    if issubclass(type(value), types.FunctionType | types.MethodType | functools.partial):
        inner = getattr(value, "func", None)  # of functools.partial
        return [*parts, inner, *held_by(value), *_globals_of(getattr(value, "__func__", value))]
    return parts


def _globals_of(function: Any) -> list[Any]:
    """The globals that the code of a function names, and of modules of Python among them the attributes it names."""
    codes, names = [getattr(function, "__code__", None)], set()
    while codes:
        if code := codes.pop():
            names |= set(code.co_names)
            codes += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    known = getattr(function, "__globals__", {})
    values = [known[name] for name in names if name in known]
    own = [
        one
        for one in values
        if issubclass(type(one), types.ModuleType) and one.__name__.partition(".")[0] not in _LIBRARIES
    ]
    return values + [vars(module)[name] for module in own for name in names if name in vars(module)]


@contextmanager
def buffers_unchanged(function: Any) -> Iterator[None]:
    """Inside the block `function` is called on random records; UserError if that changes a buffer it can reach.

    A change by private images would be a release outside the ledger: a running mean, for example.
    """
    modules = modules_in(function)
    before = [_buffers(module) for module in modules]
    yield
    for module, old in zip(modules, before, strict=True):
        new = _buffers(module)
        if changed := [name for name in old | new if old.get(name) != new.get(name)]:
            raise UserError(
                f"it changes {changed[0]} of a {type(module).__name__}: what private images leave there is a release "
                "outside the ledger; call eval() on the module before, or keep nothing from one call to the next"
            )


def _buffers(module: nn.Module) -> dict[str, Any]:
    """What decides the buffers of a module: shape and content of each; of those without content only their kind."""
    found = {}
    for name, buffer in module.named_buffers():
        if buffer.is_meta or nn.parameter.is_lazy(buffer):
            found[name] = type(buffer)
            continue
        whole = buffer.detach().to_dense() if buffer.layout != torch.strided else buffer.detach()
        whole = whole.dequantize() if whole.is_quantized else whole
        content = whole.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = tuple(whole.shape), whole.dtype, content
    return found


class _SameDraws(TorchDispatchMode):
    """Inside the block every row of a random tensor is the first one, whatever the number of rows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        if name in ("rand", "randn", "randint", "normal") and not isinstance(args[0], Tensor):
            place = next((i for i, a in enumerate(args) if isinstance(a, list | tuple)), None)
            size = kwargs.get("size") if place is None else args[place]
            if size:
                one = [1, *size[1:]]
                if place is None:
                    kwargs = kwargs | {"size": one}
                else:
                    args = (*args[:place], one, *args[place + 1 :])
                return func(*args, **kwargs).expand(*size).clone()
        if name in ("rand_like", "randn_like", "randint_like", "bernoulli") and args[0].ndim and len(args[0]):
            return func(args[0][:1], *args[1:], **kwargs).expand_as(args[0]).clone()
        if name in ("uniform_", "normal_", "bernoulli_", "exponential_", "random_") and args[0].ndim and len(args[0]):
            return args[0].copy_(func(args[0][:1].clone(), *args[1:], **kwargs).expand_as(args[0]))
        return func(*args, **kwargs)


def _movement(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[int, float]:
    """The parameter whose gradient moved most, and how far: relative to itself or, if it is small, a tenth of all."""
    norms = torch.stack([g.norm() for g in before])
    moved = torch.stack([(a - b).norm() for a, b in zip(before, after, strict=True)])
    moved /= norms.clamp(min=max(0.1 * float(norms.norm()), 1e-12))
    return int(moved.argmax()), float(moved.max())


@contextmanager
def _moved(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Adds a little noise to the parameters inside the block; afterwards they are bit for bit what they were."""
    saved = [p.detach().clone() for p in parameters]
    generator = Streams(0, "swap test").torch("parameters")
    try:
        for p, old in zip(parameters, saved, strict=True):
            noise = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)
            p.data.add_(noise * (0.02 + 0.1 * old.float().square().mean().sqrt()).to(p.dtype))
        yield
    finally:
        for p, old in zip(parameters, saved, strict=True):
            p.data.copy_(old)


def _identity(row_losses: Any) -> Any:
    """What stays equal when a loop makes the same closure anew at every step: its code, and the flags that it holds."""
    inner = getattr(row_losses, "func", row_losses)
    inner = getattr(inner, "__func__", inner)
    code = getattr(inner, "__code__", None) or type(inner).__call__.__code__
    return code, tuple(value for value in held_by(row_losses) if isinstance(value, bool | str))


def _signature(module: nn.Module) -> tuple:
    layers = tuple(
        (name, type(layer), *((key, value) for key, value in vars(layer).items() if isinstance(value, bool | str)))
        for name, layer in module.named_modules()
    )
    return layers, tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in module.named_parameters())
