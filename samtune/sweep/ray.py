"""Runs the cells of a sweep by Ray Tune: on this machine, or on a cluster that shares the sweep's folder.

Tune hands out the work; what is finished is decided by `cell.json`, and nothing that Tune keeps is needed to go on.
"""

import io
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from samtune.base import environment
from samtune.base.children import Children
from samtune.base.machine import cores
from samtune.errors import ConfigError
from samtune.sweep.plan import Cell
from samtune.sweep.trial import Done, RunAll, TrialResult, run_trial

CONNECT_SECONDS = 3.0  # for the address to take a connection
PROBE_SECONDS = 12.0  # for Ray itself to answer there
OBJECTS = 80 * 2**20  # bytes; nothing but small dicts is ever stored
PROBE = ("-m", "ray.scripts.scripts", "status", "--address")  # `ray status`, which says why it can't; init does not


@contextmanager
def ray_engine(*, jobs: int, folder: Path, address: str | None) -> Iterator[RunAll]:
    """Starts Ray here, or connects to a cluster; ends it, or the connection, at the end.

    Args:
        jobs: runs at once; each gets its share of the cores and GPUs.
        folder: every machine of the cluster must see it, and the working folder, at the same path.
        address: HOST:PORT of a cluster that this machine belongs to; None starts a Ray of its own.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """
    environment.set_defaults()
    try:
        import ray
        import ray.tune
    except ImportError as err:
        raise ConfigError("--engine ray needs Ray Tune, which is an extra: pip install 'samtune[ray]'.") from err
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"num_cpus": max(cores(), jobs), "object_store_memory": OBJECTS, "include_dashboard": False}
        ray.init(address="local", **options)
    else:
        check_address(address)
        tracking = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
        try:
            ray.init(address=address, runtime_env={"env_vars": tracking}, **options)
        except (ConnectionError, RuntimeError, ValueError) as err:
            raise _unusable(address, str(err)) from err
    try:
        yield partial(_run_all, jobs=jobs, folder=folder.resolve() / "ray")
    finally:
        ray.shutdown()
        shutil.rmtree(folder / "ray", ignore_errors=True)


def check_address(address: str) -> None:
    """Refuses an address at which no Ray cluster answers, within seconds: `ray.init` would wait for minutes.

    Raises:
        ConfigError: not HOST:PORT, nobody there, or no cluster that this machine belongs to.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ConfigError(f"--address {address!r}: expected HOST:PORT of a Ray cluster's head, such as 10.0.0.1:6379.")
    command = [sys.executable, *PROBE, address]
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
        reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1] if done.returncode else None
    except (OSError, OverflowError, subprocess.TimeoutExpired) as err:
        reason = "no answer in time" if isinstance(err, TimeoutError | subprocess.TimeoutExpired) else str(err)
    if reason is not None:
        raise _unusable(address, reason)


def _unusable(address: str, reason: str) -> ConfigError:
    port = address.rpartition(":")[2]
    advice = f"Start one there by `ray start --head --port {port}`, join it from this machine by `ray start --address "
    advice += f"{address}`, or leave out --address to stay on this one."
    return ConfigError(f"no Ray cluster can be used at {address}: {reason.rstrip('.')}. {advice}")


def share(nodes: list[Mapping[str, float]], jobs: int) -> dict[str, float]:
    """Returns the CPUs and GPUs of one run, so that `jobs` of them fit at once where that can be.

    Args:
        nodes: resources of each machine: "CPU" and "GPU" with their number.

    Returns:
        Whole CPUs, at least 1; a whole GPU, or a part of one if there are fewer than runs; 0 if there is none.
    """
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    fitting = [size for size in range(1, max(cpus) + 1) if sum(n // size for n in cpus) >= jobs]
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    return {"cpu": max(fitting, default=1), "gpu": 1 / math.ceil(jobs / gpus) if gpus else 0}


def _run_all(cells: list[Cell], done: Done, *, jobs: int, folder: Path) -> None:
    import ray
    from ray import tune

    class Told(tune.Callback):
        """Passes on what a run returned."""

        def __init__(self, done: Done) -> None:
            self.done = done

        def __getstate__(self) -> dict[str, Any]:
            return {}  # Tune saves its callbacks, and a progress bar can't be saved

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result = trial.last_result
            self.done(TrialResult(name=result["name"], code=result["code"], error=result["error"]))

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    resources = share(nodes, jobs)
    work = tune.with_parameters(_trainable, cells=cells, working_folder=str(Path.cwd()), threads=int(resources["cpu"]))
    name, once, told = "grid" if cells[0].in_grid else "cells", tune.FailureConfig(max_failures=0), Told(done)
    tuner = tune.Tuner(
        tune.with_resources(work, resources),
        param_space={"cell": tune.grid_search(list(range(len(cells))))},
        tune_config=tune.TuneConfig(max_concurrent_trials=jobs),
        run_config=tune.RunConfig(
            name=name, storage_path=str(folder), verbose=0, failure_config=once, callbacks=[told]
        ),
    )
    with redirect_stdout(io.StringIO()):  # Tune's own words; stdout is for the table
        results = tuner.fit()
    for index, cell in enumerate(cells):
        error = results[index].error
        if error is not None:  # of the worker; that of a run is a result
            reason = str(error).strip().splitlines()[-1]
            done(TrialResult(name=cell.name, code=1, error=f"the Ray worker failed: {reason}"))


def _trainable(config: dict[str, int], *, cells: list[Cell], working_folder: str, threads: int) -> dict[str, Any]:
    """What a worker does: the same run as on one machine."""
    os.chdir(working_folder)  # relative paths of the config start there
    with Children() as children:
        return dict(run_trial(cells[config["cell"]], children, threads=threads))
