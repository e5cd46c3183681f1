"""Attach a selection to a model, and merge it back."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from samtune.errors import CheckpointError
from samtune.models.backbone import Backbone
from samtune.selection.selection import Selection, check_selection
from samtune.tuning.added import build_added
from samtune.tuning.addition import Folding
from samtune.tuning.compact import CompactModule, release_entries, tune_entries
from samtune.tuning.hooks import added_modules, fold_all, install
from samtune.tuning.precision import is_lowered, lower_base, restore_base

_Model = TypeVar("_Model", bound=Backbone)

ALONE = {"ssf", "dora"}
"""Kinds of additions that scale what their host gives, and so would scale what others add."""


def attach(
    model: Backbone, selection: Selection, *, seed: int = 0, base_dtype: torch.dtype | None = None
) -> dict[str, nn.Parameter]:
    """Freezes the model except for what the selection names, and puts its additions in.

    Args:
        model: plain; its state dict keeps the stock keys, with current values, beside additions that do not merge.
        seed: of the initial values of additions.
        base_dtype: of frozen linear and conv weights, torch.bfloat16 or torch.float16; the model then runs under
            autocast to it only. torch.int8, see `lower_base`, is for linear layers. None leaves them as they are.

    Returns:
        name -> what an optimizer trains: by the name of a stock tensor the whole parameter, or its (n,) chosen
        values, in fp32 or better; by the addition's name and its own the parameter of an addition.

    Raises:
        CheckpointError: another model's selection, one with entries in two tensors of a module or additions that do
            not go together, or a model that is attached already.
        ConfigError: another `base_dtype`.
    """
    _check(model, selection)
    added = [(addition, build_added(model, addition)) for addition in selection.additions]
    generator = torch.Generator().manual_seed(seed)
    for addition, module in added:
        host = model.net.get_submodule(addition.module)
        module.to_empty(device="cpu").start(generator, host)  # on the CPU in fp32: the same wherever the host lives
        like = next(host.parameters())
        module.to(like.device, torch.promote_types(like.dtype, torch.float32))
        if isinstance(module, Folding):
            module.clear(host)  # the identity there too, to the last bit
    model.requires_grad_(False)
    trainable: dict[str, nn.Parameter] = {}
    for name, indices in selection.entries.items():
        owner, _, short = name.rpartition(".")
        trainable[name] = tune_entries(model.net.get_submodule(owner), short, indices)
    for name in selection.whole:
        trainable[name] = model.net.get_parameter(name)
        trainable[name].requires_grad_(True)
    for addition, module in added:
        install(model, addition, module)
        trainable |= {f"{addition.name}.{name}": parameter for name, parameter in module.named_parameters()}
    if base_dtype is not None:  # last, so that chosen values are the base's own, not the lowered ones
        lower_base(model, base_dtype)
    return trainable


def merge(model: _Model, *, base: Mapping[str, Tensor] | None = None) -> _Model:
    """Puts the tuned values into the model's own tensors, in place; merging twice changes nothing.

    Args:
        model: attached or plain. Additions that do not merge stay in it and work, frozen; else it is plain again.
        base: the base's tensors in fp32; needed, and used, where `attach` lowered them.

    Raises:
        CheckpointError: the base was lowered, and is not given.
    """
    if is_lowered(model):
        if base is None:
            raise CheckpointError(
                "the model's base was lowered for training, so merging needs it: give merge(model, base=...) the "
                "state dict of the base."
            )
        restore_base(model, base)
    for module in list(model.modules()):
        if isinstance(module, CompactModule):
            release_entries(module)
    fold_all(model)
    return model.requires_grad_(False)


def _check(model: Backbone, selection: Selection) -> None:
    """Refuses a model that is not plain, and a selection that does not fit it or itself."""
    if any(isinstance(module, CompactModule) for module in model.modules()):
        raise CheckpointError("the model has a selection attached already; merge it first.")
    if present := [name for name, _ in added_modules(model)]:
        raise CheckpointError(f"the model has an addition already, {present[0]}; attach to a fresh model.")
    check_selection(selection, model)
    owners = [name.rpartition(".")[0] for name in selection.entries]
    if doubled := sorted({owner for owner in owners if owners.count(owner) > 1}):
        raise CheckpointError(
            f"the selection has entries in two tensors of {doubled[0]}; select one of them whole instead."
        )
    names = [addition.name for addition in selection.additions]
    kinds: dict[str, set[str]] = {}
    for addition in selection.additions:
        kinds.setdefault(addition.module, set()).add(addition.kind)
        if names.count(addition.name) > 1 or hasattr(model.net.get_submodule(addition.module), addition.short):
            raise CheckpointError(
                f"the selection adds {addition.name} twice, or the model has a part of that name; one host takes one "
                "addition of a kind for the same rows."
            )
        blocks = model.token_blocks()
        for name in (addition.module, addition.options["until"]) if addition.kind == "prompt" else ():
            if name not in blocks:
                known = f"{blocks[0]} to {blocks[-1]}" if blocks else "none; prompts need a plain ViT"
                raise CheckpointError(f"the selection puts prompt tokens at {name}; blocks that take them: {known}.")
    for host, found in kinds.items():
        if len(found) > 1 and (alone := sorted(found & ALONE)):
            raise CheckpointError(
                f"the selection puts {', '.join(sorted(found))} on {host}; {alone[0]} can't share a host with others: "
                "leave one of them out."
            )
