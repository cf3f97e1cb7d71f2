"""Golden optimiser groups and learning rates of MaskCLIP++.

A case lists, per configuration, the trained tensors of the official model by rate and decay. The model is the one of
the smallest manifest that has all of them; whether the words are tuned is told by the names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lexiseg.clip.open_clip import build_text_encoder
from lexiseg.train.mask_tuning import Tuned, parameter_groups, tuned_parts
from lexiseg.train.recipes.maskclip_pp import LEARNING_RATE, TEXT_SCALE, TOTAL_STEPS, cosine_schedule, habits_of
from lexiseg.weights import maskclip_pp as layout
from lexiseg.weights.fcclip import FRESH
from lexiseg.weights.rules import convert, shapes_of
from lexiseg.zoo.assembly import SHORT_EDGES
from lexiseg.zoo.maskclip_pp import mask_classifier

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of the case, or None if it asks for something else."""
    if "configs" not in case or "rates" not in case:
        return None
    rates = [LEARNING_RATE * cosine_schedule(step, TOTAL_STEPS) for step in case["rates"]["steps"]]
    groups = {name: groups_of(listed, folder) for name, listed in case["configs"].items()}
    return {"configs": groups, "rates": {"values": rates}}


def groups_of(listed: Mapping[str, list[str]], folder: Path) -> dict[str, list[str]]:
    """Official names by "lr=... wd=...", each list sorted."""
    wanted = {name for names in listed.values() for name in names}
    manifests = [json.loads(path.read_text())["tensors"] for path in folder.glob("manifest-*.json")]
    tensors = min((one for one in manifests if wanted <= one.keys()), key=len)
    source = {name: torch.empty(entry["shape"], device="meta") for name, entry in tensors.items()}
    tuned, official = official_parts(source, words=any(name.startswith(layout.WORDS) for name in wanted))
    names = {id(parameter): name for name, parameter in tuned.modules.named_parameters()}
    usual = habits_of(layout.describe(source).tower, 0)
    found: dict[str, list[str]] = {}
    for group in parameter_groups(tuned, usual.learning_rate, usual.tower_scale, TEXT_SCALE):
        key = f"lr={group['lr']:g} wd={group['weight_decay']:g}"
        found.setdefault(key, []).append(official[names[id(group["params"][0])]])
    return {key: sorted(own) for key, own in found.items()}


def official_parts(source: Mapping[str, torch.Tensor], words: bool) -> tuple[Tuned, dict[str, str]]:
    """The classifier of a file, ready for training, and the official name of each of its tensors."""
    found = layout.describe(source)
    sizes = {"num_templates": found.num_templates, "mix_width": found.mix_width, "mask_blocks": found.mask_blocks}
    told = {name: value for name, value in sizes.items() if value is not None}
    embedder, scorer = mask_classifier(found.tower, SHORT_EDGES[found.tower], **told)
    tuned = tuned_parts(embedder, scorer, build_text_encoder(found.tower) if words else None)
    targets = shapes_of(tuned.modules.state_dict())
    if not words:
        targets.pop("scorer.logit_scale", None)  # of the words' own file
    account = convert(source, targets, layout.rules_for(found), layout.IGNORED, FRESH)
    return tuned, {target: name for name, target in account.used.items()}
