"""Golden cases of FC-CLIP's contact with CLIP: words, and the heads that bring pooled maps into the joint space.

A case is recognised by its inputs and the names of its weights; sizes come from their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from parity_fcclip_pieces import filled, loaded, number

from lexiseg.clip.projection import Projection
from lexiseg.clip.text import tokenize
from lexiseg.regions.attention_pool import AttentionPool, MaskedAttention2d
from lexiseg.text_bank import unit_rows
from lexiseg.types import Features, Images
from lexiseg.vocabulary import TEMPLATES, Vocabulary, VocabularyClass, make_prompts, split_comma_format

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    inputs, weights = set(case["inputs"]), set(case.get("weight_names", ()))
    if {"train_classes", "test_classes"} <= set(case) and "raw_features" in inputs:
        return words(case, arrays)
    if "pooled" in inputs and "trunk.head.norm.weight" in weights:
        return convnext_head(case, arrays)
    if {"features", "mask_logits"} <= inputs and {"positional_embedding", "c_proj.weight"} <= weights:
        return attention_pool(case, arrays)
    return None


def words(case: Case, arrays: Arrays) -> Values:
    """Spec 2.2: phrases, prompts, tokens, rows and the seen mask."""
    vocabulary, training = (
        # Not through the reader of files, which refuses what the rule itself leaves possible: empty and endless names.
        Vocabulary(tuple(VocabularyClass(split_comma_format(line)) for line in case[part]))
        for part in ("test_classes", "train_classes")
    )
    templates = TEMPLATES["fcclip14"]
    prompts = make_prompts(vocabulary.phrases, templates)
    raw = torch.from_numpy(arrays["raw_features"])
    return {
        "num_templates": [len(entry.phrases) for entry in vocabulary.classes],
        "category_overlapping_mask": [int(seen) for seen in vocabulary.seen(training.phrases)],
        "prompts": prompts,
        "tokens": tokenize(prompts, case["arrays"]["tokens"]["shape"][-1]).int().numpy(),
        "classifier": unit_rows(raw, len(templates))[:, 0].numpy(),
    }


def convnext_head(case: Case, arrays: Arrays) -> Values:
    """Spec 2.3, the CLIP head on pooled vectors, with a linear projection or an MLP."""
    weights = {name.removeprefix("trunk.head."): value for name, value in filled(case).items()}
    last = next(name for name in ("head.proj", "head.mlp.fc2") if f"{name}.weight" in weights)
    projection = Projection(
        channels=len(weights["norm.weight"]),
        embed_dim=len(weights[f"{last}.weight"]),
        norm_eps=1e-6,
        hidden=len(weights["head.mlp.fc1.bias"]) if "head.mlp.fc1.bias" in weights else None,
        bias=f"{last}.bias" in weights,
    )
    return {"embedding": loaded(projection, weights)(torch.from_numpy(arrays["pooled"])).numpy()}


def attention_pool(case: Case, arrays: Arrays) -> Values:
    """Spec 2.3b, masked attention pooling."""
    weights = filled(case)
    positions, channels = weights["positional_embedding"].shape
    heads = number({"run": f"{case['weights']} {case['run']}"}, r"(\d+) heads", max(1, channels // 64))
    pool = MaskedAttention2d(
        channels, heads, out_dim=len(weights["c_proj.bias"]), grid_size=round((positions - 1) ** 0.5)
    )
    features = torch.from_numpy(arrays["features"])
    size_hw = tuple(32 * side for side in features.shape[-2:])
    sizes = (size_hw,) * len(features)
    images = Images(torch.zeros(len(features), 3, *size_hw), sizes, sizes)
    embedder = AttentionPool(loaded(pool, weights))
    regions = embedder(images, Features(maps=(), dense=features), torch.from_numpy(arrays["mask_logits"]))
    return {"embedding": regions.embeds.numpy()}
