"""The house stays in order: sizes of folders, modules and functions, and docstrings of everything public."""

from __future__ import annotations

import ast
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "samtune"
FILES = sorted(PACKAGE.rglob("*.py"))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions() -> Iterator[tuple[str, Function]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines(node: Function) -> int:
    """Lines of a function without its docstring."""
    body = node.body
    text = 0
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        text = (body[0].end_lineno or 0) - body[0].lineno + 1
    return (node.end_lineno or 0) - node.lineno + 1 - text


def test_folders_and_modules_stay_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert len(sizes) > 100
    assert {name: size for name, size in sizes.items() if size > 300} == {}
    assert sum(sizes.values()) <= 37_500
    folders = Counter(path.parent.relative_to(ROOT) for path in FILES)
    assert folders[Path("samtune")] <= 6
    assert {str(folder): count for folder, count in folders.items() if count > 14} == {}


def test_functions_stay_small() -> None:
    sizes = {name: lines(node) for name, node in functions()}
    assert len(sizes) > 800
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    ordered = sorted(sizes.values())
    assert statistics.median(ordered) <= 8
    assert ordered[int(0.9 * len(ordered))] <= 28


def test_functions_have_few_parameters() -> None:
    counts = {}
    for name, node in functions():
        a = node.args
        every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        counts[name] = len([arg for arg in every if arg.arg not in ("self", "cls")])
    assert {name: count for name, count in counts.items() if count > 8} == {}


def public(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """What others may use of a module: itself, its functions and classes, and the methods of these."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    yield str(path.relative_to(ROOT)), tree
    for node in tree.body:
        if not isinstance(node, Function | ast.ClassDef) or node.name.startswith("_"):
            continue
        yield f"{path.relative_to(ROOT)} {node.name}", node
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            inherited = isinstance(node, ast.ClassDef) and bool(node.bases)  # the contract is written at the base
            if isinstance(child, Function) and not child.name.startswith("_") and not inherited:
                yield f"{path.relative_to(ROOT)} {node.name}.{child.name}", child


def test_everything_public_says_what_it_is() -> None:
    every = [item for path in FILES for item in public(path)]
    assert len(every) > 500
    assert [name for name, node in every if not ast.get_docstring(node)] == []  # type: ignore[arg-type]
