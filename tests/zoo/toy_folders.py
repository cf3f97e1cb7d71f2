"""Small random models of every kind as folders on disk: what parts a composition can be made of."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file

from lexiseg.images import Canvas
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import BUILDERS, Query, save_model_folder
from tests.zoo.conftest import GENERATOR, TEXT, TOWERS

TRANSFORMER: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": TEXT,
}
"""A CLIP with one of OpenAI's transformers."""

ADAPTER = {"adapter_width": 16, "adapter_mask_width": 8, "adapter_maps": 2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "fcclip": GENERATOR,
    "maftplus": {**GENERATOR, "transfer_heads": 2},
    "mask_adapter_fcclip": {**GENERATOR, **ADAPTER},
    "mask_adapter_maftplus": {**GENERATOR, **ADAPTER, "transfer_heads": 2},
    "maskclip_pp": {
        **GENERATOR,
        "generator_tower": TOWERS["convnext linear"],
        "short_edge": 56,
        "mask_blocks": 2,
        "num_templates": 1,
        "alpha": 0.6,
    },
    "ovseg": {
        "backbone": {"width": 8, "depths": [1, 1, 1, 1], "heads": [1, 2, 2, 4], "window": 3},
        "threshold": 0.3,
        "width": 32,
        "mask_width": 24,
        "num_queries": 6,
        "decoder_width": 16,
        "decoder_layers": 2,
        "decoder_ffn_width": 20,
        "class_width": 12,
    },
    "maft": {
        "backbone": {"width": 8, "depths": [1, 1, 1, 1], "last_dilations": [1]},
        "side": 64,
        "first_block": 1,
        "width": 32,
        "num_queries": 6,
        "encoder_layers": 1,
        "encoder_ffn_width": 24,
        "decoder_layers": 3,
        "decoder_ffn_width": 40,
        "class_width": 20,
        "interaction_width": 48,
        "points": 2,
    },
    "maft_given": {"side": 64, "first_block": 1},
    "clustered": {"clusters": 5},
}
ARGUMENTS["freeseg"] = ARGUMENTS["maft"]
"""Builder -> arguments beside the tower."""


def toy_model(folder: Path, builder: str, tower: str | dict[str, Any] = "convnext mlp", seed: int = 0) -> Path:
    """A model folder with random weights, the same for the same seed. tower: a name of TOWERS, or its settings."""
    torch.manual_seed(seed)
    config = TOWERS[tower] if isinstance(tower, str) else tower
    arguments = {"tower": config, **ARGUMENTS[builder]}
    own = arguments.get("generator_tower")
    query = None if own is None else Query("photo1", text_encoder(own, device="cpu"))
    return save_model_folder(
        folder,
        BUILDERS[builder].system(**arguments, device="cpu"),
        text_encoder(config, device="cpu"),
        builder=builder,
        arguments=arguments,
        templates="photo1",
        mix_templates=query is None,
        query=query,
        canvas=Canvas(64, 96),
        training_phrases=["sky", "tree"],
        card={"title": f"toy {builder}"},
    )


def open_clip_model(tower: str = "convnext mlp", seed: int = 0) -> torch.nn.Module:
    """A CLIP as open_clip builds it, with random weights."""
    torch.manual_seed(seed)
    return open_clip.CLIP(**(TOWERS | {"transformer": TRANSFORMER})[tower]).eval()


def toy_open_clip(folder: Path, tower: str = "convnext mlp", seed: int = 0) -> Path:
    """The same in the layout open_clip's models have on the hub."""
    folder.mkdir(parents=True)
    settings = {
        "model_cfg": (TOWERS | {"transformer": TRANSFORMER})[tower],
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
            "interpolation": "bicubic",
        },
    }
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    state = {name: tensor.contiguous() for name, tensor in open_clip_model(tower, seed).state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder
