"""Compact tuning: train chosen entries of a tensor, at the cost of those entries.

The trainable tensor is the list of chosen values. The dense tensor stays where it was, frozen, and already holds the
current values, so the forward pass is the stock operation: no copy of the weight, no scatter in the graph, and entries
that were not chosen cannot move, whatever the optimizer does. A linear layer's backward pass computes only what is
chosen: with R the rows that hold a chosen entry and U the columns,

    G = dY[:, R]^T @ X[:, U],   d values = G at the chosen places,

and only X[:, U] is kept from the forward pass, with a column of ones for the gradient of the bias. A pointwise
convolution is the same, with pixels as the rows of X, and a depthwise one may compute the chosen taps. Any other tensor
gathers from its transient dense gradient; so does the patch embedding, whose gradient is made once per step.

A module is switched in place by giving it a subclass of its own class, so names, hooks and `deepcopy` keep working;
its state dict has exactly the stock keys, with current values.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.optim.optimizer import register_optimizer_step_post_hook

from samtune.models.backbone import is_pointwise
from samtune.tuning.pointwise import SelectedPointwise
from samtune.tuning.product import Rounded, SelectedProduct, as_autocast, once_differentiable
from samtune.tuning.taps import TapPlan, convolve, is_depthwise, plan_taps

KEEP_WHOLE_INPUT = 0.75  # above this share of columns, keeping X itself is cheaper than a copy of X[:, U]
_SUFFIX = "_values"
SCALE = "weight_scale"
"""The buffer beside a weight in 8 bits."""


def tune_entries(module: nn.Module, name: str, indices: Tensor) -> nn.Parameter:
    """Makes entries of the module's own parameter `name` trainable and freezes the rest of that tensor.

    Args:
        indices: (n,) sorted unique int64 indices into the flattened tensor.

    Returns:
        The (n,) values, in fp32 or better, for an optimizer. Changes in place, by whatever means that autograd sees,
        reach the dense tensor at the next forward pass or `state_dict()`.
    """
    _watch_fused_optimizers()
    dense = module._parameters[name]
    assert dense is not None and not isinstance(module, CompactModule)
    dense.requires_grad_(False)
    indices = indices.to(dense.device)
    values = nn.Parameter(dense.detach().flatten()[indices].to(torch.promote_types(dense.dtype, torch.float32)))
    module.register_parameter(name + _SUFFIX, values)
    module.register_buffer("tuned_indices", indices, persistent=False)
    module.tuned_name = name  # type: ignore[assignment]
    module.written_version = values._version  # type: ignore[assignment]
    if type(module) is nn.Linear and name == "weight":
        _plan_product(module, indices, *dense.shape)
        module.__class__ = CompactLinear
    elif type(module) is nn.Conv2d and is_pointwise(module) and name == "weight":
        _plan_product(module, indices, *dense.shape[:2], by_rows=True)
        module.__class__ = CompactPointwise
    elif is_depthwise(module) and name == "weight" and (plan := plan_taps(indices, *dense.flatten(1).shape)):
        module.register_buffer("tuned_taps", plan.taps, persistent=False)
        module.register_buffer("tuned_places", plan.places, persistent=False)
        module.__class__ = _compact_depthwise(type(module))  # type: ignore[arg-type]
    else:
        module.__class__ = _compact_class(type(module), name)  # type: ignore[arg-type]
    return values


def release_entries(module: CompactModule) -> None:
    """Undoes `tune_entries`: the dense tensor keeps the current values and stays frozen."""
    module.dense()
    del module._parameters[module.tuned_name + _SUFFIX]
    for name in [n for n in module._buffers if n.startswith("tuned_")]:
        delattr(module, name)
    module.__class__ = type(module).__mro__[type(module).__mro__.index(CompactModule) + 1]
    del module.tuned_name, module.written_version


class CompactModule(nn.Module):
    """What a module with tuned entries has beyond its own class; mixed in before that class."""

    tuned_name: str
    tuned_indices: Tensor
    written_version: int

    def values(self) -> nn.Parameter:
        """Returns the trainable (n,) values."""
        return self._parameters[self.tuned_name + _SUFFIX]  # type: ignore[return-value]

    def dense(self) -> Tensor:
        """Returns the frozen dense tensor, with the values written into it when they changed since the last time.

        Autograd counts in-place changes of a tensor (`_version`): optimizers, `load_state_dict` and `copy_` all
        raise the count, so no caller has to remember a hook.
        """
        values, dense = self.values(), self._parameters[self.tuned_name]
        assert dense is not None
        if dense.is_floating_point() and values._version != self.written_version:  # 8 bits don't hold the values
            with torch.no_grad():
                dense.view(-1)[self.tuned_indices] = values.detach().to(dense.dtype)
            self.written_version = values._version
        return dense

    def scaled_weight(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what stands for weight, bias and values where a frozen scale and shift of the outputs follow.

        Args:
            scale, shift: (outputs,), of a layer whose rows are its outputs.
        """
        dense = self.dense()
        rows = scale.view(-1, *[1] * (dense.dim() - 1))
        return dense * rows, shift, self.values() * scale[self.tuned_indices // dense[0].numel()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.written_version = -1  # the tensors of a copy count their versions anew

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.dense()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + self.tuned_name + _SUFFIX]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stock_key, missing_keys = prefix + self.tuned_name, rest[2]
        values_key = stock_key + _SUFFIX
        if stock_key in state_dict:
            state_dict[values_key] = state_dict[stock_key].flatten()[self.tuned_indices.to("cpu")]
        super()._load_from_state_dict(state_dict, prefix, *rest)
        state_dict.pop(values_key, None)
        if values_key in missing_keys:
            missing_keys.remove(values_key)  # the stock key is reported, which is the one a user knows


