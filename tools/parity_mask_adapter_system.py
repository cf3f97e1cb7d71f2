"""Golden cases of whole models with a Mask-Adapter: inference, and a step of the second training stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_system import as_they_are, captured, encode_words, load, log_probs, records, things
from parity_mask_adapter import check_draw, of_this_method, padded, pairs_of, sample, samples
from torch import Tensor

from lexiseg import postprocess
from lexiseg.clip.text import TextEncoder
from lexiseg.geometry import resize
from lexiseg.images import Canvas, Photo, place
from lexiseg.layers.text_logits import text_logits
from lexiseg.postprocess import Frame
from lexiseg.proposals.mask2former import DecoderStep
from lexiseg.regions.mask_adapter import activation_pool
from lexiseg.scoring.image_conditioned import ImageConditioned
from lexiseg.system import System
from lexiseg.train.mask_adapter import AdapterCriterion, OverlapMatcher, mixed_slots, present, stack, truth_slots
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import uniform
from lexiseg.train.recipes.mask_adapter import parts_of, region_rows
from lexiseg.types import Images, TextBank
from lexiseg.vocabulary import Vocabulary

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]

WORD_LISTS = {False: "coco_panoptic", True: "coco_stuff_171"}
"""Whether it stands on MAFT+ -> the list it was trained with."""


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if not of_this_method(case):
        return None
    inputs = set(case["inputs"])
    if {"image_rgb_uint8", "resized_rgb_uint8"} <= inputs and "mask_threshold" in case:
        return whole_inference(case, arrays, folder)
    if {"image_0", "gt_masks", "matched_pred_index"} <= inputs:
        return training_step(case, arrays, folder)
    return None


def loaded_for(case: Case, folder: Path) -> tuple[System, TextEncoder, dict[str, str]]:
    """The converted model of the case's manifest, which must have come out with the settings of the case."""
    system, encoder, official = load(folder, case["manifest"])
    told: dict[str, Any] = {"mask_threshold": system.embedder.mask_threshold}
    told |= {"alpha": system.fuse.alpha, "beta": system.fuse.beta}
    asked = {name: case[name] for name in told if name in case}
    if "cdt_form" in case:
        told["norm_order"] = system.scorer.transfer.norm_order
        asked["norm_order"] = "after_sum" if case["cdt_form"].startswith("post-norm") else "before_sum"
    if asked != {name: told[name] for name in asked}:
        raise ValueError(f"the model was converted with {told}, the case has {asked}")
    return system, encoder, official


def words(case: Case, folder: Path, system: System, encoder: TextEncoder) -> TextBank:
    """The text bank of the case's classes, seen against the list the model was trained with."""
    lists = folder.parent / "fc-clip"
    bank, _, _ = encode_words(case, lists, encoder)
    trained = json.loads((lists / "vocabularies.json").read_text())["datasets"][
        WORD_LISTS[isinstance(system.scorer, ImageConditioned)]
    ]
    phrases = Vocabulary.from_comma_format(trained["classes"]).phrases
    seen = Vocabulary.from_comma_format(case["classes"]).seen(phrases)
    return replace(bank, seen=torch.as_tensor(seen, dtype=torch.bool))


