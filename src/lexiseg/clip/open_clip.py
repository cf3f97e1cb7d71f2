"""Parts of open_clip models, by name or configuration, without weights and without downloads.

Everything is built on the meta device unless asked otherwise: no memory, no random numbers, a fraction of a second for
the largest tower. Weights are put in with `load_state_dict(..., assign=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from torch import nn

import lexiseg.clip.pyramid  # noqa: F401 - registers our own tower with timm
from lexiseg.clip.convnet import MaskPromptedConvNet, TimmTrunk
from lexiseg.clip.eva import EvaTrunk
from lexiseg.clip.projection import Projection
from lexiseg.clip.resnet import ResNetTrunk
from lexiseg.clip.text import TextEncoder
from lexiseg.clip.vit import MaskPromptedTransformer

# open_clip's plain names stand for exact GELU, which none of the weights that OpenAI published for them were made with.
OPENAI_RESNETS = {"RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"}

VISION_KEYS = {"image_size", "width", "layers", "head_width", "patch_size"}
TIMM_KEYS = {
    *("image_size", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"),
    *("timm_drop", "timm_drop_path"),
}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


class UnsupportedTower(ValueError):
    """An open_clip model with a part this package does not build. The message names it."""


@dataclass(frozen=True)
class ImageTower:
    """A CLIP image tower, taken apart as a system needs it."""

    trunk: TimmTrunk | ResNetTrunk
    projection: Projection | None
    """What follows pooling; None for towers whose pooling projects."""
    attention_pool: dict[str, int] | None
    """Sizes of the masked attention pooling of the CLIP ResNets: arguments of `MaskedAttention2d`."""


def clip_config(model: str | Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model in open_clip's format, as a copy.

    A name of open_clip's own list; the five OpenAI ResNets get the activation of their published weights. Or a
    configuration: `embed_dim`, `vision_cfg`, `text_cfg` and, optionally, `quick_gelu`.
    """
    if not isinstance(model, str):
        config = deepcopy(dict(model))
        missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
        if missing:
            raise UnsupportedTower(f"no open_clip configuration: {', '.join(missing)} missing")
        return config
    # Only its own list: other forms of a name would be looked up in the network.
    if model not in open_clip.list_models():
        raise UnsupportedTower(f"open_clip has no model {model!r}; open_clip.list_models() tells the names")
    config = open_clip.get_model_config(model)
    if model in OPENAI_RESNETS:
        config["quick_gelu"] = True
    return config


def build_image_tower(
    model: str | Mapping[str, Any], *, frozen: bool = True, device: str | torch.device = "meta"
) -> ImageTower:
    """The image tower of a model. On a real device its weights are random: a start for training."""
    config = clip_config(model)
    vision, embed_dim = config["vision_cfg"], config["embed_dim"]
    with torch.device(device):
        if "timm_model_name" in vision:
            return _timm_tower(vision, embed_dim, frozen)
        if isinstance(vision.get("layers"), (list, tuple)):
            return _resnet_tower(vision, embed_dim, frozen)
    raise UnsupportedTower("the image tower is a transformer; only convolutional ones have maps to pool")


def build_transformer_tower(
    model: str | Mapping[str, Any], *, frozen: bool = True, device: str | torch.device = "meta"
) -> EvaTrunk:
    """The image tower of an EVA-CLIP, head included. On a real device its weights are random: a start for training."""
    config = clip_config(model)
    vision, embed_dim = config["vision_cfg"], config["embed_dim"]
    _refuse_unknown(vision, TIMM_KEYS, "vision_cfg")
    if not is_transformer(model):
        raise UnsupportedTower("the image tower is no EVA-CLIP transformer")
    if (pool := vision.get("timm_pool")) != "token" or vision.get("timm_proj"):
        raise UnsupportedTower(f"timm_pool {pool!r}, timm_proj {vision.get('timm_proj')!r}: EVA-CLIP reads its token")
    with torch.device(device):
        model_with_head = TimmModel(
            vision["timm_model_name"],
            embed_dim,
            image_size=vision.get("image_size", 224),
            pool=pool,
            proj=None,
            drop_path=vision.get("timm_drop_path"),
        )
        return EvaTrunk(model_with_head.trunk, frozen=frozen)


def build_vision_transformer(
    model: str | Mapping[str, Any], *, prompt_depth: int = 0, device: str | torch.device = "meta"
) -> MaskPromptedTransformer:
    """The image tower of one of OpenAI's transformers. On a real device its weights are random: a start for training.

    prompt_depth: blocks before which blank patches are replaced by learned ones; 0 for the tower as it came.
    """
    config = clip_config(model)
    vision = config["vision_cfg"]
    _refuse_unknown(vision, VISION_KEYS, "vision_cfg")
    if not is_vision_transformer(config):
        raise UnsupportedTower("the image tower is not one of OpenAI's transformers")
    with torch.device(device):
        return MaskPromptedTransformer(
            config["embed_dim"], prompt_depth=prompt_depth, quick_gelu=bool(config.get("quick_gelu")), **vision
        )


