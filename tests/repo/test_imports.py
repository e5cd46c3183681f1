"""A folder imports only folders above it, however the import is written, and every module can be imported."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "samtune"

# From the top to the bottom: a folder imports itself and what stands before it. The root's own modules come first.
FOLDERS = [
    "base", "config", "metrics", "report", "models", "scoring", "selection", "tuning", "insight", "files", "data",
    "tasks", "starting", "run", "serve", "sweep", "compare", "cli",
]  # fmt: skip
ROOT_MODULES = {"errors", "types", "console"}
# The doors that others come in by: they name what is behind them, and nothing inside imports them.
DOORS = {"__init__", "__main__", "predict"}
# Folders whose parts must not know each other: a new one beside them changes none of them.
APART = {("models", name) for name in ("sam", "timm", "hf")} | {
    ("tasks", name) for name in ("masks", "classes", "semantic", "instances")
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name if name == "__init__" else name.removesuffix(".__init__"), path


def place(name: str) -> int:
    """Place of a module in the list, by its folder; -1 for the root's own."""
    folder = name.partition(".")[0]
    if folder in ROOT_MODULES:
        return -1
    assert folder in FOLDERS, f"samtune/{folder} is not in the list of {Path(__file__).name}: decide where it stands"
    return FOLDERS.index(folder)


def named(text: str) -> set[str]:
    """What a text names of the package, in any way that an import could use it."""
    found = set()
    tree = ast.parse(text)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import; write samtune.{node.module}"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found |= {node.value.replace(":", ".")} if re.fullmatch(r"samtune(\.\w+)+(:\w+)?", node.value) else set()
    return {name.removeprefix("samtune.") for name in found if name.startswith("samtune.")}


def wrong(name: str, text: str) -> Iterator[str]:
    """What a module of this name must not import."""
    for other in sorted(named(text)):
        parts, own = other.split("."), name.split(".")
        if parts[0] in DOORS:
            yield f"{name} imports the door {parts[0]}"
        elif place(other) > place(name):
            yield f"{name} imports {other}, which stands below it"
        elif parts[0] == own[0] and tuple(own[:2]) in APART and tuple(parts[:2]) in APART and parts[1] != own[1]:
            yield f"{name} imports {other}: the two must not know each other"
        elif own[0] == "tuning" and parts[0] == "selection" and parts[1:2] != ["selection"]:
            yield f"{name} imports {other}: selectors decide where, tuners decide how"


def test_a_folder_imports_only_folders_above_it() -> None:
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules() if name not in DOORS}
    assert sum(len(named(text)) for text in texts.values()) > 400  # the walk sees imports
    # a table of tasks names its members: they stand in the same folder, below it in the tree
    assert [line for name, text in texts.items() for line in wrong(name, text)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.load", "from samtune.selection import SELECTORS"),
        ("config.load", "def f():\n    import samtune.tasks.table"),
        ("models.table", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from samtune.tuning import attach"),
        ("base.disk", "import_module('samtune.run.recipe')"),
        ("models.table", "BUILD = 'samtune.tasks.masks.task:SegmentationTask'"),
        ("tasks.masks.task", "from samtune.tasks.classes.views import seeded"),
        ("tuning.attach", "from samtune.selection.gps import gps"),
        ("run.fit", "from samtune.predict import Predictor"),
    ],
)
def test_the_walk_sees_every_kind_of_import(name: str, text: str) -> None:
    assert list(wrong(name, text)) != []


def test_importing_one_folder_needs_no_later_one() -> None:
    """Really, not only by the letter: the folders up to `config` load without torch, and nothing loads the cli."""
    for module, absent in (("samtune.config.load", "torch"), ("samtune.run.recipe", "samtune.cli.main")):
        code = f"import sys, {module}; assert {absent!r} not in sys.modules, {absent!r}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module("samtune" if name == "__init__" else f"samtune.{name}")


def test_the_package_itself_is_light() -> None:
    heavy = "{'torch', 'mlflow', 'fastapi', 'albumentations', 'monai', 'cv2'}"
    code = f"import sys, samtune, samtune.cli.main; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_public_names_are_there() -> None:
    import samtune

    assert len(samtune.__all__) > 10
    for name in samtune.__all__:
        assert callable(getattr(samtune, name)), name
    predictor = importlib.import_module("samtune.predict").Predictor
    assert predictor is samtune.Predictor
