"""Scores are gradients, summed; nothing else about the model changes."""

from __future__ import annotations

import hashlib
import logging
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import prompts_of, toy_batch, toy_model
from toyvit import FAMILIES, labelled_batch, toy_classifier

from samtune.errors import DataError, NonFiniteError
from samtune.models.sam.model import SamModel, upsample_logits
from samtune.models.timm.model import Classifier
from samtune.scoring.score import ScoreLoss, hash_batches, mean_loss, score
from samtune.tasks.classes.losses import head_cross_entropy, image_contrastive
from samtune.tasks.masks.losses import dice_bce
from samtune.tasks.pixels import ContrastiveLoss, task_loss
from samtune.types import Batch, LabelledBatch

BATCHES = [toy_batch(seed=seed) for seed in range(3)]


def contrast(*, cells: int = 128, seed: int = 0) -> ScoreLoss:
    return ContrastiveLoss(cells=cells, temperature=0.1, seed=seed)


def test_scores_are_the_summed_gradients() -> None:
    model = toy_model()
    names, parameters = zip(*model.net.named_parameters(), strict=True)
    expected = [torch.zeros_like(p) for p in parameters]
    for batch in BATCHES:
        loss = dice_bce(upsample_logits(model(batch), 64), batch)
        for total, gradient in zip(expected, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            total += 0 if gradient is None else gradient
    scores = score(model, BATCHES, task_loss(dice_bce))
    assert list(scores.sums) == list(names) and (scores.batches, scores.skipped) == (3, 0)
    for name, total in zip(names, expected, strict=True):
        torch.testing.assert_close(scores.sums[name], total, rtol=1e-5, atol=1e-8)
    assert bool(scores.sums["image_encoder.pos_embed"].any())
    assert not bool(scores.sums["prompt_encoder.point_embeddings.0.weight"].any())  # no gradient is zero


def test_scores_keep_the_sign() -> None:
    """A sum of absolute values would not cancel."""

    def alternating(model: SamModel, batch: Batch) -> Tensor:
        return model(BATCHES[0]).mean() * next(signs)

    signs = iter([1.0, -1.0])
    scores = score(toy_model(), BATCHES[:2], alternating)
    assert not any(bool(total.any()) for total in scores.sums.values())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [False, True], ids=["normal", "after an error"])
def test_model_is_left_as_it_was(training: bool, fails: bool) -> None:
    model, plain = toy_model().train(training), toy_model()
    model.net.image_encoder.requires_grad_(False)
    required = [p.requires_grad for p in model.parameters()]

    def loss(model: SamModel, batch: Batch) -> Tensor:
        assert not model.training and all(p.requires_grad for p in model.parameters())
        return task_loss(dice_bce)(model, batch) * (float("nan") if fails and batch is not BATCHES[0] else 1.0)

    if fails:
        with pytest.raises(NonFiniteError):
            score(model, BATCHES, loss)
    else:
        score(model, BATCHES, loss)
    assert model.training == training
    assert [p.requires_grad for p in model.parameters()] == required
    assert all(p.grad is None for p in model.parameters())
    assert all(
        torch.equal(a, b) for a, b in zip(model.net.state_dict().values(), plain.net.state_dict().values(), strict=True)
    )


def test_gradients_that_were_there_before_do_not_count() -> None:
    model = toy_model()
    model(BATCHES[0]).mean().backward()
    fresh, stale = score(toy_model(), BATCHES[:1], task_loss(dice_bce)), score(model, BATCHES[:1], task_loss(dice_bce))
    assert all(torch.equal(fresh.sums[name], stale.sums[name]) for name in fresh.sums)


def test_undefined_batches_are_skipped_counted_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    tiny = toy_batch(sizes=((15, 15), (12, 60)))  # shows no whole cell
    with caplog.at_level(logging.WARNING):
        scores = score(toy_model(), [BATCHES[0], tiny], contrast(cells=8))
    alone = score(toy_model(), BATCHES[:1], contrast(cells=8))
    assert (scores.batches, scores.skipped) == (1, 1)
    assert "1 of 2 scoring batches had no two cells or images of one class" in caplog.text
    assert all(torch.equal(scores.sums[name], alone.sums[name]) for name in alone.sums)
    assert all(bool(total.isfinite().all()) for total in scores.sums.values())


def test_nothing_to_score_is_an_error() -> None:
    model = toy_model()
    for batches in ([], [toy_batch(sizes=((15, 15),))]):
        with pytest.raises(DataError, match=r"no image can be scored.*Use another score\.loss"):
            score(model, batches, contrast())


def test_loss_that_is_not_finite_names_the_images() -> None:
    with pytest.raises(NonFiniteError, match=r"scoring loss is inf on images image0_0, image0_1"):
        score(toy_model(), BATCHES, lambda model, batch: model(batch).square().mean() * float("inf"))


@pytest.mark.parametrize("loss", ["contrastive", "task"])
@pytest.mark.parametrize("foreground", [True, False], ids=["all foreground", "no foreground"])
def test_scores_of_one_class_are_finite(loss: str, foreground: bool) -> None:
    batch = toy_batch()
    batch.masks[:] = foreground
    scores = score(toy_model(), [batch], contrast() if loss == "contrastive" else task_loss(dice_bce))
    assert scores.batches == 1 and all(bool(total.isfinite().all()) for total in scores.sums.values())


