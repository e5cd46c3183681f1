"""What `benchmark_methods.py` compares the package with: the floor, masked dense training, and HF peft.

Each function takes a plain model and returns what an optimizer trains, by name. Nothing here is part of the package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection import Selection
from samtune.tuning import attach

Tuned = tuple[dict[str, nn.Parameter], Callable[[], None]]
"""(what trains, what runs between backward pass and optimizer step)"""


def attached(model: Backbone, selection: Selection, base_dtype: torch.dtype | None) -> Tuned:
    """Attaches a selection, as `samtune finetune` does."""
    return attach(model, selection, base_dtype=base_dtype), _nothing


def floor(model: Backbone, selection: Selection | None, base_dtype: torch.dtype | None) -> Tuned:
    """Trains nothing: one backward pass to the output of the first convolution, no gradient of a weight."""
    model.requires_grad_(False)
    _cast_frozen(model, base_dtype)
    weight = next(name for name, role in model.roles().items() if role == "conv")
    first = model.net.get_submodule(weight.rpartition(".")[0])
    first.register_forward_hook(lambda module, inputs, output: output.detach().requires_grad_())
    return {}, _nothing


def masked_dense(model: Backbone, selection: Selection, base_dtype: torch.dtype | None) -> Tuned:
    """Trains a selection the way GPS was released: dense gradients times dense fp32 masks, dense Adam states.

    All weights train as far as the optimizer knows, so there is no frozen base that `base_dtype` could apply to.
    """
    model.requires_grad_(True)
    trainable = dict(model.net.named_parameters())
    masks: dict[str, Tensor] = {}
    for name, parameter in trainable.items():
        masks[name] = torch.full_like(parameter, float(name in selection.whole), requires_grad=False)
        if name in selection.entries:
            masks[name].view(-1)[selection.entries[name].to(parameter.device)] = 1

    def mask_gradients() -> None:
        for name, parameter in trainable.items():
            if parameter.grad is not None:
                parameter.grad *= masks[name]

    return trainable, mask_gradients


def peft_lora(model: Backbone, selection: Selection | None, base_dtype: torch.dtype | None) -> Tuned:
    """LoRA of rank 8 by HF peft on every linear map of the blocks: the layers that GPS selects in."""
    return _peft_lora(model, tuple(model.linears()), base_dtype)


def peft_lora_qkv(model: Backbone, selection: Selection | None, base_dtype: torch.dtype | None) -> Tuned:
    """LoRA of rank 8 by HF peft on the fused qkv alone."""
    return _peft_lora(model, ("qkv",), base_dtype)


def peft_shira(model: Backbone, selection: Selection | None, base_dtype: torch.dtype | None) -> Tuned:
    """SHiRA by HF peft: inputs + outputs many random entries of every linear layer of the blocks."""
    from peft import ShiraConfig

    config = ShiraConfig(r=1, random_seed=0, target_modules=_targets(model, tuple(model.linears())))
    return _inject(model, config, base_dtype)


def _peft_lora(model: Backbone, targets: tuple[str, ...], base_dtype: torch.dtype | None) -> Tuned:
    from peft import LoraConfig

    config = LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=_targets(model, targets))
    return _inject(model, config, base_dtype)


def _targets(model: Backbone, targets: tuple[str, ...]) -> list[str]:
    known = model.linears()
    if missing := set(targets) - set(known):
        raise ConfigError(f"{model.name} has no {', '.join(sorted(missing))}, but {', '.join(known)}")
    return [name for target in targets for name in known[target]]


def _inject(model: Backbone, config: object, base_dtype: torch.dtype | None) -> Tuned:
    """Adds peft's layers; they train in fp32, with the head or the decoder whole."""
    from peft import inject_adapter_in_model

    whole = [model.net.get_parameter(name) for name, role in model.roles().items() if role in ("head", "decoder")]
    _cast_frozen(model, base_dtype)
    inject_adapter_in_model(config, model.net)  # also freezes everything else
    for parameter in whole:
        parameter.requires_grad_(True)
    trainable = {name: p for name, p in model.net.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()  # peft makes them in the dtype of the base
    return trainable, _nothing


def _cast_frozen(model: Backbone, base_dtype: torch.dtype | None) -> None:
    """Stores the linear and conv weights outside of head and decoder in a lower precision."""
    if base_dtype is not None:
        for name, role in model.roles().items():
            if role in ("linear", "conv"):
                parameter = model.net.get_parameter(name)
                parameter.data = parameter.data.to(base_dtype)


def _nothing() -> None:
    """Has nothing to do before the optimizer step."""
