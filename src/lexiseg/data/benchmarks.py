"""BENCHMARKS: the validation sets that published numbers are of, written out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lexiseg.data import (
    ade20k,
    ade20k_full,
    cityscapes,
    coco,
    coco_stuff,
    mapillary,
    pascal_context,
    voc,
)
from lexiseg.data.layouts import Layout, Part
from lexiseg.data.sources import Source

DATA_VARIABLE = "LEXISEG_DATA"
"""Environment variable with the folder of prepared benchmarks."""

Measure = Literal["miou", "pq", "ap"]


@dataclass(frozen=True)
class Benchmark:
    """One validation set, and how it is found in its publisher's files."""

    title: str
    photos: tuple[int, ...]
    """How many there are; where publisher and published numbers differ, both."""
    classes: int
    ignore: int
    measures: tuple[Measure, ...]
    parts: tuple[Part, ...]
    layout: Callable[[Source], Layout]
    skip_unlabelled: bool = True
    """Photos without a labelled pixel are left out, as the official preparations do."""


BENCHMARKS: dict[str, Benchmark] = {
    "ade20k-150": Benchmark(
        title="ADE20K-150",
        photos=(2000,),
        classes=ade20k.CLASSES,
        ignore=ade20k.IGNORE,
        measures=("miou", "pq", "ap"),
        parts=ade20k.PARTS,
        layout=ade20k.ade20k_150,
        skip_unlabelled=False,
    ),
    "ade20k-847": Benchmark(
        title="ADE20K-847",
        photos=(2000,),
        classes=ade20k_full.CLASSES,
        ignore=ade20k_full.IGNORE,
        measures=("miou",),
        parts=ade20k_full.PARTS,
        layout=ade20k_full.ade20k_847,
    ),
    "context-59": Benchmark(
        title="PASCAL Context-59",
        photos=(5104, 5105),
        classes=pascal_context.FREQUENT,
        ignore=pascal_context.IGNORE_59,
        measures=("miou",),
        parts=pascal_context.PARTS_59,
        layout=pascal_context.context_59,
    ),
    "context-459": Benchmark(
        title="PASCAL Context-459",
        photos=(5104, 5105),
        classes=pascal_context.CLASSES,
        ignore=pascal_context.IGNORE_459,
        measures=("miou",),
        parts=pascal_context.PARTS_459,
        layout=pascal_context.context_459,
    ),
    "voc-20": Benchmark(
        title="PASCAL VOC-20, background ignored",
        photos=(1449,),
        classes=20,
        ignore=voc.IGNORE,
        measures=("miou",),
        parts=voc.PARTS,
        layout=voc.voc_20,
    ),
    "voc-20b": Benchmark(
        title="PASCAL VOC-20 and background, asked for as what it consists of",
        photos=(1449,),
        classes=21,
        ignore=voc.IGNORE,
        measures=("miou",),
        parts=voc.PARTS,
        layout=voc.voc_20b,
    ),
    "voc-21": Benchmark(
        title="PASCAL VOC-21, background by its name",
        photos=(1449,),
        classes=21,
        ignore=voc.IGNORE,
        measures=("miou",),
        parts=voc.PARTS,
        layout=voc.voc_21,
    ),
    "cityscapes": Benchmark(
        title="Cityscapes",
        photos=(500,),
        classes=len(cityscapes.KINDS),
        ignore=cityscapes.IGNORE,
        measures=("miou", "pq", "ap"),
        parts=cityscapes.PARTS,
        layout=cityscapes.cityscapes,
        skip_unlabelled=False,
    ),
    "coco-stuff": Benchmark(
        title="COCO-Stuff 164k",
        photos=(5000,),
        classes=171,
        ignore=coco_stuff.IGNORE,
        measures=("miou",),
        parts=coco_stuff.PARTS,
        layout=coco_stuff.coco_stuff_171,
    ),
    "coco": Benchmark(
        title="COCO panoptic",
        photos=(5000,),
        classes=coco.CLASSES,
        ignore=coco.IGNORE,
        measures=("miou", "pq", "ap"),
        parts=coco.PARTS,
        layout=coco.coco,
        skip_unlabelled=False,
    ),
    "mapillary": Benchmark(
        title="Mapillary Vistas 1.2",
        photos=(2000,),
        classes=mapillary.CLASSES,
        ignore=mapillary.IGNORE,
        measures=("miou", "pq"),
        parts=mapillary.PARTS,
        layout=mapillary.mapillary,
        skip_unlabelled=False,
    ),
}
"""By the name that `lexiseg data prepare` and `lexiseg eval` know, which is the one of the published numbers."""


def prepared_folder(name: str) -> Path:
    """Where `lexiseg data prepare` puts a benchmark, and where it is looked for."""
    chosen = os.environ.get(DATA_VARIABLE)
    if chosen:
        return Path(chosen).expanduser() / name
    base = os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser()
    return Path(base) / "lexiseg" / "data" / name


def find_benchmark(name: str) -> Path:
    """A prepared benchmark by its name, or labelled photos by their path."""
    if Path(name).exists():
        return Path(name)
    if name in BENCHMARKS:
        folder = prepared_folder(name)
        if folder.is_dir():
            return folder
        raise ValueError(f"{name} is not prepared; with its files: lexiseg data prepare {name} --source DIR")
    raise ValueError(
        f"no benchmark or file is called {name!r}: give one of {', '.join(BENCHMARKS)}, or the path of labelled photos"
    )
