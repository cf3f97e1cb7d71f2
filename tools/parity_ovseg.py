"""Golden cases of OVSeg: text, crops, prompts, fusion, the demonstrations' rules, and whole inference.

A case is recognised by its inputs and outputs; sizes come from the shapes of its weights, the number of heads and what
else only its words say from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from procedural_weights import checkpoint, fill
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.text import TextEncoder, tokenize
from lexiseg.clip.vit import MaskPromptedTransformer
from lexiseg.data.pairs import shown_part
from lexiseg.geometry import resize
from lexiseg.images import Canvas, Photo
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, normalise
from lexiseg.layers.positions import sine_positions
from lexiseg.layers.text_logits import template_mean, text_logits
from lexiseg.metrics.semantic import (
    class_accuracy,
    class_iou,
    confusion_matrix,
    frequency_weighted_iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from lexiseg.postprocess import Frame
from lexiseg.regions.crops import Crop, MaskedCrops, boxes_of
from lexiseg.scoring.fusion import PowerProduct, RegionOnly
from lexiseg.system import System
from lexiseg.train.clip_adaptation import centre_view, contrastive_loss
from lexiseg.train.loop import cosine
from lexiseg.train.maskformer import PixelCriterion, PixelMatcher, schedule
from lexiseg.train.matcher import SegmentTargets
from lexiseg.types import Images, Proposals, Scores, TextBank
from lexiseg.vocabulary import TEMPLATES, make_prompts
from lexiseg.weights import ovseg as layout
from lexiseg.weights.fcclip import convert_official
from lexiseg.weights.rules import shapes_of
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.ovseg import ovseg

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]

VILD = TEMPLATES["fcclip14"]
"""The same list as the one the case calls "vild"."""


@torch.no_grad()
def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if case.get("method") != "ovseg":
        return None
    inputs = set(case["inputs"])
    outputs = {name for name, check in case["checks"].items() if check["role"] == "output"}
    if outputs == {"pos"}:
        return position_code(case)
    if "nouns" in case:
        return words(case)
    if {"image", "mask_prob"} <= inputs:
        return crops(case, arrays)
    if all(re.fullmatch(r"\w+_(x|mask)", name) for name in inputs) and inputs:
        return prompts(case, arrays)
    if {"mask_cls_logits", "clip_logits"} <= inputs:
        return fusions(arrays, outputs)
    if {"gt", "pred"} <= inputs:
        return evaluation(case, arrays)
    if {"pred_masks", "labels0"} <= inputs:
        return generator_losses(arrays)
    if "cosine_steps" in inputs:
        return clip_training(case, arrays)
    if "mask_native" in outputs:
        return stored_region(case, arrays)
    if {"class_probs", "masks"} <= inputs:
        return granularities(arrays, outputs)
    if "config" in case and inputs == {"image"}:
        return whole_inference(case, arrays, folder)
    return None


def position_code(case: Case) -> Values:
    """Section 2.3, of the size that the words of the case say."""
    features = int(re.search(r"(\d+) features per axis", case["run"])[1])
    rows, columns = re.search(r"(\d+) rows and (\d+) columns", case["run"]).groups()
    return {"pos": sine_positions((int(rows), int(columns)), 2 * features).permute(2, 0, 1).numpy()}


def words(case: Case) -> Values:
    """Section 2.2: 14 prompts per noun, their mean."""
    said = re.search(r"width (\d+), (\d+) heads?, (\d+) layers, .*embedding (\d+)", case["about"])
    width, heads, layers, embed_dim = (int(number) for number in said.groups())
    encoder = TextEncoder(embed_dim, width=width, heads=heads, layers=layers, quick_gelu=True).eval()
    prefix = re.search(r"fill\('(.*?)<name>'", case["about"])[1]
    factor = float(re.search(r"in_proj_weight multiplied by ([\d.]*\d)", case["about"])[1])
    encoder.load_state_dict(
        {
            name: torch.as_tensor(fill(prefix + name, tuple(value.shape)))
            * (factor if name.endswith("in_proj_weight") else 1)
            for name, value in encoder.state_dict().items()
        }
    )
    tokens = tokenize(make_prompts(case["nouns"], VILD)).unflatten(0, (len(case["nouns"]), -1)).transpose(0, 1)
    shown = case["arrays"]["tokens"]["shape"][-1]
    rows = template_mean(bank(case["nouns"], encoder).region)
    return {"tokens": tokens[..., :shown].int().numpy(), "features": rows.numpy()}


def crops(case: Case, arrays: Arrays) -> Values:
    """Section 2.4, steps 2 to 7, for each tag."""
    image, probs = torch.from_numpy(arrays["image"]).float(), torch.from_numpy(arrays["mask_prob"])
    images = one_picture(image)
    new: Values = {}
    for tag in {name.removesuffix("_valid") for name in case["checks"] if name.endswith("_valid")}:
        kind, threshold = tag.split("_")
        tower = MaskPromptedTransformer(1, width=1, layers=1, patch_size=16, image_size=224, head_width=1)
        embedder = MaskedCrops(
            tower,
            threshold=int(threshold) / 100,
            fill="zero" if kind == "zero" else "mean",
            matting=kind == "matting",
            expansion=float(re.search(r"ratio ([\d.]*\d)", case["about"])[1]) if kind == "expand" else 1.0,
        )
        # Logits that come back as these probabilities, to the last bit, do not exist: they are given.
        embedder.probs = lambda *_: iter([(0, probs)])
        found = list(embedder.crops_of(images, 0, probs))
        valid = (probs > embedder.threshold).flatten(1).any(1)
        pixels, masks = torch.stack([crop.pixels for _, crop in found]), torch.stack([crop.mask for _, crop in found])
        values = {
            "valid": valid,
            "boxes": boxes_of(probs[valid] > embedder.threshold).float(),
            "regions": torch.from_numpy(sampled(pixels.numpy(), case["arrays"][f"{tag}_regions"])),
            "regions_mean": pixels.mean((1, 2, 3)),
            "regions_std": pixels.flatten(1).std(1),
            "patch_mask": tower.keep(masks).unflatten(1, (tower.grid_size,) * 2).to(torch.uint8),
        }
        new |= {f"{tag}_{name}": value.numpy() for name, value in values.items()}
        stored = case["arrays"][f"{tag}_region_masks"]
        packed = np.packbits(masks.numpy(), axis=-1) if masks.dtype == torch.bool else masks.numpy()
        new[f"{tag}_region_masks"] = packed if packed.shape == tuple(stored["shape"]) else sampled(packed, stored)
    return new


def prompts(case: Case, arrays: Arrays) -> Values:
    """Section 2.5, for each configuration that the words of the case name."""
    prefix = re.search(r"fill\('(.*?)<tag>(.*?)<name>'", case["about"])
    factor = float(re.search(r"mask_embedding is multiplied by ([\d.]*\d)", case["about"])[1])
    new: Values = {}
    for tag, numbers in re.findall(r"(\w+) \((\d+(?:,\d+)+)\)", case["about"]):
        side, patch, depth, width, layers, heads, out = (int(number) for number in numbers.split(","))
        tower = MaskPromptedTransformer(
            out,
            width=width,
            layers=layers,
            patch_size=patch,
            image_size=side,
            head_width=width // heads,
            prompt_depth=depth,
            shared_prompts=f"{tag} ({numbers}) with mask_embedding of shape" in case["about"],
        ).eval()
        state = {
            name: torch.as_tensor(fill(f"{prefix[1]}{tag}{prefix[2]}{name}", tuple(value.shape)))
            for name, value in tower.state_dict().items()
        }
        state["mask_embedding"] = state["mask_embedding"] * factor
        tower.load_state_dict(state)
        pixels, masks = (torch.from_numpy(arrays[f"{tag}_{name}"]) for name in ("x", "mask"))
        new[f"{tag}_out"] = tower(pixels, tower.keep(masks[:, 0])).numpy()
        new[f"{tag}_out_nomask"] = tower(pixels).numpy()
    return new


def fusions(arrays: Arrays, outputs: set[str]) -> Values:
    """Sections 2.6 and 2.7 without any resizing."""
    masks = torch.from_numpy(arrays["mask_logits"])
    valid = torch.from_numpy(arrays["valid"])
    proposals = Proposals(masks[None], torch.from_numpy(arrays["mask_cls_logits"])[None])
    num_classes = arrays["clip_logits"].shape[1] - 1
    frame = Frame(*(tuple(masks.shape[-2:]),) * 3)
    new: Values = {}
    for name in outputs:
        columns, competing = ([0, 1], 1) if name.endswith("others") else (list(range(num_classes)), 0)
        logits = torch.zeros(1, len(valid), len(columns))
        logits[0, valid] = torch.from_numpy(arrays["clip_logits"])[:, columns]
        weight = 0 if "demo" in name else re.fullmatch(r"semseg_(?:w(\d+)|off)", name)[1]
        fuse: nn.Module = PowerProduct(0.0 if weight is None else int(weight) / 100)
        if weight is not None and int(weight) == 0:
            fuse = RegionOnly()
        text = TextBank(logits, logits, torch.arange(len(columns)), torch.zeros(len(columns), dtype=torch.bool))
        scores: Scores = fuse(proposals, logits, valid[None], text)
        probs = scores.class_probs[0]
        if "demo" in name:
            rows = postprocess.masks_that_paint(probs, competing=competing)
            new[name] = torch.einsum("qk,qhw->khw", probs[rows], (masks[rows].sigmoid() > 0.35).float()).numpy()
        else:
            new[name] = postprocess.semantic_scores(masks, probs, frame).numpy()
    return new


def granularities(arrays: Arrays, outputs: set[str]) -> Values:
    """Section 2.8."""
    masks, probs = torch.from_numpy(arrays["masks"]), torch.from_numpy(arrays["class_probs"])
    frame = Frame(*(tuple(masks.shape[-2:]),) * 3)
    return {
        name: blank(postprocess.painted(masks, probs, frame, granularity=int(name[-3:]) / 100).labels)
        for name in outputs
    }


def evaluation(case: Case, arrays: Arrays) -> Values:
    """Section 4, in per cent; the stored counts have a column for what the metrics leave out, here one more class."""
    classes, ignore = (int(re.search(pattern, case["run"])[1]) for pattern in (r"(\d+) classes", r"ignore (\d+)"))
    truth, prediction = (torch.from_numpy(arrays[name]) for name in ("gt", "pred"))
    whole = confusion_matrix(prediction, torch.where(truth == ignore, classes, truth), classes + 1, ignore)
    counts = confusion_matrix(prediction, truth, classes, ignore)
    figures = {
        "mIoU": mean_iou(counts, "gt_or_pred"),
        "fwIoU": frequency_weighted_iou(counts),
        "mACC": mean_accuracy(counts),
        "pACC": pixel_accuracy(counts),
    }
    per_class = {"IoU": class_iou(counts), "ACC": class_accuracy(counts)}
    return {
        "confusion": whole[: classes + 1].numpy(),
        **{name: np.asarray(100 * value) for name, value in figures.items()},
        **{name: 100 * value.numpy() for name, value in per_class.items()},
    }


def generator_losses(arrays: Arrays) -> Values:
    """Section 3.1: costs and pairs of the output, losses of all layers."""
    logits, masks = (torch.from_numpy(arrays[name]) for name in ("pred_logits", "pred_masks"))
    count = sum(1 for name in arrays if name.startswith("labels"))
    targets = [
        SegmentTargets(torch.from_numpy(arrays[f"labels{i}"]), torch.from_numpy(arrays[f"masks{i}"]))
        for i in range(count)
    ]
    criterion = PixelCriterion()
    new: Values = {}
    for i, target in enumerate(targets):
        own = masks[-1, i], logits[-1, i], target
        for name in ("mask", "dice", "class"):
            weights = {f"{part}_weight": float(part == name) for part in ("mask", "dice", "class")}
            new[f"cost_{name}{i}"] = PixelMatcher(**weights).cost(*own).numpy()
        new[f"cost{i}"] = criterion.matcher.cost(*own).numpy()
        matches = criterion.matcher(*own, nothing_drawn)
        new |= {f"match_query{i}": matches.proposals.numpy(), f"match_target{i}": matches.targets.numpy()}
    layers = [Proposals(m, c) for m, c in zip(masks, logits, strict=True)]
    return new | {name: loss.numpy() for name, loss in criterion(layers, targets, nothing_drawn).items()}


def nothing_drawn(shape: tuple[int, ...]) -> Tensor:
    raise AssertionError(f"numbers of shape {shape} were drawn")


def clip_training(case: Case, arrays: Arrays) -> Values:
    """Section 3.3's loss and schedule, 3.1's schedule; their settings are in the words of the case."""
    images, words, factor = (torch.from_numpy(arrays[n]) for n in ("image_features", "text_features", "logit_scale"))
    base, warmup, steps = re.search(r"base ([\d.]*\d), warm-up (\d+), (\d+) steps", case["run"]).groups()
    poly_base, poly_steps = re.search(r"base ([\d.e-]*\d), (\d+) iterations", case["run"]).groups()
    rates = [float(base) * cosine(int(step), int(steps), int(warmup)) for step in arrays["cosine_steps"]]
    poly = [float(poly_base) * schedule(int(step), int(poly_steps)) for step in arrays["poly_steps"]]
    loss = contrastive_loss(images, words, factor)
    return {"loss": loss.numpy(), "cosine_lr": np.array(rates), "poly_lr": np.array(poly)}


def stored_region(case: Case, arrays: Arrays) -> Values:
    """Section 3.4: the mask in a region's colours, before and after it is brought to size."""
    side = int(re.search(r"at size (\d+)", case["run"])[1])
    view = centre_view(Image.fromarray(arrays["image"]), side)
    picture = one_picture(torch.from_numpy(view.copy()).permute(2, 0, 1).float())
    pixels = normalise(picture, CLIP_MEAN, CLIP_STD)[0].numpy()
    return {
        "mask_native": shown_part(arrays["image"]).astype(np.uint8),
        "eval_image": pixels,
        "eval_mask": shown_part(view).astype(np.uint8),
        "eval_image_nomask": pixels,
    }


