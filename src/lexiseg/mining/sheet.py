"""A picture of what was mined: some regions of some words, to be looked at before anything is trained on them."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lexiseg.data.pairs import MaskWordPairs, shown_part

SHEET = "sheet.png"
TILE, MARGIN, TITLE = 104, 6, 16
PAPER, INK, QUIET = (250, 250, 250), (20, 20, 20), (110, 110, 110)
BACKGROUND = (224, 224, 230)
"""What is blanked is drawn lighter than it is stored: dark things stand out from it."""


def contact_sheet(pairs: MaskWordPairs, rows: int = 12, columns: int = 8, seed: int = 0) -> Image.Image:
    """A row per word, a column per region, with the similarity below. The same pairs give the same sheet.

    Half of the rows are the most frequent words, the others are drawn from the rest; so are the regions of a word.
    """
    by_word: dict[str, list[int]] = defaultdict(list)
    for number, (_, pair) in enumerate(pairs.entries):
        by_word[pair.word].append(number)
    ranked = sorted(by_word, key=lambda word: (-len(by_word[word]), word))
    rng = random.Random(seed)
    first, rest = ranked[: -(-rows // 2)], ranked[-(-rows // 2) :]
    drawn = set(rng.sample(rest, min(rows - len(first), len(rest))))
    words = first + [word for word in rest if word in drawn]
    name_width, cell = 120, TILE + MARGIN
    size = (name_width + columns * cell + MARGIN, len(words) * (cell + TITLE) + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(14), ImageFont.load_default(11)
    for row, word in enumerate(words):
        top = MARGIN + row * (cell + TITLE)
        draw.text((MARGIN, top + TILE // 2 - 14), word[:16], font=font, fill=INK)
        draw.text((MARGIN, top + TILE // 2 + 4), f"{len(by_word[word])} pairs", font=small, fill=QUIET)
        numbers = by_word[word]
        for column, number in enumerate(rng.sample(numbers, min(columns, len(numbers)))):
            left = name_width + column * cell
            sheet.paste(_tile(pairs[number][0]), (left, top))
            similarity = pairs.entries[number][1].similarity
            draw.text((left + 2, top + TILE + 1), f"{similarity:.2f}", font=small, fill=QUIET)
    return sheet


def save_sheet(folder: str | Path, rows: int = 12, columns: int = 8) -> Path:
    """sheet.png beside the shards."""
    path = Path(folder) / SHEET
    contact_sheet(MaskWordPairs(folder), rows, columns).save(path)
    return path


def _tile(region: np.ndarray) -> Image.Image:
    """region [h, w, 3], blanked -> a square with the region in the middle, as large as it fits."""
    shown = shown_part(region)
    picture = Image.fromarray(np.where(shown[..., None], region, np.array(BACKGROUND, np.uint8)))
    scale = TILE / max(picture.size)
    width, height = (max(1, round(edge * scale)) for edge in picture.size)
    tile = Image.new("RGB", (TILE, TILE), BACKGROUND)
    tile.paste(picture.resize((width, height), Image.Resampling.LANCZOS), ((TILE - width) // 2, (TILE - height) // 2))
    return tile