def rounded_weight(module: nn.Module, *chosen: Tensor) -> Rounded | None:
    """Returns the weight of a linear layer that holds it in 8 bits; None where it holds it as it is.

    Args:
        chosen: flat (n,) int64 indices of its tuned entries and their (n,) values, or nothing.
    """
    scale, codes = module._buffers.get(SCALE), module._parameters["weight"]
    return None if scale is None or codes is None else Rounded(codes, scale, *chosen)


class RoundedLinear(nn.Linear):
    """A frozen linear layer whose weight is in 8 bits."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as CompactLinear.forward
    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs), in autocast's dtype where that is on."""
        product = (as_autocast(input), rounded_weight(self), self.bias, None, None, None, None)
        return SelectedProduct.apply(*product)  # type: ignore[no-any-return]


class _Product(CompactModule):
    """A layer of one product, whose backward pass computes the chosen entries of the weight's gradient only."""

    tuned_rows: Tensor | None
    tuned_columns: Tensor | None
    tuned_places: Tensor

    def plan(self) -> tuple[Tensor | None, ...]:
        """Returns R, U, and the (n,) places of the chosen entries in the product."""
        return self.tuned_rows, self.tuned_columns, self.tuned_places


class CompactLinear(_Product, nn.Linear):
    """A linear layer with tuned entries."""

    # Compiled code would not look whether the values changed. One break of the graph around the layer, rather than
    # one in `dense`, lets all blocks share their compiled code.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, input: Tensor) -> Tensor:
        """Maps (..., inputs) to (..., outputs), in autocast's dtype where that is on."""
        weight = rounded_weight(self, self.tuned_indices, self.values()) or self.dense()
        return SelectedProduct.apply(as_autocast(input), weight, self.bias, self.values(), *self.plan())  # type: ignore[no-any-return]


class CompactPointwise(_Product, nn.Conv2d):
    """A 1 x 1 convolution with tuned entries."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as CompactLinear.forward
    def forward(self, input: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) to (B, outputs, h, w), or one without B, in autocast's dtype where that is on."""
        one = input.dim() == 3
        y = self._pointwise(input[None] if one else input, self.dense(), self.bias, self.values())
        return y[0] if one else y

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def scaled(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) as `forward`, then by a frozen scale and shift, both (outputs,)."""
        return self._pointwise(x, *self.scaled_weight(scale, shift))

    def _pointwise(self, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
        return SelectedPointwise.apply(as_autocast(x), weight, bias, values, *self.plan())  # type: ignore[no-any-return]


@functools.cache
def _compact_depthwise(cls: type[nn.Module]) -> type[nn.Module]:
    """Returns the subclass of a convolution `cls` that computes the chosen taps; made once."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as CompactLinear.forward
    def forward(self: Any, x: Tensor) -> Tensor:
        return depthwise(self, x, self.dense(), self.bias, self.values())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def scaled(self: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return depthwise(self, x, *self.scaled_weight(scale, shift))

    def depthwise(self: Any, x: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
        return convolve(self, x, weight, bias, values, TapPlan(self.tuned_taps, self.tuned_places))

    return type(f"Compact{cls.__name__}", (CompactModule, cls), {"forward": forward, "scaled": scaled})


def _plan_product(module: nn.Module, indices: Tensor, outputs: int, inputs: int, *, by_rows: bool = False) -> None:
    """Registers R, U and where each chosen entry lies in the product; None stands for "all of them".

    Args:
        by_rows: the product is always (R, U); else it is (U, R) where U is not all.
    """
    rows, row_places = (indices // inputs).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    columns, column_places = (indices % inputs).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if len(columns) > KEEP_WHOLE_INPUT * inputs:
        places = row_places * inputs + indices % inputs  # in (R, inputs)
        module.register_buffer("tuned_columns", None, persistent=False)
    else:
        by_column = column_places * len(rows) + row_places  # in (U, R)
        places = row_places * len(columns) + column_places if by_rows else by_column
        module.register_buffer("tuned_columns", columns, persistent=False)
    module.register_buffer("tuned_rows", None if len(rows) == outputs else rows, persistent=False)
    module.register_buffer("tuned_places", places, persistent=False)


class _WriteThrough(torch.autograd.Function):
    """Presents the dense tensor as a function of the values; the backward pass gathers from its gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, dense: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        """Returns a view of `dense`, of any shape; (n,) `values` lie at the flat (n,) `indices` of it."""
        ctx.save_for_backward(indices)
        ctx.values_dtype = values.dtype  # type: ignore[attr-defined]
        return dense.view_as(dense)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the (n,) gradient of the values; `grad` has the shape of the dense tensor."""
        (indices,) = ctx.saved_tensors
        return None, grad.flatten()[indices].to(ctx.values_dtype), None


@functools.cache
def _watch_fused_optimizers() -> None:
    """Makes fused optimizers count their in-place changes, which they leave out on some devices; runs once."""

    def count_change(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            if group.get("fused"):
                torch.autograd.graph.increment_version(group["params"])

    register_optimizer_step_post_hook(count_change)


@functools.cache
def _compact_class(cls: type[nn.Module], name: str) -> type[nn.Module]:
    """Returns the subclass of `cls` that presents its tensor `name` through `_WriteThrough`; made once."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # as CompactLinear.forward
    def present(self: CompactModule) -> Tensor:
        return _WriteThrough.apply(self.dense(), self.values(), self.tuned_indices)  # type: ignore[no-any-return]

    return type(f"Compact{cls.__name__}", (CompactModule, cls), {name: property(present)})
