from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from samtune import errors
from samtune.cli import train
from samtune.data.verify import VerifyReport
from samtune.tasks.evaluate import Evaluation
from samtune.tasks.masks.report import Report, Row
from samtune.tasks.predict import Prediction

Run = Callable[..., tuple[int, str, str]]
Stub = Callable[..., None]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """Replaces a module of the package by one with the given members."""

    def stub(name: str, **members: Any) -> None:
        module = ModuleType(f"samtune.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, f"samtune.{name}", module)
        parent, _, short = f"samtune.{name}".rpartition(".")
        monkeypatch.setattr(import_module(parent), short, module, raising=False)

    return stub


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("data: {dir: pictures}\n")
    return path


def report_of(dice: float, iou: float) -> Report:
    rows = [Row(name, dice, iou, precision=1.0, recall=1.0, truth_px=9, pred_px=9, extra={}) for name in "abc"]
    return Report(rows=tuple(rows), split="test", definition={"mDice": "Mean Dice.", "ci95": "Bootstrap."})


def test_help_lists_every_command_and_is_quick() -> None:
    start = time.perf_counter()
    code = "import sys, samtune.cli.main as c\ntry: c.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert time.perf_counter() - start < 1.5  # 0.15 s on an idle machine; the promise is 0.5 s
    names = "finetune select evaluate predict serve apply undo export inspect diff audit data"
    assert all(f" {name} " in done.stdout for name in names.split())


def test_finetune_prints_before_after_and_last_the_folder(run: Run, stub: Stub, config: Path) -> None:
    seen: dict[str, Any] = {}

    def finetune(settings: Any, **options: Any) -> Any:
        seen.update(options, settings=settings)
        return SimpleNamespace(run_dir=Path("runs/x"), report=report_of(0.8765, 0.7), before=report_of(0.5, 0.25))

    stub("run.recipe", finetune=finetune)
    code, out, err = run(
        "finetune", "--config", config, "train.lr=1e-4", "--run-dir", "here", "--overwrite", "run.seed=3"
    )
    assert (code, err) == (0, "")
    assert (seen["settings"].train.lr, seen["settings"].run.seed) == (1e-4, 3)
    assert (seen["run_dir"], seen["overwrite"]) == (Path("here"), True)
    assert seen["command"]
    lines = out.splitlines()
    assert lines[0] == "test, 3 images"
    assert lines[2].split() == [
        "mDice",
        "0.5000",
        "0.8765",
        "0.8765",
        "to",
        "0.8765",
        "+0.3765",
        "+0.3765",
        "to",
        "+0.3765",
    ]
    assert lines[3].split()[:3] == ["mIoU", "0.2500", "0.7000"]
    assert lines[4:6] == ["mDice: Mean Dice.", "ci95: Bootstrap."]
    assert lines[-1] == "runs/x"


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/env/site-packages/samtune/__main__.py", "samtune finetune --config 'my job.yaml'"),
        ("/env/bin/samtune", "samtune finetune --config 'my job.yaml'"),
        ("/home/finetune_sam.py", "python scripts/finetune_sam.py finetune --config 'my job.yaml'"),
    ],
)
def test_the_command_to_repeat(monkeypatch: pytest.MonkeyPatch, program: str, shown: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, "finetune", "--config", "my job.yaml"])
    assert train._command_line() == shown


