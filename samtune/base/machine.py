"""What this machine has: devices, bf16, memory."""

import ctypes
import logging
import os
from contextlib import suppress
from pathlib import Path

import torch

from samtune.errors import ConfigError

logger = logging.getLogger(__name__)


def pick_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" is the first there is of cuda, mps and cpu.

    Raises:
        ConfigError: an unknown name, or a device that this machine doesn't have.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there.get(name, False):
        present = ", ".join(device for device, here in there.items() if here)
        raise ConfigError(f"device {name!r} is not available. Here there is: auto, {present}.")
    return torch.device(name)


def use_bf16(precision: str, device: str, *, pays_on_cpu: bool = True) -> bool:
    """Says whether to train in bf16: "auto" does where the processor multiplies bf16 natively.

    Args:
        pays_on_cpu: whether the model gains by it on such a CPU; networks of convolutions do not.
    """
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return (
        device == "cpu"
        and pays_on_cpu
        and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    )


def set_threads(threads: int | None) -> None:
    """Sets the number of threads of arithmetic on the CPU, and says so where other work will keep them waiting.

    Sums depend on it in their last bits.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    busy, wanted = os.getloadavg()[0], torch.get_num_threads()
    if wanted > 1 and busy + wanted > 2 * cores():
        logger.warning(
            "other work keeps %.1f of %d cores busy: run.threads=1 may be quicker than the %d of now",
            busy, cores(), wanted,
        )  # fmt: skip


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib(device: torch.device) -> float:
    """Returns the memory of a GPU, or of the machine, in GiB: what it has, not what is free just now."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def forget_peak(device: torch.device) -> float:
    """Starts to measure the peak anew, where the system can, and returns the MiB in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    with suppress(OSError, AttributeError):  # glibc keeps what an earlier phase freed, and it would count as in use
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mib(device)


def peak_mib(device: torch.device) -> float:
    """Returns the most memory since the last `forget_peak`, in MiB: of the GPU if that is the device, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # in bytes on macOS


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that memory is out: of Python, of the GPU, or of torch's allocator on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
