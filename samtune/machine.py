"""What this machine has: devices, bf16, memory."""

from __future__ import annotations

import os

import torch

from samtune.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" is the first there is of cuda, mps and cpu.

    Raises:
        ConfigError: an unknown name, or a device that this machine doesn't have.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, present in there.items() if present)
    if not there.get(name, False):
        present = ", ".join(device for device, here in there.items() if here)
        raise ConfigError(f"device {name!r} is not available. Here there is: auto, {present}.")
    return torch.device(name)


def use_bf16(precision: str, device: str) -> bool:
    """Says whether to train in bf16: "auto" does where the processor multiplies bf16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def peak_mib(device: torch.device) -> float:
    """Returns the largest memory so far in MiB: of the GPU if that is the device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
