"""The layout of MaskCLIP++'s checkpoints: names of every tower, and what shapes tell."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lexiseg.weights import maskclip_pp as layout
from lexiseg.weights.rules import ConversionError, convert

MANIFESTS = {
    "convnext-b_fcclip-b": layout.Classifier("convnext", "convnext_base_w_320", None, None, None, False),
    "convnext-l": layout.Classifier("convnext", "convnext_large_d_320", None, None, None, False),
    "convnext-xxl": layout.Classifier("convnext", "convnext_xxlarge", None, None, None, False),
    "rn50x16": layout.Classifier("resnet", "RN50x16", 14, 768, None, False),
    "eva-b": layout.Classifier("eva02", "EVA02-B-16", 14, 768, 3, False),
    "eva-l": layout.Classifier("eva02", "EVA02-L-14-336", 14, 768, 3, False),
    "eva-l-wtext_maft-l": layout.Classifier("eva02", "EVA02-L-14-336", 1, 768, 3, True),
    "eva-g-plus": layout.Classifier("eva01", "EVA01-g-14-plus", 14, 768, 3, False),
}


def listed(shared: Path, name: str) -> dict[str, Tensor]:
    tensors = json.loads((shared / "parity/maskclip-pp" / f"manifest-{name}.json").read_text())["tensors"]
    return {key: torch.empty(entry["shape"], device="meta") for key, entry in tensors.items()}


@pytest.mark.parametrize("name", MANIFESTS)
def test_published_files_are_told_by_their_shapes(name: str, shared: Path) -> None:
    source = listed(shared, name)
    assert layout.is_official(source)
    assert layout.describe(source) == MANIFESTS[name]


def test_names_of_the_second_eva() -> None:
    """EVA-CLIP's own names, and timm's."""
    names = {
        "blocks.3.attn.q_bias": "blocks.3.attn.q_proj.bias",
        "blocks.3.attn.v_bias": "blocks.3.attn.v_proj.bias",
        "blocks.3.attn.k_proj.weight": "blocks.3.attn.k_proj.weight",
        "blocks.3.attn.inner_attn_ln.weight": "blocks.3.attn.norm.weight",
        "blocks.3.mlp.w1.bias": "blocks.3.mlp.fc1_g.bias",
        "blocks.3.mlp.w2.weight": "blocks.3.mlp.fc1_x.weight",
        "blocks.3.mlp.ffn_ln.bias": "blocks.3.mlp.norm.bias",
        "blocks.3.mlp.w3.weight": "blocks.3.mlp.fc2.weight",
        "pos_embed": "pos_embed",
        "head.bias": "head.bias",
    }
    source = {layout.VISUAL + name: torch.zeros(1) for name in names}
    source["visual_encoder.mask_logit_scale"] = torch.zeros(2, 2)
    source[layout.VISUAL + "rope.freqs_cos"] = source[layout.VISUAL + "blocks.3.attn.rope.freqs_sin"] = torch.zeros(9)
    targets = {layout.TRUNK + name: (1,) for name in names.values()} | {"embedder.mask_logit_scale": (2, 2)}
    account = convert(source, targets, layout.TOWER_RULES["eva02"], layout.IGNORED)
    assert account.used == {
        **{layout.VISUAL + name: layout.TRUNK + ours for name, ours in names.items()},
        "visual_encoder.mask_logit_scale": "embedder.mask_logit_scale",
    }
    assert all("rotary" in reason for reason in account.ignored.values()) and len(account.ignored) == 2


def test_the_first_eva_keeps_its_names() -> None:
    source = {layout.VISUAL + "blocks.0.attn.q_bias": torch.zeros(1)}
    account = convert(source, {layout.TRUNK + "blocks.0.attn.q_bias": (1,)}, layout.TOWER_RULES["eva01"])
    assert len(account.tensors) == 1


@pytest.mark.parametrize(
    ("names", "prefix", "family"),
    [
        (("token_embedding.weight", "visual.trunk.stem.0.weight"), "", "convnext"),
        (("token_embedding.weight", "visual.conv1.weight"), "", "resnet"),
        (("text.token_embedding.weight", "visual.blocks.0.mlp.w1.weight"), "text.", "eva02"),  # EVA-CLIP's own names
        (("text.token_embedding.weight", "visual.trunk.blocks.0.mlp.fc1.weight"), "text.", "eva01"),  # open_clip's
        (("backbone.clip_model.token_embedding.weight", "backbone.clip_model.visual.conv1.weight"),
         "backbone.clip_model.", "resnet"),
        (("visual.transformer.resblocks.0.ln_1.weight",), None, None),
    ],
)  # fmt: skip
def test_files_with_a_clip(names: tuple[str, ...], prefix: str | None, family: str | None) -> None:
    source = {name: torch.zeros(1) for name in names}
    assert layout.clip_prefix(source) == prefix and layout.clip_family(source) == family


def test_joining_a_generator_with_its_clip() -> None:
    clip = {"token_embedding.weight": torch.zeros(1), "visual.trunk.stem.0.weight": torch.zeros(1)}
    joined = layout.with_clip({"sem_seg_head.predictor.query_feat.weight": torch.ones(1)}, clip)
    assert joined["backbone.clip_model.visual.trunk.stem.0.weight"] is clip["visual.trunk.stem.0.weight"]
    with pytest.raises(ConversionError, match="open_clip's own names"):
        layout.with_clip({}, {"text.token_embedding.weight": torch.zeros(1)})


def test_a_missing_head_is_named() -> None:
    source = {layout.VISUAL + "trunk.stem.0.weight": torch.zeros(1)}
    source |= {layout.VISUAL + f"trunk.stages.{stage}.blocks.0.mlp.fc2.weight": torch.zeros(8, 1) for stage in range(4)}
    with pytest.raises(ConversionError, match=r"head\.proj\.weight or head\.mlp\.fc2\.weight is missing"):
        layout.describe(source)
