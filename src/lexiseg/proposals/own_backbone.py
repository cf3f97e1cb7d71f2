"""Generators with a backbone of their own, for systems whose parts share none."""

from __future__ import annotations

from torch import nn

from lexiseg.types import Features, Images, Proposals, TextBank


class OwnBackbone(nn.Module):
    """A generator and the backbone it reads: what `System` does with a shared encoder, inside the generator."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """backbone(images) -> Features; head(images, features, text) -> Proposals."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Images, features: Features | None, text: TextBank) -> Proposals:
        """features: of the system's encoder, not looked at."""
        return self.head(images, self.backbone(images), text)
