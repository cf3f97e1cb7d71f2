"""Photos with captions: a data package, COCO's captions file, or a table.

package    a folder or a zip with dataset.json (see `lexiseg.data.packages`) that has "captions": id -> list of texts
.json      COCO Captions as published: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}
.tsv       a line per caption: the file name of a photo, a tab, the caption

For the last two the photos lie in a folder of their own.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.packages import LabelledPhotos
from lexiseg.images import ImageError, ImageLimits, read_image

MAX_FILE_BYTES = 2**30
"""Of a list of captions: COCO's for 118 thousand photos has 92 MB."""


class CaptionError(ValueError):
    """Captions that cannot be read. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class CaptionedPhotos:
    """Photos in a fixed order, read when they are asked for."""

    name: str
    captions: dict[str, tuple[str, ...]]
    """id -> its captions, in the order of the file."""
    package: LabelledPhotos | None = None
    """Where the photos are, if not in `folder`."""
    folder: Path = Path()
    """An id is then a file name in it."""
    limits: ImageLimits = field(default_factory=ImageLimits)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self.captions)

    def rgb(self, id: str) -> NDArray[np.uint8]:
        """[H, W, 3]. Raises ImageError where the file is missing or damaged."""
        if self.package is None:
            return read_image(self.folder / id, self.limits).rgb
        try:
            content = self.package.read(f"images/{id}{self.package.image_suffix}")
            return read_image(io.BytesIO(content), self.limits, name=id).rgb
        except (KeyError, OSError) as error:
            raise ImageError(id, f"is not in {self.package.path} ({error})") from error


def captioned_photos(
    path: str | Path, images: str | Path | None = None, split: str | None = None, limits: ImageLimits | None = None
) -> CaptionedPhotos:
    """What is at `path`; images: the folder of the photos, for lists of captions. split: of a package, else its first.

    Photos without a caption are left out.
    """
    path, limits = Path(path), limits or ImageLimits()
    if path.suffix.lower() not in (".json", ".tsv"):
        return _of_package(path, split, limits)
    if images is None or not Path(images).is_dir():
        raise CaptionError(f"{path}: captions alone; give the folder of their photos as well, not {images}")
    if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise CaptionError(f"{path}: no such file, or larger than {MAX_FILE_BYTES // 2**20} MiB")
    text = path.read_text(encoding="utf-8")
    captions = _of_table(path, text) if path.suffix.lower() == ".tsv" else _of_coco(path, text)
    for name in captions:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CaptionError(f"{path}: {name!r} leads out of the folder of the photos; file names are relative to it")
    return CaptionedPhotos(path.stem, captions, folder=Path(images), limits=limits)


def _of_package(path: Path, split: str | None, limits: ImageLimits) -> CaptionedPhotos:
    package = LabelledPhotos(path)
    captions = json.loads(package.read("dataset.json")).get("captions")
    if not isinstance(captions, dict):
        raise CaptionError(f"{path}: its dataset.json has no captions")
    ids = package.ids(split or next(iter(package.splits)))
    found = {id: _texts(path, id, captions[id]) for id in ids if captions.get(id)}
    return CaptionedPhotos(package.name, found, package=package, limits=limits)


def _of_table(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, caption = line.partition("\t")
        if not tab or not name.strip():
            raise CaptionError(f"{path}: line {number} has no tab between a file name and a caption")
        found.setdefault(name.strip(), []).append(caption)
    return {name: tuple(captions) for name, captions in found.items()}


def _of_coco(path: Path, text: str) -> dict[str, tuple[str, ...]]:
    try:
        content = json.loads(text)
        names = {int(entry["id"]): str(entry["file_name"]) for entry in content["images"]}
        found: dict[str, list[str]] = {name: [] for name in names.values()}
        for entry in content["annotations"]:
            found[names[int(entry["image_id"])]].append(str(entry["caption"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CaptionError(f"{path}: no COCO captions file ({type(error).__name__}: {error})") from error
    return {name: tuple(captions) for name, captions in found.items() if captions}


def _texts(path: Path, id: str, captions: Any) -> tuple[str, ...]:
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise CaptionError(f"{path}: the captions of {id} are no list of texts")
    return tuple(captions)
