"""Golden cases of MAFT+: dense embedding, transfer, the two losses.

A case is recognised by its inputs and the names of its weights; sizes come from their shapes. What MAFT+ shares with
FC-CLIP runs through the same code as FC-CLIP's cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_pieces import filled, loaded, number, phrase_classes, targets_of

from lexiseg.clip.projection import Projection
from lexiseg.layers.dense_projection import project_dense
from lexiseg.layers.text_logits import text_logits
from lexiseg.scoring.image_conditioned import ContentDependentTransfer
from lexiseg.train.mask_aware import compensation_loss, mask_aware_loss, soft_ious, stretched, summary
from lexiseg.weights.maftplus import TRANSFER

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    inputs, weights = set(case["inputs"]), set(case.get("weight_names", ()))
    if case.get("method") != "maft-plus":
        return None
    if {"image_features", "text", "class_logits_x"} <= inputs:
        return transfer(case, arrays)
    if inputs == {"features"} and "trunk.head.norm.weight" in weights:
        return dense_embedding(case, arrays)
    if {"class_logits", "mask_logits", "target_masks_0"} <= inputs:
        return mask_aware(arrays)
    if inputs and all(name.endswith(("_student", "_teacher")) for name in inputs):
        return compensation(arrays)
    return None


def dense_embedding(case: Case, arrays: Arrays) -> Values:
    """Section 2, step 4, with a linear head."""
    weights = {name.removeprefix("trunk.head."): value for name, value in filled(case).items()}
    embed_dim, channels = weights["head.proj.weight"].shape
    projection = loaded(Projection(channels, embed_dim, norm_eps=1e-6), weights)
    return {"embedding": project_dense(torch.from_numpy(arrays["features"]), projection, "memory").numpy()}


def transfer(case: Case, arrays: Arrays) -> Values:
    """Section 2, steps 5 and 6, in the form the case asks for."""
    inner = TRANSFER.removeprefix("cdt.")
    weights = {name.removeprefix(inner).replace("MLP.", "linear."): weight for name, weight in filled(case).items()}
    rows = torch.from_numpy(arrays["text"])
    order = "before_sum" if "R + LN(m)" in case["run"] else "after_sum"
    heads = number({"run": case["weights"]}, r"(\d+) heads", 8)
    changed = loaded(ContentDependentTransfer(rows.shape[1], heads, order), weights)(
        rows, torch.from_numpy(arrays["image_features"])
    )
    class_of = phrase_classes(case)
    embeds = torch.from_numpy(arrays["class_logits_x"])
    logits = text_logits(embeds, changed, class_of, int(class_of[-1]) + 1, torch.tensor(np.log(1 / 0.07)))
    return {"output": changed.numpy(), "class_logits": logits.numpy()}


@torch.enable_grad()
def mask_aware(arrays: Arrays) -> Values:
    """Section 3.2, the mask-aware loss."""
    logits = torch.from_numpy(arrays["class_logits"]).requires_grad_()
    masks = torch.from_numpy(arrays["mask_logits"])
    targets = targets_of(arrays, len(masks))
    new: Values = {}
    for image, (mask_logits, target) in enumerate(zip(masks, targets, strict=True)):
        ious = soft_ious(mask_logits, target.masks)
        new[f"iou_{image}"] = ious.numpy()
        new[f"iou_norm_{image}"] = stretched(ious).numpy()
    loss = mask_aware_loss(logits[..., :-1], masks, targets)
    loss.backward()
    return {**new, "loss": float(loss.detach()), "grad_class_logits": logits.grad.numpy()}


@torch.enable_grad()
def compensation(arrays: Arrays) -> Values:
    """Section 3.2, the compensation loss, for every pair of maps."""
    new: Values = {}
    for name in sorted(name.removesuffix("_student") for name in arrays if name.endswith("_student")):
        student = torch.from_numpy(arrays[f"{name}_student"]).requires_grad_()
        loss = compensation_loss(student, torch.from_numpy(arrays[f"{name}_teacher"]))
        loss.backward()
        new[f"loss_{name}"] = float(loss.detach())
        new[f"{name}_grad"] = student.grad.numpy()
        new[f"{name}_descriptor"] = summary(student.detach()).numpy()
    return new
