"""Golden cases of MAFT and FreeSeg: text, interaction, mask tokens, combination of scores, losses, whole inference.

A case is recognised by its inputs and outputs; sizes come from the shapes of its weights or stand in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_ovseg import bank, nothing_drawn
from procedural_weights import checkpoint, fill
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.text import TextEncoder, tokenize
from lexiseg.clip.vit import VisionTransformer
from lexiseg.geometry import resize
from lexiseg.images import Canvas, Photo
from lexiseg.layers.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from lexiseg.layers.text_logits import text_logits
from lexiseg.postprocess import Frame
from lexiseg.proposals.freeseg import LOG_SCALE, TextInteraction
from lexiseg.regions.mask_bias import MaskBiasedAttention, look_inside
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.system import System
from lexiseg.train.mask_aware import distillation_loss, mask_aware_loss, soft_ious, stretched
from lexiseg.train.maskformer import PixelCriterion, PixelMatcher
from lexiseg.train.matcher import SegmentTargets
from lexiseg.types import Images, Proposals, Regions, Scores, TextBank
from lexiseg.vocabulary import make_prompts
from lexiseg.weights import maft as layout
from lexiseg.weights.fcclip import convert_official
from lexiseg.weights.rules import shapes_of
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.maft import freeseg, maft

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if case.get("method") != "maft":
        return None
    inputs = set(case["inputs"])
    if {"feat_masks", "feat_student"} <= inputs:
        return tower_losses(case, arrays)
    with torch.no_grad():
        if "templates" in case:
            return tokens(case)
        if {"ms0", "mask_features", "text"} <= inputs:
            return interaction(case, arrays)
        if {"image", "masks"} <= inputs:
            return mask_tokens(case, arrays)
        if {"clip_logits", "head_logits"} <= inputs:
            return combinations(case, arrays)
        if {"pred_logits", "aux_logits"} <= inputs:
            return generator_losses(case, arrays)
        if "manifest" in case and inputs == {"image"}:
            return whole_inference(case, arrays, folder)
    return None


def tokens(case: Case) -> Values:
    """Section 2.2."""
    names, templates = case["names"], case["templates"]
    rows = tokenize(make_prompts(names, templates)).unflatten(0, (len(names), len(templates)))
    return {"tokens": rows.transpose(0, 1).int().numpy()}


def filled(module: nn.Module, case: Case) -> nn.Module:
    """A module with the weights that the words of a case describe."""
    prefix = re.search(r"fill\('(.*?)'", case["weights"])[1]
    factor = re.search(r"(\w+) additionally multiplied by ([\d.]*\d)", case["weights"])
    state = {}
    for name, value in module.state_dict().items():
        state[name] = torch.as_tensor(fill(prefix + name, tuple(value.shape)))
        if factor is not None and name.endswith(factor[1]):
            state[name] = state[name] * float(factor[2])
    module.load_state_dict(state)
    return module.eval()


def interaction(case: Case, arrays: Arrays) -> Values:
    """Section 2.5."""
    sizes = case["network"]
    module = filled(TextInteraction(sizes["q_dim"], sizes["k_dim"], sizes["embed_dim"], sizes["heads"]), case)
    names = ("ms0", "ms1", "ms2", "mask_features")
    changed = module([torch.from_numpy(arrays[name]) for name in names], torch.from_numpy(arrays["text"]))
    return {f"out_{name}": x.numpy() for name, x in zip(names, changed, strict=True)}


def states_of(embedder: MaskBiasedAttention, pixels: Tensor, allowed: Tensor | None) -> tuple[list[Tensor], Tensor]:
    """All tokens after every block, the mask tokens first, with their patches after the last one too; then what they
    are in the joint space. allowed None: the plain tower."""
    tower = embedder.tower
    x, states = tower.enter(pixels), []
    for index, block in enumerate(tower.blocks):
        if allowed is None or index < embedder.first_block:
            x = block(x)
        else:
            count = allowed.shape[1] if index > embedder.first_block else 1
            own = x[:, :count].expand(-1, allowed.shape[1], -1)
            x = torch.cat(look_inside(block, own, x[:, count:], allowed), dim=1)
        states.append(x)
    return states, tower.end(x[:, : 1 if allowed is None else allowed.shape[1]])


def mask_tokens(case: Case, arrays: Arrays) -> Values:
    """Section 2.8 on its own; the masks are given as probabilities, on a frame of their own."""
    sizes = case["network"]
    tower = VisionTransformer(
        sizes["output_dim"],
        width=sizes["width"],
        layers=sizes["layers"],
        patch_size=sizes["patch_size"],
        image_size=sizes["input_resolution"],
        head_width=sizes["width"] // sizes["heads"],
    )
    pixels, masks = torch.from_numpy(arrays["image"]), torch.from_numpy(arrays["masks"])
    embedder = MaskBiasedAttention(
        filled(tower, case), side=pixels.shape[-1], first_block=sizes["mask_start_layer"]
    ).eval()
    grid = resize(masks, embedder.grid_hw)  # probabilities, some of them 0 and 1: they have no logits
    allowed = grid.flatten(2) >= embedder.threshold
    with_masks, _ = states_of(embedder, pixels, allowed)
    plain, _ = states_of(embedder, pixels, None)
    shared = embedder.shared(pixels)
    values = {f"tokens_block{index}": x for index, x in enumerate(with_masks)}
    values |= {f"tokens_plain_block{index}": x for index, x in enumerate(plain)}
    values |= {"grid_masks": grid, "out_masks": embedder.regions(shared, allowed), "out_plain": embedder.whole(shared)}
    return {name: value.numpy() for name, value in values.items()}


def combinations(case: Case, arrays: Arrays) -> Values:
    """Sections 2.9 to 2.11, at the size of the masks; which rule it is stands in the words about each array."""
    masks, clip, head = (torch.from_numpy(arrays[name]) for name in ("mask_logits", "clip_logits", "head_logits"))
    valid = (masks > 0).flatten(1).any(1)
    frame = Frame(*(tuple(masks.shape[-2:]),) * 3)
    num_classes = clip.shape[1] - 1
    new: Values = {}
    for name, described in case["arrays"].items():
        told = re.search(r"(maft|freeseg), ensemble weight ([\d.]*\d)", described["doc"])
        if name in case["inputs"]:
            continue
        flags = re.search(r"seen flags \[([\d,]*)\]", described["doc"])
        seen = torch.tensor([n == "1" for n in flags[1].split(",")] if flags else [False] * num_classes)
        fuse: nn.Module
        if told is None:  # no CLIP at all
            fuse = PowerProduct(0.0)
        elif float(told[2]) > 0:
            fuse = PowerProduct(float(told[2]), seen_weight=1 - float(told[2]))
        else:
            fuse = RegionOnly(only_valid=told[1] == "freeseg")
        text = TextBank(clip, clip, torch.arange(num_classes), seen)
        scores: Scores = fuse(Proposals(masks[None], head[None]), clip[None, :, :-1], valid[None], text)
        new[name] = postprocess.semantic_scores(masks, scores.class_probs[0], frame).numpy()
    return new


def targets_in(arrays: Arrays) -> list[SegmentTargets]:
    count = sum(1 for name in arrays if re.fullmatch(r"gt_labels\d+", name))
    return [
        SegmentTargets(torch.from_numpy(arrays[f"gt_labels{i}"]), torch.from_numpy(arrays[f"gt_masks{i}"]))
        for i in range(count)
    ]


def tower_losses(case: Case, arrays: Arrays) -> Values:
    """Section 3.3."""
    targets, text = targets_in(arrays), torch.from_numpy(arrays["text"])
    rows, num_classes = text[:-1], len(text) - 1
    scale = torch.tensor(float(case["temperature"])).log()
    masks = functional.interpolate(
        torch.from_numpy(arrays["pred_masks"]),
        size=targets[0].masks.shape[-2:],
        mode="bilinear",
        align_corners=True,
    )
    regions, student, teacher = (torch.from_numpy(arrays[f"feat_{part}"]) for part in ("masks", "student", "teacher"))
    regions.requires_grad_()
    student.requires_grad_()

    def logits(embeds: Tensor) -> Tensor:
        return text_logits(embeds, rows, torch.arange(num_classes), num_classes, scale)

    mask_aware = mask_aware_loss(logits(regions), masks, targets)
    distilled = case["dis_weight"] * distillation_loss(logits(student), logits(teacher))
    (mask_aware + distilled).backward()
    ious = torch.cat([soft_ious(own, target.masks) for own, target in zip(masks, targets, strict=True)])
    values = {
        "iou": ious,
        "iou_norm": stretched(ious),
        "ma_loss": mask_aware.detach(),
        "dis_loss_weighted": distilled.detach(),
        "grad_feat_masks": regions.grad,
        "grad_feat_student": student.grad,
    }
    return {name: value.numpy() for name, value in values.items()}


def generator_losses(case: Case, arrays: Arrays) -> Values:
    """Section 3.2: costs and pairs of the output, losses of both outputs."""
    targets, told = targets_in(arrays), case["weights"]
    criterion = PixelCriterion(told["ce"], told["mask"], told["dice"], void_weight=case["no_object_weight"])
    output, auxiliary = (
        Proposals(torch.from_numpy(arrays[f"{kind}_masks"]), torch.from_numpy(arrays[f"{kind}_logits"]))
        for kind in ("pred", "aux")
    )
    new: Values = {}
    for i, target in enumerate(targets):
        own = output.mask_logits[i], output.class_logits[i], target
        for name in ("mask", "dice", "class"):
            weights = {f"{part}_weight": float(part == name) for part in ("mask", "dice", "class")}
            new[f"cost_{name}{i}"] = PixelMatcher(**weights).cost(*own).numpy()
        matches = criterion.matcher(*own, nothing_drawn)
        new[f"match{i}"] = torch.stack((matches.proposals, matches.targets)).numpy()
    losses = criterion([auxiliary, output], targets, nothing_drawn)
    kinds = ("loss_ce", "loss_mask", "loss_dice")
    new["losses"] = np.array([float(losses[name + part]) for part in ("", "_0") for name in kinds], np.float32)
    return new


def load(case: Case, folder: Path) -> tuple[System, TextEncoder]:
    """The system and text encoder of a case, filled with its manifest's weights."""
    values = checkpoint(folder / case["manifest"])
    source = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
    arguments = layout.describe(source)
    arguments["points"] = arguments.pop("heads_times_points") // 8
    tuned = case["architecture"] == "MAFT"
    system = (maft if tuned else freeseg)(**arguments)
    encoder = text_encoder(arguments["tower"])
    states = convert_official(
        source,
        shapes_of(system.state_dict()),
        shapes_of(encoder.state_dict()),
        layout.MAFT_RULES if tuned else layout.FREESEG_RULES,
        layout.MAFT_IGNORED if tuned else layout.FREESEG_IGNORED,
        layout.CLIP,
    )
    system.load_state_dict(states[1], assign=True)
    encoder.load_state_dict(states[2], assign=True)
    return system.eval(), encoder.eval()


