"""Golden cases of FC-CLIP's system level: pre-processing, ensemble, post-processing, whole inference, training step."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from procedural_weights import checkpoint
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.text import TextEncoder
from lexiseg.clip.trunk import Trunk
from lexiseg.geometry import fit_short_edge
from lexiseg.images import Canvas, Photo, place
from lexiseg.layers.text_logits import text_logits
from lexiseg.postprocess import Frame
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.system import System
from lexiseg.train.losses import Criterion
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.points import Draw
from lexiseg.types import Features, Images, PanopticMap, Proposals, Scores, SigmoidAt, TextBank
from lexiseg.vocabulary import TEMPLATES, Vocabulary
from lexiseg.weights.fcclip import describe
from lexiseg.zoo.convert import LAYOUTS, convert_state, recognise, sizes
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import BUILDERS

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
    if case.get("method") == "fc-clip" and inputs == {"image"}:
        return whole_inference(case, arrays, folder)
    if case.get("method") == "fc-clip" and {"image_0", "target_masks_0"} <= inputs:
        return training_step(case, arrays, folder)
    return None


def preprocess(case: Case, arrays: Arrays) -> dict[str, Any]:
    """Test-time sizes, resized pictures, and a normalised, padded batch (spec 2.1)."""
    new: dict[str, Any] = {}
    tables = {key: [int(n) for n in re.findall(r"\d+", key)] for key in case if key.startswith("size_table_")}
    for key, (short, long) in tables.items():
        new[key] = {
            size: list(fit_short_edge(tuple(int(n) for n in size.split("x")), short, long)) for size in case[key]
        }
    short, long = next(iter(tables.values()))
    new["sizes"] = {}
    for name, given in case["sizes"].items():
        size_hw = fit_short_edge(tuple(given["input"]), short, long)
        new["sizes"][name] = {"resized": list(size_hw)}
        photo = Photo(rgb=arrays[f"{name}_in"], name=name)
        new[f"{name}_resized_strided"] = np.asarray(Canvas(short, long).resize(photo))
    batch = sorted(name for name in arrays if name.startswith("batch_in_"))
    trunk = Trunk(nn.Conv2d(3, 1, 1), (), 1, mean=tuple(case["pixel_mean"]), std=tuple(case["pixel_std"]))
    new["batch_padded_strided"] = trunk.normalise(as_they_are([arrays[name] for name in batch])).numpy()
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


def as_they_are(pictures: Sequence[np.ndarray]) -> Images:
    """The pictures on one canvas, not resized."""
    return place(pictures, [picture.shape[:2] for picture in pictures])


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


def load(folder: Path, manifest: str) -> tuple[System, TextEncoder, dict[str, str]]:
    """The system and text encoder of a manifest's procedural weights, and our name -> official name."""
    source = {name: torch.from_numpy(np.asarray(value)) for name, value in checkpoint(folder / manifest).items()}
    layout, found = recognise(folder / manifest, source), describe(source)
    kind = LAYOUTS[layout]
    arguments = {"tower": found.tower, **kind.arguments, **sizes(found, kind.builder)}
    account, system_state, text_state = convert_state(source, arguments, layout)
    system, encoder = BUILDERS[kind.builder].system(**arguments), text_encoder(found.tower)
    system.load_state_dict(system_state, strict=True, assign=True)
    encoder.load_state_dict(text_state, strict=True, assign=True)
    return system.eval(), encoder.eval(), {target: name for name, target in account.used.items()}


def encode_words(case: Case, folder: Path, encoder: TextEncoder) -> tuple[TextBank, list[str], Tensor]:
    """The text bank of a case's vocabulary, its prompts, and their raw vectors."""
    vocabulary = Vocabulary.from_comma_format(case["classes"])
    lists = json.loads((folder / "vocabularies.json").read_text())
    training = Vocabulary.from_comma_format(lists["datasets"]["coco_panoptic"]["classes"])
    phrases = [phrase for entry in vocabulary.classes for phrase in entry.phrases]
    prompts = [template.format(phrase) for phrase in phrases for template in TEMPLATES["fcclip14"]]
    raw = encoder.encode(prompts)
    rows = raw.unflatten(0, (len(phrases), -1))
    rows = functional.normalize(functional.normalize(rows, dim=-1).mean(1), dim=-1)[:, None]
    sizes = [len(entry.phrases) for entry in vocabulary.classes]
    seen = vocabulary.seen(phrase for entry in training.classes for phrase in entry.phrases)
    class_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    bank = TextBank(query=rows, region=rows, class_of=class_of, seen=torch.as_tensor(seen, dtype=torch.bool))
    return bank, prompts, raw