@pytest.mark.parametrize("given", [["--run-dir", "here", "--overwrite"], ["--run-dir=here"]])
def test_the_command_to_repeat_does_not_name_the_used_folder(monkeypatch: pytest.MonkeyPatch, given: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/bin/samtune", "finetune", "--config", "a.yaml", *given, "run.seed=3"])
    assert train._command_line() == "samtune finetune --config a.yaml run.seed=3"


def test_print_config_runs_nothing(run: Run, stub: Stub, config: Path) -> None:
    stub("run.recipe")
    code, out, _ = run("finetune", "--config", config, "--print-config", "train.lr=0.5")
    assert code == 0
    assert "  lr: 0.5\n" in out
    assert out.startswith("task: segmentation\n")


def test_dry_run_and_select(run: Run, stub: Stub, config: Path) -> None:
    stub("run.dry", dry_run=lambda settings: "2 steps")
    stub("run.recipe", select_only=lambda settings, **_: Path("runs/s"))
    assert run("finetune", "--config", config, "--dry-run") == (0, "2 steps\n", "")
    assert run("select", "--config", config) == (0, "runs/s\n", "")


def test_evaluate(run: Run, stub: Stub, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def evaluate_file(request: Evaluation) -> Report:
        seen.update(vars(request))
        return report_of(0.5, 0.25)

    stub("tasks.table", task_of_file=lambda path: SimpleNamespace(evaluate_file=evaluate_file))
    files = ("--checkpoint", tmp_path / "m.safetensors", "--data", tmp_path)
    code, out, _ = run("evaluate", *files, "--metrics", "hd95", "--metrics", "mae", "--out", "o", "--split", "val")
    assert code == 0
    assert seen["metrics"] == ("hd95", "mae")
    assert (seen["split"], seen["out"], seen["data"]) == ("val", Path("o"), tmp_path)
    assert out.splitlines()[2].split() == ["mDice", "0.5000", "0.5000", "to", "0.5000"]
    code, _, err = run("evaluate", *files, "--split", "tset")
    assert (code, err) == (2, "error: --split 'tset' is unknown. Known: auto, all, train, val, test.\n")


def test_predict(run: Run, stub: Stub, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def predict_files(request: Prediction) -> str:
        seen.update(vars(request))
        return "2 masks in o"

    stub("tasks.table", task_of_file=lambda path: SimpleNamespace(predict_files=predict_files))
    command = ("predict", "--checkpoint", "m", tmp_path / "a", tmp_path / "b", "--out", "o")
    code, out, _ = run(*command, "--box", "1,2,3.5,4", "--point", "5,6", "--point", "7,8", "--overlay")
    assert (code, out) == (0, "2 masks in o\n")
    assert seen["boxes_xyxy"] == [(1, 2, 3.5, 4)]
    assert seen["points_xy"] == [(5, 6), (7, 8)]
    assert seen["paths"] == [tmp_path / "a", tmp_path / "b"]
    run(*command)
    assert (seen["boxes_xyxy"], seen["points_xy"], seen["overlay"], seen["tiles"]) == ([], [], False, None)
    for text, sides in (("512", (512, 128)), ("512,96", (512, 96))):
        assert run(*command, "--tiles", text)[0] == 0 and seen["tiles"] == sides
    tiles = [("--tiles", text) for text in ("63", "512,257", "512,0", "512x512", "-512", "512,", "5000", "9" * 5000)]
    for wrong in (("--box", "1,2,3"), ("--point", "x,y"), ("--device", "gpu"), *tiles):
        code, _, err = run(*command, *wrong)
        assert code == 2
        assert wrong[1] in err


def test_serve(run: Run, stub: Stub) -> None:
    seen: dict[str, Any] = {}
    stub("serve.server", run_server=lambda checkpoint, **options: seen.update(options))
    assert run("serve", "--checkpoint", "m", "--port", "8123")[0] == 0
    assert seen == {"host": "127.0.0.1", "port": 8123, "device": "auto", "insecure": False}
    assert run("serve", "--checkpoint", "m", "--host", "0.0.0.0", "--insecure")[0] == 0
    assert (seen["host"], seen["insecure"]) == ("0.0.0.0", True)


def test_the_file_commands(run: Run, stub: Stub) -> None:
    calls: list[tuple[Any, ...]] = []
    row = SimpleNamespace(name="neck.0.weight", changed=3, total=10, max_abs=0.5)
    stub("files.delta", apply_delta=lambda *a: calls.append(a), undo_delta=lambda *a: calls.append(a))
    stub("files.export.pth", export_pth=lambda *a: calls.append(a))
    stub("tasks.table", describe_file=lambda path: SimpleNamespace(input_text=lambda: "it takes RGB images"))
    checked = {"s": SimpleNamespace(ok=True, lines=["checked"]), "wrong": SimpleNamespace(ok=False, lines=["checked"])}
    stub(
        "files.audit",
        inspect_file=lambda path: {"model": "sam_tiny", "tensors": 12},
        diff_files=lambda a, b: [row] if Path(b).name == "b" else [],
        audit_files=lambda base, merged, selection: checked[selection.name],
    )
    assert run("apply", "base", "--delta", "d", "--out", "o") == (0, "o\n", "")
    assert run("undo", "merged", "--delta", "d", "--out", "o") == (0, "o\n", "")
    assert run("export", "merged", "--format", "pth", "--out", "o.pth") == (0, "o.pth\n", "it takes RGB images\n")
    assert [[Path(x).name for x in call] for call in calls] == [
        ["base", "d", "o"],
        ["merged", "d", "o"],
        ["merged", "o.pth"],
    ]
    assert "--format 'onnx' is unknown" in run("export", "merged", "--format", "onnx", "--out", "o")[2]
    assert run("inspect", "f")[1].split() == ["key", "value", "model", "sam_tiny", "tensors", "12"]
    assert run("diff", "a", "b")[1].splitlines()[1].split() == ["neck.0.weight", "3", "10", "0.5"]
    assert run("diff", "a", "a")[1] == "no differences\n"
    assert run("audit", "a", "b", "s") == (0, "checked\n", "")
    assert run("audit", "a", "b", "wrong") == (4, "checked\n", "")


def test_a_base_is_a_file_or_the_name_of_a_model(
    run: Run, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []
    report = SimpleNamespace(ok=True, lines=())
    stub("files.delta", apply_delta=lambda *a: calls.append(a))
    stub("files.audit", diff_files=lambda *a: calls.append(a) or [], audit_files=lambda *a: calls.append(a) or report)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.pth").touch()
    for name, given in (("sam_tiny", "sam_tiny"), ("base.pth", tmp_path / "base.pth")):
        calls.clear()
        run("apply", name, "--delta", "d", "--out", "o")
        run("diff", name, name)
        run("audit", name, "m", "s")
        assert [call[0] for call in calls] == [given] * 3
        assert calls[1] == (given, given)


def test_data_verify_and_fetch(run: Run, stub: Stub) -> None:
    reports = {"good": ((), ("a.jpg: black",)), "bad": (("b.jpg: truncated", "c.jpg: no mask"), ())}

    def verify(folder: Path, *, name: str | None) -> VerifyReport:
        return VerifyReport(*reports[folder.name])

    stub("tasks.table", task_of_data=lambda folder, name: SimpleNamespace(verify=verify))
    stub("data.fetch", fetch=lambda name, folder: folder)
    assert run("data", "verify", "good")[:2] == (0, "warning: a.jpg: black\ngood: no errors, 1 warning(s)\n")
    code, _, err = run("data", "verify", "bad")
    assert (code, err) == (3, "error: bad has 2 problem(s):\nb.jpg: truncated\nc.jpg: no mask\n")
    assert run("data", "fetch", "kvasir-seg") == (0, "data/kvasir-seg\n", "")


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (errors.ConfigError("bad key"), 2, "error: bad key\n"),
        (errors.DataError("no [masks]"), 3, "error: no [masks]\n"),
        (errors.CheckpointError("damaged"), 4, "error: damaged\n"),
        (errors.NonFiniteError("NaN"), 5, "error: NaN\n"),
        (errors.OutOfMemoryError("too big"), 6, "error: too big\n"),
        (errors.DiskError("full"), 7, "error: full\n"),
        (errors.RunFolderError("used"), 8, "error: used\n"),
        (MemoryError(), 6, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 6, "error: out of memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 6, "Lower data.workers"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), 6, "a process that reads images was killed"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.bin"), 7, "x.bin: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 7, "runs: Permission denied"),
        (RuntimeError("shapes differ"), 1, "error: RuntimeError: shapes differ\nThis is a bug in samtune."),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "This is a bug in samtune."),
    ],
)
def test_every_error_has_its_code_and_no_traceback(
    run: Run, stub: Stub, config: Path, error: Exception, code: int, expected: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    stub("run.recipe", finetune=fail)
    result, _, err = run("finetune", "--config", config)
    assert result == code
    assert expected in err
    assert "Traceback" not in err
    for place in (("--debug", "finetune"), ("finetune", "--debug")):
        result, _, err = run(*place, "--config", config)
        assert result == code
        assert "Traceback" in err


def test_torch_out_of_memory_is_code_6(run: Run, stub: Stub, config: Path) -> None:
    import torch

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    stub("run.recipe", finetune=fail)
    code, _, err = run("finetune", "--config", config)
    assert code == 6
    assert "Lower train.batch" in err


def test_ctrl_c_is_130(run: Run, stub: Stub, config: Path) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    stub("run.recipe", finetune=stop)
    assert run("finetune", "--config", config)[0] == 130


def test_sigterm_is_143() -> None:
    code = (
        "import os, signal, time, samtune.cli.main as c\n"
        "c.console.setup_logging = lambda **_: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(5))\n"
        "c.main(['data', 'fetch', 'x'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 143


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("finetun",), "Did you mean 'finetune'?"),
        (("finetune",), "no --config. Give one, such as polyp.yaml"),
        (("finetune", "--resume", "auto"), "no --config. Give one"),
        (("finetune", "--config", "polyp.yaml", "--resume", "x", "--overwrite"), "give one of them"),
        (("finetune", "--resume", "x", "--run-dir", "y"), "leave --run-dir out"),
        (("finetune", "--config"), "requires an argument"),
        (("evaluate", "--checkpoint", "x"), "Missing option '--data'"),
        (("serve", "--checkpoint", "x", "--port", "99999"), "65535"),
        (("finetune", "--config", "nope.yaml"), "config file 'nope.yaml' does not exist."),
    ],
)
def test_a_wrong_command_line_is_code_2(run: Run, arguments: tuple[str, ...], expected: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert expected in err


@pytest.mark.parametrize("script", ["finetune_sam", "evaluate", "predict", "serve"])
def test_the_scripts_are_the_commands(script: str) -> None:
    path = Path(__file__).resolve().parents[3] / "scripts" / f"{script}.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Usage: samtune {script.removesuffix('_sam')} [OPTIONS]" in done.stdout
