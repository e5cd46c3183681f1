"""Which pages does the server show to people, and what may run in them? Nothing of them comes from elsewhere."""

import base64
import hashlib
import re
from importlib.resources import files
from importlib.resources.abc import Traversable

from jinja2 import DictLoader, Environment, StrictUndefined

from samtune.tasks.service import Service

_FOLDER = files("samtune.serve") / "page"
_ADDRESS = re.compile(r"[\w.:\[\]-]{1,255}")


def render_page(part: Traversable) -> tuple[str, str]:
    """Returns the page of a task, whose template extends `shell.html`, and a policy that lets exactly its code run."""
    text = _environment(part=part.read_text(encoding="utf-8")).get_template("part").render()
    own = f"script-src {_hash(text, 'script')}; img-src blob: data:; connect-src 'self'; "
    return text, _policy(text, own)


def render_docs(kind: type[Service], address: str) -> tuple[str, str]:
    """Returns the page that tells how to ask the server from a program, and its policy: it has no code to run.

    Args:
        address: of the server as the client named it, such as "127.0.0.1:8000"; what is none is not shown.
    """
    shown = address if _ADDRESS.fullmatch(address) else "127.0.0.1:8000"
    text = _environment().get_template("docs.html").render(kind=kind, server=f"http://{shown}")
    return text, _policy(text, "img-src data:; ")


def _environment(**parts: str) -> Environment:
    own = {name: (_FOLDER / name).read_text(encoding="utf-8") for name in ("shell.html", "docs.html")}
    return Environment(
        loader=DictLoader(own | parts), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _policy(text: str, own: str) -> str:
    rest = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return f"default-src 'none'; style-src {_hash(text, 'style')}; {own}{rest}"


def _hash(text: str, tag: str) -> str:
    """Returns how a policy names what is inside the one element of a kind."""
    (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
