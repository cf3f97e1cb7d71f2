"""Golden cases of MaskCLIP++ as a whole: every stage from picture to outputs, or from given masks to classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_system import captured, log_probs, records
from procedural_weights import checkpoint
from torch import Tensor
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.text import TextEncoder
from lexiseg.geometry import resize
from lexiseg.images import Canvas, Photo
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, normalise
from lexiseg.layers.text_logits import best_of_phrases
from lexiseg.postprocess import Frame
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.scoring.fusion import GeometricEnsemble
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.system import System
from lexiseg.text_bank import encode_vocabulary
from lexiseg.types import Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.assembly import Assembled, assemble
from lexiseg.zoo.fcclip import text_encoder
from lexiseg.zoo.model_folder import BUILDERS

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]

SIZES = {
    "INPUT.MIN_SIZE_TEST": "photo",
    "MODEL.MASKCLIPPP.VISUAL_ENCODER_F.TEST_IMAGE_SIZE": "generator",
    "MODEL.MASKCLIPPP.VISUAL_ENCODER.TEST_IMAGE_SIZE": "classifier",
}
"""What a case may change, all of them short edges."""

WORD_LISTS = {False: "coco_panoptic", True: "coco_stuff_171"}
"""Whether the words of COCO-Stuff count as seen -> the list."""


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if not case.get("run", "").startswith("maskclip-pp.md") or "manifest" not in case:
        return None
    with torch.inference_mode():
        if set(case["inputs"]) == {"image"}:
            return whole_inference(case, arrays, folder)
        if set(case["inputs"]) == {"image", "mask_logits"}:
            return from_masks(case, arrays, folder)
    return None


def load(case: Case, folder: Path) -> tuple[Assembled, System, TextEncoder, TextEncoder]:
    """The model of a case's files, at the sizes of the case, and its two text towers."""
    manifest = folder / case["manifest"]
    # A case that needs no generator names none; its place is taken by the one of the manifest.
    parts = {"generator", *case["companions"]}
    files = {
        part: {name: torch.from_numpy(np.asarray(value)) for name, value in checkpoint(manifest, part).items()}
        for part in (None, *sorted(parts))
    }
    if "extra_arrays" in case:
        with np.load(folder / case["extra_arrays"]) as extra:
            for tensors in files.values():
                tensors.update({name: torch.from_numpy(extra[name]) for name in extra.files if name in tensors})
    clips = [tensors for part, tensors in files.items() if part not in (None, "generator")]
    sizes = {SIZES[name]: value for name, value in case["config_changes"].items()}
    model = assemble(files[None], files["generator"], clips, short_edge=sizes.get("classifier"))
    canvas = replace(
        model.canvas,
        short_edge=sizes.get("photo", model.canvas.short_edge),
        second_short_edge=sizes.get("generator", model.canvas.second_short_edge),
    )
    system = BUILDERS[model.builder].system(**model.arguments)
    system.load_state_dict(model.system, strict=True, assign=True)
    text, query = text_encoder(model.arguments["tower"]), text_encoder(model.arguments["generator_tower"])
    text.load_state_dict(model.text, strict=True, assign=True)
    query.load_state_dict(model.query_text or model.text, strict=True, assign=True)
    return replace(model, canvas=canvas), system.eval(), text.eval(), query.eval()


def words(case: Case, folder: Path, model: Assembled, text: TextEncoder, query: TextEncoder | None) -> TextBank:
    """The case's classes as generator and classifier read them."""
    vocabulary = Vocabulary.from_comma_format(case["classes"])
    lists = json.loads((folder.parent / "fc-clip" / "vocabularies.json").read_text())["datasets"]
    trained = Vocabulary.from_comma_format(lists[WORD_LISTS[model.seen_stuff]]["classes"])
    region = encode_vocabulary(vocabulary, model.templates, lambda: text, mix_templates=False)
    return TextBank(
        query=region if query is None else encode_vocabulary(vocabulary, "fcclip14", lambda: query),
        region=region,
        class_of=torch.tensor(vocabulary.class_of),
        seen=torch.tensor(vocabulary.seen(trained.phrases)),
    )


