"""What the tests of tracking share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samtune.base.tracking import RunLog

TheRun = Callable[[str], Any]
PARAMS = {
    "task": "segmentation",
    "run": {"seed": 3, "name": "r"},
    "model": {"name": "sam_lite"},
    "data": {"dir": "pictures", "long": "y" * 7000},
    "select": {"name": "gps"},
    "track": {"experiment": "tests"},
}


def log_to(folder: Path, *, mlflow: bool = True, name: str = "r", **options: Any) -> RunLog:
    folder.mkdir(parents=True, exist_ok=True)
    return RunLog(folder, mlflow=mlflow, experiment="tests", run_name=name, params=PARAMS, **options)


def wait_for_id(log: RunLog, seconds: float = 150) -> str:
    end = time.monotonic() + seconds
    while log.run_id is None and time.monotonic() < end:
        time.sleep(0.01)
    assert log.run_id is not None
    return log.run_id


def history(folder: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = (folder / "history.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]
