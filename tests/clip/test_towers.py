"""Image towers of every family, small, through the same checks; the published ones by their shapes."""

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from lexiseg.clip.open_clip import build_image_tower, build_text_encoder, clip_config
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD
from lexiseg.types import Images

TEXT = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 100, "context_length": 8}
PYRAMID = {
    "embed_dim": 12,
    "vision_cfg": {
        "timm_model_name": "lexiseg_pyramid_tiny",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": TEXT,
}
CONVNEXT_MLP = {
    "embed_dim": 12,
    "vision_cfg": {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
    "text_cfg": TEXT,
}
CONVNEXT_LINEAR = {
    "embed_dim": 12,
    "vision_cfg": {"timm_model_name": "convnext_femto", "timm_pool": "", "timm_proj": "linear", "timm_drop_path": 0.1},
    "text_cfg": TEXT,
}
RESNET = {"embed_dim": 12, "vision_cfg": {"layers": [1, 1, 2, 1], "width": 16, "image_size": 64}, "text_cfg": TEXT}
TOWERS = {"pyramid": PYRAMID, "convnext mlp": CONVNEXT_MLP, "convnext linear": CONVNEXT_LINEAR, "resnet": RESNET}


def photos(sizes: tuple[tuple[int, int], ...], canvas_hw: tuple[int, int]) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.zeros(len(sizes), 3, *canvas_hw)
    for index, (h, w) in enumerate(sizes):
        pixels[index, :, :h, :w] = 255 * torch.rand(3, h, w, generator=generator)
    return Images(pixels, sizes, sizes)


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_maps(config: dict[str, Any]) -> None:
    tower = build_image_tower(config, device="cpu")
    features = tower.trunk(photos(((64, 96), (50, 33)), (64, 96)))
    assert [tuple(level.shape[-2:]) for level in features.maps] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert tuple(level.shape[1] for level in features.maps) == tower.trunk.channels
    assert features.dense.shape[:2] == (2, tower.trunk.dense_channels)
    assert not any(level.requires_grad for level in features.maps)
    if tower.projection is not None:
        assert tower.projection(torch.rand(2, 5, tower.trunk.dense_channels)).shape == (2, 5, 12)


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_names_and_numbers_of_open_clip(config: dict[str, Any]) -> None:
    """The whole model of open_clip, taken apart: the same tensors, and the same embedding of a photo."""
    torch.manual_seed(0)
    whole = open_clip.CLIP(**clip_config(config)).eval()
    with torch.no_grad():  # running statistics and norms away from their trivial start
        for name, tensor in whole.visual.state_dict().items():
            if name.endswith(("running_mean", "bias", "norm.weight", "bn3.weight")):
                tensor.copy_(torch.rand_like(tensor))
    tower = build_image_tower(config)
    weights = whole.visual.state_dict()
    norm = {name.rsplit(".", 1)[1]: weights.pop(name) for name in list(weights) if "trunk.head.norm" in name}
    heads = {name: weights.pop(name) for name in list(weights) if name.startswith(("head.", "attnpool."))}
    trunk = {name.removeprefix("trunk."): value for name, value in weights.items()}
    tower.trunk.trunk.load_state_dict(trunk, assign=True)
    images = photos(((64, 64),), (64, 64))
    if tower.projection is None:
        assert tower.attention_pool == {"channels": 512, "num_heads": 8, "out_dim": 12, "grid_size": 2}
        expected = whole.visual.attnpool(tower.trunk(images).dense)
        torch.testing.assert_close(whole.visual(tower.trunk.normalise(images)), expected)
        return
    tower.projection.load_state_dict({f"norm.{k}": v for k, v in norm.items()} | heads, assign=True)
    embedding = tower.projection(tower.trunk(images).dense.mean((-2, -1)))
    torch.testing.assert_close(embedding, whole.visual(tower.trunk.normalise(images)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", TOWERS.values(), ids=TOWERS)
def test_padding_of_the_canvas_is_zero_after_normalisation(config: dict[str, Any]) -> None:
    trunk = build_image_tower(config, device="cpu").trunk
    images = photos(((40, 64), (64, 33)), (64, 64))
    normal = trunk.normalise(images)
    assert (normal[0, :, 40:] == 0).all() and (normal[1, :, :, 33:] == 0).all()
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    torch.testing.assert_close(normal[0, :, 3, 4], (images.pixels[0, :, 3, 4] - mean) / std)
    alone = trunk(Images(images.pixels[:1], images.sizes_hw[:1], images.original_hw[:1]))
    torch.testing.assert_close(trunk(images).dense[:1], alone.dense, rtol=1e-3, atol=1e-5)
    # What stands in the padding is not looked at.
    grey = images.pixels.clone()
    grey[0, :, 40:] = 128
    assert torch.equal(trunk.normalise(Images(grey, images.sizes_hw, images.original_hw)), normal)


def test_a_frozen_trunk_stays_as_it_is() -> None:
    tower = build_image_tower(RESNET, device="cpu")
    holder = nn.ModuleList([tower.trunk]).train()
    assert not any(module.training for module in tower.trunk.modules())
    assert not any(parameter.requires_grad for parameter in tower.trunk.parameters())
    before = {name: value.clone() for name, value in holder.state_dict().items()}
    tower.trunk(photos(((64, 64),), (64, 64)))
    assert all(torch.equal(before[name], value) for name, value in holder.state_dict().items())

    free = build_image_tower(RESNET, frozen=False, device="cpu").trunk
    assert free.training and all(parameter.requires_grad for parameter in free.parameters())
    free(photos(((64, 64),) * 2, (64, 64))).dense.sum().backward()
    assert free.trunk.conv1.weight.grad is not None
    assert not free.eval().trunk.training


def test_half_precision() -> None:
    trunk = build_image_tower(RESNET, device="cpu").trunk.to(torch.bfloat16)
    assert trunk(photos(((32, 32),), (32, 32))).dense.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "channels", "embed_dim", "tensors"),
    [
        ("convnext_base_w_320", (128, 256, 512, 1024), 640, 343),
        ("convnext_large_d_320", (192, 384, 768, 1536), 768, 345),
        ("convnext_xxlarge", (384, 768, 1536, 3072), 1024, 379),
        ("RN50", (256, 512, 1024, 2048), 1024, 330),
        ("RN101", (256, 512, 1024, 2048), 512, 636),
        ("RN50x4", (320, 640, 1280, 2560), 640, 510),
        ("RN50x16", (384, 768, 1536, 3072), 768, 762),
        ("RN50x64", (512, 1024, 2048, 4096), 1024, 1194),
    ],
)
def test_published_towers(name: str, channels: tuple[int, ...], embed_dim: int, tensors: int) -> None:
    tower = build_image_tower(name)
    projection = tower.projection.state_dict() if tower.projection else {}
    assert tower.trunk.channels == channels
    assert len(tower.trunk.state_dict()) + len(projection) == tensors
    assert all(value.is_meta for value in tower.trunk.state_dict().values())
    # Nothing that a file does not bring: a trunk built without values would compute with garbage.
    assert {name for name, _ in tower.trunk.named_buffers()} <= set(tower.trunk.state_dict())
    if tower.projection is None:
        assert tower.attention_pool is not None and tower.attention_pool["out_dim"] == embed_dim
    else:
        assert tower.projection.norm.eps == (1e-5 if name == "convnext_xxlarge" else 1e-6)
    text = build_text_encoder(name)
    assert text.text_projection.shape[1] == embed_dim
    quick = type(text.transformer.resblocks[0].mlp.activation).__name__ == "QuickGELU"
    assert quick == name.startswith("RN")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("no-such-model", "no model 'no-such-model'"),
        ("hf-hub:some/model", "no model 'hf-hub:some/model'"),
        ({"embed_dim": 4}, "vision_cfg, text_cfg missing"),
        ("ViT-B-32", "transformer"),
        ({**PYRAMID, "vision_cfg": {**PYRAMID["vision_cfg"], "timm_pool": "abs_attn"}}, "timm_pool 'abs_attn'"),
        ({**PYRAMID, "vision_cfg": {**PYRAMID["vision_cfg"], "patch_dropout": 0.5}}, "patch_dropout not supported"),
        ({**RESNET, "vision_cfg": {**RESNET["vision_cfg"], "block_type": "x"}}, "block_type not supported"),
        ({**PYRAMID, "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224"}}, "VisionTransformer has maps"),
    ],
)
def test_what_is_not_built(model: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build_image_tower(model)
