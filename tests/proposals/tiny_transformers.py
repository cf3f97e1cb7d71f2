"""Small random models of transformers' own classes, saved in the hub's layout.

Every function fills `folder` with config.json, model.safetensors and preprocessor_config.json, and returns it. The
numbers of a folder are the same in every process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
HALVES = [0.5, 0.5, 0.5]

EVERY_MASK = {
    "points_per_side": 3,
    "min_quality": -1000.0,
    "min_stability": -1.0,
    "box_overlap": 1.0,
    "mask_overlap": 1.0,
}
"""Settings under which a random model of the Segment Anything family keeps nearly all of its 27 masks."""


def tiny_mask2former(folder: Path) -> Path:
    """Mask2Former with a Swin, 7 queries, classes "wall", "tree", "cat"; looks at 64..128 pixels."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    backbone = SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 2],
        window_size=4,
        drop_path_rate=0.1,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=32,  # the least that its group norms take
        mask_feature_size=32,
        hidden_dim=16,
        encoder_feedforward_dim=24,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=24,
        num_queries=7,
        id2label={0: "wall", 1: "tree", 2: "cat"},
    )
    size = {"shortest_edge": 64, "longest_edge": 128}
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": size, "size_divisor": 32}
    return _save(Mask2FormerForUniversalSegmentation, config, folder, preprocessor)


def tiny_eomt(folder: Path) -> Path:
    """EoMT with 6 queries, classes "wall", "cat"; looks at 64 x 64 pixels."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        mlp_ratio=2,
        num_blocks=2,
        num_queries=6,
        num_register_tokens=2,
        id2label={0: "wall", 1: "cat"},
    )
    size = {"shortest_edge": 64, "longest_edge": 64}
    return _save(EomtForUniversalSegmentation, config, folder, {"image_mean": MEAN, "image_std": STD, "size": size})


def tiny_eomt_dinov3(folder: Path) -> Path:
    """EoMT on the other trunk of its family, with 6 queries, classes "wall", "cat"; looks at 64 x 64 pixels."""
    from transformers import EomtDinov3Config, EomtDinov3ForUniversalSegmentation

    config = EomtDinov3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_blocks=2,
        num_queries=6,
        num_register_tokens=2,
        id2label={0: "wall", 1: "cat"},
    )
    size = {"shortest_edge": 64, "longest_edge": 64}
    preprocessor = {"image_mean": MEAN, "image_std": STD, "size": size}
    return _save(EomtDinov3ForUniversalSegmentation, config, folder, preprocessor)


def tiny_sam(folder: Path) -> Path:
    """SAM; looks at 128 x 128 pixels. What it thinks of its masks means nothing: see `EVERY_MASK`."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "initializer_range": 0.2,
        },
        prompt_encoder_config={"hidden_size": 16, "image_size": 128, "mask_input_channels": 4},
        mask_decoder_config=_mask_decoder(),
    )
    preprocessor = {
        "image_mean": MEAN,
        "image_std": STD,
        "size": {"longest_edge": 128},
        "pad_size": {"height": 128, "width": 128},
    }
    return _save(SamModel, config, folder, preprocessor)


def tiny_sam2(folder: Path) -> Path:
    """SAM 2; looks at 128 x 128 pixels. What it thinks of its masks means nothing: see `EVERY_MASK`."""
    from transformers import Sam2Config, Sam2Model

    return _save(Sam2Model, Sam2Config(**_sam2()), folder, _SAM2_PREPROCESSOR)


