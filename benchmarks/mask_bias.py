"""How much does MAFT save by never making the bias of all tokens against all tokens?

    python benchmarks/mask_bias.py [--tower ViT-B-16-quickgelu] [--masks 100] [--rounds 3] [--device cpu]

A row each for one attention over all tokens, as the method is written down, and for what `regions.mask_bias` does: the
patches once and a token per mask beside them. Seconds are the median of the rounds, memory is the highest of the
process on top of what it held before; both forms run one after the other on the same random weights, picture and masks.
The last line tells how far their results are apart.
"""

import argparse

import torch
from stages import Meter
from torch import Tensor

from lexiseg.regions.mask_bias import MaskBiasedAttention
from lexiseg.zoo.maft import maft_given


def with_full_bias(embedder: MaskBiasedAttention, tokens: Tensor, allowed: Tensor) -> Tensor:
    """Tokens of `shared`, allowed bool [B, Q, P] -> [B, Q, D]: all tokens in one attention, under a bias of minus
    infinity for every pair and every head where one may not look at the other, as the released code has it."""
    tower, (batch, count, patches) = embedder.tower, allowed.shape
    x = torch.cat((tokens[:, :1].expand(-1, count, -1), tokens[:, 1:]), dim=1)
    visible = torch.zeros(batch, count + patches, count + patches, dtype=torch.bool, device=x.device)
    visible[:, count:, count:] = True  # patches see patches
    visible[:, :count, :count] = torch.eye(count, dtype=torch.bool)  # a token sees itself
    visible[:, :count, count:] = allowed  # and its mask
    heads = tower.blocks[0].attn.heads
    bias = torch.zeros(batch, heads, *visible.shape[1:], device=x.device)
    bias = bias.masked_fill(~visible[:, None], -torch.inf)
    for block in tower.blocks[embedder.first_block :]:
        normed = block.ln_1(x)
        query, key, value = (block.attn.project(part, normed) for part in "qkv")
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + bias
        x = block.finish(x + block.attn.join(scores.softmax(dim=-1) @ value))
    return tower.end(x[:, :count])


def masks_for(count: int, patches: int) -> Tensor:
    """bool [1, count, patches]: random rectangles, the first one empty."""
    side = int(patches**0.5)
    chance = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=chance).sort(dim=1).values * (side + 1)
    place = torch.arange(side) + 0.5
    rows, columns = (
        (place >= corners[:, 0, axis, None]) & (place <= corners[:, 1, axis, None]) for axis in (0, 1)
    )  # each [count, side]
    masks = (rows[:, :, None] & columns[:, None]).flatten(1)
    masks[0] = False
    return masks[None]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", default="ViT-B-16-quickgelu")
    parser.add_argument("--masks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    embedder: MaskBiasedAttention = maft_given(options.tower, device=device).embedder
    view = torch.randn(1, 3, embedder.side, embedder.side, device=device)
    tokens = embedder.shared(view)
    allowed = masks_for(options.masks, tokens.shape[1] - 1).to(device)
    meter = Meter(device)
    meter("before", lambda: None)
    for _ in range(options.rounds):
        slow = meter("all tokens together", with_full_bias, embedder, tokens, allowed)
        fast = meter("beside the patches", embedder.regions, tokens, allowed)
    print(
        f"{options.tower}, {options.masks} masks, {tokens.shape[1] - 1} patches, blocks {embedder.first_block} to last"
    )
    names = ("all tokens together", "beside the patches")
    for name in names:
        more = meter.peak_mb[name] - meter.peak_mb["before"]
        print(f"{name:<22} {meter.median(name):8.3f} s  {more:8.0f} MB")
    ratio = meter.median(names[0]) / meter.median(names[1])
    print(f"ratio of the times {ratio:.2f}, largest difference {(slow - fast).abs().max():.1e}")


if __name__ == "__main__":
    main()
