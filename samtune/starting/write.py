"""How do settings with reasons become a YAML file that a person can read and change?"""

import sys
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import yaml

from samtune.starting.choose import Setting

WIDTH = 100


def to_yaml(settings: Sequence[Setting], head: Sequence[str]) -> str:
    """Returns the text of a config: `head` as a comment, then each key below the comment with its reason.

    Args:
        settings: keys of one section in a row are written together.
    """
    lines = [f"# {line}".rstrip() for text in head for line in (_wrapped(text, WIDTH - 2) or [""])]
    section = ""
    for setting in _in_sections(settings):
        first, _, key = setting.key.rpartition(".")
        if first and first != section:
            lines.append(f"{first}:")
        section = first
        indent = "  " if first else ""
        lines += [f"{indent}# {line}" for line in _wrapped(setting.why, WIDTH - 2 - len(indent))]
        lines.append(f"{indent}{'# ' * setting.off}{key}: {_value(setting.value)}")
    return "\n".join([*lines, ""])


def _in_sections(settings: Sequence[Setting]) -> list[Setting]:
    """Returns the settings with those of one section together, sections in the order of their first key."""
    order = list(dict.fromkeys(setting.key.partition(".")[0] for setting in settings))
    return sorted(settings, key=lambda setting: order.index(setting.key.partition(".")[0]))


def _wrapped(text: str, width: int) -> list[str]:
    shown = "".join(letter if letter.isprintable() else " " for letter in text)  # names of data may end a comment
    return wrap(shown, width, break_long_words=False, break_on_hyphens=False)


def _value(value: Any) -> str:
    if isinstance(value, float):
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits}e{int(power)}"
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=sys.maxsize)
    return text.removesuffix("\n").removesuffix("\n...")
