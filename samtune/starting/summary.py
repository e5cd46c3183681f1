"""What is a person told of a folder? A few lines of what was found, in 80 columns."""

from collections.abc import Iterable, Mapping
from statistics import median
from textwrap import wrap

from samtune.starting.found import Found, Pictures

WIDTH, LABEL = 80, 13
MANY = 12  # classes that are told one by one


def summary(found: Found) -> list[str]:
    """Returns lines of at most 80 columns: what the data is, its pictures, classes and objects, what is odd."""
    facts = {
        "data": f"{found.task}: {found.why}",
        "pictures": f"{found.total:,}: " + ", ".join(f"{count:,} {part}" for part, count in found.parts.items()),
        "annotated": _named(found),
        **_pictures(found.pictures),
        "classes" if len(found.classes) > 1 else "covered": _shares(found),
        **_objects(found),
    }
    if found.empty:
        facts["no object"] = f"{found.empty} pictures"
    lines = [line for label, text in facts.items() if text for line in _labelled(label, text)]
    return lines + [line for note in found.notes for line in _labelled("note", note)]


def _pictures(pictures: Pictures) -> dict[str, str]:
    widths, heights = zip(*pictures.sizes, strict=True)
    smallest = min(pictures.sizes, key=lambda size: size[0] * size[1])
    largest = max(pictures.sizes, key=lambda size: size[0] * size[1])
    sizes = f"{median(widths):.0f} x {median(heights):.0f} px (median)"
    if smallest != largest:
        sizes += f", from {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}"
    again = f"{pictures.same} with the pixels of another, {pictures.near} nearly alike with another"
    return {
        "sizes": sizes,
        "channels": _counted(pictures.channels),
        "formats": _counted(pictures.formats),
        "duplicates": again if pictures.near else "none",
    }


def _shares(found: Found) -> str:
    if not found.classes:
        return ""
    shares = sorted(found.classes, key=lambda share: -share.share)
    if len(shares) == 1:
        return f"{shares[0].share:.1%} of the pixels by {shares[0].name}"
    shown = [f"{share.name} {share.share:.1%}" for share in shares]
    if len(shown) > MANY:
        shown = [*shown[: MANY // 2], "...", *shown[-MANY // 2 :]]
    of = "pictures" if found.task == "classification" else "pixels"
    return f"{len(shares)}, of the {of} of train: {', '.join(shown)}"


def _objects(found: Found) -> dict[str, str]:
    if not found.sides:
        return {}
    low, middle, high = (found.sides[int(part * (len(found.sides) - 1))] for part in (0.1, 0.5, 0.9))
    what = {"semantic": "largest pieces of the classes ", "instances": ""}.get(found.task, "pieces ")
    side = f"side {middle:.1%} of the picture's longer side (80 %: {low:.1%} to {high:.1%})"
    return {"objects": f"{found.per_picture} {what}in a picture (median), {side}"}


def _named(found: Found) -> str:
    """Tells how many objects each category has."""
    if found.named is None:
        return ""
    of = "pictures" if found.named.format == "index" else "objects"
    counts = [f"{name} {count:,}" for name, count in found.named.objects.items()]
    return f"{of} of each category: " + ", ".join(counts if len(counts) <= MANY else [*counts[:MANY], "..."])


def _counted(counts: Mapping[str, int]) -> str:
    return next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} {count}" for name, count in counts.items())


def _labelled(label: str, text: str) -> Iterable[str]:
    for number, line in enumerate(wrap(text, WIDTH - LABEL, break_on_hyphens=False)):
        yield f"{label if number == 0 else '':{LABEL}}{line}"
