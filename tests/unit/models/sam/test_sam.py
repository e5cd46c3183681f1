"""SamModel against segment-anything's own classes: same names, same numbers, at any size, batched."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from segment_anything import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from segment_anything.modeling import ImageEncoderViT, Sam
from torch import Tensor, nn
from toy import SPEC, prompts_of, toy_batch, toy_model

from samtune.errors import ConfigError
from samtune.models.sam.model import SamModel, upsample_logits
from samtune.models.sam.vit import build_vit
from samtune.models.segmenter import Embedded
from samtune.models.table import build_model
from samtune.types import Prompts

PROMPTS = pytest.mark.parametrize("kind", ["none", "box", "point", "points", "both"])
STOCK = {"sam_vit_b": build_sam_vit_b, "sam_vit_l": build_sam_vit_l, "sam_vit_h": build_sam_vit_h}


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", list(STOCK))
@pytest.mark.parametrize("image_size", [None, 256], ids=["stock size", "256 px"])
def test_state_dict_has_the_stock_keys_and_shapes(name: str, image_size: int | None) -> None:
    with torch.device("meta"):
        ours, stock = shapes(build_vit(name, checkpoint="random", image_size=image_size).net), shapes(STOCK[name]())
    assert ours == stock
    assert name != "sam_vit_b" or len(ours) == 314


# --- encoder


def stock_encoder(model: SamModel, cells: int) -> ImageEncoderViT:
    """Returns segment-anything's encoder at another size, with the model's weights; its own code resamples rel_pos."""
    encoder = ImageEncoderViT(
        depth=SPEC.depth,
        embed_dim=SPEC.embed_dim,
        img_size=SPEC.image_size,
        num_heads=SPEC.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        global_attn_indexes=SPEC.global_blocks,
        window_size=SPEC.window,
        out_chans=SPEC.prompt_dim,
    )
    encoder.load_state_dict(model.net.image_encoder.state_dict())
    if cells * 16 != SPEC.image_size:
        table = encoder.pos_embed.data.permute(0, 3, 1, 2)
        table = F.interpolate(table, (cells, cells), mode="bicubic", align_corners=False)
        encoder.pos_embed = nn.Parameter(table.permute(0, 2, 3, 1))
    return encoder


@pytest.mark.parametrize("cells", [4, 3, 7], ids=["stock size", "smaller", "larger"])
def test_encoder_equals_stock(cells: int) -> None:
    model = toy_model(image_size=16 * cells)
    pixels = torch.randn(2, 3, 16 * cells, 16 * cells)
    with torch.no_grad():
        expected = stock_encoder(model, cells)(pixels)
        torch.testing.assert_close(model.encode(pixels), expected, rtol=1e-4, atol=1e-5)


def test_normalises_and_pads_as_stock() -> None:
    model, batch = toy_model(), toy_batch()
    stock = Sam(nn.Module(), model.net.prompt_encoder, model.net.mask_decoder)
    stock.image_encoder.img_size = SPEC.image_size
    pixels = model.normalise(batch.images, batch.valid())
    for item, (height, width) in enumerate(batch.sizes_input):
        expected = stock.preprocess(batch.images[item, :, :height, :width].float())
        assert torch.equal(pixels[item], expected)


def test_padding_is_normalised_away_whatever_it_holds() -> None:
    model, batch = toy_model(), toy_batch()
    noisy = torch.where(batch.valid(), batch.images, torch.randint_like(batch.images, 256))
    assert torch.equal(model.normalise(noisy, batch.valid()), model.normalise(batch.images, batch.valid()))


# --- decoder


def stock_decode(model: SamModel, embeddings: Tensor, prompts: Prompts | None) -> Tensor:
    """Decodes item by item with segment-anything's prompt encoder and mask decoder."""
    logits = []
    for item in range(len(embeddings)):
        one = slice(item, item + 1)
        points = boxes = None
        if prompts is not None:
            boxes = None if prompts.boxes_input is None else prompts.boxes_input[one]
            if prompts.points_input is not None and prompts.labels is not None:
                points = (prompts.points_input[one], prompts.labels[one])
        sparse, dense = model.net.prompt_encoder(points=points, boxes=boxes, masks=None)
        masks, _ = model.net.mask_decoder(
            image_embeddings=embeddings[one],
            image_pe=model.net.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        logits.append(masks)
    return torch.cat(logits)


@PROMPTS
def test_decoder_equals_stock(kind: str) -> None:
    model, prompts = toy_model(), prompts_of(kind)
    embeddings = torch.randn(2, SPEC.prompt_dim, 4, 4)
    with torch.no_grad():
        logits = model.decode(Embedded(embeddings), prompts)
        torch.testing.assert_close(logits, stock_decode(model, embeddings, prompts), rtol=1e-4, atol=1e-5)
    assert logits.shape == (2, 1, 16, 16)
    assert not torch.allclose(logits[0], logits[1])


@PROMPTS
def test_batch_equals_single_images(kind: str) -> None:
    model = toy_model()
    batch = toy_batch(prompts=prompts_of(kind))
    with torch.no_grad():
        together = model(batch)
        for item, size in enumerate(batch.sizes_input):
            chosen = None
            if batch.prompts is not None:
                chosen = Prompts(
                    **{k: None if v is None else v[item : item + 1] for k, v in vars(batch.prompts).items()}
                )
            single = replace(toy_batch(sizes=(size,), prompts=chosen), images=batch.images[item : item + 1])
            torch.testing.assert_close(model(single), together[item : item + 1], rtol=1e-4, atol=1e-5)


def test_prompts_change_the_answer() -> None:
    model = toy_model()
    with torch.no_grad():
        answers = [model(toy_batch(prompts=prompts_of(kind))) for kind in ("none", "box", "point", "points", "both")]
    for first in range(len(answers)):
        for second in range(first):
            assert not torch.allclose(answers[first], answers[second], atol=1e-4)


def test_logits_are_scaled_as_in_stock() -> None:
    low = torch.randn(2, 1, 16, 16, dtype=torch.bfloat16)
    scaled = upsample_logits(low, 64)
    assert scaled.dtype == torch.float32
    expected = F.interpolate(low.float(), (64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(scaled, expected)


@pytest.mark.slow
def test_vit_b_equals_stock_at_1024() -> None:
    """Whole ViT-B at 1024 px, a batch of 2 with boxes, against `Sam.forward` of segment-anything."""
    stock = build_sam_vit_b().eval()
    for parameter in stock.image_encoder.parameters():  # zeros would hide positions
        parameter.data += 0.02 * torch.randn_like(parameter)
    model = build_model("sam_vit_b", checkpoint="random")
    model.net.load_state_dict(stock.state_dict())
    prompts = prompts_of("box", side=1024)
    images = torch.randint(0, 256, (2, 3, 1024, 1024), dtype=torch.uint8)
    valid = torch.zeros(2, 1, 1024, 1024, dtype=torch.bool)
    items = []
    for item, (height, width) in enumerate(((1024, 768), (640, 1024))):
        valid[item, :, :height, :width] = True
        picture = images[item, :, :height, :width].float()
        box = prompts.boxes_input[item : item + 1]
        items.append({"image": picture, "original_size": (height, width), "boxes": box})
    with torch.no_grad():
        logits = model.decode(Embedded(model.encode(model.normalise(images, valid))), prompts)
        expected = torch.cat([answer["low_res_logits"] for answer in stock(items, multimask_output=False)])
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


# --- gradients and precision

IDLE = ("iou_prediction_head.", *(f"output_hypernetworks_mlps.{mask}." for mask in (1, 2, 3)))


def test_gradients_reach_everything_that_mask_0_needs() -> None:
    model = toy_model()
    model(toy_batch()).square().mean().backward()
    for name, role in model.roles().items():
        gradient = model.net.get_parameter(name).grad
        idle = role == "fixed" or any(part in name for part in IDLE)
        assert idle == (gradient is None or not bool(gradient.any())), name


def test_block_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = toy_model()
        model.checkpointing = checkpointing
        model(toy_batch()).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_block_checkpointing_keeps_less_for_the_backward_pass() -> None:
    kept = []
    for checkpointing in (False, True):
        model, amount = toy_model(), []
        model.checkpointing = checkpointing
        pixels = model.normalise(toy_batch().images, toy_batch().valid())
        with torch.autograd.graph.saved_tensors_hooks(lambda t, a=amount: (a.append(t.numel()), t)[1], lambda t: t):
            model.encode(pixels)
        kept.append(sum(amount))
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize("kind", ["box", "point"])
def test_autocast_leaves_prompt_coordinates_exact(kind: str) -> None:
    """In bf16, 1023 and 1024 are one number: a prompt that moves by 1 px has to stay another prompt."""
    model = build_model("sam_tiny", checkpoint="random", image_size=1024)
    prompts = prompts_of(kind, side=1000)
    moved = Prompts(**{k: v + 1 if v is not None and v.is_floating_point() else v for k, v in vars(prompts).items()})
    seen: list[Tensor] = []
    model.net.prompt_encoder.register_forward_hook(lambda module, args, output: seen.append(output[0].clone()))
    embeddings = torch.randn(2, 128, 8, 8)  # the decoder's size does not matter here
    model.net.prompt_encoder.image_embedding_size = (8, 8)
    with torch.no_grad():
        for given in (prompts, moved):
            model.decode(Embedded(embeddings), given)
            with torch.autocast("cpu", torch.bfloat16):
                model.decode(Embedded(embeddings), given)
    plain, cast, plain_moved, cast_moved = seen
    assert plain.dtype == cast.dtype == torch.float32
    assert torch.equal(plain, cast) and torch.equal(plain_moved, cast_moved)
    assert not torch.allclose(plain, plain_moved, atol=1e-4)


@PROMPTS
def test_bf16_autocast_stays_close(kind: str) -> None:
    model, batch = toy_model(), toy_batch(prompts=prompts_of(kind))
    with torch.no_grad():
        exact = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch)
    assert float((rounded.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())


# --- roles, sizes, names


def test_roles_are_complete_and_right() -> None:
    model = toy_model()
    roles = model.roles()
    assert list(roles) == [name for name, _ in model.net.named_parameters()]
    assert model.parts().keys() == roles.keys()
    expected = {
        "image_encoder.pos_embed": "position",
        "image_encoder.patch_embed.proj.weight": "conv",
        "image_encoder.patch_embed.proj.bias": "bias",
        "image_encoder.blocks.0.norm1.weight": "norm",
        "image_encoder.blocks.0.norm1.bias": "norm",
        "image_encoder.blocks.0.attn.qkv.weight": "linear",
        "image_encoder.blocks.0.attn.qkv.bias": "bias",
        "image_encoder.blocks.0.attn.rel_pos_h": "position",
        "image_encoder.blocks.1.mlp.lin2.weight": "linear",
        "image_encoder.neck.0.weight": "conv",
        "image_encoder.neck.1.weight": "norm",
        "image_encoder.neck.1.bias": "bias",
        "prompt_encoder.no_mask_embed.weight": "decoder",
        "prompt_encoder.point_embeddings.0.weight": "fixed",
        "prompt_encoder.mask_downscaling.0.weight": "fixed",
        "mask_decoder.mask_tokens.weight": "decoder",
        "mask_decoder.transformer.layers.0.norm1.bias": "decoder",
    }
    assert {name: roles[name] for name in expected} == expected


def test_blocks_name_the_parts() -> None:
    blocks = toy_model().parts()
    assert list(dict.fromkeys(blocks.values())) == [
        "pos_embed", "patch_embed", "block 0", "block 1", "neck", "prompt_encoder", "mask_decoder",
    ]  # fmt: skip


@pytest.mark.parametrize(("size", "nearest"), [(100, 96), (8, 16), (0, 16), (-32, 16), (250, 256)])
def test_impossible_sizes_are_refused(size: int, nearest: int) -> None:
    with pytest.raises(ConfigError, match=rf"image_size is {size}, .* multiple of 16; the nearest is {nearest}\."):
        build_model("sam_tiny", checkpoint="random", image_size=size)


def test_unknown_model_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown model 'sam_vitb'. Did you mean 'sam_vit_b'\? Known: dinov2, dinov3, edgetam, "
    ):
        build_model("sam_vitb", checkpoint="random")


def test_sam_tiny_has_3_to_5_million_parameters_and_starts_in_eval_mode() -> None:
    model = build_model("sam_tiny", checkpoint="random", image_size=64)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 5e6
    assert not model.training and model.device == torch.device("cpu")
