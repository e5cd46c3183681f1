from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtune.errors import DiskError
from samtune.report.confusion import matrix_figure
from samtune.tasks.classes.draw import (
    confident_mistakes,
    mistakes_section,
    save_confusion,
    worst_classes,
    wrong_classes_section,
)
from samtune.tasks.classes.report import ClassReport, ClassRow


def make_report(pairs: list[tuple[int, int]], classes: int) -> ClassReport:
    """A report of (label, predicted) pairs; later images are more confident."""
    rows = tuple(
        ClassRow(f"{index}.jpg", label, predicted, int(label != predicted), 0.1, 0.5 + index / 1000)
        for index, (label, predicted) in enumerate(pairs)
    )
    return ClassReport(rows, "test", tuple(f"class {index}" for index in range(classes)), {})


def random_report(classes: int, images: int = 400) -> ClassReport:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=images)
    answers = np.where(rng.random(images) < 0.7, labels, rng.integers(classes, size=images))
    return make_report(list(zip(labels.tolist(), answers.tolist(), strict=True)), classes)


@pytest.mark.parametrize("classes", [2, 3, 12, 13, 40, 100])
def test_the_confusion_matrix_is_a_picture_for_any_number_of_classes(tmp_path: Path, classes: int) -> None:
    before = "matplotlib.pyplot" in sys.modules
    save_confusion(tmp_path / "new" / "confusion.png", random_report(classes))
    with Image.open(tmp_path / "new" / "confusion.png") as picture:
        assert picture.format == "PNG" and 300 < picture.width < 2000 and 200 < picture.height < 2000
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_confusion(tmp_path / name, random_report(3))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def drawn(monkeypatch: pytest.MonkeyPatch, report: ClassReport, **options: int) -> tuple[np.ndarray, list, list, str]:
    """Returns what `save_confusion` draws."""
    calls: list[tuple[np.ndarray, list, list, str]] = []
    monkeypatch.setattr("samtune.report.confusion.matrix_figure", lambda *arguments, what: calls.append(arguments))
    monkeypatch.setattr("samtune.report.confusion.save_figure", lambda path, figure: None)
    save_confusion(Path("unused"), report, **options)
    return calls[0]


def test_rows_are_shares_of_the_images_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report([(0, 0), (0, 0), (0, 1), (0, 1), (1, 1)], classes=3)
    shares, rows, columns, title = drawn(monkeypatch, report)
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0], [0, 1, 0], [np.nan] * 3])
    assert rows == ["class 0 (4)", "class 1 (1)", "class 2 (0)"] and columns == ["class 0", "class 1", "class 2"]
    assert title == "Top-1 accuracy 60.0 % of 5 test images"


def test_of_many_classes_the_worst_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report([(0, 0), (1, 0), (1, 3), (2, 2), (2, 1), (3, 3)], classes=5)
    shares, rows, columns, title = drawn(monkeypatch, report, most=2)
    np.testing.assert_array_equal(shares, [[0, 0, 1], [0.5, 0.5, 0]])
    assert rows == ["class 1 (2)", "class 2 (2)"] and columns == ["class 1", "class 2", "any other class"]
    assert title.startswith("The 2 worst of 5 classes, the worst first; top-1 accuracy 50.0 % of 6 test images")


@pytest.mark.parametrize(("classes", "texts"), [(12, ["50", "50"]), (13, [])])
def test_few_classes_have_numbers_in_their_cells(classes: int, texts: list[str]) -> None:
    shares = np.zeros((classes, classes))
    shares[0, :2] = 0.5
    names = [f"{index}" for index in range(classes)]
    assert [text.get_text() for text in matrix_figure(shares, names, names, "t", what="images").axes[0].texts] == texts


def test_tiny_shares_are_not_zero() -> None:
    shares = np.array([[0.996, 0.004], [0.0, 1.0]])
    texts = [
        text.get_text() for text in matrix_figure(shares, ["a", "b"], ["a", "b"], "t", what="images").axes[0].texts
    ]
    assert texts == ["100", "<1", "100"]


def test_long_names_and_dollars_can_be_drawn(tmp_path: Path) -> None:
    rows = (ClassRow("x", 0, 1, 1, 0.1, 0.9),)
    save_confusion(tmp_path / "a.png", ClassReport(rows, "test", ("$a^{_$", "b" * 99), {}))
    assert (tmp_path / "a.png").is_file()


def test_examples_are_one_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    report = make_report([(0, 1), (1, 0), (1, 1), (1, 0), (0, 1), (0, 1)], classes=2)
    files = {row.name: tmp_path / row.name for row in report.rows}
    for file, side in zip(files.values(), (8, 64, 99, 224, 32, 8), strict=True):
        Image.fromarray(rng.integers(256, size=(side, 2 * side, 3), dtype=np.uint8)).save(file)
    (section,) = mistakes_section(report, files, tmp_path / "mistakes.png")
    assert section.pictures[0].caption == "5 most confident mistakes"
    with Image.open(tmp_path / "mistakes.png") as picture:
        assert picture.format == "PNG" and picture.width > picture.height


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"can't write to .*confusion\.png"):
        save_confusion(tmp_path / "file" / "confusion.png", random_report(2))


def test_confident_mistakes_come_first() -> None:
    report = make_report([(0, 1), (0, 0), (1, 0), (1, 1)], classes=2)
    assert [row.name for row in confident_mistakes(report)] == ["2.jpg", "0.jpg"]
    assert [row.name for row in confident_mistakes(report, n=1)] == ["2.jpg"]


def test_the_worst_classes_with_what_they_are_taken_for() -> None:
    pairs = [(0, 1), (0, 1), (0, 2), (0, 0), (1, 1), (2, 0), (3, 3), (3, 3), (3, 3), (3, 1)]
    table = worst_classes(make_report(pairs, classes=5))
    assert table == [
        ("class 2", "1", "0.0", "class 0 (1)"),
        ("class 0", "4", "25.0", "class 1 (2)"),
        ("class 3", "4", "75.0", "class 1 (1)"),
    ]
    assert worst_classes(make_report(pairs, classes=5), n=1) == table[:1]
    assert worst_classes(make_report([(0, 0)], classes=2)) == []


def test_the_section_of_wrong_classes_has_the_table_and_the_matrix(tmp_path: Path) -> None:
    section = wrong_classes_section(make_report([(0, 0), (0, 1), (1, 1)], classes=2), tmp_path / "confusion.png")
    (table,), (picture,) = section.tables, section.pictures
    assert list(table.columns) == ["Class", "Images", "Accuracy", "Most often taken for"]
    assert list(table.rows) == [("class 0", "2", "50.0", "class 1 (1)")]
    assert picture.file.is_file() and picture.caption.startswith("Confusion matrix")


def test_a_model_without_mistakes_has_no_table_of_them(tmp_path: Path) -> None:
    report = make_report([(0, 0), (1, 1)], classes=2)
    assert mistakes_section(report, {}, tmp_path / "mistakes.png") == []
    section = wrong_classes_section(report, tmp_path / "confusion.png")
    assert (section.note, section.tables, len(section.pictures)) == ("No class goes wrong.", (), 1)