def blank(labels: Tensor) -> np.ndarray:
    """Labels as they are stored: 255 for none."""
    return torch.where(labels == postprocess.NO_CLASS, 255, labels).to(torch.uint8).numpy()


def bank(names: list[str], encoder: TextEncoder) -> TextBank:
    """Names used whole, with the templates apart."""
    rows = functional.normalize(encoder.encode(make_prompts([name.strip() for name in names], VILD)), dim=-1)
    rows = rows.unflatten(0, (len(names), -1))
    return TextBank(rows, rows, torch.arange(len(names)), torch.zeros(len(names), dtype=torch.bool))


def one_picture(image: Tensor) -> Images:
    size = tuple(image.shape[-2:])
    return Images(image[None], (size,), (size,))


def sampled(full: np.ndarray, described: Mapping[str, Any]) -> np.ndarray:
    """The part of an array that a case stores, by its words: every n-th value, or a stride for each last axis."""
    flat = re.search(r"every (\d+)-th value", described["meaning"])
    if flat:
        return full.reshape(-1)[:: int(flat[1])][: int(np.prod(described["shape"]))]
    cuts = re.search(r"\[([\d:, ]*::[\d:, ]*)\]$", described["meaning"])
    if not cuts:
        return full
    return full[(..., *(slice(*(int(n) if n else None for n in cut.strip().split(":"))) for cut in cuts[1].split(",")))]


