"""Label Studio: predictions for its tasks, and what people drew there, from its export as JSON.

A mask is a brush region, whose run lengths are Label Studio's own: of the bytes of a picture in red, green, blue and
alpha, row by row, packed bit by bit. It keeps every pixel. Tasks are made for a project with the labelling config that
`labelling_config` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree.ElementTree import Element, ParseError
from xml.sax.saxutils import quoteattr

import numpy as np
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from lexiseg.drawing import class_colors
from lexiseg.formats.annotations import (
    AnnotatedMask,
    AnnotatedPhoto,
    AnnotatedSet,
    FormatError,
    Polygons,
    Shape,
    box_polygon,
    check_size,
    is_inside,
    is_number,
    read_polygon,
)
from lexiseg.formats.coco import write_lines
from lexiseg.formats.outlines import outer_polygons
from lexiseg.formats.records import PhotoRecord, Records, SegmentRecord, plain_text
from lexiseg.types import Size
from lexiseg.vocabulary import Vocabulary

TASKS, CONFIG = "tasks.json", "config.xml"

LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio finds files below its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""

Kind = Literal["brush", "polygon"]

_SIZES = np.array([3, 4, 8, 16])
"""Bits for the length of a run, as every encoder of Label Studio's chooses them."""
_LONGEST = 2**16


@dataclass(frozen=True)
class Tags:
    """What a labelling config calls its parts."""

    control: str = "label"
    image: str = "image"
    """The tag of the picture."""
    value: str = "image"
    """The key of a task's data with the address of the picture."""
    shape: Kind = "brush"


# ---------------------------------------------------------------------------------------------------------------- out


def to_label_studio(
    record: PhotoRecord, tags: Tags = Tags(), names: Mapping[str, str] | None = None, address: str | None = None
) -> dict[str, Any]:
    """A task with its prediction, ready for JSON and for Label Studio's import.

    names: class -> its label in the project, where they differ. address: of the picture, as Label Studio is to ask for
    it; unless given, the photo's name below the folder of its local files.
    """
    address = LOCAL_FILES + quote(record.photo, errors="surrogateescape") if address is None else address
    return {"data": {tags.value: address}, "predictions": [to_prediction(record, tags, names or {})]}


def to_prediction(record: PhotoRecord, tags: Tags, names: Mapping[str, str]) -> dict[str, Any]:
    """What a model tells Label Studio about one picture. Its score is the mean of the segments', by area."""
    regions = []
    for segment in record.segments:
        label = names.get(segment.label, segment.label)
        regions += (
            _brush(record, segment, tags, label) if tags.shape == "brush" else _polygons(record, segment, tags, label)
        )
    area = sum(segment.area for segment in record.segments)
    score = sum(segment.score * segment.area for segment in record.segments) / max(area, 1)
    return {"model_version": record.model or "lexiseg", "score": score, "result": regions}


def labelling_config(vocabulary: Vocabulary, tags: Tags = Tags()) -> str:
    """The labelling config of a project for such predictions, with the colours of the classes."""
    kind = _kind(tags.shape)
    labels = "".join(
        f'    <Label value={quoteattr(plain_text(name))} background="#{bytes(color).hex()}"/>\n'
        for name, color in zip(vocabulary.names, class_colors(vocabulary), strict=True)
    )
    control, image = quoteattr(tags.control), quoteattr(tags.image)
    return (
        f'<View>\n  <Image name={image} value={quoteattr("$" + tags.value)} zoom="true"/>\n'
        f"  <{kind} name={control} toName={image}>\n{labels}  </{kind}>\n</View>\n"
    )


@dataclass(frozen=True)
class LabellingConfig:
    """What a project wants to be told."""

    tags: Tags
    labels: dict[str, tuple[str, ...]]
    """What results say -> its wordings, at least one."""


