"""How is a person shown objects? Each in its own colour, with its number, beside the truth; and what goes wrong."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from samtune.data.channels.read import read_pixels, shown
from samtune.data.formats.index_pictures import distinct_colours
from samtune.data.frames import Collate
from samtune.data.maps import MapDataset
from samtune.metrics.instances import overlaps
from samtune.models.backbone import Backbone
from samtune.report.page import Picture, Section
from samtune.tasks.instances.evaluate import predict_instances
from samtune.tasks.instances.objects import renumbered
from samtune.tasks.instances.report import InstanceReport
from samtune.tasks.instances.separate import crops
from samtune.tasks.panels import INK, captioned, panel_scale, pick_cases, save_panels, scaled, side_by_side
from samtune.types import ImageArray, Instances, ObjectMap

OVERLAYS_NOTE = (
    "Best, median and worst images by their own PQ. Each object has a colour and its number; in the last panel, green "
    "objects are in a pair (IoU > 0.5), red ones were found and are not there, blue ones were missed."
)
PAIRED, EXTRA, MISSED = (0, 158, 115), (213, 94, 0), (86, 180, 233)  # of Okabe and Ito
_NUMBERED = 12  # pixels of an object's side in a panel that hold its number
_LARGEST = 1024  # pixels of the longer side of an overlay


def gallery_sections(
    folder: Path, model: Backbone, dataset: MapDataset, report: InstanceReport, *, each: int
) -> Sequence[Section]:
    """Draws one PNG per chosen image of a report, and returns the section that shows them; none without an image.

    Args:
        model: what the report is of, in eval mode.
        dataset: the images that were evaluated.
        each: number of best, of median and of worst images; 0 draws nothing.
    """
    rows = {row.name: row for row in report.rows}
    cases = pick_cases({name: row.pq for name, row in rows.items()}, each=each) if each else []
    files = save_panels(folder, _rows(model, dataset, [name for _, name in cases]))
    said = [
        f"{name}, PQ {rows[name].pq:.3f}, {rows[name].matches.found} of {rows[name].matches.truth} objects found"
        for _, name in cases
    ]
    captions = [f"{label}: {text}" for (label, _), text in zip(cases, said, strict=True)]
    pictures = [Picture(caption, file) for caption, file in zip(captions, files, strict=True)]
    return [Section("Pictures", OVERLAYS_NOTE, pictures=pictures)] if pictures else []


def numbered(image: ImageArray, labels: ObjectMap) -> ImageArray:
    """Lays the colours of objects over a picture, with their outlines, and their numbers where there is room."""
    colours = np.array([(0, 0, 0), *distinct_colours(int(labels.max(initial=0)))], dtype=np.uint8)
    drawn: Any = image.copy()
    on = labels > 0
    drawn[on] = (0.6 * image[on] + 0.4 * colours[labels[on]]).astype(np.uint8)
    values, near = labels.astype(np.uint16), np.ones((3, 3), dtype=np.uint8)
    edge = on & (cv2.erode(values, near) != values)
    drawn[edge] = colours[labels[edge]]
    for number, place, mask in crops(labels):
        if min(mask.shape) >= _NUMBERED:
            depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
            row, column = np.unravel_index(int(depth.argmax()), depth.shape)
            _write(drawn, str(number), int(column) + place[1].start, int(row) + place[0].start)
    return drawn  # type: ignore[no-any-return]


def overlay(image: ImageArray, labels: ObjectMap) -> ImageArray:
    """Returns the picture with its numbered objects, scaled down where it is large, up where it is small."""
    scale = min(max(1.0, 512 / max(image.shape[:2])), _LARGEST / max(image.shape[:2]))
    return numbered(scaled(image, scale), _small(labels, scale))


def instance_row(image: ImageArray, truth: ObjectMap, found: Instances) -> ImageArray:
    """Draws image | truth | answer | errors of an (H, W, 3) uint8 RGB image; each picture fits into 256 x 384."""
    scale = panel_scale(image)
    picture, wanted = scaled(image, scale), renumbered(truth)[0]
    panels = [captioned(picture, ("image", INK))]
    for labels, word in ((wanted, "truth"), (found.labels, "answer")):
        panels.append(captioned(numbered(picture, _small(labels, scale)), (f"{word}: {labels.max(initial=0)}", INK)))
    wrong = _errors(picture, _small(found.labels, scale), _small(wanted, scale), _paired(found.labels, wanted))
    words = (("right", PAIRED), ("too much", EXTRA), ("missed", MISSED))
    return side_by_side([*panels, captioned(wrong, *words)])


def _rows(model: Backbone, dataset: MapDataset, names: Sequence[str]) -> Iterator[tuple[str, ImageArray]]:
    """Yields the rows of images by name, by the one prediction path."""
    numbers = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    for name in names:
        sample = dataset[numbers[name]]
        batch = Collate(model.image_size)([sample]).to(model.device)
        (found,) = predict_instances(model, batch, sizes_original=[sample.truth.shape])
        image = shown(read_pixels(dataset.pairs[numbers[name]].image, dataset.pixels))
        yield name, instance_row(image, sample.truth, found)


def _paired(found: ObjectMap, truth: ObjectMap) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n + 1,) and (m + 1,) bool, which found and true objects, by number, are in a pair."""
    shared = overlaps(found, truth)
    pairs = shared.iou > 0.5
    sides = ((shared.found[pairs], shared.found_px), (shared.truth[pairs], shared.truth_px))
    found_in, truth_in = (np.r_[False, np.isin(np.arange(len(px)), those)] for those, px in sides)
    return found_in, truth_in


def _errors(
    picture: ImageArray, found: ObjectMap, truth: ObjectMap, paired: tuple[np.ndarray, np.ndarray]
) -> ImageArray:
    grey: Any = cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) // 2 + 60
    right, known = paired[0][found], paired[1][truth]
    for where, colour in (((truth > 0) & ~known, MISSED), ((found > 0) & ~right, EXTRA), (right, PAIRED)):
        grey[where] = (0.4 * grey[where] + 0.6 * np.array(colour)).astype(np.uint8)
    return grey  # type: ignore[no-any-return]


def _small(labels: ObjectMap, scale: float) -> ObjectMap:
    width, height = (max(1, round(side * scale)) for side in labels.shape[1::-1])
    small: Any = cv2.resize(labels.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    return small.astype(np.int32)  # type: ignore[no-any-return]


def _write(drawn: Any, text: str, x: int, y: int) -> None:
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.3, 1)
    corner = (x - width // 2, y + height // 2)
    for colour, thickness in (((0, 0, 0), 2), ((255, 255, 255), 1)):
        cv2.putText(drawn, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.3, colour, thickness, cv2.LINE_AA)
