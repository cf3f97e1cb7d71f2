"""Golden pieces of MaskCLIP++: similarity modelling, loss, views and masks, fusion, outputs, towers, mask accuracy.

A piece is recognised by its inputs and the names of its weights; sizes come from their shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import procedural_weights
import torch
from parity_fcclip_system import records
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.nn import functional

from lexiseg import postprocess
from lexiseg.clip.eva import EvaTrunk
from lexiseg.clip.open_clip import build_image_tower
from lexiseg.geometry import TowerView
from lexiseg.layers.mask_pooling import soft_mean
from lexiseg.layers.normalise import CLIP_MEAN, CLIP_STD, normalise
from lexiseg.layers.text_logits import best_of_phrases
from lexiseg.metrics.mask_accuracy import class_masks, mask_accuracy, mask_confusion
from lexiseg.metrics.upper_bound import coarse_iou
from lexiseg.postprocess import Frame
from lexiseg.proposals.closed_set import move_classes
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.regions.masked_attention import SoftAttentionPool, SoftMaskedAttention2d
from lexiseg.scoring.fusion import FLOOR, GeometricEnsemble, RegionWithVoid
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMix
from lexiseg.train.mask_classification import mask_classification_loss
from lexiseg.types import Images, Proposals, TextBank
from lexiseg.vocabulary import Vocabulary, VocabularyClass, make_prompts
from lexiseg.weights.maskclip_pp import SIMILARITY_RULES, TOWER_RULES
from lexiseg.weights.rules import Rule, convert, shapes_of

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a piece of this module, or None if it is not one."""
    inputs, state = set(case["inputs"]), set(case.get("state", ()))
    if {"templates", "synonyms"} <= set(case):
        return sentences(case)
    for needed, weights, runner in RUNNERS:
        if inputs and needed <= inputs and weights <= state:
            with torch.set_grad_enabled(runner is loss):
                return runner(case, arrays)
    return None


def sentences(case: Case) -> Values:
    """Section 2.2: template fastest."""
    phrases = [phrase for names in case["synonyms"] for phrase in names]
    return {
        "out": make_prompts(phrases, case["templates"]),
        "num_synonyms": [len(names) for names in case["synonyms"]],
    }


def mean_of_templates(case: Case, arrays: Arrays) -> Values:
    """Section 2.6, Dummy: what `TemplateMean` makes of similarities that are given."""
    corrs = torch.from_numpy(arrays["corrs"])
    return {"out": corrs.mean(-1).numpy()}


def mix_of_templates(case: Case, arrays: Arrays) -> Values:
    """Section 2.6, linear, in its folded form."""
    width, templates = case["state"]["corr_proj_in.0.weight"]
    mix = filled_scorer(TemplateMix(templates, width), case, fresh=("logit_scale",))
    weights, offset = mix.folded()
    return {"out": (torch.from_numpy(arrays["corrs"]) @ weights + offset).numpy()}


def pseudo_text(case: Case, arrays: Arrays) -> Values:
    """Section 2.6, pseudo-text. The similarities of the residual are given, whatever the embeddings say."""
    options, state = case["options"], case["state"]
    region, dense = (torch.from_numpy(arrays[name]) for name in ("t_embs", "p_embs"))
    width, picture_width = state["img_proj.weight"]
    residual = TemplateMix(region.shape[1], options["corr_width"]) if options["corr_residual"] else None
    scorer = PseudoText(
        width,
        options["num_heads"],
        picture_width,
        normalise_picture=options["norm_visual_cond"],
        scaled=options["use_logit_scale"],
        residual=residual,
    )
    scorer = filled_scorer(scorer, case, fresh=("residual.logit_scale",))
    rows = scorer.rows(region, dense)  # [B, A, D]
    embeds = [functional.normalize(torch.from_numpy(arrays[f"m_embs_{i}"]), dim=-1) for i in range(len(rows))]
    out = torch.cat([own @ words.mT for own, words in zip(embeds, rows, strict=True)])
    if residual is not None:
        weights, offset = residual.folded()
        out = out + torch.from_numpy(arrays["corrs"]) @ weights + offset
    return {"out": out.numpy()}


