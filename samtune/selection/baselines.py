"""Baselines: whole tensors by their role, and small modules beside a frozen backbone, where they go and how large."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from samtune.config.sections import Names
from samtune.errors import ConfigError
from samtune.models.backbone import Backbone, ends_in_activation
from samtune.selection.selection import Addition, Selection
from samtune.types import Scores

Positive = Annotated[float, Field(gt=0)]
Value = TypeVar("Value")
Variant = Literal["lora", "dora", "pissa"]


def linear(model: Backbone, scores: Scores | None) -> Selection:
    """Selects nothing of the backbone: only the decoder or head trains ("linear probing")."""
    return Selection({})


def full(model: Backbone, scores: Scores | None) -> Selection:
    """Selects every weight, norm and position table of the backbone; biases and decoder are added as for any method."""
    return _whole(n for n, role in model.roles().items() if role in ("linear", "conv", "norm", "position"))


def bias(model: Backbone, scores: Scores | None) -> Selection:
    """Selects all biases, with the shifts of norms and layer scales (BitFit, arXiv:2106.10199)."""
    roles = model.roles().items()
    return _whole(n for n, role in roles if role == "bias" or (role == "norm" and n.endswith(".bias")))


def partial(model: Backbone, scores: Scores | None, *, blocks: int = 1) -> Selection:
    """Selects the last blocks whole ("Partial-k"); what follows them, such as the final norm or a neck, stays frozen.

    Raises:
        ConfigError: more blocks than the model has.
    """
    modules = model.block_modules()
    if blocks > len(modules):
        raise ConfigError(
            f"select.blocks is {blocks}, but {model.name} has {len(modules)} blocks: that is the largest."
        )
    prefixes = tuple(f"{module}." for module in modules[-blocks:])
    return _whole(name for name, _ in model.net.named_parameters() if name.startswith(prefixes))


def lora(
    model: Backbone,
    scores: Scores | None,
    *,
    rank: int = 8,
    alpha: Positive | None = None,
    variant: Variant = "lora",
    targets: Names | None = None,
) -> Selection:
    """Adds low-rank updates to linear maps of the blocks, pointwise convolutions included (arXiv:2106.09685).

    A fused qkv gets one update for all three, as in Hugging Face's peft.

    Args:
        alpha: the update is scaled by alpha / rank; None for a scale of 1.
        variant: lora; dora, which learns the length of each row apart (arXiv:2402.09353); or pissa, which starts from
            the largest singular values (arXiv:2404.02948).
        targets: keys of `model.linears()`; None for qkv where there is one, else for all.

    Raises:
        ConfigError: no or unknown targets, or a rank above the size of a matrix.
    """
    shapes = {name: p.shape for name, p in model.net.named_parameters()}
    hosts = [module for modules in _chosen(model, "targets", targets, "qkv", model.linears()) for module in modules]
    for module in hosts:
        check_rank(rank, f"{module}.weight", shapes[f"{module}.weight"][:2])
    return _adding(lora_addition(module, rank, alpha, kind=variant) for module in hosts)


def adapter(model: Backbone, scores: Scores | None, *, width: int = 8, places: Names | None = None) -> Selection:
    """Adds bottlenecks after the attention or the MLP of each block (Houlsby et al., arXiv:1902.00751).

    Args:
        places: `attention`, `mlp`, or both, as far as the model has them, or `block`, of convolutions; None for the
            MLP where there is one, else for all.

    Raises:
        ConfigError: no or unknown places.
    """
    known = model.sublayers()
    hosts = [host for modules in _chosen(model, "places", places, "mlp", known) for host in modules.items()]
    axis = {"axis": 1} if "block" in known else {}  # of the channels; the last unless said
    return _adding(Addition("adapter", module, options={"width": width, "dim": dim} | axis) for module, dim in hosts)


def adaptformer(model: Backbone, scores: Scores | None, *, width: int = 64, scale: Positive = 0.1) -> Selection:
    """Adds scaled bottlenecks parallel to the MLP of each block (Chen et al., arXiv:2205.13535).

    Raises:
        ConfigError: a model without MLPs.
    """
    hosts = model.sublayers().get("mlp", {}).items()
    if not hosts:
        raise ConfigError(
            f"select.name=adaptformer needs blocks with an MLP, which {model.name} does not have; try adapter."
        )
    return _adding(Addition("adaptformer", m, options={"width": width, "dim": dim, "scale": scale}) for m, dim in hosts)


def ssf(model: Backbone, scores: Scores | None) -> Selection:
    """Adds a scale, and a shift where the layer has a bias, after each operation (Lian et al., arXiv:2210.08823).

    Without the shift where there is no bias, all of it folds into the layer's own tensors. Norms without parameters,
    and those with an activation inside, are left out, as nothing could take the result.
    """
    roles = model.roles()
    return _adding(
        Addition("ssf", module, options={"dim": len(parameter), "shift": int(f"{module}.bias" in roles)})
        for name, parameter in model.net.named_parameters()
        for module, _, short in [name.rpartition(".")]
        if short == "weight" and roles[name] in ("linear", "conv", "norm")
        if not ends_in_activation(model.net.get_submodule(module))
    )


def vpt_shallow(model: Backbone, scores: Scores | None, *, prompts: int = 10) -> Selection:
    """Adds learned tokens before the first block, which stay up to the last (Jia et al., arXiv:2203.12119).

    Raises:
        ConfigError: a model that is no plain ViT.
    """
    blocks = _token_blocks(model, "vpt_shallow")
    return _adding([_prompt(model, blocks[0], blocks[-1], prompts)])


def vpt_deep(model: Backbone, scores: Scores | None, *, prompts: int = 10) -> Selection:
    """Adds learned tokens to each block, which replace those of the block before (Jia et al., arXiv:2203.12119).

    Raises:
        ConfigError: a model that is no plain ViT.
    """
    return _adding(_prompt(model, block, block, prompts) for block in _token_blocks(model, "vpt_deep"))


def mlp(model: Backbone, scores: Scores | None, *, layers: int = 2) -> Selection:
    """Adds layers of linear and GELU before the head ("MLP-k").

    Raises:
        ConfigError: a model without a classification head.
    """
    head = model.head_module()
    if head is None:
        raise ConfigError(
            f"select.name=mlp puts layers before a classification head, which {model.name} does not have; "
            "to train the mask decoder only: select.name=linear."
        )
    width = dict(model.net.named_parameters())[f"{head}.weight"].shape[1]
    return _adding([Addition("mlp", head, options={"layers": layers, "dim": width})])


def lora_addition(
    module: str, rank: int, alpha: float | None, rows: tuple[int, int] | None = None, *, kind: Variant = "lora"
) -> Addition:
    """Returns a LoRA of a linear map, or of the given rows of it; alpha None for a scale of 1."""
    return Addition(kind, module, rows, {"rank": rank, "alpha": float(rank) if alpha is None else alpha})


def check_rank(rank: int, name: str, shape: Sequence[int]) -> None:
    """Refuses a rank that a matrix of a shape (out, in) can't have.

    Raises:
        ConfigError: naming the weight and the largest rank.
    """
    largest = min(shape)
    if rank > largest:
        raise ConfigError(
            f"select.rank is {rank}, but {name} is a matrix of {shape[0]} x {shape[1]}: the largest rank is {largest}."
        )


def added_size(model: Backbone, addition: Addition) -> int:
    """Returns the number of parameters that an addition brings."""
    size = {key: int(value) for key, value in addition.options.items() if key not in ("until", "axis")}
    match addition.kind:
        case "lora" | "dora" | "pissa":
            rows, columns = dict(model.net.named_parameters())[f"{addition.module}.weight"].shape[:2]
            if addition.rows is not None:
                rows = addition.rows[1] - addition.rows[0]
            return size["rank"] * (rows + columns) + (rows if addition.kind == "dora" else 0)
        case "adapter" | "adaptformer":
            return 2 * size["dim"] * size["width"] + size["width"] + size["dim"]
        case "ssf":
            return size["dim"] * (1 + size["shift"])
        case "prompt":
            return size["count"] * size["dim"]
    return size["layers"] * (size["dim"] + 1) * size["dim"]  # mlp


def _whole(names: Iterable[str]) -> Selection:
    return Selection({}, tuple(sorted(names)))


def _adding(additions: Iterable[Addition]) -> Selection:
    return Selection({}, additions=tuple(additions))


def _chosen(
    model: Backbone, option: str, wanted: Sequence[str] | None, usual: str, known: Mapping[str, Value]
) -> list[Value]:
    """Returns the values of the wanted keys, each once; by default of the usual one, or of all where there is none."""
    if wanted is None:
        wanted = [usual] if usual in known else list(known)
    wrong = [name for name in wanted if name not in known]
    if wrong or not wanted:
        what = f"has {', '.join(wrong)}" if wrong else "is empty"
        raise ConfigError(f"select.{option} {what}; {model.name} offers {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys(wanted)]


def _token_blocks(model: Backbone, name: str) -> list[str]:
    if not (blocks := model.token_blocks()):
        others = ["lora", "adapter", *(["adaptformer"] if model.sublayers().get("mlp") else []), "ssf"]
        raise ConfigError(
            f"select.name={name} needs a plain ViT, whose tokens all attend to each other; {model.name} is none. "
            f"Alternatives that add parameters: {', '.join(others)}."
        )
    return blocks


def _prompt(model: Backbone, first: str, last: str, count: int) -> Addition:
    width = next(iter(model.sublayers()["mlp"].values()))  # the same in all blocks of a plain ViT
    return Addition("prompt", first, options={"count": count, "dim": width, "until": last})
