"""Per-example gradients, summed over an example's rows of the forward batch: the hot path.

The privacy unit is one example, which may stand in several rows: row `k * B + b` is row k of example b
(draw-major). Laid out so, activations [K * B, C, H, W] are also [K, B * C, H, W], a free view, and the weight
gradient of a convolution with `groups = B` over that batch of K *is* the stack of B per-example gradients,
already summed over the rows; B group norms side by side likewise. Linear and Embedding have direct formulas. A
module with any other parametrised layer falls back to Opacus' hooks, which hold K * B gradients, then summed.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dpdm.errors import UserError


class PerExampleGradients:
    """Fills `p.grad_sample` ([B, *p.shape]) of every trainable parameter of `module`.

    Args:
        module: layers that treat every row of the batch on its own (no batch norm).
        rows_per_example: K, how many rows of the forward batch belong to one example.
        engine: "auto"; "hooks" to force the reference path; "vmap" for losses that themselves differentiate through
            the module (a gradient penalty): exact second-order gradients by torch.func, slow on convolutions.

    Attributes:
        module: what the loss must call.

    Raises:
        UserError: a layer mixes rows or has no per-example gradient; the message names it.
    """

    def __init__(self, module: nn.Module, rows_per_example: int = 1, engine: str = "auto"):
        if rows_per_example < 1:
            raise UserError(f"rows_per_example (the noise multiplicity) must be at least 1, got {rows_per_example}")
        _refuse_mixing_layers(module)
        self.rows_per_example = rows_per_example
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._layers: list[nn.Module] = []
        self._contiguous = []
        self.is_fast = False
        self.is_vmap = engine == "vmap"
        if self.is_vmap:
            self.module = _Functional(module)
            return
        self._forwards: list[int] = []
        self._counter = module.register_forward_pre_hook(lambda _, inputs: self._forwards.append(len(inputs[0])))
        layers = {name: layer for name, layer in module.named_modules() if list(layer.parameters(recurse=False))}
        foreign = [f"{name} ({type(layer).__name__})" for name, layer in layers.items() if not _is_fast(layer)]
        if foreign and engine == "auto":
            warnings.warn(
                f"layer {foreign[0]} has no fast per-example gradient: the whole module takes the slower path",
                stacklevel=2,
            )
        self.is_fast = not foreign and engine == "auto"
        if self.is_fast:
            self.module, self._layers = module, list(layers.values())
            for layer in self._layers:
                function = functools.partial(_FAST[type(layer)], layer, rows_per_example)
                layer.forward = function  # on the instance: shadows the class's, until `close`
        else:
            # Opacus 1.6 silently computes wrong gradients where a convolution's input is not contiguous.
            self._contiguous = [layer.register_forward_pre_hook(_contiguous_inputs) for layer in layers.values()]
            from opacus import GradSampleModule  # late: see accounting

            try:
                self.module = GradSampleModule(module, batch_first=True, loss_reduction="sum")
            except NotImplementedError as error:
                raise UserError(f"a layer cannot be trained privately: {error}") from error

    def backward(self, row_losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        """Calls `row_losses` (one forward, one loss per row) and leaves the gradient of each example's mean loss.

        Args:
            row_losses: maps images [B, ...] and labels [B] to losses [K * B]. The engine "vmap" shows it one example
                at a time, vectorised: [1, ...] to [K], with any number of forward passes.

        Raises:
            RuntimeError: not exactly one forward pass, or another number of rows than K * B: both would silently
                change the privacy unit.
            UserError: a loss is not finite.
        """
        if self.is_vmap:
            self._backward_vmap(row_losses, images, labels)
            return
        examples = len(labels)
        rows = self.rows_per_example * examples
        self._forwards.clear()
        for p in self._parameters:
            p.grad_sample = None
        losses = row_losses(images, labels)
        if self._forwards != [rows] or losses.shape != (rows,):
            raise RuntimeError(
                f"a private step needs one forward pass over {rows} rows ({self.rows_per_example} per example) and "
                f"one loss per row, got forward passes over {self._forwards} rows and losses {tuple(losses.shape)}"
            )
        if not torch.isfinite(losses).all():
            raise UserError("the loss is not finite; lower the learning rate or check the images")
        (losses.float().sum() / self.rows_per_example).backward()
        for p in self._parameters:
            if self.is_fast and p.grad is not None:
                raise RuntimeError(
                    f"a parameter {tuple(p.shape)} was used outside its layer, where its per-example gradient is lost; "
                    "use it through the layer alone"
                )
            p.grad = None
            if p.grad_sample is None:  # a parameter that this forward did not use
                p.grad_sample = p.new_zeros((examples, *p.shape))
                continue
            if len(p.grad_sample) != (examples if self.is_fast else rows):
                raise RuntimeError(
                    f"a layer's input did not have the batch's {rows} rows on its first axis: what was folded into "
                    "that axis would be clipped piece by piece; keep it on another one"
                )
            if not self.is_fast:
                p.grad_sample = p.grad_sample.view(self.rows_per_example, examples, *p.shape).sum(0)

    def _backward_vmap(self, row_losses: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor) -> None:
        wrapper: _Functional = self.module
        trainable = {name: p for name, p in wrapper.inner.named_parameters() if p.requires_grad}

        def example_loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            wrapper.parameters_now = parameters
            losses = row_losses(image[None], label[None])
            if losses.shape != (self.rows_per_example,):
                raise RuntimeError(
                    f"a private step needs {self.rows_per_example} losses per example, got {tuple(losses.shape)}"
                )
            return losses.mean()

        example_gradients = torch.func.vmap(
            torch.func.grad_and_value(example_loss), in_dims=(None, 0, 0), randomness="different"
        )
        try:
            gradients, losses = example_gradients({k: p.detach() for k, p in trainable.items()}, images, labels)
        finally:
            wrapper.parameters_now = None
        if not torch.isfinite(losses).all():
            raise UserError("the loss is not finite; lower the learning rate or check the images")
        for name, p in trainable.items():
            p.grad_sample = gradients[name]

    def close(self) -> None:
        """Removes every hook and attribute from the module."""
        if not self.is_vmap:
            self._counter.remove()
        for layer in self._layers:
            del layer.forward
        if not self.is_fast and not self.is_vmap:
            self.module.to_standard_module()
            for hook in self._contiguous:
                hook.remove()
        for p in self._parameters:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(p, name):
                    delattr(p, name)


class _Functional(nn.Module):
    """Calls `inner` with the parameters that torch.func differentiates by; outside a backward pass with its own."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        self.parameters_now: dict[str, Tensor] | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.parameters_now is None:
            return self.inner(*inputs)
        return torch.func.functional_call(self.inner, self.parameters_now, inputs)


