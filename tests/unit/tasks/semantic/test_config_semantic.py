"""The settings of a semantic job: names by place or by value, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from samtune.data.formats.table import FORMATS, FormatName
from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.tasks.semantic.config import SemanticConfig


def load(*overrides: str) -> SemanticConfig:
    config = load_config("semantic.yaml", ["data.dir=x", *overrides])
    assert isinstance(config, SemanticConfig)
    return config


def test_names_by_place_or_by_value(tmp_path: Path) -> None:
    assert load("data.classes=[sky, road]").data.classes == {0: "sky", 1: "road"}
    config = load("data.classes={7: road, 0: sky}")
    assert list((config.data.classes or {}).items()) == [(0, "sky"), (7, "road")]
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    assert load().data.classes is None


@pytest.mark.parametrize("value", ["[sky]", "[sky, sky]", "{0: sky, 256: road}", "{a: sky, b: road}", "3", "[1, 2]"])
def test_other_classes_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="two or more different names"):
        load(f"data.classes={value}")


def test_pixels_that_do_not_count_are_no_class() -> None:
    with pytest.raises(ConfigError, match="no class, but 'road' has it"):
        load("data.classes=[sky, road]", "data.ignore_index=1")
    with pytest.raises(ConfigError, match="dice_weight"):
        load("loss.dice_weight=0", "loss.ce_weight=0")


def test_cached_embeddings_are_of_one_view() -> None:
    still = ("train.embeddings=cache", "data.augment=none")
    assert load(*still).train.embeddings == Path("cache")
    with pytest.raises(ConfigError, match=r'data.augment: "upright", expected none with train.embeddings'):
        load("train.embeddings=cache")
    with pytest.raises(ConfigError, match=r"data.tiles.size: 256, expected no tiles with train.embeddings, which"):
        load(*still, "data.tiles.size=256")


def test_chosen_categories_are_names() -> None:
    assert load("data.categories=[car, road, car]").data.categories == ("car", "road")
    assert load("data.categories=car").data.categories == ("car",)
    assert load().data.categories is None and load().data.format == "auto"
    for value in ("[]", "[1]", "3", "{a: b}"):
        with pytest.raises(ConfigError, match=r"expected one or more names, \[car, road\]"):
            load(f"data.categories={value}")
    with pytest.raises(
        ConfigError, match=r"data.format: \"pascal\", expected 'auto', 'pairs', 'coco', 'yolo', 'labelme'"
    ):
        load("data.format=pascal")


def test_every_format_may_be_named() -> None:
    assert get_args(FormatName) == ("auto", "pairs", *FORMATS)
