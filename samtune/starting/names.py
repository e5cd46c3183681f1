"""Do annotations, or a list beside index pictures, name what a folder shows, and how often is it there?"""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from samtune.data.formats.drawing import GROUND
from samtune.data.formats.table import FORMATS, Source, categories_of, find_format, names_classes, read_place
from samtune.starting.labels import mask_values
from samtune.tasks.semantic.layouts import has_class_folders

TITLES = {
    "coco": "annotations of COCO", "yolo": "annotations of YOLO", "labelme": "annotations of LabelMe",
    "label-studio": "annotations of Label Studio", "cvat": "annotations of CVAT", "index": "masks with a list of names",
    "voc": "annotations of Pascal VOC",
}  # fmt: skip


class Named(NamedTuple):
    """What a format says of a folder.

    Attributes:
        format: a name of `FORMATS`, which is what `data.format` wants.
        objects: of each category its number of objects (of index pictures: of pictures), the background left out; those
            without any are not in it.
    """

    format: str
    objects: dict[str, int]

    @property
    def source(self) -> Source:
        """How the folder is read."""
        return Source(self.format)  # type: ignore[arg-type]

    def text(self) -> str:
        """Returns the format and how many categories it names."""
        count = len(self.objects)
        return f"{TITLES[self.format]}, {count} {'category' if count == 1 else 'categories'}"


def find_names(folder: Path) -> Named | None:
    """Returns what the format of a folder says; None where it has masks or classes without names.

    Raises:
        ConfigError: annotations of several formats.
        DataError: annotations that can't be read.
    """
    form = find_format(folder)
    if form == "pairs" and names_classes(folder) and not has_class_folders(folder) and mask_values(folder) - {255}:
        form = "index"
    if form == "pairs":
        return None
    known = [name for name in categories_of(form, folder) if name != GROUND]
    found = Counter(
        item.category
        for place in FORMATS[form].places(folder)
        for image in read_place(form, place).images.values()
        for item in image.objects
    )
    return Named(form, {name: found[name] for name in known if found[name]})
