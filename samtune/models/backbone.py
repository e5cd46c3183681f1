"""A stock network with what samtune knows about it: the one place where a network's parameters get their meaning.

A family of models states where the blocks are, which role each parameter has, and which weights are several matrices
in one; everything else is derived here. Nothing outside of `samtune.models` tests substrings of names.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, TypeGuard

import torch
from torch import Tensor, nn

from samtune.types import Answering, Batch, Interpolation, Prompts, Role


class Backbone(nn.Module):
    """A pretrained network of another library, unchanged, behind one interface.

    Every name that the methods speak of is a name of `net`, and the keys of a file are those of `net.state_dict()`.
    A family implements `forward`, `features` and `block_modules`; the other methods have defaults.

    Args:
        name: of the model in the table.
        image_size: side in pixels of the square input.
        mean, std: per channel, of values of 0 to 255; as attributes `pixel_mean` and `pixel_std`, (C, 1, 1), C = 3
            for RGB.
        interpolation: how the weights saw images resized.
        options: of the library's own builder, as the user gave them.

    Attributes:
        head_seed: what a classification head's initial values were drawn from; None where they came with the weights.
        colours: `mean` and `std` as given, known also where no tensor has values.
        pointwise: what its library calls the 1 x 1 convolutions of a block that are linear maps, if it has any.
        targets: its library's name of a linear map of a block -> `qkv`, `proj`, `fc1` or `fc2`, where they differ.
        attention: what its library calls the attention of a block.
        keeps_folder: whether its library keeps a model as a folder of files, which `save_stock` writes.
        packages: what beside torch computes its output.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    pointwise: tuple[str, ...] = ()
    targets: Mapping[str, str] = MappingProxyType({"lin1": "fc1", "lin2": "fc2"})
    attention: str = "attn"
    keeps_folder: bool = False
    packages: tuple[str, ...] = ()

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: Interpolation = "bilinear",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.net, self.name, self.image_size, self.interpolation = net, name, image_size, interpolation
        self.options, self._checkpointing = dict(options or {}), False
        self.head_seed: int | None = None
        self.set_colours(mean, std)

    def set_colours(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets mean and deviation of each channel, in values of 0 to 255."""
        self.colours = (tuple(mean), tuple(std))
        self.register_buffer("pixel_mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @property
    def channels(self) -> int:
        """Number of channels of the pictures that it takes; 3 is RGB."""
        return len(self.colours[0])

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.parameters()).device

    @property
    def checkpointing(self) -> bool:
        """Whether training recomputes the blocks' activations: less memory, more time."""
        return self._checkpointing

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        self.recompute_blocks(on)

    def recompute_blocks(self, on: bool) -> None:
        """Tells a network that recomputes by itself; where the forward pass looks at `checkpointing`, it is nothing."""

    @property
    def bf16_on_cpu(self) -> bool:
        """Whether bf16 passes are faster than fp32 on a CPU that multiplies bf16 natively.

        Measured: 4 to 6 times for transformers; for EfficientNet-Lite0 with channels last it is slower by a tenth, as
        depthwise convolutions have no such kernels. What has more weights in linear layers counts as a transformer.
        """
        roles, sizes = self.roles(), {"linear": 0, "conv": 0}
        for name, parameter in self.net.named_parameters():
            if roles[name] in sizes:
                sizes[roles[name]] += parameter.numel()
        return sizes["linear"] > sizes["conv"]

    forward: Callable[..., Tensor]
    """Maps a batch to logits: (B, 1, h, w) of masks, at any fraction of the input frame, or (B, classes)."""

    def features(self, batch: Any) -> Tensor:
        """Returns (B, C, h, w) image embeddings, by cells of the input frame, or (B, C) features before the head."""
        raise NotImplementedError

    def answering(self, batch: Batch) -> Answering:
        """Returns what answers prompts about the one picture of a batch; a family that can embeds it once.

        Earlier answers are a further prompt where the family takes them.
        """

        def answer(prompts: Prompts | None, _: Tensor | None) -> Tensor:
            count = 1 if prompts is None else len(prompts)
            images, masks = (t.expand(count, -1, -1, -1) for t in (batch.images, batch.masks))
            logits: Tensor = self(Batch(images, masks, batch.sizes_input * count, batch.names * count, prompts=prompts))
            return logits

        return answer

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, but of layers with running statistics, which no selection names."""
        super().train(mode)
        for module in self.modules():
            if any(name.startswith("running_") and kept is not None for name, kept in module._buffers.items()):
                module.training = False
        return self

    def roles(self) -> dict[str, Role]:
        """Returns parameter name -> role, complete."""
        return {
            name: self.role(name, owner)
            for prefix, owner in self.net.named_modules()
            for name, _ in owner.named_parameters(prefix, recurse=False)
        }

    def role(self, name: str, owner: nn.Module) -> Role:
        """Returns the role of the parameter `name` of the module `owner`; a family says where it differs.

        Weights of linear and conv layers are `linear` and `conv`, their biases `bias`, both tensors of norms `norm`,
        but the shift of a batch norm, which is the bias of the convolution before it; tokens and tables of positions
        are `position`.
        """
        if isinstance(owner, nn.Linear | nn.Conv2d):
            kind: Role = "linear" if isinstance(owner, nn.Linear) else "conv"
            return "bias" if name.endswith(".bias") else kind
        if isinstance(owner, nn.BatchNorm2d) and name.endswith(".bias"):
            return "bias"
        return "norm" if isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm2d) else "position"

    def parts(self) -> dict[str, str]:
        """Returns parameter name -> label of the part of the network that it belongs to: `block 0`, `neck`, ..."""
        blocks = [(f"{module}.", f"block {index}") for index, module in enumerate(self.block_modules())]
        names = [name for name, _ in self.net.named_parameters()]
        return {n: next((label for stem, label in blocks if n.startswith(stem)), None) or self.part(n) for n in names}

    def part(self, name: str) -> str:
        """Returns the label of the part that a parameter outside of all blocks belongs to."""
        return name.partition(".")[0]

    def block_modules(self) -> list[str]:
        """Returns the names of the blocks of transformers or convolutions, from the first to the last."""
        raise NotImplementedError

    def stem_part(self) -> str:
        """Returns the label of the part that embeds patches: the owner of the first convolution."""
        roles, parts = self.roles(), self.parts()
        return next(parts[name] for name, _ in self.net.named_parameters() if roles[name] == "conv")

    def token_blocks(self) -> list[str]:
        """Returns the blocks of a plain ViT, which map (B, N, C) tokens and attend over all N; else nothing."""
        return []

    def head_module(self) -> str | None:
        """Returns the name of the classification head, an `nn.Linear`; None where there is none."""
        return None

    def new_entries(self) -> dict[str, Tensor]:
        """Returns parameter name -> sorted flat indices of the entries that the pretrained weights do not have."""
        return {}

    def idle(self) -> list[str]:
        """Returns the names of decoder parameters that the output does not depend on, so that they get no gradient."""
        return []

    def fused(self) -> dict[str, int]:
        """Returns weight name -> number of equal matrices stacked in its rows: 3 for a fused qkv."""
        return {f"{module}.weight": 3 for module in self.linears().get("qkv", [])}

    def linears(self) -> dict[str, list[str]]:
        """Returns target -> names of the linear maps of the blocks, in order.

        Targets are `qkv`, `proj`, `fc1`, `fc2` of transformers, and the names in `pointwise`.
        """
        found: dict[str, list[str]] = {}
        for block in self.block_modules():
            for name, module in self.net.get_submodule(block).named_modules():
                short = name.rpartition(".")[2]
                if isinstance(module, nn.Linear) or (short in self.pointwise and is_pointwise(module)):
                    found.setdefault(self.targets.get(short, short), []).append(f"{block}.{name}")
        return found

    def sublayers(self) -> dict[str, dict[str, int]]:
        """Returns `attention` and `mlp`, as far as there are any: module name -> width C of its (..., C) output.

        Blocks of convolutions, which have neither, are `block`, with a (B, C, h, w) output.
        """
        linears = {target: set(modules) for target, modules in self.linears().items()}
        found: dict[str, dict[str, int]] = {}
        for block in self.block_modules():
            for kind, short, last in (("attention", self.attention, "proj"), ("mlp", "mlp", "fc2")):
                module = f"{block}.{short}"
                ends = [name for name in linears.get(last, ()) if name.startswith(module + ".")]
                if ends:
                    width: int = self.net.get_submodule(ends[0]).out_features  # type: ignore[assignment]
                    found.setdefault(kind, {})[module] = width
        if found:
            return found
        widths = {block: _channels(self.net.get_submodule(block)) for block in self.block_modules()}
        known = {block: width for block, width in widths.items() if width is not None}
        return {"block": known} if known else {}

    def stock_notes(self, file: Path) -> list[str]:
        """Returns sentences on how the model's own library loads a `.pth` of `net.state_dict()`.

        Raises:
            CheckpointError: no library does.
        """
        return []

    def save_stock(self, out: Path) -> None:
        """Writes a merged model as its library keeps it, to the folder `out`, which is replaced."""
        raise NotImplementedError

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Says in a sentence which model of the family a state dict that does not fit looks like."""
        return f"It is not of {self.name}."


def _channels(block: nn.Module) -> int | None:
    """Returns the output channels of a block of convolutions, those of the norm that it ends with; None without one."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    return norms[-1].num_features if norms else None


def ends_in_activation(module: nn.Module) -> bool:
    """Whether a layer with a weight has an activation behind it, as timm's norms may: no scale folds into it then."""
    return not isinstance(getattr(module, "act", None), nn.Identity | None)


def is_pointwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a module is a plain layer that maps the channels of each pixel by one matrix: 1 x 1, in one group."""
    if not isinstance(module, nn.Conv2d) or module.kernel_size != (1, 1) or module.groups != 1:
        return False
    if type(module).forward is not nn.Conv2d.forward and "tuned_name" not in vars(module):
        return False  # another operation on the weight
    return module.stride == (1, 1) and module.padding in ((0, 0), "valid", "same")


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Sets a model to evaluation mode inside the block; its modules get their own modes back, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