def tiny_sam2_video(folder: Path) -> Path:
    """SAM 2 as it is published, with the parts that follow things through films."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    return _save(Sam2VideoModel, Sam2VideoConfig(**_sam2(), **_memory()), folder, _SAM2_PREPROCESSOR)


_SAM2_PREPROCESSOR = {"image_mean": MEAN, "image_std": STD, "size": {"height": 128, "width": 128}}


def _sam2() -> dict[str, Any]:
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        num_attention_heads=1,
        image_size=[128, 128],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 24, 32],
        num_attention_heads_per_stage=[1, 1, 1, 2],
        window_size_per_stage=[4, 4, 4, 4],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[32, 24, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=16,
    )
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 128, "mask_input_channels": 4},
        "mask_decoder_config": _mask_decoder(),
    }


def tiny_sam3(folder: Path) -> Path:
    """The point prompts of SAM 3; looks at 112 x 112 pixels. See `EVERY_MASK`."""
    from transformers import Sam3TrackerConfig, Sam3TrackerModel

    config = Sam3TrackerConfig(**_sam3_tracker())
    return _save(Sam3TrackerModel, config, folder, _SAM3_PREPROCESSOR)


def tiny_sam3_video(folder: Path) -> Path:
    """SAM 3 as it is published: detector and tracker in one file, of which only the tracker takes points."""
    from transformers import Sam3VideoConfig, Sam3VideoModel

    narrow = {"hidden_size": 16, "num_attention_heads": 2}
    text = {**narrow, "vocab_size": 50, "intermediate_size": 16, "projection_dim": 16, "num_hidden_layers": 1}
    tracker = _sam3_tracker()
    detector = {
        "vision_config": tracker["vision_config"],
        "text_config": {**text, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
        "geometry_encoder_config": {**narrow, "num_layers": 1, "intermediate_size": 16},
        "detr_encoder_config": {**narrow, "num_layers": 1, "intermediate_size": 16},
        "detr_decoder_config": {**narrow, "num_layers": 1, "intermediate_size": 16, "num_queries": 4},
        "mask_decoder_config": narrow,
    }
    config = Sam3VideoConfig(detector_config=detector, tracker_config={**tracker, **_memory(), "image_size": 112})
    model = _random(Sam3VideoModel, config)
    config.architectures = ["Sam3VideoModel"]
    config.save_pretrained(folder)
    # Under the names of the published file; the class's own saving writes another prefix in some releases.
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    return _with_preprocessor(folder, _SAM3_PREPROCESSOR)


_SAM3_PREPROCESSOR = {"image_mean": HALVES, "image_std": HALVES, "size": {"height": 112, "width": 112}}


def _sam3_tracker() -> dict[str, Any]:
    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 112,
        "pretrain_image_size": 56,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": backbone,
        "fpn_hidden_size": 16,
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
    }
    return {
        "vision_config": vision,
        "prompt_encoder_config": {"hidden_size": 16, "image_size": 112, "patch_size": 14, "mask_input_channels": 4},
        "mask_decoder_config": _mask_decoder(),
    }


def _memory() -> dict[str, Any]:
    return {
        "memory_attention_hidden_size": 16,
        "memory_attention_num_layers": 1,
        "memory_attention_num_attention_heads": 1,
        "memory_attention_feed_forward_hidden_size": 16,
        "memory_attention_rope_feat_sizes": [8, 8],
        "memory_encoder_hidden_size": 16,
        "memory_encoder_output_channels": 8,
        "mask_downsampler_embed_dim": 16,
        "memory_fuser_embed_dim": 16,
        "memory_fuser_intermediate_dim": 16,
        "memory_fuser_num_layers": 1,
    }


def _mask_decoder() -> dict[str, int]:
    return {
        "hidden_size": 16,
        "mlp_dim": 24,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 16,
    }


def _save(model_class: Any, config: Any, folder: Path, preprocessor: dict[str, Any]) -> Path:
    _random(model_class, config).save_pretrained(folder)
    return _with_preprocessor(folder, preprocessor)


def _with_preprocessor(folder: Path, preprocessor: dict[str, Any]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


def _random(model_class: Any, config: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config).eval()
        # transformers starts most layers near zero: every mask and score would be the same.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.add_(torch.randn_like(parameter) * (0.5 if "mask_decoder" in name else 0.2))
                if "output_hypernetworks_mlps" in name and "proj_out" in name:
                    parameter.mul_(10)  # masks with edges, as trained ones have
    return model


TINY: dict[str, Callable[[Path], Path]] = {
    "mask2former": tiny_mask2former,
    "eomt": tiny_eomt,
    "eomt_dinov3": tiny_eomt_dinov3,
    "sam": tiny_sam,
    "sam2": tiny_sam2,
    "sam2_video": tiny_sam2_video,
    "sam3_tracker": tiny_sam3,
    "sam3_video": tiny_sam3_video,
}
"""By `model_type`."""