@contextlib.contextmanager
def captured(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The outputs of some modules while the block runs."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: seen.__setitem__(name, output))
        for name, module in modules.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def stages(system: System, images: Images, text: TextBank) -> tuple[Features, dict[str, Any]]:
    """What encoder and generator compute on the way, every prediction of the decoder included, by official name."""
    encoder, generator = system.encoder, system.generator
    pixel_decoder, decoder = generator.pixel_decoder, generator.decoder
    new: dict[str, Any] = {
        "text_classifier": generator.query_text(text).rows.numpy(),
        "preprocessed": encoder.normalise(images).numpy(),
    }
    layers = pixel_decoder.transformer.encoder.layers
    modules = {f"pixel_decoder.input_proj.{i}": part for i, part in enumerate(pixel_decoder.input_proj)}
    modules |= {f"pixel_decoder.encoder.layer{i}": layer for i, layer in enumerate(layers)}
    modules["backbone.stem"] = encoder.trunk.act3 if hasattr(encoder.trunk, "act3") else encoder.trunk.stem
    with captured(modules) as seen:
        features = encoder(images)
        mask_features, memories = pixel_decoder(features.maps)
    new |= {name: value.numpy() for name, value in seen.items()}
    new |= {f"backbone.res{i + 2}": level.numpy() for i, level in enumerate(features.maps)}
    new["backbone.clip_vis_dense"] = features.dense.numpy()
    new["pixel_decoder.mask_features"] = mask_features.numpy()
    new |= {f"pixel_decoder.multi_scale.{i}": memory.numpy() for i, memory in enumerate(memories)}
    with captured({f"decoder.{i + 1}.query": part for i, part in enumerate(decoder.transformer_ffn_layers)}) as seen:
        steps = generator.all_steps(images, features, text)
    new["decoder.0.query"] = decoder.query_feat.weight[:, None].numpy()
    new |= {name: state.transpose(0, 1).numpy() for name, state in seen.items()}
    for i, step in enumerate(steps):
        new[f"decoder.{i}.pred_logits"] = step.proposals.class_logits.numpy()
        new[f"decoder.{i}.pred_masks"] = step.proposals.mask_logits.numpy()
        new[f"decoder.{i}.attn_blocked"] = step.blocked[0].sum(-1).int().numpy()
    return features, new


@torch.inference_mode()
def whole_inference(case: Case, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """Every stage of the whole model, and the three outputs in both orders."""
    settings = case["settings"]
    system, encoder_of_words, _ = load(folder, case["manifest"])
    system.fuse = GeometricEnsemble(settings["alpha"], settings["beta"], settings["ensemble_on_valid_mask"])
    text, prompts, raw = encode_words(case, folder, encoder_of_words)
    generator = system.generator
    new: dict[str, Any] = {
        "tokens_first_prompts": encoder_of_words.tokenize(case["first_prompts"]).numpy().astype(np.int32),
        "text_features_raw": raw.numpy(),
        "num_templates": torch.bincount(text.class_of).tolist(),
        "category_overlapping_mask": text.seen.int().tolist(),
    }
    if prompts[: len(case["first_prompts"])] != case["first_prompts"]:
        raise ValueError("the prompts of the vocabulary do not begin with the case's first_prompts")
    rows = generator.query_text(text).rows
    new["backbone.text_classifier"] = rows.numpy()
    images = as_they_are([arrays["image"]])
    features, staged = stages(system, images, text)
    new |= staged

    proposals, scores = system(images, text)
    regions = system.embedder(images, features, proposals.mask_logits)
    class_of = generator.query_text(text).class_of
    region_logits = text_logits(regions.embeds, rows, class_of, text.num_classes + 1, system.scorer.logit_scale)
    masks, classes = proposals.mask_logits[0], scores.class_probs[0]
    new["pred_logits"] = proposals.class_logits[0].numpy()
    new["pred_masks_strided"] = masks.numpy()
    new["pooled_clip_embedding"] = regions.embeds[0].numpy()
    new["out_vocab_logits"] = region_logits[0].numpy()
    new["final_class_log_probs"] = log_probs(scores)[0].numpy()
    empty = (~regions.valid[0]).nonzero().flatten().tolist()
    new["queries_with_empty_mask_at_clip_resolution"] = empty

    frame = Frame(images.canvas_hw, images.sizes_hw[0], (case["output_height"], case["output_width"]))
    is_thing = things(case, classes.shape[1])
    for prefix, sigmoid_at in (("semantic", "output"), ("semantic_only", "canvas")):
        maps = semantic_maps(masks, classes, frame, sigmoid_at)
        new |= {f"{prefix}_{name}": values for name, values in maps.items()}
    for suffix, overlap in (("", settings["overlap_threshold"]), ("_overlap0", 0.0)):
        result = postprocess.panoptic(
            masks, classes, scores.void_prob[0], is_thing, frame, settings["object_mask_threshold"], overlap
        )
        new[f"panoptic_ids{suffix}"] = result.ids.numpy()
        new[f"panoptic_segments{suffix}"] = records(result, is_thing)
    found = postprocess.instances(masks, classes, frame, is_thing, settings["topk"]).segments
    new["instance_scores"] = np.array([segment.score for segment in found], np.float32)
    new["instance_classes"] = np.array([segment.class_index for segment in found], np.int16)
    new["instance_mask_area"] = np.array([segment.area for segment in found], np.int32)
    return new


def semantic_maps(masks: Tensor, class_probs: Tensor, frame: Frame, sigmoid_at: SigmoidAt) -> dict[str, np.ndarray]:
    """Scores of the classes, their arg-max, and that of the scores without their spatial mean."""
    per_class = postprocess.semantic_scores(masks, class_probs, frame, sigmoid_at)
    return {
        "scores": per_class.numpy(),
        "argmax": postprocess.semantic(masks, class_probs, frame, sigmoid_at).labels.numpy(),
        "centred_argmax": (per_class - per_class.mean((-2, -1), keepdim=True)).argmax(0).numpy(),
    }


def step_inputs(case: Case, arrays: Arrays) -> tuple[Images, list[SegmentTargets], Draw]:
    """Pictures, segments on their canvas, and the case's random numbers in the place of draws."""
    count = sum(name.startswith("image_") for name in arrays)
    images = as_they_are([arrays[f"image_{i}"] for i in range(count)])
    targets = []
    for i, (height, width) in enumerate(images.sizes_hw):
        packed = np.unpackbits(arrays[f"target_masks_{i}"], axis=-1)[..., :width].astype(bool)
        masks = torch.zeros(len(packed), *images.canvas_hw, dtype=torch.bool)
        masks[:, :height, :width] = torch.from_numpy(packed)
        targets.append(SegmentTargets(torch.from_numpy(arrays[f"target_labels_{i}"]), masks))
    seed = int(re.search(r"PCG64\((\d+)\)", case["random"])[1])
    bits = np.random.PCG64(seed)

    def draw(shape: Sequence[int]) -> Tensor:
        words = bits.random_raw(math.prod(shape))
        return torch.from_numpy(((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)).reshape(shape))

    return images, targets, draw


def step_values(
    losses: Mapping[str, Tensor], trained: Mapping[str, nn.Parameter], official: Mapping[str, str]
) -> dict[str, Any]:
    """Weighted losses, their sum, and its gradients. trained: by our names; official: ours -> the official one."""
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    grads = {official[name]: p.grad for name, p in trained.items() if p.grad is not None}
    norms = {name: float(grad.double().norm()) for name, grad in grads.items()}
    return {
        "losses_weighted": {name: loss.item() for name, loss in losses.items()},
        "total": total.item(),
        "grad_norms": norms,
        "grad_norm_total": math.sqrt(sum(norm**2 for norm in norms.values())),
        "trainable_without_grad": [official[name] for name, p in trained.items() if p.grad is None],
        **{f"grad.{name}": grad.numpy() for name, grad in grads.items()},
    }


def training_step(case: Case, arrays: Arrays, folder: Path) -> dict[str, Any]:
    """Weighted losses and gradients of one step."""
    system, encoder_of_words, official = load(folder, case["manifest"])
    text, _, _ = encode_words(case, folder, encoder_of_words)
    images, targets, draw = step_inputs(case, arrays)
    system.requires_grad_(False)
    system.generator.requires_grad_(True)
    steps = system.generator.all_steps(images, system.encoder(images), text)
    criterion = Criterion(num_points=case["num_points"])
    losses = criterion.weighted(criterion([step.proposals for step in steps], targets, draw))
    trained = {f"generator.{name}": p for name, p in system.generator.named_parameters() if p.requires_grad}
    return step_values(losses, trained, official)
