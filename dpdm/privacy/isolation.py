"""The swap test: a record's gradient must not depend on the other records of its batch.

DP-SGD's sensitivity is one clip norm only if every record acts only on its own gradient. This breaks with batch
statistics, mixup, negatives or class weights taken from the batch, a mean over the batch, a memory of earlier records,
rows not in draw-major order, or a loss that treats rows by their place; the layers do not show it. So the loss is
tested on random images with equal draws: other records are replaced, left out, set to NaN, or come before, and the
gradient of a record must stay the same. The test never looks at the private images.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dpdm.data import ImageMeta
from dpdm.errors import UserError
from dpdm.privacy.per_example import PerExampleGradients
from dpdm.privacy.traces import dark_and_bright, held_by, without_traces
from dpdm.rng import Streams

TOLERANCE = 1e-4  # of the gradient's norm; without mixing the change is 0 or a rounding error
SIZE_TOLERANCE = 0.02  # between batches of different sizes, whose sums round differently
SIZES = (3, 8, 32)  # records per chunk; the smallest is always tried, the next while they fit into SECONDS
SECONDS = 0.4
PLACES = 21  # records of the batch, at most, in which one record is always put into every row
FAR = 1e4  # a pixel that no image has

# What replaces the other records: factor on the images' contrast, share of labels that are not the record's. They
# change the histogram of the labels, and the record's place among the losses: lower than the others', then higher.
SHARP, GREY, SOFT = (4.0, 1.0), (0.02, 0.5), (0.5, 1.0)


class SwapTest:
    """Runs the test when it is due.

    The full test runs before the first step, and when the code of the loss changes, or the kind, mode or a flag of a
    module. A brief test runs at later steps (`is_due`) and finds later changes, such as a schedule in the loss or a
    memory that fills.

    Args:
        gradients: the engine that the private steps use.
        meta: the shape and number of classes of the private images, both public.
        max_size: the largest chunk of a step.
    """

    def __init__(self, gradients: PerExampleGradients, meta: ImageMeta, max_size: int):
        self._gradients, self._meta, self._max_size = gradients, meta, max_size
        self._sizes = sorted({*(size for size in SIZES if size < max_size), *([max_size] if max_size > 1 else [])})
        self._passed: set[Any] = set()

    def run(self, row_losses: Callable[[Tensor, Tensor], Tensor], module: nn.Module, step: int = 0) -> None:
        """Tests `row_losses` if the test is due.

        Args:
            row_losses: the losses of a private step; see `DpSgdStep.update`.
            module: the module in training. Its parameters are moved a little during the test (a layer that starts at
                zero would hide the layers before it), and then restored.
            step: index of the step.

        Raises:
            UserError: a record's gradient moved (the message says of which parameter, and by how much), or the loss
                keeps something of its records, or random images have no gradient, so that the test sees nothing.
        """
        key = _identity(row_losses), _signature(module)
        known = key in self._passed
        if known and not is_due(step):
            return
        trials = _Trials(self._gradients, self._meta, row_losses, module)
        per_record = 0.0
        with _moved(list(trials.parameters.values())):
            if known and self._sizes:
                trials.in_brief(self._sizes[0])
                return
            trials.alone(step, self._sizes[0] if self._sizes else 1)
            trials.in_every_place(min(PLACES, self._max_size))
            start = time.process_time()  # not wall time: a busy machine must not test less
            for size in self._sizes:
                began = time.process_time()
                if per_record and began - start + per_record * size > SECONDS:
                    break
                trials.among_others(size, start + SECONDS)
                trials.in_every_class(size)
                if size > PLACES:
                    trials.in_every_place(size)
                per_record = (time.process_time() - began) / size
        self._passed.add(key)


class _Trials:
    """The trials of one loss; each raises UserError. Arguments as in `SwapTest`."""

    def __init__(self, gradients: PerExampleGradients, meta: ImageMeta, row_losses: Callable, module: nn.Module):
        self._gradients, self._meta, self._row_losses, self._module = gradients, meta, row_losses, module
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._device = next(iter(self.parameters.values())).device

    def alone(self, step: int, size: int) -> None:
        """Compares a record by itself, after another one, and among others: batches of 1 and `size`, equal draws."""
        images, labels = self._batch(max(size, 2), f"alone at {step}")
        set_apart(labels, self._meta)
        labels[2:] = labels[0]
        shown, named = torch.cat([images[:2], *dark_and_bright(images[:1])]), labels[[0, 1, 0, 0]]
        with _SameDraws():
            found = without_traces(
                lambda i: self._backward(shown[i : i + 1], named[i : i + 1]),
                self._row_losses,
                self._module,
                records=(0, 1, 2, 3, 0),
            )
            last = self._backward(images[:size], labels[:size])
        alone, *_, again = ([g[0] for g in gradients] for gradients in found)
        if what := self._moved(alone, again, TOLERANCE):
            raise UserError(
                f"the loss remembers records or draws: called again, it gives the same record another gradient, which "
                f"moves {what}; let it draw from torch's default generator on the CPU, and keep nothing from one call "
                "to the next"
            )
        self._refuse_size(alone, last)
        if not step and not any(float(g.norm()) for gradients in found for g in gradients):
            raise UserError(
                "the gradient of random images is zero, so that nothing can be tested; let a loss leave out no images"
            )

    def in_brief(self, size: int) -> None:
        """Compares a record among others that are replaced once, and then among images of NaN."""
        kept = size - 1  # the middle would be its own mirror image
        batches = self._first(size), self._replaced(*self._first(size), 0, kept, SHARP)
        first, second = without_traces(
            lambda i: self._backward(*batches[i]), self._row_losses, self._module, records=(0, 1)
        )
        of_kept = [g[kept] for g in first]
        self._refuse_moved(of_kept, second, kept)
        self._among_nan(*batches[0], of_kept, kept)

    def among_others(self, size: int, end: float) -> None:
        """Compares a record among replaced others, in several places until `end` (seconds of processor time)."""
        images, labels = self._first(size)
        trials = ((size // 2, SHARP), (size // 2, GREY), (size - 1, SOFT), (0, SHARP))
        whole = self._backward(images, labels)
        first = {kept: [g[kept].clone() for g in whole] for kept, _ in trials}
        del whole  # as large as the gradients of a step
        self._among_nan(images, labels, first[size // 2], size // 2)
        for number, (kept, change) in enumerate(trials):
            if number > 1 and time.process_time() > end:
                break
            second = self._backward(*self._replaced(images, labels, number, kept, change))
            self._refuse_moved(first[kept], second, kept)

    def in_every_place(self, size: int) -> None:
        """Puts one record in every row, with equal draws: all rows must have its gradient in a batch of one."""
        images, _ = self._batch(1, "everywhere")
        labels = torch.full((1,), self._meta.num_classes // 2, device=self._device)  # neither first nor last of three
        with _SameDraws() as draws:
            one = [g[0] for g in self._backward(images, labels)]
            rows = self._backward(images.expand(size, *images.shape[1:]), labels.expand(size))
        if draws.unequal:
            return
        gaps = torch.stack([(g - g[:1]).flatten(1).square().sum(1) for g in rows]).sum(0)
        place = int(gaps.nan_to_num(nan=math.inf).argmax())
        if what := self._moved([g[0] for g in rows], [g[place] for g in rows], SIZE_TOLERANCE):
            raise UserError(
                f"the loss treats rows by their place: of {size} equal records with equal draws, the gradient of "
                f"record {place} differs from that of record 0 {what}; a record that leaves moves others to another "
                "place, so let every row draw for itself instead"
            )
        self._refuse_size(one, rows)

    def in_every_class(self, size: int) -> None:
        """Replaces the images of all records except one per class: some losses mix only the records of one class."""
        classes = max(1, self._meta.num_classes)
        if size < 2 * classes:
            return
        labels = torch.arange(size, device=self._device) % classes
        images, others = (self._batch(size, name)[0] for name in ("classes", "other classes"))
        others[:classes] = images[:classes]
        first = [g[:classes].clone() for g in self._backward(images, labels)]
        second = self._backward(others, labels)
        for kept in range(classes):
            self._refuse_moved([g[kept] for g in first], second, kept)

    def _among_nan(self, images: Tensor, labels: Tensor, first: list[Tensor], kept: int) -> None:
        """Compares a record among images of NaN, which reveal all arithmetic with them, past any threshold."""
        losses: list[Tensor] = []

        def watched(x: Tensor, y: Tensor) -> Tensor:
            losses.append(self._row_losses(x, y))
            return losses[-1]

        # A loss may refuse such images. On a GPU they can end the process, for example by an index made of NaN.
        for strange in (math.nan, FAR) if self._device.type == "cpu" else ():
            others = torch.full_like(images, strange)
            others[kept] = images[kept]
            try:
                second = self._backward(others, labels, watched, finite=False)
                break
            except Exception:
                continue
        else:
            return
        moved = self._moved(first, [g[kept] for g in second], TOLERANCE)
        what = f"the gradient of record {kept} moves {moved}" if moved else ""
        if self._gradients.is_fast:  # with the other engine, a loss sees no batch
            finite = losses[-1].detach().view(-1, len(images))[:, kept].isfinite().all()
            what = what or ("" if finite else f"the loss of record {kept} is not finite")
        if what:
            raise UserError(
                f"the loss mixes records: {what} when all pixels of the {len(images) - 1} others are {strange:g}; let "
                "the loss of a row depend only on its own record"
            )

    def _first(self, size: int) -> tuple[Tensor, Tensor]:
        """Records of the last class."""
        images, labels = self._batch(size, "first")
        return images, torch.full_like(labels, max(0, self._meta.num_classes - 1))

    def _replaced(
        self, images: Tensor, labels: Tensor, number: int, kept: int, change: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Other records in all places except `kept`."""
        contrast, differing = change
        others, other_labels = self._batch(len(images), f"other/{number}")
        others = (others * contrast).clamp(-1, 1)
        differ = torch.arange(len(images), device=self._device) < differing * len(images)
        classes = max(1, self._meta.num_classes)
        shift = 1 + other_labels % max(1, classes - 1)
        other_labels = torch.where(differ, (labels + shift) % classes, labels)
        others[kept], other_labels[kept] = images[kept], labels[kept]
        return others, other_labels

    def _refuse_moved(self, first: list[Tensor], second: list[Tensor], kept: int) -> None:
        """Compares the gradients of one record with those of its row in another batch."""
        if what := self._moved(first, [g[kept] for g in second], TOLERANCE):
            size = len(second[0])
            raise UserError(
                f"the loss mixes records: the gradient of record {kept} moves {what} when the {size - 1} others are "
                "replaced; let the loss of a row depend only on its own record (no batch statistics, mixup, negatives "
                "or weights from the batch), rows in draw-major order (row k * B + b)"
            )

    def _refuse_size(self, one: list[Tensor], rows: list[Tensor]) -> None:
        """Compares the gradients of a record in a batch of one with those of row 0 in a larger batch."""
        if what := self._moved(one, [g[0] for g in rows], SIZE_TOLERANCE):
            raise UserError(
                f"the loss mixes records: the gradient of one record moves {what} when {len(rows[0]) - 1} others are "
                "in its batch; give one loss per row, not divided by their number, nor of anything taken from the "
                "batch (rows in draw-major order, row k * B + b)"
            )

    def _moved(self, first: list[Tensor], second: list[Tensor], tolerance: float) -> str:
        """How far a record's gradient moves, and in which parameter most: "by 0.3 of its size (0.weight)", or ""."""
        worst, moved = _movement(first, second)
        return "" if moved <= tolerance else f"by {moved:.2g} of its size ({list(self.parameters)[worst]})"

    def _batch(self, size: int, name: str) -> tuple[Tensor, Tensor]:
        return random_records(size, self._meta, f"{name}/{size}", self._device)

    def _backward(
        self, images: Tensor, labels: Tensor, row_losses: Callable | None = None, finite: bool = True
    ) -> list[Tensor]:
        """The gradients [B, *shape] of a batch, per parameter."""
        with Streams(0, "swap test").torch_default("loss"):
            self._gradients.backward(row_losses or self._row_losses, images.clone(), labels.clone(), finite)
        found = [p.grad_sample.detach().float() for p in self.parameters.values()]
        for p in self.parameters.values():
            p.grad_sample = None
        if finite and not torch.stack([g.isfinite().all() for g in found]).all():
            raise UserError("a gradient is not finite on random images; check the loss where it divides or takes roots")
        return found


