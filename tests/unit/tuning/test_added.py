"""The additions: each against its formula, at the start, in training, folded, saved and copied."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from added_cases import PAIRS, additions_of, hosted, loss_of, net_of, output_of, same, ssf, train
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn
from toy import toy_model
from toyvit import labelled_batch, toy_classifier

from samtune.models.backbone import Backbone
from samtune.selection.selection import FOLDS, Addition, Selection
from samtune.tuning import attach, merge
from samtune.tuning.added import KINDS
from samtune.tuning.addition import Folding
from samtune.tuning.compact import CompactLinear
from samtune.tuning.low_rank import DoRA, PiSSA

# --- what a kind says of itself


def test_the_table_agrees_with_what_a_selection_says_folds() -> None:
    assert {kind for kind, cls in KINDS.items() if issubclass(cls, Folding)} == set(FOLDS)


@pytest.mark.parametrize(("kind", "net"), PAIRS)
def test_the_start_is_the_base_but_for_prompts_and_layers(kind: str, net: str) -> None:
    base, model = net_of(net), net_of(net)
    state = torch.get_rng_state()
    attach(model, Selection({}, (), {}, additions_of(kind, model)))
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not used
    with torch.no_grad():
        first, second = output_of(base), output_of(model)
    assert first.shape == second.shape
    assert torch.equal(first, second) is (kind not in ("prompt", "mlp"))
    stock = base.net.state_dict()
    assert all(torch.equal(model.net.state_dict()[name], stock[name]) for name in stock)


@pytest.mark.parametrize(("kind", "net"), PAIRS)
def test_gradient_reaches_the_addition_only_and_all_of_it(kind: str, net: str) -> None:
    base, model = net_of(net).net.state_dict(), net_of(net)
    trained = attach(model, Selection({}, (), {}, additions_of(kind, model)))
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    assert all(p.dtype == torch.float32 for p in trained.values())
    train(model, trained, steps=2)
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    own = dict(model.net.named_parameters())
    assert all(torch.equal(own[name], base[name]) for name in base if name in own)  # the dense tensors themselves


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("ssf", "pissa")])
def test_the_seed_decides_the_start(kind: str) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        model = net_of("vit")
        trained = attach(model, Selection({}, (), {}, additions_of(kind, model)), seed=seed)
        return {name: p.detach() for name, p in trained.items()}

    assert same(start(3), start(3)) and not same(start(3), start(4))


# --- formulas


def test_adapter_is_its_formula() -> None:
    host, x = nn.Linear(4, 6), torch.randn(2, 3, 4)
    y = host(x)
    for rows, part in ((None, slice(0, 6)), ((2, 5), slice(2, 5))):
        dim = len(range(6)[part])
        net, p = hosted(deepcopy(host), Addition("adapter", "layer", rows, {"width": 2, "dim": dim}))
        inner = F.relu(y[..., part] @ p["down.weight"].T + p["down.bias"])
        expected = y.clone()
        expected[..., part] += inner @ p["up.weight"].T + p["up.bias"]
        torch.testing.assert_close(net(x), expected)
        assert sum(q.numel() for q in p.values()) == 2 * dim * 2 + 2 + dim


def test_adaptformer_sees_the_input_of_its_host() -> None:
    host, x = MLPBlock(4, 8), torch.randn(2, 3, 4)
    net, p = hosted(deepcopy(host), Addition("adaptformer", "layer", None, {"width": 2, "dim": 4, "scale": 0.1}))
    inner = F.relu(x @ p["down.weight"].T + p["down.bias"])
    torch.testing.assert_close(net(x), host(x) + 0.1 * (inner @ p["up.weight"].T + p["up.bias"]))


def test_mlp_layers_come_before_the_head() -> None:
    host, x = nn.Linear(4, 3), torch.randn(5, 4)
    net, p = hosted(deepcopy(host), Addition("mlp", "layer", None, {"layers": 2, "dim": 4}))
    expected = x
    for layer in (0, 1):
        expected = F.gelu(expected @ p[f"layers.{layer}.weight"].T + p[f"layers.{layer}.bias"])
    torch.testing.assert_close(net(x), host(expected))
    assert sum(q.numel() for q in p.values()) == 2 * (4 * 4 + 4)


def ssf_hosts() -> dict[str, Callable[[], tuple[nn.Module, Tensor, int]]]:
    from segment_anything.modeling.common import LayerNorm2d
    from timm.layers.norm import LayerNorm2d as TimmLayerNorm2d

    picture = torch.randn(2, 4, 5, 5)
    return {
        "linear": lambda: (nn.Linear(4, 6), torch.randn(2, 4), -1),
        "linear without bias": lambda: (nn.Linear(4, 6, bias=False), torch.randn(2, 4), -1),
        "conv": lambda: (nn.Conv2d(4, 6, 3), picture, 1),
        "depthwise": lambda: (nn.Conv2d(4, 4, 3, groups=4), picture, 1),
        "norm": lambda: (nn.LayerNorm(5), picture, -1),
        "segment-anything": lambda: (LayerNorm2d(4), picture, 1),
        "timm": lambda: (TimmLayerNorm2d(4), picture, 1),
    }


@pytest.mark.parametrize("name", list(ssf_hosts()))
def test_ssf_scales_and_shifts_channels_and_folds(name: str) -> None:
    host, x, axis = ssf_hosts()[name]()
    y = host(x)
    channels, bias = y.shape[axis], int(host._parameters.get("bias") is not None)
    net, p = hosted(deepcopy(host), Addition("ssf", "layer", None, {"dim": channels, "shift": bias}))
    shape = [1] * y.ndim
    shape[axis] = channels
    expected = y * p["scale"].view(shape) + (p["shift"].view(shape) if bias else 0)
    torch.testing.assert_close(net(x), expected)
    torch.testing.assert_close(merge(net)(x), expected)


def test_bf16_hosts_get_fp32_additions() -> None:
    for kind, options in (
        *((kind, {"rank": 2, "alpha": 2}) for kind in ("lora", "dora", "pissa")),
        ("adapter", {"width": 2, "dim": 4}),
        ("adaptformer", {"width": 2, "dim": 4, "scale": 0.1}),
        ("ssf", {"dim": 4, "shift": 1}),
        ("mlp", {"layers": 1, "dim": 4}),
    ):
        net, p = hosted(nn.Linear(4, 4).bfloat16(), Addition(kind, "layer", None, options))
        assert all(q.dtype == torch.float32 for q in p.values())
        output = net(torch.randn(3, 4, dtype=torch.bfloat16))
        assert output.dtype == torch.bfloat16
        output.float().sum().backward()
        assert all(q.grad is not None and q.grad.dtype == torch.float32 for q in p.values())
        assert hosted(nn.Linear(4, 4).double(), Addition(kind, "layer", None, options))[1].popitem()[1].dtype == (
            torch.float64
        )


# --- LoRA against the reference implementation


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_low_rank_changes_are_the_reference_implementations(kind: str) -> None:
    """Outputs, gradients, five SGD steps and the merged weights of Hugging Face's peft, in float64."""
    ours, theirs = toy_classifier("vit", dtype=torch.float64), toy_classifier("vit", dtype=torch.float64)
    targets = ["qkv", "fc1"]
    hosts = [name for target in targets for name in ours.linears()[target]]
    additions = tuple(Addition(kind, name, None, {"rank": 3, "alpha": 5}) for name in hosts)
    trained = attach(ours, Selection({}, (), {}, additions))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, lora_dropout=0.0, use_dora=kind == "dora")
    # peft has no type for a plain module
    reference = peft.get_peft_model(theirs.net, config, autocast_adapter_dtype=False)  # type: ignore[arg-type]
    names = {"down": "lora_A", "up": "lora_B"} | ({"magnitude": "lora_magnitude_vector"} if kind == "dora" else {})
    pairs = []
    for host in hosts:
        layer: Any = theirs.net.get_submodule(host)
        for ours_name, theirs_name in names.items():
            other = getattr(layer, theirs_name)["default"].weight
            mine = trained[f"{host}.{kind}.{ours_name}"]
            if ours_name == "magnitude":
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
            with torch.no_grad():
                other.copy_(mine)
            pairs.append((mine, other))
        if kind == "pissa":  # the base of theirs keeps the rest
            with torch.no_grad():
                layer.base_layer.weight -= 5 / 3 * (pairs[-1][0] @ pairs[-2][0])
    assert len(pairs) == sum(p.requires_grad for p in reference.parameters())
    optimizers = [torch.optim.SGD(side, lr=0.1 if kind == "pissa" else 0.5) for side in zip(*pairs, strict=True)]
    first = [mine.detach().clone() for mine, _ in pairs]
    for step in range(5):
        outputs = [output_of(ours, step), theirs(labelled_batch(seed=step))]
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-12)
        for output, optimizer in zip(outputs, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(output).backward()
        for mine, other in pairs:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)
        for optimizer in optimizers:
            optimizer.step()
    moved = [float((mine.detach() - start).abs().max()) for (mine, _), start in zip(pairs, first, strict=True)]
    assert max(moved) > 1e-2 and min(moved) > 0  # it trained
    merged, expected = merge(ours).net.state_dict(), reference.merge_and_unload().state_dict()
    for name in merged:
        torch.testing.assert_close(merged[name], expected[name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 12), (12, 8), (8, 8)], ids=str)