def loss(case: Case, arrays: Arrays) -> Values:
    """Section 3, with the options in the words of each value."""
    labels, image_of = torch.from_numpy(arrays["labels"]), torch.from_numpy(arrays["mask2batch"])
    areas = torch.from_numpy(np.concatenate([arrays[name] for name in sorted(arrays) if name.startswith("areas_")]))
    new: Values = {}
    for name, described in case["arrays"].items():
        options = re.search(r"loss value with \{(.*)\}", described["what"])
        if options is None:
            continue
        said = dict(re.findall(r"'(\w+)': ([\w.]+)", options[1]))
        logits = torch.from_numpy(arrays["logits"]).requires_grad_()
        kept = areas > 0 if said["ignore_empty"] == "True" else torch.ones_like(areas, dtype=torch.bool)
        value = mask_classification_loss(
            logits[kept],
            labels[kept],
            image_of[kept],
            balanced=said["balance_cls"] == "True",
            temperature=float(said["temperature"]),
        )
        value.backward()
        new[name], new[f"{name}_grad"] = value.detach().reshape(1).numpy(), logits.grad.numpy()
    return new


def mask_resize(case: Case, arrays: Arrays) -> Values:
    """Section 2.4, step 1. Methods that no configuration asks for are not in the package; PyTorch computes them."""
    masks = torch.from_numpy(arrays["masks"])[None]
    small = tuple(case["arrays"]["bilinear"]["shape"][1:])
    return {
        "bilinear": on_grid(masks, small).numpy(),
        "up_bilinear": on_grid(masks, tuple(case["arrays"]["up_bilinear"]["shape"][1:])).numpy(),
        "bicubic": functional.interpolate(masks, size=small, mode="bicubic", align_corners=False)[0].numpy(),
        "avg": functional.adaptive_avg_pool2d(masks, small)[0].numpy(),
        "max": functional.adaptive_max_pool2d(masks, small)[0].numpy(),
    }


def mask_pool(case: Case, arrays: Arrays) -> Values:
    """Section 2.4, steps 1 and 2."""
    features = torch.from_numpy(arrays["feature"])[None]
    masks = on_grid(torch.from_numpy(arrays["masks"])[None], tuple(features.shape[-2:]))[None]
    emptied = masks.clone()
    emptied[:, 2] = 0
    return {
        "pooled": soft_mean(features, masks)[0].numpy(),
        "pooled_empty_third": soft_mean(features, emptied)[0].numpy(),
    }


def preprocess(case: Case, arrays: Arrays) -> Values:
    """Section 2.1, steps 3 to 5, for every rule in the names of the outputs."""
    said = case["arrays"]["short_tensor_0"]["what"]
    size, scale, multiple = (
        float(re.search(f"{word} ([\\d.]+)", said)[1]) for word in ("size", "scale", "divisibility")
    )
    pictures = [torch.from_numpy(arrays[f"image_{i}"]).float() for i in range(2)]
    new: Values = {}
    for name, rule in (("short", "short"), ("square", "square"), ("none", "none"), ("rel", "scale")):
        view_of = TowerView(rule, scale if rule == "scale" else size, int(multiple))
        for index, picture in enumerate(pictures):
            images = batch_of([picture])
            view = view_of(images)
            masks = torch.from_numpy(arrays[f"masks_{index}"])[None]
            new[f"{name}_tensor_{index}"] = normalise(view, CLIP_MEAN, CLIP_STD).numpy()
            new[f"{name}_masks_{index}"] = view_of.masks(masks, images, view, view.canvas_hw)[0].numpy()
            new[f"{name}_size_{index}"] = np.array(view.sizes_hw[0])
        new[f"{name}_batch"] = normalise(view_of(batch_of(pictures)), CLIP_MEAN, CLIP_STD).numpy()
    as_it_is = TowerView("none", 0, 1)
    for name in ("set_padded", "set_unpadded"):
        canvas_hw, *unpadded = (
            tuple(int(n) for n in pair) for pair in re.findall(r"(\d+)x(\d+)", case["arrays"][f"{name}_out"]["what"])
        )
        images = Images(torch.zeros(1, 3, *canvas_hw), ((unpadded or [canvas_hw])[0],), (canvas_hw,))
        view = as_it_is(images)
        masks = torch.from_numpy(arrays[f"{name}_in"])[None]
        new[f"{name}_out"] = as_it_is.masks(masks, images, view, view.canvas_hw)[0].numpy()
    return new


def synonym_max(case: Case, arrays: Arrays) -> Values:
    """Section 2.6, end."""
    class_of = classes_of(arrays["num_synonyms"].tolist())
    return {"out": best_of_phrases(torch.from_numpy(arrays["scores"]), class_of, len(arrays["num_synonyms"])).numpy()}


