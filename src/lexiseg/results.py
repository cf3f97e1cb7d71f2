"""What a photo was found to show: the map, the segments with their words, and the files other programs read."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from PIL import Image
from scipy import ndimage

from lexiseg.drawing import OPACITY, Patch, class_colors, overlay, shade
from lexiseg.formats.coco import to_coco
from lexiseg.formats.coco_panoptic import to_panoptic
from lexiseg.formats.cvat import to_cvat
from lexiseg.formats.fiftyone import to_fiftyone
from lexiseg.formats.label_studio import Tags, to_label_studio
from lexiseg.formats.pictures import label_picture, palette_picture
from lexiseg.formats.records import PhotoRecord, SegmentRecord
from lexiseg.formats.run_lengths import encode_rle
from lexiseg.formats.supervision import to_supervision
from lexiseg.formats.transformers import to_transformers
from lexiseg.formats.yolo import to_yolo
from lexiseg.types import InstanceMasks, PanopticMap, Prediction, Segment, SemanticMap, Size
from lexiseg.vocabulary import Color, Vocabulary

if TYPE_CHECKING:
    import fiftyone
    import supervision

Task = Literal["semantic", "panoptic", "instance"]
TASKS: tuple[Task, ...] = get_args(Task)

TOP_WORDS = 5
"""How many words are kept for each segment."""


@dataclass(frozen=True)
class PackedMask:
    """A mask kept as the positions where it changes: a hundred of them on a large photo take megabytes."""

    size_hw: Size
    changes: np.ndarray
    """int64, increasing: positions in reading order at which the value flips, beginning with false."""

    @classmethod
    def pack(cls, mask: np.ndarray) -> PackedMask:
        """mask bool [H, W]."""
        flat = np.concatenate([[False], mask.ravel()])
        return cls((mask.shape[0], mask.shape[1]), np.flatnonzero(flat[1:] != flat[:-1]))

    def unpack(self) -> np.ndarray:
        """bool [H, W]."""
        flips = np.zeros(self.size_hw[0] * self.size_hw[1], bool)
        flips[self.changes] = True
        return np.logical_xor.accumulate(flips).reshape(self.size_hw)


@dataclass(frozen=True)
class NamedSegment:
    """One region of a photo and the word for it."""

    id: int
    """Its value in `label_map`: the class index in a semantic result, else 1, 2, ... in the order of `segments`."""
    label: str
    label_index: int
    """Index into the vocabulary."""
    score: float
    """0..1."""
    area: int
    """Pixels."""
    share: float
    """Of the photo's pixels, 0..1."""
    box_xyxy: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels; right and bottom are just outside."""
    is_thing: bool
    top: tuple[tuple[str, float], ...]
    """The best words for this region with their scores, best first."""
    mask_id: int | None
    """Of the mask that was given with the photo, where the segment is one: see `mask_input.PhotoMasks.ids`."""
    _source: np.ndarray | PackedMask = field(repr=False, compare=False)

    @property
    def mask(self) -> np.ndarray:
        """bool [H, W], made anew at every call: keep it if you need it twice."""
        if isinstance(self._source, np.ndarray):
            return self._source == self.id
        return self._source.unpack()

    @property
    def rle(self) -> dict[str, Any]:
        """COCO's compressed run-length encoding, ready for JSON: {"size": [H, W], "counts": text}."""
        return encode_rle(self.mask)