def load(case: Case, folder: Path) -> tuple[System, TextEncoder]:
    """The system and text encoder of a case, filled with its manifest's weights."""
    values = checkpoint(folder / f"manifest-{case['config']}.json")
    source = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
    options = case["options"]
    arguments = layout.describe(source)
    said = re.search(r"decoder \d+ wide, (\d+) heads", case["about"])  # no shape tells it
    arguments |= {"heads": int(said[1])} if said else {}
    arguments |= {"verdict": "clip"} if options["ensemble_weight"] == 0 else {"clip_weight": options["ensemble_weight"]}
    system = ovseg(**arguments, threshold=options["mask_thr"])
    encoder = text_encoder(arguments["tower"])
    states = convert_official(
        source,
        shapes_of(system.state_dict()),
        shapes_of(encoder.state_dict()),
        layout.SYSTEM_RULES,
        layout.IGNORED,
        layout.CLIP,
    )
    system.load_state_dict(states[1], assign=True)
    encoder.load_state_dict(states[2], assign=True)
    return system.eval(), encoder.eval()


@contextmanager
def watching(tower: MaskPromptedTransformer) -> Iterator[dict[str, Tensor]]:
    """What the parts of a tower give while they are watched; blocks in full, of which the tower skips what it may."""
    seen: dict[str, Tensor] = {}
    first, last = tower.transformer.resblocks[0], tower.transformer.resblocks[-1]
    hooks = [
        tower.ln_pre.register_forward_hook(lambda module, given, made: seen.update(clip_ln_pre=made)),
        last.register_forward_pre_hook(lambda module, given: seen.update(before_last=given[0])),
    ]
    yield seen
    for hook in hooks:
        hook.remove()
    seen["clip_blk0"] = first(seen["clip_ln_pre"]).transpose(0, 1)
    seen["clip_blk_last"] = last(seen.pop("before_last")).transpose(0, 1)


