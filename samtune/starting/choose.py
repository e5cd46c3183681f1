"""Which settings follow from what was found, on this machine? Each with its reason.

The times are of sam_lite on two cores of a Xeon (configs/kvasir_lite.yaml), and taken to grow with the area of the
input and to fall with the number of cores.
"""

import math
from collections.abc import Iterator
from statistics import fmean, median
from typing import Any, NamedTuple

from samtune.config.pixels import RGB
from samtune.data.pictures import MAX_PIXELS
from samtune.metrics.advice import CELLS, LARGEST, SMALLEST_TILE, STEP, STRIDE, resolving_size, tile_size
from samtune.starting.found import Found

OWN = 256  # pixels: the input frame of sam_lite
LARGEST_ON_CPU, LARGEST_ON_GPU = 512, 1024
CLASSES_AT = 224  # pixels: the largest input that a small classifier is given here
MINUTES = 8.0
"""What a first training should take on a CPU, without scoring and evaluation."""
STEPS_ON_GPU = 1500
SECONDS, GIB = 0.15, 0.25  # per image of a step at 256 px; those of the classifier are a third
TIMES = {"classification": 1 / 3, "instances": 4}
"""Of `SECONDS`; prompts of up to eight objects of each picture take most of a step of instances."""
EPOCHS = (4, 60)
FEW = 50  # training pictures
FEW_PER_CLASS = 4
CACHE_GIB = 2.0


class Machine(NamedTuple):
    """What a run would compute with: "cpu", "cuda" or "mps", its cores, and the GiB of the GPU or of the machine."""

    device: str
    cores: int
    memory_gib: float


class Setting(NamedTuple):
    """A key of the config, its value, and why; one that is `off` is shown as a comment, to be chosen by hand."""

    key: str
    value: Any
    why: str
    off: bool = False


def choose(found: Found, *, folder: str, name: str, machine: Machine) -> list[Setting]:
    """Returns the settings of a config that fits, in the order of its sections.

    Args:
        folder: how the config names the data folder.
        name: of the run.
    """
    size, of_size = _image_size(found, machine)
    batch, accumulate, of_batch = _batch(found, size, machine)
    epochs, of_epochs = _epochs(found, size, batch * accumulate, machine)
    classes = found.task == "classification"
    model = "tf_efficientnet_lite0" if classes else "sam_lite"
    return [
        Setting("task", found.task, found.why),
        Setting("run.name", name, f"runs go to runs/{name}/TIME"),
        *([Setting("run.seed", found.seed, "the first whose parts can all be used")] * (found.seed > 0)),
        Setting("model.name", model, "its weights are inside the package, and it is quick without a GPU"),
        Setting("model.image_size", size, of_size),
        *_channels(found),
        Setting("data.dir", folder, _parts(found)),
        *_data(found),
        *_tiles(found, size),
        Setting("data.cache", _bytes(found, size) < CACHE_GIB * 2**30, _of_cache(found, size)),
        *_method(found),
        Setting("train.epochs", epochs, of_epochs),
        Setting("train.batch", batch, of_batch),
        *(
            [Setting("train.accumulate", accumulate, f"forward passes per step: it stays one of {batch * accumulate}")]
            * (accumulate > 1)
        ),
        *_patience(epochs),
    ]


def _image_size(found: Found, machine: Machine) -> tuple[int, str]:
    if found.task == "classification":
        longest = found.pictures.longest
        size = min(CLASSES_AT, max(STEP * 2, STEP * math.ceil(longest / STEP)))
        return (
            size,
            f"half of the pictures are {longest} px or less on their longer side; {CLASSES_AT} is the most here",
        )
    if not found.sides or found.pixels.large:
        return OWN, "what sam_lite was trained for"
    side = median(found.sides)
    cells = side * OWN / STRIDE
    object_ = f"half of the objects are smaller than {side:.1%} of the picture's longer side"
    if cells >= CELLS:
        return OWN, f"{object_}: {cells:.1f} cells of a mask at {OWN} px, and {CELLS:g} are enough"
    wanted, most = resolving_size(side), LARGEST_ON_GPU if machine.device == "cuda" else LARGEST_ON_CPU
    twice = max(OWN, STEP * math.ceil(2 * found.pictures.longest / STEP))
    size = min(wanted, most, twice)
    reason = f"{object_}: {cells:.1f} cells of a mask at {OWN} px, {side * size / STRIDE:.1f} at {size} px"
    if size < wanted:
        limit = "twice the pictures' own size" if size == twice else f"the most that is quick on this {machine.device}"
        reason += f"; {wanted} px would give {CELLS:g}, but {size} is {limit}"
    return size, reason


