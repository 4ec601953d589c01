"""Per-example gradients, summed over an example's rows of the forward batch: the hot path.

The privacy unit is one example, which may have several rows: row `k * B + b` is row k of example b (draw-major). In
this layout, activations [K * B, C, H, W] can be viewed as [K, B * C, H, W]. The weight gradient of a convolution with
`groups = B` over that batch of K *is* then the stack of B per-example gradients, already summed over the rows. The same
holds for B group norms side by side. Linear, LayerNorm and Embedding have direct formulas. If any other layer is
trained, the module uses `torch.func.vmap` over the examples instead: each gradient is that of a loss which saw only one
example, for any layers.
"""

import copy
import functools
import math
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.parameter import is_lazy

from dpdm.errors import UserError

# What torch raises if an engine does not support an operation of a layer or a loss.
FOREIGN = (RuntimeError, TypeError, AttributeError, IndexError, ValueError, NotImplementedError)


class PerExampleGradients:
    """Fills `p.grad_sample` ([B, *p.shape], in the parameter's dtype) of every trainable parameter of `module`.

    Args:
        module: layers that treat every row of the batch separately, as far as `validate` can see.
        rows_per_example: K, how many rows of the forward batch belong to one example.
        engine: "auto": our functions if they support every trained layer, else "vmap", with a warning. "vmap" also
            serves losses that themselves differentiate through the module (a gradient penalty): exact second-order
            gradients by torch.func, slow on convolutions.

    Attributes:
        module: the module, which the loss must call.
        is_fast: whether our functions compute the gradients.

    Raises:
        UserError: `validate` refuses the module.
    """

    def __init__(self, module: nn.Module, rows_per_example: int = 1, engine: str = "auto"):
        if rows_per_example < 1:
            raise UserError(f"rows_per_example (the noise multiplicity) must be at least 1, got {rows_per_example}")
        if engine not in ("auto", "vmap"):
            raise UserError(f"per-example gradients have no engine {engine!r}; take 'auto' or 'vmap'")
        layers = validate(module)
        self.module = module
        self.rows_per_example = rows_per_example
        self._closed = False
        self._parameters = _trainable(layers)
        self._batch = _Batch(rows_per_example)
        self._forwards: list[int] = []
        self._counter = module.register_forward_pre_hook(self._count, with_kwargs=True)
        trained = {name: layer for name, layer in layers.items() if any(p.requires_grad for p in _own(layer))}
        foreign = [_called(name, layer) for name, layer in trained.items() if not _is_fast(layer)]
        if foreign and engine == "auto":
            warnings.warn(
                f"{foreign[0]} has no fast per-example gradient: the whole module takes the slower path",
                stacklevel=2,
            )
        self.is_fast = not foreign and engine == "auto"
        if self.is_fast:
            for name, layer in trained.items():
                self._batch.names[layer] = _called(name, layer)
                layer.forward = functools.partial(_forward, layer, self._batch)  # shadows the class's, until `close`

    def backward(
        self,
        row_losses: Callable[[Tensor, Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        finite: bool = True,
    ) -> None:
        """Calls `row_losses` and leaves the gradient of each example's mean loss, and no other trace.

        An empty batch has gradients [0, *p.shape]; the loss is not called for it.

        Args:
            row_losses: maps images [B, ...] and labels [B] to losses [K * B], with one forward pass of `module`. With
                the engine "vmap" it sees one example at a time, vectorized: [1, ...] to [K], with any number of forward
                passes.

        Raises:
            RuntimeError: not exactly one forward pass, or not one loss per row. Both would silently change the privacy
                unit.
            UserError: a loss is not finite, `validate` now refuses the module, a forward pass changes a buffer, a
                parameter or a tensor attribute, a parameter's gradient would be lost, or a layer cannot be
                differentiated per example.
        """
        if self._closed:
            raise UserError("these per-example gradients were closed; no private step can be made with them")
        layers = validate(self.module)
        if [id(p) for p in _trainable(layers)] != [id(p) for p in self._parameters]:
            raise UserError(
                "the module's trainable parameters changed since private training began; freeze or replace before it"
            )
        for p in self._parameters:
            p.grad_sample = None
        gradients: Sequence[Tensor] = [p.new_zeros((0, *p.shape)) for p in self._parameters]
        if len(labels):
            with torch.enable_grad(), _state_unchanged(self.module, layers):
                gradients = (self._fast if self.is_fast else self._vmap)(row_losses, images, labels, finite)
        for p, gradient in zip(self._parameters, gradients, strict=True):
            p.grad_sample = gradient

    def close(self) -> None:
        """Removes every hook and attribute from the module; then `backward` is impossible."""
        if self._closed:
            return
        self._closed = True
        self._counter.remove()
        for layer in self._batch.names:
            del layer.forward
        for p in self._parameters:
            if hasattr(p, "grad_sample"):
                del p.grad_sample

    def _count(self, _: nn.Module, inputs: tuple, named_inputs: dict) -> None:
        if self._batch.rows:
            tensors = [t for t in (*inputs, *named_inputs.values()) if isinstance(t, Tensor) and t.ndim]
            self._forwards.append(len(tensors[0]) if tensors else 0)

    def _fast(
        self, row_losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, finite: bool
    ) -> list[Tensor]:
        batch, examples = self._batch, len(labels)
        rows = self.rows_per_example * examples
        self._forwards.clear()
        batch.rows = rows
        try:
            with _explained(self.module, everywhere=False):
                losses = _tensor(row_losses(images, labels))
            if self._forwards != [rows] or losses.shape != (rows,):
                raise RuntimeError(
                    f"a private step needs one forward pass over {rows} rows ({self.rows_per_example} per example) "
                    f"and one loss per row, got forward passes over {self._forwards} rows and losses "
                    f"{tuple(losses.shape)}"
                )
            if finite:
                _check_finite(losses)
            if not losses.requires_grad:
                raise UserError("the loss does not depend on any trainable parameter of the module")
            batch.gradients = {}
            total = _at_least_float32(losses).sum() / self.rows_per_example
            with _explained(self.module):
                outside = torch.autograd.grad(total, self._parameters, allow_unused=True)
            self._refuse_outside(outside)
            found = batch.gradients
            if not found:
                raise UserError(
                    f"the loss reaches no trained layer of the module ({type(self.module).__name__}): every gradient "
                    "would be zero; compute the loss from the module's output, without torch.compile"
                )
            return [found.get(p, p.new_zeros((examples, *p.shape))) for p in self._parameters]
        finally:
            batch.rows, batch.gradients = 0, None
            self._forwards.clear()

    def _vmap(
        self, row_losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor, finite: bool
    ) -> list[Tensor]:
        position = {id(p): i for i, p in enumerate(self._parameters)}
        slots = [
            (holder, name, position[id(p)])
            for holder in self.module.modules()
            for name, p in holder._parameters.items()
            if id(p) in position
        ]
        attributes = [(holder, dict(vars(holder))) for holder in self.module.modules()]

        def example_loss(parameters: list[Tensor], image: Tensor, label: Tensor) -> Tensor:
            for holder, name, i in slots:  # in every place, so that tied weights and weight penalties count
                holder._parameters[name] = parameters[i]
            losses = _tensor(row_losses(image[None], label[None]))
            if losses.shape != (self.rows_per_example,):
                raise _BrokenUnit(
                    f"a private step needs {self.rows_per_example} losses per example, got {tuple(losses.shape)}"
                )
            return _at_least_float32(losses).mean()

        vectorized = torch.func.vmap(
            torch.func.grad_and_value(example_loss), in_dims=(None, 0, 0), randomness="different"
        )
        try:
            with _explained(self.module):
                gradients, losses = vectorized([p.detach() for p in self._parameters], images, labels)
        finally:
            for holder, name, i in slots:
                holder._parameters[name] = self._parameters[i]
            for holder, before in attributes:  # a tensor kept in the forward pass is useless after it
                vars(holder).clear()
                vars(holder).update(before)
        if finite:
            _check_finite(losses)
        if losses.requires_grad:  # by a path outside the module's attributes
            with _explained(self.module):
                outside = torch.autograd.grad(losses.sum(), self._parameters, allow_unused=True)
            self._refuse_outside(outside)
        return [gradient.detach() for gradient in gradients]

    def _refuse_outside(self, outside: Sequence[Tensor | None]) -> None:
        """Raises if autograd found a path to a parameter that the engine does not see."""
        lost = {id(p) for p, gradient in zip(self._parameters, outside, strict=True) if gradient is not None}
        for name, layer in self.module.named_modules():
            for key, p in layer._parameters.items():
                if id(p) in lost:
                    advice = (
                        "use it only through the layer, or ask for second_order=True"
                        if self.is_fast
                        else "take it from the module inside the loss, not from before"
                    )
                    raise UserError(
                        f"parameter {key!r} of {_called(name, layer)} was used outside its layer, where its "
                        f"per-example gradient is lost; {advice}"
                    )


def validate(module: nn.Module) -> dict[str, nn.Module]:
    """Refuses layers without correct per-example gradients, by types and flags. Returns all layers by name.

    Batch norm with running statistics passes in eval mode, where it is a fixed function of one row.

    Raises:
        UserError: a layer mixes rows or keeps statistics of them, a parameter has no real-valued dense gradient, or
            nothing can be trained; the message names layer and reason.
    """
    layers = dict(module.named_modules())
    for name, layer in layers.items():
        if reason := _unfit(layer):
            raise UserError(f"{_called(name, layer)} cannot be trained privately: {reason}")
    if not _trainable(layers):
        raise UserError(f"the module ({type(module).__name__}) has no trainable parameters")
    return layers


def _unfit(layer: nn.Module) -> str | None:
    """Why `layer`, without its children, cannot be in a privately trained module."""
    if any(is_lazy(t) for t in (*_own(layer), *layer._buffers.values())):
        return "its parameters have no shape yet; run the module once on a public batch"
    if isinstance(layer, _BatchNorm) and (layer.training or layer.running_mean is None):
        return "it normalizes by statistics of the batch; take group norm, or eval mode with running statistics"
    if isinstance(layer, _InstanceNorm) and layer.training and layer.running_mean is not None:
        return "it keeps running statistics of the examples; set track_running_stats=False"
    if layer.training and any(
        type(part).__name__ in ("SpectralNorm", "_SpectralNorm") for part in (layer, *layer._forward_pre_hooks.values())
    ):
        return "spectral norm changes its buffers in training mode; use eval mode or another normalization"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        for option, why in _UNFIT_EMBEDDING.items():
            if getattr(layer, option):
                return f"{option}={getattr(layer, option)} {why}; leave it out"
    if any(p.is_quantized or (p.requires_grad and p.is_complex()) for p in _own(layer)):
        return "its parameters are quantized or complex; train real floating-point ones"
    if isinstance(layer, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "it parts the batch itself; give the module inside it: the harness splits batches among processes"
    if isinstance(layer, torch.jit.ScriptModule):
        return "it is TorchScript, whose layers cannot be reached; give the module that it was made from"
    if any(kind.__name__ == "OptimizedModule" for kind in type(layer).__mro__):
        return (
            "torch.compile wraps it, and its per-example gradients are lost there; give the module inside (_orig_mod)"
        )
    if layer._compiled_call_impl is not None:
        return "its call is compiled, where per-example gradients are lost; leave out its compile()"
    if type(layer).get_extra_state is not nn.Module.get_extra_state:
        return "it saves an extra state, which may hold private data; keep state in buffers"
    return None


_UNFIT_EMBEDDING = {
    "max_norm": "changes the weights in the forward pass",
    "scale_grad_by_freq": "makes a gradient depend on the other examples of the batch",
    "sparse": "gives sparse gradients",
}


def _own(layer: nn.Module) -> list[nn.Parameter]:
    return [p for p in layer._parameters.values() if p is not None]


def _trainable(layers: dict[str, nn.Module]) -> list[nn.Parameter]:
    """The trainable parameters, each once, in the order of `Module.parameters`."""
    return list(dict.fromkeys(p for layer in layers.values() for p in _own(layer) if p.requires_grad))


def _called(name: str, layer: nn.Module) -> str:
    return f"layer {name} ({type(layer).__name__})" if name else f"the module ({type(layer).__name__})"


def _check_finite(losses: Tensor) -> None:
    if not torch.isfinite(losses).all():
        raise UserError("the loss is not finite; lower the learning rate or check the images")


def _tensor(losses: object) -> Tensor:
    if not isinstance(losses, Tensor) or losses.layout != torch.strided:
        got = getattr(losses, "layout", type(losses).__name__)
        raise UserError(f"a loss must give a dense tensor with one loss per row, got {got}")
    return losses


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _BrokenUnit(RuntimeError):
    """Our error, which is passed on unchanged."""


@contextmanager
def _explained(module: nn.Module, everywhere: bool = True) -> Iterator[None]:
    """Turns an error of torch inside a layer (with `everywhere`: anywhere) into a UserError that names the layer."""
    try:
        yield
    except (UserError, _BrokenUnit, torch.OutOfMemoryError):
        raise
    except FOREIGN as error:
        names = {id(layer): _called(name, layer) for name, layer in module.named_modules()}
        place = None
        for frame, _ in traceback.walk_tb(error.__traceback__):  # from the loss inwards: the last one is innermost
            for variable in ("self", "layer"):
                place = names.get(id(frame.f_locals.get(variable)), place)
        if place is None and not everywhere:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{place or 'the loss'} cannot be differentiated example by example: {reason}") from error


@contextmanager
def _state_unchanged(module: nn.Module, before: dict[str, nn.Module]) -> Iterator[None]:
    """Refuses a forward pass that changes tensors of the module, and always restores all except parameters.

    Such a change by private images is a release outside the ledger. The check sees buffers, parameters, and plain
    attributes that are tensors or lists, tuples, sets and dicts of tensors. It does not see numbers and other objects.
    """
    names = {layer: name for name, layer in before.items()}
    states = {layer: _State(layer) for layer in names}
    changed = []
    try:
        yield
    finally:
        names = {layer: name for name, layer in module.named_modules()} | names  # may have grown
        for layer, name in names.items():
            changed += [f"{what} of {_called(name, layer)}" for what in states.get(layer, _NO_STATE).restore(layer)]
    if changed:
        raise UserError(
            f"{changed[0]} is changed by the forward pass: what private images leave there is a release outside the "
            "ledger; build it before training and keep it fixed, or compute it from what was released"
        )


class _State:
    """The tensors that one layer itself holds, and copies of them."""

    def __init__(self, layer: nn.Module):
        self.parameters = {key: (p, p._version) for key, p in layer._parameters.items() if p is not None}
        self.held = [
            {
                key: (copy.copy(value) if isinstance(value, _CONTAINERS) else value,
                      [(t, t.detach().clone()) for t in _tensors(value)])
                for key, value in holder.items() if key not in _MODULES_OWN
            }
            for holder in (layer._buffers, vars(layer))
        ]  # fmt: skip

    def restore(self, layer: nn.Module) -> list[str]:
        """Restores buffers and attributes; returns what had changed. A replacement by an equal tensor is no change."""
        changed = []
        for kind, holder, held in zip(("buffer", "attribute"), (layer._buffers, vars(layer)), self.held, strict=True):
            for key in [key for key in {**holder, **held} if key not in _MODULES_OWN]:
                old, copies = held.get(key, (None, []))
                tensors = _tensors(holder.get(key))
                same = [_is_same(t, before) for t, (_, before) in zip(tensors, copies, strict=False)]
                if len(tensors) != len(copies) or not all(same):
                    changed.append(f"{kind} {key!r}")
                    _put_back(copies)
                    holder.pop(key, None)
                    if key in held:
                        holder[key] = old
                elif isinstance(old, Tensor):
                    holder[key] = old
        for key in [key for key, p in layer._parameters.items() if p is not None] + list(self.parameters):
            p, version = self.parameters.get(key, (None, None))
            if p is None or layer._parameters.get(key) is not p or p._version != version:
                changed.append(f"parameter {key!r}")
        return changed


_CONTAINERS = (list, tuple, set, dict, deque)
_MODULES_OWN = vars(nn.Module()).keys()


def _tensors(value: object) -> list[Tensor]:
    """The tensors of a plain attribute: itself, or the items of a container, one level deep."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, _CONTAINERS) else (value,)
    return [t for t in items if isinstance(t, Tensor)]


def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for t, before in copies:
            if not _is_same(t, before):
                t.copy_(before)


_NO_STATE = _State(nn.Module())  # of a layer that a forward pass added


def _is_same(a: Tensor, b: Tensor) -> bool:
    try:
        return (a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) and bool(
            ((a == b) | ((a != a) & (b != b))).all()
        )
    except RuntimeError:  # a tensor that torch.func left behind
        return False


@dataclass(eq=False)
class _Batch:
    """The facts of the current backward pass for the fast functions.

    Attributes:
        k: K, rows per example.
        names: of the layers, for messages.
        rows: K * B while a loss is computed and differentiated; 0 otherwise, when every layer is unchanged.
        gradients: per-example gradients by parameter, while `backward` collects them. None during the loss, whose inner
            derivatives are no gradients of examples.
    """

    k: int
    names: dict[nn.Module, str] = field(default_factory=dict)
    rows: int = 0
    gradients: dict[nn.Parameter, Tensor] | None = None

    def add(self, p: Tensor | None, gradient: Tensor | None) -> None:
        """Adds a [B, *p.shape] gradient; if a parameter is used twice in one forward pass, both uses are summed."""
        if p is not None and p.requires_grad:
            value = gradient.reshape(-1, *p.shape).to(p.dtype)
            self.gradients[p] = self.gradients[p] + value if p in self.gradients else value


def _is_fast(layer: nn.Module) -> bool:
    # Another parametrization (spectral or weight norm) hides the real weight behind other names; a `forward` on the
    # instance is not the layer's own.
    return type(layer) in _FAST and set(layer._parameters) <= {"weight", "bias"} and "forward" not in vars(layer)


def _forward(layer: nn.Module, batch: _Batch, input: Tensor, *args, **kwargs) -> Tensor:
    """The forward pass of a layer under the fast engine."""
    if not batch.rows:
        return type(layer).forward(layer, input, *args, **kwargs)
    if input.ndim < _FAST[type(layer)].axes(layer) or len(input) != batch.rows:
        raise UserError(
            f"{batch.names[layer]} got an input {tuple(input.shape)} without the batch's {batch.rows} rows on its "
            "first axis: what is folded into that axis would be clipped piece by piece; keep it on another one"
        )
    out = _computed(layer, batch, input, *args, **kwargs)
    # A compiled function has a traced backward pass, which adds nothing to the batch. If tracing raises an error, the
    # function runs again untraced, but then the functions below are compiled one by one.
    if torch.compiler.is_compiling() or (out.requires_grad and getattr(out.grad_fn, "batch", None) is not batch):
        raise UserError(
            f"{batch.names[layer]} is compiled, where its per-example gradient is lost; leave out torch.compile"
        )
    return out


def _computed(layer: nn.Module, batch: _Batch, x: Tensor, *args, **kwargs) -> Tensor:
    x, *geometry = _padded(layer, x, *args, **kwargs) if type(layer) in _CONVOLUTIONS else (x,)
    return _Layer.apply(x, layer.weight, getattr(layer, "bias", None), layer, batch, geometry)


class _Layer(torch.autograd.Function):
    """Computes a layer as usual, but stores per-example gradients in the batch instead of the usual weight gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Module, batch: _Batch, geometry: tuple):
        out, *saved = _FAST[type(layer)].forward(layer, x, weight, bias, *geometry)
        ctx.save_for_backward(*saved)
        ctx.layer, ctx.batch, ctx.geometry = layer, batch, geometry
        return out

    @staticmethod
    def backward(ctx, g: Tensor):
        layer, batch = ctx.layer, ctx.batch
        if torch.is_grad_enabled():  # create_graph=True: the saved tensors are not in the second graph
            raise UserError(
                f"the loss differentiates twice through {batch.names[layer]}, where gradients would be lost; "
                "ask for second_order=True and differentiate by torch.func.grad"
            )
        wanted = ctx.needs_input_grad[0], batch.gradients is not None
        grad_x, weights, biases = _FAST[type(layer)].backward(
            layer, g, batch.k, len(g) // batch.k, *wanted, *ctx.saved_tensors, *ctx.geometry
        )
        if wanted[1]:
            batch.add(layer.weight, weights)
            batch.add(getattr(layer, "bias", None), biases)
        return grad_x, None, None, None, None, None


# For each kind of layer, forward returns the output and the tensors to save. backward returns the gradient of the input
# x if `wants_x`, and the stacks [B, ...] of per-example gradients of weight and bias if `collect`. k is K, the rows per
# example; b is B, the examples; g is the gradient of the output.


def _conv(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, padding, output_padding):
    """A convolution of one to three axes, transposed or not."""
    name = f"conv_transpose{len(padding)}d" if layer.transposed else f"conv{len(padding)}d"
    last = (output_padding, layer.groups, layer.dilation) if layer.transposed else (layer.dilation, layer.groups)
    out = getattr(F, name)(x, weight, bias, layer.stride, padding, *last)
    return out, x.to(out.dtype), weight


def _conv_backward(layer, g, k: int, b: int, wants_x: bool, collect: bool, x, weight, padding, output_padding):
    g = g.contiguous()
    geometry = layer.stride, padding, layer.dilation, layer.transposed, output_padding
    grad_x, weights, biases = None, None, None
    if collect and _is_pointwise(layer, padding):
        # One matrix product per example and row: 1.3 to 10 times as fast on a CPU as the groups below.
        gk, xk = g.view(k, b, layer.out_channels, -1), x.reshape(k, b, layer.in_channels, -1)
        weights = torch.bmm(gk[0], xk[0].mT)
        for row in range(1, k):  # all rows at once would reorder both by copies, which take longer than the products
            weights.baddbmm_(gk[row], xk[row].mT)
        biases = None if layer.bias is None else gk.sum((0, 3))
    elif collect:
        # All B weights and biases, first axes joined: B convolutions as groups of one, over a batch of K.
        stacked = g.new_empty((b * len(layer.weight), *layer.weight.shape[1:]))  # only its shape is read
        with_bias = layer.bias is not None
        _, weights, biases = torch.ops.aten.convolution_backward(
            g.view(k, -1, *g.shape[2:]), x.reshape(k, -1, *x.shape[2:]), stacked,
            [b * layer.out_channels] if with_bias else None, *geometry, b * layer.groups, (False, True, with_bias),
        )  # fmt: skip
    if wants_x:
        grad_x, _, _ = torch.ops.aten.convolution_backward(
            g, x, weight.to(g.dtype), None, *geometry, layer.groups, (True, False, False)
        )
    return grad_x, weights, biases


def _is_pointwise(layer: nn.Module, padding: Sequence[int]) -> bool:
    """Whether a convolution is one matrix product per pixel."""
    ones = {*layer.kernel_size, *layer.stride, layer.groups} == {1}
    return ones and not layer.transposed and {*padding} == {0}


def _padded(layer: nn.Module, x: Tensor, output_size: Sequence[int] | None = None) -> tuple[Tensor, Sequence, Sequence]:
    """The input of a convolution, with its padding and output padding as numbers."""
    padding, output_padding = layer.padding, layer.output_padding
    if layer.transposed:
        output_padding = layer._output_padding(
            x, output_size, layer.stride, padding, layer.kernel_size, len(layer.kernel_size), layer.dilation
        )
    elif isinstance(padding, str) or layer.padding_mode != "zeros":
        # Pads as the layer's forward does, so that a convolution without padding remains.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(layer.kernel_size)
    return x, padding, tuple(output_padding)


def _linear(layer: nn.Linear, x: Tensor, weight: Tensor, bias: Tensor | None):
    # F.linear returns a view if x has more than two axes, and torch forbids in-place changes of views from here.
    out = torch.ops.aten._unsafe_view(F.linear(x.flatten(0, -2), weight, bias), (*x.shape[:-1], len(weight)))
    return out, x.to(out.dtype), weight


def _linear_backward(layer: nn.Linear, g: Tensor, k: int, b: int, wants_x: bool, collect: bool, x, weight):
    weights, biases = None, None
    if collect:
        gk, xk = (t.reshape(k, b, -1, t.shape[-1]) for t in (g, x))
        weights, biases = torch.einsum("kbto,kbti->boi", gk, xk), gk.sum((0, 2))
    return g @ weight.to(g.dtype) if wants_x else None, weights, biases


def _group_norm(layer: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor | None):
    x = x.contiguous()
    n, c, *pixels = x.shape
    out, mean, rstd = torch.native_group_norm(
        x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), n, c, math.prod(pixels),
        layer.num_groups, layer.eps,
    )  # fmt: skip
    return out, x, mean, rstd, weight


def _group_norm_backward(layer, g, k: int, b: int, wants_x: bool, collect: bool, x, mean, rstd, weight):
    """As for convolutions: B group norms, each with a copy of the weight, over a batch of K."""
    _, c, *pixels = x.shape
    grad_x, weights, biases = torch.ops.aten.native_group_norm_backward(
        g.to(x.dtype).contiguous().view(k, b * c, -1), x.view(k, b * c, -1), mean.view(k, -1), rstd.view(k, -1),
        weight.to(x.dtype).repeat(b), k, b * c, math.prod(pixels), b * layer.num_groups, (wants_x, collect, collect),
    )  # fmt: skip
    return None if grad_x is None else grad_x.view(x.shape), weights, biases


def _layer_norm(layer: nn.LayerNorm, x: Tensor, weight: Tensor, bias: Tensor | None):
    weight, bias = (None if p is None else p.to(x.dtype) for p in (weight, bias))
    out, mean, rstd = torch.native_layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
    return out, x, mean, rstd, weight


def _layer_norm_backward(layer, g, k: int, b: int, wants_x: bool, collect: bool, x, mean, rstd, weight):
    shape, weights, biases, grad_x = layer.normalized_shape, None, None, None
    g = g.to(x.dtype)
    if collect:
        weights, biases = (t.reshape(k, b, -1, *shape).sum((0, 2)) for t in (g * (x - mean) * rstd, g))
    if wants_x:
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            g, x, shape, mean, rstd, weight, None, (True, False, False)
        )
    return grad_x, weights, biases


