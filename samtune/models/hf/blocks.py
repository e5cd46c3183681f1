"""What all networks of transformers share: blocks that recompute, attention that returns a pair, a folder of files."""

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from samtune.errors import ConfigError
from samtune.models.backbone import Backbone


class HfBackbone(Backbone):
    """A network of transformers."""

    net: Any
    keeps_folder = True
    packages = ("transformers",)

    def recompute_blocks(self, on: bool) -> None:
        """Tells the blocks of transformers, which recompute while they train.

        Raises:
            ConfigError: blocks of another library.
        """
        for name in self.block_modules():
            block: Any = self.net.get_submodule(name)
            if not hasattr(block, "gradient_checkpointing"):
                if on:
                    raise ConfigError(f"train.checkpointing is true, but the blocks of {self.name} can't recompute.")
                continue
            block.gradient_checkpointing = on
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def sublayers(self) -> dict[str, dict[str, int]]:
        """As of the base; of an attention, whose output here may be a pair, its last linear map."""
        found = super().sublayers()
        if attention := found.get("attention"):
            proj = [name for name in self.linears()["proj"] if name.rpartition(".")[0] in attention]
            found["attention"] = {name: attention[name.rpartition(".")[0]] for name in proj}
        return found