def read_labelling_config(text: str) -> LabellingConfig:
    """The first BrushLabels of a config, else the first PolygonLabels, for a picture; raises FormatError.

    A label is worded as its value says, with bars between synonyms, and as its alias does, if that is words and no
    code. Results have the alias, where there is one.
    """
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise FormatError(
            f"the labelling config: not valid XML ({str(error)[:80]}); copy it from the project"
        ) from None
    pictures = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
    kinds: tuple[Kind, ...] = ("brush", "polygon")
    for shape in kinds:
        for control in root.iter(_kind(shape)):
            name, image = control.get("name", ""), control.get("toName", "")
            labels = {told: wordings for told, wordings in map(_wordings, control.iter("Label")) if wordings}
            if not name or image not in pictures or not labels:
                continue
            if not pictures[image].startswith("$"):
                raise FormatError(f"the labelling config: the value of Image {image!r} is no $name of a task's data")
            return LabellingConfig(Tags(name, image, pictures[image][1:], shape), labels)
    raise FormatError("the labelling config: has no BrushLabels or PolygonLabels with labels for an Image; add one")


def _wordings(label: Element) -> tuple[str, tuple[str, ...]]:
    value, alias = label.get("value", ""), label.get("alias", "")
    wordings = [" ".join(part.split()) for part in value.split("|")]
    if alias.replace(" ", "").isalpha() or not value:
        wordings.append(alias)
    return alias or value, tuple(dict.fromkeys(filter(None, wordings)))


def write_label_studio(folder: Path, records: Records, vocabulary: Vocabulary) -> None:
    """tasks.json, to be imported, and config.xml, the labelling config of the project."""
    (folder / CONFIG).write_text(labelling_config(vocabulary), encoding="utf-8", newline="\n")
    with (folder / TASKS).open("w", encoding="utf-8", newline="\n") as file:
        file.write("[")
        write_lines(file, (to_label_studio(record) for record in records))
        file.write("\n]\n")


