"""Bad checkpoints: every reader refuses every one with a `CheckpointError` of code 4, and nothing in it is executed."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy
from descriptions import mask_description
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from samtune.base.tensors import DATA_HASH, HEADER_HASH, read_metadata, save_tensors, state_hash
from samtune.errors import CheckpointError
from samtune.files.audit import AuditReport, audit_files, diff_files, inspect_file
from samtune.files.delta import apply_delta, save_delta, undo_delta
from samtune.files.export.pth import export_pth
from samtune.files.merged import save_merged
from samtune.models.sam.specs import VITS
from samtune.models.table import MODELS
from samtune.models.weights import load_weights
from samtune.scoring.file import load_scores, save_scores
from samtune.selection import Selection, load_selection, save_selection
from samtune.tasks.masks.predict import Predictor
from samtune.tasks.masks.service import MaskService
from samtune.tasks.table import describe_file
from samtune.types import Scores

State = dict[str, Tensor]
TUNED = "image_encoder.blocks.0.mlp.lin1.weight"
OTHER = "image_encoder.neck.0.weight"


@dataclass(frozen=True)
class Run:
    """What a run of the toy leaves, its base, and a place to write to."""

    base: Path
    merged: Path
    delta: Path
    selection: Path
    scores: Path
    out: Path

    @property
    def executed(self) -> Path:
        """What code in a file would write."""
        return self.out / "executed"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("run")
    names = ("base", "merged", "delta", "selection", "scores")
    run = Run(*(folder / f"{name}.safetensors" for name in names), folder / "out")
    run.out.mkdir()
    model = toy.toy_model()
    base = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
    chosen = Selection({TUNED: torch.arange(0, base[TUNED].numel(), 7)}, (), {"base_hash": state_hash(base)})
    with torch.no_grad():
        model.net.get_parameter(TUNED).view(-1)[chosen.entries[TUNED]] += 1
    info = mask_description(model="toy", image_size=toy.SIZE, base_hash=state_hash(base))
    save_tensors(run.base, base, {})
    save_merged(run.merged, model, info)
    save_delta(run.delta, base=base, merged=model.net.state_dict(), selection=chosen, metadata=info.to_metadata())
    save_selection(chosen, run.selection, shapes)
    save_scores(Scores({TUNED: base[TUNED]}, 1, 0, "", None, "batch", "", ""), run.scores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "toy", MODELS["sam_tiny"])
        patch.setitem(VITS, "toy", toy.SPEC)
        yield run


# --- the bad files, each made from the run's merged file


def changed(source: Path, path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(source.read_bytes())
    change(content)
    path.write_bytes(content)


def start(content: bytearray) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def stored(path: Path) -> dict[str, str]:
    """Everything in the metadata, as the library reads it."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def flip_data(content: bytearray) -> None:
    content[start(content) + 1000] ^= 64


def flip_last(content: bytearray) -> None:
    content[-1] ^= 1


