"""How does a command take more options than a function has parameters? Those that belong together as a dataclass."""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, get_type_hints


def grouped(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Spreads the parameter `name` of a command, a dataclass, for typer: each of its fields is an option."""

    def spread(command: Callable[..., None]) -> Callable[..., None]:
        parameters = inspect.signature(command, eval_str=True).parameters
        group: Any = parameters[name].annotation
        hints, options = get_type_hints(group, include_extras=True), fields(group)
        keyword: Any = inspect.Parameter.KEYWORD_ONLY
        own = [inspect.Parameter(f.name, keyword, default=f.default, annotation=hints[f.name]) for f in options]
        shown = [
            new for old in parameters.values() for new in (own if old.name == name else [old.replace(kind=keyword)])
        ]

        @wraps(command)
        def run(**values: Any) -> None:
            values[name] = group(**{f.name: values.pop(f.name) for f in options})
            command(**values)

        run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
        return run

    return spread
