"""Do the pictures of a folder have the channels of the model, and is said what is black and white in them?"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.read import misfit
from samtune.data.facts import ImageFacts
from samtune.data.pictures import MAX_PIXELS
from samtune.data.verify import VerifyReport

SHOWN = 3  # files whose values are told


def check_pixels(images: Mapping[Path, ImageFacts], wanted: Pixels | None, *, tuned: bool = False) -> VerifyReport:
    """Checks all pictures of a job together.

    Args:
        wanted: what the model takes; None where no model is known yet: then they must be alike.
        tuned: it is a file that pictures of 16 bits may be measured with without a range, scaled as they are.
    """
    channels = _common(images) if wanted is None else wanted.channels
    wrong = {
        path: problem
        for path, facts in images.items()
        if (problem := misfit(facts.channels, channels, alpha=facts.alpha, pages=facts.pages))
    }
    errors, warnings = [f"{path}: {problem}" for path, problem in wrong.items()], list[str]()
    if wanted is None and channels != RGB.channels:
        warnings.append(f"pictures have {channels} channels; set model.channels: {channels}")
    large = [path for path, facts in images.items() if facts.width * facts.height > MAX_PIXELS]
    if wanted is None and large:
        found = f"{len(large)} picture(s), such as {large[0]}, have more than {MAX_PIXELS:,} pixels"
        warnings.append(f"{found}: set data.tiles.size, as only tiles of them can be seen (docs/tiles.md)")
    deep = {path: facts for path, facts in images.items() if facts.levels is not None and path not in wrong}
    if wanted is not None and wanted.range is not None:
        if 0 < len(deep) < len(images) - len(wrong):
            counts = f"{len(images) - len(wrong) - len(deep)} picture(s) have 8 bits and {len(deep)} have more"
            warnings.append(f"{counts}: one data.range is for all; save all in one depth, if their values differ by it")
        return VerifyReport((*errors,), (*warnings, *_outside(deep, wanted.range)))
    if deep and wanted is None:
        warnings.append(_unranged(deep, len(images) - len(wrong) - len(deep)))
    elif deep and not (tuned and wanted is not None and wanted.plain and all(facts.scaled for facts in deep.values())):
        errors.append(_unranged(deep, len(images) - len(wrong) - len(deep)))
    elif deep:
        warnings += [f"{path}: {facts.scaled}" for path, facts in deep.items()]
    return VerifyReport((*errors,), (*warnings,))


def fitting_pixels(images: Mapping[Path, ImageFacts]) -> Pixels:
    """Returns the channels that most pictures have, and the range that those of more than 8 bits need.

    It leaves half a percent of the values of a picture off at each end, of the pictures with the most extreme ones.
    """
    every = [facts.levels for facts in images.values() if facts.levels is not None]
    if not every:
        return Pixels(_common(images))
    low, high = min(levels[2] for levels in every), max(levels[3] for levels in every)
    if all(float(level).is_integer() for levels in every for level in levels[:2]):  # whole numbers
        low, high = math.floor(low), math.ceil(high)
    else:
        shorter = float(f"{low:.6g}"), float(f"{high:.6g}")
        low, high = shorter if shorter[0] < shorter[1] else (low, high)
    return Pixels(_common(images), (float(low), float(high if high > low else low + 1)))


def _common(images: Mapping[Path, ImageFacts]) -> int:
    """Returns the number of channels that most pictures have; grey, and colours with transparency, count as RGB."""
    counts = Counter(
        RGB.channels if facts.pages == 1 and facts.channels - facts.alpha in (1, 3) else facts.channels
        for facts in images.values()
    )
    return counts.most_common(1)[0][0] if counts else RGB.channels


def _unranged(deep: Mapping[Path, ImageFacts], others: int) -> str:
    """Says what the values of pictures of more than 8 bits are, with a line for the config if no other has 8 bits."""
    found = [f"{path} {_text(facts.levels)}" for path, facts in list(deep.items())[:SHOWN] if facts.levels]
    low, high = fitting_pixels(deep).range or (0, 255)
    line = f"add to the config: data.range: [{low:.10g}, {high:.10g}]"
    if others:
        line = f"{others} have 8 bits: save all in one depth, or set a data.range that is right for both"
    more = f", and {len(deep) - SHOWN} more" if len(deep) > SHOWN else ""
    return (
        f"{len(deep)} picture(s) have more than 8 bits, and no data.range says which values are black and white: "
        f"{'; '.join(found)}{more}; {line}"
    )


def _text(levels: Sequence[float]) -> str:
    low, high, start, end = levels
    return f"has {low:.6g} to {high:.6g}, 99 % of them {start:.6g} to {end:.6g}"


def _outside(deep: Mapping[Path, ImageFacts], wanted: tuple[float, float]) -> list[str]:
    """Warns of pictures that a range makes all black or all white."""
    low, high = wanted
    return [
        f"{path}: {_text(facts.levels)}: hardly any inside of data.range [{low:g}, {high:g}]"
        for path, facts in deep.items()
        if facts.levels is not None and (facts.levels[2] >= high or facts.levels[3] <= low)
    ]
