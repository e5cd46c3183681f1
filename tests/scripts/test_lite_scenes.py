"""Pictures for pre-training: determined by their seed, with objects that are numbered and large enough."""

from __future__ import annotations

from pathlib import Path

import cv2
import lite_scenes
import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packages in small: three cut-outs, of which one fills its frame, and two photographs."""
    home = tmp_path_factory.mktemp("material")
    drawings, photos = home / lite_scenes.CUTOUTS / "food", home / lite_scenes.PHOTOS
    drawings.mkdir(parents=True)
    photos.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, radius in (("pear", 40), ("plum", 30), ("frame", 200)):
        drawing = rng.integers(0, 256, (120, 120, 4), dtype=np.uint8)
        drawing[..., 3] = 0
        cv2.circle(drawing, (60, 60), radius, (20, 90, 200, 255), -1)
        cv2.imwrite(str(drawings / f"{name}.png"), drawing)
    for name in ("hill_by_A", "umang_by_B"):
        cv2.imwrite(str(photos / f"{name}.jpg"), rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    return home


@pytest.fixture(scope="module")
def material(folder: Path) -> lite_scenes.Material:
    return lite_scenes.load_material(folder)


def test_material_is_what_has_a_silhouette_and_is_a_photograph(folder: Path, material: lite_scenes.Material) -> None:
    assert len(material.cutouts) == 2 and all(c.shape[2] == 4 and c.dtype == np.uint8 for c in material.cutouts)
    assert len(material.photos) == len(lite_scenes.load_photos()) + 1  # umang is a drawing
    assert (folder / "cutouts.npz").is_file()
    again = lite_scenes.load_material(folder)
    assert all(np.array_equal(a, b) for a, b in zip(again.cutouts, material.cutouts, strict=True))


def test_a_folder_without_material_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lacks usr/share/backgrounds"):
        lite_scenes.load_material(tmp_path)
    assert not list(tmp_path.iterdir())  # what is unpacked there later is read


def test_pictures_are_determined_by_their_seed_and_show_what_their_maps_say(material: lite_scenes.Material) -> None:
    scenes = lite_scenes.draw_scenes(6, size=128, seed=(3, 1), material=material)
    again = lite_scenes.draw_scenes(6, size=128, seed=(3, 1), material=material)
    other = lite_scenes.draw_scenes(6, size=128, seed=(3, 2), material=material)
    assert torch.equal(scenes.images, again.images) and torch.equal(scenes.instances, again.instances)
    assert not torch.equal(scenes.images, other.images)
    assert scenes.images.shape == (6, 3, 128, 128) and scenes.images.dtype == torch.uint8
    for instances in scenes.instances:
        numbers, areas = instances.unique(return_counts=True)
        assert numbers[-1] > 0 and numbers[-1] == len(numbers) - int(numbers[0] == 0)  # 1 to n, without gaps
    for instances in scenes.instances[:3]:  # collages
        numbers, areas = instances.unique(return_counts=True)
        assert int(areas[numbers > 0].min()) >= lite_scenes.SMALLEST * 128 * 128