def whole_inference(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Sections 2.1 to 2.7."""
    options, described = case["options"], case["arrays"]
    system, encoder = load(case, folder)
    canvas = Canvas(options["min_size_test"], options["max_size_test"], options["size_divisibility"])
    photo = Photo(arrays["image"], "case")
    resized, images = canvas.resize(photo), canvas([photo])
    text = bank(case["classes"], encoder)
    generator, embedder = system.generator.head, system.embedder
    queries = generator.query_text(text)

    features = system.generator.backbone(images)
    mask_features = generator.pixel_decoder(features.maps)
    steps = generator.decoder.all_steps(features.maps[-1])
    proposals = generator.proposals(steps[-1], mask_features, queries)
    full = {f"res{index}": x for index, x in enumerate(features.maps, 2)}
    full |= {"mask_features": mask_features, "input_proj": generator.decoder.input_proj(features.maps[-1])}
    full |= {f"hs{index}": step.state for index, step in enumerate(steps)}
    shown = sampled(np.moveaxis(resized, 2, 0), described["resized_sample"])  # the words name rows and columns
    new: Values = {"resized_sample": np.moveaxis(shown, 0, 2), "text_features": queries.rows.numpy()}
    new |= {"class_embedding": steps[-1].classes[0].numpy(), "pred_logits": proposals.class_logits[0].numpy()}
    new["pred_masks"] = sampled(proposals.mask_logits[0].numpy(), described["pred_masks"])

    height, width = images.sizes_hw[0]
    probs = resize(proposals.mask_logits, images.canvas_hw)[0, :, :height, :width].sigmoid()
    inside = probs > embedder.threshold
    new["valid"] = inside.flatten(1).any(1).numpy()
    inside = inside[torch.from_numpy(new["valid"])]
    new |= {"boxes": boxes_of(inside).to(torch.int16).numpy(), "foreground": inside.flatten(1).sum(1).numpy()}
    del probs

    seen_of_crops(list(embedder.crops_of(images, 0, proposals.mask_logits[0])), embedder, queries.rows, described, new)
    if "foreground_first" in arrays:
        stored: Values = {}
        masks = np.unpackbits(arrays["foreground_first"], axis=-1)[..., :width].astype(bool)
        boxes = boxes_of(torch.from_numpy(masks))
        given = [
            (index, embedder.crop(images.pixels[0], torch.from_numpy(mask), box.tolist()))
            for index, (mask, box) in enumerate(zip(masks, boxes, strict=True))
        ]
        seen_of_crops(given, embedder, queries.rows, described, stored)
        new["from foreground_first"] = stored
    new |= {f"statistics.{name}": statistics(value) for name, value in full.items()}
    new |= {name: sampled(value.numpy(), described[name]) for name, value in full.items()}
    new["statistics.resized_shape"] = list(resized.shape)

    frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
    outcomes = {
        "": (new["pred_logits"], new["clip_logits"], new["valid"]),
        "from clip_logits": (new["pred_logits"], arrays["clip_logits"], new["valid"]),
        "from pred_logits, clip_logits": (arrays.get("pred_logits"), arrays["clip_logits"], new["valid"]),
    }
    for name, (pred_logits, clip_logits, valid) in outcomes.items():
        if pred_logits is None or valid.sum() != len(clip_logits):
            continue
        found = outcome(system, options, proposals.mask_logits, pred_logits, clip_logits, valid, text, frame)
        found["sem_seg"] = sampled(found["sem_seg"], described["sem_seg"])
        new |= {name: found} if name else found
    return new


def seen_of_crops(
    given: list[tuple[int, Crop]], embedder: MaskedCrops, rows: Tensor, described: Mapping[str, Any], new: Values
) -> None:
    """What CLIP makes of crops, and what it is shown, into `new`; its inner values for as many as the case stores."""
    crops = [crop for _, crop in given]
    first = int(re.search(r"of shape \[(\d+),", described["clip_ln_pre"]["meaning"])[1])
    with watching(embedder.tower) as seen:
        embeds = [embedder.embed(crops[:first])]
    embeds += [embedder.embed(crops[start : start + 32]) for start in range(first, len(crops), 32)]
    for name, value in seen.items():
        new[name] = sampled(value.numpy(), described[name])
        new[f"statistics.{name}"] = statistics(value)
    pixels, masks = torch.stack([crop.pixels for crop in crops]), torch.stack([crop.mask for crop in crops])
    new["regions"] = sampled(pixels.numpy(), described["regions"])
    new["regions_mean"] = pixels.mean((1, 2, 3)).numpy()
    new["patch_mask"] = np.packbits(embedder.tower.keep(masks).numpy(), axis=-1)
    unit = functional.normalize(torch.cat(embeds), dim=-1)
    new["clip_features"] = unit.numpy()
    scale = torch.tensor(100.0).log()
    new["clip_logits"] = text_logits(unit, rows, torch.arange(len(rows)), len(rows), scale).numpy()


def outcome(
    system: System,
    options: Mapping[str, Any],
    mask_logits: Tensor,
    pred_logits: np.ndarray,
    clip_logits: np.ndarray,
    valid: np.ndarray,
    text: TextBank,
    frame: Frame,
) -> Values:
    """Section 2.6, or 2.7 where CLIP decides alone: class scores, their maps and labels."""
    region_logits = torch.zeros(1, len(valid), text.num_classes)
    region_logits[0, torch.from_numpy(valid)] = torch.from_numpy(clip_logits)[:, :-1]
    proposals = Proposals(mask_logits, torch.from_numpy(pred_logits)[None])
    scores: Scores = system.fuse(proposals, region_logits, torch.from_numpy(valid)[None], text)
    probs, masks = scores.class_probs[0], mask_logits[0]
    if options["ensemble_weight"] > 0:
        maps = postprocess.semantic_scores(masks, probs, frame)
        return {"class_scores": probs.numpy(), "sem_seg": maps.numpy(), "label": maps.argmax(0).to(torch.uint8).numpy()}
    rows = postprocess.masks_that_paint(probs)
    on = resize(masks[rows][None], frame.canvas_hw)[0].sigmoid() > options["mask_thr"]
    maps = postprocess.semantic_scores(torch.where(on, torch.inf, -torch.inf), probs[rows], frame)
    labels = postprocess.painted(masks, probs, frame, options["mask_thr"]).labels
    return {"sem_seg": maps.numpy(), "label": blank(labels)}


def statistics(value: Tensor) -> dict[str, float]:
    wide = value.double()
    return {"mean": float(wide.mean()), "std": float(wide.std()), "absmax": float(wide.abs().max())}
