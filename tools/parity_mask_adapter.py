"""Golden cases of Mask-Adapter's parts: the network, pooling, matching, slots, losses, and what it shares.

A case is recognised by its inputs, never by its name; sizes come from its arrays and the shapes of its tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import procedural_weights
import torch
from parity_fcclip_system import log_probs, records, things
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.projection import Projection
from lexiseg.geometry import resize
from lexiseg.layers.dense_projection import project_dense
from lexiseg.layers.positions import sine_positions
from lexiseg.layers.text_logits import text_logits
from lexiseg.postprocess import Frame
from lexiseg.regions.mask_adapter import (
    STEM_STRIDE,
    MaskAdapter,
    activation_pool,
    activation_weights,
)
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.scoring.image_conditioned import ContentDependentTransfer
from lexiseg.train.mask_adapter import (
    WARMUP_SLOTS,
    AdapterCriterion,
    MaskPairs,
    OverlapMatcher,
    Slots,
    mixed_slots,
    present,
    stack,
    truth_slots,
)
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import uniform
from lexiseg.types import Proposals, TextBank
from lexiseg.vocabulary import TEMPLATES, Vocabulary, VocabularyClass, make_prompts, split_comma_format
from lexiseg.weights.maftplus import TRANSFER

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if not of_this_method(case):
        return None
    inputs = set(case["inputs"])
    if not inputs and {"train_classes", "test_classes", "prompts"} <= set(case):
        return words(case)
    for needed, runner in RUNNERS:
        if needed <= inputs:
            return runner(case, arrays)
    return None


def of_this_method(case: Case) -> bool:
    """Whether the case points to this method's specification."""
    return case["run"].startswith("mask-adapter.md")


@torch.no_grad()
def adapter_network(case: Case, arrays: Arrays) -> Values:
    """Spec 2: the adapter on hard and on soft masks, and every step of the first of them."""
    weights = under(filled(case), "mask_adapter.")
    adapter = loaded(adapter_like(weights), weights)
    dense, hard, soft = (torch.from_numpy(arrays[name]) for name in ("clip_dense", "masks_bool", "masks_soft"))
    h, w = dense.shape[-2:]
    masks = resize(hard.float(), (STEM_STRIDE * h, STEM_STRIDE * w))
    new: Values = {
        "maps_bool": adapter(dense, hard).flatten(1, 2).numpy(),
        "maps_soft": adapter(dense, soft).flatten(1, 2).numpy(),
        "first_mask_resized": masks[:, :1].numpy(),
    }
    steps = {}
    x = masks.flatten(0, 1)[:, None]
    for index, layer in enumerate(adapter.mask_downscaling):
        x = steps[f"mask_downscaling_{index}"] = layer(x)
    steps["mask_downscaling"] = x
    shared = adapter.fuse(dense)
    x = steps["fuse"] = torch.cat([adapter.fused(image, own) for image, own in zip(shared, masks, strict=True)])
    for name in ("cnext1", "cnext2", "cnext3"):
        x = steps[name] = getattr(adapter, name)(x)
    steps["norm"] = adapter.norm(x.movedim(1, -1))
    return new | samples(case, steps)


@torch.no_grad()
def pooling(case: Case, arrays: Arrays) -> Values:
    """Spec 2.1 and 2.2: pooling under given maps, CLIP's head, and the two dense projections."""
    weights = filled(case)
    head = clip_head(weights)
    features, two = (torch.from_numpy(arrays[name]) for name in ("clip_feature", "clip_feature_batch2"))
    per_mask = 16
    maps = torch.from_numpy(arrays["map_logits"]).unflatten(1, (-1, per_mask))
    shares = activation_weights(maps)
    pooled = activation_pool(features, maps)
    embeds = head(pooled)
    sampled = {
        "pooled_raw_sample": pooled,
        "dense_true_sample": project_dense(features, head, "position"),
        "dense_scrambled_sample": project_dense(features, head, "memory"),
        "dense_scrambled_batch2_sample": project_dense(two, head, "memory"),
    }
    return {
        "weights_sum": shares.sum(-1).flatten(1).numpy(),
        "weights_first_map": shares[0, 0, 0].numpy(),
        "embeddings_per_map": embeds.flatten(1, 2)[:, : case["arrays"]["embeddings_per_map"]["shape"][1]].numpy(),
        "embeddings": embeds.mean(2).numpy(),
        **{name: sample(case, name, value) for name, value in sampled.items()},
    }