def test_contrastive_scores_reach_the_encoder_only_and_repeat() -> None:
    first, again, other = (score(toy_model(), BATCHES, contrast(cells=6, seed=seed)).sums for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    reached = {name for name, total in first.items() if bool(total.any())}
    assert reached == {name for name in first if name.startswith("image_encoder.")}


def test_hash_is_of_the_pixels_in_order() -> None:
    hashes = [score(toy_model(), batches, task_loss(dice_bce)).images_hash for batches in (BATCHES[:2], BATCHES[1::-1])]
    pixels = b"".join(part.numpy().tobytes() for batch in BATCHES[:2] for part in (batch.images, batch.masks))
    assert hashes[0] == hashlib.sha256(pixels).hexdigest()
    assert hashes[0] != hashes[1]


def test_squares_and_samples_are_sums_over_single_images() -> None:
    model = toy_model()
    whole = score(model, BATCHES, task_loss(dice_bce), squares=True)
    single = score(model, BATCHES, task_loss(dice_bce), per="sample", squares=True)
    assert (whole.batches, whole.per) == (3, "batch") and (single.batches, single.per) == (6, "sample")
    assert whole.images_hash == single.images_hash == hash_batches(BATCHES)
    name = "image_encoder.blocks.0.mlp.lin1.weight"
    gradients = [score(model, [part], task_loss(dice_bce)).sums[name] for batch in BATCHES for part in batch.split(1)]
    assert single.squares is not None and whole.squares is not None
    torch.testing.assert_close(single.squares[name], sum(g.square() for g in gradients), rtol=1e-4, atol=1e-10)
    torch.testing.assert_close(single.sums[name], sum(gradients), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        whole.sums[name], score(model, BATCHES, task_loss(dice_bce)).sums[name], rtol=1e-5, atol=1e-8
    )
    batches = [score(model, [batch], task_loss(dice_bce)).sums[name] for batch in BATCHES]
    torch.testing.assert_close(whole.squares[name], sum(g.square() for g in batches), rtol=1e-4, atol=1e-10)
    assert score(model, BATCHES, task_loss(dice_bce)).squares is None


def test_single_items_keep_their_prompts_and_sizes() -> None:
    batch = toy_batch(prompts=prompts_of("both"))
    model = toy_model()
    together = model(batch)
    for index, part in enumerate(batch.split(1)):
        assert (len(part), part.names, part.sizes_input) == (
            1,
            batch.names[index : index + 1],
            (batch.sizes_input[index],),
        )
        torch.testing.assert_close(model(part), together[index : index + 1], rtol=1e-4, atol=1e-5)


def test_mean_loss_leaves_undefined_batches_out() -> None:
    def loss(model: SamModel, batch: Batch) -> Tensor | None:
        return None if batch.names == BATCHES[1].names else torch.tensor(float(batch.images.float().mean()))

    expected = [float(BATCHES[i].images.float().mean()) for i in (0, 2)]
    model = toy_model().train()
    assert mean_loss(model, BATCHES, loss) == pytest.approx(sum(expected) / 2)
    assert model.training
    assert math.isnan(mean_loss(model, BATCHES[1:2], loss))


def test_mean_loss_is_of_evaluation_mode_and_without_gradients() -> None:
    model = toy_classifier("vit").train()
    model.net.blocks[0].mlp.drop1.p = 0.5
    modes = [module.training for module in model.modules()]

    def loss(model: Classifier, batch: LabelledBatch) -> Tensor:
        assert not torch.is_grad_enabled() and not any(module.training for module in model.modules())
        return head_cross_entropy(model, batch)

    batches = [labelled_batch(seed=seed) for seed in range(2)]
    found = mean_loss(model, batches, loss)
    assert modes == [module.training for module in model.modules()]
    with torch.no_grad():
        assert found == pytest.approx(float(sum(head_cross_entropy(model.eval(), batch) for batch in batches)) / 2)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_image_contrast_is_of_the_features_at_its_temperature(temperature: float) -> None:
    model, batch = toy_classifier("vit"), labelled_batch()
    with torch.no_grad():
        found = image_contrastive(temperature=temperature)(model, batch)
        z = F.normalize(model.features(batch), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    share = similarity.log_softmax(1)
    same = (batch.labels[:, None] == batch.labels).fill_diagonal_(False)
    expected = -torch.stack([share[row][same[row]].mean() for row in range(len(z))]).mean()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_classifiers_are_scored_by_features_or_through_the_head(family: str) -> None:
    model, batches = toy_classifier(family), [labelled_batch(seed=seed) for seed in range(2)]
    head = f"{model.head_module()}.weight"
    contrastive = score(model, batches, image_contrastive(temperature=0.07))
    through_head = score(model, batches, head_cross_entropy)
    assert not bool(contrastive.sums[head].any()) and bool(through_head.sums[head].any())
    stem = next(name for name, part in model.parts().items() if part == model.stem_part())
    assert bool(contrastive.sums[stem].any()) and bool(through_head.sums[stem].any())