def whole_inference(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Sections 2.1 to 2.10."""
    system, encoder = load(case, folder)
    canvas = Canvas(case["test_size"]["shortest_edge"], case["test_size"]["max"])
    photo = Photo(arrays["image"], "case")
    images: Images = canvas([photo])
    text = bank(case["classes"], encoder)
    generator, embedder = system.generator.head, system.embedder
    words = generator.query_text(text)

    features = system.generator.backbone(images)
    mask_features, memories = generator.pixel_decoder(features.maps)
    full: dict[str, Tensor] = {"resnet_input": normalise(images, IMAGENET_MEAN, IMAGENET_STD)}
    full |= {f"backbone.res{index}": x for index, x in enumerate(features.maps, 2)}
    full["pixel_decoder.mask_features"] = mask_features
    full |= {f"pixel_decoder.ms{index}": x for index, x in enumerate(memories)}
    mask_features, memories = generator.maps(features, words)
    full["interaction.mask_features"] = mask_features
    full |= {f"interaction.ms{index}": x for index, x in enumerate(memories)}
    seen: dict[str, Tensor] = {}
    watch = generator.decoder.class_embed.register_forward_hook(lambda module, given, made: seen.update(classes=made))
    steps = [step.proposals for step in generator.decoder.all_steps(memories, mask_features, words)]
    watch.remove()
    full |= {f"predictor.aux{index}.pred_masks": step.mask_logits for index, step in enumerate(steps)}
    proposals: Proposals = generator(images, features, text)
    embedded = tuple(case["arrays"]["pred_embeddings"]["shape"]) == tuple(seen["classes"].shape)
    full["pred_embeddings"] = seen["classes"] if embedded else proposals.class_logits
    full["pred_masks"] = steps[-1].mask_logits
    height, width = images.sizes_hw[0]
    probs = proposals.mask_logits.sigmoid()
    full["mask_probs"] = probs if embedder.mask_frame == "padded" else probs[..., :height, :width]

    grid, view = embedder.masks(images, proposals.mask_logits), embedder.view(images)
    allowed = embedder.allowed(images, proposals.mask_logits)
    states, _ = states_of(embedder, view, allowed)
    full |= {"clip_input": view, "attn_grid_masks": grid, "ip.ln_pre": embedder.tower.enter(view)}
    full |= {f"ip.block{index}": x for index, x in enumerate(states)}
    regions: Regions = embedder(images, None, proposals.mask_logits)
    full["image_features_raw"] = regions.embeds
    full["text_features"] = words.rows
    scale = regions.embeds.new_tensor(LOG_SCALE)
    full["clip_logits"] = text_logits(regions.embeds, words.rows, words.class_of, words.num_classes, scale)

    scores: Scores = system.fuse(proposals, system.scorer(regions, text), regions.valid, text)
    masks, class_probs = proposals.mask_logits[0], scores.class_probs[0]
    picture = images.sizes_hw[0]
    maps = postprocess.semantic_scores(masks, class_probs, Frame(images.canvas_hw, picture, images.original_hw[0]))
    full["semseg_padded"] = postprocess.semantic_scores(masks, class_probs, Frame(images.canvas_hw, picture, picture))
    full["sem_seg"] = maps
    new: Values = {name: value.numpy() for name, value in full.items()}
    resized, stored = canvas.resize(photo), case["arrays"]["resized"]
    stride = re.search(r"::(\d+)", stored["stored"])
    new |= {"resized": list(resized.shape[:2]), "resized.sample": resized.reshape(-1)[:: int(stride[1])][:256]}
    new["resized.stats"] = np.array([statistic(resized.astype(np.float64)) for statistic in (np.mean, np.std, np.max)])
    new["attn_allowed"] = allowed[0].numpy()
    new["argmax"] = maps.argmax(0).to(torch.uint8).numpy()
    new["argmax_centered"] = (maps - maps.mean((-2, -1), keepdim=True)).argmax(0).to(torch.uint8).numpy()
    small = case["arrays"]["pred_masks.small"]["shape"][-2:]
    new["pred_masks.small"] = functional.interpolate(steps[-1].mask_logits, size=tuple(small)).numpy()[0]
    cut = re.search(r"::(\d+), ::(\d+)", case["arrays"]["sem_seg.small"]["doc"])
    new["sem_seg.small"] = new["sem_seg"][:, :: int(cut[1]), :: int(cut[2])]
    return new
