"""Golden cases of MAFT+: dense embedding, transfer, losses, optimiser groups, whole inference, a training step.

A case is recognised by its inputs and the names of its weights; sizes come from their shapes. What MAFT+ shares with
FC-CLIP runs through the same code as FC-CLIP's cases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_pieces import filled, loaded, number, phrase_classes, targets_of
from parity_fcclip_system import (
    as_they_are,
    encode_words,
    load,
    log_probs,
    records,
    semantic_maps,
    stages,
    step_inputs,
    step_values,
    things,
)
from procedural_weights import tensor

from lexiseg import postprocess
from lexiseg.clip.projection import Projection
from lexiseg.layers.dense_projection import project_dense
from lexiseg.layers.text_logits import text_logits
from lexiseg.postprocess import Frame
from lexiseg.scoring.image_conditioned import ContentDependentTransfer
from lexiseg.train.losses import Criterion
from lexiseg.train.mask_aware import compensation_loss, mask_aware_loss, soft_ious, stretched, summary
from lexiseg.train.recipes import maftplus as recipe
from lexiseg.weights.fcclip import describe
from lexiseg.weights.maftplus import TRANSFER
from lexiseg.zoo.convert import LAYOUTS, convert_state, recognise, sizes
from lexiseg.zoo.maftplus import maftplus

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
    if inputs == {"image"} and "settings" in case:
        return whole_inference(case, arrays, folder)
    if {"image_0", "target_masks_0"} <= inputs:
        return training_step(case, arrays, folder)
    if "groups" in case:
        return optimizer_groups(case, folder)
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


@torch.inference_mode()
def whole_inference(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Section 2: every stage, and the outputs in the order the settings of the case ask for."""
    settings = case["settings"]
    system, encoder_of_words, _ = load(folder, case["manifest"])
    if (system.scorer.transfer.norm_order == "before_sum") != settings["cdt_residual_variant"]:
        raise ValueError("the form of the transfer read off the manifest is not the one of the case")
    text, _, raw = encode_words(case, folder.parent / "fc-clip", encoder_of_words)
    images = as_they_are([arrays["image"]])
    features, new = stages(system, images, text)
    new |= {"text_features_raw": raw.numpy(), "num_templates": torch.bincount(text.class_of).tolist()}

    proposals, scores = system(images, text)
    regions = system.embedder(images, features, proposals.mask_logits)
    query = system.generator.query_text(text)
    # With void among the rows, which the scorer leaves out: rows do not look at each other.
    rows = system.scorer.transfer(query.rows, regions.dense_embeds)
    logits = text_logits(regions.embeds, rows, query.class_of, query.num_classes, system.scorer.logit_scale)
    masks, classes = proposals.mask_logits[0], scores.class_probs[0]
    new["pred_logits"] = proposals.class_logits[0].numpy()
    new["pred_masks_strided"] = masks.numpy()
    new["pooled_clip_embedding"] = regions.embeds[0].numpy()
    new["dense_clip_embedding"] = regions.dense_embeds.numpy()
    new["cdt_text"] = rows[0].numpy()
    new["out_vocab_logits"] = logits[0].numpy()
    new["final_class_log_probs"] = log_probs(scores)[0].numpy()

    frame = Frame(images.canvas_hw, images.sizes_hw[0], (case["output_height"], case["output_width"]))
    maps = semantic_maps(masks, classes, frame, sigmoid_at="output" if settings["panoptic_on"] else "canvas")
    new |= {f"semantic_{name}": values for name, values in maps.items()}
    if settings["panoptic_on"]:
        is_thing = things(case, classes.shape[1])
        official = settings["object_mask_threshold"], settings["overlap_threshold"]
        for suffix, thresholds in (("", official), ("_thr0", (0.0, 0.0))):
            result = postprocess.panoptic(masks, classes, scores.void_prob[0], is_thing, frame, *thresholds)
            new[f"panoptic_ids{suffix}"] = result.ids.numpy()
            new[f"panoptic_segments{suffix}"] = records(result, is_thing)
    return new


def optimizer_groups(case: Case, folder: Path) -> Values:
    """Section 3.4: rate and decay of every trained parameter, for the system of the manifest's shapes."""
    manifests = (json.loads(path.read_text()) for path in sorted(folder.glob("manifest-*.json")))
    listed = next(manifest["tensors"] for manifest in manifests if manifest["config"] == case["config"])
    source = {name: torch.empty(entry["shape"], device="meta") for name, entry in listed.items()}
    layout, found = recognise(folder, source), describe(source)
    arguments = {"tower": found.tower, **LAYOUTS[layout].arguments, **sizes(found, "maftplus")}
    account, _, _ = convert_state(source, arguments, layout)
    official = {target: name for name, target in account.used.items()}
    system = maftplus(**arguments)
    tuned = recipe.prepare(system)
    names = {id(parameter): name for name, parameter in system.named_parameters()}
    return {
        "groups": {
            official[names[id(group["params"][0])]]: [group["lr"], group["weight_decay"]]
            for group in recipe.parameter_groups(tuned)
        }
    }


def training_step(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Sections 3.1 and 3.2: weighted losses and gradients of one step, both trunks in evaluation mode."""
    system, encoder_of_words, official = load(folder, case["manifest"])
    text, _, _ = encode_words(case, folder.parent / "fc-clip", encoder_of_words)
    images, targets, draw = step_inputs(case, arrays)
    tuned = recipe.prepare(system)
    tuned.teacher.load_state_dict(teacher_state(folder / case["manifest"]))
    with torch.no_grad():
        features = tuned.encoder(images)
        masks = tuned.generator(images, features, text).mask_logits
        regions = tuned.embedder(images, features, masks)
        query = tuned.generator.query_text(text)
        rows = tuned.scorer.transfer(query.rows, regions.dense_embeds)
        logits = text_logits(regions.embeds, rows, query.class_of, query.num_classes, tuned.scorer.logit_scale)
    losses = recipe.losses_of(tuned, images, targets, text, Criterion(num_points=case["num_points"]), draw)
    renamed = {"loss_mask_aware": "ranking_loss", "loss_compensation": "rc_loss"}
    losses = {renamed.get(name, name): loss for name, loss in losses.items()}
    trained = {name: p for name, p in system.named_parameters() if p.requires_grad}
    return {"cdt_text": rows.numpy(), "clip_logits": logits.numpy(), **step_values(losses, trained, official)}


def teacher_state(manifest: Path) -> dict[str, torch.Tensor]:
    """The trunk that the manifest has for the teacher, by the names of our encoder."""
    prefix = "backbone_t.clip_model.visual."
    return {
        name.removeprefix(prefix): torch.from_numpy(np.asarray(tensor(name, entry, manifest.parent)))
        for name, entry in json.loads(manifest.read_text())["tensors"].items()
        if name.startswith((prefix + "trunk.stem.", prefix + "trunk.stages."))
    }