def _refuse_mixing_layers(module: nn.Module) -> None:
    from opacus.validators import ModuleValidator  # late: see accounting

    for name, layer in module.named_modules():
        errors = [] if any(layer.children()) else ModuleValidator.validate(layer, strict=False)
        if errors:
            kind = type(layer).__name__
            raise UserError(f"layer {name or 'module'} ({kind}) cannot be trained privately: {errors[0]}")


def _contiguous_inputs(_: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in inputs)


def _is_fast(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.padding_idx is not None):
        return False
    # Another parametrisation (spectral or weight norm) hides the real weight behind names of its own.
    return type(layer) in _FAST and set(layer._parameters) <= {"weight", "bias"}


def _accumulate(p: Tensor | None, gradient: Tensor | None) -> None:
    """Adds a [B, *p.shape] gradient; a parameter that is used twice in one forward sums both uses."""
    if p is not None and p.requires_grad:
        value = gradient.reshape(-1, *p.shape).to(p.dtype)
        p.grad_sample = value if p.grad_sample is None else p.grad_sample + value


# Each function below computes a layer as usual, but in backward leaves per-example gradients on the layer's
# parameters, in place of the ordinary weight gradient, which is never computed. k is K, the rows per example; b is B,
# the examples; x is the input, g the gradient of the output.


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d, k: int) -> Tensor:
        out = F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        ctx.save_for_backward(x.to(out.dtype), weight)
        ctx.layer, ctx.k = layer, k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        x, weight = ctx.saved_tensors
        layer, k, b = ctx.layer, ctx.k, len(g) // ctx.k
        g = g.contiguous()
        gradients = _pointwise_gradients if _is_pointwise(layer) else _grouped_gradients
        weights, biases = gradients(x, g, layer, k, b)
        _accumulate(layer.weight, weights)
        _accumulate(layer.bias, biases)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.ops.aten.convolution_backward(
                g, x, weight.to(g.dtype), None, layer.stride, layer.padding, layer.dilation, False, (0, 0),
                layer.groups, (True, False, False),
            )[0]  # fmt: skip
        return grad_x, None, None, None, None


def _grouped_gradients(x: Tensor, g: Tensor, layer: nn.Conv2d, k: int, b: int) -> tuple[Tensor, Tensor | None]:
    """Of weights [B * O, C / groups, kh, kw] and biases [B * O]: B convolutions as groups of one, over a batch of K."""
    channels = b * layer.out_channels
    weight = g.new_empty((channels, *layer.weight.shape[1:]))  # only its shape is read
    with_bias = layer.bias is not None
    _, weights, biases = torch.ops.aten.convolution_backward(
        g.view(k, -1, *g.shape[2:]), x.reshape(k, -1, *x.shape[2:]), weight, [channels] if with_bias else None,
        layer.stride, layer.padding, layer.dilation, False, (0, 0), b * layer.groups, (False, True, with_bias),
    )  # fmt: skip
    return weights, biases


