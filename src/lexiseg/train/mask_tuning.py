"""What MaskCLIP++ trains: which layers of a classifier learn, how fast, and from which words and masks.

High-Quality Mask Tuning Matters for Open-Vocabulary Segmentation (arXiv 2412.11464). Only true masks are seen: there is
no generator, no assignment and no loss of masks.

B photos of a batch, Q masks of the photo with most of them, N masks of the batch, K classes, T templates.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lexiseg.clip.text import TextEncoder
from lexiseg.layers.mask_pooling import is_seen
from lexiseg.regions.mask_tokens import MaskTokens
from lexiseg.regions.masked_attention import SoftAttentionPool
from lexiseg.regions.soft_mask_pool import SoftMaskPool
from lexiseg.scoring.pseudo_text import PseudoText
from lexiseg.scoring.template_mix import TemplateMean, TemplateMix
from lexiseg.text_bank import unit_rows
from lexiseg.train.mask_classification import mask_classification_loss
from lexiseg.train.matcher import SegmentTargets
from lexiseg.train.recipes.fcclip import parameter_groups as decayed_groups
from lexiseg.types import Images, Regions, TextBank
from lexiseg.vocabulary import Vocabulary, make_prompts

WEIGHT_DECAY = 0.05
CERTAIN = 120.0
"""Logit whose sigmoid is 1 in float32, and 0 with the other sign: true masks are exactly 0 or 1."""

Embedder = SoftMaskPool | SoftAttentionPool | MaskTokens
Scorer = PseudoText | TemplateMix | TemplateMean

TextLayers = Literal["blocks", "attention"]
"""Of a words' tower that learns: "blocks" as released, whose rule freezes neither the norms nor the MLPs of the blocks;
"attention" leaves only the projection of queries, keys and values, and the positions, as was meant."""

Batches = Literal["alone", "official"]
"""How a transformer sees the photos of a batch: every one as if it were alone, or with the two slips of the released
code, see `look_with_slips`."""

BatchNorm = Literal["fixed", "batch"]
"""Statistics of batch norms: as they were before, or those of the batch, which move the former: CLIP's ResNets were
tuned so."""


@dataclass(frozen=True)
class Tuned:
    """A classifier of which some layers learn."""

    embedder: Embedder
    scorer: Scorer
    text: TextEncoder | None
    """The words' tower where it learns too."""

    @property
    def modules(self) -> nn.ModuleDict:
        """For a checkpoint."""
        parts: dict[str, nn.Module] = {"embedder": self.embedder, "scorer": self.scorer}
        return nn.ModuleDict(parts if self.text is None else {**parts, "text": self.text})


def tuned_parts(
    embedder: nn.Module,
    scorer: nn.Module,
    text: TextEncoder | None = None,
    *,
    text_layers: TextLayers = "blocks",
    batch_norm: BatchNorm = "fixed",
) -> Tuned:
    """Makes trainable what the paper trains, and freezes all else.

    Convolutional towers learn as a whole, head included, with dropped paths where they have any. Of a transformer the
    projections of queries and values learn (EVA-01: also of keys, in one matrix), not their biases, the positions and
    the scales of the masks. The similarity modelling learns with dropout. text: None leaves the words as they are.
    """
    if not isinstance(embedder, Embedder) or not isinstance(scorer, Scorer):
        raise TypeError("this recipe trains the classifiers of MaskCLIP++")
    for part in (embedder, scorer, text):
        if part is not None:
            part.requires_grad_(False).eval()
    for parameter in (*_image_parameters(embedder), *_scorer_parameters(scorer), *_text_parameters(text, text_layers)):
        parameter.requires_grad_(True)
    embedder.trunk.frozen = isinstance(embedder, MaskTokens)
    embedder.train()
    scorer.train()
    if batch_norm == "fixed":
        for layer in embedder.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
    return Tuned(embedder, scorer, text)


def _image_parameters(embedder: Embedder) -> Iterator[nn.Parameter]:
    if not isinstance(embedder, MaskTokens):
        yield from embedder.parameters()
        return
    yield embedder.mask_logit_scale
    yield embedder.trunk.trunk.pos_embed
    for block in embedder.trunk.trunk.blocks:
        attention = block.attn
        maps = (attention.q_proj, attention.v_proj) if attention.qkv is None else (attention.qkv,)
        yield from (layer.weight for layer in maps)


