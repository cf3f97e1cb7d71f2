"""Masks as run lengths: COCO's, columns first, which all records here have."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as rle_tools

from lexiseg.types import Size


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """bool [H, W] -> COCO's compressed run lengths, ready for JSON: {"size": [H, W], "counts": text}."""
    encoded = rle_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_rle(counts: object, size_hw: Size) -> np.ndarray:
    """COCO's run lengths, compressed (text) or not (a list) -> bool [H, W].

    Ours and not pycocotools': that one leaves what too short run lengths do not reach as it lay in memory.
    """
    if isinstance(counts, str) and counts.isascii():
        runs = _decompress(np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48)
    elif isinstance(counts, list) and all(type(run) is int and abs(run) < 2**31 for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise ValueError("its counts are neither text nor a list of whole numbers")
    height, width = size_hw
    if len(runs) == 0 or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise ValueError(f"its counts do not add up to the {width} x {height} pixels of its size")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T  # columns first, as COCO counts


def _decompress(digits: np.ndarray) -> np.ndarray:
    """Digits of 6 bits, 5 of them a number's, lowest first -> run lengths, all but the first three as differences."""
    if len(digits) == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("its counts are no run lengths")
    last = (digits & 32) == 0
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(first, np.diff(np.concatenate([first, [len(digits)]])))
    if place.max() > 9:
        raise ValueError("its counts are beyond any picture")
    numbers = np.add.reduceat((digits & 31) << (5 * place), first)
    negative = (digits[last] & 16) != 0
    numbers -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
