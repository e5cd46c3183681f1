"""GPS: gradient-based parameter selection (Zhang et al., CVPR 2024, section 3.1), with the variants of its Tab. 6.

Other papers choose entries in the same way by another number: those are its criteria. Only chosen entries are updated,
eq. 5 and 6: that is `samtune.tuning`'s business.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone
from samtune.selection.criteria import CRITERIA, Criterion
from samtune.selection.matrices import limiting_matrices, log_short, top_overall, top_per_row, weight_matrices
from samtune.selection.selection import Selection
from samtune.selection.selector import Needs
from samtune.types import Scores

Level = Literal["neuron", "layer", "net"]


def gps(
    model: Backbone,
    scores: Scores | None,
    *,
    per_neuron: int = 1,
    level: Level = "neuron",
    criterion: Criterion = "gradient",
    seed: Annotated[int, Field(ge=0)] = 0,
) -> Selection:
    """Selects, for every output neuron of every backbone weight, the K inputs with the largest score.

    Convolutions count as (out, in/groups * kh * kw); each row of a fused qkv is a neuron. A neuron of a depthwise
    convolution has only kh * kw inputs: a larger K takes all of them.

    Args:
        scores: of the pass that the criterion needs; None for the criteria that need none.
        per_neuron: K >= 1, one that passes `check_gps`.
        level: where entries compete: within a neuron (the method), a layer or the whole net; there are K times as many
            as neurons, but for depthwise ones.
        criterion: what the score of an entry is, see `samtune.selection.criteria`; |gradient| is the method's.
        seed: of the criterion `random`.
    """
    importance = CRITERIA[criterion].importance(model, scores, seed)
    if level == "net":
        everything = dict(importance)
        return Selection(top_overall(everything, _total(everything, per_neuron, level)))
    log_short(weight_matrices(model), 1, per_neuron)
    if level == "neuron":
        return Selection({name: top_per_row(table, per_neuron) for name, table in importance})
    entries: dict[str, Tensor] = {}
    for name, table in importance:
        entries |= top_overall({name: table}, _total({name: table}, per_neuron, level))
    return Selection(entries)


def gps_needs(*, criterion: Criterion = "gradient", **_: object) -> Needs | None:
    """Returns the scoring pass of the criterion."""
    return CRITERIA[criterion].needs


def gps_size(model: Backbone, *, per_neuron: int = 1, level: Level = "neuron", **_: object) -> int:
    """Returns K times the number of neurons, less what depthwise ones do not have."""
    return _total(weight_matrices(model), per_neuron, level)


def check_gps(model: Backbone, *, per_neuron: int = 1, level: Level = "neuron", **_: object) -> None:
    """Refuses a K that does not fit the model.

    Raises:
        ConfigError: K larger than the number of inputs of some neuron, but a depthwise one; at level `net`, than
            their mean.
    """
    matrices = weight_matrices(model)
    if level == "net":
        largest = sum(m.numel() for m in matrices.values()) // sum(len(m) for m in matrices.values())
        where = f"the neurons of {model.name} have {largest} inputs in the mean"
    else:
        matrices = limiting_matrices(model)
        name = min(matrices, key=lambda name: matrices[name].shape[1])
        largest = matrices[name].shape[1]
        where = f"the neurons of {name} have {largest} inputs"
    if per_neuron > largest:
        raise ConfigError(f"select.per_neuron is {per_neuron}, but {where}: that is the largest K.")


def _total(matrices: Mapping[str, Tensor], per_neuron: int, level: Level) -> int:
    """Returns K times the number of rows; where entries compete within a matrix or row, a shorter row counts whole."""
    return sum(len(m) * (per_neuron if level == "net" else min(per_neuron, m.shape[1])) for m in matrices.values())
