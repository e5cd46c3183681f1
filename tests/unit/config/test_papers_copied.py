"""`papers.yaml` against a second transcription of settings and data sets; published tables by their digest."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from samtune.config.papers import _content, datasets, hyperparameters

# GRFT, Tab. 6 (FGVC), 7 (VTAB) and 8 (percent): learning rate, batch, subsets, lambda, L ("all" is None), k, percent.
# GPS, Tab. 13: classes, test images.
COPY = """
vtab/cifar                   2e-3   32 1 1e-6 all  1 0.26   100 10000
vtab/caltech101              2e-3   16 1 1e-8 2    1 0.26   102 6084
vtab/dtd                     2e-3   16 1 1e-8 3    1 0.22    47 1880
vtab/oxford_flowers102       2e-3   16 1 1e-6 all  1 0.26   102 6149
vtab/oxford_iiit_pet         3e-3   32 1 1e-3 all  2 0.28    37 3669
vtab/svhn                    5e-3   32 1 1e-3 1    4 0.41    10 26032
vtab/sun397                  2.5e-3 16 1 1e-6 2    1 0.53   397 21750
vtab/patch_camelyon          4e-3   32 1 1e-7 all  2 0.25     2 32768
vtab/eurosat                 2e-3   16 1 1e-4 3    2 0.26    10 5400
vtab/resisc45                1.5e-3 16 1 1e-3 all  3 0.37    45 6300
vtab/diabetic_retinopathy    2e-3   32 1 1e-6 1    1 0.18     5 42670
vtab/clevr_count             3e-4   16 1 0    0    3 0.33     8 15000
vtab/clevr_dist              2e-3   16 1 1e-5 all  2 0.26     6 15000
vtab/dmlab                   1.5e-3 16 1 0    0    2 0.30     6 22735
vtab/kitti                   1e-3   16 1 1e-5 all  1 0.18     4 711
vtab/dsprites_loc            7e-3   32 1 1e-4 5    3 0.34    16 73728
vtab/dsprites_ori            5e-4   16 1 0    0    2 0.31    16 73728
vtab/smallnorb_azi           3e-3   32 1 1e-8 all  3 0.34    18 12150
vtab/smallnorb_ele           3e-4   32 1 1e-3 2    2 0.30     9 12150
fgvc/cub                     5e-3   32 4 1e-3 2    2 0.47   200 5794
fgvc/nabirds                 1e-4   32 1 1e-4 7   26 2.56   555 24633
fgvc/oxford_flowers          1e-3   32 1 1e-4 2    1 0.26   102 6149
fgvc/stanford_dogs           2e-4   64 2 5e-5 4    5 0.58   120 8580
fgvc/stanford_cars           5e-4   32 7 1e-4 all 20 2.22   196 8041
"""
ROWS = {line.split()[0]: line.split()[1:] for line in COPY.strip().splitlines()}
COLUMNS = {"fgvc/cub", "fgvc/stanford_cars", "vtab/dmlab", "vtab/dsprites_ori", "vtab/smallnorb_ele"}

# ViT-B/16 without its head, biases of its linear and conv layers, and what k = 1 adds in all matrices together.
BACKBONE, BIASES = 85_798_656, 83_712
ONE = {"rows": 65_280, "columns": 83_712}

# GPS, Tab. 7, "Params. (M)": percent of the model but for three of ViT-B/16, which are millions indeed.
GPS_PERCENT_TEXT = """
fgvc/cub 0.47  fgvc/oxford_flowers 0.29  fgvc/stanford_dogs 0.30  vtab/cifar 0.29  vtab/caltech101 0.29  vtab/dtd 0.24
vtab/oxford_flowers102 0.29  vtab/oxford_iiit_pet 0.23  vtab/svhn 0.20  vtab/sun397 0.55  vtab/patch_camelyon 0.30
vtab/eurosat 0.20  vtab/resisc45 0.24  vtab/diabetic_retinopathy 0.20  vtab/clevr_dist 0.20  vtab/dmlab 0.20
vtab/kitti 0.20  vtab/dsprites_loc 0.21  vtab/dsprites_ori 0.21  vtab/smallnorb_azi 0.21  vtab/smallnorb_ele 0.20
"""
GPS_PERCENT = dict(re.findall(r"(\S+) ([\d.]+)", GPS_PERCENT_TEXT))
GPS_MILLIONS = {"fgvc/nabirds": 1.35, "fgvc/stanford_cars": 1.07, "cifar-100": 0.58}

# SHA-256 of the rows of each table; at this state they were compared with the texts of the papers, number by number.
DIGESTS = {
    "GPS Tab. 3": "11189320a877",
    "GRFT Tab. 2": "c16fc808cab8",
    "SPT Tab. 10": "3291f9daee3b",
    "SPT Tab. 1": "640222c302fc",
    "SPT Tab. 2 (MAE)": "2b348326b74c",
    "SPT Tab. 2 (MoCo v3)": "e2d2a2aea0e2",
    "SPT Tab. 3": "273e43196bd5",
    "SPT Tab. 4": "ae060f513b3d",
    "SPT Tab. 6": "566037552c4b",
    "GPS Tab. 2": "6db44865f6d6",
    "GRFT Tab. 1": "a583d7a6f887",
    "SPT Tab. 9": "56fd73017d2e",
    "GPS Tab. 4 and 9 (Swin)": "f80484252acf",
    "GPS Tab. 4 and 9 (ConvNeXt)": "a16a8ba4451e",
    "GPS Tab. 6 and 12": "d686f9348182",
    "GRFT Tab. 4": "3f81c098e034",
    "GRFT Tab. 5": "78013aec6156",
    "GPS Tab. 10 (ViT)": "8910812eb5b7",
    "GPS Tab. 10 (Swin)": "e947cea3727b",
    "GPS Tab. 10 (ConvNeXt)": "37fb39658414",
    "GPS Tab. 11 (ViT)": "bf0ee941ef1b",
    "GPS Tab. 11 (Swin)": "eb941f43b749",
    "GPS Tab. 11 (ConvNeXt)": "11c3808f9a13",
    "GPS Tab. 8": "f1a96844f3ac",
}


@pytest.mark.parametrize("name", ROWS)
def test_settings_of_grft(name: str) -> None:
    rate, batch, subsets, weight, blocks, k, *_ = ROWS[name]
    assert hyperparameters("grft", name) == {
        "select": {"name": "grft", "pattern": "columns" if name in COLUMNS else "rows", "k": int(k)},
        "score": {"subsets": int(subsets)},
        "tune": {"start": {"weight": float(weight), "blocks": None if blocks == "all" else int(blocks)}},
        "train": {
            **{"optimizer": "adam", "weight_decay": 0.0, "epochs": 100, "warmup": 0.1},
            **{"lr": float(rate), "batch": int(batch)},
        },
    }


@pytest.mark.parametrize("name", ROWS)
def test_tab_8_of_grft_tells_rows_from_columns(name: str) -> None:
    """k x (rows or columns) + biases + head, in percent of the model: one of the two gives what is printed."""
    select, head = hyperparameters("grft", name)["select"], datasets()[name].classes * 769
    trained = {pattern: select["k"] * each + BIASES + head for pattern, each in ONE.items()}
    off = {pattern: abs(100 * count / (BACKBONE + head) - float(ROWS[name][6])) for pattern, count in trained.items()}
    assert [pattern for pattern, error in off.items() if error <= 0.005] == [select["pattern"]]


def test_tab_7_of_gps_mixes_percent_and_millions() -> None:
    percent = {name: float(text) for name, text in GPS_PERCENT.items()}
    assert len(percent) + len(GPS_MILLIONS) + len(["vtab/clevr_count"]) == 25
    for name, printed in (percent | GPS_MILLIONS).items():
        head = datasets()[name].classes * 769
        trained = hyperparameters("gps", name)["select"]["per_neuron"] * 83_712 + BIASES + head
        millions, percent_of_all = trained / 1e6, 100 * trained / (BACKBONE + head)
        fits, other = (millions, percent_of_all) if name in GPS_MILLIONS else (percent_of_all, millions)
        assert abs(fits - printed) < 0.006 < abs(other - printed), name


@pytest.mark.parametrize("name", ROWS)
def test_classes_and_test_images(name: str) -> None:
    assert (datasets()[name].classes, datasets()[name].test) == tuple(map(int, ROWS[name][7:]))


def test_the_data_sets_beside_vtab_and_fgvc() -> None:
    found = {name: (facts.classes, facts.test) for name, facts in datasets().items() if name not in ROWS}
    assert found == {"cifar-100": (100, 10000), "imagenet": (1000, 50000)}


def test_settings_that_hold_for_all_data_sets() -> None:
    hundred = {"epochs": 100, "warmup": 0.1}
    assert hyperparameters("gps", None) == {
        "select": {"name": "gps", "level": "neuron"},
        "train": {"optimizer": "adam", "weight_decay": 0.0, **hundred},
    }
    assert hyperparameters("spt", None) == {
        "select": {"name": "spt", "structure": "lora", "rank": 8, "per": "sample"},
        "score": {"images": 800},
        "train": {**{"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch": 64, "drop_path": 0.1}, **hundred},
    }


def test_every_published_table_is_as_it_was_compared_with_its_paper() -> None:
    """A number that is to change is looked up in the paper first; then the digest of its table is renewed here."""
    found = {f"{table['paper']} {table['table']}": _digest(table) for table in _content()["published"]}
    assert len(found) == len(_content()["published"])
    assert found == DIGESTS


def _digest(table: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()[:12]
