"""The commands that use a checkpoint: measure, predict, serve."""

import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option, Typer

from samtune import console
from samtune.base.paths import find_path
from samtune.cli.grouped import grouped
from samtune.errors import ConfigError

use_app = Typer()

Checkpoint = Annotated[
    Path,
    Option(
        metavar="FILE",
        help="A merged.safetensors, its run folder, or a model as it is: sam_lite, a folder, Meta's file.",
    ),
]
Device = Annotated[str, Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]


@use_app.command(rich_help_panel="Use a checkpoint")
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        Path, Option(metavar="DIR", help="Folder with images/ and masks/ or instances/, or with class folders.")
    ],
    out: Annotated[Path | None, Option(metavar="DIR", help="Write metrics.json and per_image.csv here.")] = None,
    split: Annotated[
        str,
        Option(
            metavar="auto|all|train|val|test",
            help="Part to measure; auto: test if there is one, or all. For classes, `all` is no part.",
        ),
    ] = "auto",
    metrics: Annotated[
        list[str] | None, Option(metavar="NAME", help="A further metric of masks, such as hd95; repeat for more.")
    ] = None,
    name: Annotated[
        str | None, Option(metavar="NAME", help="Classes: the data set, such as vtab/cifar or imagenet-c.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Measure a checkpoint: mDice and mIoU, accuracy, or average precision, with 95 % intervals."""
    _check_choice("split", split, ("auto", "all", "train", "val", "test"))
    _check_device(device)
    from samtune.files.find import find_model
    from samtune.tasks.evaluate import Evaluation
    from samtune.tasks.table import task_of_file

    file = find_model(checkpoint)
    request = Evaluation(file, find_path(data), out, device, split, tuple(metrics or ()), name)
    console.show(task_of_file(file).evaluate_file(request).to_table())
    if out is not None:
        console.print_line(f"\n{out}")


@dataclass(frozen=True)
class Asked:
    """The options of how `predict` asks the model."""

    box: Annotated[
        list[str] | None,
        Option(metavar="X1,Y1,X2,Y2", help="Prompt for a single image: a box in its pixels; repeat for more."),
    ] = None
    point: Annotated[
        list[str] | None,
        Option(
            metavar="X,Y",
            help="Prompt for a single image: a point on the object; repeat for more. 16x16, of instances: clicks on a "
            "grid over each image, as Segment Anything's own generator finds objects.",
        ),
    ] = None
    tiles: Annotated[
        str | None,
        Option(
            metavar="SIZE[,OVERLAP]",
            help="Answer large images by tiles: side and overlap in their pixels; a quarter of SIZE if it is left out. "
            "A file that was tuned by tiles has its own.",
        ),
    ] = None


@use_app.command(rich_help_panel="Use a checkpoint")
@grouped("asked")
def predict(
    checkpoint: Checkpoint,
    paths: Annotated[list[Path], Argument(metavar="PATH", help="Images, or folders of images.")],
    out: Annotated[
        Path, Option(metavar="DIR", help="Where STEM.png masks (0, 255), annotations or predictions.csv go.")
    ],
    asked: Asked,
    overlay: Annotated[bool, Option("--overlay", help="Also draw each mask over its image.")] = False,
    format: Annotated[
        str | None,
        Option(
            metavar="png|coco|yolo|labelme|label-studio|cvat|index|geojson|stack",
            help="Of masks, maps of classes, whose png has a palette, and objects, whose png has their numbers; index "
            "is of masks and classes, geojson of classes and objects. stack: the pages of a TIFF are slices; "
            "DIR/STEM.tif has their answers.",
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write the mask of each image, at its own size, its class, the class of each pixel, or its objects."""
    _check_device(device)
    boxes_xyxy = [_numbers("--box", text, 4) for text in asked.box or ()]
    points, tiles = asked.point or (), None if asked.tiles is None else _sides(asked.tiles)
    grid = _grid(points)
    points_xy = [] if grid else [_numbers("--point", text, 2) for text in points]
    from samtune.files.find import find_model
    from samtune.tasks.predict import Prediction
    from samtune.tasks.table import task_of_file

    file = find_model(checkpoint)
    request = Prediction(file, paths, out, device, overlay, boxes_xyxy, points_xy, format, grid, tiles)
    console.print_line(task_of_file(file).predict_files(request))


@use_app.command(rich_help_panel="Use a checkpoint")
def serve(
    checkpoint: Checkpoint,
    port: Annotated[int, Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    host: Annotated[str, Option(help="Address to listen on.")] = "127.0.0.1",
    device: Device = "auto",
    insecure: Annotated[
        bool, Option("--insecure", help="Listen beyond this machine without an API key (SAMTUNE_API_KEY).")
    ] = False,
) -> None:
    """Answer HTTP requests: POST an image, get its mask or class."""
    _check_device(device)
    from samtune.files.find import find_model
    from samtune.serve.server import run_server

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # asked to stop, the server drains and that is success
    run_server(find_model(checkpoint), host=host, port=port, device=device, insecure=insecure)


def _check_choice(option: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"--{option} {value!r} is unknown. Known: {', '.join(allowed)}.")


def _check_device(device: str) -> None:
    _check_choice("device", device, ("auto", "cpu", "cuda", "mps"))


def _grid(points: Sequence[str]) -> int | None:
    """Returns N of a single NxN in place of a point, else None."""
    found = re.fullmatch(r"(\d+)x(\d+)", points[0]) if len(points) == 1 else None
    if found is None:
        return None
    rows, columns = map(int, found.groups())
    if rows != columns or not 1 <= rows <= 64:
        raise ConfigError(f"--point {points[0]}: a grid has as many rows as columns, 1 to 64, such as 16x16.")
    return rows


def _sides(text: str) -> tuple[int, int]:
    """Returns side and overlap of tiles, by the rule of `data.tiles`."""
    from pydantic import ValidationError

    from samtune.tasks.sections import TileSettings

    sides = None
    if found := re.fullmatch(r"(\d{1,5})(?:,(\d{1,5}))?", text):
        size, overlap = found.groups()
        try:
            sides = TileSettings(size=int(size), overlap=None if overlap is None else int(overlap)).sides
        except ValidationError:
            sides = None
    if sides is None:
        expected = "SIZE or SIZE,OVERLAP in pixels, 64 to 4096 and 1 to half of SIZE, such as 512,128"
        raise ConfigError(f"--tiles {text!r}: expected {expected}.")
    return sides


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count:
        raise ConfigError(f"{option} {text!r}: expected {count} numbers with commas between them, in pixels.")
    return values
