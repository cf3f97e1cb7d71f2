"""The official MaskCLIP++ checkpoint layout: a classifier of masks, with or without the words' tower.

Source of the names: the published checkpoints of HVision-NKU/MaskCLIPpp at commit 8bf4718 (names and shapes only). A
file holds what was trained: the image tower, the similarity modelling, and in one model the words' tower. The mask
generator, and the words' tower where it was not trained, come from other files: FC-CLIP's, MAFT+'s or Mask2Former's,
and those of the CLIP the classifier began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lexiseg.weights import fcclip, maftplus
from lexiseg.weights.fcclip import CLIP, TOWERS, text_rules
from lexiseg.weights.mask2former import DECODER, PIXEL_DECODER
from lexiseg.weights.rules import ConversionError, Ignored, Rule, count_names, shape_of

VISUAL = "visual_encoder.proxy."
SIMILARITY = "psm."
WORDS = "text_encoder.proxy."
CLIP_SCALE = "text_encoder.logit_scale"

TRUNK = "embedder.trunk.trunk."


def _eva02_rules(source: str, target: str) -> tuple[Rule, ...]:
    """EVA-CLIP's own names of an EVA-02 tower -> timm's."""
    block = "blocks.{}."
    renamed = {
        "attn.q_bias": "attn.q_proj.bias",
        "attn.v_bias": "attn.v_proj.bias",
        "attn.inner_attn_ln.{*}": "attn.norm.{*}",
        "mlp.w1.{*}": "mlp.fc1_g.{*}",
        "mlp.w2.{*}": "mlp.fc1_x.{*}",
        "mlp.ffn_ln.{*}": "mlp.norm.{*}",
        "mlp.w3.{*}": "mlp.fc2.{*}",
    }
    inside = (Rule(source + block + own, target + block + timm) for own, timm in renamed.items())
    return (*inside, Rule(source + "{*}", target + "{*}"))


TOWER_RULES: dict[str, tuple[Rule, ...]] = {
    "convnext": (
        Rule(VISUAL + "trunk.head.norm.{*}", "embedder.projection.norm.{*}"),
        Rule(VISUAL + "head.{*}", "embedder.projection.head.{*}"),
        Rule(VISUAL + "trunk.{*}", TRUNK + "{*}"),
    ),
    "resnet": (
        Rule("visual_encoder.mask_logit_scale", "embedder.pool.mask_logit_scale"),
        Rule(VISUAL + "attnpool.{*}", "embedder.pool.{*}"),
        Rule(VISUAL + "{*}", TRUNK + "{*}"),
    ),
    "eva02": (
        Rule("visual_encoder.mask_logit_scale", "embedder.mask_logit_scale"),
        *_eva02_rules(VISUAL, TRUNK),
    ),
    # timm has kept the names of the first EVA.
    "eva01": (
        Rule("visual_encoder.mask_logit_scale", "embedder.mask_logit_scale"),
        Rule(VISUAL + "{*}", TRUNK + "{*}"),
    ),
}
"""Family of the tower -> where its tensors go."""

SIMILARITY_RULES = (
    Rule(SIMILARITY + "corr_proj_in.0.{*}", "scorer.mix_in.{*}"),
    Rule(SIMILARITY + "corr_proj_out.0.{*}", "scorer.mix_out.{*}"),
    Rule(SIMILARITY + "img_proj.{*}", "scorer.picture_proj.{*}"),
    Rule(SIMILARITY + "img2text.{*}", "scorer.attention.{*}"),
    Rule(SIMILARITY + "ln_1.{*}", "scorer.norm.{*}"),
)

TEXT_RULES = (
    Rule(WORDS + "{*}", "text.{*}"),
    Rule(CLIP_SCALE, "scorer.logit_scale"),
)

GENERATOR_RULES = (
    Rule(CLIP + "visual.trunk.{*}", "generator.backbone.trunk.{*}"),
    Rule(CLIP + "visual.{*}", "generator.backbone.trunk.{*}"),
    *(Rule(rule.pattern, "query_text." + rule.target) for rule in text_rules(CLIP)),
    Rule(PIXEL_DECODER + "{*}", "generator.head.pixel_decoder.{*}"),
    Rule(DECODER + "_mask_pooling_proj.{}.{*}", "generator.head.decoder.mask_pooling_proj.{}.{*}"),
    Rule(DECODER + "{*}", "generator.head.decoder.{*}"),
    Rule("void_embedding.weight", "generator.head.void_embedding.weight"),
)
"""Where the tensors of FC-CLIP or MAFT+ go when only masks are wanted of them."""

_REPLACED = "names its masks, which the classifier does here"
GENERATOR_IGNORED = (
    Ignored(CLIP + "visual.trunk.head.{*}", _REPLACED),
    Ignored(CLIP + "visual.head.{*}", _REPLACED),
    Ignored(CLIP + "visual.attnpool.{*}", _REPLACED),
    Ignored(CLIP + "logit_scale", _REPLACED),
    Ignored(maftplus.TRANSFER + "{*}", _REPLACED),
    *maftplus.IGNORED,
)

IGNORED = (
    Ignored(VISUAL + "rope.{*}", "rotary positions are computed for every size of picture"),
    Ignored(VISUAL + "blocks.{}.attn.rope.{*}", "rotary positions are computed for every size of picture"),
)

EVA_TOWERS: dict[tuple[str, int, int, int], str] = {
    ("eva02", 12, 768, 512): "EVA02-B-16",
    ("eva02", 24, 1024, 768): "EVA02-L-14-336",
    ("eva01", 40, 1408, 1024): "EVA01-g-14-plus",
}
"""(family, depth, width, joint width) -> open_clip name."""


@dataclass(frozen=True)
class Classifier:
    """What the shapes of a checkpoint say about the classifier in it."""

    family: str
    """A key of TOWER_RULES."""
    tower: str | None
    """The open_clip name of the tower; None where no published tower has these shapes."""
    num_templates: int | None
    """How many templates the similarity modelling weighs; None for the form that looks at the picture instead."""
    mix_width: int | None
    mask_blocks: int | None
    """Blocks with mask tokens, for the transformers."""
    has_words: bool
    """The words' tower was trained and is in the file."""


