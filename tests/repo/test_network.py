"""The guard against network access works, and lets loopback through."""

from __future__ import annotations

import socket
import threading

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "example.org"])
def test_other_machines_are_out_of_reach(host: str) -> None:
    with pytest.raises(OSError, match="a test tried to"):
        socket.create_connection((host, 80), timeout=1)


def test_a_plain_socket_is_stopped_too() -> None:
    with socket.socket() as client, pytest.raises(OSError, match=r"a test tried to reach 192\.0\.2\.1"):
        client.connect(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as sender, pytest.raises(OSError, match="a test tried to reach"):
        sender.sendto(b"x", ("192.0.2.1", 53))


def test_loopback_works() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"))
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            assert client.recv(5) == b"hello"
        thread.join()
