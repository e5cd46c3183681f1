"""Imports go downwards only, as the layers below say, and every module can be imported."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "samtune"

# From the bottom to the top; a package counts with all its modules. A module imports from its own layer or
# from lower ones. A module that is in no layer fails the test: decide where it belongs.
LAYERS = [
    {
        "errors",
        "types",
        "environment",
        "paths",
        "yamltext",
        "download",
        "tensorfile",
        "machine",
        "runfolder",
        "children",
    },
    {"losses", "metrics", "selection.selection", "config_problems", "papers", "console"},
    {"config_sections", "config_segmentation", "config_classification", "config"},
    {"models", "data", "tuning", "selection"},
    {
        "scoring",
        "scorefile",
        "evaluation",
        "tracking",
        "delta",
        "splitfile",
        "overlays",
        "startpoint",
        "embeddings",
        "figures",
    },
    {"mixing", "ema", "class_evaluation", "class_pictures"},
    {"artifacts", "training", "predict", "report", "report_svg", "gallery", "evaluate_file", "analysis"},
    {"stability", "analysis_pictures", "class_predict", "class_evaluate_file"},
    {"selection_report", "tasks"},
    {"job"},
    {"phases", "selecting"},
    {"recipe", "serve", "sweepconfig"},
    {"compare", "compare_runs", "compare_tables", "compare_tasks", "compare_figures"},
    {"sweep_plan", "trial", "sweep", "sweep_local", "sweep_ray"},
    {"cli", "cli_files", "cli_errors", "cli_sweep"},
    {"__main__"},
]
# Two packages of one layer that must not know each other, but for the Selection type between them.
STRANGERS = {"selection", "tuning"}
# What opens the package to others may name everything.
FREE = {"__init__"}
# These look up the selectors by name when a config is checked, never when they are imported.
LATE = {("config_sections", "selection"), ("config_classification", "selection")}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name if name == "__init__" else name.removesuffix(".__init__"), path


def layer(name: str) -> int:
    """Index of the layer of a module: by its own name, else by that of its package."""
    while True:
        found = [index for index, names in enumerate(LAYERS) if name in names]
        if found:
            return found[0]
        if "." not in name:
            raise AssertionError(f"samtune/{name} is in no layer of {Path(__file__).name}")
        name = name.rpartition(".")[0]


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports anywhere, except for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write samtune.{node.module}"
            module = node.module or ""
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    known = {name for name, _ in modules()}
    inside = {name.removeprefix("samtune.") for name in names if name.startswith("samtune.")}
    return {name for name in inside if name in known}


def upward() -> Iterator[str]:
    for name, path in modules():
        if name in FREE:
            continue
        for other in imports(path):
            if (name, other.partition(".")[0]) in LATE:
                continue
            if layer(other) > layer(name):
                yield f"{name} imports {other}, which is above it"
            tops = {name.partition(".")[0], other.partition(".")[0]}
            if tops == STRANGERS and other != "selection.selection":
                yield f"{name} imports {other}: selectors decide where, tuners decide how"


def test_imports_go_downwards_only() -> None:
    assert sum(len(imports(path)) for _, path in modules()) > 20  # the walk sees imports
    assert list(upward()) == []


def test_the_walk_sees_a_late_import() -> None:
    assert "selection" in imports(PACKAGE / "config_sections.py")
    assert layer("selection") > layer("config_sections")


@pytest.mark.parametrize("name", [name for name, _ in modules()])
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module("samtune" if name == "__init__" else f"samtune.{name}")


def test_the_package_itself_is_light() -> None:
    heavy = "{'torch', 'mlflow', 'fastapi', 'albumentations', 'monai', 'cv2'}"
    code = f"import sys, samtune, samtune.cli; found = {heavy} & set(sys.modules); assert not found, found"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_modules_stay_small() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules()}
    assert len(lines) > 20
    assert {name: count for name, count in lines.items() if count > 300} == {}
