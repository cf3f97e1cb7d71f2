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
    Claim("text that sees the image helps", "MAFT+", "maftplus", "maftplus-plain-text", "Z2-masks"),
    Claim(
        "accurate masks do not give accurate pooling: semantic activation maps name true masks better",
        "Mask-Adapter",
        "mask-adapter",
        "fcclip",
        "Z3-masks",
    ),
)
