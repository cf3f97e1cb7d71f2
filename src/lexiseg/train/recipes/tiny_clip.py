"""The embedded models' two towers as one CLIP in open_clip's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lexiseg.train.loop import CHECKPOINT

CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "lexiseg_pyramid_tiny",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}
"""Most of the weight of so small a text tower is its table of tokens, so the table is narrow."""


def averaged_weights(run: Path) -> dict[str, Tensor]:
    """The running average of a training: the weights to use."""
    return torch.load(run / CHECKPOINT, weights_only=True, map_location="cpu")["averaged"]


def export(tower_run: Path, text_run: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """(state dict, configuration) in open_clip's names, from the runs of the two towers, at any time of a run.

    Matrices in half precision; vectors (norms, their statistics, biases) are few and stay whole.
    """
    state = averaged_weights(tower_run) | averaged_weights(text_run)
    return {name: value.half() if value.ndim > 1 else value for name, value in state.items()}, CONFIG


def write(tower_run: Path, text_run: Path, out: Path) -> None:
    """out/config.json and out/clip.safetensors."""
    state, config = export(tower_run, text_run)
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in state.items()}, out / "clip.safetensors")