def _is_pointwise(layer: nn.Conv2d) -> bool:
    """Whether a convolution is one matrix product per pixel."""
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def _pointwise_gradients(x: Tensor, g: Tensor, layer: nn.Conv2d, k: int, b: int) -> tuple[Tensor, Tensor | None]:
    """What `_grouped_gradients` gives, as one matrix product per example and row: 1.3 to 10 times as fast on a CPU."""
    gk, xk = g.view(k, b, layer.out_channels, -1), x.reshape(k, b, layer.in_channels, -1)
    weights = torch.bmm(gk[0], xk[0].mT)
    for row in range(1, k):  # all at once would copy both into another order, which takes longer than the products
        weights.baddbmm_(gk[row], xk[row].mT)
    return weights, None if layer.bias is None else gk.sum((0, 3))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Linear, k: int) -> Tensor:
        out = F.linear(x, weight, bias)
        ctx.save_for_backward(x.to(out.dtype), weight)
        ctx.layer, ctx.k = layer, k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        x, weight = ctx.saved_tensors
        layer, k, b = ctx.layer, ctx.k, len(g) // ctx.k
        gk, xk = (t.reshape(k, b, -1, t.shape[-1]) for t in (g, x))
        _accumulate(layer.bias, gk.sum((0, 2)))
        _accumulate(layer.weight, torch.einsum("kbto,kbti->boi", gk, xk))
        grad_x = g @ weight.to(g.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, layer: nn.GroupNorm, k: int) -> Tensor:
        x = x.contiguous()
        n, c = x.shape[:2]
        pixels = x[0, 0].numel()
        out, mean, rstd = torch.native_group_norm(
            x, weight.to(x.dtype), bias.to(x.dtype), n, c, pixels, layer.num_groups, layer.eps
        )
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.layer, ctx.k = layer, k
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        x, mean, rstd, weight = ctx.saved_tensors
        layer, k = ctx.layer, ctx.k
        # As for convolutions: B group norms side by side over a batch of K, whose gradient of the (repeated) weight
        # is the stack of per-example ones.
        b, c = len(g) // k, x.shape[1]
        grad_x, weights, biases = torch.ops.aten.native_group_norm_backward(
            g.to(x.dtype).contiguous().view(k, b * c, -1), x.view(k, b * c, -1), mean.view(k, -1), rstd.view(k, -1),
            weight.to(x.dtype).repeat(b), k, b * c, x[0, 0].numel(), b * layer.num_groups,
            (ctx.needs_input_grad[0], True, True),
        )  # fmt: skip
        _accumulate(layer.weight, weights)
        _accumulate(layer.bias, biases)
        return None if grad_x is None else grad_x.view(x.shape), None, None, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, indices: Tensor, weight: Tensor, layer: nn.Embedding, k: int) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.layer, ctx.k = layer, k
        return F.embedding(indices, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor):
        (indices,) = ctx.saved_tensors
        layer, b = ctx.layer, len(g) // ctx.k
        out = g.new_zeros((b, *layer.weight.shape))
        example = torch.arange(len(indices), device=g.device) % b  # row k * B + b belongs to example b
        example = example.view(-1, *[1] * (indices.ndim - 1)).expand_as(indices)
        _accumulate(layer.weight, out.index_put_((example, indices), g, accumulate=True))
        return None, None, None, None


def _conv2d(layer: nn.Conv2d, k: int, x: Tensor) -> Tensor:
    return _Conv2d.apply(x, layer.weight, layer.bias, layer, k)


def _linear(layer: nn.Linear, k: int, x: Tensor) -> Tensor:
    return _Linear.apply(x, layer.weight, layer.bias, layer, k)


def _group_norm(layer: nn.GroupNorm, k: int, x: Tensor) -> Tensor:
    if not layer.affine:
        return F.group_norm(x, layer.num_groups, None, None, layer.eps)
    return _GroupNorm.apply(x, layer.weight, layer.bias, layer, k)


def _embedding(layer: nn.Embedding, k: int, indices: Tensor) -> Tensor:
    return _Embedding.apply(indices, layer.weight, layer, k)


_FAST = {nn.Conv2d: _conv2d, nn.Linear: _linear, nn.GroupNorm: _group_norm, nn.Embedding: _embedding}
