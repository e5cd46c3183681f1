"""The selectors by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samtune.models.backbone import Backbone
from samtune.selection.additions import adapter, adaptformer, lora, mlp, ssf, vpt_deep, vpt_shallow
from samtune.selection.budget import picked
from samtune.selection.gps import check_gps, gps, gps_needs, gps_size
from samtune.selection.grft import check_grft, grft, grft_needs, grft_size
from samtune.selection.selection import Selection
from samtune.selection.selector import Selector
from samtune.selection.spt import SptOptions, check_spt, spt, spt_needs, spt_size
from samtune.selection.whole import bias, full, linear, partial


def _unscored(function: Callable[..., Selection], **row: Any) -> Selector:
    """A selector without scores: its choice costs nothing, so making it is the check, and counting it the size."""

    def check(model: Backbone, **options: object) -> None:
        function(model, None, **options)

    def size(model: Backbone, **options: object) -> int:
        return picked(model, function(model, None, **options))

    return Selector(function, lambda **options: None, check, size, **row)


SELECTORS: dict[str, Selector] = {
    "gps": Selector(gps, gps_needs, check_gps, gps_size, biases=True, knob="per_neuron"),
    "grft": Selector(grft, grft_needs, check_grft, grft_size, biases=True, knob="k"),
    "spt": Selector(spt, spt_needs, check_spt, spt_size, biases=False, knob="tau", options=SptOptions),
    "full": _unscored(full, biases=True),
    "linear": _unscored(linear, biases=False),
    "bias": _unscored(bias, biases=True),
    "partial": _unscored(partial, biases=False, knob="blocks"),
    "lora": _unscored(lora, biases=False, knob="rank"),
    "ssf": _unscored(ssf, biases=False),
    "adapter": _unscored(adapter, biases=False, knob="width", merges=False),
    "adaptformer": _unscored(adaptformer, biases=False, knob="width", merges=False),
    "vpt_shallow": _unscored(vpt_shallow, biases=False, knob="prompts", identity=False, merges=False),
    "vpt_deep": _unscored(vpt_deep, biases=False, knob="prompts", identity=False, merges=False),
    "mlp": _unscored(mlp, biases=False, knob="layers", identity=False, merges=False),
}
