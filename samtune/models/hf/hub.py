"""The published weights of a family: the cache of the Hugging Face hub, or the hub itself."""

from contextlib import suppress
from pathlib import Path

from samtune.errors import CheckpointError
from samtune.models.hf.families import Family
from samtune.models.hf.folder import CONFIG, PROCESSORS

HUB_SECONDS = 10
"""How long the hub may take to answer whether it has a file."""
FILES = (CONFIG, *PROCESSORS, "*.safetensors", "model.safetensors.index.json")


def published_folder(family: Family) -> Path:
    """Returns the folder of a family's published weights, downloaded once.

    Raises:
        CheckpointError: it is not in the cache, and there is no network, or the hub refuses; the message says which
            files to put where.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = list(FILES)
    try:
        with suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(family.hub, allow_patterns=patterns, local_files_only=True))
            if any(folder.glob("*.safetensors")):
                return folder
        get_hf_file_metadata(hf_hub_url(family.hub, CONFIG), timeout=HUB_SECONDS)
        return Path(snapshot_download(family.hub, allow_patterns=patterns))
    except Exception as err:  # the client's errors are of the HTTP library that its version uses
        reason = (str(err).strip().splitlines() or ["no details"])[0]
        consent = " It is gated: accept its licence there, then `hf auth login`." if family.gated else ""
        raise CheckpointError(
            f"can't get {family.hub} from the Hugging Face hub ({type(err).__name__}: {reason}).{consent} "
            f"On a machine with network, get config.json, processor_config.json or preprocessor_config.json, and all "
            f"*.safetensors of https://huggingface.co/{family.hub} into a folder; model.checkpoint=FOLDER takes it."
        ) from err