def ensemble(case: Case, arrays: Arrays) -> Values:
    """Section 2.7: exponents in the names of the outputs."""
    logits, generator = (torch.from_numpy(arrays[name]) for name in ("logits", "generator_logits"))
    seen = torch.from_numpy(arrays["overlap"])
    new: Values = {}
    for name in case["checks"]:
        exponents = re.fullmatch(r"out_([\d.]+)_([\d.]+)", name)
        if exponents is not None:
            fuse = GeometricEnsemble(*(float(value) for value in exponents.groups()), floor=FLOOR)
            new[name] = fuse.mean(generator[:, :-1].log_softmax(-1), logits.log_softmax(-1), seen).numpy()
    scores = RegionWithVoid()(
        Proposals(torch.empty(0), generator[None]),
        logits[None],
        torch.ones(1, len(logits), dtype=torch.bool),
        bank(seen),
    )
    # The scores are what is left of the log scores when their sum is taken out; the recording still has it.
    total = 1 + generator.shape[1] * FLOOR
    new["void_out"] = (torch.cat((scores.class_probs[0], scores.void_prob[0, :, None]), -1) * total).log().numpy()
    return new


def closed_ensemble(case: Case, arrays: Arrays) -> Values:
    """Section 2.7, closed-set generator."""
    train, test = (
        Vocabulary(tuple(VocabularyClass(tuple(names)) for names in case[part]))
        for part in ("train_synonyms", "test_synonyms")
    )
    places = test.places_of(train)
    seen = torch.tensor(test.seen(train.phrases))
    generator, logits = (torch.from_numpy(arrays[name]) for name in ("generator_logits", "logits"))
    moved = move_classes(generator[None], torch.tensor(places), len(test))[0]
    alpha, beta = (float(word) for word in re.findall(r"(?:alpha|beta) ([\d.]+\d)", case["arrays"]["out"]["what"]))
    out = GeometricEnsemble(alpha, beta, floor=FLOOR).mean(moved[:, :-1].log_softmax(-1), logits.log_softmax(-1), seen)
    return {"lut": np.array([*places, len(test)]), "out": out.numpy()}


def outputs(case: Case, arrays: Arrays) -> Values:
    """Section 2.8, on masks that are probabilities already."""
    masks = torch.from_numpy(arrays["mask_probs"]).logit()
    probs = torch.from_numpy(arrays["final_logits"]).softmax(-1)
    size_hw = tuple(masks.shape[-2:])
    frame = Frame(size_hw, size_hw, size_hw)
    is_thing = torch.zeros(probs.shape[1] - 1, dtype=torch.bool)
    is_thing[case["thing_contiguous_ids"]] = True
    open_probs = torch.from_numpy(arrays["open_logits"]).softmax(-1)
    new: Values = {
        "semantic": postprocess.semantic_scores(masks, probs[:, :-1], frame, "grid").numpy(),
        "semantic_open": postprocess.semantic_scores(masks, open_probs, frame, "grid").numpy(),
        "segments": {},
    }
    for name in case["checks"]:
        thresholds = re.fullmatch(r"panoptic_([\d.]+)_([\d.]+)", name)
        if thresholds is not None:
            least, overlap = (float(value) for value in thresholds.groups())
            result = postprocess.panoptic(
                masks, probs[:, :-1], probs[:, -1], is_thing, frame, least, overlap, sigmoid_at="grid"
            )
            new[name] = result.ids.numpy()
            new["segments"]["_".join(thresholds.groups())] = records(result, is_thing)
    top = int(re.search(r"top-(\d+)", case["arrays"]["instance_scores"]["what"])[1])
    found = postprocess.instances(masks, probs[:, :-1], frame, is_thing, top, sigmoid_at="grid").segments
    new["instance_scores"] = np.array([segment.score for segment in found], np.float32)
    new["instance_classes"] = np.array([segment.class_index for segment in found])
    new["instance_area"] = np.array([segment.area for segment in found], np.float32)
    return new


