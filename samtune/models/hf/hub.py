"""The published weights of a family: the cache of the Hugging Face hub, or the hub itself."""

from contextlib import suppress
from pathlib import Path

from samtune.errors import CheckpointError
from samtune.models.hf.families import ALL, FAMILIES, Family, family_named, unknown_architecture
from samtune.models.hf.folder import CONFIG, PROCESSORS, read_json
from samtune.models.weights import RANDOM, not_a_folder

HUB_SECONDS = 10
"""How long the hub may take to answer whether it has a file."""
FILES = (CONFIG, *PROCESSORS, "*.safetensors", "model.safetensors.index.json")


def published_folder(family: Family) -> Path:
    """Returns the folder of a family's published weights; raises as `repository_folder`."""
    return _download(family.hub, list(FILES), gated=family.gated)


def repository_folder(repository: str, name: str) -> Path:
    """Returns the folder of a repository of the family `name`, downloaded once.

    Raises:
        CheckpointError: it is not in the cache, and there is no network, or the hub refuses; the message says which
            files to put where.
    """
    return _download(repository, list(FILES), gated=ALL[name].gated)


def checkpoint_folder(
    name: str, family: Family, checkpoint: str | Path | None, *, configured: bool, instead: str
) -> Path | None:
    """Returns the folder that a checkpoint is, None for random weights and for a file.

    Args:
        configured: whether a config is given, as beside a file it must be.
        instead: how the error ends, on what else is taken.

    Raises:
        CheckpointError: it is no folder; or as `published_folder`.
    """
    if checkpoint == RANDOM:
        return None
    if checkpoint is None:
        return published_folder(family)
    path = Path(checkpoint)
    if path.is_dir():
        return path
    if path.is_file() and configured:
        return None
    raise CheckpointError(
        f"{path} {not_a_folder(path)}: the checkpoint of {name} is a folder of transformers with config.json, "
        f"*.safetensors and {' or '.join(PROCESSORS)}. Get all files of https://huggingface.co/{family.hub} into one"
        f"{instead}."
    )


def family_in(repository: str) -> str:
    """Returns the family of the model in a repository, a key of `ALL`, by its config.json.

    Raises:
        CheckpointError: as `repository_folder`, or another architecture.
    """
    found = read_json(_download(repository, [CONFIG], gated=False) / CONFIG)
    if name := family_named(found.get("model_type")):
        return name
    raise CheckpointError(f"{repository} is {unknown_architecture(found, (), FAMILIES['sam_hf'])}")


def _download(repository: str, patterns: list[str], *, gated: bool) -> Path:
    """Returns the folder of a repository with the files that fit the patterns; `gated` where it is known to be."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

    needed = CONFIG if patterns == [CONFIG] else "*.safetensors"
    try:
        with suppress(LocalEntryNotFoundError):
            folder = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
            if any(folder.glob(needed)):
                return folder
        get_hf_file_metadata(hf_hub_url(repository, CONFIG), timeout=HUB_SECONDS)
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as err:  # the client's errors are of the HTTP library that its version uses
        reason = (str(err).strip().splitlines() or ["no details"])[0]
        gated = gated or isinstance(err, GatedRepoError)
        consent = " It is gated: accept its licence there, then `hf auth login`." if gated else ""
        raise CheckpointError(
            f"can't get {repository} from the Hugging Face hub ({type(err).__name__}: {reason}).{consent} "
            f"On a machine with network, get config.json, processor_config.json or preprocessor_config.json, and all "
            f"*.safetensors of https://huggingface.co/{repository} into a folder; model.checkpoint=FOLDER takes it."
        ) from err
