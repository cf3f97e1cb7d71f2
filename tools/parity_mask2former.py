"""Golden cases of Mask2Former's generator: its Swin backbone and its decoder with classes of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_pieces import filled

from lexiseg.backbones.swin import Swin
from lexiseg.proposals.mask2former import ClosedSetDecoder


@torch.no_grad()
def run(case: dict[str, Any], arrays: Mapping[str, np.ndarray], folder: Path) -> dict[str, Any] | None:
    """The values of a case of this module, or None if it is not one."""
    options = case.get("options", {})
    if {"window_size", "patch_norm"} <= set(options):
        return swin(case, options, arrays)
    if {"num_queries", "enforce_input_project"} <= set(options):
        return decoder(case, options, arrays)
    return None


def swin(case: dict[str, Any], options: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """MaskCLIP++, section 2.3: the four maps."""
    net = Swin(
        options["embed_dim"],
        options["depths"],
        options["num_heads"],
        options["window_size"],
        mlp_ratio=options["mlp_ratio"],
        drop_path=options["drop_path_rate"],
    )
    weights = {name: value for name, value in filled(case).items() if not name.endswith("relative_position_index")}
    net.load_state_dict(weights)
    maps = net.eval().maps(torch.from_numpy(arrays["input"])).maps
    return {f"res{index}": x.numpy() for index, x in enumerate(maps, 2)}


def decoder(case: dict[str, Any], options: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """MaskCLIP++, section 2.3: the last prediction."""
    net = ClosedSetDecoder(
        options["num_classes"],
        width=options["hidden_dim"],
        mask_width=options["mask_dim"],
        num_queries=options["num_queries"],
        num_layers=options["dec_layers"],
        heads=options["nheads"],
        ffn_width=options["dim_feedforward"],
    )
    net.load_state_dict(filled(case))
    memories = [torch.from_numpy(arrays[f"scale_{level}"]) for level in range(3)]
    proposals = net.eval()(memories, torch.from_numpy(arrays["mask_features"]))
    return {"pred_masks": proposals.mask_logits.numpy(), "pred_logits": proposals.class_logits.numpy()}
