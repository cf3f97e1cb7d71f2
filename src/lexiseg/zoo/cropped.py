"""The CLIP of a model, shown masks as crops with the rest blanked: where OVSeg's data engine and training begin."""

from __future__ import annotations

import math
from dataclasses import replace

from lexiseg.clip.convnet import MaskPromptedConvNet, TimmTrunk
from lexiseg.clip.projection import Projection
from lexiseg.regions.crops import MaskedCrops
from lexiseg.regions.grown import GrownUntilSeen
from lexiseg.regions.mask_pool import MaskPool
from lexiseg.scoring.cosine import Cosine
from lexiseg.system import System
from lexiseg.zoo.model_folder import Model

USUAL_SIDE = 224
"""Of the crops of a ConvNet where nobody says another one."""


def crop_reader(model: Model, crop_side: int | None = None) -> MaskedCrops:
    """The CLIP of `model` on masked crops. Weights are shared, not copied.

    A model that reads crops keeps its own reader. Of one that pools the map of a ConvNet it is the whole tower, as CLIP
    itself would look at a crop of crop_side pixels. Others are refused.
    """
    embedder, encoder = model.system.embedder, model.system.encoder
    if isinstance(embedder, GrownUntilSeen):
        embedder = embedder.embedder
    if isinstance(embedder, MaskedCrops):
        if crop_side not in (None, embedder.tower.image_size):
            raise ValueError(f"{model.name} reads crops of {embedder.tower.image_size} pixels, not of {crop_side}")
        return embedder
    head = embedder.projection if isinstance(embedder, MaskPool) else None
    if isinstance(encoder, TimmTrunk) and isinstance(head, Projection):
        tower = MaskPromptedConvNet(encoder.trunk, head, image_size=crop_side or USUAL_SIDE)
        return MaskedCrops(tower).eval()
    raise ValueError(
        f"{model.name}: crops are read by a CLIP that is there as a whole: OVSeg's, or a ConvNet with mask pooling"
    )


def with_crops(model: Model, crop_side: int | None = None) -> Model:
    """The model with its masks read from crops; the generator and the words stay as they are."""
    system, reader = model.system, crop_reader(model, crop_side)
    cosine = Cosine(math.log(100), stored=False)
    return replace(model, system=System(system.encoder, system.generator, reader, cosine, system.fuse).eval())
