"""EVA-CLIP's transformers: timm's numbers where timm has them, and the released ones where it has not."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional

from lexiseg.clip.eva import EvaTrunk
from lexiseg.clip.open_clip import UnsupportedTower, build_image_tower, build_text_encoder, build_transformer_tower
from lexiseg.types import Images
from tests.eva_towers import EVA_TOWERS, eva

FORMS = pytest.mark.parametrize("second", [False, True], ids=["eva01", "eva02"])


def photos(*sizes: tuple[int, int], canvas: tuple[int, int] = (56, 56)) -> Images:
    torch.manual_seed(0)
    return Images(torch.rand(len(sizes), 3, *canvas) * 255, sizes, sizes)


def filled(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@FORMS
def test_numbers_of_timm_at_the_size_it_was_trained_on(second: bool) -> None:
    whole, same = filled(eva(second)), filled(eva(second))
    trunk = EvaTrunk(same)
    images = photos((56, 56), (40, 56))
    assert torch.equal(trunk(images), whole(trunk.normalise(images)))
    assert list(trunk.state_dict()) == [f"trunk.{name}" for name in whole.state_dict()]
    assert list(trunk.named_buffers()) == []  # nothing a file does not bring


@FORMS
def test_other_grids(second: bool) -> None:
    trunk = EvaTrunk(filled(eva(second)))
    tokens, grid_hw = trunk.enter(photos((42, 70), canvas=(42, 70)))
    assert grid_hw == (3, 5) and tokens.shape == (1, 16, 32)
    positions = trunk.positions(grid_hw)
    grid = trunk.trunk.pos_embed[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    corners = positions[0, 1:].reshape(3, 5, 32)
    torch.testing.assert_close(corners[0, 0], grid[0, :, 0, 0])  # corners are aligned
    torch.testing.assert_close(corners[2, 4], grid[0, :, 3, 3])
    expected = functional.interpolate(grid, size=(3, 5), mode="bicubic", align_corners=True)
    torch.testing.assert_close(corners, expected[0].permute(1, 2, 0))
    assert torch.equal(positions[:, 0], trunk.trunk.pos_embed[:, 0])
    assert torch.equal(trunk.positions((4, 4)), trunk.trunk.pos_embed)
    assert (trunk.waves(grid_hw) is None) == (not second)
    assert trunk(photos((42, 70), canvas=(42, 70))).shape == (1, 16)


def test_what_is_no_eva_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="VisionTransformer is no EVA-CLIP"):
        EvaTrunk(timm.create_model("test_vit"))
    with pytest.raises(ValueError, match="one class token"):
        EvaTrunk(timm.models.eva.Eva(56, 14, embed_dim=32, depth=1, num_heads=4, class_token=False))
    with pytest.raises(ValueError, match="attention of this form"):
        EvaTrunk(timm.models.eva.Eva(56, 14, embed_dim=32, depth=1, num_heads=4, attn_type="rope"))


@pytest.mark.parametrize(
    ("name", "depth", "heads", "patch", "grid", "embed_dim", "tensors"),
    [
        ("EVA02-B-16", 12, 12, 16, (14, 14), 512, 260),
        ("EVA02-L-14-336", 24, 16, 14, (24, 24), 768, 512),
        ("EVA01-g-14-plus", 40, 16, 14, (16, 16), 1024, 528),
    ],
)
def test_published_towers(
    name: str, depth: int, heads: int, patch: int, grid: tuple[int, int], embed_dim: int, tensors: int
) -> None:
    trunk = build_transformer_tower(name)
    assert (trunk.depth, trunk.num_heads, trunk.patch_size) == (depth, heads, patch)
    assert tuple(trunk.trunk.patch_embed.grid_size) == grid and trunk.trunk.norm.eps == 1e-6
    assert trunk.trunk.head.out_features == embed_dim == build_text_encoder(name).text_projection.shape[1]
    state = trunk.state_dict()
    assert len(state) == tensors and all(value.is_meta for value in state.values())
    assert list(trunk.named_buffers()) == []


def test_towers_by_configuration() -> None:
    trunk = build_transformer_tower(EVA_TOWERS["eva02"], device="cpu")
    assert not trunk.training and not any(parameter.requires_grad for parameter in trunk.parameters())
    assert build_transformer_tower(EVA_TOWERS["eva02"], frozen=False).training
    with pytest.raises(UnsupportedTower, match="no EVA-CLIP"):
        build_transformer_tower("convnext_base_w_320")
    with pytest.raises(UnsupportedTower, match="timm_pool 'avg'"):
        vision = {**EVA_TOWERS["eva02"]["vision_cfg"], "timm_pool": "avg"}
        build_transformer_tower({**EVA_TOWERS["eva02"], "vision_cfg": vision})
    with pytest.raises(UnsupportedTower, match="timm_pool 'token'"):
        build_image_tower("EVA02-B-16")
