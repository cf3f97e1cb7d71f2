"""Golden cases of FC-CLIP's parts: pixel decoder, mask decoder, pooling, text logits, criterion, optimiser groups.

A case is recognised by its inputs. Sizes come from its arrays and the shapes of its weights; what only its words
say (the number of heads, the parameter of a scale) is read from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import procedural_weights
import torch
from torch import Tensor, nn

from lexiseg.layers.deformable_attention import DeformableEncoderLayer, sample_by_gather
from lexiseg.layers.mask_pooling import mask_pool
from lexiseg.layers.positions import grid_centres, sine_positions
from lexiseg.layers.text_logits import QueryText, text_logits
from lexiseg.proposals.fcclip import FCCLIPDecoder, fcclip_generator
from lexiseg.proposals.mask2former import PixelDecoder
from lexiseg.train.losses import Criterion, dice_loss, mask_loss
from lexiseg.train.matcher import Matcher, SegmentTargets, dice_cost, mask_cost
from lexiseg.train.points import Draw, sample_points, uncertain_points
from lexiseg.train.recipes.fcclip import parameter_groups
from lexiseg.types import Proposals

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    inputs = set(case["inputs"])
    outputs = {name for name, check in case["checks"].items() if check["role"] == "output"}
    if case.get("method") == "fc-clip" and "groups" in case:
        return optimizer_groups(case, folder)
    if not inputs and all(re.fullmatch(r"pos_\d+x\d+", name) for name in outputs):
        return position_code(case)
    if {"features", "mask_logits"} <= inputs and all(name.startswith("pooled") for name in outputs):
        return pooling(arrays)
    for needed, runner in RUNNERS:
        if needed <= inputs:
            return runner(case, arrays)
    return None


def position_code(case: Case) -> Values:
    """Spec 2.6b, for the sizes in the names of the outputs."""
    new = {}
    for name in case["checks"]:
        height, width = (int(n) for n in re.findall(r"\d+", name))
        new[name] = sine_positions((height, width), 2 * case["num_pos_feats"]).permute(2, 0, 1).numpy()
    return new


def deformable_core(case: Case, arrays: Arrays) -> Values:
    """Spec 2.5, step 4, without projections, in the form that runs on CPUs."""
    value, locations, weights = (
        torch.from_numpy(arrays[name]) for name in ("value", "sampling_locations", "attention_weights")
    )
    return {"output": sample_by_gather(value, case["spatial_shapes"], locations, weights).numpy()}


def deformable_layer(case: Case, arrays: Arrays) -> Values:
    """Spec 2.5, step 4: the attention module and a whole encoder layer."""
    weights = filled(case)
    heads, levels = number(case, r"(\d+) heads", 8), len(case["spatial_shapes"])
    ffn_width, width = weights["linear1.weight"].shape
    points = len(weights["self_attn.attention_weights.bias"]) // (heads * levels)
    layer = loaded(DeformableEncoderLayer(width, heads, levels, points, ffn_width), weights)
    tokens, positions = torch.from_numpy(arrays["src"]), torch.from_numpy(arrays["pos"])
    centres = grid_centres(case["spatial_shapes"])
    attended = layer.self_attn(tokens + positions, tokens, centres, case["spatial_shapes"])
    return {
        "reference_points": centres[:, None].expand(-1, levels, -1).numpy(),
        "self_attn_output": attended.numpy(),
        "layer_output": layer(tokens, positions, centres, case["spatial_shapes"]).numpy(),
    }


def pixel_decoder(case: Case, arrays: Arrays) -> Values:
    """Spec 2.5 as a whole."""
    weights = filled(case)
    maps = [torch.from_numpy(arrays[f"in_res{i}"]) for i in range(2, 6)]
    mask_width, width = weights["mask_features.weight"].shape[:2]
    heads = number(case, r"(\d+) heads", 8)
    first = "transformer.encoder.layers.0."
    decoder = PixelDecoder(
        [x.shape[1] for x in maps],
        width=width,
        mask_width=mask_width,
        num_layers=count(weights, "transformer.encoder.layers.{}.norm1.weight"),
        heads=heads,
        points=len(weights[first + "self_attn.attention_weights.bias"]) // (heads * 3),
        ffn_width=len(weights[first + "linear1.bias"]),
        norm_groups=number(case, r"GN (\d+) groups", 32),
    )
    mask_features, memories = loaded(decoder, weights)(maps)
    new = {f"multi_scale_{level}": memory.numpy() for level, memory in enumerate(memories)}
    return {"mask_features": mask_features.numpy(), **new}


def mask_decoder(case: Case, arrays: Arrays) -> Values:
    """Spec 2.6: every prediction, in the training form."""
    weights = filled(case)
    memories = [torch.from_numpy(arrays[f"memory_{level}"]) for level in range(len(weights["level_embed.weight"]))]
    mask_features = torch.from_numpy(arrays["mask_features"])
    queries, width = weights["query_feat.weight"].shape
    decoder = FCCLIPDecoder(
        joint_width=len(weights["class_embed.layers.2.bias"]),
        width=width,
        mask_width=mask_features.shape[1],
        num_queries=queries,
        num_layers=count(weights, "transformer_ffn_layers.{}.norm.weight"),
        heads=number(case, r"(\d+) heads", 8),
        ffn_width=len(weights["transformer_ffn_layers.0.linear1.bias"]),
        levels=len(memories),
    )
    decoder = loaded(decoder, weights)
    rows, class_of = torch.from_numpy(arrays["text_classifier"]), phrase_classes(case)
    text = QueryText(rows, class_of, int(class_of[-1]) + 1)
    steps = decoder.all_steps(memories, mask_features, text)
    new: Values = {"rows_fully_blocked": [int(step.blocked.all(-1).sum()) for step in steps]}
    for index, step in enumerate(steps):
        new[f"pred_logits_{index}"] = step.proposals.class_logits.numpy()
        new[f"pred_masks_{index}"] = step.proposals.mask_logits.numpy()
        new[f"attn_blocked_{index}"] = np.packbits(step.blocked.numpy(), axis=-1)
    return new


def pooling(arrays: Arrays) -> Values:
    """Spec 2.7: one pooling per array of mask logits."""
    features = torch.from_numpy(arrays["features"])
    return {
        "pooled" + name.removeprefix("mask_logits"): mask_pool(features, torch.from_numpy(masks)).numpy()
        for name, masks in arrays.items()
        if name.startswith("mask_logits")
    }


def class_logits(case: Case, arrays: Arrays) -> Values:
    """Spec 2.7b, at the scales given in the meanings of the outputs."""
    embeds, rows = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["text_classifier"])
    class_of = phrase_classes(case)
    new = {}
    for name, check in case["checks"].items():
        if check["role"] == "output":
            said = re.search(r"parameter (-?\d+(?:\.\d+)?)", case["arrays"][name]["meaning"])
            scale = torch.tensor(float(said[1]))
            new[name] = text_logits(embeds, rows, class_of, int(class_of[-1]) + 1, scale).numpy()
    return new


def matcher(case: Case, arrays: Arrays) -> Values:
    """Spec 3.2 at given points, and its two pairwise costs."""
    weights = case["cost_weights"]
    match = Matcher(weights["cls"], weights["mask"], weights["dice"], case["num_points"])
    new: Values = {}
    if "pair_logits" in arrays:
        pairs = torch.from_numpy(arrays["pair_logits"]), torch.from_numpy(arrays["pair_targets"])
        new |= {"pair_ce": mask_cost(*pairs).numpy(), "pair_dice": dice_cost(*pairs).numpy()}
    for image, target in enumerate(targets_of(arrays, len(arrays["pred_logits"]))):
        mask_logits = torch.from_numpy(arrays["pred_masks"][image])
        logits = torch.from_numpy(arrays["pred_logits"][image])
        points = torch.from_numpy(arrays[f"points_{image}"])
        new[f"cost_{image}"] = match.cost(mask_logits, logits, target, points).numpy()
        matches = match(mask_logits, logits, target, replay(iter([points])))
        new[f"match_queries_{image}"] = matches.proposals.numpy()
        new[f"match_targets_{image}"] = matches.targets.numpy()
    return new


def point_sampling(case: Case, arrays: Arrays) -> Values:
    """Spec 3.3, mask points."""
    masks = torch.from_numpy(arrays["mask_logits"])
    draw = replay(torch.from_numpy(arrays[name]) for name in ("random_candidates", "random_fill"))
    ratios = case["oversample_ratio"], case["importance_sample_ratio"]
    points = uncertain_points(masks[:, 0], case["num_points"], draw, *ratios)
    return {"points": points.numpy(), "logits_at_points": sample_points(masks, points).numpy()}


@torch.enable_grad()
def criterion(case: Case, arrays: Arrays) -> Values:
    """Spec 3.3: losses of a final and auxiliary predictions, their weighted sum, its gradients."""
    layers = sorted(int(name.removeprefix("logits_layer")) for name in arrays if name.startswith("logits_layer"))
    logits = [torch.from_numpy(arrays[f"logits_layer{i}"]).requires_grad_() for i in layers]
    masks = [torch.from_numpy(arrays[f"masks_layer{i}"]).requires_grad_() for i in layers]
    predictions = [Proposals(m, c) for m, c in zip(masks, logits, strict=True)]
    weights = case["weights"]
    losses_of = Criterion(
        class_weight=weights["loss_ce"],
        mask_weight=weights["loss_mask"],
        dice_weight=weights["loss_dice"],
        void_weight=case["eos_coef"],
        num_points=case["num_points"],
        oversample=case["oversample_ratio"],
        importance=case["importance_sample_ratio"],
    )
    draw = replay(torch.from_numpy(arrays[f"rand_{name}"]) for name in case["random_order"])
    losses = losses_of(predictions, targets_of(arrays, len(logits[0])), draw)
    total = sum(losses_of.weighted(losses).values())
    total.backward()
    new: Values = {"losses_unweighted": as_floats(losses), "total_weighted": float(total.detach())}
    for i, mask, logit in zip(layers, masks, logits, strict=True):
        new[f"grad_masks_layer{i}"] = mask.grad.numpy()
        new[f"grad_logits_layer{i}"] = logit.grad.numpy()
    if "elem_logits" in arrays:
        pair = torch.from_numpy(arrays["elem_logits"]), torch.from_numpy(arrays["elem_labels"])
        new["elem_sigmoid_ce"] = float(mask_loss(*pair, case["elem_num_masks"]))
        new["elem_dice"] = float(dice_loss(*pair, case["elem_num_masks"]))
    for key in case:
        without = re.fullmatch(r"losses_no_targets_first_image_layer(\d+)", key)
        if without is not None:
            layer = layers.index(int(without[1]))
            alone = Proposals(masks[layer][:1], logits[layer][:1])
            new[key] = as_floats(losses_of([alone], [no_target()]))
    return new


def optimizer_groups(case: Case, folder: Path) -> Values:
    """Spec 3.4: rate and decay of every trained parameter, for the generator of the manifest's shapes."""
    manifest = json.loads((folder / f"manifest-{case['config']}.json").read_text())["tensors"]
    shapes = {official_to_ours(name): entry["shape"] for name, entry in manifest.items()}
    levels = count(shapes, "pixel_decoder.input_proj.{}.0.weight")
    projections = [shapes[f"pixel_decoder.input_proj.{level}.0.weight"] for level in reversed(range(levels))]
    with torch.device("meta"):
        generator = fcclip_generator(
            [shapes["pixel_decoder.adapter_1.weight"][1], *(shape[1] for shape in projections)],
            joint_width=shapes["void_embedding.weight"][1],
            width=projections[0][0],
            mask_width=shapes["pixel_decoder.mask_features.weight"][0],
            num_queries=shapes["decoder.query_feat.weight"][0],
            encoder_layers=count(shapes, "pixel_decoder.transformer.encoder.layers.{}.norm1.weight"),
            encoder_ffn_width=shapes["pixel_decoder.transformer.encoder.layers.0.linear1.bias"][0],
            decoder_layers=count(shapes, "decoder.transformer_ffn_layers.{}.norm.weight"),
            decoder_ffn_width=shapes["decoder.transformer_ffn_layers.0.linear1.bias"][0],
        )
    names = {id(parameter): name for name, parameter in generator.named_parameters()}
    official = {official_to_ours(name): name for name in manifest}
    return {
        "groups": {
            official[names[id(group["params"][0])]]: [group["lr"], group["weight_decay"]]
            for group in parameter_groups(generator)
        }
    }


