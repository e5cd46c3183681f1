"""The additions that the tests of them use, on four small nets."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toy import toy_batch, toy_model
from toyvit import labelled_batch, toy_classifier

from samtune.models.backbone import Backbone
from samtune.models.sam.model import SamModel
from samtune.selection.selection import FOLDS, Addition, Selection
from samtune.tuning import attach
from samtune.tuning.added import KINDS
from samtune.types import Role

NETS = ("sam", "vit", "swin", "convnext")


def net_of(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Backbone:
    return toy_model(seed=seed, dtype=dtype) if name == "sam" else toy_classifier(name, seed=seed, dtype=dtype)


def output_of(model: Backbone, seed: int = 0) -> Tensor:
    return model(toy_batch(seed=seed) if isinstance(model, SamModel) else labelled_batch(seed=seed))  # type: ignore[no-any-return]


def additions_of(kind: str, model: Backbone) -> tuple[Addition, ...]:
    """Returns the kind wherever it fits into the model; LoRA on queries, values and whole layers."""
    if kind == "prompt":
        first, last = model.token_blocks()[0], model.token_blocks()[-1]
        return (Addition("prompt", first, None, {"count": 5, "dim": 32, "until": last}),)
    if kind == "mlp":
        return (Addition("mlp", str(model.head_module()), None, {"layers": 2, "dim": head_of(model).in_features}),)
    if kind == "ssf":
        return tuple(ssf(model, name) for name in hosts_of_ssf(model))
    found = []
    if kind in ("lora", "dora", "pissa"):
        for name in model.linears().get("qkv", []):
            third = linear_of(model, name).out_features // 3
            for start in (0, 2 * third):
                found.append(Addition(kind, name, (start, start + third), {"rank": 2, "alpha": 4}))
        return (*found, *(Addition(kind, n, None, {"rank": 3, "alpha": 3}) for n in model.linears()["fc1"]))
    scale = {"scale": 0.1} if kind == "adaptformer" else {}
    sublayers = model.sublayers() if kind == "adapter" else {"mlp": model.sublayers()["mlp"]}
    for widths in sublayers.values():
        found += [Addition(kind, name, None, {"width": 4, "dim": dim, **scale}) for name, dim in widths.items()]
    return tuple(found)


def ssf(model: Backbone, name: str) -> Addition:
    tensors = model.net.get_submodule(name)._parameters
    weight = tensors["weight"]
    assert weight is not None
    return Addition("ssf", name, None, {"dim": len(weight), "shift": int(tensors.get("bias") is not None)})


def hosts_of_ssf(model: Backbone) -> list[str]:
    """Linears, convolutions and norms; of SAM those of the encoder."""
    names = [name for name, role in model.roles().items() if role in ("linear", "conv", "norm")]
    owners = {name.rpartition(".")[0]: None for name in names if name.endswith("weight")}
    if isinstance(model, SamModel):
        owners |= {"image_encoder.neck.1": None, "image_encoder.neck.3": None}
    return list(owners)


def linear_of(model: Backbone, name: str) -> nn.Linear:
    module = model.net.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def head_of(model: Backbone) -> nn.Linear:
    return linear_of(model, str(model.head_module()))


def train(model: Backbone, trained: dict[str, nn.Parameter], *, steps: int = 3, lr: float = 1e-2) -> None:
    optimizer = torch.optim.AdamW(trained.values(), lr=lr)
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(output_of(model, step)).backward()
        optimizer.step()


def loss_of(output: Tensor) -> Tensor:
    target = torch.linspace(-1, 1, output.numel()).to(output).view_as(output)
    return (output - target).square().mean()


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def fits(kind: str, net: str) -> bool:
    return net == "vit" if kind == "prompt" else net != "sam" or kind != "mlp"


PAIRS = [(kind, net) for kind in KINDS for net in NETS if fits(kind, net)]
FOLDING = [(kind, net) for kind, net in PAIRS if kind in FOLDS]
STAYING = [(kind, net) for kind, net in PAIRS if kind not in FOLDS]


def tuned(kind: str, net: str, dtype: torch.dtype = torch.float32) -> Backbone:
    model = net_of(net, dtype)
    train(model, attach(model, Selection({}, (), {}, additions_of(kind, model))))
    return model


def hosted(host: nn.Module, addition: Addition) -> tuple[Backbone, dict[str, nn.Parameter]]:
    """Returns a net of one layer with the addition, whose values are noise."""

    class OneLayer(Backbone):
        def role(self, name: str, owner: nn.Module) -> Role:
            return "linear"

        def forward(self, x: Tensor) -> Tensor:
            return self.net.layer(x)  # type: ignore[no-any-return,operator,union-attr]

    network = nn.ModuleDict({"layer": host})
    net = OneLayer(network, name="one layer", image_size=1, mean=(0, 0, 0), std=(1, 1, 1))
    trained = attach(net, Selection({}, (), {}, (addition,)))
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape))
    return net, {name.removeprefix(f"{addition.name}."): p for name, p in trained.items()}
