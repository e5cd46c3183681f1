"""Finding the largest entries: exact, also among equals and at the ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toyvit import toy_classifier

from samtune.selection.matrices import top_overall, top_per_row, weight_matrices


def reference(importance: dict[str, Tensor], count: int) -> dict[str, list[int]]:
    """Sorts all entries; `sorted` keeps the order of equals."""
    every = [(v, name, i) for name, t in importance.items() for i, v in enumerate(t.flatten().tolist())]
    chosen: dict[str, list[int]] = {}
    for _, name, index in sorted(every, key=lambda item: -item[0])[:count]:
        chosen.setdefault(name, []).append(index)
    return {name: sorted(indices) for name, indices in chosen.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 17, 59, 60])
@pytest.mark.parametrize("levels", [None, 3, 1], ids=["distinct", "three values", "all equal"])
def test_top_overall(count: int, levels: int | None, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    tables = {"b": torch.rand(5, 4, generator=generator), "a": torch.rand(40, generator=generator)}
    if levels:
        tables = {name: t.mul(levels).floor() for name, t in tables.items()}  # 0 among them
    tables = {name: t.to(dtype) for name, t in tables.items()}
    found = top_overall(tables, count)
    assert {name: indices.tolist() for name, indices in found.items()} == reference(tables, count)
    assert all(indices.dtype == torch.int64 for indices in found.values())


def test_top_overall_tells_tiny_and_huge_values_apart() -> None:
    values = torch.tensor([0.0, 1e-45, 1e-38, 1.0, 1.0000001, 3e38])
    for count in range(1, 7):
        assert top_overall({"a": values}, count)["a"].tolist() == list(range(6 - count, 6))


def test_top_overall_of_views() -> None:
    table = torch.arange(12.0).view(3, 4)
    assert top_overall({"a": table.T}, 2)["a"].tolist() == [8, 11]  # entries 10 and 11 of the table
    assert top_overall({"a": torch.zeros(()).expand(3, 4)}, 2)["a"].tolist() == [0, 1]


def test_top_per_row_keeps_the_first_among_equals() -> None:
    table = torch.tensor([[1.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_per_row(table, 2).tolist() == [1, 2, 4, 5]


def test_weight_matrices_flatten_convolutions() -> None:
    matrices = weight_matrices(toy_classifier("convnext"))
    assert matrices["stages.0.blocks.0.conv_dw.weight"].shape == (8, 49)  # depthwise: one input channel
    assert not any(name.startswith("head.fc") for name in matrices)
