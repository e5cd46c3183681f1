"""Image embeddings on disk, for training and validation that leave the encoder alone: an image is encoded once."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from samtune.base.disk import disk_errors
from samtune.base.tensors import load_tensors, save_tensors
from samtune.errors import CheckpointError
from samtune.models.sam.model import SamModel
from samtune.models.segmenter import Embedded
from samtune.types import Batch


class CachedEncoder(nn.Module):
    """Computes what `model(batch)` does, with the embeddings of known images read from disk.

    An embedding is found by the SHA-256 over base hash, precision, picture and its extent, so another model, size or
    picture never meets it. It is kept in the dtype that the encoder computes.

    Args:
        folder: made if needed; about 130 kB per image for sam_tiny in fp32, 4 MB for the others at 1024 px.
        autocast: dtype of the encoder's forward pass, or None for fp32.
    """

    def __init__(self, model: SamModel, folder: Path, *, base_hash: str, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model, self.folder, self.autocast = model, folder, autocast
        self.salt = f"{base_hash} {autocast}".encode()
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def forward(self, batch: Batch) -> Tensor:
        """Returns what the model does: (B, 1, S/4, S/4) logits, or with classes (B, n, S/4, S/4)."""
        return self.model.answer(self.embed(batch), batch.prompts)

    def embed(self, batch: Batch) -> Embedded:
        """Returns what the model's `embed` does, read from disk or written there."""
        paths = [self._path(batch, item) for item in range(len(batch))]
        if new := [item for item, path in enumerate(paths) if not path.is_file()]:
            pixels = self.model.normalise(batch.images, batch.valid())[new]
            kind = batch.images.device.type
            with torch.no_grad(), torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
                found = self.model.encode(pixels)
            for item, embedding in zip(new, found, strict=True):
                save_tensors(paths[item], {"embedding": embedding}, {})
        embeddings = torch.stack([_read(path) for path in paths])
        return Embedded(embeddings.to(batch.images.device))

    def _path(self, batch: Batch, item: int) -> Path:
        extent = f"{tuple(batch.images.shape[1:])} {batch.sizes_input[item]}".encode()
        digest = hashlib.sha256(self.salt + extent + batch.images[item].cpu().numpy().tobytes())
        return self.folder / f"{digest.hexdigest()}.safetensors"


def _read(path: Path) -> Tensor:
    try:
        return load_tensors(path)["embedding"]
    except (CheckpointError, KeyError) as err:
        raise CheckpointError(f"{path} is no cached embedding ({err}). Delete it; it is computed again.") from err
