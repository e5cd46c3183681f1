from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toy import toy_model
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.errors import ConfigError, DataError, NonFiniteError
from samtune.tasks.classes.evaluate import class_logits, class_rows, evaluate_classes, head_inputs
from samtune.types import LabelledBatch

CLASSES = ("a", "b", "c")


class FakeModel(nn.Module):
    """Answers with fixed logits by name and remembers how it was called."""

    def __init__(self, logits: dict[str, list[float]]) -> None:
        super().__init__()
        self.logits = logits
        self.frozen = nn.BatchNorm2d(1)
        self.seen: list[tuple[bool, bool]] = []

    def forward(self, batch: LabelledBatch) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        return torch.tensor([self.logits[name] for name in batch.names])


def make_batch(**labels: int) -> LabelledBatch:
    images = torch.zeros(len(labels), 3, 4, 4, dtype=torch.uint8)
    return LabelledBatch(images, torch.tensor(list(labels.values())), tuple(labels))


@pytest.fixture
def model() -> FakeModel:
    return FakeModel({"x": [3.0, 1.0, 0.0], "y": [2.0, 1.0, 0.0], "z": [0.0, 0.0, 1.0]})


def test_every_image_has_a_row_in_order(model: FakeModel) -> None:
    seen = []
    report = evaluate_classes(
        model,
        [make_batch(x=0, y=2), make_batch(z=1)],
        classes=CLASSES,
        split="val",
        advance=lambda: seen.append(len(model.seen)),
    )
    assert [(r.name, r.label, r.predicted, r.rank) for r in report.rows] == [
        ("x", 0, 0, 0),
        ("y", 2, 0, 2),
        ("z", 1, 2, 2),  # a and b tie, and a tie counts against the model
    ]
    expected = torch.tensor([2.0, 1.0, 0.0]).softmax(dim=0)
    assert report.rows[1].probability == pytest.approx(float(expected[2]))
    assert report.rows[1].confidence == pytest.approx(float(expected[0]))
    assert report.split == "val" and report.classes == CLASSES
    assert report.values == {"top1": pytest.approx(1 / 3), "mean_per_class": pytest.approx(1 / 3)}
    assert {*report.values, "ci95", *report.metrics} <= report.definition.keys() and "top5" not in report.definition
    assert seen == [1, 2]
    assert model.seen == [(False, False), (False, False)]


def test_equal_logits_are_never_right() -> None:
    (tied, best) = class_rows(["tied", "best"], torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 1.0]]), torch.tensor([0, 0]))
    assert tied.rank == 2 and tied.predicted == 1 and best.rank == 0 and best.predicted == 0


def test_the_only_class_is_right() -> None:
    (row,) = class_rows(["x"], torch.zeros(1, 1), torch.tensor([0]))
    assert (row.rank, row.predicted, row.probability) == (0, 0, 1.0)


def test_allowed_classes_make_a_report_of_their_own() -> None:
    model = FakeModel({"x": [9.0, 1.0, 0.0, 8.0]})
    report = evaluate_classes(model, [make_batch(x=1)], classes=("a", "b", "c", "d"), allowed=[2, 1])
    (row,) = report.rows
    assert report.classes == ("c", "b") and (row.label, row.predicted, row.rank) == (1, 1, 0)
    assert row.probability == pytest.approx(float(torch.tensor([1.0, 0.0]).softmax(dim=0)[0]))
    assert "Only 2 of the model's 4 classes may be answered." in report.definition["top1"]
    with pytest.raises(DataError, match="x has class 3, which is not among the 2 classes"):
        evaluate_classes(model, [make_batch(x=3)], classes=("a", "b", "c", "d"), allowed=[2, 1])


@pytest.mark.parametrize(
    ("allowed", "about"), [([0, 3], r"\[3\] are not classes"), ([-1], r"\[-1\]"), ([], "none"), ([1, 1], "twice")]
)
def test_allowed_must_be_a_subset(model: FakeModel, allowed: list[int], about: str) -> None:
    with pytest.raises(ConfigError, match=f"different indices from 0 to 2, but .*{about}"):
        evaluate_classes(model, [make_batch(x=0)], classes=CLASSES, allowed=allowed)


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_outside_of_the_classes_are_errors(model: FakeModel, label: int) -> None:
    with pytest.raises(DataError, match=f"y has class {label}, which is not among the 3 classes"):
        evaluate_classes(model, [make_batch(x=0, y=label)], classes=CLASSES)


def test_the_modes_come_back_after_success_and_error(model: FakeModel) -> None:
    model.train()
    model.frozen.eval()
    evaluate_classes(model, [make_batch(x=0)], classes=CLASSES)
    assert model.training and not model.frozen.training
    with pytest.raises(DataError, match=r"the test loader has no batch.*data\.test"):
        evaluate_classes(model, [], classes=CLASSES)
    with pytest.raises(ConfigError, match="the model has 3 outputs for 2 classes"):
        evaluate_classes(model, [make_batch(x=0)], classes=CLASSES[:2])
    assert model.training and not model.frozen.training


def test_non_finite_logits_name_the_images(model: FakeModel) -> None:
    model.logits["y"] = [0.0, float("nan"), 0.0]
    with pytest.raises(NonFiniteError, match=r"the logits of y are not finite.*lower the learning rate"):
        evaluate_classes(model, [make_batch(x=0, y=1)], classes=CLASSES)


@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_and_evaluation_agree(family: str) -> None:
    model, batch = toy_classifier(family), labelled_batch()
    probabilities = class_logits(model, batch).softmax(dim=1)
    assert probabilities.dtype == torch.float32 and torch.allclose(probabilities.sum(dim=1), torch.ones(6))
    report = evaluate_classes(model, [batch], classes=CLASSES)
    assert [row.predicted for row in report.rows] == probabilities.argmax(dim=1).tolist()
    assert [row.confidence for row in report.rows] == probabilities.amax(dim=1).tolist()


def test_autocast_reaches_the_model_only() -> None:
    model, batch = toy_classifier("vit"), labelled_batch()
    lowered = class_logits(model, batch, autocast_dtype=torch.bfloat16)
    assert lowered.dtype == torch.float32
    assert not torch.equal(lowered, class_logits(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_head_inputs_are_the_features(family: str) -> None:
    model, batches = toy_classifier(family), [labelled_batch(seed=seed) for seed in range(2)]
    with head_inputs(model, every=4) as collected:
        assert collected().shape == (0, 0)
        evaluate_classes(model, batches, classes=CLASSES)
    with torch.no_grad():
        model(batches[0])  # after the block nothing is collected
        expected = torch.cat([model.features(batch) for batch in batches])[::4]  # 0, 4 and 8: of both batches
    assert collected().dtype == torch.float16 and collected().shape == expected.shape
    torch.testing.assert_close(collected().float(), expected, rtol=2e-3, atol=2e-3)


def test_head_inputs_need_a_head() -> None:
    model = toy_model()
    with pytest.raises(ConfigError, match="toy has no head"), head_inputs(model, every=1):
        pass
