"""A layer with tuned entries against the stock layer: answers, gradients, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from samtune.tuning.compact import CompactLinear, CompactPointwise, release_entries, tune_entries

INPUTS, OUTPUTS, TOKENS = 24, 40, (3, 5)
FLAT = torch.arange(OUTPUTS * INPUTS).view(OUTPUTS, INPUTS)
PATTERNS = {
    "one row": FLAT[7],
    "rows": FLAT[5:9].flatten(),
    "one column": FLAT[:, 3],
    "columns": FLAT[:, [3, 4, 20]].flatten(),
    "top 1 of few columns": FLAT[:, 0] + torch.arange(OUTPUTS) % 5,
    "top 2 of most columns": torch.cat([FLAT[:, 0] + torch.arange(OUTPUTS) % INPUTS, FLAT[:, 0] + 22]).unique(),
    "one entry": FLAT[6, 6:7],
    "scattered": torch.randperm(OUTPUTS * INPUTS, generator=torch.Generator().manual_seed(0))[:30].sort().values,
    "most entries": FLAT.flatten()[::2],
    "all": FLAT.flatten(),
    "none": FLAT.flatten()[:0],
}


@pytest.fixture(params=list(PATTERNS))
def indices(request: pytest.FixtureRequest) -> Tensor:
    """Which entries train."""
    return PATTERNS[request.param]


def linear(*, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(INPUTS, OUTPUTS, dtype=dtype)


def tuned(indices: Tensor, *, dtype: torch.dtype = torch.float32) -> tuple[CompactLinear, nn.Parameter]:
    layer = linear(dtype=dtype)
    values = tune_entries(layer, "weight", indices)
    assert isinstance(layer, CompactLinear)
    return layer, values


def tokens(*, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*TOKENS, INPUTS, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_(True)


@contextmanager
def kept_tensors(found: list[Tensor]) -> Iterator[None]:
    """Collects what autograd keeps from a forward pass."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (found.append(t), t)[1], lambda t: t):
        yield


