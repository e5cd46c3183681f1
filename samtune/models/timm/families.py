"""What samtune knows about timm's models: the families it can tune, their published weights, and some of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from samtune.errors import ConfigError
from samtune.models.table import MODELS

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class OwnModel:
    """A model that timm can build, but has no name or weights for, or whose weights are inside the package.

    Attributes:
        timm: the name to build it by.
        mean, std: normalisation of its weights, of RGB in 0 to 1.
        image_size: side of its input in pixels.
        source: the official file; empty where the weights are inside the package.
    """

    timm: str
    mean: Colour
    std: Colour
    image_size: int = 224
    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


OWN: dict[str, OwnModel] = {
    "tf_efficientnet_lite0": OwnModel("tf_efficientnet_lite0", mean=(127 / 255,) * 3, std=(128 / 255,) * 3),
    "vit_mini": OwnModel(
        "vit_tiny_patch16_224",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        image_size=64,
        options={"patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3},
    ),
    "vit_base_patch16_224.mocov3": OwnModel(
        "vit_base_patch16_224",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        source="https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/vit-b-300ep.pth.tar of MoCo-v3",
    ),
}


def timm_name(name: str, image_size: int | None = None) -> tuple[str, dict[str, Any]]:
    """Returns the name and options that `timm.create_model` takes for a model and size; raises as `published`."""
    own = OWN.get(name)
    stock, options, side = (own.timm, dict(own.options), own.image_size) if own else (name, {}, None)
    fixed = published(stock).get("fixed_input_size")  # the others take any size
    if fixed and (image_size or side):
        options["img_size"] = image_size or side
    return stock, options


def published(stock: str) -> dict[str, Any]:
    """Returns what timm knows about the published weights of a model of its own: address, normalisation, size.

    Raises:
        ConfigError: a model or a tag that timm does not have.
    """
    import timm
    from timm.models import get_arch_pretrained_cfgs

    architecture, _, tag = stock.partition(".")
    if not timm.is_model(architecture):
        names = [*MODELS, *timm.list_models()]
        near = get_close_matches(architecture, names, n=5) or names[:5]
        raise ConfigError(f"timm has no model {architecture!r}. Similar names: {', '.join(near)}.")
    known = get_arch_pretrained_cfgs(architecture)
    if tag and stock not in known:
        raise ConfigError(f"timm has no weights {stock!r}. Known: {', '.join(sorted(known)) or architecture}.")
    config = timm.get_pretrained_cfg(stock)
    return {} if config is None else dict(vars(config))


class Family(NamedTuple):
    """What samtune knows about a class of timm.

    Attributes:
        plain_tokens: the blocks map (B, N, C) tokens and attend over all N, as those of a plain ViT.
        from_official: (state dict of an official file, network) to timm's names and the network's position tables.
        pointwise: names of the 1 x 1 convolutions of a block that are linear maps; not those of squeeze-and-excitation.
    """

    block: type[nn.Module] | tuple[type[nn.Module], ...]
    plain_tokens: bool
    from_official: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]
    pointwise: tuple[str, ...] = ()


def family_of(net: nn.Module, name: str) -> Family:
    """Returns what samtune knows about the class of a network.

    Raises:
        ConfigError: a class that samtune does not know.
    """
    from timm.layers.cond_conv2d import CondConv2d
    from timm.models import _efficientnet_blocks as mobile
    from timm.models import convnext, efficientnet
    from timm.models import swin_transformer as swin
    from timm.models import vision_transformer as vit

    # DeiT-III's official files name layer scales differently; for other files the option changes nothing
    vit_weights = partial(vit.checkpoint_filter_fn, adapt_layer_scale=True)
    known = {
        vit.VisionTransformer: Family(vit.Block, True, vit_weights),
        swin.SwinTransformer: Family(swin.SwinTransformerBlock, False, swin.checkpoint_filter_fn),
        efficientnet.EfficientNet: Family(
            (mobile.DepthwiseSeparableConv, mobile.InvertedResidual, mobile.EdgeResidual, mobile.ConvBnAct),
            False,
            lambda state, _: state,
            ("conv_pw", "conv_pwl"),
        ),
        convnext.ConvNeXt: Family(convnext.ConvNeXtBlock, False, convnext.checkpoint_filter_fn),
    }
    if any(isinstance(module, CondConv2d) for module in net.modules()):
        raise ConfigError(f"{name} has conditional convolutions, whose experts' weights samtune does not know.")
    for kind, family in known.items():
        if isinstance(net, kind):
            return family
    names = ", ".join(kind.__name__ for kind in known)
    raise ConfigError(f"{name} is a {type(net).__name__}, whose parameters samtune does not know. Known: {names}.")