RUNNERS: tuple[tuple[set[str], Callable[[Case, Arrays], Values]], ...] = (
    ({"value", "sampling_locations", "attention_weights"}, deformable_core),
    ({"src", "pos"}, deformable_layer),
    ({"in_res2", "in_res3", "in_res4", "in_res5"}, pixel_decoder),
    ({"memory_0", "mask_features", "text_classifier"}, mask_decoder),
    ({"pred_logits", "pred_masks", "points_0"}, matcher),
    ({"mask_logits", "random_candidates", "random_fill"}, point_sampling),
    ({"logits_layer0", "masks_layer0"}, criterion),
    ({"x", "text_classifier"}, class_logits),
)


def number(case: Case, pattern: str, default: int) -> int:
    """A number that only the words of a case say; the official one where they do not."""
    said = re.search(pattern, f"{case.get('title', '')} {case.get('run', '')}")
    return int(said[1]) if said else default


def filled(case: Case) -> dict[str, Tensor]:
    """The weights of a case: filled by name, some of them multiplied."""
    prefix = re.search(r"fill\(([\"'])(.*?)\1 ?\+ ?name", case["weights"])[2]
    shapes = case["weight_names"] if "weight_names" in case else case["state"]
    weights = {name: torch.as_tensor(procedural_weights.fill(prefix + name, shape)) for name, shape in shapes.items()}
    for clause, factor in re.findall(r"(.*?) times (-?\d+(?:\.\d+)?)", case["weights"]):
        for name in set(re.findall(r"[\w.]+", clause)) & set(weights):
            weights[name] = weights[name] * float(factor)
    return weights


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> Any:
    module.load_state_dict({official_to_ours(name): weight for name, weight in weights.items()})
    return module.eval().requires_grad_(False)


