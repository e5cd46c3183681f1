"""Tuning chosen entries in place is adding trained values, from zero, to them: NeuroAda, and Super as peft has it."""

from __future__ import annotations

from typing import Any

import peft
import torch
from added_cases import loss_of, output_of
from torch import nn
from torch.func import functional_call
from toyvit import labelled_batch, toy_classifier

from samtune.selection import Selection, select
from samtune.tuning import attach, merge


def test_tuned_entries_are_neuroadas_added_values() -> None:
    """Six AdamW steps without decay, in float64, against values beside a frozen weight."""
    ours, frozen = (toy_classifier("vit", dtype=torch.float64) for _ in range(2))
    tuned = select(ours, None, name="gps", criterion="magnitude", per_neuron=2, biases=False, decoder=False)
    chosen = tuned.entries
    added = {name: nn.Parameter(torch.zeros(len(where), dtype=torch.float64)) for name, where in chosen.items()}
    base = {name: frozen.net.get_parameter(name).detach() for name in chosen}

    def weights() -> dict[str, torch.Tensor]:
        return {n: (w.flatten().index_add(0, chosen[n], added[n])).view_as(w) for n, w in base.items()}

    mine = torch.optim.AdamW(attach(ours, tuned).values(), lr=1e-2, weight_decay=0)
    theirs = torch.optim.AdamW(added.values(), lr=1e-2, weight_decay=0)
    for step in range(6):
        sums = {f"net.{name}": tensor for name, tensor in weights().items()}
        outputs = (output_of(ours, step), functional_call(frozen, sums, (labelled_batch(seed=step),)))
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-9)
        for output, optimizer in zip(outputs, (mine, theirs), strict=True):
            optimizer.zero_grad()
            loss_of(output).backward()
            optimizer.step()
    merge(ours)
    for name, tensor in weights().items():
        torch.testing.assert_close(ours.net.get_parameter(name), tensor, rtol=0, atol=1e-9)
        assert not torch.equal(tensor, base[name])


def test_magnitude_by_layer_is_super_of_peft() -> None:
    """The entries, three SGD steps and the merged weight of Hugging Face's peft, in fp32."""
    ours, theirs = toy_classifier("vit"), toy_classifier("vit")
    host = "blocks.0.mlp.fc1"  # of 32 inputs: one of 32 entries is as many as K = 1 gives
    found = select(ours, None, name="gps", criterion="magnitude", level="layer").entries[f"{host}.weight"]
    config = peft.SupertuningConfig(sparsity=1 - 1 / 32, target_modules=[host])
    peft.get_peft_model(theirs.net, config)  # type: ignore[arg-type]  # peft has no type for a plain module
    layer: Any = theirs.net.get_submodule(host)
    assert layer.supertuning_indices["default"].sort().values.tolist() == found.tolist()
    mine = torch.optim.SGD(attach(ours, Selection({f"{host}.weight": found})).values(), lr=0.5)
    other = torch.optim.SGD(layer.supertuning_values.parameters(), lr=0.5)
    before = layer.base_layer.weight.detach().clone()
    for step in range(3):
        for output, optimizer in ((output_of(ours, step), mine), (theirs(labelled_batch(seed=step)), other)):
            optimizer.zero_grad()
            loss_of(output).backward()
            optimizer.step()
    layer.merge()
    merged = merge(ours).net.get_parameter(f"{host}.weight")
    torch.testing.assert_close(merged, layer.base_layer.weight, rtol=0, atol=1e-6)
    assert float((merged - before).abs().max()) > 1e-3
