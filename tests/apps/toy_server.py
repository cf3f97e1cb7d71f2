"""A random model as a folder, photos, and what the model says of them without a server."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lexiseg import Segmenter
from lexiseg.formats.run_lengths import decode_rle
from lexiseg.images import Canvas
from lexiseg.zoo.fcclip import fcclip, text_encoder
from lexiseg.zoo.model_folder import save_model_folder
from tests.zoo.conftest import GENERATOR, TOWERS


def toy_folder(folder: Path) -> Path:
    """Its words mean nothing, but they decide, and it answers in milliseconds."""
    torch.manual_seed(0)
    tower = TOWERS["resnet"]
    return save_model_folder(
        folder,
        fcclip(tower, device="cpu", **GENERATOR),
        text_encoder(tower, device="cpu"),
        builder="fcclip",
        arguments={"tower": tower, **GENERATOR},
        templates="photo1",
        canvas=Canvas(64, 96),
    )


def photo_bytes(size_hw: tuple[int, int] = (60, 80), kind: str = "JPEG", seed: int = 0) -> bytes:
    """Blocks of random colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(colours).resize((size_hw[1], size_hw[0]), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def masks_of(answer: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """(word, mask) of each segment of an answer as JSON."""
    return [
        (entry["label"], decode_rle(entry["rle"]["counts"], tuple(entry["rle"]["size"])))
        for entry in answer["segments"]
    ]


def assert_answers(answer: dict[str, Any], segmenter: Segmenter, photo: bytes, words: str, task: Any) -> None:
    """The answer of the server is what the segmenter says. Batches round differently: one pixel of 1,000 may flip."""
    expected = segmenter(photo, words, task)
    assert [entry["label"] for entry in answer["words"]] == list(expected.words)
    found = masks_of(answer)
    assert sorted(word for word, _ in found) == sorted(segment.label for segment in expected.segments)
    told = _map(found, expected.words)
    ours = _map([(segment.label, segment.mask) for segment in expected.segments], expected.words)
    assert (told == ours).mean() > 0.999


def _map(pairs: Sequence[tuple[str, np.ndarray]], words: Sequence[str]) -> np.ndarray:
    """[K, H, W] bool: where each word is."""
    return np.stack(
        [
            np.logical_or.reduce([mask for label, mask in pairs if label == word] or [pairs[0][1] & False])
            for word in words
        ]
    )
