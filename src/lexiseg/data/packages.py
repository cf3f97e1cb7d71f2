"""Labelled photos in the folder-or-zip format of the project's data packages.

<name>/images/<id>.jpg     RGB photo; another ending where dataset.json has an "image_suffix"
<name>/labels/<id>.png     class index, 8 or 16 bits; 255 = ignore unless dataset.json says otherwise
<name>/segments/<id>.png   region index inside the photo, 8 or 16 bits, 0 = none        (optional)
<name>/segments.json       id -> [[region, class, iscrowd], ...]                        (optional)
<name>/instances.json      id -> [{"class", "area", "iscrowd", "rle"}, ...]             (optional)
<name>/dataset.json        classes, ignore, splits; optional: isthing, words (phrases to ask for instead of the names
                           of the classes), word_class (the class of each of them), measures, instance_rules, remarks
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

InstanceRules = Literal["coco", "cityscapes"]
"""By which average precision is measured."""


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo and what is known of its pixels."""

    id: str
    image: NDArray[np.uint8]
    """[H, W, 3] RGB."""
    labels: NDArray[Any]
    """[H, W] class index; 16 bits where the package has more than 255."""
    regions: NDArray[Any]
    """[H, W] region index inside the photo, 0 = none; 16 bits where there are more than 255. All 0 where the package
    has no regions."""


class LabelledPhotos:
    """One package: a folder, or a zip that holds one folder of its own name."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._zip: zipfile.ZipFile | None = None
        if self.path.is_dir():
            self.root = self.path.name
        elif zipfile.is_zipfile(self.path):
            self._zip = zipfile.ZipFile(self.path)
            tops = {name.split("/")[0] for name in self._zip.namelist()}
            if len(tops) != 1:
                raise ValueError(f"{self.path}: a data package holds one folder, this zip holds {len(tops)}")
            self.root = tops.pop()
        else:
            raise ValueError(f"{self.path}: neither a folder nor a zip file")
        try:
            description = json.loads(self.read("dataset.json"))
        except (KeyError, FileNotFoundError):
            raise ValueError(
                f"{self.path}: no dataset.json inside, so this is no data package, or one whose preparation is not "
                "finished (the same command goes on)"
            ) from None
        self.name: str = description.get("name", self.root)
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.ignore: int = description.get("ignore", 255)
        self.splits: dict[str, list[str]] = description["splits"]
        self.is_thing: tuple[bool, ...] | None = (
            tuple(bool(flag) for flag in description["isthing"]) if "isthing" in description else None
        )
        self.has_regions = bool(description.get("segments"))
        self.license: str = str(description.get("license", ""))
        self.image_suffix: str = description.get("image_suffix", ".jpg")
        self.title: str = description.get("title", self.name)
        self.words: tuple[tuple[str, ...], ...] = tuple(
            tuple(phrases) for phrases in description.get("words", [[name] for name in self.classes])
        )
        self.word_class: tuple[int, ...] = tuple(description.get("word_class", range(len(self.classes))))
        self._measures = description.get("measures")
        self.instance_rules: InstanceRules = description.get("instance_rules", "coco")
        if self.instance_rules not in get_args(InstanceRules):
            known = " or ".join(get_args(InstanceRules))
            raise ValueError(f"{self.path}: dataset.json asks for instance_rules {self.instance_rules!r}; give {known}")
        self.remarks: tuple[str, ...] = tuple(description.get("remarks", ()))
        if len(self.words) != len(self.word_class) or set(self.word_class) - set(range(len(self.classes))):
            raise ValueError(f"{self.path}: dataset.json has {len(self.words)} words that do not fit its classes")

    def read(self, name: str) -> bytes:
        """One member of the package. KeyError or FileNotFoundError where it is missing."""
        if self._zip is not None:
            return self._zip.read(f"{self.root}/{name}")
        return (self.path / name).read_bytes()

    def ids(self, split: str) -> list[str]:
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        return self.splits[split]

    @cached_property
    def measures(self) -> tuple[str, ...]:
        """What can be measured: "miou", and "pq" and "ap" where the regions are known."""
        if self._measures is not None:
            return tuple(self._measures)
        return ("miou", "pq", "ap") if self.region_classes and self.is_thing is not None else ("miou",)

    @cached_property
    def region_classes(self) -> dict[str, list[list[int]]]:
        """id -> [[region, class, iscrowd], ...]; empty where the package does not say."""
        try:
            return json.loads(self.read("segments.json"))
        except (KeyError, FileNotFoundError):
            return {}

    @cached_property
    def instances(self) -> dict[str, list[dict[str, Any]]] | None:
        """id -> annotated things, which may overlap; None where the package has none apart from its regions."""
        try:
            return json.loads(self.read("instances.json"))
        except (KeyError, FileNotFoundError):
            return None

    def photo(self, id: str) -> LabelledPhoto:
        image = self._array(f"images/{id}{self.image_suffix}", "RGB")
        labels = self._array(f"labels/{id}.png", None)
        regions = self._array(f"segments/{id}.png", None) if self.has_regions else np.zeros_like(labels)
        if image.shape[:2] != labels.shape or regions.shape != labels.shape:
            raise ValueError(f"{self.name}/{id}: photo, labels and regions differ in size")
        return LabelledPhoto(id, image, labels, regions)

    def _array(self, name: str, mode: str | None) -> NDArray[Any]:
        with Image.open(io.BytesIO(self.read(name))) as picture:
            return np.array(picture if mode is None else picture.convert(mode))
