"""The process: an address, uvicorn, and an orderly end."""

import ipaddress
import logging
import os
import signal
import socket
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from samtune.base.machine import pick_device
from samtune.errors import ConfigError
from samtune.serve.app import create_app
from samtune.serve.connection import BACKLOG, Connection, most_connections
from samtune.serve.gate import LOOPBACK_HOSTS
from samtune.serve.places import Places
from samtune.serve.upload import Limits
from samtune.tasks.service import Service
from samtune.tasks.table import describe_file, task_of_file

logger = logging.getLogger(__name__)

KEY_VARIABLE = "SAMTUNE_API_KEY"
DRAIN_SECONDS = 15
"""After SIGTERM or Ctrl-C: what is then not answered gets a 503."""
END_SECONDS = 25
"""After the same: the process is there no longer, whatever it computes. Orchestrators often kill after 30."""


def run_server(
    checkpoint: str | Path, *, host: str = "127.0.0.1", port: int = 8000, device: str = "auto", insecure: bool = False
) -> None:
    """Serves a merged file of any task until SIGTERM or Ctrl-C; requests that were accepted are answered first.

    That takes at most `DRAIN_SECONDS`. If the model still computes after `END_SECONDS`, SIGALRM ends the process.

    With `SAMTUNE_API_KEY` set, clients must send that key.

    Args:
        port: 0 takes a free one; the log says which.
        insecure: lets other machines in without a key.

    Raises:
        CheckpointError: the file is missing, damaged or no merged file.
        ConfigError: an unknown device, an impossible key, an address that can't be used or that is open without a key.
    """
    path, key, local = Path(checkpoint), _api_key(), _is_loopback(host)
    if not (local or key or insecure):
        advice = f"Set {KEY_VARIABLE} to a long random key, or allow anyone with --insecure."
        raise ConfigError(f"host {host} lets other machines in. {advice}")
    task, info = task_of_file(path), describe_file(path)  # wrong files fail here, before anything listens
    pick_device(device)
    failures: list[Exception] = []

    def load() -> Service:
        try:
            return task.service.from_file(path, device=device)
        except Exception as err:
            failures.append(err)
            server.should_exit = True
            raise

    connections = most_connections()
    limits = Limits(waiting=min(Limits.waiting, connections // 2))
    hosts = {*LOOPBACK_HOSTS, host} if local else None
    server = _server(create_app(task.service, load, api_key=key, hosts=hosts, limits=limits), connections)
    with _listen(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving %s (%s) on http://%s:%d", info.model, task.name, shown, listener.getsockname()[1])
        server.run(sockets=[listener])
    if failures:
        raise failures[0]


class Server(uvicorn.Server):
    """An event loop whose process ends in bounded time when it is asked to."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        signal.alarm(END_SECONDS)  # by the system: no thread of Python's runs while the interpreter ends
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("ending: what was accepted is answered, for up to %d seconds", DRAIN_SECONDS)
        await super().shutdown(sockets)


def _server(app: FastAPI, connections: int) -> Server:
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # its warnings say what the answers' own lines say
    protocol: Any = partial(Connection, places=Places(connections))
    config = uvicorn.Config(
        app,
        http=protocol,
        backlog=BACKLOG,
        log_config=None,
        access_log=False,  # it would log what clients write into the address
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    return Server(config)


def _api_key() -> str | None:
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return None
    if not (key.isascii() and key.isprintable() and key == key.strip()):
        wrong = f"{KEY_VARIABLE} begins or ends with a space, or holds a character that an HTTP header can't carry."
        raise ConfigError(f"{wrong} Use letters, digits and signs of ASCII.")
    return key


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as err:
        text = f"can't listen on {host} port {port}: {err.strerror}. Choose another --port or --host."
        raise ConfigError(text) from err
    # asyncio sends small answers at once (TCP_NODELAY) only on sockets that name their protocol
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach())


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