def is_official(source: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a MaskCLIP++ classifier."""
    return all(any(name.startswith(part) for name in source) for part in (VISUAL, SIMILARITY))


def describe(source: Mapping[str, Tensor]) -> Classifier:
    """Reads the classifier off names and shapes; raises `ConversionError` where a tensor it needs is absent."""
    family, tower = _tower(source)
    mix = SIMILARITY + "corr_proj_in.0.weight"
    mix_width, num_templates = shape_of(source, mix, 2) if mix in source else (None, None)
    blocks = shape_of(source, "visual_encoder.mask_logit_scale", 2)[0] if family.startswith("eva") else None
    return Classifier(
        family=family,
        tower=tower,
        num_templates=num_templates,
        mix_width=mix_width,
        mask_blocks=blocks,
        has_words=any(name.startswith(WORDS) for name in source),
    )


def rules_for(found: Classifier) -> tuple[Rule, ...]:
    """Where the tensors of a file go: embedder, scorer and, below "text.", the words' tower."""
    return (*TOWER_RULES[found.family], *SIMILARITY_RULES, *TEXT_RULES)


def clip_prefix(source: Mapping[str, Tensor]) -> str | None:
    """What stands before the names of the words' tower in a file with a CLIP; None where there is none.

    As in open_clip's own files, in its later form and EVA-CLIP's, or in FC-CLIP's.
    """
    return next((prefix for prefix in ("", "text.", CLIP) if prefix + "token_embedding.weight" in source), None)


def clip_family(source: Mapping[str, Tensor]) -> str | None:
    """The family of the image tower in a file with a CLIP, a key of TOWER_RULES; None where there is none of them."""
    visual = CLIP + "visual." if any(name.startswith(CLIP) for name in source) else "visual."
    signs = {
        "convnext": ("trunk.stem.0.weight",),
        "resnet": ("conv1.weight", "layer1.0.conv1.weight"),
        "eva02": ("blocks.0.mlp.w1.weight", "trunk.blocks.0.mlp.fc1_g.weight"),
        "eva01": ("blocks.0.mlp.fc1.weight", "trunk.blocks.0.mlp.fc1.weight"),
    }
    return next((family for family, names in signs.items() if any(visual + name in source for name in names)), None)


def words_rules(prefix: str) -> tuple[Rule, ...]:
    """Where the words' tower of a CLIP goes that a classifier began with, and its scale."""
    scale = CLIP if prefix == CLIP else ""
    return (
        *(Rule(rule.pattern, "text." + rule.target) for rule in text_rules(prefix)),
        Rule(scale + "logit_scale", "scorer.logit_scale"),
    )


def words_ignored(prefix: str, with_scale: bool) -> tuple[Ignored, ...]:
    """The rest of a file with a CLIP, when only the words' tower is wanted. with_scale: its temperature is used too."""
    scale = CLIP if prefix == CLIP else ""
    image = Ignored(scale + "visual.{*}", "the image tower before its tuning")
    rest = ("sem_seg_head.{*}", "void_embedding.weight", "criterion.{*}") if prefix == CLIP else ()
    return (
        image,
        *(Ignored(name, "the mask generator of the file") for name in rest),
        Ignored(scale + "attn_mask", "the causal mask is computed"),
        *(() if with_scale else (Ignored(scale + "logit_scale", "this classifier has no temperature"),)),
    )


def with_clip(generator: Mapping[str, Tensor], clip: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A generator without its frozen CLIP, and that CLIP as open_clip publishes it -> an FC-CLIP checkpoint."""
    if fcclip.is_official(generator) or clip_prefix(clip) != "":
        raise ConversionError("needed are a generator without a CLIP, and a CLIP under open_clip's own names")
    return {**generator, **{CLIP + name: tensor for name, tensor in clip.items()}}


def _tower(source: Mapping[str, Tensor]) -> tuple[str, str | None]:
    """Family and open_clip name of the image tower."""
    if VISUAL + "trunk.stem.0.weight" in source:
        block, widest = "trunk.stages.{}.blocks.{}.mlp.fc2.weight", "trunk.stages.{}.blocks.0.mlp.fc2.weight"
        last = ("head.proj.weight", "head.mlp.fc2.weight")
        return "convnext", _convolutional(source, "convnext", range(4), block, widest, last)
    if VISUAL + "conv1.weight" in source:
        names = ("layer{}.{}.conv3.weight", "layer{}.0.conv3.weight", ("attnpool.c_proj.weight",))
        return "resnet", _convolutional(source, "resnet", range(1, 5), *names)
    family = "eva02" if VISUAL + "blocks.0.mlp.w1.weight" in source else "eva01"
    depth = count_names(source, VISUAL + "blocks.{}.norm1.weight")
    embed_dim, width = shape_of(source, VISUAL + "head.weight", 2)
    return family, EVA_TOWERS.get((family, depth, width, embed_dim))


def _convolutional(
    source: Mapping[str, Tensor], family: str, stages: Iterable[int], block: str, widest: str, last: Iterable[str]
) -> str | None:
    stages = list(stages)
    depths = tuple(count_names(source, VISUAL + block.replace("{}", str(stage), 1)) for stage in stages)
    widths = tuple(shape_of(source, VISUAL + widest.replace("{}", str(stage)))[0] for stage in stages)
    head = next((VISUAL + name for name in last if VISUAL + name in source), None)
    if head is None:
        raise ConversionError(f"{VISUAL}{' or '.join(last)} is missing, so the tower cannot be told")
    return TOWERS.get((family, depths, widths, shape_of(source, head, 2)[0]))
