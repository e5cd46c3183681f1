"""Which channels and range do the pictures of a folder need, and must they be seen by tiles?"""

from pathlib import Path
from typing import Any

from samtune.config.pixels import Pixels
from samtune.data.channels.check import fitting_pixels
from samtune.data.facts import image_facts
from samtune.data.pair_splits import MaskKind
from samtune.data.pictures import LARGEST_PIXELS, MAX_PIXELS
from samtune.errors import DataError


def measure_pixels(folder: Path, kind: MaskKind[Any]) -> Pixels:
    """Returns what a model has to take of the pictures of all parts; files that can't be read are told by the check.

    Raises:
        DataError: some have 8 bits, others more: no range is right for both.
    """
    places = list(kind.parts(folder).values()) or [folder]
    files = [pair.image for place in places for pair in kind.scan(place)[0]]
    found = zip(files, image_facts(files, most=LARGEST_PIXELS), strict=True)
    facts = {path: fact for path, fact in found if not isinstance(fact, DataError)}
    pixels = fitting_pixels(facts)
    shallow = [path for path, fact in facts.items() if fact.levels is None]
    if pixels.range is not None and shallow:
        deep = next(path for path, fact in facts.items() if fact.levels is not None)
        counts = f"{len(shallow)} pictures have 8 bits, such as {shallow[0]}, and {len(facts) - len(shallow)} have more"
        raise DataError(
            f"{folder}: {counts}, such as {deep}: no range is right for both; save all in one depth, or write "
            "a config by hand with a data.range that is right for all (docs/channels.md)"
        )
    return pixels._replace(large=any(fact.width * fact.height > MAX_PIXELS for fact in facts.values()))