def test_pissa_starts_from_the_principal_part_as_the_reference_does(shape: tuple[int, int]) -> None:
    host = nn.Linear(shape[1], shape[0])
    ours = PiSSA(host, Addition("pissa", "layer", None, {"rank": 3, "alpha": 5}))
    ours.start(torch.Generator(), host)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["layer"], init_lora_weights="pissa")
    theirs = nn.ModuleDict({"layer": host})
    peft.get_peft_model(theirs, config)  # type: ignore[arg-type]
    layer: Any = theirs["layer"]
    up, down = layer.lora_B["default"].weight, layer.lora_A["default"].weight
    torch.testing.assert_close(ours.up @ ours.down, up @ down, rtol=0, atol=1e-5)
    for mine, other in ((ours.up.T, up.T), (ours.down, down)):
        signs = (mine * other).sum(1).sign()[:, None]
        torch.testing.assert_close(mine, other * signs, rtol=0, atol=1e-5)


def test_dora_scales_each_row_to_its_magnitude() -> None:
    host = nn.Linear(5, 4)
    net, p = hosted(deepcopy(host), Addition("dora", "layer", (1, 3), {"rank": 2, "alpha": 2}))
    whole = host.weight.detach().clone()
    part = whole[1:3] + p["up"] @ p["down"]
    whole[1:3] = p["magnitude"][:, None] * part / part.norm(dim=1, keepdim=True)
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(net(x), F.linear(x, whole, host.bias))
    torch.testing.assert_close(merge(net).net.get_parameter("layer.weight"), whole)