def _scorer_parameters(scorer: Scorer) -> Iterator[nn.Parameter]:
    """All but CLIP's temperature."""
    yield from (parameter for name, parameter in scorer.named_parameters() if not name.endswith("logit_scale"))


def _text_parameters(text: TextEncoder | None, layers: TextLayers) -> Iterator[nn.Parameter]:
    if text is None:
        return
    yield text.positional_embedding
    blocks: Any = text.transformer.resblocks
    for block in blocks:
        yield block.attn.in_proj_weight
        if layers == "blocks":
            for part in (block.ln_1, block.ln_2, block.mlp):
                yield from part.parameters()


def parameter_groups(tuned: Tuned, learning_rate: float, tower_scale: float, text_scale: float) -> list[dict[str, Any]]:
    """One optimiser group per trainable parameter.

    tower_scale, text_scale: of the learning rate, for the image tower and the words' tower. The similarity modelling
    and the scales of the masks learn at the full rate. Norms, embedding tables and learned positions do not decay;
    biases do.
    """
    at_once = {id(p) for name, p in tuned.embedder.named_parameters() if name.endswith("mask_logit_scale")}
    positions = {
        id(p)
        for part in (tuned.embedder, *([] if tuned.text is None else [tuned.text]))
        for name, p in part.named_parameters()
        if name.endswith(("pos_embed", "positional_embedding", "cls_token"))
    }
    groups = []
    for part, scale in ((tuned.embedder, tower_scale), (tuned.scorer, 1.0), (tuned.text, text_scale)):
        for group in [] if part is None else decayed_groups(part, learning_rate, WEIGHT_DECAY):
            (parameter,) = group["params"]
            own = 1.0 if id(parameter) in at_once else scale
            decay = 0.0 if id(parameter) in positions else group["weight_decay"]
            groups.append({**group, "lr": own * learning_rate, "weight_decay": decay, "lr_scale": own})
    return groups


# ------------------------------------------------------------------------------------------------------------- words


@dataclass(frozen=True)
class TrainingWords:
    """The classes of a label set, and how training reads them: one name of each, drawn anew at every step."""

    vocabulary: Vocabulary
    templates: tuple[str, ...]
    rows: Tensor | None
    """[A, T, D] unit rows of all names, where the words' tower does not learn."""

    def draw(self, rng: random.Random, tuned: Tuned) -> TextBank:
        """Rows [K, T, D]; with gradient where the words' tower learns."""
        names: list[list[int]] = [[] for _ in self.vocabulary.classes]
        for index, owner in enumerate(self.vocabulary.class_of):
            names[owner].append(index)
        drawn = [rng.choice(own) for own in names]
        if tuned.text is None:
            assert self.rows is not None  # whoever makes them encodes them
            rows = self.rows[drawn]
        else:
            phrases = self.vocabulary.phrases
            rows = encoded(tuned.text, make_prompts([phrases[index] for index in drawn], self.templates))
            rows = unit_rows(rows, len(self.templates), mix_templates=False)
        count = len(drawn)
        device = rows.device
        return TextBank(
            query=rows,
            region=rows,
            class_of=torch.arange(count, device=device),
            seen=torch.ones(count, dtype=torch.bool, device=device),
        )


