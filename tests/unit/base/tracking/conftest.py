"""One MLflow database for all tests of the folder, because making one takes seconds: eight runs make it at once."""

from __future__ import annotations

import importlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from tracking_helpers import TheRun, log_to, wait_for_id

from samtune.base.folder import locked
from samtune.base.tracking.mlflow_run import find_store

RUNS = 8


def _one_of_many(folder: Path) -> None:
    with locked(folder), log_to(folder, name=folder.name) as log:
        for epoch in range(3):
            log.event({"step": epoch, "epoch": epoch, "split": "val", "mDice": epoch / 10})
        wait_for_id(log)  # a training takes longer than to make a database


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder whose database eight runs made when all began at once."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        from mlflow.tracking.context import registry

        find_store()  # imports MLflow once, for all of them
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")
        registry.resolve_tags()
        context = multiprocessing.get_context("fork")
        runs = [context.Process(target=_one_of_many, args=(home / f"at_once_{n}",)) for n in range(RUNS)]
        for run in runs:
            run.start()
        for run in runs:
            run.join(180)
            if run.is_alive():
                run.kill()
    return home


@pytest.fixture
def at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return home


@pytest.fixture
def client(at_home: Path) -> Any:
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{at_home / 'runs' / 'mlflow.db'}")


@pytest.fixture
def the_run(client: Any) -> TheRun:
    """Returns the only run of a name, as MLflow has it."""

    def find(name: str) -> Any:
        known = client.get_experiment_by_name("tests")
        (run,) = client.search_runs([known.experiment_id], f"attributes.run_name = '{name} gps'")
        return run

    return find
