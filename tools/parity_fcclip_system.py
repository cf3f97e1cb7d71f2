"""Golden cases of FC-CLIP's system level: pre-processing, ensemble, post-processing, whole inference, training step."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lexiseg import postprocess
from lexiseg.geometry import fit_short_edge, resize
from lexiseg.postprocess import Frame
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.types import PanopticMap, Proposals, Scores, TextBank

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]


def run(case: Case, arrays: Arrays, folder: Path) -> dict[str, Any] | None:
    """The values of a case of this module, or None if it is not one."""
    inputs = set(case["inputs"])
    if any(key.startswith("size_table_") for key in case):
        return preprocess(case, arrays)
    if {"in_logits", "out_logits", "mask_logits"} <= inputs:
        return ensemble(case, arrays)
    if {"class_logits", "mask_logits", "resize_in"} <= inputs:
        return outputs(case, arrays)
    return None


def preprocess(case: Case, arrays: Arrays) -> dict[str, Any]:
    """Test-time sizes, resized pictures, and a normalised, padded batch (spec 2.1)."""
    from lexiseg.clip.normalise import normalise
    from lexiseg.images import Canvas, Photo

    new: dict[str, Any] = {}
    tables = {key: [int(n) for n in re.findall(r"\d+", key)] for key in case if key.startswith("size_table_")}
    for key, (short, long) in tables.items():
        new[key] = {
            size: list(fit_short_edge(tuple(int(n) for n in size.split("x")), short, long)) for size in case[key]
        }
    short, long = next(iter(tables.values()))
    new["sizes"] = {}
    for name, sizes in case["sizes"].items():
        size_hw = fit_short_edge(tuple(sizes["input"]), short, long)
        new["sizes"][name] = {"resized": list(size_hw)}
        photo = Photo(rgb=arrays[f"{name}_in"], name=name)
        new[f"{name}_resized_strided"] = np.asarray(Canvas(short, long).resize(photo))
    batch = sorted(name for name in arrays if name.startswith("batch_in_"))
    images = Canvas(None, None).place([Photo(rgb=arrays[name], name=name) for name in batch])
    mean, std = torch.tensor(case["pixel_mean"]), torch.tensor(case["pixel_std"])
    new["batch_padded_strided"] = normalise(images, mean, std).numpy()
    return new


def ensemble(case: Case, arrays: Arrays) -> dict[str, Any]:
    """log(p + 1e-8) for the settings in the names of the outputs (spec 2.8)."""
    inner = torch.from_numpy(arrays["in_logits"])
    outer = torch.from_numpy(arrays["out_logits"])[:, :-1]
    valid = torch.from_numpy(arrays["mask_logits"] > 0).flatten(1).any(1)
    seen = torch.tensor(case["category_overlapping_mask"], dtype=torch.bool)
    text = TextBank(query=torch.empty(0), region=torch.empty(0), class_of=torch.arange(len(seen)), seen=seen)
    alpha = beta = 0.0
    new = {}
    for name, check in case["checks"].items():
        if check["role"] != "output":
            continue
        words = name + " " + case["arrays"][name]["meaning"]
        weights = re.search(r"alpha ([\d.]+), beta ([\d.]+)", words)
        if weights is None:
            digits = re.search(r"a(\d+)_b(\d+)", words)
            if digits is not None:
                alpha, beta = (float(f"{d[0]}.{d[1:] or 0}") for d in digits.groups())
        else:
            alpha, beta = (float(w.rstrip(".")) for w in weights.groups())
        only_valid = "_valid" in name
        logits = torch.where(valid[:, None], outer, torch.nan) if "nan" in name else outer
        fuse = GeometricEnsemble(alpha, beta, only_valid)
        scores = fuse(Proposals(torch.empty(0), inner[None]), logits[None], valid[None], text)
        new[name] = log_probs(scores).numpy()[0]
    return new


def outputs(case: Case, arrays: Arrays) -> dict[str, Any]:
    """Semantic, panoptic and instance output of one set of masks (spec 2.9)."""
    probs = torch.from_numpy(arrays["class_logits"]).softmax(-1)
    class_probs, void_prob = probs[:, :-1], probs[:, -1]
    masks = torch.from_numpy(arrays["mask_logits"])
    size = (masks.shape[-2], masks.shape[-1])
    frame = Frame(size, size, size)
    is_thing = things(case, class_probs.shape[1])
    new: dict[str, Any] = {"semantic": postprocess.semantic_scores(masks, class_probs, frame).numpy()}
    for name, check in case["checks"].items():
        if not name.startswith("panoptic_") or check["role"] != "output" or "_segments" in name:
            continue
        object_threshold, overlap = 0.0, 0.8
        digits = re.fullmatch(r"panoptic_o(\d+)_v(\d+)", name)
        if digits is not None:
            object_threshold, overlap = (float(f"{d[0]}.{d[1:] or 0}") for d in digits.groups())
        said = re.search(r"object_mask_threshold ([\d.]+)", case["arrays"][name]["meaning"])
        if said is not None:
            object_threshold = float(said[1].rstrip("."))
        said = re.search(r"overlap_threshold ([\d.]+)", case["arrays"][name]["meaning"])
        if said is not None:
            overlap = float(said[1].rstrip("."))
        result = postprocess.panoptic(masks, class_probs, void_prob, is_thing, frame, object_threshold, overlap)
        new[name] = result.ids.numpy().astype(np.int16)
        new[f"{name}_segments"] = records(result, is_thing)
    for name, thing_mask in (("instance_panoptic_on", is_thing), ("instance_panoptic_off", None)):
        result = postprocess.instances(masks, class_probs, frame, thing_mask, case["topk"])
        new[f"{name}_scores"] = np.array([segment.score for segment in result.segments], np.float32)
        new[f"{name}_classes"] = np.array([segment.class_index for segment in result.segments], np.int16)
        new[f"{name}_masks"] = np.packbits(result.masks.flatten(1).numpy(), axis=1)
    unpadded, output = (
        tuple(int(n) for n in pair) for pair in re.findall(r"(\d+)x(\d+)", case["arrays"]["resize_out"]["meaning"])
    )
    padded = torch.from_numpy(arrays["resize_in"])
    cropped = postprocess.RowResize(unpadded, output)
    new["resize_out"] = cropped(padded[:, : unpadded[0], : unpadded[1]], 0, output[0]).numpy()
    return new


def log_probs(scores: Scores) -> Tensor:
    """[B, Q, K + 1] log of the class scores, void last."""
    return torch.cat([scores.class_probs, scores.void_prob[..., None]], -1).log()


def things(case: Case, num_classes: int) -> Tensor:
    is_thing = torch.zeros(num_classes, dtype=torch.bool)
    is_thing[case["thing_class_indices"]] = True
    return is_thing


def records(result: PanopticMap, is_thing: Tensor) -> list[dict[str, Any]]:
    """Segments in the form of the official records."""
    return [
        {"id": i + 1, "isthing": bool(is_thing[segment.class_index]), "category_id": segment.class_index}
        for i, segment in enumerate(result.segments)
    ]
