"""How does a model take a batch whose items are prompted in several ways? Each kind by itself, as it is asked later."""

import torch
from torch import Tensor, nn

from samtune.types import Batch, Prompts


class ByPrompt(nn.Module):
    """A model that answers the items of a batch by their kind of prompt, in one pass for each kind.

    What stands in for a missing box or click would be a prompt of its own, which nobody gives later.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """Returns the (B, 1, h, w) logits of the items, in their order."""
        places, parts = zip(*by_prompt(batch), strict=True)
        if len(parts) == 1:
            answer: Tensor = self.model(parts[0])  # not the batch, which may have NaN for kinds of items that it lost
            return answer
        return torch.cat([self.model(part) for part in parts])[torch.cat(places).argsort()]


def by_prompt(batch: Batch) -> list[tuple[Tensor, Batch]]:
    """Returns the items by their kind of prompt: their places, (n,) int64, and them as a batch of one kind."""
    if batch.prompts is None:
        return [(torch.arange(len(batch)), batch)]
    boxes, points, labels = batch.prompts.boxes_input, batch.prompts.points_input, batch.prompts.labels
    without = torch.zeros(len(batch), dtype=torch.bool, device=batch.images.device)
    boxed, clicked = (without if t is None else ~t.flatten(1).isnan().any(dim=1) for t in (boxes, points))
    found = []
    for with_box, with_points in ((False, False), (True, False), (False, True), (True, True)):
        places = ((boxed == with_box) & (clicked == with_points)).nonzero()[:, 0]
        if len(places) == len(batch) and (boxes is None) != with_box and (points is None) != with_points:
            return [(places, batch)]
        if len(places):
            own = (boxes if with_box else None, *((points, labels) if with_points else (None, None)))
            prompts = Prompts(*(None if t is None else t[places] for t in own))
            found.append((places, _at(batch, places, prompts if with_box or with_points else None)))
    return found


def _at(batch: Batch, places: Tensor, prompts: Prompts | None) -> Batch:
    chosen = places.tolist()
    sizes, names = tuple(batch.sizes_input[i] for i in chosen), tuple(batch.names[i] for i in chosen)
    truths = tuple(batch.truths[i] for i in chosen) if batch.truths else ()
    return Batch(batch.images[places], batch.masks[places], sizes, names, truths, prompts)