def test_dora_measures_its_rows_under_autocast_as_when_it_is_folded() -> None:
    host = nn.Linear(40, 8)
    ours = DoRA(host, Addition("dora", "layer", None, {"rank": 2, "alpha": 2}))
    ours.start(torch.Generator().manual_seed(0), host)
    with torch.no_grad():
        ours.up.normal_(generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16):
        low = ours.folded(host.weight)
    assert torch.equal(low, ours.folded(host.weight))


def test_lora_beside_chosen_entries_is_the_dense_computation() -> None:
    """Entries on the rows of the keys, LoRA on those of queries and values, as SPT does; reference in float64."""
    model, plain = toy_classifier("vit", dtype=torch.float64), toy_classifier("vit", dtype=torch.float64)
    host = "blocks.1.attn.qkv"
    name, indices = f"{host}.weight", torch.tensor([33 * 32, 40 * 32 + 5, 63 * 32 + 31])
    additions = tuple(Addition("lora", host, rows, {"rank": 2, "alpha": 4}) for rows in ((0, 32), (64, 96)))
    trained = attach(model, Selection({name: indices}, (), {}, additions))
    assert isinstance(model.net.get_submodule(host), CompactLinear)
    train(model, trained, steps=2)
    values = trained[name].detach().clone().requires_grad_()
    ups = [trained[f"{host}.lora_{start}.up"].detach().clone().requires_grad_() for start in (0, 64)]
    downs = [trained[f"{host}.lora_{start}.down"].detach().clone().requires_grad_() for start in (0, 64)]
    base = plain.net.get_parameter(name).detach()
    change = torch.cat([2.0 * ups[0] @ downs[0], torch.zeros_like(base[:32]), 2.0 * ups[1] @ downs[1]])
    weight = base.flatten().index_put((indices,), values).view_as(base) + change
    expected = torch.func.functional_call(plain, {f"net.{name}": weight}, (labelled_batch(seed=7),))
    for parameter in trained.values():
        parameter.grad = None
    output = output_of(model, 7)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    loss_of(output).backward()
    loss_of(expected).backward()
    wanted = {name: values, **{f"{host}.lora_{s}.up": p for s, p in zip((0, 64), ups, strict=True)}}
    wanted |= {f"{host}.lora_{s}.down": p for s, p in zip((0, 64), downs, strict=True)}
    for key, parameter in wanted.items():
        torch.testing.assert_close(trained[key].grad, parameter.grad, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.net.state_dict()[name], weight.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(merge(model).net.state_dict()[name], weight.detach(), rtol=0, atol=1e-12)


# --- how it runs


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "adapter", "adaptformer", "ssf"])
def test_block_checkpointing_changes_no_gradient(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = toy_model()
        trained = attach(model, Selection({}, (), {}, additions_of(kind, model)))
        train(model, trained, steps=1)
        model.zero_grad()
        model.checkpointing = checkpointing
        loss_of(output_of(model)).backward()
        gradients.append({name: p.grad for name, p in trained.items() if p.grad is not None})
    assert len(gradients[0]) == len(trained) and same(*gradients)


@pytest.mark.parametrize(("kind", "net"), [pair for pair in PAIRS if pair[1] in ("sam", "vit")])
def test_bf16_autocast(kind: str, net: str) -> None:
    model = net_of(net)
    trained = attach(model, Selection({}, (), {}, additions_of(kind, model)))
    train(model, trained, steps=1)
    with torch.no_grad():
        exact = output_of(model)
    for parameter in trained.values():
        parameter.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        output = output_of(model)
    assert float((output.detach().float() - exact).norm() / exact.norm()) < 0.1
    loss_of(output.float()).backward()
    for parameter in trained.values():
        assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype == torch.float32


def test_compiled_is_eager() -> None:
    """One graph with every kind in it; compiled before the values change, so that it does not hold them."""
    model = net_of("vit")
    kinds = [addition for kind in ("lora", "adaptformer", "prompt", "mlp") for addition in additions_of(kind, model)]
    attention = Addition("adapter", "blocks.1.attn", None, {"width": 4, "dim": 32})
    trained = attach(model, Selection({}, (), {}, (*kinds, attention, ssf(model, "blocks.0.norm1"))))
    net: Any = model.net

    def logits(x: Tensor) -> Tensor:
        return net.forward_head(net.forward_features(x))  # type: ignore[no-any-return]

    compiled, x = torch.compile(logits, backend="eager", fullgraph=True), torch.randn(2, 3, 32, 32)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), logits(x))
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.1)


