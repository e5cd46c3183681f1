"""Channels and ranges of all pictures of a folder, checked at once."""

from __future__ import annotations

from pathlib import Path

from samtune.config.pixels import RGB, Pixels
from samtune.data.channels.check import check_pixels, fitting_pixels
from samtune.data.facts import ImageFacts

PLAIN = ImageFacts(9, 9, 1, [], "", 0)
FIVE = PLAIN._replace(channels=5)
DEEP = PLAIN._replace(channels=1, levels=[102.0, 3010.0, 130.4, 2800.2], scaled="scaled somehow")
FLOAT = DEEP._replace(levels=[-0.5, 0.75, -0.25, 0.5], scaled=None)


def facts(*found: ImageFacts) -> dict[Path, ImageFacts]:
    return {Path(f"{name}.tif"): one for name, one in zip("abcdefgh", found, strict=False)}


def test_every_wrong_file_is_named() -> None:
    grey, alpha, pages = FIVE._replace(channels=1), FIVE._replace(channels=4, alpha=True), FIVE._replace(pages=5)
    report = check_pixels(facts(PLAIN, grey, alpha, FIVE, pages), RGB)
    assert [line.split(",")[0].split(";")[0] for line in report.errors] == ["d.tif: 5 channels", "e.tif: 5 pages"]
    report = check_pixels(facts(PLAIN, grey, alpha, FIVE, pages), Pixels(5))
    assert [line.partition(",")[0] for line in report.errors] == [
        "a.tif: 3 channels",
        "b.tif: 1 channel",
        "c.tif: 4 channels",
    ]
    assert "one of them transparency, but the model takes 5" in report.errors[2]


def test_without_a_model_pictures_must_be_alike() -> None:
    report = check_pixels(facts(FIVE, FIVE, PLAIN), None)
    assert report.warnings == ("pictures have 5 channels; set model.channels: 5",)
    assert [line.partition(",")[0] for line in report.errors] == ["c.tif: 3 channels"]
    assert check_pixels(facts(PLAIN, FIVE._replace(channels=1)), None).errors == ()
    assert check_pixels({}, None).errors == ()


def test_deep_pictures_need_a_range() -> None:
    (line,) = check_pixels(facts(DEEP, DEEP), RGB).errors
    assert line.startswith("2 picture(s) have more than 8 bits, and no data.range says")
    assert "a.tif has 102 to 3010, 99 % of them 130.4 to 2800.2; b.tif has" in line
    assert line.endswith("add to the config: data.range: [130, 2801]")
    (beside,) = check_pixels(facts(DEEP, DEEP, PLAIN), RGB).errors
    assert beside.endswith("; 1 have 8 bits: save all in one depth, or set a data.range that is right for both")
    assert check_pixels(facts(DEEP, DEEP, PLAIN), None).warnings == (beside,)
    assert check_pixels(facts(FLOAT), RGB).errors[0].endswith("data.range: [-0.25, 0.5]")
    assert (
        "; c.tif has 102 to 3010, 99 % of them 130.4 to 2800.2, and 2 more; add"
        in (check_pixels(facts(*[DEEP] * 5), None).warnings[0])
    )
    report = check_pixels(facts(DEEP), Pixels(3, (0, 4095)))
    assert report.errors == report.warnings == ()


def test_a_range_beside_the_values_is_told() -> None:
    (line,) = check_pixels(facts(DEEP), Pixels(3, (0, 1))).warnings
    assert line.startswith("a.tif: has 102 to 3010") and line.endswith("hardly any inside of data.range [0, 1]")


def test_files_of_older_runs_still_measure_16_bits() -> None:
    report = check_pixels(facts(DEEP), RGB, tuned=True)
    assert report.errors == () and report.warnings == ("a.tif: scaled somehow",)
    assert len(check_pixels(facts(FLOAT), RGB, tuned=True).errors) == 1
    for pixels, found in ((Pixels(5), DEEP._replace(channels=5)), (Pixels(4), DEEP._replace(channels=4, alpha=True))):
        assert len(check_pixels(facts(found), pixels, tuned=True).errors) == 1  # it would stop at the first picture


def test_what_fits_is_what_most_pictures_have() -> None:
    assert fitting_pixels({}) == fitting_pixels(facts(PLAIN, PLAIN._replace(channels=1))) == RGB
    assert fitting_pixels(facts(FIVE, FIVE, PLAIN)) == Pixels(5)
    assert fitting_pixels(facts(FIVE._replace(channels=4, alpha=True))) == RGB
    assert fitting_pixels(facts(FIVE._replace(channels=2, levels=[7.0, 9.0, 7.5, 8.5]))) == Pixels(2, (7, 9))
    assert fitting_pixels(facts(DEEP._replace(levels=[12345678.0] * 4))) == Pixels(3, (12345678, 12345679))
    assert fitting_pixels(facts(FLOAT._replace(levels=[0.1, 0.9, 0.12345678, 0.5]))) == Pixels(3, (0.123457, 0.5))


def test_two_depths_beside_each_other_are_told() -> None:
    (line,) = check_pixels(facts(DEEP, PLAIN, PLAIN), Pixels(3, (0, 4095))).warnings
    assert line.startswith("2 picture(s) have 8 bits and 1 have more: one data.range is for all")