@torch.no_grad()
def transfer(case: Case, arrays: Arrays) -> Values:
    """Spec 3.3: words fitted to the picture, in both forms, and the code of the positions they look at."""
    weights = {name.replace("MLP.", "linear."): value for name, value in under(filled(case), TRANSFER).items()}
    rows, dense = torch.from_numpy(arrays["text"]), torch.from_numpy(arrays["img_feat"])
    width, h, w = dense.shape[1:]
    heads = int(re.search(r"(\d+) heads", case["run"])[1])
    new: Values = {"pos": sine_positions((h, w), width).permute(2, 0, 1)[None].numpy()}
    for form, order in (("semantic", "after_sum"), ("panoptic", "before_sum")):
        module = loaded(ContentDependentTransfer(width, heads, order), weights)
        new[f"out_{form}_form"] = module(rows, dense).numpy()
    return new


def ensemble(case: Case, arrays: Arrays) -> Values:
    """Spec 3.2, steps 6 and 7, at the exponents in the names of the outputs."""
    inner, outer = (torch.from_numpy(arrays[name]) for name in ("in_logits", "out_logits"))
    seen = torch.from_numpy(arrays["overlap"]).bool()
    text = TextBank(query=torch.empty(0), region=torch.empty(0), class_of=torch.arange(len(seen)), seen=seen)
    valid = torch.ones(inner.shape[:2], dtype=torch.bool)
    new = {}
    for name, check in case["checks"].items():
        if check["role"] == "output":
            alpha, beta = (float(number) for number in re.findall(r"\d\.\d", name))
            scores = GeometricEnsemble(alpha, beta)(Proposals(torch.empty(0), inner), outer[..., :-1], valid, text)
            new[name] = log_probs(scores).numpy()
    return new


def class_logits(case: Case, arrays: Arrays) -> Values:
    """Spec 2.1, step 6, with the rows of one text for all images, and with rows of their own."""
    embeds = torch.from_numpy(arrays["x"])
    sizes = torch.tensor([*case["num_templates"], 1])
    class_of, scale = torch.repeat_interleave(torch.arange(len(sizes)), sizes), torch.tensor(case["logit_scale"])

    def logits(rows: np.ndarray, logit_scale: Tensor) -> np.ndarray:
        return text_logits(embeds, torch.from_numpy(rows), class_of, len(sizes), logit_scale).numpy()

    new = {"out": logits(arrays["text"], scale), "out_big_scale": logits(arrays["text"], torch.tensor(6.0))}
    return new | ({"out3": logits(arrays["text3"], scale)} if "text3" in arrays else {})


def warmup_logits(case: Case, arrays: Arrays) -> Values:
    """Spec 4.1: a vocabulary of one name per class, where nothing is left to take the best of, and another one."""
    embeds, scale = torch.from_numpy(arrays["x"]), torch.tensor(case["logit_scale"])
    names = torch.from_numpy(arrays["text366"])
    sizes = torch.tensor([*case["num_templates8"], 1])
    class_of = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    return {
        "out366": text_logits(embeds, names, torch.arange(len(names)), len(names), scale).numpy(),
        "out8": text_logits(embeds, torch.from_numpy(arrays["text8"]), class_of, len(sizes), scale).numpy(),
    }


