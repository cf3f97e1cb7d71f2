"""The text tower of CLIP, with its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from open_clip import SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU; their weights are worth nothing with the exact one."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees itself and what comes before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split among {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, W] -> [N, L, W]."""
        packed = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, L, d]
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.activation = activation
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm transformer block, one of `layers`."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = CausalAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, activation)
        # CLIP's own start: narrower where the outputs of many blocks add up.
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=residual_std)
        nn.init.normal_(self.mlp.c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(self.mlp.c_proj.weight, std=residual_std)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, L, W] -> [N, L, W]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """Blocks one after the other, under open_clip's name."""

    def __init__(self, width: int, heads: int, layers: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, layers, hidden, activation) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class TextEncoder(nn.Module):
    """CLIP's text transformer (Radford et al., arXiv 2103.00020): prompts to vectors of the joint space.

    Written out instead of taken from open_clip, whose layout of batches has changed between releases; tensor names are
    open_clip's. Attention looks back only, so what follows the end token changes nothing, and a batch is cut to its
    longest prompt: 77 positions would cost some seven times more for the same result.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        width: int,
        heads: int,
        layers: int,
        context_length: int = 77,
        vocab_size: int = 49408,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
    ) -> None:
        """embed_dim D. quick_gelu: for weights trained by OpenAI."""
        super().__init__()
        self.context_length = context_length
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        activation = QuickGELU() if quick_gelu else nn.GELU()
        self.transformer = Transformer(width, heads, layers, int(width * mlp_ratio), activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> int64 [N, context_length]."""
        return tokenize(prompts, self.context_length)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [N, L], L up to the context length -> [N, D] at the end tokens, not normalised."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.transformer(x)
        end = tokens.argmax(dim=-1)  # the end token has the highest number
        x = x[torch.arange(x.shape[0], device=x.device), end]
        return self.ln_final(x) @ self.text_projection

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batch_size: int = 128) -> Tensor:
        """N prompts -> float32 [N, D], not normalised. Each distinct prompt is encoded once."""
        device, width = self.text_projection.device, self.text_projection.shape[1]
        return encode_prompts(
            prompts, lambda tokens: self(tokens.to(device)).float(), width, self.context_length, batch_size
        )


def encode_prompts(
    prompts: Sequence[str],
    forward: Callable[[Tensor], Tensor],
    embed_dim: int,
    context_length: int = 77,
    batch_size: int = 128,
) -> Tensor:
    """N prompts -> [N, D] by `forward`, tokens [M, L] -> [M, D]: each distinct prompt once, with its like in length."""
    number = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
    if not number:
        return torch.empty(0, embed_dim)
    tokens = tokenize(list(number), context_length)
    lengths = tokens.argmax(dim=-1) + 1
    order = lengths.argsort(stable=True)
    rows = [forward(tokens[chosen, : int(lengths[chosen].max())]) for chosen in order.split(batch_size)]
    return torch.cat(rows)[order.argsort()[[number[prompt] for prompt in prompts]]]


def tokenize(prompts: Sequence[str], context_length: int = 77) -> Tensor:
    """N prompts -> int64 [N, context_length]: start, text in lower case, end, zeros.

    A prompt that is too long is cut and keeps its end token.
    """
    return byte_pair_tokenizer()(list(prompts), context_length=context_length)


@cache
def byte_pair_tokenizer() -> SimpleTokenizer:
    """CLIP's tokenizer; its table takes a moment to read."""
    return SimpleTokenizer()
