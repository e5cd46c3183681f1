"""Answers over HTTP: a small API around one `Service`, whatever its task, and a page to try it.

`create_app` is the application, `run_server` the process.
"""

from __future__ import annotations

from samtune.serve.app import create_app
from samtune.serve.server import run_server
from samtune.serve.upload import Limits

__all__ = ["Limits", "create_app", "run_server"]
