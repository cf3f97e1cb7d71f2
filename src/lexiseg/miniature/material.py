"""The training material of the miniature benchmark, without the classes that nobody may have seen.

Pixels of a hidden class belong to no class, its name is on no list, its regions are gone, and captions that name it
are left out. The last package, TOGETHER, is what recipes read that know one list of classes: classes of three packages
that mean the same are one.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lexiseg.data.packages import LabelledPhotos
from lexiseg.train.lexicon import Lexicon
from lexiseg.weights.files import replacing

HIDDEN = ("sheep", "cat", "boat", "bicycle", "flower")
NAMED_AS = re.compile(
    r"\b(sheep|lambs?|cats?|kittens?|boats?|ships?|canoes?|bicycles?|bikes?|flowers?)\b", re.IGNORECASE
)
"""How captions name them."""
CAPTIONED = "coco_captions"
PACKAGES = ("camvid", "msrc", "coco_panoptic", "coco_things", CAPTIONED)
TOGETHER = "together"
EVERY = {"camvid": 3, "msrc": 1, "coco_panoptic": 1}
"""In TOGETHER: every so many of the training photos. Those of camvid are frames of five films."""
IGNORE = 255


@dataclass(frozen=True)
class Member:
    """One file of a package."""

    name: str
    content: bytes


def hide(source: Path, out: Path, hidden: Sequence[str] = HIDDEN) -> None:
    """out/NAME.zip for every package of PACKAGES in the folder `source`, and out/together.zip; what is there stays."""
    out.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if not (out / f"{name}.zip").is_file():
            package = open_package(source, name)
            write_package(out / f"{name}.zip", name, without(package, hidden))


def join(folder: Path, lexicon: Lexicon) -> None:
    """folder/together.zip from the packages of EVERY in `folder`."""
    path = folder / f"{TOGETHER}.zip"
    if not path.is_file():
        packages = [open_package(folder, name) for name in EVERY]
        write_package(path, TOGETHER, together(packages, lexicon))


def open_package(folder: Path, name: str) -> LabelledPhotos:
    """NAME.zip or NAME of a folder."""
    for path in (folder / f"{name}.zip", folder / name):
        if path.exists():
            return LabelledPhotos(path)
    raise FileNotFoundError(f"{folder}: the miniature benchmark needs the package {name}.zip there")


def without(package: LabelledPhotos, hidden: Sequence[str]) -> Iterator[Member]:
    """The files of a package from which classes were taken out."""
    kept = [index for index, name in enumerate(package.classes) if name not in hidden]
    lookup = np.full(256, IGNORE, np.uint8)
    lookup[kept] = range(len(kept))
    description = json.loads(package.read("dataset.json"))
    captions = {
        id: [text for text in texts if not NAMED_AS.search(text)]
        for id, texts in description.get("captions", {}).items()
    }
    if package.name == CAPTIONED:  # a photo is there for its captions
        description["splits"] = {split: [id for id in ids if captions.get(id)] for split, ids in package.splits.items()}
    description["captions"] = {id: texts for id, texts in captions.items() if texts}
    description |= {"classes": [package.classes[index] for index in kept], "ignore": IGNORE}
    if package.is_thing is not None:
        description["isthing"] = [package.is_thing[index] for index in kept]
    regions: dict[str, Any] = {}
    for ids in description["splits"].values():
        for id in ids:
            photo = package.photo(id)
            yield Member(f"images/{id}{package.image_suffix}", package.read(f"images/{id}{package.image_suffix}"))
            yield Member(f"labels/{id}.png", as_png(lookup[photo.labels]))
            known = package.region_classes.get(id, [])
            regions[id] = [[region, int(lookup[index]), crowd] for region, index, crowd in known if index in kept]
            if package.has_regions:
                gone = np.isin(photo.regions, [region for region, index, _ in known if index not in kept])
                gone |= (lookup[photo.labels] == IGNORE) & (photo.labels != package.ignore)
                yield Member(f"segments/{id}.png", as_png(np.where(gone, 0, photo.regions).astype(np.uint8)))
    if package.region_classes:
        yield Member("segments.json", json.dumps(regions).encode())
    yield Member("dataset.json", json.dumps(description).encode())


def together(packages: Sequence[LabelledPhotos], lexicon: Lexicon) -> Iterator[Member]:
    """The files of a package with the training photos of several. Its classes are concepts, by their usual names."""
    concepts = list(dict.fromkeys(lexicon.concept_of(name) for package in packages for name in package.classes))
    train: list[str] = []
    for package in packages:
        lookup = np.full(256, IGNORE, np.uint8)
        for index, name in enumerate(package.classes):
            lookup[index] = concepts.index(lexicon.concept_of(name))
        for id in package.ids("train")[:: EVERY[package.name]]:
            own = f"{package.name}_{id}"
            train.append(own)
            yield Member(f"images/{own}.jpg", package.read(f"images/{id}{package.image_suffix}"))
            yield Member(f"labels/{own}.png", as_png(lookup[package.photo(id).labels]))
    description = {
        "name": TOGETHER,
        "title": "street scenes, objects and COCO together, hidden classes left out",
        "classes": [lexicon.concepts[concept].names[0] for concept in concepts],
        "ignore": IGNORE,
        "splits": {"train": train},
    }
    yield Member("dataset.json", json.dumps(description).encode())


def write_package(path: Path, name: str, members: Iterator[Member]) -> None:
    """A zip with one folder; it is there whole or not at all. Pictures are compressed already."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for member in members:
            packed.writestr(f"{name}/{member.name}", member.content)


def as_png(numbers: NDArray[np.uint8]) -> bytes:
    held = io.BytesIO()
    Image.fromarray(numbers).save(held, "PNG")
    return held.getvalue()
