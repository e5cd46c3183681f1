"""Hangs the modules of `samtune.tuning.added` on their hosts, folds them in, and takes them off.

A hook finds its module by the host's attribute, never by reference, so a deep copy of a model calls its own modules.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samtune.models.backbone import Backbone
from samtune.selection.selection import Addition
from samtune.tuning.added import Prompt
from samtune.tuning.addition import Added, Folding
from samtune.tuning.compact import CompactModule


def install(model: Backbone, addition: Addition, added: Added) -> None:
    """Registers a module that has values, on its host's device, with the hooks that call it.

    The model's state dict keeps the stock keys, plus `name.param` where the addition does not merge.
    """
    host, short = model.net.get_submodule(addition.module), addition.short
    host.add_module(short, added)
    added.train(host.training)
    if added.before:
        added.handles.append(host.register_forward_pre_hook(partial(_map_input, short)))
    else:
        added.handles.append(host.register_forward_hook(partial(_map_output, short)))
    if isinstance(added, Prompt):
        last = model.net.get_submodule(added.until)
        added.handles.append(last.register_forward_hook(partial(_drop_tokens, len(added.tokens))))
    if isinstance(added, Folding):
        added.handles.append(host.register_state_dict_post_hook(partial(_save_folded, short)))  # type: ignore[no-untyped-call]
        added.handles.append(host.register_load_state_dict_pre_hook(partial(_fold_before_loading, short)))  # type: ignore[no-untyped-call]
        added.handles.append(host.register_load_state_dict_post_hook(partial(_clear_after_loading, short)))  # type: ignore[no-untyped-call]


def fold_all(model: Backbone) -> None:
    """Folds what merges into its hosts and takes it off; the rest stays and works."""
    for name, added in list(added_modules(model)):
        if isinstance(added, Folding):
            owner, _, short = name.rpartition(".")
            host = model.net.get_submodule(owner)
            _fold_into(host, added)
            for handle in added.handles:
                handle.remove()
            delattr(host, short)


def added_modules(model: Backbone) -> Iterator[tuple[str, Added]]:
    """Returns the additions that a model has, with their names."""
    return ((name, module) for name, module in model.net.named_modules() if isinstance(module, Added))


def _map_output(short: str, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return getattr(host, short)(args[0], output, host)  # type: ignore[no-any-return]


def _map_input(short: str, host: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(host, short)(args[0]), *args[1:])


def _drop_tokens(count: int, host: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output[:, : output.shape[1] - count]


def _save_folded(short: str, host: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    """State dict hook: replaces the host's tensors by the folded ones."""
    tensors = {name: state[prefix + name] for name in ("weight", "bias") if prefix + name in state}
    for name, tensor in getattr(host, short).fold(tensors).items():
        state[prefix + name] = tensor


def _fold_before_loading(short: str, host: nn.Module, *_: Any) -> None:
    """Load hook: after it the host alone has the current values, so that loading is what it is for a plain model."""
    _fold_into(host, getattr(host, short))


def _clear_after_loading(short: str, host: nn.Module, _: Any) -> None:
    """Load hook: the addition is the identity on what was loaded."""
    getattr(host, short).clear(host)


def _fold_into(host: nn.Module, added: Folding) -> None:
    """Writes the folded values into the host's tensors; the addition becomes the identity."""
    if isinstance(host, CompactModule):
        host.dense()
    tensors = {name: p for name in ("weight", "bias") if (p := host._parameters.get(name)) is not None}
    with torch.no_grad():
        for name, tensor in added.fold(tensors).items():
            tensors[name].copy_(tensor)
            if isinstance(host, CompactModule) and host.tuned_name == name:
                host.values().copy_(tensor.flatten()[host.tuned_indices])
    added.clear(host)
