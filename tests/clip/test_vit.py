"""CLIP's vision transformers against open_clip's, and what prompts in the place of blank patches do."""

import open_clip
import pytest
import torch

from lexiseg.clip.open_clip import UnsupportedTower, build_vision_transformer
from lexiseg.clip.vit import MaskPromptedTransformer

SMALL = {"width": 32, "layers": 4, "patch_size": 8, "image_size": 32, "head_width": 8}
CONFIG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": SMALL,
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
}


def build(prompt_depth: int, **options: bool) -> MaskPromptedTransformer:
    torch.manual_seed(0)
    tower = MaskPromptedTransformer(16, prompt_depth=prompt_depth, **SMALL, **options)
    for block in tower.blocks:
        torch.nn.init.normal_(block.attn.in_proj_bias)
    if tower.mask_embedding is not None:
        torch.nn.init.normal_(tower.mask_embedding)
    return tower.eval()


@torch.no_grad()
def test_plain_tower_equals_open_clip() -> None:
    tower = build(0)
    other = open_clip.CLIP(**CONFIG).visual.eval()
    other.load_state_dict(tower.state_dict())
    pixels = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(tower(pixels), other(pixels), rtol=1e-4, atol=1e-5)


def test_built_from_open_clip_names() -> None:
    tower = build_vision_transformer("ViT-B-16-quickgelu", prompt_depth=3)
    assert tower.mask_embedding is not None
    assert tower.mask_embedding.shape == (3, 196, 768) and len(tower.blocks) == 12 and tower.proj.shape == (768, 512)
    assert build_vision_transformer(CONFIG).mask_embedding is None
    with pytest.raises(UnsupportedTower, match="not one of OpenAI's transformers"):
        build_vision_transformer("RN50")


def test_a_patch_is_kept_if_any_pixel_is_foreground() -> None:
    masks = torch.zeros(2, 32, 32)
    masks[0, 7, 8] = 1e-3
    keep = build(1).keep(masks)
    assert keep.shape == (2, 16)
    assert keep.nonzero().tolist() == [[0, 1]]
    assert torch.equal(build(1).keep(masks > 0), keep)


@torch.no_grad()
@pytest.mark.parametrize(("depth", "shared"), [(1, False), (3, False), (3, True), (6, False)])
def test_prompts_by_the_formula(depth: int, shared: bool) -> None:
    """x = x m + M (1 - m) before the first block and after every block before the last prompt, all tokens computed."""
    tower = build(depth, shared_prompts=shared)
    assert tower.mask_embedding is not None
    pixels = torch.randn(3, 3, 32, 32)
    keep = torch.rand(3, 16) > 0.5
    m = keep[..., None].float()
    prompts = tower.mask_embedding.expand(-1, 16, -1)
    x = tower.begin(tower.patches(pixels) * m + prompts[0] * (1 - m))
    for index, block in enumerate(tower.blocks, 1):
        x = block(x)
        if index < depth:
            x[:, 1:] = x[:, 1:] * m + prompts[index] * (1 - m)
    torch.testing.assert_close(tower(pixels, keep), tower.end(x[:, 0]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blank_patches_are_not_seen() -> None:
    tower, keep = build(1), torch.zeros(1, 16, dtype=torch.bool)
    keep[0, :4] = True
    pixels = torch.randn(1, 3, 32, 32)
    other = pixels.clone()
    other[:, :, 8:] = 7
    torch.testing.assert_close(tower(pixels, keep), tower(other, keep))
    assert not torch.allclose(tower(pixels, keep), tower(pixels))
    other[:, :, :8] = 7
    assert not torch.allclose(tower(pixels, keep), tower(other, keep))


def test_only_prompts_that_are_used_learn() -> None:
    tower = build(6)
    tower(torch.randn(2, 3, 32, 32), torch.zeros(2, 16, dtype=torch.bool)).sum().backward()
    assert tower.mask_embedding is not None and tower.mask_embedding.grad is not None
    assert tower.mask_embedding.grad.flatten(1).any(1).tolist() == [True] * 4 + [False] * 2


@torch.no_grad()
def test_a_grid_of_another_size() -> None:
    """Positions keep their corners; a square that fills no patch is cut off."""
    tower = build(0)
    positions = tower.positions((7, 5))
    assert torch.equal(positions[0], tower.positional_embedding[0])
    small, large = tower.positional_embedding[1:].unflatten(0, (4, 4)), positions[1:].unflatten(0, (7, 5))
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(large[row, column], small[row, column], rtol=1e-4, atol=1e-5)
    assert tower.positions((4, 4)) is tower.positional_embedding
    pixels = torch.randn(2, 3, 59, 40)
    torch.testing.assert_close(tower(pixels), tower(pixels[:, :, :56]))
    assert tower.enter(pixels).shape == (2, 36, 32)
