"""The official Mask-Adapter checkpoint layout, and the joining of the files of its two training stages.

Source of the names: the published checkpoints of hustvl/MaskAdapter at commit ad11a5c (names and shapes only). A whole
FC-CLIP or MAFT+ checkpoint with `mask_adapter.*` beside it. What the first stage leaves has no mask generator: it is
joined with the checkpoint of the model the adapter was made for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lexiseg.weights import fcclip, maftplus
from lexiseg.weights.rules import ConversionError, Rule

ADAPTER = "mask_adapter."
GENERATOR = ("sem_seg_head.", "void_embedding.")
"""What a file of the first stage lacks, or holds in a state that nothing else was trained with."""

SYSTEM_RULES = (Rule(ADAPTER + "{*}", "embedder.adapter.{*}"), *maftplus.SYSTEM_RULES)
IGNORED = maftplus.IGNORED


@dataclass(frozen=True)
class AdapterSizes:
    """What the shapes say about the adapter, beside what `fcclip.describe` says about the rest."""

    joint_width: int
    width: int
    mask_width: int
    num_maps: int


def is_on_fcclip(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of FC-CLIP with an adapter."""
    return fcclip.is_official(source) and _has(source, ADAPTER) and not _has(source, maftplus.TRANSFER)


def is_on_maftplus(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of MAFT+ with an adapter."""
    return maftplus.is_official(source) and _has(source, ADAPTER)


def is_first_stage(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of an adapter after its warm-up: a CLIP, but no mask generator."""
    return _has(source, ADAPTER) and _has(source, fcclip.CLIP) and not _has(source, GENERATOR[0])


def describe_adapter(source: Mapping[str, Tensor]) -> AdapterSizes:
    """Raises `ConversionError` where a tensor it needs is absent."""
    needed = {name: ADAPTER + name for name in ("fuse.weight", "mask_downscaling.6.weight", "final.weight")}
    missing = [name for name in needed.values() if name not in source]
    if missing:
        raise ConversionError(f"{', '.join(missing)} missing, so the size of the adapter cannot be told")
    fuse, stem, final = (source[name].shape for name in needed.values())
    return AdapterSizes(joint_width=fuse[1], width=fuse[0], mask_width=stem[1], num_maps=final[0])


def join_stages(first_stage: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint the second stage starts from: adapter and CLIP of its first stage, generator and void of `base`.

    The void embedding of the first stage is dropped: it was trained without a generator. Both files must come from
    the same CLIP, which neither training has moved; everything they share is compared.
    """
    if not is_first_stage(first_stage):
        raise ConversionError("not an adapter after its first stage: mask_adapter.* and a CLIP, no sem_seg_head.*")
    if not fcclip.is_official(base) or _has(base, ADAPTER):
        raise ConversionError("the second file is no FC-CLIP or MAFT+ checkpoint")
    kept = {name: tensor for name, tensor in first_stage.items() if not name.startswith(GENERATOR)}
    differing = [name for name in kept if name in base and not _same(kept[name], base[name])]
    lacking = [name for name in kept if name not in base and not name.startswith(ADAPTER)]
    if differing or lacking:
        shown = ", ".join((differing + lacking)[:5])
        raise ConversionError(
            f"{len(differing)} tensors differ and {len(lacking)} are missing in the second file ({shown}): "
            "this adapter was made for another model"
        )
    return kept | {name: tensor for name, tensor in base.items() if name.startswith(GENERATOR)}


def _has(source: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in source)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_meta or b.is_meta:  # names and shapes alone: there is nothing more to compare
        return a.shape == b.shape
    return torch.equal(a, b)