def flip_header(content: bytearray) -> None:
    content[start(content) // 2] ^= 1


def cut_header(content: bytearray) -> None:
    del content[start(content) // 2 :]


def cut_data(content: bytearray) -> None:
    del content[-100:]


def write_zip(run: Run, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/read.me", "no weights")


def saved(change: Callable[[State], State]) -> Callable[[Run, Path], None]:
    """The merged file with other tensors, and hashes that are right."""
    return lambda run, path: save_tensors(path, change(load_file(run.merged)), read_metadata(run.merged))


def pickled(change: Callable[[State], object]) -> Callable[[Run, Path], None]:
    """A `.pth` of the merged weights, changed."""
    return lambda run, path: torch.save(change(load_file(run.merged)), path)


def copied(change: Callable[[bytearray], None]) -> Callable[[Run, Path], None]:
    """The merged file with other bytes."""
    return lambda run, path: changed(run.merged, path, change)


def put(value: Callable[[Tensor], Tensor]) -> Callable[[State], State]:
    return lambda state: state | {OTHER: value(state[OTHER])}


def renamed(state: State) -> State:
    return {("other.weight" if name == OTHER else name): tensor for name, tensor in state.items()}


def without(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != OTHER}


class Evil:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def flip_pth(run: Run, path: Path) -> None:
    pickled(lambda state: state)(run, path)
    changed(path, path, lambda content: content.__setitem__(len(content) // 2, content[len(content) // 2] ^ 1))


FILES: dict[str, tuple[str, Callable[[Run, Path], object], str]] = {
    "flipped byte of the data": ("b.safetensors", copied(flip_data), "is damaged: its tensors differ .* SHA-256"),
    "flipped byte of the header": ("b.safetensors", copied(flip_header), "is damaged"),
    "truncated header": ("b.safetensors", copied(cut_header), "is damaged or no safetensors file"),
    "truncated data": ("b.safetensors", copied(cut_data), "is damaged or no safetensors file"),
    "zero bytes": ("b.safetensors", lambda run, path: path.touch(), "it is empty"),
    "zip": ("b.safetensors", write_zip, "by its content it is an archive"),
    "text": ("b.safetensors", lambda run, path: path.write_text("hello " * 99), "is damaged or no safetensors file"),
    "folder": ("b.safetensors", lambda run, path: path.mkdir(), "is a folder, and a file is needed"),
    "dangling link": ("b.safetensors", lambda run, path: path.symlink_to("nowhere"), "is a link to nowhere, which"),
    "pth as safetensors": ("b.safetensors", pickled(lambda state: state), "the .pth files of PyTorch are: name it so"),
    "safetensors as pth": ("b.pth", copied(lambda content: None), "is a safetensors file: name it .safetensors"),
    "flipped byte of a pth": ("b.pth", flip_pth, r"the checksum of b/data/\d+ in it is wrong"),
    "empty pth": ("b.pth", lambda run, path: path.touch(), "it is empty"),
    "evil pickle": ("b.pth", lambda run, path: torch.save({"a": Evil(run.executed)}, path), "would execute code"),
    "empty dict": ("b.pth", pickled(lambda state: {}), r"holds no state dict \(name -> tensor\)"),
    "sparse": ("b.pth", pickled(put(lambda t: t[:, :, 0, 0].to_sparse())), f"{OTHER}: float32, sparse_coo"),
    "meta": ("b.pth", pickled(put(lambda t: t.to("meta"))), rf"{OTHER}: without values \(meta\)"),
}
TENSORS: dict[str, tuple[str, Callable[[Run, Path], object], str]] = {
    "wrong keys": ("b.safetensors", saved(renamed), rf"1 missing \({OTHER}\), 1 unknown \(other.weight\)"),
    "missing keys": ("b.safetensors", saved(without), rf"1 missing \({OTHER}\)"),
    "wrong shape": ("b.safetensors", saved(put(lambda t: t[:3].clone())), "1 of another shape"),
    "int8": ("b.safetensors", saved(put(lambda t: t.to(torch.int8))), f"{OTHER}: int8.*Allowed .*float32, .*bfloat16"),
    "complex64": ("b.safetensors", saved(put(lambda t: t.to(torch.complex64))), f"{OTHER}: complex64"),
    "fp8": ("b.safetensors", saved(put(lambda t: t.to(torch.float8_e4m3fn))), f"{OTHER}: float8_e4m3fn"),
    "int64": ("b.safetensors", saved(put(Tensor.long)), "1 of another type .*file int64, model float32"),
    "NaN": ("b.safetensors", saved(put(lambda t: t / 0)), rf"NaN or infinity in 1 tensors \({OTHER}\)"),
}
BAD = FILES | TENSORS

READERS: dict[str, Callable[[Run, Path], object]] = {
    "predict": lambda run, path: Predictor.from_file(path),
    "serve": lambda run, path: (describe_file(path), MaskService.from_file(path, device="cpu")),
    "model.checkpoint": lambda run, path: load_weights(toy.toy_model(), path),
    "apply to": lambda run, path: apply_delta(path, run.delta, run.out / "o"),
    "apply": lambda run, path: apply_delta(run.base, path, run.out / "o"),
    "undo in": lambda run, path: undo_delta(path, run.delta, run.out / "o"),
    "undo": lambda run, path: undo_delta(run.merged, path, run.out / "o"),
    "audit": lambda run, path: audit_files(run.base, path, run.selection),
    "audit of": lambda run, path: audit_files(path, run.merged, run.selection),
    "select.file": lambda run, path: load_selection(path),
    "score.file": lambda run, path: load_scores(path),
    "diff": lambda run, path: diff_files(run.merged, path),
    "inspect": lambda run, path: inspect_file(path),
    "export": lambda run, path: export_pth(path, run.out / "o"),
}
EXACT = ("model.checkpoint", "apply to", "audit of")  # the others may stop at something else that is wrong


def problem(reader: str, run: Run, path: Path, words: str) -> str | None:
    """Returns what is wrong with how a reader refuses a file; None where all is well."""
    try:
        found = READERS[reader](run, path)
    except CheckpointError as err:
        text = str(err)
        named = str(path) in text and (reader not in EXACT or re.search(words, text))
        return None if named and "weights_only" not in text and "()" not in text and err.exit_code == 4 else text
    except Exception as err:
        return f"a bug: {err!r}"
    shown = isinstance(found, AuditReport) and not found.ok and found.lines[0].startswith("the files have different")
    return None if shown else f"taken: {found}"


@pytest.mark.parametrize("bad", BAD)
def test_no_reader_takes_a_bad_checkpoint(bad: str, files: Run, tmp_path: Path) -> None:
    name, write, words = BAD[bad]
    path = tmp_path / name
    write(files, path)
    readers = [reader for reader in READERS if reader != "inspect" or bad in FILES]  # which shows what tensors are
    found = {reader: wrong for reader in readers if (wrong := problem(reader, files, path, words))}
    assert found == {}
    assert not files.executed.exists() and list(files.out.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "key", "shown"), [("int8", "types", "float32, int8"), ("NaN", "NaN or infinity in", f"1 tensors: {OTHER}")]
)
def test_inspect_shows_tensors_that_no_model_takes(bad: str, key: str, shown: str, files: Run, tmp_path: Path) -> None:
    BAD[bad][1](files, tmp_path / "b.safetensors")
    assert inspect_file(tmp_path / "b.safetensors")[key] == shown
    assert "NaN or infinity in" not in inspect_file(files.merged)


@pytest.mark.parametrize("reader", ["apply to", "undo in", "audit of"])
def test_weights_of_another_run_are_refused_by_their_hash(reader: str, files: Run, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    saved(put(lambda t: t + 1))(files, path)
    with pytest.raises(CheckpointError, match=r"belongs to another .*b\.safetensors \(hash \w{12}, expected \w{12}\)"):
        READERS[reader](files, path)


OWN = {"base": "apply to", "merged": "predict", "delta": "apply", "selection": "select.file", "scores": "score.file"}


@pytest.mark.parametrize("kind", OWN)
def test_every_kind_of_file_proves_its_content(kind: str, files: Run, tmp_path: Path) -> None:
    path, whole = tmp_path / f"{kind}.safetensors", getattr(files, kind)
    assert {DATA_HASH, HEADER_HASH} <= stored(whole).keys()
    for damage in (flip_last, flip_header, cut_header, cut_data):
        changed(whole, path, damage)
        for reader in (OWN[kind], "inspect"):
            with pytest.raises(CheckpointError, match=rf"{kind}\.safetensors is damaged"):
                READERS[reader](files, path)
    path.write_bytes(whole.read_bytes())
    assert READERS["inspect"](files, path)