@dataclass(frozen=True, eq=False)
class Result:
    """The answer for one photo."""

    photo: str
    """The name of the photo."""
    task: Task
    vocabulary: Vocabulary
    label_map: np.ndarray
    """int32 [H, W], of a tiled photo narrower. semantic: the class index of every pixel, -1 where no mask lies and the
    model leaves such pixels out. panoptic: the id of its segment, 0 for none. instance: the id of the best segment that
    covers it, 0 for none; the full masks, which may overlap, are in the segments."""
    segments: tuple[NamedSegment, ...]
    rgb: np.ndarray = field(repr=False)
    """uint8 [H, W, 3]: the photo, to draw on."""
    model: str = ""
    """The name of the model that answered."""
    source: Path | None = None
    """The file the photo came from."""

    @property
    def words(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return self.vocabulary.names

    @property
    def size_hw(self) -> Size:
        return (self.label_map.shape[0], self.label_map.shape[1])

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of the photo's pixels per word that occurs, largest first. Overlapping instances count once."""
        values = np.zeros(int(self.label_map.max(initial=0)) + 2, np.int64)  # numpy counts in 64 bits: row by row
        for row in self.label_map:
            values += np.bincount(row + 1, minlength=len(values))
        values = values[1:]  # -1 is no segment
        class_of = {segment.id: segment.label for segment in self.segments}
        total: Counter[str] = Counter()
        for value, count in enumerate(values.tolist()):
            if count and value in class_of:
                total[class_of[value]] += count
        return {word: count / self.label_map.size for word, count in total.most_common()}

    # ------------------------------------------------------------------------------------------------------ pictures

    @property
    def colors(self) -> tuple[Color, ...]:
        """What each of the segments is drawn with."""
        of_class = class_colors(self.vocabulary)
        seen: Counter[int] = Counter()
        chosen = []
        for segment in self.segments:
            color = of_class[segment.label_index]
            if self.task != "semantic" and segment.is_thing:
                # Instances of one class stand side by side: shades of its colour keep them apart.
                color = shade(color, seen[segment.label_index])
                seen[segment.label_index] += 1
            chosen.append(color)
        return tuple(chosen)

    def overlay(self, opacity: float = OPACITY) -> Image.Image:
        """The photo with the segments over it and their words inside; small ones come enlarged, huge ones reduced."""
        patches = []
        for segment, color in zip(self.segments, self.colors, strict=True):
            text = f"{segment.label} {segment.score:.0%}" if self.task == "instance" else segment.label
            patches.append(Patch(segment.id, color, text))
        return overlay(self.rgb, self.label_map, patches, opacity)

    def labels_png(self) -> Image.Image:
        """`label_map` as a grey picture: 8 bits, 16 bits where there are more than 255 classes or segments.

        Pixels of a semantic result without a class have the highest number there is, 255 or 65535.
        """
        highest = max(len(self.vocabulary) if self.task == "semantic" else 0, int(self.label_map.max(initial=0)))
        return label_picture(self.photo, self.label_map, highest)

    def palette_png(self) -> Image.Image:
        """The numbers of `labels_png` as a picture with a palette: it shows the colours of the overlay.

        Raises ValueError where there are more than 255 of them. Programs that turn palettes into colours by themselves,
        OpenCV among them, need the grey one.
        """
        semantic = self.task == "semantic"
        colors = class_colors(self.vocabulary) if semantic else self.colors
        return palette_picture(self.photo, self.label_map, colors, first=0 if semantic else 1)

    # ------------------------------------------------------------------------------------------- forms of other tools

    def record(self) -> PhotoRecord:
        """What all forms of other tools are made of."""
        height, width = self.size_hw
        segments = tuple(
            SegmentRecord(
                segment.id,
                segment.label,
                segment.label_index,
                segment.score,
                segment.area,
                segment.box_xyxy,
                segment.is_thing,
                segment.rle["counts"],
            )
            for segment in self.segments
        )
        return PhotoRecord(self.photo, height, width, self.task, self.model, segments)

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes as JSON."""
        height, width = self.size_hw
        return {
            "photo": self.photo,
            "height": height,
            "width": width,
            "task": self.task,
            "model": self.model,
            "words": [
                {"index": index, "label": entry.name, "synonyms": list(entry.phrases[1:]), "is_thing": entry.is_thing}
                for index, entry in enumerate(self.vocabulary.classes)
            ],
            "segments": [
                {
                    "id": segment.id,
                    "label": segment.label,
                    "label_index": segment.label_index,
                    "score": round(segment.score, 6),
                    "area": segment.area,
                    "share": round(segment.share, 6),
                    "box_xyxy": list(segment.box_xyxy),
                    "is_thing": segment.is_thing,
                    "top": [{"label": word, "score": round(score, 6)} for word, score in segment.top],
                    **({} if segment.mask_id is None else {"mask_id": segment.mask_id}),
                }
                for segment in self.segments
            ],
        }

    def to_coco(self, image_id: int = 1, first_annotation_id: int = 1) -> dict[str, Any]:
        """A COCO data set of this photo: images, categories, annotations with compressed RLE and scores.

        Category ids are class index + 1: COCO's tools take 0 for "none". Ready for JSON and for pycocotools.
        """
        record = replace(self.record(), photo=Path(self.photo).name)
        return to_coco(record, self.vocabulary, image_id, first_annotation_id)

    def to_label_studio(self, tags: Tags | None = None, address: str | None = None) -> dict[str, Any]:
        """A task of Label Studio with its prediction, ready for JSON; see `formats.label_studio`.

        tags: the names in the labelling config. address: of the picture, as Label Studio is to ask for it.
        """
        return to_label_studio(self.record(), tags or Tags(), address=address)

    def to_panoptic_png(self) -> tuple[Image.Image, list[dict[str, Any]]]:
        """COCO's panoptic form: the picture of ids and its segments_info; see `formats.coco_panoptic`."""
        return to_panoptic(self.record())

    def to_yolo(self) -> str:
        """The text file of YOLO's form for segmentation; see `formats.yolo`."""
        return to_yolo(self.record())

    def to_cvat(self) -> str:
        """The `<image>` of CVAT's XML; see `formats.cvat`."""
        return to_cvat(self.record())

    def to_transformers(self) -> dict[str, Any]:
        """The form of transformers' `post_process_*_segmentation`: `segmentation` [H, W] int32 and `segments_info`."""
        return to_transformers(self.record(), self.label_map)

    def to_supervision(self) -> supervision.Detections:
        """For `supervision`, an extra (lexiseg[supervision])."""
        return to_supervision(self.record())

    def to_fiftyone(self) -> fiftyone.Segmentation | fiftyone.Detections:
        """A label for `fiftyone`, where it is installed; see `formats.fiftyone`."""
        return to_fiftyone(self.record())

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> dict[str, Path]:
        """Writes <stem>.overlay.png, <stem>.labels.png and <stem>.json; the stem is the photo's unless given.

        Returns the paths as "overlay", "labels", "json". Files of the same names are replaced.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        stem = stem or file_stem(self.photo)
        paths = {
            "overlay": target / f"{stem}.overlay.png",
            "labels": target / f"{stem}.labels.png",
            "json": target / f"{stem}.json",
        }
        # Little compression: an overlay of a large photo is written in one second instead of five.
        self.overlay().save(paths["overlay"], compress_level=3)
        self.labels_png().save(paths["labels"])
        paths["json"].write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths


def make_result(
    prediction: Prediction,
    vocabulary: Vocabulary,
    rgb: np.ndarray,
    photo: str,
    *,
    model: str = "",
    source: Path | None = None,
    min_score: float = 0.0,
    mask_ids: Sequence[int] | None = None,
) -> Result:
    """A prediction on the photo's own grid, with its words. Segments below `min_score` and empty ones are left out.

    In a semantic result every pixel keeps its class; `min_score` only shortens the list of segments. mask_ids: of the
    proposals, where they were given with the photo.
    """
    if isinstance(prediction, InstanceMasks):
        task, label_map, segments = _named_instances(prediction, vocabulary, min_score, mask_ids)
    else:
        task, label_map, segments = _named_regions(prediction, vocabulary, min_score, mask_ids)
    return Result(photo, task, vocabulary, label_map, segments, rgb, model, source)


def file_stem(name: str) -> str:
    """The name of a photo as the beginning of file names: "photos/a b.jpg" -> "a b"."""
    stem = Path(name).stem if Path(name).suffix else Path(name).name
    safe = "".join(c if c.isprintable() and c not in '<>:"/\\|?*' else "_" for c in stem).strip(" .")
    return safe or "photo"


def _named_regions(
    prediction: SemanticMap | PanopticMap,
    vocabulary: Vocabulary,
    min_score: float,
    mask_ids: Sequence[int] | None,
) -> tuple[Task, np.ndarray, tuple[NamedSegment, ...]]:
    semantic = isinstance(prediction, SemanticMap)
    source = prediction.labels if isinstance(prediction, SemanticMap) else prediction.ids
    values = source.cpu().numpy()
    if values.dtype not in (np.uint8, np.int16):  # what tiled photos come with
        values = values.astype(np.int32)
    dropped = [
        number
        for number, segment in enumerate(prediction.segments)
        if not semantic and (segment.score < min_score or segment.area == 0)
    ]
    if dropped:
        renumbered = np.zeros(len(prediction.segments) + 1, values.dtype)
        kept = [number for number in range(len(prediction.segments)) if number not in dropped]
        renumbered[[number + 1 for number in kept]] = np.arange(1, len(kept) + 1)
        values = renumbered[values]
        entries = [prediction.segments[number] for number in kept]
    else:
        entries = list(prediction.segments)
    boxes = ndimage.find_objects(values + 1)  # value 0 would be left out
    named: list[NamedSegment] = []
    for number, entry in enumerate(entries):
        value = entry.class_index if semantic else number + 1
        box = boxes[value] if value < len(boxes) else None
        if box is None or (semantic and entry.score < min_score):
            continue
        named.append(_named(entry, value, _xyxy(box), vocabulary, values, mask_ids))
    if semantic:
        named.sort(key=lambda segment: -segment.area)
    return ("semantic" if semantic else "panoptic"), values, tuple(named)


def _named_instances(
    prediction: InstanceMasks, vocabulary: Vocabulary, min_score: float, mask_ids: Sequence[int] | None
) -> tuple[Task, np.ndarray, tuple[NamedSegment, ...]]:
    height, width = prediction.masks.shape[-2:]
    label_map = np.zeros((height, width), np.int32)
    named: list[NamedSegment] = []
    for mask, entry in zip(prediction.masks, prediction.segments, strict=True):
        if entry.area == 0 or entry.score < min_score:
            continue
        inside = mask.cpu().numpy()
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        value = len(named) + 1
        named.append(_named(entry, value, box, vocabulary, PackedMask.pack(inside), mask_ids))
        label_map[inside & (label_map == 0)] = value  # best first: the better one stays on top
    return "instance", label_map, tuple(named)


def _named(
    entry: Segment,
    value: int,
    box_xyxy: tuple[int, int, int, int],
    vocabulary: Vocabulary,
    source: np.ndarray | PackedMask,
    mask_ids: Sequence[int] | None,
) -> NamedSegment:
    height, width = source.shape if isinstance(source, np.ndarray) else source.size_hw
    best = entry.class_scores.topk(min(TOP_WORDS, len(entry.class_scores)))
    return NamedSegment(
        id=value,
        label=vocabulary.classes[entry.class_index].name,
        label_index=entry.class_index,
        score=entry.score,
        area=entry.area,
        share=entry.area / (height * width),
        box_xyxy=box_xyxy,
        is_thing=vocabulary.classes[entry.class_index].is_thing,
        top=tuple(
            (vocabulary.classes[index].name, score)
            for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ),
        mask_id=None if mask_ids is None or entry.proposal is None else mask_ids[entry.proposal],
        _source=source,
    )


def _xyxy(box: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = box
    return (int(columns.start), int(rows.start), int(columns.stop), int(rows.stop))
