"""Tiny transformers of both EVA-CLIP forms, under names by which timm and open_clip build them."""

from typing import Any

from timm.models import register_model
from timm.models.eva import Eva

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
SECOND = {
    "qkv_fused": False,
    "swiglu_mlp": True,
    "scale_mlp": True,
    "scale_attn_inner": True,
    "use_rot_pos_emb": True,
    "ref_feat_shape": (16, 16),
}


def eva(second: bool, depth: int = 4, num_classes: int = 16) -> Eva:
    """Width 32, patches of 14 pixels, trained on a grid of 4 x 4."""
    return Eva(
        img_size=56,
        patch_size=14,
        embed_dim=32,
        depth=depth,
        num_heads=4,
        mlp_ratio=2.5,
        num_classes=num_classes,
        global_pool="token",
        **(SECOND if second else {}),
    )


@register_model
def eva01_toy(pretrained: bool = False, **kwargs: Any) -> Eva:
    return eva(second=False, num_classes=kwargs["num_classes"])


@register_model
def eva02_toy(pretrained: bool = False, **kwargs: Any) -> Eva:
    return eva(second=True, num_classes=kwargs["num_classes"])


EVA_TOWERS: dict[str, dict[str, Any]] = {
    name: {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": f"{name}_toy", "timm_pool": "token", "timm_proj": None, "image_size": 56},
        "text_cfg": TEXT,
    }
    for name in ("eva01", "eva02")
}
"""In open_clip's format."""
