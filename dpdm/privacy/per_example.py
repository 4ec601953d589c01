"""Per-example gradients, summed over an example's rows of the forward batch.

The privacy unit is one example, which may stand in several rows: row `k * B + b` is row k of example b
(draw-major). This is the reference engine: Opacus' hooks give one gradient per row, and rows are summed.
"""

from collections.abc import Callable

import torch
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from dpdm.errors import UserError


class PerExampleGradients:
    """Fills `p.grad_sample` ([B, *p.shape]) of every trainable parameter of `module`.

    Args:
        module: layers that treat every row of the batch on its own (no batch norm).
        rows_per_example: K, how many rows of the forward batch belong to one example.

    Raises:
        UserError: a layer mixes rows or has no per-example gradient; the message names it.
    """

    def __init__(self, module: nn.Module, rows_per_example: int = 1):
        if rows_per_example < 1:
            raise UserError(f"rows_per_example (the noise multiplicity) must be at least 1, got {rows_per_example}")
        for name, layer in module.named_modules():
            errors = [] if any(layer.children()) else ModuleValidator.validate(layer, strict=False)
            if errors:
                kind = type(layer).__name__
                raise UserError(f"layer {name or 'module'} ({kind}) cannot be trained privately: {errors[0]}")
        self.rows_per_example = rows_per_example
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        self._forwards: list[int] = []
        self._counter = module.register_forward_pre_hook(lambda _, inputs: self._forwards.append(len(inputs[0])))
        self.module = GradSampleModule(module, batch_first=True, loss_reduction="sum")

    def backward(self, row_losses: Callable[[], Tensor], examples: int) -> None:
        """Calls `row_losses` (one forward, one loss per row) and leaves the gradient of each example's mean loss.

        Raises:
            RuntimeError: not exactly one forward pass, or another number of rows than K * examples: both
                would silently change the privacy unit.
            UserError: a loss is not finite.
        """
        rows = self.rows_per_example * examples
        self._forwards.clear()
        losses = row_losses()
        if self._forwards != [rows] or losses.shape != (rows,):
            raise RuntimeError(
                f"a private step needs one forward pass over {rows} rows ({self.rows_per_example} per example) and "
                f"one loss per row, got forward passes over {self._forwards} rows and losses {tuple(losses.shape)}"
            )
        if not torch.isfinite(losses).all():
            raise UserError("the loss is not finite; lower the learning rate or check the images")
        (losses.sum() / self.rows_per_example).backward()
        for p in self._parameters:
            rows_gradient = getattr(p, "grad_sample", None)
            if rows_gradient is None:  # a parameter that this forward did not use
                p.grad_sample = p.new_zeros((examples, *p.shape))
            else:
                p.grad_sample = rows_gradient.view(self.rows_per_example, examples, *p.shape).sum(0)
            p.grad = None

    def close(self) -> None:
        """Removes every hook and attribute from the module."""
        self._counter.remove()
        self.module.to_standard_module()
        for p in self._parameters:
            for name in ("grad_sample", "summed_grad"):
                if hasattr(p, name):
                    delattr(p, name)
