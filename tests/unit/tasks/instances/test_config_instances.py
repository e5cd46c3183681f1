"""The settings of a job on instances: what they default to, and what is refused."""

from __future__ import annotations

import pytest

from samtune.errors import ConfigError
from samtune.run.settings import load_config
from samtune.tasks.instances.config import InstanceConfig
from samtune.tasks.table import task_of


def test_the_defaults() -> None:
    config = load_config("instances.yaml", ["data.dir=cells"])
    assert isinstance(config, InstanceConfig)
    assert (config.train.objects, config.train.images, config.loss.prompt_weight) == (8, 4, 1.0)
    skeleton = task_of(config).skeleton()
    roles = skeleton.roles()
    assert roles["mask_decoder.iou_prediction_head.layers.0.weight"] == "decoder"
    assert roles["mask_decoder.classes.tokens"] == "head"


def test_without_practice_prompts_stay_as_they_are() -> None:
    roles = task_of(load_config("instances.yaml", ["data.dir=cells", "loss.prompt_weight=0"])).skeleton().roles()
    assert roles["mask_decoder.iou_prediction_head.layers.0.weight"] == "fixed"


def test_all_mistakes_are_told_at_once() -> None:
    wrong = ["train.objects=0", "data.augment=true", "loss.dice_weight=0", "loss.bce_weight=0", "model.name=vit_mini"]
    with pytest.raises(ConfigError) as error:
        load_config("instances.yaml", ["data.dir=cells", *wrong])
    for key in ("train.objects", "data.augment", "loss.bce_weight", "model.name"):
        assert key in str(error.value), key
