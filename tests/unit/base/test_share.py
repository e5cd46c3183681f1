from __future__ import annotations

import pytest
import torch

from samtune.base.share import Share


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 4, 7, 8])
def test_the_parts_of_all_processes_are_the_items_once_each(items: int, count: int) -> None:
    parts = [list(range(items))[Share(number, count).part(items)] for number in range(count)]
    assert [item for part in parts for item in part] == list(range(items))
    assert max(map(len, parts)) == -(-items // count)


def test_alone_nothing_is_sent() -> None:
    alone, tensor = Share(), torch.ones(3)
    alone.add([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert alone.total(1.5, 2.0) == [1.5, 2.0]
    assert alone.of_first("x") == "x" and alone.first
    assert alone.any(True) and not alone.any(False)