# --- prompts


def tokens_seen(model: Backbone) -> list[tuple[int, int]]:
    """Returns how many tokens each block's attention sees, and each block returns."""
    seen: list[list[int]] = []
    handles = []
    for name in model.token_blocks():
        counts: list[int] = []
        seen.append(counts)
        for module in (model.net.get_submodule(f"{name}.attn"), model.net.get_submodule(name)):
            handles.append(module.register_forward_hook(lambda m, a, y, counts=counts: counts.append(y.shape[1])))
    output_of(model)
    for handle in handles:
        handle.remove()
    return [(counts[0], counts[1]) for counts in seen]


def test_prompts_are_seen_inside_of_their_blocks_only() -> None:
    options = {"count": 5, "dim": 32}
    plain = toy_classifier("vit")
    first, last = plain.token_blocks()
    assert tokens_seen(plain) == [(17, 17), (17, 17)]  # 16 patches and the class token
    shallow = toy_classifier("vit")
    attach(shallow, Selection({}, (), {}, (Addition("prompt", first, None, {**options, "until": last}),)))
    assert tokens_seen(shallow) == [(22, 22), (22, 17)]
    deep = toy_classifier("vit")
    additions = tuple(Addition("prompt", name, None, {**options, "until": name}) for name in (first, last))
    trained = attach(deep, Selection({}, (), {}, additions))
    assert tokens_seen(deep) == [(22, 17), (22, 17)]
    assert output_of(deep).shape == output_of(plain).shape
    loss_of(output_of(deep)).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    bound = (3 / 32) ** 0.5
    assert all(0.8 * bound < float(p.detach().abs().max()) <= bound for p in trained.values())
