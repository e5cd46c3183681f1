"""A config for a data folder, with a sheet of samples beside it: look, choose, write."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import cv2

from samtune.base.disk import disk_errors, write_bytes, write_text
from samtune.base.machine import cores, memory_gib, pick_device
from samtune.errors import ConfigError
from samtune.starting.choose import Machine, choose
from samtune.starting.detect import find_task
from samtune.starting.found import Found
from samtune.starting.readers import READERS
from samtune.starting.sheet import sample_sheet
from samtune.starting.summary import summary
from samtune.starting.write import to_yaml


class Started(NamedTuple):
    """What was found, and the files that were written."""

    found: Found
    config: Path
    sheet: Path


def start(folder: Path, *, out: Path | None = None, task: str | None = None, overwrite: bool = False) -> Started:
    """Writes a config that fits a data folder, and a PNG of the same name with samples; nothing else is changed.

    The same data on the same machine gives the same files.

    Args:
        out: the config; None: FOLDER.yaml in the working folder.
        task: what the data is, where that is unclear.
        overwrite: replace files that exist.

    Raises:
        ConfigError: an unknown task, a file that exists, a name without .yaml, or a place in the data folder.
        DataError: what is wrong with the data, or missing, or unclear.
        DiskError: a file can't be written.
    """
    name = run_name(folder)
    config = out or Path(f"{name}.yaml")
    if config.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {config}: a config ends in .yaml; give such a name.")
    sheet = config.with_suffix(".png")
    if folder.resolve() in config.resolve().parents:
        where = "--out outside it, or call init from another folder"
        raise ConfigError(
            f"{config} would be in {folder}, and {sheet.name} beside it could be taken for data. Give {where}."
        )
    if not overwrite and (there := [str(path) for path in (config, sheet) if path.exists()]):
        raise ConfigError(f"{' and '.join(there)} exist already. Give another --out, or --overwrite.")
    kind, why = find_task(folder, task)
    found = READERS[kind].look(folder, why)
    device = pick_device("auto")
    machine = Machine(device.type, cores(), memory_gib(device))
    settings = choose(found, folder=os.path.abspath(folder), name=name, machine=machine)
    text = to_yaml(settings, _head(found, config, sheet, machine))
    drawn = sample_sheet(found.samples, found.legend, found.pixels)
    with disk_errors(config):
        config.parent.mkdir(parents=True, exist_ok=True)
        write_text(config, text)
        write_bytes(sheet, cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
    return Started(found, config, sheet)


def run_name(folder: Path) -> str:
    """Returns the name of a folder as one of a run: letters, digits, dots, dashes; "data" where none is left."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip("._-")
    return name or "data"


def _head(found: Found, config: Path, sheet: Path, machine: Machine) -> list[str]:
    return [
        f"Written by `samtune init` for {machine.cores} cores and {machine.device}; every line can be changed.",
        "",
        f"  samtune finetune --config {config}",
        "",
        f"Samples: {sheet.name}. What was found:",
        "",
        *summary(found),
        "",
    ]