class Sizes(TorchDispatchMode):
    """Notes the number of elements of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


# --- numbers


def test_answers_and_gradients_equal_the_stock_layer(indices: Tensor) -> None:
    stock, (layer, values) = linear(dtype=torch.float64), tuned(indices, dtype=torch.float64)
    x, x_stock = tokens(dtype=torch.float64), tokens(dtype=torch.float64)
    y, expected = layer(x), stock(x_stock)
    assert torch.equal(y, expected)
    y.sin().sum().backward()
    expected.sin().sum().backward()
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(values.grad, stock.weight.grad.flatten()[indices], **exact)
    torch.testing.assert_close(layer.bias.grad, stock.bias.grad, **exact)
    torch.testing.assert_close(x.grad, x_stock.grad, **exact)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels last"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("images", [1, 2])
def test_a_pointwise_convolution_equals_the_stock_one(
    indices: Tensor, layout: torch.memory_format, bias: bool, images: int
) -> None:
    torch.manual_seed(0)
    stock = nn.Conv2d(INPUTS, OUTPUTS, 1, bias=bias, dtype=torch.float64)
    layer = deepcopy(stock)
    values = tune_entries(layer, "weight", indices)
    assert isinstance(layer, CompactPointwise)
    x = torch.randn(images, INPUTS, 4, 6, dtype=torch.float64).contiguous(memory_format=layout)
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    answers = [module(x) for module, x in zip((layer, stock), inputs, strict=True)]
    assert torch.equal(*answers)
    assert answers[0].stride() == answers[1].stride()  # or what comes next takes other code, and rounds otherwise
    for answer in answers:
        answer.sin().sum().backward()
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(values.grad, stock.weight.grad.flatten()[indices], **exact)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **exact)
    if bias:
        torch.testing.assert_close(layer.bias.grad, stock.bias.grad, **exact)


CHANNELS, TAPS = 6, 25
KERNELS = torch.arange(CHANNELS * TAPS).view(CHANNELS, TAPS)
DEPTHWISE = {
    "one of each": KERNELS[:, 0] + torch.tensor([0, 24, 12, 7, 7, 3]),
    "some channels, up to three": torch.cat([KERNELS[1, [2, 9, 20]], KERNELS[4, [0]]]),
    "six of each": KERNELS[:, 4:10].flatten(),
}


def plain_depthwise(**options: int) -> nn.Conv2d:
    return nn.Conv2d(CHANNELS, CHANNELS, 5, groups=CHANNELS, dtype=torch.float64, **options)


@pytest.mark.parametrize("pattern", list(DEPTHWISE))
@pytest.mark.parametrize(
    "build",
    [
        lambda: plain_depthwise(padding=2),
        lambda: plain_depthwise(stride=2, dilation=2),
        lambda: Conv2dSame(CHANNELS, CHANNELS, 5, stride=2, groups=CHANNELS, bias=False, dtype=torch.float64),
    ],
    ids=["padded", "stride and dilation", "padded as TensorFlow"],
)
@pytest.mark.parametrize("batch", [(2,), ()], ids=["batch", "no batch"])
def test_a_depthwise_convolution_equals_the_stock_one(
    pattern: str, build: Callable[[], nn.Conv2d], batch: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    stock = build()
    layer = deepcopy(stock)
    values = tune_entries(layer, "weight", DEPTHWISE[pattern])
    assert "tuned_taps" in dict(layer.named_buffers())
    x = torch.randn(*batch, CHANNELS, 11, 14, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    answers = [module(x) for module, x in zip((layer, stock), inputs, strict=True)]
    assert torch.equal(*answers)
    assert answers[0].stride() == answers[1].stride()  # or what comes next takes other code, and rounds otherwise
    for answer in answers:
        answer.sin().sum().backward()
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(values.grad, stock.weight.grad.flatten()[DEPTHWISE[pattern]], **exact)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, **exact)
    if stock.bias is not None:
        torch.testing.assert_close(layer.bias.grad, stock.bias.grad, **exact)


def test_a_depthwise_convolution_under_autocast_gives_the_stock_layers_numbers() -> None:
    torch.manual_seed(0)
    stock = nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=CHANNELS)
    layer = deepcopy(stock)
    values = tune_entries(layer, "weight", DEPTHWISE["one of each"])
    x = torch.randn(2, CHANNELS, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        answers = layer(x), stock(x)
    assert answers[0].dtype == torch.bfloat16 and torch.equal(*answers)
    for answer in answers:
        answer.float().sin().sum().backward()
    wanted = stock.weight.grad.flatten()[DEPTHWISE["one of each"]]
    torch.testing.assert_close(values.grad, wanted, rtol=2e-2, atol=1e-1)
    assert values.grad.dtype == layer.bias.grad.dtype == torch.float32


def test_many_taps_of_a_kernel_come_from_its_whole_gradient() -> None:
    """One convolution for each tap would take longer."""
    layer = plain_depthwise()
    tune_entries(layer, "weight", KERNELS[:, :7].flatten())
    assert "tuned_taps" not in dict(layer.named_buffers())


def test_small_kernels_come_from_their_whole_gradient() -> None:
    """oneDNN has fast code for it."""
    layer = nn.Conv2d(CHANNELS, CHANNELS, 3, groups=CHANNELS)
    tune_entries(layer, "weight", torch.arange(CHANNELS) * 9)
    assert "tuned_taps" not in dict(layer.named_buffers())


def test_of_the_input_of_a_pointwise_convolution_only_the_chosen_channels_are_kept() -> None:
    layer = nn.Conv2d(INPUTS, OUTPUTS, 1)
    tune_entries(layer, "weight", PATTERNS["columns"])
    x = torch.randn(2, INPUTS, 4, 6, requires_grad=True).contiguous(memory_format=torch.channels_last)
    assert kept_floats(layer, x).keys() == {(2, 3, 4, 6), (OUTPUTS, INPUTS, 1, 1)}


@pytest.mark.parametrize("options", [{"stride": 2}, {"groups": 2}, {"padding": 1}], ids=str)
def test_other_1_by_1_convolutions_are_no_products(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    stock = nn.Conv2d(4, 4, 1, **options)
    layer = deepcopy(stock)
    values = tune_entries(layer, "weight", torch.tensor([0, 3]))
    assert not isinstance(layer, CompactPointwise)
    x = torch.randn(1, 4, 6, 6)
    answers = layer(x), stock(x)
    assert torch.equal(*answers)
    for answer in answers:
        answer.square().sum().backward()
    torch.testing.assert_close(values.grad, stock.weight.grad.flatten()[[0, 3]])


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_gives_the_stock_layers_numbers(indices: Tensor, base: torch.dtype) -> None:
    """Of products of bfloat16, so up to its rounding; values, bias and input get their gradients in fp32."""
    stock, (layer, values) = linear(), tuned(indices)
    layer.weight.data = layer.weight.data.to(base)
    x, x_stock = tokens(), tokens()
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = layer(x), stock(x_stock)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    y.float().sin().sum().backward()
    expected.float().sin().sum().backward()
    close = {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(values.grad, stock.weight.grad.flatten()[indices], **close)
    torch.testing.assert_close(x.grad, x_stock.grad, **close)
    assert values.grad.dtype == layer.bias.grad.dtype == x.grad.dtype == torch.float32


def test_bias_gradient_is_rounded_once_as_in_the_stock_layer() -> None:
    """A sum of many terms in bfloat16 itself would stop growing at 256 times their size."""
    terms = 4096
    gradients = []
    for layer in (linear(), tuned(PATTERNS["scattered"])[0]):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(torch.zeros(terms, INPUTS))
        y.backward(torch.full_like(y, 1.0078125))
        gradients.append(layer.bias.grad)
    torch.testing.assert_close(gradients[1], torch.full((OUTPUTS,), terms * 1.0078125), rtol=2**-8, atol=0)
    assert torch.equal(gradients[0], gradients[1])


def test_any_shape_of_input_goes_through() -> None:
    layer, values = tuned(PATTERNS["top 1 of few columns"])
    stock = linear()
    for x in (torch.randn(INPUTS), torch.randn(2, 3, 4, INPUTS), torch.randn(INPUTS, 6).T, torch.randn(0, INPUTS)):
        values.grad = stock.weight.grad = None
        y = layer(x)
        assert torch.equal(y, stock(x))
        y.square().sum().backward()
        stock(x).square().sum().backward()
        wanted = stock.weight.grad.flatten()[PATTERNS["top 1 of few columns"]]
        torch.testing.assert_close(values.grad, wanted, rtol=1e-5, atol=1e-5)


def test_a_layer_without_bias_works() -> None:
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    stock = deepcopy(layer)
    tune_entries(layer, "weight", PATTERNS["rows"])
    assert torch.equal(layer(tokens()), stock(tokens()))
    layer(tokens()).sum().backward()


# --- memory


def kept_floats(layer: nn.Module, x: Tensor, *, autocast: bool = False) -> dict[tuple[int, ...], torch.dtype]:
    """Returns shape -> type of the float tensors kept from a forward pass."""
    found: list[Tensor] = []
    with kept_tensors(found), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer(x)
    return {tuple(t.shape): t.dtype for t in found if t.is_floating_point()}


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("top 1 of few columns", (5 + 1, 15)),
        ("columns", (3 + 1, 15)),
        ("rows", (15, INPUTS)),
    ],  # as rows, below them ones
)
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_only_the_chosen_columns_of_the_input_are_kept(pattern: str, shape: tuple[int, int], autocast: bool) -> None:
    layer, _ = tuned(PATTERNS[pattern])
    kept = kept_floats(layer, tokens(), autocast=autocast)
    of_input = torch.bfloat16 if autocast else torch.float32
    assert kept == {shape: of_input, (OUTPUTS, INPUTS): torch.float32}


def test_the_kept_weight_and_whole_input_are_no_copies() -> None:
    layer, _ = tuned(PATTERNS["rows"])
    x, found = tokens(), []
    with kept_tensors(found):
        layer(x)
    pointers = {t.data_ptr() for t in found if t.is_floating_point()}
    assert pointers == {x.data_ptr(), layer.weight.data_ptr()}
    found.clear()
    with kept_tensors(found), torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert layer.weight.data_ptr() in {t.data_ptr() for t in found}


def test_nothing_is_kept_that_no_gradient_needs() -> None:
    layer, values = tuned(PATTERNS["columns"])
    assert kept_floats(layer, tokens().detach()) == {(3 + 1, 15): torch.float32}
    values.requires_grad_(False)
    assert kept_floats(layer, tokens()) == {(OUTPUTS, INPUTS): torch.float32}


def test_no_tensor_of_the_weights_size_is_made_in_the_backward_pass() -> None:
    few_tokens = torch.randn(2, INPUTS, requires_grad=True)
    for pattern, limit in (("columns", 4 * OUTPUTS), ("rows", 4 * INPUTS), ("top 1 of few columns", 6 * OUTPUTS)):
        layer, _ = tuned(PATTERNS[pattern])
        y = layer(few_tokens).sum()
        with Sizes() as sizes:
            y.backward()
        assert sizes.largest == limit < OUTPUTS * INPUTS, pattern


# --- what is refused


@pytest.mark.parametrize("kind", ["linear", "convolution", "depthwise"])
def test_second_derivatives_are_refused(kind: str) -> None:
    """Even of a linear loss, where the gradient that comes in needs none itself."""
    if kind == "linear":
        layer, x = nn.Linear(INPUTS, OUTPUTS), tokens()
    elif kind == "depthwise":
        layer, x = nn.Conv2d(6, 6, 5, groups=6), torch.randn(1, 6, 5, 5, requires_grad=True)
    else:
        layer, x = nn.Conv2d(3, 4, 2), torch.randn(1, 3, 5, 5, requires_grad=True)
    values = tune_entries(layer, "weight", torch.arange(6))
    for loss in (lambda y: y.square().sum(), lambda y: y.sum()):
        (gradient,) = torch.autograd.grad(loss(layer(x)), values, create_graph=True)
        with pytest.raises(RuntimeError, match=r"once_differentiable: it has no second derivatives\. Compute them on"):
            gradient.sum().backward()


def test_a_weight_that_changed_since_the_forward_pass_is_refused() -> None:
    """As in a stock layer: the gradient of the input would be that of another weight."""
    layer, values = tuned(PATTERNS["rows"])
    loss = layer(tokens()).sum()
    with torch.no_grad():
        values.add_(1)
    layer(tokens())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- the dense tensor


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.Linear(6, 5), "weight"),
        (nn.Linear(6, 5), "bias"),
        (nn.Conv2d(3, 4, 2), "weight"),
        (nn.Conv2d(3, 4, 1), "weight"),
        (nn.Conv2d(3, 3, 5, groups=3), "weight"),
        (nn.LayerNorm(6), "weight"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_released_module_is_stock_and_has_the_values(module: nn.Module, name: str) -> None:
    module = deepcopy(module)
    before, attributes, kind = module.get_parameter(name).detach().clone(), set(vars(module)), type(module)
    values = tune_entries(module, name, torch.tensor([0, 3]))
    with torch.no_grad():
        values.add_(1)
    release_entries(module)  # type: ignore[arg-type]
    changed = (module.get_parameter(name) - before).detach().flatten()
    assert torch.equal(changed.nonzero().flatten(), torch.tensor([0, 3]))
    torch.testing.assert_close(changed[[0, 3]], torch.ones(2))
    assert type(module) is kind and set(vars(module)) == attributes
    assert not module.get_parameter(name).requires_grad


def test_values_keep_full_precision_beside_a_low_base() -> None:
    layer = linear().to(torch.bfloat16)
    values = tune_entries(layer, "weight", FLAT[0])
    assert values.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    with torch.no_grad():
        values.copy_(torch.linspace(0, 1, INPUTS))
    assert torch.equal(layer.state_dict()["weight"][0], torch.linspace(0, 1, INPUTS).to(torch.bfloat16))
    assert torch.equal(values, torch.linspace(0, 1, INPUTS))
