"""FreeSeg's generator: pixels that look at words, and masks at the size of the canvas."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.proposals import freeseg
from lexiseg.proposals.freeseg import FreeSegGenerator, TextAttention, TextInteraction, freeseg_generator
from lexiseg.types import Features, Images, TextBank

SIZES = {
    "width": 16,
    "num_queries": 5,
    "encoder_layers": 1,
    "encoder_ffn_width": 8,
    "decoder_layers": 3,
    "decoder_ffn_width": 8,
    "class_width": 6,
    "interaction_width": 24,
    "heads": 4,
    "points": 2,
    "norm_groups": 4,
}


def generator() -> FreeSegGenerator:
    torch.manual_seed(0)
    made = freeseg_generator((4, 6, 8, 10), 12, **SIZES)
    torch.nn.init.normal_(made.interaction.gamma)
    return made.eval()


def inputs(words: int = 3) -> tuple[Images, Features, TextBank]:
    torch.manual_seed(1)
    sizes = ((64, 96), (50, 96))
    maps = tuple(torch.randn(2, c, 64 // s, 96 // s) for c, s in zip((4, 6, 8, 10), (4, 8, 16, 32), strict=True))
    rows = functional.normalize(torch.randn(words, 1, 12), dim=-1)
    text = TextBank(rows, rows, torch.arange(words), torch.ones(words, dtype=torch.bool))
    return Images(torch.zeros(2, 3, 64, 96), sizes, sizes), Features(maps, maps[-1]), text


def unfolded(attention: TextAttention, pixels: Tensor, rows: Tensor) -> Tensor:
    """The wide pixels written out, and PyTorch's own attention."""
    q, k, v = (
        x.unflatten(-1, (attention.heads, -1)).transpose(-3, -2)
        for x in (attention.q_proj(pixels), attention.k_proj(rows), attention.v_proj(rows))
    )
    found = functional.scaled_dot_product_attention(q, k.expand(len(q), -1, -1, -1), v.expand(len(q), -1, -1, -1))
    return attention.out_proj(found.transpose(1, 2).flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_attention_to_words_without_the_wide_pixels(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeseg, "BLOCK_FLOATS", block)
    torch.manual_seed(0)
    attention = TextAttention(6, 5, 24, heads=4).eval()
    pixels, rows = torch.randn(2, 11, 6), torch.randn(3, 5)
    torch.testing.assert_close(attention(pixels, rows), unfolded(attention, pixels, rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="24 cannot be split among 5 heads"):
        TextAttention(6, 5, 24, heads=5)


@torch.no_grad()
def test_words_are_normalised_before_every_map_and_pixels_before_they_look() -> None:
    torch.manual_seed(0)
    module = TextInteraction(6, 5, 8, heads=2).eval()
    torch.nn.init.normal_(module.gamma)
    torch.nn.init.normal_(module.layer_norm_k_1.weight)
    maps, rows = [torch.randn(1, 6, 2, 3), torch.randn(1, 6, 4, 5)], torch.randn(3, 5)
    first, second = module(maps, rows)
    words = rows
    for given, changed in zip(maps, (first, second), strict=True):
        words = module.layer_norm_k_1(words)
        pixels = module.layer_norm_q_1(given.permute(0, 2, 3, 1).flatten(1, 2))
        expected = pixels + module.gamma * unfolded(module.attn, pixels, words)
        torch.testing.assert_close(changed.flatten(2).transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_masks_leave_at_the_size_of_the_canvas_with_aligned_corners() -> None:
    made, (images, features, text) = generator(), inputs()
    proposals = made(images, features, text)
    assert proposals.mask_logits.shape == (2, 5, 64, 96) and proposals.class_logits.shape == (2, 5, 4)
    steps = made.all_steps(images, features, text)
    assert len(steps) == 4
    small = steps[-1].proposals.mask_logits
    assert small.shape == (2, 5, 16, 24)
    corners = proposals.mask_logits[:, :, :: 64 - 1, :: 96 - 1]
    torch.testing.assert_close(corners, small[:, :, ::15, ::23], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(proposals.class_logits, steps[-1].proposals.class_logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_masks_depend_on_the_words() -> None:
    made, (images, features, text) = generator(), inputs()
    other = inputs(words=4)[2]
    first, second = (made(images, features, words).mask_logits for words in (text, other))
    assert not torch.allclose(first, second, atol=1e-3)


def test_dropout_is_for_training_alone() -> None:
    made, (images, features, text) = generator(), inputs()
    made.train()
    with torch.no_grad():
        first, second = (made(images, features, text).mask_logits for _ in range(2))
        assert not torch.equal(first, second)
        made.eval()
        assert torch.equal(made(images, features, text).mask_logits, made(images, features, text).mask_logits)


def test_gradients_reach_every_part() -> None:
    made, (images, features, text) = generator(), inputs()
    steps = made.all_steps(images, features, text)
    sum((s.proposals.mask_logits.square().mean() + s.proposals.class_logits.square().mean()) for s in steps).backward()
    without = [name for name, parameter in made.named_parameters() if parameter.grad is None]
    assert without == []