def mask_tokens(case: Case, arrays: Arrays) -> Values:
    """Section 2.5, and the optional outputs that the package does not give, by the same blocks."""
    options = case["options"]
    second = {
        "qkv_fused": False,
        "swiglu_mlp": True,
        "scale_mlp": True,
        "scale_attn_inner": True,
        "use_rot_pos_emb": True,
        "ref_feat_shape": (16, 16),
    }
    trunk = EvaTrunk(
        Eva(
            img_size=options["pretrained_image"],
            patch_size=options["patch"],
            embed_dim=options["width"],
            depth=options["layers"],
            num_heads=options["heads"],
            mlp_ratio=options["mlp_ratio"],
            num_classes=options["out"],
            global_pool="token",
            **(second if options["rope"] else {}),
        )
    )
    embedder = MaskTokens(TowerView("none", 0, options["patch"]), trunk, options["mask_prior_beg"] - 1)
    embedder = filled_embedder(embedder, case, "eva02" if options["rope"] else "eva01")
    images = batch_of([torch.from_numpy(arrays["image"]).float()])
    view = embedder.view(images)
    grid_hw = embedder.grid_of(view)
    masks = embedder.view.masks(torch.from_numpy(arrays["masks"])[None], images, view, grid_hw)

    last = trunk.depth - 1
    tokens, _ = trunk.enter(view)
    waves = trunk.waves(grid_hw)
    for index in range(last):
        tokens = trunk.block(index, tokens, waves)
    query, key, value = trunk.attention(last, tokens, waves)
    dense = trunk.leave(trunk.finish(last, tokens, value))[:, 1:]
    new: Values = {
        "m_embs": embedder.look(view, masks)[0].numpy(),
        "areas": masks.flatten(2).sum(-1)[0].numpy(),
        "p_embs": dense.transpose(1, 2).unflatten(-1, grid_hw).numpy(),
        "i_embs": trunk.leave(trunk.attend(last, tokens, query, key, value)[:, :1]).mT[..., None].numpy(),
        "pos_embed_" + "x".join(str(side) for side in grid_hw): trunk.positions(grid_hw).numpy(),
        "mask_bias": torch.cat([embedder.bias(masks, row) for row in range(len(embedder.mask_logit_scale))]).numpy(),
    }
    if waves is not None:
        new |= {"rope_cos": waves[0].numpy(), "rope_sin": waves[1].numpy()}
    return new