@torch.enable_grad()
def losses(case: Case, arrays: Arrays) -> Values:
    """Spec 4.3: both losses, their weighted sum, and the gradient of each."""
    embeds, logits = (torch.from_numpy(arrays[name]).requires_grad_() for name in ("embeddings", "logits"))
    labels = torch.from_numpy(arrays["labels"])
    criterion = AdapterCriterion(detach_truth="ground-truth side detached" in case["run"])
    found = criterion(embeds, logits, labels)
    (grad_embeddings,) = torch.autograd.grad(found["loss_cosine"], embeds)
    (grad_logits,) = torch.autograd.grad(found["loss_ce"], logits)
    ignored = criterion(embeds, logits, torch.full_like(labels, -1))
    return {
        **{name: loss.detach().numpy() for name, loss in found.items()},
        "loss_ce_all_ignored": ignored["loss_ce"].detach().numpy(),
        "total_weighted": sum(criterion.weighted(found).values()).detach().numpy(),
        "grad_embeddings": grad_embeddings.numpy(),
        "grad_logits": grad_logits.numpy(),
    }


def matching(case: Case, arrays: Arrays) -> Values:
    """Spec 4.3: targets, overlaps, and the mixed slots for the pairs of the case; our own draw must be a legal one."""
    mask_logits = torch.from_numpy(arrays["pred_mask_logits"])
    canvas_hw = tuple(4 * side for side in mask_logits.shape[-2:])
    matcher = OverlapMatcher(case["iou_threshold"], case["iou_binarisation"], case["num_pred_masks"])
    draw = uniform(mask_logits.device, torch.Generator().manual_seed(0))
    new: Values = {}
    mixed, true = [], []
    for index, image in enumerate("ab"):
        masks = padded(torch.from_numpy(arrays[f"gt_{image}_masks"]), canvas_hw)
        targets = present(SegmentTargets(torch.from_numpy(arrays[f"gt_{image}_classes"]), masks))
        overlaps = matcher.overlaps(mask_logits[index], targets.masks)
        covers = overlaps > matcher.threshold
        new |= {f"iou_{image}": overlaps.numpy(), f"candidate_{image}": covers.numpy()}
        check_draw(matcher(mask_logits[index], targets, draw), covers, matcher.most)
        pairs = pairs_of(arrays, index)
        true.append(truth_slots(targets, case["num_gt_masks"], draw))
        mixed.append(mixed_slots(mask_logits[index], targets, pairs, true[-1], case["mask_threshold"]))
    masks, labels = stack(mixed)
    new |= {
        "gt_slots": torch.stack([slots.masks for slots in true]).numpy(),
        "gt_slot_labels": torch.stack([slots.labels for slots in true]).numpy(),
        "matched_labels": labels[:, case["num_gt_masks"] :][:, : case["num_pred_masks"]].numpy(),
        "mixed_masks_sample": sample(case, "mixed_masks_sample", masks),
        "mixed_masks_mean_per_slot": masks.mean((-2, -1)).numpy(),
        "mixed_labels": labels.numpy(),
    }
    return new


def warmup_targets(case: Case, arrays: Arrays) -> Values:
    """Spec 4.1: the slots of a picture with few masks, and of one with too many."""
    canvas_hw = tuple(case["arrays"]["masks"]["shape"][-2:])
    draw = uniform(torch.device("cpu"), torch.Generator().manual_seed(0))
    found = []
    for image in "ab":
        targets = SegmentTargets(
            torch.from_numpy(arrays[f"{image}_classes"]), padded(torch.from_numpy(arrays[f"{image}_masks"]), canvas_hw)
        )
        slots = truth_slots(present(targets), WARMUP_SLOTS, draw)
        check_drawn_targets(slots, present(targets))
        found.append(slots)
    return {
        "masks": torch.stack([slots.masks for slots in found]).numpy(),
        "labels": torch.stack([slots.labels for slots in found]).numpy(),
    }


