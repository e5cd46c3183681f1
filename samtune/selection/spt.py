"""SPT: sensitivity-aware parameter-efficient fine-tuning (He et al., ICCV 2023, eq. 3 to 5, Algorithm 1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection.baselines import Positive, added_size, check_rank, lora_addition
from samtune.selection.matrices import top_overall, weight_matrices
from samtune.selection.selection import Addition, Selection
from samtune.selection.selector import Needs
from samtune.types import Granularity, Scores

Structure = Literal["lora", "adapter", "none"]

SHARE = 0.005  # of the model: of ViT-B 0.43 M, the nearest to the 0.4 M under the paper's figures
VECTOR_SHARE = 0.2  # of a vector's entries, as in the release


@dataclass(frozen=True, kw_only=True)
class SptOptions:
    """Options of `spt`.

    Attributes:
        tau: number of sensitive parameters; None for 0.5 % of the model's parameters.
        structure: the module: LoRA, an adapter after the matrix, or none.
        rank: of the LoRA, or width of the adapter.
        lora_alpha: the LoRA is scaled by lora_alpha / rank; None for a scale of 1.
        per: what the squared gradients are of: a sample (Algorithm 1) or a batch (the release).
        alpha: a matrix gets a module when its sensitive weights reach the module's size divided by alpha: 1 in the
            paper, 10 in the release. Above 1 the parameters can be more than tau.
        vectors: biases and norms compete too: one with 1/5 of its entries among the sensitive is tuned whole.
    """

    tau: int | None = None
    structure: Structure = "lora"
    rank: int = 8
    lora_alpha: Positive | None = None
    per: Granularity = "sample"
    alpha: Positive = 1.0
    vectors: bool = False


def spt(model: Backbone, scores: Scores, **options: Any) -> Selection:
    """Tunes the tau most sensitive weights of the backbone; a matrix with many of them gets a module instead.

    The sensitivity of a weight is its sum of squared gradients (eq. 3). q, k and v of a fused weight are matrices of
    their own; of convolutions, the pointwise ones of the blocks can get a module.

    Args:
        **options: of `SptOptions`, with values that pass `check_spt`.
    """
    given = SptOptions(**options)
    assert scores.squares is not None and scores.per == given.per  # `select` refuses others
    sizes = _candidates(model, given.vectors)
    sensitive = top_overall({name: scores.squares[name] for name in sizes}, _tau(model, given.tau))
    matrices = weight_matrices(model)
    whole = [n for n, i in sensitive.items() if n not in matrices and len(i) >= VECTOR_SHARE * sizes[n]]
    entries = {name: indices for name, indices in sensitive.items() if name in matrices}
    additions: list[Addition] = []
    hosts = [part for part in _parts(model) if part[0] in entries and given.structure != "none"]
    for name, rows, columns in hosts:
        inside = (entries[name] >= rows.start * columns) & (entries[name] < rows.stop * columns)
        part = None if len(rows) == len(matrices[name]) else (rows.start, rows.stop)
        addition = lora_addition(name.removesuffix(".weight"), given.rank, given.lora_alpha, part)
        if given.structure == "adapter":
            axis = {"axis": 1} if model.pointwise else {}
            addition = Addition("adapter", addition.module, part, {"width": given.rank, "dim": len(rows)} | axis)
        if int(inside.sum()) * given.alpha >= added_size(model, addition):
            additions.append(addition)
            entries[name] = entries[name][~inside]
    return Selection({n: i for n, i in entries.items() if len(i)}, tuple(sorted(whole)), additions=tuple(additions))


def spt_needs(*, per: Granularity = "sample", **_: object) -> Needs:
    """Returns the scoring pass: the task's loss, with squares."""
    return Needs("task", per=per, squares=True)


def spt_size(model: Backbone, *, tau: int | None = None, **_: object) -> int:
    """Returns tau, an upper bound of what is picked while `alpha` is at most 1."""
    return _tau(model, tau)


def check_spt(model: Backbone, **options: Any) -> None:
    """Refuses a tau or a rank that does not fit the model.

    Raises:
        ConfigError: tau below 1 or above the number of weights, or a rank above the size of a matrix.
    """
    given = SptOptions(**options)
    count, largest = _tau(model, given.tau), sum(_candidates(model, given.vectors).values())
    if count < 1:
        raise ConfigError(f"select.tau is {count}; the smallest tau is 1 (for none: select.name=linear).")
    if count > largest:
        raise ConfigError(
            f"select.tau is {count}, but {model.name} has {largest} weights that can be tuned: that is the largest tau "
            "(for all: select.name=full)."
        )
    for name, rows, columns in _parts(model) if given.structure == "lora" else ():
        check_rank(given.rank, name, (len(rows), columns))


def _tau(model: Backbone, tau: int | None) -> int:
    return max(1, int(SHARE * sum(p.numel() for p in model.parameters()))) if tau is None else tau


def _candidates(model: Backbone, vectors: bool) -> dict[str, int]:
    """Returns name -> size of the tensors whose entries compete."""
    wanted = {"linear", "conv"} | ({"norm", "bias"} if vectors else set())
    roles = model.roles()
    return {name: p.numel() for name, p in model.net.named_parameters() if roles[name] in wanted}


def _parts(model: Backbone) -> Iterator[tuple[str, range, int]]:
    """Yields (weight name, rows, columns) of each matrix that can get a module."""
    fused, roles = model.fused(), model.roles()
    products = {f"{module}.weight" for modules in model.linears().values() for module in modules}
    for name, matrix in weight_matrices(model).items():
        if roles[name] == "linear" or name in products:
            rows, columns = matrix.shape
            step = rows // fused.get(name, 1)
            for start in range(0, rows, step):
                yield name, range(start, start + step), columns
