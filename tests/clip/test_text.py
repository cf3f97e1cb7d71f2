"""The text tower against open_clip's own, and its shortcuts against doing without them."""

import open_clip
import pytest
import torch

from lexiseg.clip.open_clip import UnsupportedTower, build_text_encoder, clip_config
from lexiseg.clip.text import TextEncoder, tokenize

PROMPTS = ["a photo of a street.", "sky", "a photo of a", "traffic light", "There is a very long train in the scene"]
CONFIG = {
    "embed_dim": 12,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32},
    "text_cfg": {"width": 32, "heads": 4, "layers": 3, "context_length": 20, "vocab_size": 49408},
}


@pytest.fixture
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return build_text_encoder(CONFIG, device="cpu")


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_as_open_clip(quick_gelu: bool) -> None:
    torch.manual_seed(0)
    config = {**CONFIG, "quick_gelu": quick_gelu}
    whole = open_clip.CLIP(**clip_config(config)).eval()
    weights = {
        name: value for name, value in whole.state_dict().items() if not name.startswith(("visual.", "logit_scale"))
    }
    encoder = build_text_encoder(config)
    encoder.load_state_dict(weights, assign=True)
    with torch.no_grad():
        expected = whole.encode_text(open_clip.tokenize(PROMPTS, context_length=20))
    torch.testing.assert_close(encoder.encode(PROMPTS), expected, rtol=1e-4, atol=1e-5)


def test_tokens() -> None:
    tokens = tokenize(["Sky", "sky  ", "a " * 100])
    assert tokens.shape == (3, 77)
    assert torch.equal(tokens[0], tokens[1])
    assert tokens[0].tolist()[:4] == [49406, 2390, 49407, 0]
    assert tokens[2, -1] == 49407 and (tokens[2, 1:-1] == 320).all()


def test_cutting_and_sorting_change_nothing(encoder: TextEncoder) -> None:
    with torch.no_grad():
        full = encoder(encoder.tokenize(PROMPTS))
    for batch_size in (1, 2, 128):
        torch.testing.assert_close(encoder.encode(PROMPTS, batch_size), full, rtol=1e-4, atol=1e-6)


def test_each_distinct_prompt_once(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda tokens: shapes.append(tuple(tokens.shape)) or forward(tokens))
    rows = encoder.encode(["sky", "a photo of a sky.", "sky", "car"], batch_size=2)
    assert shapes == [(2, 3), (1, 8)]
    assert torch.equal(rows[0], rows[2])
    assert not rows.requires_grad and rows.dtype == torch.float32
    assert encoder.encode([]).shape == (0, 12)


def test_it_can_be_trained(encoder: TextEncoder) -> None:
    encoder(encoder.tokenize(["sky", "car"])).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_without_values() -> None:
    assert all(value.is_meta for value in build_text_encoder("RN50").state_dict().values())
    with pytest.raises(UnsupportedTower, match="pool_type not supported"):
        build_text_encoder({**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "pool_type": "last"}})
    with pytest.raises(ValueError, match="cannot be split"):
        TextEncoder(8, width=10, heads=3, layers=1)