def masked_attention(case: Case, arrays: Arrays) -> Values:
    """Section 2.4, RN50x16, and the optional outputs that the package does not give, by the same layers."""
    options, state = case["options"], case["state"]
    heads = options["heads"]
    config = {
        "embed_dim": state["proxy.attnpool.c_proj.bias"][0],
        "vision_cfg": {**{key: options[key] for key in ("layers", "width", "image_size")}},
        "text_cfg": {},
    }
    config["vision_cfg"]["head_width"] = options["width"] * 32 // heads
    parts = build_image_tower(config, device="cpu")
    short, multiple = (
        int(n) for n in re.search(r"short side (\d+), padded to (\d+)", case["arrays"]["image"]["what"]).groups()
    )
    pool = SoftMaskedAttention2d(**parts.attention_pool)
    embedder = SoftAttentionPool(TowerView("short", short, multiple // 2), parts.trunk, pool)
    embedder = filled_embedder(embedder, case, "resnet")
    images = batch_of([torch.from_numpy(arrays["image"]).float()])
    view = embedder.view(images)
    features = embedder.trunk(view).dense
    grid_hw = tuple(features.shape[-2:])
    masks = embedder.view.masks(torch.from_numpy(arrays["masks"])[None], images, view, grid_hw)

    positions = pool.positions(grid_hw)
    whole = features.mean((-2, -1)) + pool.positional_embedding[0]
    tokens = torch.cat((whole[:, None], (features + positions).flatten(2).mT), dim=1)  # [1, 1 + h w, C]
    query, key, value = (
        project(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project, x in ((pool.q_proj, tokens[:, :1]), (pool.k_proj, tokens), (pool.v_proj, tokens))
    )
    overall = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    return {
        "m_embs": pool(features, masks)[0].numpy(),
        "areas": masks.flatten(2).sum(-1)[0].numpy(),
        "p_embs": pool.c_proj(pool.v_proj(tokens[:, 1:])).mT.unflatten(-1, grid_hw).numpy(),
        "i_embs": pool.c_proj(overall).mT[..., None].numpy(),
        "pos_embed": torch.cat((pool.positional_embedding[:1], positions[0].flatten(1).mT)).numpy(),
    }


def accuracy(case: Case, arrays: Arrays) -> Values:
    """Section 4.2. The recording has a column more, which is zero."""
    seen = torch.from_numpy(arrays["overlap"])
    confusion = mask_confusion(len(seen))
    for index, labels in enumerate(torch.from_numpy(arrays["gt"])):
        _, classes = class_masks(labels, ignore=255)
        confusion.update(torch.from_numpy(arrays[f"pred_{index}"].astype(np.int64)), classes)
    counts = confusion.counts
    result = mask_accuracy(counts, seen)
    return {
        "confusion": functional.pad(counts, (0, 1)).numpy(),
        "result": 100 * np.array([result.mean, result.seen, result.unseen]),
        "per_class": 100 * np.array(result.per_class),
    }


def proposal_bound(case: Case, arrays: Arrays) -> Values:
    """Section 4.2, proposal upper bound."""
    return {"iou": coarse_iou(torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"])).numpy()}


RUNNERS: tuple[tuple[set[str], set[str], Callable[[Case, Arrays], Values]], ...] = (
    ({"corrs", "t_embs", "p_embs"}, {"img_proj.weight"}, pseudo_text),
    ({"corrs", "mask2batch"}, {"corr_proj_in.0.weight"}, mix_of_templates),
    ({"corrs", "mask2batch"}, set(), mean_of_templates),
    ({"logits", "labels", "mask2batch"}, set(), loss),
    ({"image", "masks"}, {"mask_logit_scale", "proxy.cls_token"}, mask_tokens),
    ({"image", "masks"}, {"mask_logit_scale", "proxy.attnpool.c_proj.bias"}, masked_attention),
    ({"feature", "masks"}, set(), mask_pool),
    ({"image_0", "masks_0", "set_padded_in"}, set(), preprocess),
    ({"scores", "num_synonyms"}, set(), synonym_max),
    ({"logits", "generator_logits", "overlap"}, set(), ensemble),
    ({"generator_logits", "logits"}, set(), closed_ensemble),
    ({"mask_probs", "final_logits", "open_logits"}, set(), outputs),
    ({"gt", "pred_0", "overlap"}, set(), accuracy),
    ({"a", "b"}, set(), proposal_bound),
    ({"masks"}, set(), mask_resize),
)


def filled_scorer(scorer: nn.Module, case: Case, fresh: tuple[str, ...]) -> Any:
    """The scorer with the filled weights of a case; `fresh`: what it has and the case has not."""
    rules = [Rule(rule.pattern.removeprefix("psm."), rule.target.removeprefix("scorer.")) for rule in SIMILARITY_RULES]
    rules += [Rule("logit_scale", "own_scale")]
    rules += [Rule(f"corrs_{part}.{{*}}", f"residual.mix_{part}.{{*}}") for part in ("in", "out")]
    targets = {name: shape for name, shape in shapes_of(scorer.state_dict()).items() if name not in fresh}
    weights = convert(filled(case, "psm."), targets, rules).tensors
    scorer.load_state_dict(weights, strict=False)
    return scorer.eval().requires_grad_(False)


def filled_embedder(embedder: nn.Module, case: Case, family: str) -> Any:
    """The embedder with the filled weights of a case, brought to our names by the rules of the checkpoints."""
    rules = [Rule(rule.pattern, rule.target.removeprefix("embedder.")) for rule in TOWER_RULES[family]]
    source = {f"visual_encoder.{name}": value for name, value in filled(case, "visual_encoder.").items()}
    counters = {name for name in embedder.state_dict() if name.endswith("num_batches_tracked")}
    source = {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    targets = {name: shape for name, shape in shapes_of(embedder.state_dict()).items() if name not in counters}
    embedder.load_state_dict(convert(source, targets, rules).tensors, strict=not counters)
    return embedder.eval().requires_grad_(False)


def filled(case: Case, prefix: str) -> dict[str, Tensor]:
    """The weights of a case, filled by their names behind the prefix that its words give."""
    if prefix not in case["weights"]:
        raise ValueError(f"the weights of the case are not below {prefix}: {case['weights']}")
    return {
        name: torch.as_tensor(procedural_weights.fill(prefix + name, shape)) for name, shape in case["state"].items()
    }


def batch_of(pictures: list[Tensor]) -> Images:
    """Pictures [3, h, w] on one canvas, as large as the largest of them."""
    sizes = tuple((picture.shape[-2], picture.shape[-1]) for picture in pictures)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    pixels = torch.zeros(len(pictures), 3, height, width)
    for row, picture in zip(pixels, pictures, strict=True):
        row[:, : picture.shape[-2], : picture.shape[-1]] = picture
    return Images(pixels, sizes, sizes)


def on_grid(masks: Tensor, grid_hw: tuple[int, ...]) -> Tensor:
    """masks [1, Q, h, w] on a picture of that size -> [Q, *grid_hw]."""
    images = batch_of([masks.new_zeros(3, *masks.shape[-2:])])
    view = TowerView("none", 0, 1)
    return view.masks(masks, images, view(images), (grid_hw[0], grid_hw[1]))[0]


def classes_of(counts: list[int]) -> Tensor:
    """[A] class of each phrase."""
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


def bank(seen: Tensor) -> TextBank:
    """A vocabulary of which only the seen classes matter."""
    return TextBank(query=torch.empty(0), region=torch.empty(0), class_of=torch.arange(len(seen)), seen=seen)
