"""How does a model take a batch whose items are prompted in several ways? Each kind by itself, as it is asked later."""

import torch
from torch import Tensor, nn

from samtune.types import Batch


class ByPrompt(nn.Module):
    """A model that answers the items of a batch by their kind of prompt, in one pass for each kind.

    What stands in for a missing box or click would be a prompt of its own, which nobody gives later.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Returns the (B, 1, h, w) logits of the items, in their order."""
        places, parts = zip(*batch.by_prompt(), strict=True)
        if len(parts) == 1:
            answer: Tensor = self.model(batch)
            return answer
        return torch.cat([self.model(part) for part in parts])[torch.cat(places).argsort()]
