"""The server's side of the process that decodes pictures: it starts one, asks it, and ends it."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import IO, Any, cast

import numpy as np

from samtune.serve.gate import ApiError, ending
from samtune.serve.picture import CPU_SECONDS, REQUEST
from samtune.types import ImageArray

_COMMAND = (sys.executable, "-P", "-m", "samtune.serve.picture")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # more of them only take address space


class Decoder:
    """Decodes one picture at a time; `interrupt` and `close` may come from another thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._decoding = self._closed = False

    def start(self) -> None:
        """Starts the process, unless it runs; the first request needs not wait for it then."""
        if self._closed or (self._process is not None and self._process.poll() is None):
            return
        self._discard()
        process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=1 << 20,  # bytes, where it can be set: fewer turns for many pixels
            stderr=subprocess.DEVNULL,  # libraries write there what is in a client's file
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._process = process
        if self._closed:  # meanwhile
            process.kill()
        if not _out(process).readline():
            raise RuntimeError(f"the process that decodes pictures ended at its start with {process.wait()}")

    def decode(self, data: bytes, *, max_pixels: int) -> tuple[ImageArray, list[str]]:
        """Decodes a file in the process.

        Returns:
            (H, W, 3) uint8 RGB, and what was done to get it.

        Raises:
            ApiError: the picture can't be used, as `samtune.serve.picture.decode` says; 422 when it takes too long.
            MemoryError: it does not fit into memory.
        """
        self.start()
        process = self._process
        if process is None:
            raise ending()
        self._decoding = True
        try:
            return _ask(process, data, max_pixels)
        except (EOFError, BrokenPipeError) as err:
            raise (ending() if self._closed else _ended(process.wait())) from err
        finally:
            self._decoding = False

    def interrupt(self) -> None:
        """Ends what is being decoded; the next picture gets a new process."""
        if self._decoding and self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Ends the process for good."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _discard(self) -> None:
        if self._process is not None:
            with suppress(BrokenPipeError), self._process:  # closes its pipes
                self._process.kill()
            self._process = None


def _ask(process: subprocess.Popen[bytes], data: bytes, max_pixels: int) -> tuple[ImageArray, list[str]]:
    requests, answers = cast(IO[bytes], process.stdin), _out(process)
    requests.write(REQUEST.pack(len(data), max_pixels))
    requests.write(data)
    requests.flush()
    line = answers.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    told: dict[str, Any] = json.loads(line)
    if "refused" in told:
        status, code, message = told["refused"]
        raise ApiError(status, code, message, field="image")
    if "memory" in told:
        raise MemoryError
    pixels = np.empty(told["shape"], np.uint8)
    if answers.readinto(pixels.data.cast("B")) != pixels.nbytes:  # type: ignore[attr-defined]
        raise EOFError
    return pixels, told["warnings"]


def _ended(code: int) -> Exception:
    """Says why a picture ended the process: no memory was left, its time was over, or a library crashed."""
    if code == -signal.SIGKILL:
        return MemoryError()
    if code == -signal.SIGPROF:
        message = f"Decoding it takes over {CPU_SECONDS} seconds. Export it again, or send a smaller picture."
        return ApiError(422, "costly_image", message, field="image")
    return ApiError(422, "corrupt_image", "The file is damaged or cut off. Export it again.", field="image")


def _out(process: subprocess.Popen[bytes]) -> IO[bytes]:
    return cast(IO[bytes], process.stdout)