def is_due(step: int) -> bool:
    """Whether a loss or gradient that passed before is tested again at this step.

    True for steps 1 to 11, powers of two, multiples of a hundred, and the steps just before these, where schedules
    usually begin or act.
    """
    return 0 < step < 12 or any(near & (near - 1) == 0 or near % 100 == 0 for near in (step, step + 1) if step)


def random_records(size: int, meta: ImageMeta, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Public images [size, C, H, W], uniform in [-1, 1], and labels [size] of all classes."""
    rng = Streams(0, "random records")
    images = 2 * torch.rand((size, *meta.shape), generator=rng.torch(f"{name}/images")) - 1
    labels = torch.randint(max(1, meta.num_classes), (size,), generator=rng.torch(f"{name}/labels"))
    return images.to(device), labels.to(device)


def set_apart(labels: Tensor, meta: ImageMeta) -> None:
    """Gives the second of random records another label than the first, in place: some memories depend on labels."""
    labels[1] = (labels[0] + 1) % max(1, meta.num_classes)


class _SameDraws(TorchDispatchMode):
    """Inside the block, every row of a random tensor has the draws of its first row, for any number of rows.

    A function that takes tensors, such as probabilities, starts at the same state of the generator for every row. A
    permutation moves every index by one. What draws without replacement takes the most probable indices. So a loss that
    chooses rows by such draws treats them by their place.

    `unequal`: whether a random function was called for which this does not hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unequal = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.removeprefix("aten::")
        given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | kwargs
        size, of_vectors = given.get("size"), name == "_sample_dirichlet"
        if "out" in given:
            pass
        elif name == "randperm":
            return torch.arange(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device")).roll(-1)
        elif name in _SIZED and size:
            return func(**given | {"size": [1, *size[1:]]}).expand(*size).clone()
        elif name == "multinomial":
            return _multinomial(func, *args, **kwargs)
        elif name in _OF_TENSORS and any(isinstance(a, Tensor) and a.ndim > of_vectors and len(a) for a in args):
            return _row_by_row(func, args, kwargs)
        found = func(*args, **kwargs)
        drawn = torch.Tag.nondeterministic_seeded in func.tags and (not isinstance(found, Tensor) or found.ndim > 0)
        attention = name.startswith("_scaled_dot_product")  # draws only for dropout
        drawn = given.get("dropout_p", 0) > 0 if attention else drawn
        self.unequal = self.unequal or drawn
        return found


_SIZED = ("rand", "randn", "randint", "normal")
_OF_TENSORS = (
    "rand_like", "randn_like", "randint_like", "bernoulli", "normal", "poisson", "binomial", "_standard_gamma",
    "_sample_dirichlet", "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "geometric_", "cauchy_",
    "log_normal_",
)  # fmt: skip


def _row_by_row(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Calls a random function of tensors for every row, from the same state of the generator."""
    given = torch.broadcast_tensors(*(a for a in args if isinstance(a, Tensor)))
    default = torch.cuda.default_generators[given[0].device.index] if given[0].is_cuda else torch.default_generator
    generator = kwargs.get("generator") or default
    before, after, rows = generator.get_state(), None, []
    for i in range(len(given[0])):
        generator.set_state(before)
        tensors = iter(given)
        rows.append(func(*(next(tensors)[i : i + 1] if isinstance(a, Tensor) else a for a in args), **kwargs))
        after = generator.get_state() if after is None else after
    generator.set_state(after)
    return args[0] if func._schema.name.endswith("_") else torch.cat(rows)


def _multinomial(func: Any, weights: Tensor, count: int, replacement: bool = False, **kwargs: Any) -> Tensor:
    """Equal draws of every row of `weights`; with replacement, all of a row are equal."""
    if count > 1 and not replacement:
        return weights.argsort(dim=-1, descending=True, stable=True)[..., :count]
    drawn = _row_by_row(func, (weights if weights.ndim > 1 else weights[None], 1), kwargs)
    return drawn.expand(-1, count).reshape(*weights.shape[:-1], count).clone()


def _movement(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[int, float]:
    """The parameter whose gradient moved most, and how far: relative to its norm, or to a tenth of all if larger."""
    norms = torch.stack([g.norm() for g in before])
    moved = torch.stack([(a - b).norm() for a, b in zip(before, after, strict=True)])
    moved /= norms.clamp(min=max(0.1 * float(norms.norm()), 1e-12))
    return int(moved.argmax()), float(moved.max())


@contextmanager
def _moved(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Adds a little noise to the parameters inside the block, and restores them bit for bit afterwards."""
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
    """What is equal for the same closure made at every step of a loop: its code, and the flags that it holds."""
    inner = getattr(row_losses, "func", row_losses)
    inner = getattr(inner, "__func__", inner)
    code = getattr(inner, "__code__", None) or type(inner).__call__.__code__
    held = held_by(row_losses).values()
    codes = tuple(getattr(value, "__code__", None) for value in held)
    modes = tuple(layer.training for value in held if isinstance(value, nn.Module) for layer in value.modules())
    return code, codes, modes, tuple(value for value in held if isinstance(value, bool | str))


def _signature(module: nn.Module) -> tuple:
    layers = tuple(
        (name, type(layer), *((key, value) for key, value in vars(layer).items() if isinstance(value, bool | str)))
        for name, layer in module.named_modules()
    )
    return layers, tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in module.named_parameters())