@torch.inference_mode()
def whole_inference(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Every stage of the whole model; the adapter on the masks of the case, all else on its own."""
    system, encoder_of_words, _ = loaded_for(case, folder)
    text = words(case, folder, system, encoder_of_words)
    output_hw = arrays["image_rgb_uint8"].shape[:2]
    canvas = Canvas(case["resize"]["short"], case["resize"]["max"])
    new: Values = {
        "resized_rgb_uint8": np.asarray(canvas.resize(Photo(rgb=arrays["image_rgb_uint8"], name="image"))),
        "text_classifier": text.query[:, 0].numpy(),
        "num_templates": torch.bincount(text.class_of).numpy(),
        "category_overlapping_mask": text.seen.long().numpy(),
    }
    images = place([arrays["resized_rgb_uint8"]], [output_hw])
    with captured({"backbone_stem": system.encoder.trunk.stem}) as tensors:
        features = system.encoder(images)
    mask_features, memories = system.generator.pixel_decoder(features.maps)
    tensors |= {"normalized_padded_input": system.encoder.normalise(images), "backbone_clip_vis_dense": features.dense}
    tensors |= {f"backbone_res{i + 2}": level for i, level in enumerate(features.maps)}
    tensors["mask_features"] = mask_features
    tensors |= {f"pixel_decoder_multi_scale_{i}": memory for i, memory in enumerate(memories)}
    steps = system.generator.all_steps(images, features, text)
    tensors |= of_steps(steps)

    embedder = system.embedder
    dense = embedder.dense(features)
    shape = arrays["adapter_in_masks_shape"]
    given = np.unpackbits(arrays["adapter_in_masks_packbits"], axis=-1)[:, : int(np.prod(shape[1:]))]
    maps = embedder.adapter(dense, torch.from_numpy(given.reshape(1, *shape)).bool())  # [1, Q, M, h, w]
    pooled = activation_pool(features.dense, maps)
    embeds = embedder.embed(features, maps)
    rows, class_of, columns = region_rows(system.scorer, text, system.generator.void_embedding, dense)
    tensors |= {
        "cdt_in_img_feat": dense,
        "cdt_out": rows,
        "adapter_in_dense": dense,
        "adapter_maps": maps.flatten(1, 2),
        "adapter_pooled_raw": pooled.flatten(1, 2),
        "adapter_embeddings_per_map": embedder.projection(pooled).flatten(1, 2),
    }
    new |= {
        "adapter_maps_selected": maps[0, arrays["adapter_maps_query_index"]].numpy(),
        "adapter_embeddings": embeds[0, :: case["embedding_stride"]].numpy(),
        "out_vocab_logits": text_logits(embeds, rows, class_of, columns, system.scorer.logit_scale)[0].numpy(),
        "text_used": rows.reshape(-1, rows.shape[-1]).numpy(),
    }

    proposals, scores = system(images, text)
    masks, classes = proposals.mask_logits[0], scores.class_probs[0]
    new |= {
        "pred_logits": proposals.class_logits[0].numpy(),
        "adapter_in_masks": embedder.inside(masks).numpy(),
        "mask_cls_final": log_probs(scores)[0].numpy(),
    }
    frame = Frame(images.canvas_hw, images.sizes_hw[0], output_hw)
    sigmoid_at = "output" if case["panoptic_on"] else "canvas"
    entering = resize(masks[None], frame.canvas_hw)
    if sigmoid_at == "output":
        height, width = frame.picture_hw
        entering = resize(entering[..., :height, :width], output_hw)
    per_class = postprocess.semantic_scores(masks, classes, frame, sigmoid_at)
    tensors |= {"mask_pred_at_semantic_inference": entering[0], "sem_seg": per_class}
    new["sem_seg_argmax"] = postprocess.semantic(masks, classes, frame, sigmoid_at).labels.numpy().astype(np.uint8)
    if case["panoptic_on"]:
        new |= panoptic_outputs(case, masks, classes, scores.void_prob[0], frame)
    return new | samples(case, tensors)


def of_steps(steps: tuple[DecoderStep, ...]) -> dict[str, Tensor]:
    """The predictions of the decoder by the case's names: the last one is the output, the others are auxiliary."""
    tensors = {"pred_masks": steps[-1].proposals.mask_logits}
    for index, step in enumerate(steps[:-1]):
        tensors[f"aux{index}_pred_logits"] = step.proposals.class_logits
        tensors[f"aux{index}_pred_masks"] = step.proposals.mask_logits
    return tensors


def panoptic_outputs(case: Case, masks: Tensor, classes: Tensor, void: Tensor, frame: Frame) -> Values:
    """Segments and instances."""
    is_thing = things({"thing_class_indices": case["thing_ids"]}, classes.shape[1])
    thresholds = case["object_mask_threshold"], case["overlap_threshold"]
    result = postprocess.panoptic(masks, classes, void, is_thing, frame, *thresholds)
    found = postprocess.instances(masks, classes, frame, is_thing, case["topk_instances"]).segments
    return {
        "panoptic_seg": result.ids.numpy().astype(np.uint8),
        "segments_info": records(result, is_thing),
        "instances_scores_sorted": np.array([segment.score for segment in found], np.float32),
        "instances_classes_sorted": np.array([segment.class_index for segment in found]),
        "instances_area_sorted": np.array([segment.area for segment in found]),
    }


def training_step(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Slots, losses and gradients of one step, with the pairs that the official run drew."""
    system, encoder_of_words, official = loaded_for(case, folder)
    with torch.no_grad():
        text = words(case, folder, system, encoder_of_words)
    images = as_they_are([arrays["image_0"], arrays["image_1"]])
    habits = parts_of(system).habits
    system.generator.void_embedding.requires_grad_(habits.trains_void)
    with torch.no_grad():
        features = system.encoder(images)
        dense = system.embedder.dense(features)
        mask_logits = system.generator(images, features, text).mask_logits
        masks, labels = slots_of(case, arrays, images, mask_logits)

    maps = system.embedder.adapter(dense, masks)
    embeds = system.embedder.embed(features, maps)
    rows, class_of, columns = region_rows(system.scorer, text, system.generator.void_embedding, dense)
    logits = text_logits(embeds, rows, class_of, columns, system.scorer.logit_scale)
    criterion = AdapterCriterion(habits.detach_truth)
    losses = criterion.weighted(criterion(embeds, logits, labels))
    sum(losses.values()).backward()
    new: Values = {
        "slot_labels": labels.numpy(),
        "mixed_masks_mean_per_slot": masks.mean((-2, -1)).numpy(),
        "adapter_maps_sample": sample(case, "adapter_maps_sample", maps),
        "slot_logits": logits.detach().numpy(),
        **{f"{name}_weighted": loss.detach().numpy() for name, loss in losses.items()},
    }
    for name, parameter in system.named_parameters():
        if parameter.grad is not None:
            new[f"gnorm__{official[name]}"] = float(parameter.grad.double().norm())
            new[f"g__{official[name]}"] = sample(case, f"g__{official[name]}", parameter.grad)
    return new


def slots_of(case: Case, arrays: Arrays, images: Images, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The mixed slots of all pictures; our own draw of the pairs must be a legal one."""
    draw = uniform(mask_logits.device, torch.Generator().manual_seed(0))
    matcher = OverlapMatcher(binarisation=case["iou_binarisation"])
    slots = []
    for index, (height, width) in enumerate(images.sizes_hw):
        packed = np.unpackbits(arrays["gt_masks"][index], axis=-1)[:, : height * width]
        masks = padded(torch.from_numpy(packed.reshape(-1, height, width)).bool(), images.canvas_hw)
        targets = present(SegmentTargets(torch.from_numpy(arrays["gt_classes"][index]), masks))
        covers = matcher.overlaps(mask_logits[index], targets.masks) > matcher.threshold
        pairs = pairs_of(arrays, index)
        check_draw(matcher(mask_logits[index], targets, draw), covers, matcher.most)
        check_draw(pairs, covers, matcher.most)
        truth = truth_slots(targets, AdapterCriterion(False).plan.truth, draw)
        slots.append(mixed_slots(mask_logits[index], targets, pairs, truth, case["mask_threshold"]))
    return stack(slots)
