"""What results can be written as: the one table behind `lexiseg batch --format` and `lexiseg segment --format`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from lexiseg.formats.coco import write_coco
from lexiseg.formats.coco_panoptic import write_coco_panoptic
from lexiseg.formats.cvat import write_cvat
from lexiseg.formats.label_studio import write_label_studio
from lexiseg.formats.parquet import write_parquet
from lexiseg.formats.records import Records
from lexiseg.formats.yolo import write_yolo
from lexiseg.vocabulary import Vocabulary
from lexiseg.weights.files import replacing, replacing_folder


class Pictured(Protocol):
    """A result, as far as it can be a picture."""

    def labels_png(self) -> Image.Image: ...

    def palette_png(self) -> Image.Image: ...


@dataclass(frozen=True)
class Merged:
    """One file, or one folder, made of the records of all photos."""

    name: str
    write: Callable[[Path, Records, Vocabulary], None]
    """Into an empty file or folder. The same records give the same bytes; one of them is held at a time."""
    is_folder: bool = False
    by_stem: bool = False
    """Whether the tool tells photos apart by their names without the ending."""
    needs: str | None = None
    """A package beyond those that Lexiseg brings, which is an extra of the same name."""


@dataclass(frozen=True)
class Format:
    """One way to write results: a picture for each photo, or something made of all."""

    about: str
    picture: Callable[[Pictured], Image.Image] | None = None
    merged: Merged | None = None


FORMATS: dict[str, Format] = {
    "coco": Format("one COCO file of instances", merged=Merged("coco.json", write_coco)),
    "png": Format("a grey label map per photo", picture=lambda result: result.labels_png()),
    "palette": Format("a label map per photo in colours", picture=lambda result: result.palette_png()),
    "parquet": Format("one table of segments", merged=Merged("segments.parquet", write_parquet, needs="pyarrow")),
    "coco-panoptic": Format(
        "COCO panoptic: one JSON file and a picture of ids per photo",
        merged=Merged("coco-panoptic", write_coco_panoptic, is_folder=True, by_stem=True),
    ),
    "cvat": Format("one file for CVAT, as 'CVAT for images 1.1'", merged=Merged("cvat.xml", write_cvat)),
    "yolo": Format("outlines for YOLO", merged=Merged("yolo", write_yolo, is_folder=True, by_stem=True)),
    "labelstudio": Format(
        "predictions for Label Studio, with its labelling config",
        merged=Merged("labelstudio", write_label_studio, is_folder=True),
    ),
}
"""Name -> what it is."""


def write_merged(merged: Merged, folder: Path, records: Records, vocabulary: Vocabulary) -> Path:
    """Writes it into the folder, whole or not at all; what was there before is replaced."""
    path = folder / merged.name
    with replacing_folder(path) if merged.is_folder else replacing(path) as temporary:
        merged.write(temporary, records, vocabulary)
    return path


def find_format(name: str, photos: Iterable[str] = ()) -> Format:
    """Raises ValueError where there is none of that name, its package is missing, or it cannot tell `photos` apart."""
    if name not in FORMATS:
        raise ValueError(f"no format is called {name!r}: choose one of {', '.join(FORMATS)}")
    format = FORMATS[name]
    if format.merged is None:
        return format
    if format.merged.needs is not None and find_spec(format.merged.needs) is None:
        raise ValueError(f"the format {name} needs {format.merged.needs}: pip install 'lexiseg[{name}]'")
    if format.merged.by_stem:
        seen: dict[str, str] = {}
        for photo in photos:
            other = seen.setdefault(str(PurePosixPath(photo).with_suffix("")), photo)
            if other != photo:
                raise ValueError(f"{photo}: the format {name} cannot tell it from {other}; rename one of them")
    return format
