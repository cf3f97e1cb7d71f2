"""How much a client may ask for, and how many may wait."""

from __future__ import annotations

from dataclasses import dataclass

from lexiseg.images import ImageLimits


@dataclass(frozen=True)
class Limits:
    """What one request may be, and how many there may be at a time."""

    max_bytes: int = 32 * 2**20
    """Of the file of a photo."""
    max_pixels: int = 40_000_000
    """Of a photo: height x width."""
    max_phrases: int = 1000
    """Words of one request, synonyms counted."""
    max_word_bytes: int = 256 * 2**10
    """Of the words or the vocabulary file."""
    places: int = 32
    """Requests that are read, wait or are worked on at a time; one more is refused."""
    seconds: float = 60.0
    """From the first line of a request to its answer."""

    @property
    def image(self) -> ImageLimits:
        return ImageLimits(max_pixels=self.max_pixels, max_bytes=self.max_bytes)

    @property
    def max_base64(self) -> int:
        """Letters of the file of a photo as base64."""
        return -(-self.max_bytes // 3) * 4

    @property
    def max_body_bytes(self) -> int:
        """Of a whole request: the photo as base64, the words, and room for what stands around them."""
        return self.max_base64 + self.max_word_bytes + 64 * 2**10