def build_crop_tower(
    model: str | Mapping[str, Any],
    *,
    prompt_depth: int = 0,
    side: int | None = None,
    device: str | torch.device = "meta",
) -> MaskPromptedTransformer | MaskPromptedConvNet:
    """The image tower of a CLIP as one module, for square pictures of which only a part is shown.

    prompt_depth: of a transformer see `build_vision_transformer`; of a ConvNet 1 or 0: are blank pixels learned? side:
    of the pictures, for ConvNets, which take any; None is what the tower was made for.
    """
    vision = clip_config(model)["vision_cfg"]
    if "timm_model_name" not in vision:
        if side is not None and side != vision.get("image_size"):
            raise UnsupportedTower(f"a side of {side}: a transformer takes the pictures it was made for")
        return build_vision_transformer(model, prompt_depth=prompt_depth, device=device)
    if prompt_depth not in (0, 1):
        raise UnsupportedTower(f"a prompt depth of {prompt_depth}: in a ConvNet prompts stand before the first layer")
    tower = build_image_tower(model, frozen=False, device=device)
    assert tower.projection is not None  # towers of timm have one; for the reader of types
    with torch.device(device):
        return MaskPromptedConvNet(
            tower.trunk.trunk,
            tower.projection,
            image_size=side or vision.get("image_size", 224),
            prompted=bool(prompt_depth),
        )


def is_transformer(model: str | Mapping[str, Any]) -> bool:
    """Whether the image tower of a model is an EVA-CLIP transformer, told by the name of its architecture."""
    return str(clip_config(model)["vision_cfg"].get("timm_model_name", "")).startswith("eva")


def is_vision_transformer(model: str | Mapping[str, Any]) -> bool:
    """Whether the image tower of a model is one of OpenAI's transformers."""
    vision = clip_config(model)["vision_cfg"]
    return "timm_model_name" not in vision and isinstance(vision.get("layers"), int)


def build_text_encoder(model: str | Mapping[str, Any], *, device: str | torch.device = "meta") -> TextEncoder:
    """The text tower of a model, in evaluation mode. On a real device its weights are random."""
    config = clip_config(model)
    text = config["text_cfg"]
    _refuse_unknown(text, TEXT_KEYS, "text_cfg")
    with torch.device(device):
        encoder = TextEncoder(config["embed_dim"], quick_gelu=bool(config.get("quick_gelu")), **text)
    return encoder.eval()


def _timm_tower(vision: Mapping[str, Any], embed_dim: int, frozen: bool) -> ImageTower:
    _refuse_unknown(vision, TIMM_KEYS, "vision_cfg")
    pool, proj = vision.get("timm_pool", "avg"), vision.get("timm_proj", "linear")
    if pool not in ("", "avg") or proj not in ("linear", "mlp"):
        raise UnsupportedTower(f"timm_pool {pool!r}, timm_proj {proj!r}: only a mean and a projection are built")
    model = TimmModel(
        vision["timm_model_name"],
        embed_dim,
        image_size=vision.get("image_size", 224),
        pool=pool,
        proj=proj,
        proj_bias=vision.get("timm_proj_bias", False),
        drop_path=vision.get("timm_drop_path"),
    )
    norm = getattr(getattr(model.trunk, "head", None), "norm", None)
    projection = Projection(
        model.trunk.num_features,
        embed_dim,
        norm_eps=norm.eps if isinstance(norm, nn.LayerNorm) else None,
        hidden=model.head.mlp.fc1.out_features if proj == "mlp" else None,
        bias=vision.get("timm_proj_bias", False),
    )
    return ImageTower(TimmTrunk(model.trunk, frozen=frozen), projection, attention_pool=None)


def _resnet_tower(vision: Mapping[str, Any], embed_dim: int, frozen: bool) -> ImageTower:
    _refuse_unknown(vision, VISION_KEYS, "vision_cfg")
    width, image_size = vision["width"], vision["image_size"]
    heads = width * 32 // vision.get("head_width", 64)
    model = ModifiedResNet(vision["layers"], embed_dim, heads, image_size, width)
    sizes = {"channels": 32 * width, "num_heads": heads, "out_dim": embed_dim, "grid_size": image_size // 32}
    return ImageTower(ResNetTrunk(model, frozen=frozen), projection=None, attention_pool=sizes)


def _refuse_unknown(config: Mapping[str, Any], known: set[str], where: str) -> None:
    """A setting that is not understood would silently make another network."""
    unknown = sorted(set(config) - known)
    if unknown:
        raise UnsupportedTower(f"{where}: {', '.join(unknown)} not supported")