def class_masks(case: Case, arrays: Arrays) -> Values:
    """Spec 3.4: one mask per class of a label map."""
    labels = torch.from_numpy(arrays["sem_seg"])
    classes = labels[labels != 255].unique()
    return {"masks": (labels == classes[:, None, None]).numpy(), "labels": classes.float().numpy()}


def outputs(case: Case, arrays: Arrays) -> Values:
    """Spec 3.2, step 8, and 3.3: the three outputs of masks that have the size of the output."""
    probs = torch.from_numpy(arrays["mask_cls"]).softmax(-1)
    classes, void, masks = probs[:, :-1], probs[:, -1], torch.from_numpy(arrays["mask_logits"])
    frame = own_frame(masks)
    is_thing = things({"thing_class_indices": case["thing_ids"]}, classes.shape[1])
    new: Values = {"sem_seg": postprocess.semantic_scores(masks, classes, frame).numpy()}
    official = (case["object_mask_threshold"], case["overlap_threshold"])
    loose = tuple(float(number) for number in re.findall(r"\d\.\d+", case["loose"]))
    for suffix, thresholds in (("", official), ("_loose", loose)):
        result = postprocess.panoptic(masks, classes, void, is_thing, frame, *thresholds)
        new |= {f"panoptic{suffix}": result.ids.numpy(), f"segments_info{suffix}": records(result, is_thing)}
    found = postprocess.instances(masks, classes, frame, is_thing, case["topk"])
    return new | {
        "inst_scores": np.array([segment.score for segment in found.segments], np.float32),
        "inst_classes": np.array([segment.class_index for segment in found.segments]),
        "inst_masks": found.masks.numpy(),
    }


def outputs_of_given_masks(case: Case, arrays: Arrays) -> Values:
    """Spec 3.4, step 5: probabilities are normalised a second time, masks are masks and no logits."""
    probs = torch.from_numpy(arrays["mask_cls_prob"]).softmax(-1)
    masks = torch.from_numpy(arrays["mask_pred"]).logit()
    return {"sem_seg": postprocess.semantic_scores(masks, probs[:, :-1], own_frame(masks)).numpy()}


def words(case: Case) -> Values:
    """Spec 2.1 and 3.2, the text side: synonyms, prompts, seen classes."""
    tested, trained = (
        Vocabulary(tuple(VocabularyClass(split_comma_format(line)) for line in case[part]))
        for part in ("test_classes", "train_classes")
    )
    return {
        "num_templates": [len(entry.phrases) for entry in tested.classes],
        "overlap": [int(seen) for seen in tested.seen(trained.phrases)],
        "prompts": make_prompts(tested.phrases, TEMPLATES["fcclip14"]),
    }


RUNNERS: tuple[tuple[set[str], Callable[[Case, Arrays], Values]], ...] = (
    ({"clip_dense", "masks_bool", "masks_soft"}, adapter_network),
    ({"clip_feature", "map_logits"}, pooling),
    ({"img_feat", "text"}, transfer),
    ({"in_logits", "out_logits", "overlap"}, ensemble),
    ({"x", "text366", "text8"}, warmup_logits),
    ({"x", "text"}, class_logits),
    ({"embeddings", "logits", "labels"}, losses),
    ({"pred_mask_logits", "gt_a_masks", "matched_pred_index"}, matching),
    ({"a_masks", "a_classes", "b_masks"}, warmup_targets),
    ({"sem_seg"}, class_masks),
    ({"mask_cls", "mask_logits"}, outputs),
    ({"mask_cls_prob", "mask_pred"}, outputs_of_given_masks),
)


def filled(case: Case) -> dict[str, Tensor]:
    """The weights of a piece: filled by their official names."""
    return {name: torch.as_tensor(procedural_weights.fill(name, shape)) for name, shape in case["tensors"].items()}


def under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def adapter_like(weights: Mapping[str, Tensor]) -> MaskAdapter:
    """An adapter of the sizes of some weights, named as below the adapter."""
    width, joint_width = weights["fuse.weight"].shape[:2]
    return MaskAdapter(
        joint_width, width, mask_width=len(weights["mask_downscaling.3.bias"]), num_maps=len(weights["final.bias"])
    )


