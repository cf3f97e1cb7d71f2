"""Words fitted to the picture, and what may and may not change them."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.layers.positions import sine_positions
from lexiseg.scoring.image_conditioned import ContentDependentTransfer, ImageConditioned
from lexiseg.types import Regions, TextBank

WIDTH, HEADS = 16, 4
ORDERS = pytest.mark.parametrize("norm_order", ["after_sum", "before_sum"])


def transfer(norm_order: str = "after_sum") -> ContentDependentTransfer:
    torch.manual_seed(0)
    module = ContentDependentTransfer(WIDTH, HEADS, norm_order)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def text() -> TextBank:
    rows = functional.normalize(torch.randn(4, 1, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    return TextBank(rows, rows, torch.tensor([0, 0, 1, 2]), torch.zeros(3, dtype=torch.bool))


def picture(batch: int = 2) -> Tensor:
    return torch.randn(batch, WIDTH, 3, 5, generator=torch.Generator().manual_seed(2))


def regions(batch: int = 2) -> Regions:
    embeds = torch.randn(batch, 6, WIDTH, generator=torch.Generator().manual_seed(3))
    return Regions(embeds, torch.ones(batch, 6, dtype=torch.bool), picture(batch))


@ORDERS
def test_transfer_is_plain_attention_to_the_whole_picture(norm_order: str) -> None:
    module, rows, dense = transfer(norm_order), text().region[:, 0], picture()
    plain = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    plain.load_state_dict(module.multihead_attn.state_dict())
    values = dense.permute(0, 2, 3, 1).reshape(2, 15, WIDTH)
    keys = values + sine_positions((3, 5), WIDTH).reshape(15, WIDTH)
    update = module.linear(plain(rows.expand(2, -1, -1), keys, values, need_weights=False)[0])
    expected = module.norm(rows + update) if norm_order == "after_sum" else rows + module.norm(update)
    torch.testing.assert_close(module(rows, dense), expected)


@ORDERS
def test_rows_and_pictures_do_not_mix(norm_order: str) -> None:
    module, rows, dense = transfer(norm_order), text().region[:, 0], picture()
    both = module(rows, dense)
    torch.testing.assert_close(module(rows[1:], dense), both[:, 1:])
    torch.testing.assert_close(module(rows, dense[1:]), both[1:])
    assert not torch.allclose(both[0], both[1])


def test_score_is_the_product_with_rows_of_any_length() -> None:
    scorer = ImageConditioned(transfer(), math.log(10)).eval()
    logits = scorer(regions(), text())
    rows = scorer.transfer(text().region[:, 0], picture())
    assert rows.norm(dim=-1).min() > 2  # not normalised again
    each = 10 * torch.einsum("bqd,bad->bqa", functional.normalize(regions().embeds, dim=-1), rows)
    expected = torch.stack((each[..., :2].amax(-1), each[..., 2], each[..., 3]), dim=-1)
    torch.testing.assert_close(logits, expected)


def test_bias_of_the_last_norm_changes_no_probability() -> None:
    scorer = ImageConditioned(transfer())
    before = scorer(regions(), text()).softmax(-1)
    before.square().sum().backward()
    assert scorer.transfer.norm.bias.grad.abs().max() < 1e-5 < scorer.transfer.norm.weight.grad.abs().max()
    with torch.no_grad():
        scorer.transfer.norm.bias += torch.randn(WIDTH)
    torch.testing.assert_close(scorer(regions(), text()).softmax(-1), before, atol=1e-4, rtol=1e-3)


def test_logits_are_float32_under_autocast() -> None:
    scorer = ImageConditioned(transfer())
    with torch.autocast("cpu", torch.bfloat16):
        logits = scorer(regions(), text())
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, scorer(regions(), text()), atol=1.0, rtol=0.05)


def test_the_scale_is_frozen_and_the_transfer_is_not() -> None:
    scorer = ImageConditioned(transfer())
    assert [name for name, parameter in scorer.named_parameters() if not parameter.requires_grad] == ["logit_scale"]


def test_needs_an_embedder_that_shows_the_picture() -> None:
    blind = Regions(regions().embeds, regions().valid)
    with pytest.raises(ValueError, match="dense_order"):
        ImageConditioned(transfer())(blind, text())