def count(names: Mapping[str, Any], pattern: str) -> int:
    numbered = re.compile(re.escape(pattern).replace(re.escape("{}"), r"\d+"))
    return sum(1 for name in names if numbered.fullmatch(name))


def official_to_ours(name: str) -> str:
    """An official name as it stands below our generator."""
    name = name.removeprefix("sem_seg_head.").replace("predictor.", "decoder.", 1)
    return name.replace("_mask_pooling_proj", "mask_pooling_proj", 1)


def phrase_classes(case: Case) -> Tensor:
    """[A + 1] class of each text row, void last."""
    sizes = torch.tensor([*case["num_templates"], 1])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def targets_of(arrays: Arrays, images: int) -> list[SegmentTargets]:
    return [
        SegmentTargets(
            labels=torch.from_numpy(arrays[f"target_labels_{image}"]),
            masks=torch.from_numpy(arrays[f"target_masks_{image}"]).bool(),
        )
        for image in range(images)
    ]


def no_target() -> SegmentTargets:
    return SegmentTargets(labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 1, 1, dtype=torch.bool))


def replay(numbers: Iterator[Tensor]) -> Draw:
    """Stored numbers in the place of draws, in order, each of the shape that is asked for."""

    def draw(shape: tuple[int, ...]) -> Tensor:
        drawn = next(numbers)
        if tuple(drawn.shape) != tuple(shape):
            raise ValueError(f"a draw of shape {tuple(shape)} was asked for, the case stores {tuple(drawn.shape)}")
        return drawn

    return draw


def as_floats(losses: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(loss.detach()) for name, loss in losses.items()}