def whole_inference(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Sections 2.1 to 2.8."""
    model, system, text_tower, query_tower = load(case, folder)
    text = words(case, folder, model, text_tower, query_tower)
    photo = Photo(rgb=arrays["image"], name="image")
    images = model.canvas([photo])
    new: Values = {
        "resized_image": resized(model.canvas, photo),
        "generator.input": normalise(images, CLIP_MEAN, CLIP_STD).numpy(),
        "text.generator": text.query[:, 0].numpy(),
        "text.maskclippp": text.region.numpy(),
        "text.num_synonyms": torch.bincount(text.class_of).numpy(),
        "category_overlapping_mask": text.seen.numpy(),
    }
    head = system.generator.head
    with captured({"maps": system.generator.backbone, "decoded": head.pixel_decoder}) as seen:
        proposals = system.generator(images, None, text)
    mask_features, memories = seen["decoded"]
    new |= {f"generator.stage{i + 1}": level.numpy() for i, level in enumerate(seen["maps"].maps)}
    new |= {f"generator.multi_scale_{i}": memory.numpy() for i, memory in enumerate(memories)}
    masks = proposals.mask_logits[0]
    new |= {
        "generator.mask_features": mask_features.numpy(),
        "generator.pred_mask_logits": masks.numpy(),
        "generator.pred_mask_logits_32": masks[:32].numpy(),
        "generator.pred_logits": proposals.class_logits[0].numpy(),
        "masks.unpadded": unpadded(masks, images).numpy(),
    }
    new |= classify(system, images, masks, text)

    regions = system.embedder(images, None, proposals.mask_logits)
    region_logits = system.scorer(regions, text)
    scores = system.fuse(proposals, region_logits, regions.valid, text)
    new["logits.per_class"] = region_logits[0].numpy()
    new["clip.mask_embeddings"] = regions.embeds[0].numpy()
    if regions.dense_embeds is not None:
        new["clip.pixel_embeddings"] = regions.dense_embeds.numpy()
    if isinstance(system.fuse, GeometricEnsemble):
        inner, outer = proposals.class_logits[0, :, :-1].log_softmax(-1), region_logits[0].log_softmax(-1)
        new["logits.ensemble"] = system.fuse.mean(inner, outer, text.seen).numpy()
    new["logits.final"] = log_probs(scores)[0].numpy()
    return new | outputs(case, model, images, masks, scores.class_probs[0], scores.void_prob[0])


def outputs(case: Case, model: Assembled, images: Images, masks: Tensor, classes: Tensor, void: Tensor) -> Values:
    """Section 2.8; panoptic results for every overlap threshold in the names of the checks."""
    frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
    scores = postprocess.semantic_scores(masks, classes, frame, "grid").numpy()
    new: Values = {
        "semantic.scores": scores,
        "semantic.scores_sub": scores,
        "semantic.argmax": postprocess.semantic(masks, classes, frame, "grid").labels.numpy().astype(np.uint8),
    }
    is_thing = torch.zeros(classes.shape[1], dtype=torch.bool)
    is_thing[case["thing_ids"]] = True
    for name in case["checks"]:
        if name.startswith("panoptic") and name.endswith(".map"):
            case_name = name.removesuffix(".map")
            overlap = float(case_name.partition("_")[2] or model.outputs.overlap_threshold)
            thresholds = model.outputs.object_mask_threshold, overlap
            result = postprocess.panoptic(masks, classes, void, is_thing, frame, *thresholds, sigmoid_at="grid")
            new[name] = result.ids.numpy().astype(np.uint8)
            new[f"extra.{case_name}.segments"] = records(result, is_thing)
    if "instances.scores" in case["checks"]:
        found = postprocess.instances(masks, classes, frame, is_thing, sigmoid_at="grid")
        new["instances.scores"] = np.array([segment.score for segment in found.segments], np.float32)
        new["instances.classes"] = np.array([segment.class_index for segment in found.segments])
        new["instances.area"] = np.array([segment.area for segment in found.segments])
        new["instances.masks_top4"] = found.masks[:4].numpy()
    return new


def from_masks(case: Case, arrays: Arrays, folder: Path) -> Values:
    """Section 2.1, the end of 2.3, and 2.4 to 2.6, on the masks of the case."""
    model, system, text_tower, _ = load(case, folder)
    text = words(case, folder, model, text_tower, None)
    images = model.canvas([Photo(rgb=arrays["image"], name="image")])
    masks = torch.from_numpy(arrays["mask_logits"])
    new = classify(system, images, masks, text)
    view = system.embedder.view(images)
    regions = system.embedder(images, None, masks[None])
    return new | {
        "generator_input_size": np.array([*images.canvas_hw, *images.sizes_hw[0]]),
        "masks.unpadded": unpadded(masks, images).numpy(),
        "clip.masks": system.embedder.view.masks(masks.sigmoid()[None], images, view, view.canvas_hw)[0].numpy(),
        "clip.mask_embeddings": regions.embeds[0].numpy(),
        "text.maskclippp": text.region.numpy(),
        "logits.per_class": system.scorer(regions, text)[0].numpy(),
    }


def classify(system: System, images: Images, masks: Tensor, text: TextBank) -> Values:
    """What the classifier computes on the way, in the long form: each similarity for itself."""
    embedder, scorer = system.embedder, system.scorer
    view = embedder.view(images)
    new: Values = {"clip.input": normalise(view, CLIP_MEAN, CLIP_STD).numpy()}
    if isinstance(embedder, MaskTokens):
        grid_hw = embedder.grid_of(view)
        soft = embedder.view.masks(masks.sigmoid()[None], images, view, grid_hw)
        with captured_arguments(embedder.trunk, "leave") as left:
            embeds = embedder.look(view, soft)[0]
        trunk = embedder.trunk
        tokens, _ = trunk.enter(view)
        for index in range(trunk.depth):
            tokens = trunk.block(index, tokens, trunk.waves(grid_hw))
        new["clip.final_feature"] = torch.cat((left[0], tokens), dim=1).numpy()
        dense_embeds = None
    else:
        dense = embedder.trunk(view).dense
        soft = embedder.view.masks(masks.sigmoid()[None], images, view, tuple(dense.shape[-2:]))
        regions = embedder(images, None, masks[None])
        embeds, dense_embeds = regions.embeds[0], regions.dense_embeds
        new["clip.final_feature"] = dense.numpy()
    similarities = torch.einsum("qd,atd->qat", functional.normalize(embeds, dim=-1), text.region)
    if isinstance(scorer, PseudoText):
        words_of_picture = scorer.rows(text.region, dense_embeds)[0]
        out = functional.normalize(embeds, dim=-1) @ words_of_picture.mT
    else:
        similarities = similarities * scorer.logit_scale.exp().clamp(max=100.0)
        out = scorer.mix_out(scorer.mix_in(similarities))[..., 0]
    return new | {
        "clip.areas": soft[0].flatten(1).sum(-1).numpy(),
        "psm.input": similarities.numpy(),
        "psm.output": out.numpy(),
        "logits.per_class": best_of_phrases(out, text.class_of, text.num_classes).numpy(),
    }


class captured_arguments:
    """The first arguments of the calls of a method while the block runs."""

    def __init__(self, owner: Any, method: str) -> None:
        self.owner, self.method = owner, method

    def __enter__(self) -> list[Tensor]:
        calls: list[Tensor] = []
        own = getattr(self.owner, self.method)

        def remember(argument: Tensor) -> Tensor:
            calls.append(argument)
            return own(argument)

        object.__setattr__(self.owner, self.method, remember)
        return calls

    def __exit__(self, *_: object) -> None:
        object.__delattr__(self.owner, self.method)


def resized(canvas: Canvas, photo: Photo) -> np.ndarray:
    """The picture after its first resizing, [3, h, w] in 0..255."""
    return canvas.resize(photo).transpose(2, 0, 1).astype(np.float32)


def unpadded(masks: Tensor, images: Images) -> Tensor:
    """Probabilities [Q, h, w] at the size of the generator's picture: in the product they are never made."""
    height, width = images.sizes_hw[0]
    return resize(masks.sigmoid()[None], images.canvas_hw)[0, :, :height, :width]
