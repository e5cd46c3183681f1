"""Two processes that share each batch train the same model as one process, and so does a compiled model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import SCATTERED, make_selection
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy import prompts_of, toy_batch, toy_model
from toyvit import labelled_batch, toy_classifier

from samtune.models.sam.model import SamModel
from samtune.selection import Selection
from samtune.tuning import attach
from samtune.tuning.compact import CompactModule, tune_entries
from samtune.types import Batch

RANKS, STEPS, ITEMS = 2, 5, 4
LIMIT = 60.0  # seconds for both processes together

Run = tuple[list[float], dict[str, Tensor]]  # loss of each step, final state dict


def neurons(model: SamModel) -> Selection:
    """Returns one random input of every neuron, all encoder biases and the decoder."""
    generator = torch.Generator().manual_seed(0)
    entries, whole = {}, []
    for name, role in model.roles().items():
        shape = model.net.get_parameter(name).shape
        if role in ("linear", "conv"):
            columns = shape[1:].numel()
            chosen = torch.randint(columns, (shape[0],), generator=generator)
            entries[name] = torch.arange(shape[0]) * columns + chosen
        elif role in ("bias", "decoder"):
            whole.append(name)
    return Selection(entries, tuple(whole))


CASES: dict[str, Callable[[SamModel], Selection]] = {
    "neurons": neurons,
    SCATTERED: lambda model: make_selection(SCATTERED, model),
    "lora": lambda model: make_selection("lora", model),
    "spt": lambda model: make_selection("spt", model),
}
OPTIMIZERS: dict[torch.dtype, Callable[..., torch.optim.Optimizer]] = {
    torch.float64: lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1),
    # under Adam in fp32, rounding becomes steps where the true gradient is zero (biases of keys)
    torch.float32: lambda parameters: torch.optim.SGD(parameters, lr=1e-2, momentum=0.9),
}


def part(step: int, rank: int, ranks: int) -> Batch:
    """Returns this process's items of the batch of a step; the prompts are boxes."""
    batch = toy_batch(seed=step, sizes=((64, 48), (40, 64), (64, 64), (30, 64)), prompts=prompts_of("box", batch=ITEMS))
    mine = slice(rank * ITEMS // ranks, (rank + 1) * ITEMS // ranks)
    assert batch.prompts is not None and batch.prompts.boxes_input is not None
    return Batch(
        images=batch.images[mine],
        masks=batch.masks[mine],
        sizes_input=batch.sizes_input[mine],
        names=batch.names[mine],
        prompts=type(batch.prompts)(boxes_input=batch.prompts.boxes_input[mine]),
    )


def train(case: str, dtype: torch.dtype, rank: int = 0, ranks: int = 1) -> Run:
    """Trains the toy model, wrapped where there is more than one process."""
    model = toy_model(dtype=dtype)
    optimizer = OPTIMIZERS[dtype](attach(model, CASES[case](model)).values())
    # the IoU head gets no gradient
    net: nn.Module = DistributedDataParallel(model, find_unused_parameters=True) if ranks > 1 else model
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        logits = net(part(step, rank, ranks))
        target = torch.linspace(-1, 1, logits[0].numel(), dtype=dtype).view_as(logits[0])
        loss = (logits - target).square().mean()  # over items of one size, so the mean of means is the mean
        loss.backward()
        optimizer.step()
        shown = loss.detach().clone()
        if ranks > 1:
            dist.all_reduce(shown)
        losses.append(float(shown) / ranks)
    return losses, {name: tensor.clone() for name, tensor in model.net.state_dict().items()}


def work(rank: int, folder: str) -> None:
    """Runs every case in one of the processes and saves what came out."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", store, timedelta(seconds=LIMIT), rank=rank, world_size=RANKS)
    runs = {(case, dtype): train(case, dtype, rank, RANKS) for case in CASES for dtype in OPTIMIZERS}
    torch.save(runs, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Run]]:
    """What each process got: (case, dtype) -> run."""
    folder: Path = tmp_path_factory.mktemp("parallel")
    context = mp.spawn(work, (str(folder),), nprocs=RANKS, join=False)
    try:
        done = [context.join(LIMIT) for _ in range(RANKS)][-1]  # a call returns when one process ends
    finally:
        for process in context.processes:
            process.kill()
    assert done, f"the processes did not end within {LIMIT:.0f} s"
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("dtype", list(OPTIMIZERS), ids=str)
@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_train_what_one_does(case: str, dtype: torch.dtype, parallel: list[dict[Any, Run]]) -> None:
    losses, state = train(case, dtype)
    base = toy_model(dtype=dtype).net.state_dict()
    assert any(not torch.equal(state[name], base[name]) for name in base)
    for runs in parallel:
        shared_losses, shared_state = runs[case, dtype]
        assert shared_losses == pytest.approx(losses, rel=0, abs=1e-9 if dtype == torch.float64 else 1e-5)
        assert list(shared_state) == list(state)
        if dtype == torch.float64:
            assert all(float((shared_state[name] - state[name]).abs().max()) <= 1e-9 for name in state)
    assert all(torch.equal(parallel[0][case, dtype][1][name], parallel[1][case, dtype][1][name]) for name in state)


def test_unselected_entries_stay_bit_equal_in_both_processes(parallel: list[dict[Any, Run]]) -> None:
    for case, select in CASES.items():
        base = toy_model().net.state_dict()
        changes = select(toy_model()).changes(base)
        for name, tensor in parallel[1][case, torch.float32][1].items():
            frozen = torch.full(tensor.shape, changes.get(name, ...) is not None).flatten()
            if isinstance(changes.get(name), Tensor):
                frozen[changes[name]] = False
            assert torch.equal(tensor.flatten()[frozen], base[name].flatten()[frozen]), name


# --- torch.compile


@pytest.fixture
def compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def tuned_vit(backend: str | None) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Returns logits and gradients of three steps: entries of every linear and conv layer, and of the positions."""
    model = toy_classifier("vit")
    names = [n for n, role in model.roles().items() if role in ("linear", "conv")]
    entries = {n: torch.arange(3, model.net.get_parameter(n).numel(), 10) for n in [*names, "pos_embed"]}
    trained = attach(model, Selection(entries, tuple(n for n, role in model.roles().items() if role == "bias")))
    assert sum(isinstance(module, CompactModule) for module in model.modules()) == len(entries)
    net: Callable[..., Tensor] = model if backend is None else torch.compile(model, backend=backend)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    logits, gradients = [], []
    for step in range(3):
        optimizer.zero_grad()
        answer = net(labelled_batch(seed=step))
        answer.square().mean().backward()
        logits.append(answer.detach())
        gradients.append({n: p.grad.clone() for n, p in trained.items() if p.grad is not None})
        optimizer.step()
    with torch.no_grad():
        trained[names[1]].add_(0.1)  # a change that is no step of an optimizer
        logits.append(net(labelled_batch()))
    return logits, gradients


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_sees_every_step(backend: str, compiler: None) -> None:
    logits, gradients = tuned_vit(None)
    assert not torch.equal(logits[0], logits[1]) and not torch.equal(logits[0], logits[-1])
    compiled_logits, compiled_gradients = tuned_vit(backend)
    for answer, expected in zip(compiled_logits, logits, strict=True):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    for got, wanted in zip(compiled_gradients, gradients, strict=True):
        assert got.keys() == wanted.keys()
        for name in wanted:
            torch.testing.assert_close(got[name], wanted[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


class Block(nn.Module):
    """A layer between two operations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x.sin()))


def test_blocks_share_their_compiled_code(compiler: None) -> None:
    """Code that is compiled anew for each layer would meet the recompilation limit in a deep model."""
    from torch._dynamo.testing import CompileCounter

    counter, counts = CompileCounter(), []
    run = torch.compile(lambda block, x: block(x), backend=counter)
    x = torch.randn(2, 8, requires_grad=True)
    for _ in range(6):
        block = Block()
        tune_entries(block.linear, "weight", torch.arange(8))
        x = run(block, x)
        counts.append(counter.frame_count)
    assert 0 < counts[1] == counts[-1], counts
