"""Packages of photos of coloured stripes, one stripe per class."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from lexiseg.data.packages import LabelledPhotos

THINGS = ("person", "car", "pedestrian")


def package(folder: Path, name: str, classes: list[str], ignored: bool = False) -> LabelledPhotos:
    """Two photos, both in every split; with `ignored`, the last stripe has no label."""
    splits = {"train": ["a", "b"], "val": ["a", "b"]}
    description: dict[str, object] = {"name": name, "classes": classes, "splits": splits}
    if name.startswith("coco"):
        description |= {"isthing": [c in THINGS for c in classes], "segments": "yes"}
    labels = np.repeat(np.arange(len(classes), dtype=np.uint8), 24)[:, None].repeat(160, 1)
    image = np.random.default_rng(1).integers(0, 255, (len(classes), 3), np.uint8)[labels]
    regions = labels + np.uint8(1)
    if ignored:
        labels = np.where(labels == len(classes) - 1, 255, labels).astype(np.uint8)
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        archive.writestr(f"{name}/dataset.json", json.dumps(description))
        for id in ("a", "b"):
            for kind, values in (("images", image), ("labels", labels), ("segments", regions)):
                buffer = io.BytesIO()
                Image.fromarray(values).save(buffer, "JPEG" if kind == "images" else "PNG")
                archive.writestr(f"{name}/{kind}/{id}.{'jpg' if kind == 'images' else 'png'}", buffer.getvalue())
    return LabelledPhotos(folder / f"{name}.zip")