def _tiles(found: Found, size: int) -> Iterator[Setting]:
    """Yields tiles: where pictures are seen in no other way, and, to be chosen by hand, where objects are too small."""
    if tile := _needed_tile(found, size):
        why = f"some pictures have more than {MAX_PIXELS:,} pixels, which only tiles can show; slower (docs/tiles.md)"
        yield Setting("data.tiles", {"size": tile}, why)
        return
    if found.task == "classification" or not found.sides or median(found.sides) * size / STRIDE >= CELLS:
        return
    longest = found.pictures.longest
    tile = tile_size(median(found.sides) * longest, size)
    if SMALLEST_TILE <= tile <= longest // 2:
        why = (
            f"sees the pictures, of {longest} px, in parts: an object has {CELLS:g} cells then; slower (docs/tiles.md)"
        )
        yield Setting("data.tiles", {"size": tile}, why, off=True)


def _needed_tile(found: Found, size: int) -> int | None:
    """Returns the side of the tiles of pictures that are too large to be seen as a whole; None of others."""
    if not found.pixels.large:
        return None
    side = median(found.sides) * found.pictures.longest if found.sides else 0.0
    return min(max(tile_size(side, size), SMALLEST_TILE), LARGEST) if side else size


def _area(found: Found) -> float:
    """Returns the mean number of pixels of a picture."""
    return fmean(width * height for width, height in found.pictures.sizes)


def _batch(found: Found, size: int, machine: Machine) -> tuple[int, int, str]:
    """Returns images per forward pass, passes per step, and why."""
    each = GIB * (size / OWN) ** 2 / (3 if found.task == "classification" else 1)
    wanted = {"classification": 32, "instances": 4}.get(found.task, 8)
    wanted = min(wanted, 2 ** max(0, int(math.log2(max(1, found.parts["train"])))))
    batch = wanted
    while batch > 1 and batch * each > machine.memory_gib / 2:
        batch //= 2
    about = f"about {batch * each:.1f} GiB of the {machine.memory_gib:.0f} of this {_place(machine)}"
    return batch, wanted // batch, f"images per pass, {about}"


def _epochs(found: Found, size: int, step: int, machine: Machine) -> tuple[int, str]:
    images, (least, most), what = found.parts["train"], EPOCHS, "training pictures"
    if tile := _needed_tile(found, size):
        images, least, what = max(images, round(images * _area(found) / tile**2)), 1, "crops of training pictures"
    if machine.device != "cpu":
        epochs = min(most, max(least, math.ceil(STEPS_ON_GPU * step / images)))
        return epochs, f"{images} {what}: about {math.ceil(epochs * images / step):,} steps of {step}"
    each = SECONDS * TIMES.get(found.task, 1) * (size / OWN) ** 2 * 2 / machine.cores
    epochs = min(most, max(least, round(60 * MINUTES / (each * images))))
    minutes = epochs * images * each / 60
    cores = f"{machine.cores} free core{'s' * (machine.cores != 1)}"
    return epochs, f"{images} {what} at {size} px: about {minutes:.0f} min on {cores}; more may help"


def _channels(found: Found) -> Iterator[Setting]:
    if (count := found.pixels.channels) != RGB.channels:
        start = "the first three start as red, green and blue" if count > RGB.channels else "both start as grey"
        yield Setting("model.channels", count, f"the pictures have {count} channels; {start}")


