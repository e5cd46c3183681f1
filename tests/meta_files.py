"""Files of SAM 2 and 3 as Meta's own code names and lays out their tensors, made of transformers' toy models.

Written from the modules of Meta's code (sam2/modeling, sam3/model, sam3/sam), not from the table under test.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor
from toy_hf import toy_hf

State = dict[str, Tensor]
TRUNK = "detector.backbone.vision_backbone.trunk."


def meta_state(family: str, *, seed: int = 0) -> State:
    """Returns the toy model of a family as Meta's file has it, with what only videos (and SAM 3's detector) need."""
    state = {name: tensor.clone() for name, tensor in toy_hf(family, seed=seed).net.state_dict().items()}
    return _sam2(state) if family == "sam2" else _sam3(state)


def _heads(state: State, prefix: str, layers: tuple[str, str]) -> State:
    """The prompt encoder and the mask decoder; `layers` are the two of a transformer's MLP."""
    found = {f"{prefix}no_mem_embed": state["no_memory_embedding"]}
    gaussian = "pe_layer.positional_encoding_gaussian_matrix"
    found[f"{prefix}sam_prompt_encoder.{gaussian}"] = state["shared_image_embedding.positional_embedding"]
    for index in range(4):
        points = state["prompt_encoder.point_embed.weight"]
        found[f"{prefix}sam_prompt_encoder.point_embeddings.{index}.weight"] = points[index : index + 1].clone()
    for name in ("no_mask_embed.weight", "not_a_point_embed.weight"):
        found[f"{prefix}sam_prompt_encoder.{name}"] = state[f"prompt_encoder.{name}"]
    places = {"conv1": 0, "layer_norm1": 1, "conv2": 3, "layer_norm2": 4, "conv3": 6}
    ups = {"upscale_conv1": 0, "upscale_layer_norm": 1, "upscale_conv2": 3}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if rest.startswith("mask_embed."):
            _, module, kind = rest.split(".")
            found[f"{prefix}sam_prompt_encoder.mask_downscaling.{places[module]}.{kind}"] = tensor
        if part != "mask_decoder":
            continue
        module, _, kind = rest.partition(".")
        if module in ups:
            rest = f"output_upscaling.{ups[module]}.{kind}"
        elif module == "transformer":
            rest = rest.replace("o_proj", "out_proj").replace("layer_norm_final_attn", "norm_final_attn")
            rest = rest.replace("layer_norm", "norm")
            rest = rest.replace("mlp.proj_in", f"mlp.{layers[0]}").replace("mlp.proj_out", f"mlp.{layers[1]}")
        elif module not in ("conv_s0", "conv_s1", "iou_token", "mask_tokens", "obj_score_token"):
            rest = rest.replace(".layers.0.", ".layers.1.")
            rest = rest.replace(".proj_in.", ".layers.0.").replace(".proj_out.", ".layers.2.")
        found[f"{prefix}sam_mask_decoder.{rest}"] = tensor
    return found


def _videos(prefix: str, attention: str, encoder: str) -> State:
    shapes = {
        "maskmem_tpos_enc": (7, 1, 1, 8), "no_mem_pos_enc": (1, 1, 32), "mask_downsample.weight": (1, 1, 4, 4),
        "obj_ptr_proj.layers.0.weight": (32, 32), "obj_ptr_tpos_proj.weight": (8, 32), "no_obj_ptr": (1, 32),
        "no_obj_embed_spatial": (1, 8), f"{attention}layers.0.self_attn.q_proj.weight": (32, 32),
        f"{encoder}fuser.layers.0.gamma": (32,),
    }  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _sam2(state: State) -> State:
    found = _heads(state, "", ("layers.0", "layers.1"))
    for name, tensor in state.items():
        if name.startswith("vision_encoder.backbone."):
            name = name.replace("vision_encoder.backbone.", "image_encoder.trunk.")
            name = name.replace("layer_norm", "norm").replace("patch_embed.projection", "patch_embed.proj")
            name = name.replace("mlp.proj_in", "mlp.layers.0").replace("mlp.proj_out", "mlp.layers.1")
            found[name] = tensor
        elif match := re.fullmatch(r"vision_encoder\.neck\.convs\.(\d)\.(\w+)", name):
            found[f"image_encoder.neck.convs.{match[1]}.conv.{match[2]}"] = tensor
    return found | _videos("", "memory_attention.", "memory_encoder.")


def _sam3(state: State) -> State:
    found, generator = _heads(state, "tracker.", ("lin1", "lin2")), torch.Generator().manual_seed(6)
    stem = "vision_encoder.backbone."
    for name, tensor in state.items():
        if match := re.fullmatch(r"vision_encoder\.neck\.fpn_layers\.(\d)\.(.+)\.(\w+)", name):
            scale = {"0": "dconv_2x2_0", "1": "dconv_2x2"}.get(match[1], "")
            modules = {
                "proj1": "conv_1x1",
                "proj2": "conv_3x3",
                "scale_layers.0": scale,
                "scale_layers.2": "dconv_2x2_1",
            }
            found[f"{TRUNK.removesuffix('trunk.')}sam2_convs.{match[1]}.{modules[match[2]]}.{match[3]}"] = tensor
        elif match := re.fullmatch(r"vision_encoder\.backbone\.layers\.(\d)\.attention\.q_proj\.(\w+)", name):
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            found[f"{TRUNK}blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat(parts)
        elif name.startswith(f"{stem}layers.") and not re.search(r"[kv]_proj", name):
            name = name.replace(f"{stem}layers.", f"{TRUNK}blocks.").replace("layer_norm", "norm")
            found[name.replace("attention.o_proj", "attn.proj")] = tensor
    found[f"{TRUNK}patch_embed.proj.weight"] = state[f"{stem}embeddings.patch_embeddings.projection.weight"]
    for kind in ("weight", "bias"):
        found[f"{TRUNK}ln_pre.{kind}"] = state[f"{stem}layer_norm.{kind}"]
    positions = state[f"{stem}embeddings.position_embeddings"]
    found[f"{TRUNK}pos_embed"] = torch.cat([torch.full_like(positions[:, :1], 9.0), positions], dim=1)
    found[f"{TRUNK}blocks.0.attn.freqs_cis"] = torch.polar(torch.ones(4, 8), torch.rand(4, 8, generator=generator))
    others = (
        "transformer.encoder.layers.0.linear1.weight",
        "backbone.language_backbone.encoder.ln_final.weight",
        "backbone.vision_backbone.convs.0.conv_1x1.weight",
    )
    found |= {f"detector.{name}": torch.randn(4, generator=generator) for name in others}
    return found | _videos("tracker.", "transformer.encoder.", "maskmem_backbone.")