def encode_brush(mask: np.ndarray) -> list[int]:
    """bool [H, W] -> the bytes of Label Studio's run lengths: of a picture that is white and opaque inside the mask.

    A head: the number of values in 32 bits, the bits of a value less one in 5, and four times the bits of a length less
    one in 4. Then runs: a one, which of the four in 2 bits, the length less one, the value.
    """
    flat = mask.ravel()
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    lengths = 4 * np.diff(ends, prepend=0)  # four channels
    values = 255 * flat[ends - 1].astype(np.int64)
    pieces = -(-lengths // _LONGEST)  # long runs come in pieces, the rest last
    values = np.repeat(values, pieces)
    cut = np.full(len(values), _LONGEST)
    cut[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    size = np.searchsorted(2**_SIZES, cut)
    bits = _SIZES[size]
    codes = (((4 | size) << bits | (cut - 1)) << 8) | values
    head = [(4 * flat.size, 32), (7, 5), *((int(width) - 1, 4) for width in _SIZES)]
    codes = np.concatenate([np.array([number for number, _ in head]), codes])
    widths = np.concatenate([np.array([width for _, width in head]), bits + 11])
    last = np.cumsum(widths)
    place = np.arange(last[-1]) - np.repeat(last - widths, widths)  # of a bit in its code, the highest first
    stream = (np.repeat(codes, widths) >> (np.repeat(widths, widths) - 1 - place)) & 1
    packed = np.packbits(stream.astype(np.uint8)).tolist()
    return packed if last[-1] % 8 else [*packed, 0]  # Label Studio's own encoder never ends on a full byte


def _brush(record: PhotoRecord, segment: SegmentRecord, tags: Tags, label: str) -> list[dict[str, Any]]:
    value = {"format": "rle", "rle": encode_brush(record.mask(segment)), "brushlabels": [label]}
    return [_region(record, segment, tags, f"{segment.id}", value)]


def _polygons(record: PhotoRecord, segment: SegmentRecord, tags: Tags, label: str) -> list[dict[str, Any]]:
    """One for each part; holes are filled, for Label Studio's polygons have none."""
    scale = 100 / np.array([record.width, record.height])
    return [
        _region(
            record,
            segment,
            tags,
            f"{segment.id}-{number}",
            {"points": (outline * scale).round(4).tolist(), "closed": True, "polygonlabels": [label]},
        )
        for number, outline in enumerate(outer_polygons(record.mask(segment)), start=1)
    ]


def _region(
    record: PhotoRecord, segment: SegmentRecord, tags: Tags, id: str, value: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "type": _kind(tags.shape).lower(),
        "from_name": tags.control,
        "to_name": tags.image,
        "original_width": record.width,
        "original_height": record.height,
        "image_rotation": 0,
        "score": segment.score,
        "value": value,
    }


def _kind(shape: Kind) -> str:
    return "BrushLabels" if shape == "brush" else "PolygonLabels"


# ----------------------------------------------------------------------------------------------------------------- in


@dataclass(frozen=True, eq=False)
class _Brush:
    """Label Studio's run lengths."""

    packed: bytes
    size_hw: Size

    def draw(self, size_hw: Size) -> np.ndarray:
        check_size(self.size_hw, size_hw)
        return decode_brush(self.packed, size_hw)


@dataclass(frozen=True, eq=False)
class _Percent:
    """A polygon in hundredths of a photo's sides, or a box that was turned on the photo."""

    points: np.ndarray
    """float [N, 2]."""
    size_hw: Size
    degrees: float | None = None
    """Of a box, whose two points are its upper left corner and its width and height."""

    def draw(self, size_hw: Size) -> np.ndarray:
        check_size(self.size_hw, size_hw)
        points = self.points * [size_hw[1] / 100, size_hw[0] / 100]
        if self.degrees is not None:
            points = box_polygon(points[0], points[1], self.degrees, center=False)
        return Polygons((points,)).draw(size_hw)


def is_label_studio(document: object) -> bool:
    """Whether a JSON document looks like an export of its, however it was exported."""
    return (
        isinstance(document, list)
        and bool(document)
        and isinstance(document[0], dict)
        and ("annotation_id" in document[0] or "annotations" in document[0] or "predictions" in document[0])
    )


def read_label_studio(path: Path, document: Any) -> AnnotatedSet:
    """A project exported as JSON (not JSON-MIN). Raises FormatError.

    Of several annotations of a task the one that is marked as ground truth counts, else the last one; cancelled ones
    and predictions do not. Tasks without any are left out. Later regions lie on top.
    """
    if not isinstance(document, list) or not all(isinstance(task, dict) for task in document):
        raise FormatError(f"{path}: is no list of tasks; export the project as JSON")
    classes: dict[str, None] = {}
    photos = []
    for number, task in enumerate(document, start=1):
        where = f"{path}: task {task.get('id', number)}"
        if not isinstance(task.get("annotations"), list) or not isinstance(task.get("data"), dict):
            raise FormatError(f"{where}: has no annotations or no data; export the project as JSON, not as JSON-MIN")
        done = [one for one in task["annotations"] if isinstance(one, dict) and not one.get("was_cancelled")]
        chosen = next((one for one in done if one.get("ground_truth")), done[-1] if done else None)
        if chosen is None:
            continue
        regions = chosen.get("result")
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            raise FormatError(f"{where}: its annotation has no list of results; export the project again")
        masks = tuple(_regions(where, regions))
        classes.update(dict.fromkeys(mask.label for mask in masks))
        photos.append(AnnotatedPhoto(_photo_names(where, task), masks))
    if not photos:
        raise FormatError(f"{path}: holds {len(document)} tasks, none of them annotated; annotate some and submit them")
    return AnnotatedSet(path, tuple(classes), tuple(photos))


def _photo_names(where: str, task: Mapping[str, Any]) -> tuple[str, ...]:
    """The path below the folder of local files, or the name of an upload, with and without what was put before it."""
    found: dict[str, None] = {}
    told = [task.get("file_upload"), *(value for value in task["data"].values() if isinstance(value, str))]
    for value in filter(None, told):
        try:
            parts = urlsplit(str(value)[:4096])
        except ValueError:  # a text that is no address
            continue
        name = parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)
        name = name.replace("\\", "/").lstrip("/")
        if is_inside(name) and PurePosixPath(name).suffix:
            found[name] = None
            short = PurePosixPath(name).name
            start, _, rest = short.partition("-")
            if len(start) == 8 and rest and set(start) <= set("0123456789abcdef"):  # of an upload
                found[rest] = None
            found[short] = None
    if not found:
        raise FormatError(f"{where}: its data name no picture; the task needs the address of one")
    return tuple(found)


def _regions(where: str, regions: Sequence[Mapping[str, Any]]) -> Iterator[AnnotatedMask]:
    labels: dict[str, list[Any]] = {}  # a region and its label may be two results of one id
    for region in regions:
        value = region.get("value")
        if isinstance(value, Mapping):
            labels.setdefault(str(region.get("id")), []).extend(_labels(region, value))
    for number, region in enumerate(regions, start=1):
        value, kind = region.get("value"), str(region.get("type", "")).removesuffix("labels").lower()
        if not isinstance(value, Mapping) or kind in ("", "choices", "textarea", "rating", "number"):
            continue  # of the picture as a whole, or a label for another result
        of_region = f"{where}, result {number}"
        own = list(dict.fromkeys(label for label in labels[str(region.get("id"))] if isinstance(label, str)))
        if len(own) != 1 or not own[0].strip():
            raise FormatError(f"{of_region}: has {len(own)} labels; give every region one")
        try:
            yield AnnotatedMask(of_region, " ".join(own[0].split()), _shape(kind, region, value))
        except ValueError as error:
            raise FormatError(f"{of_region}: {error}") from None


def _labels(region: Mapping[str, Any], value: Mapping[str, Any]) -> list[Any]:
    found = value.get(str(region.get("type")), [])
    return found if str(region.get("type")).endswith("labels") and isinstance(found, list) else []


def _shape(kind: str, region: Mapping[str, Any], value: Mapping[str, Any]) -> Shape:
    size = region.get("original_height"), region.get("original_width")
    if not all(isinstance(side, int) and 0 < side < 10**7 for side in size):
        raise ValueError(f"its original height and width are {str(size)[:50]}; export the project again")
    size_hw: Size = size  # type: ignore[assignment]
    if region.get("image_rotation", 0) != 0:
        raise ValueError("its picture was turned in Label Studio; turn it back, or save the photo turned")
    if kind == "brush":
        packed = value.get("rle")
        if (
            not isinstance(packed, list)
            or not packed
            or not all(type(byte) is int and 0 <= byte < 256 for byte in packed)
        ):
            raise ValueError("its run lengths are no list of bytes")
        return _Brush(bytes(packed), size_hw)
    if kind == "polygon":
        return _Percent(read_polygon(value.get("points")), size_hw)
    if kind == "rectangle":
        sides = [value.get(name) for name in ("x", "y", "width", "height")]
        degrees = value.get("rotation", 0)
        if not all(map(is_number, [*sides, degrees])) or sides[2] <= 0 or sides[3] <= 0:  # type: ignore[operator]
            raise ValueError("its box is empty or no numbers; draw it again")
        return _Percent(np.array(sides, float).reshape(2, 2), size_hw, float(degrees))
    raise ValueError(f"a region of type {kind[:30]!r} is no mask; draw a brush, a polygon or a rectangle, or remove it")


def decode_brush(packed: bytes, size_hw: Size) -> np.ndarray:
    """The bytes of Label Studio's run lengths -> where the picture is not transparent, bool [H, W]; ValueError.

    It reads what `encode_brush` tells of, with any sizes, and single values between the runs.
    """
    height, width = size_hw
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    stream = int.from_bytes(packed[:8].ljust(8, b"\0"))
    count, word = stream >> 32, (stream >> 27 & 31) + 1
    sizes = [(stream >> 27 - 4 * place & 15) + 1 for place in range(1, 5)]
    if len(bits) < 53 or count != height * width * 4:
        raise ValueError(f"its run lengths are not of the {width} x {height} pixels of its photo")
    alpha = np.zeros(count, bool)
    at, done, end = 53, 0, len(bits)
    padded = packed + bytes(8)
    while done < count:
        window = int.from_bytes(padded[at >> 3 : (at >> 3) + 8]) << (at & 7) & (1 << 64) - 1
        size = sizes[window >> 61 & 3]
        length = (window >> 61 - size & (1 << size) - 1) + 1
        at += 3 + size
        values = word if window >> 63 else word * length
        if at + values > end or done + length > count:
            raise ValueError("its run lengths are cut short")
        if window >> 63:
            alpha[done : done + length] = bits[at : at + word].any()
        else:
            alpha[done : done + length] = bits[at : at + values].reshape(length, word).any(1)
        at, done = at + values, done + length
    return alpha.reshape(height, width, 4)[..., 3]
