"""What holds for every test: no network but loopback, one thread, fixed seeds."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from samtune.base import environment

environment.set_defaults()  # before any test module imports mlflow or albumentations
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on CUDA

LOOPBACK = {"localhost", "127.0.0.1", "::1", ""}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that connects, sends or resolves beyond this machine."""

    def guard(name: str) -> None:
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in LOOPBACK:
                raise NetworkForbidden(f"a test tried to reach {address[0]}")
            return real(self, *args)

        monkeypatch.setattr(socket.socket, name, guarded)

    for name in ("connect", "connect_ex", "sendto"):
        guard(name)
    resolve = socket.getaddrinfo

    def local_only(host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and name not in LOOPBACK and name != "0.0.0.0":
            raise NetworkForbidden(f"a test tried to look up {name}")
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)


class NetworkForbidden(OSError):
    """Tests are local: serve what is needed from 127.0.0.1, or from a file."""


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """The same random numbers in every test, whatever ran before."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session", autouse=True)
def few_scenes() -> Iterator[None]:
    """Every run tries prompts on scenes, before and after: two of them show that it does."""
    from samtune.tasks.probe import scenes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "SCENES", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tiny tensors are faster on few threads, and sums don't depend on the machine."""
    import torch

    torch.set_num_threads(1)