def encoded(encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
    """N prompts -> [N, D], with gradient, in one batch that is cut to its longest prompt."""
    tokens = encoder.tokenize(prompts).to(encoder.text_projection.device)
    return encoder(tokens[:, : int(tokens.argmax(dim=-1).max()) + 1])


# ------------------------------------------------------------------------------------------------------------- masks


@contextmanager
def seeing_crops(tuned: Tuned) -> Iterator[None]:
    """For the time of a training the tower looks at crops as they are, not at its own size of pictures."""
    view = tuned.embedder.view
    tuned.embedder.view = replace(view, rule="none", size=0)
    try:
        yield
    finally:
        tuned.embedder.view = view


def loss_of_masks(
    tuned: Tuned,
    images: Images,
    targets: Sequence[SegmentTargets],
    text: TextBank,
    *,
    balanced: bool = True,
    batches: Batches = "alone",
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the share of its masks that were called by their names; no masks give zero.

    Masks that cover no cell of the tower's map count in nothing, except with mask pooling: there they are the mean of
    nothing and count like others, as in the released training.
    """
    counts = [len(target.labels) for target in targets]
    masks = torch.zeros(len(targets), max(1, *counts), *images.canvas_hw, dtype=torch.bool, device=images.pixels.device)
    for row, target in zip(masks, targets, strict=True):
        height, width = target.masks.shape[-2:]
        row[: len(target.masks), :height, :width] = target.masks
    mask_logits = torch.where(masks, CERTAIN, -CERTAIN)
    if batches == "official" and isinstance(tuned.embedder, MaskTokens):
        regions = look_with_slips(tuned.embedder, images, mask_logits, counts)
    else:
        regions = tuned.embedder(images, None, mask_logits)
    logits = tuned.scorer(regions, text)  # [B, Q, K]
    kept = torch.arange(masks.shape[1], device=masks.device) < torch.tensor(counts, device=masks.device)[:, None]
    if not isinstance(tuned.embedder, SoftMaskPool):
        kept = kept & regions.valid
    labels = torch.zeros(masks.shape[:2], dtype=torch.int64, device=masks.device)
    for row, target in zip(labels, targets, strict=True):
        row[: len(target.labels)] = target.labels
    chosen = logits[kept].float()  # [N, K]
    loss = mask_classification_loss(chosen, labels[kept], kept.nonzero()[:, 0], balanced=balanced)
    right = (chosen.detach().argmax(dim=-1) == labels[kept]).float()
    return loss, right.mean() if len(right) else right.sum()


def look_with_slips(embedder: MaskTokens, images: Images, mask_logits: Tensor, counts: Sequence[int]) -> Regions:
    """What `MaskTokens` gives for a batch in the released training code, with its two slips.

    The mask tokens of photo b begin as token b of the first photo: its class token for the first photo, a patch of it
    for the others. And a photo with fewer masks than the fullest has so many empty tokens behind its patches, while
    rotations are counted from the end: in the blocks with mask tokens its first patches are not turned, and the others
    are turned as if they stood so many places earlier. counts: masks of each photo. The rows of photos with fewer masks
    are filled up; what is in those rows means nothing. Neither slip does anything to a single photo.
    """
    view = embedder.view(images)
    grid_hw = embedder.grid_of(view)
    masks = embedder.view.masks(mask_logits.detach().sigmoid(), images, view, grid_hw)
    trunk, last = embedder.trunk, embedder.trunk.depth - 1
    tokens, _ = trunk.enter(view)
    waves = trunk.waves(grid_hw)
    for index in range(embedder.first_block):
        tokens = trunk.block(index, tokens, waves)
    if waves is not None:
        waves = tuple(_late(wave, counts, still) for wave, still in zip(waves, (1.0, 0.0), strict=True))
    mask_tokens = tokens[0, : len(tokens)][:, None].expand(-1, masks.shape[1], -1)
    for index in range(embedder.first_block, last + 1):
        query, key, value = trunk.attention(index, tokens, waves)
        own = trunk.query(index, mask_tokens)
        bias = embedder.bias(masks, last - index)
        mask_tokens = trunk.attend(index, mask_tokens, own, key[:, :, 1:], value[:, :, 1:], bias)
        if index < last:
            tokens = trunk.attend(index, tokens, query, key, value)
    return Regions(embeds=trunk.leave(mask_tokens), valid=is_seen(masks))


def _late(wave: Tensor, counts: Sequence[int], still: float) -> Tensor:
    """wave [h w, d] -> [B, 1, h w, d]: of each photo so many places late, `still` before."""
    rows = []
    for count in counts:
        late = min(max(counts) - count, len(wave))
        rows.append(torch.cat((torch.full_like(wave[:late], still), wave[: len(wave) - late])))
    return torch.stack(rows)[:, None]