def _read(found: Found) -> Iterator[Setting]:
    """Yields how files become pictures and masks."""
    if found.named is not None:
        form, names = found.named.format, list(found.named.objects)
        yield Setting("data.format", form, f"{found.named.text()}; see docs/formats.md")
        if len(names) > 1:
            whats = {"segmentation": "all are one foreground", "instances": "objects of all count alike"}
            what = whats.get(found.task, "each is a class")
            why = f"{what}; to take some only, choose among these and take the # off"
            yield Setting("data.categories", names, why, off=True)
    if found.pixels.range is not None:
        low, high = (int(value) if value.is_integer() else value for value in found.pixels.range)
        why = "more than 8 bits: what becomes black and white; at most half a percent of a picture's values are beyond"
        yield Setting("data.range", [low, high], f"{why} each end")


def _data(found: Found) -> Iterator[Setting]:
    yield from _read(found)
    if found.task == "classification":
        yield Setting("data.resize", "crop", "keeps the shape of what is shown; squash, if it reaches the border")
        yield Setting("data.augment", "light", "crops and flips; none, if left and right differ in your classes")
        return
    if found.task == "semantic":
        names = {share.value: share.name for share in found.classes}
        if all(name == f"class {value}" for value, name in names.items()):
            yield Setting("data.classes", names, f"{len(names)} values were found; give them their names")
        why = "the value of pixels that count nowhere; if one of the classes means that, take it out and put it here"
        if found.named is None or found.named.format == "index":
            yield Setting("data.ignore_index", 255, why)
        yield Setting("data.augment", "upright", "mild changes and a flip; turns, if your pictures have no up")
        return
    if found.task == "instances":
        yield Setting("data.augment", "turns", "flips and quarter turns, colours; upright, if your pictures have an up")
        return
    yield Setting("data.prompt", "none", "the whole foreground is wanted, with nobody to click")
    yield Setting("data.augment", True, "flips, quarter turns, colours; false, if your pictures have an up and a left")
    if found.empty:
        why = (
            f"{found.empty} of {found.total} masks show no object: trained on, counted apart; refuse, if that is wrong"
        )
        yield Setting("data.empty", "train", why)


def _method(found: Found) -> Iterator[Setting]:
    images = found.parts["train"]
    if found.task == "classification":
        per_class = images / max(1, len(found.classes))
        many, words = per_class >= FEW_PER_CLASS, f"{per_class:.0f} training pictures per class"
        small, rate = {"name": "gps", "per_neuron": 1}, 3e-3
    else:
        many, words = images >= FEW, f"{images} training pictures"
        small, rate = {"name": "gps", "per_neuron": 5}, 1e-3
    if many:
        yield Setting("select", {"name": "full"}, f"{words}: the most accurate of these models; try {_text(small)} too")
        yield Setting("train.lr", 1e-3, "what served full tuning of these models best; try 3.0e-4 and 3.0e-3")
        return
    yield Setting("select", small, f"{words} are few: little changes, and what the model knows stays")
    yield Setting("train.lr", rate, "what served this method best; try a third and three times of it")


def _text(method: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in method.items()) + "}"


def _patience(epochs: int) -> Iterator[Setting]:
    if epochs >= 20:
        yield Setting("train.patience", epochs // 2, "epochs without gain on val before it stops; the best is kept")


def _parts(found: Found) -> str:
    return ", ".join(f"{count} {part}" for part, count in found.parts.items())


def _bytes(found: Found, size: int) -> int:
    """Returns what the decoded pictures of train and val take in memory, at most: with a range as floats."""
    each = found.pixels.channels * (1 if found.pixels.range is None else 4) + 1  # and the mask
    pixels = round(_area(found)) if found.pixels.large else size * size  # crops are cut from whole pictures
    return (found.parts["train"] + found.parts["val"]) * pixels * each


def _of_cache(found: Found, size: int) -> str:
    return (
        f"decoded pictures take {_bytes(found, size) / 2**20:,.0f} MiB at most; they are kept below {CACHE_GIB:g} GiB"
    )


def _place(machine: Machine) -> str:
    return "machine" if machine.device == "cpu" else "GPU"
