"""How does YAML text become values, each with its line?

Scalars follow YAML 1.2 (core schema), not PyYAML's 1.1: `1e-4` is a number, `yes`, `off` and `12:30` are text, and only
`true` and `false` are bools. A key that occurs twice in one block is noted, not silently overwritten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import yaml

from samtune.config.problems import KeyPath

MOST_VALUES = 5_000  # a few aliases of aliases would make billions
DEEPEST = 30
_TOO_DEEP = f"blocks or lists are nested more than {DEEPEST} deep"


@dataclass(frozen=True)
class YamlText:
    """A document as dicts with text keys, lists and scalars, or None when it is empty.

    `lines` has the line (from 1) of each key and entry of a list by its path, `duplicates` every repeated key in file
    order, with its line.
    """

    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    duplicates: list[tuple[KeyPath, int]] = field(default_factory=list)


def parse_yaml(text: str) -> YamlText:
    """Parses one YAML document without any tag.

    Raises:
        yaml.YAMLError: text that is no YAML, several documents, too many or too deeply nested values, or a block that
            contains itself.
    """
    parsed = _parsed(text)
    return YamlText(deepcopy(parsed.value), dict(parsed.lines), list(parsed.duplicates))


@lru_cache(maxsize=256)  # a sweep reads one file, and the same changes, hundreds of times
def _parsed(text: str) -> YamlText:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        parsed = YamlText(None)
        value = None if node is None else _value(loader, node, (), parsed, frozenset())
        return YamlText(value, parsed.lines, parsed.duplicates)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader with the implicit types of YAML 1.2, which stops at what is nested too deeply."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_CORE = "tag:yaml.org,2002:"
_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    # a longer integer is text, and so never what is expected
    "int": (r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
for _tag, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"(?:{_pattern})\Z"), _first)


def _value(loader: _Loader, node: yaml.Node, path: KeyPath, out: YamlText, parents: frozenset[int]) -> Any:
    if id(node) in parents:
        raise yaml.MarkedYAMLError(problem="a block contains itself", problem_mark=node.start_mark)
    if len(path) > DEEPEST:
        raise yaml.MarkedYAMLError(problem=_TOO_DEEP, problem_mark=node.start_mark)
    if len(out.lines) > MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES:,} values", problem_mark=node.start_mark)
    if node.tag.removeprefix(_CORE) not in {*_SCALARS, "str", "seq", "map"}:
        raise yaml.MarkedYAMLError(problem=f"tag {node.tag!r} is not allowed", problem_mark=node.start_mark)
    parents = parents | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        entries = [((*path, str(i)), entry) for i, entry in enumerate(node.value)]
        out.lines.update({here: entry.start_mark.line + 1 for here, entry in entries})
        return [_value(loader, entry, here, out, parents) for here, entry in entries]
    if not isinstance(node, yaml.MappingNode):
        try:
            return loader.construct_object(node)
        except (ValueError, KeyError):  # of a tag that the user wrote
            text = f"{node.value[:40]!r} is no {node.tag.removeprefix(_CORE)}"
            raise yaml.MarkedYAMLError(problem=text, problem_mark=node.start_mark) from None
    mapping: dict[str, Any] = {}
    for key, line, child in _items(node):
        here = (*path, key)
        if key in mapping:
            out.duplicates.append((here, line))
        out.lines.setdefault(here, line)
        mapping[key] = _value(loader, child, here, out, parents)
    return mapping


def _items(node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    for key, child in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
        yield key.value, key.start_mark.line + 1, child