def _embedding(layer: nn.Embedding, indices: Tensor, weight: Tensor, _: None):
    return F.embedding(indices, weight), indices


def _embedding_backward(layer: nn.Embedding, g: Tensor, k: int, b: int, wants_x: bool, collect: bool, indices):
    weights = None
    if collect:
        g = _at_least_float32(g)
        weights = g.new_zeros((b, *layer.weight.shape))
        example = torch.arange(len(indices), device=g.device) % b  # row k * B + b belongs to example b
        example = example.view(-1, *[1] * (indices.ndim - 1)).expand_as(indices)
        weights.index_put_((example, indices), g, accumulate=True)
        if layer.padding_idx is not None:
            weights[:, layer.padding_idx] = 0  # as in torch: the padding's row is not trained
    return None, weights, None


class _Kind(NamedTuple):
    forward: Callable
    backward: Callable
    axes: Callable[[nn.Module], int]  # minimum of an input; fewer are a layer's unbatched form


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FAST = {
    **dict.fromkeys(_CONVOLUTIONS, _Kind(_conv, _conv_backward, lambda layer: 2 + len(layer.kernel_size))),
    nn.Linear: _Kind(_linear, _linear_backward, lambda _: 2),
    nn.GroupNorm: _Kind(_group_norm, _group_norm_backward, lambda _: 2),
    nn.LayerNorm: _Kind(_layer_norm, _layer_norm_backward, lambda layer: 1 + len(layer.normalized_shape)),
    nn.Embedding: _Kind(_embedding, _embedding_backward, lambda _: 1),
}
