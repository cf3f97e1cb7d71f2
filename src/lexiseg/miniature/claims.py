"""What the papers promise, as differences that the miniature benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A promise: of two entrants the first is better at a question."""

    text: str
    source: str
    better: str
    worse: str
    question: str
    group: str = "all"


CLAIMS = (
    Claim("frozen CLIP is blind to the mask; tuned for masks it is not", "MAFT", "maft", "maft-frozen", "Z3-masks"),
    Claim("masked crops hurt CLIP", "OVSeg", "fcclip", "ovseg-frozen", "Z3-masks"),
    Claim("mask prompts mend it, CLIP itself untouched", "OVSeg", "ovseg-prompts", "ovseg-frozen", "Z3-masks"),
    Claim("tuning on mined pairs mends it further", "OVSeg", "ovseg", "ovseg-prompts", "Z3-masks"),
    Claim("accurate masks do not give accurate pooling", "Mask-Adapter", "mask-adapter", "fcclip", "Z3-masks"),
    Claim("true masks tune better than generated ones", "MaskCLIP++", "maskclip-pp", "maftplus", "Z3-masks"),
    Claim("alignment keeps the unseen", "MaskCLIP++", "maskclip-pp", "maskclip-pp-unaligned", "Z2-masks", "unseen"),
    Claim("text that sees the image helps", "MAFT+", "maftplus", "maftplus-plain-text", "Z2-masks"),
)
