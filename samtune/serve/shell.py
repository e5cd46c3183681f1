"""The page: one shell, filled by the template of a service, and a policy that lets exactly its own code run."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from importlib.resources.abc import Traversable

from jinja2 import DictLoader, Environment, StrictUndefined

_SHELL = files("samtune.serve") / "page" / "shell.html"


def render_page(part: Traversable) -> tuple[str, str]:
    """Renders the page of a service.

    Args:
        part: a template that extends `shell.html`.

    Returns:
        The HTML, and its Content-Security-Policy.
    """
    sources = {"shell.html": _SHELL.read_text(encoding="utf-8"), "part.html": part.read_text(encoding="utf-8")}
    environment = Environment(loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined)
    text = environment.get_template("part.html").render()
    policy = (
        f"default-src 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str, tag: str) -> str:
    """Returns how a policy names what is inside the one element of a kind."""
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
