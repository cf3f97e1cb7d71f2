"""The head of a CLIP image tower: from pooled trunk features to the joint space."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Projection(nn.Module):
    """What CLIP does after pooling, applied to any pooled vectors: masks instead of the whole picture.

    A norm (ConvNeXt has a LayerNorm here, whose tensors open_clip names within the trunk; other towers have none), then
    `head.proj`, a linear map, or `head.mlp`, two with an exact GELU between them. Names under `head` are open_clip's.
    """

    def __init__(
        self,
        channels: int,
        embed_dim: int,
        *,
        norm_eps: float | None = None,
        hidden: int | None = None,
        bias: bool = False,
    ) -> None:
        """channels C, embed_dim D. norm_eps: None for no norm. hidden: width of the MLP, None for a linear map."""
        super().__init__()
        self.embed_dim = embed_dim
        self.norm = nn.Identity() if norm_eps is None else nn.LayerNorm(channels, eps=norm_eps)
        layers: dict[str, nn.Module]
        if hidden is None:
            layers = {"proj": nn.Linear(channels, embed_dim, bias=bias)}
        else:
            mlp = {"fc1": nn.Linear(channels, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, embed_dim, bias=bias)}
            layers = {"mlp": nn.Sequential(OrderedDict(mlp))}
        self.head = nn.Sequential(OrderedDict(layers))

    def forward(self, pooled: Tensor) -> Tensor:
        """pooled [..., C] -> [..., D], not normalised."""
        return self.head(self.norm(pooled))
