"""A model that knows three words: red, green and blue. Small, exact, and made of the same slots as any other."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lexiseg.geometry import resize
from lexiseg.images import Canvas
from lexiseg.scoring.cosine import Cosine
from lexiseg.system import System
from lexiseg.types import Features, Images, Proposals, Regions, Scores, TextBank
from lexiseg.zoo.model_folder import Model, OutputSettings

COLOURS = ("red", "green", "blue")


class ColourText:
    """Red, green and blue are unit vectors; every other word is equally far from all."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def encode(self, prompts: Sequence[str]) -> Tensor:
        self.prompts += prompts
        rows = torch.full((len(prompts), 4), 1e-3)
        for row, prompt in zip(rows, prompts, strict=True):
            row[next((i for i, colour in enumerate(COLOURS) if colour in prompt), 3)] = 1
        return rows


class ColourMasks(torch.nn.Module):
    """One proposal per colour: where its channel is the brightest. At a quarter of the canvas, as masks usually are."""

    def forward(self, images: Images, features: Features | None, text: TextBank) -> Proposals:
        small = torch.nn.functional.avg_pool2d(images.pixels, 4)  # [B, 3, h, w]
        others = torch.stack([small[:, [j for j in range(3) if j != i]].amax(1) for i in range(3)], 1)
        return Proposals((small - others - 10) / 8)


class ColourRegions(torch.nn.Module):
    """Each proposal is the mean colour inside it."""

    def forward(self, images: Images, features: Features | None, mask_logits: Tensor) -> Regions:
        inside = resize(mask_logits, images.canvas_hw) > 0  # [B, Q, H, W]
        area = inside.flatten(2).sum(2, keepdim=True)
        mean = torch.einsum("bchw,bqhw->bqc", images.pixels, inside.float()) / area.clamp(min=1)
        return Regions(torch.nn.functional.pad(mean, (0, 1)), inside.flatten(2).any(2))


def verdict(proposals: Proposals, region_logits: Tensor, valid: Tensor, text: TextBank) -> Scores:
    probs = region_logits.softmax(-1) * valid[..., None] * 0.95
    return Scores(probs, 1 - probs.sum(-1))


def colour_model(name: str = "colours") -> Model:
    text = ColourText()
    system = System(None, ColourMasks(), ColourRegions(), Cosine(), verdict).eval()
    with torch.no_grad():
        system.scorer.logit_scale.fill_(3.0)
    return Model(
        name=name,
        system=system,
        text_encoder=lambda: text,
        fingerprint=f"test {name}",
        templates=("{}",),
        canvas=Canvas(96, 160),
        outputs=OutputSettings(),
        training_phrases=("red",),
        card={},
    )