def clip_head(weights: Mapping[str, Tensor]) -> Projection:
    """CLIP's head from its official tensors."""
    visual = "backbone.clip_model.visual."
    named = {f"norm.{name}": value for name, value in under(weights, visual + "trunk.head.norm.").items()}
    named |= {f"head.{name}": value for name, value in under(weights, visual + "head.").items()}
    last = next(name for name in ("head.proj", "head.mlp.fc2") if f"{name}.weight" in named)
    hidden = len(named["head.mlp.fc1.bias"]) if last == "head.mlp.fc2" else None
    head = Projection(len(named["norm.weight"]), len(named[f"{last}.weight"]), norm_eps=1e-6, hidden=hidden)
    return loaded(head, named)


def loaded(module: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    module.load_state_dict(dict(weights))
    return module.eval().requires_grad_(False)


def sample(case: Case, name: str, full: Tensor) -> np.ndarray:
    """The entries of `full` that the case stores under `name`: every n-th of the flat array."""
    count = int(np.prod(case["arrays"][name]["shape"]))
    flat = full.detach().numpy().reshape(-1)
    return flat[:: max(1, flat.size // count)][:count].reshape(case["arrays"][name]["shape"])


def samples(case: Case, tensors: Mapping[str, Tensor]) -> Values:
    """s__name and stat__name of every tensor the case has them of."""
    new: Values = {}
    for name, tensor in tensors.items():
        if f"s__{name}" in case["arrays"]:
            wide = tensor.detach().double()
            new[f"s__{name}"] = sample(case, f"s__{name}", tensor)
            new[f"stat__{name}"] = torch.stack((wide.mean(), wide.std(correction=0), wide.abs().max())).numpy()
    return new


def own_frame(masks: Tensor) -> Frame:
    """No resizing: masks [Q, H, W] have the size of the output."""
    size = (masks.shape[-2], masks.shape[-1])
    return Frame(size, size, size)


def padded(masks: Tensor, canvas_hw: tuple[int, ...]) -> Tensor:
    """masks [N, H, W] in the top left corner of a canvas."""
    return functional.pad(masks, (0, canvas_hw[1] - masks.shape[-1], 0, canvas_hw[0] - masks.shape[-2]))


def pairs_of(arrays: Arrays, image: int) -> MaskPairs:
    """The pairs that the official run drew."""
    drawn = arrays["matched_pred_index"][image] >= 0
    return MaskPairs(
        proposals=torch.from_numpy(arrays["matched_pred_index"][image][drawn]),
        targets=torch.from_numpy(arrays["matched_gt_index"][image][drawn]),
    )


def check_draw(pairs: MaskPairs, covers: Tensor, most: int) -> None:
    """What holds for every draw of the matcher."""
    matched = covers.any(0).nonzero().flatten()
    if not covers[pairs.proposals, pairs.targets].all():
        raise AssertionError("a proposal was drawn that is no candidate of its target")
    if len(pairs.targets) != min(most, len(matched)) or len(pairs.targets.unique()) != len(pairs.targets):
        raise AssertionError("not every matched target has one pair, as far as there is room")
    if len(matched) <= most and not torch.equal(pairs.targets, matched):
        raise AssertionError("the order of the targets was not kept")


def check_drawn_targets(slots: Slots, targets: SegmentTargets) -> None:
    """What holds for every draw of true masks: each is one of the targets with its label, none comes twice."""
    used = slots.labels >= 0
    same = (slots.masks[used].flatten(1)[:, None] == targets.masks.flatten(1)).all(-1)
    same &= slots.labels[used][:, None] == targets.labels
    if not (same.any(1).all() and (same.sum(0) <= 1).all() and not slots.masks[~used].any()):
        raise AssertionError("the slots hold what is not in the targets, or something twice")
