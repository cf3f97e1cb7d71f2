"""Toy towers in open_clip's format, and official names written the other way round."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lexiseg.system import System
from lexiseg.types import Images, Scores, TextBank

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}

TOWERS: dict[str, dict[str, Any]] = {
    "resnet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": TEXT,
        "quick_gelu": True,
    },
    "convnext mlp": {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
        "text_cfg": TEXT,
    },
    "convnext linear": {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "image_size": 64},
        "text_cfg": TEXT,
    },
}

GENERATOR = {
    "width": 32,
    "mask_width": 48,
    "num_queries": 6,
    "encoder_layers": 2,
    "encoder_ffn_width": 24,
    "decoder_layers": 3,
    "decoder_ffn_width": 40,
    "points": 2,
}


@pytest.fixture(params=TOWERS)
def tower(request: pytest.FixtureRequest) -> dict[str, Any]:
    return TOWERS[request.param]


def official_name(name: str) -> str:
    """The official name of a tensor of the system ("encoder.", ...) or of the text encoder ("text.")."""
    clip = "backbone.clip_model."
    prefixes = {
        "embedder.projection.norm.": clip + "visual.trunk.head.norm.",
        "embedder.projection.head.": clip + "visual.head.",
        "embedder.pool.": clip + "visual.attnpool.",
        "embedder.adapter.": "mask_adapter.",
        "scorer.transfer.linear.": "cdt.cross_atten.MLP.",
        "scorer.transfer.": "cdt.cross_atten.",
        "scorer.": clip,
        "generator.pixel_decoder.": "sem_seg_head.pixel_decoder.",
        "generator.decoder.mask_pooling_proj.": "sem_seg_head.predictor._mask_pooling_proj.",
        "generator.decoder.": "sem_seg_head.predictor.",
        "generator.void_embedding.": "void_embedding.",
        "text.": clip,
        # The stem and the stages of a ConvNeXt are in `trunk`, as timm calls it; a ResNet has no such level.
        "encoder.trunk.st": clip + "visual.trunk.st",
        "encoder.trunk.": clip + "visual.",
    }
    ours = next(prefix for prefix in prefixes if name.startswith(prefix))
    return prefixes[ours] + name.removeprefix(ours)


def official_checkpoint(system: dict[str, Tensor], text: dict[str, Tensor]) -> dict[str, Tensor]:
    """System state dict, text state dict -> the official checkpoint."""
    ours = {**system, **{"text." + name: tensor for name, tensor in text.items()}}
    named = {official_name(name): tensor for name, tensor in ours.items()}
    assert len(named) == len(ours)
    return {**named, "criterion.empty_weight": torch.ones(134, device=next(iter(system.values())).device)}


def randomise(module: torch.nn.Module, seed: int = 0) -> None:
    """Fills what constructors leave at zero or one too, so that no tensor can stand in for another."""
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=chance) * 0.4 + 0.05)


@pytest.fixture
def run() -> Any:
    """The masks and scores of a system on one fixed input."""

    def outputs(system: System, embed_dim: int = 16) -> tuple[Tensor, Scores]:
        chance = torch.Generator().manual_seed(1)
        images = Images(torch.rand(2, 3, 64, 96, generator=chance) * 255, ((64, 96), (50, 96)), ((64, 96), (50, 96)))
        rows = torch.nn.functional.normalize(torch.randn(4, 1, embed_dim, generator=chance), dim=-1)
        text = TextBank(rows, rows, torch.tensor([0, 1, 1, 2]), torch.tensor([True, False, True]))
        with torch.no_grad():
            proposals, scores = system.eval()(images, text)
        return proposals.mask_logits, scores

    return outputs
