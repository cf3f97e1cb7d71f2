"""Photos with true masks of your own, in several formats, looked through before anything is trained on them.

Label pictures, a folder:

    images/ID.jpg       photos in any format, upright by their EXIF orientation
    labels/ID.png       PNG, grey or palette, 8 or 16 bits, of the photo's size: the number of the class of every pixel;
                        255 (with 16 bits 65535) is no class
    classes.txt         UTF-8, a class per line, the first line is class 0; synonyms after |: "road | street"
    train.txt, val.txt  IDs, one per line; both or none. Without them a fifth of the photos is for validation

A class of a photo is one mask.

COCO panoptic, a JSON file:

    NAME.json           images, annotations, categories, as in COCO's panoptic_val2017.json
    NAME/               PNGs of segment ids, red + 256 green + 65536 blue; "file_name" of the annotations
    images/             photos, "file_name" of the images, beside the JSON file

A segment is one mask; crowds are none. Validation is another such file, or a fifth of the photos.

COCO instances, a JSON file; a project of Label Studio, exported as JSON; a task of CVAT, exported as "CVAT for images
1.1", as .xml or .zip:

    images/             the photos beside the file, by the names that it tells

A shape is one mask, whatever it was drawn as; a pixel belongs to the one that lies on top. Crowds are none. Validation
is another such file, or a fifth of the photos.

A data package, a folder or a zip with dataset.json inside: see `lexiseg.data.packages`.

What is wrong is told in lines that name the file, the problem and the remedy, all of them at once.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lexiseg.data.coco_panoptic import PanopticPhoto
from lexiseg.data.package_splits import segments_of
from lexiseg.data.packages import LabelledPhotos
from lexiseg.formats.annotations import AnnotatedPhoto, AnnotatedSet, FormatError, is_id, is_inside, read_json_file
from lexiseg.formats.coco import read_coco
from lexiseg.formats.coco_panoptic import read_segment_ids
from lexiseg.formats.cvat import ANNOTATIONS, read_cvat
from lexiseg.formats.label_studio import is_label_studio, read_label_studio
from lexiseg.images import find_images, read_image, read_label_map
from lexiseg.vocabulary import MAX_FILE_BYTES, Vocabulary, VocabularyClass, VocabularyError

NO_CLASS = 255
NO_CLASS_16_BITS = 65535
VAL_SHARE = 0.2
MOST_LINES = 40
MOST_LINES_OF_FILE = 3


class DataProblems(ValueError):
    """Data that cannot be trained on. `lines` has a line for every problem, as many as one reads."""

    def __init__(self, lines: Iterable[str]) -> None:
        found = [" ".join(line.split()) for line in lines]
        shown: list[str] = []
        of_file: Counter[str] = Counter()
        for line in found:
            file = line.split(": ", 1)[0]
            of_file[file] += 1
            if of_file[file] <= MOST_LINES_OF_FILE and len(shown) < MOST_LINES:
                shown.append(line)
        if len(shown) < len(found):
            shown.append(f"and {len(found) - len(shown)} more problems, in {len(of_file)} files altogether")
        self.lines: tuple[str, ...] = tuple(shown)
        super().__init__("\n".join(shown))


class MaskData(Protocol):
    """Photos with true masks, by id."""

    name: str
    vocabulary: Vocabulary
    splits: dict[str, list[str]]
    """"train" at least."""

    def photo(self, id: str) -> PanopticPhoto:
        """A photo and its masks; raises ValueError with one line where it cannot be used."""

    def files(self, id: str) -> tuple[Path, ...]:
        """What it is made of: the photo's own file first. Empty inside archives."""


# --------------------------------------------------------------------------------------------------------- the formats


def open_mask_data(path: Path, images: Path | None = None, segments: Path | None = None) -> MaskData:
    """The data at `path`, told by what is there. images: the folder of the photos of a file of annotations, if it is
    not beside it; segments: that of the PNGs of a COCO panoptic file.

    Raises `DataProblems` with all that is wrong about its lists and names; what is wrong inside pictures is told by
    `look_through`.
    """
    if path.is_file() and (path.suffix.lower() in (".json", ".xml") or _is_cvat_zip(path)):
        return _open_file(path, images, segments)
    if images is not None or segments is not None:
        raise DataProblems([f"{path}: --images and --segments are for a file of annotations; give that as --data"])
    if path.is_dir() and not (path / "dataset.json").is_file():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in (".json", ".xml"))
        if not (path / "labels").is_dir() and len(files) == 1:
            return _open_file(files[0], None, None)
        if not (path / "labels").is_dir() and files:
            raise DataProblems([f"{path}: holds {len(files)} JSON or XML files; give one as --data, another as --val"])
        return LabelFolder(path)
    if not path.exists():
        raise DataProblems([f"{path}: there is no such file or folder; check the path"])
    try:
        return PackageMasks(LabelledPhotos(path))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataProblems([f"{error}" if str(path) in str(error) else f"{path}: no data package ({error})"]) from None


def _open_file(path: Path, images: Path | None, segments: Path | None) -> MaskData:
    """A JSON file of COCO or Label Studio, or an export of CVAT."""
    try:
        if path.suffix.lower() != ".json":
            return AnnotatedMasks(read_cvat(path), images)
        document = read_json_file(path)
        if is_label_studio(document):
            return AnnotatedMasks(read_label_studio(path, document), images)
        first = (document.get("annotations") or [None])[0] if isinstance(document, dict) else None
        if isinstance(first, dict) and "segmentation" in first:
            return AnnotatedMasks(read_coco(path, document), images)
    except FormatError as error:
        raise DataProblems([str(error)]) from None
    return CocoMasks(path, document, images, segments)


def _is_cvat_zip(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == ANNOTATIONS for name in archive.namelist())


class LabelFolder:
    """images/, labels/ and classes.txt."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.resolve().name
        problems: list[str] = []
        for part, what in (("images", "the photos"), ("labels", "a PNG of class numbers for each photo")):
            if not (folder / part).is_dir():
                problems.append(f"{folder / part}: no such folder; it holds {what}")
        phrases = _read_classes(folder / "classes.txt", problems)
        self._photos: dict[str, Path] = {}
        if (folder / "images").is_dir():
            for path in find_images(folder / "images"):
                id = path.relative_to(folder / "images").with_suffix("").as_posix()
                if id in self._photos:
                    problems.append(f"{path}: {self._photos[id].name} has the same name; rename one, and its labels")
                self._photos.setdefault(id, path)
        labels = {
            path.relative_to(folder / "labels").with_suffix("").as_posix(): path
            for path in find_images(folder / "labels")
            if path.suffix.lower() == ".png"
        }
        if not problems:
            problems += [
                f"{path}: has no labels ({folder / 'labels' / id}.png); add them or remove the photo"
                for id, path in self._photos.items()
                if id not in labels
            ]
            problems += [
                f"{path}: has no photo of that name in images; add it or remove the labels"
                for id, path in labels.items()
                if id not in self._photos
            ]
            if not self._photos:
                problems.append(f"{folder / 'images'}: holds no photos; put them there")
        self.splits = _read_splits(folder, list(self._photos), problems)
        if problems:
            raise DataProblems(problems)
        self.vocabulary = Vocabulary(tuple(VocabularyClass(own) for own in phrases))

    def files(self, id: str) -> tuple[Path, ...]:
        return (self._photos[id], self.folder / "labels" / f"{id}.png")

    def photo(self, id: str) -> PanopticPhoto:
        path, labels_path = self.files(id)
        image = read_image(path).rgb
        stored = read_label_map(labels_path)
        _same_size(labels_path, stored, path, image)
        none = NO_CLASS if stored.dtype.itemsize == 1 else NO_CLASS_16_BITS
        if none == NO_CLASS and len(self.vocabulary) > NO_CLASS:
            raise ValueError(
                f"{labels_path}: 8 bits hold the classes 0 to {NO_CLASS - 1}, but there are {len(self.vocabulary)}; "
                "save all labels with 16 bits"
            )
        labels = stored.astype(np.int32)
        present = np.unique(labels)
        present = present[present != none]
        beyond = present[(present < 0) | (present >= len(self.vocabulary))]
        if len(beyond):
            raise ValueError(_beyond(labels_path, beyond.tolist(), len(self.vocabulary), none))
        ids = np.where(labels == none, 0, labels + 1).astype(np.int32)
        return PanopticPhoto(image, ids, {int(number) + 1: int(number) for number in present})


class CocoMasks:
    """A COCO panoptic JSON file, its PNGs and its photos."""

    def __init__(self, path: Path, document: Any, images: Path | None = None, segments: Path | None = None) -> None:
        self.path, self.name = path, path.stem
        self._images = images or path.parent / "images"
        self._segments = segments or path.with_suffix("")
        _check_lists(path, document)
        problems: list[str] = []
        for folder, what, option in (
            (self._images, "photos", "--images"),
            (self._segments, "PNGs of segment ids", "--segments"),
        ):
            if not folder.is_dir():
                problems.append(f"{folder}: no such folder; {what} are looked for there, or where {option} says")
        self._index, classes = self._categories(document["categories"], problems)
        photos = self._files(document["images"], problems)
        self._listed: dict[str, tuple[Path, Path, list[Mapping[str, Any]]]] = {}
        for number, annotation in enumerate(document["annotations"]):
            self._add(number, annotation, photos, problems)
        if not self._listed and not problems:
            problems.append(f"{path}: has no annotations; there is nothing to train on")
        if problems:
            raise DataProblems(problems)
        self.vocabulary = Vocabulary(classes)
        self.splits = {"train": list(self._listed)}

    def _categories(self, categories: Any, problems: list[str]) -> tuple[dict[Any, int], tuple[VocabularyClass, ...]]:
        index: dict[Any, int] = {}
        classes: list[VocabularyClass] = []
        owner: dict[str, Any] = {}
        for number, category in enumerate(categories if isinstance(categories, list) else []):
            where = f"{self.path}: category {number + 1}"
            name = category.get("name") if isinstance(category, Mapping) else None
            if not isinstance(category, Mapping) or not is_id(category.get("id")):
                problems.append(f"{where} has no id; give every category an id and a name")
                continue
            if not isinstance(name, str) or not name.strip():
                problems.append(f"{where} (id {category['id']}) has no name; give it one")
                continue
            if category["id"] in index:
                problems.append(f"{where} ({name!r}) has the id {category['id']} of another one; give each its own")
                continue
            known = owner.setdefault(_folded(name), category["id"])
            if known != category["id"]:
                problems.append(f"{where} is called {name!r} like that with id {known}; join them or rename one")
            index[category["id"]] = len(classes)
            classes.append(VocabularyClass((" ".join(name.split()),), is_thing=bool(category.get("isthing", True))))
        if not index and not problems:
            problems.append(f"{self.path}: has no categories; list the classes there")
        return index, tuple(classes)

    def _files(self, images: Any, problems: list[str]) -> dict[Any, str]:
        files: dict[Any, str] = {}
        for number, image in enumerate(images if isinstance(images, list) else []):
            where = f"{self.path}: image {number + 1}"
            if not isinstance(image, Mapping) or not is_id(image.get("id")) or not is_inside(image.get("file_name")):
                problems.append(f"{where} needs an id and a file_name below the folder of the photos")
            elif image["id"] in files:
                problems.append(f"{where} ({image['file_name']}) has the id of another one, {image['id']}; change it")
            else:
                files[image["id"]] = image["file_name"]
        return files

    def _add(self, number: int, annotation: Any, photos: Mapping[Any, str], problems: list[str]) -> None:
        where = f"{self.path}: annotation {number + 1}"
        listed = annotation.get("segments_info") if isinstance(annotation, Mapping) else None
        if not isinstance(listed, list) or not is_inside(annotation.get("file_name")):
            problems.append(f"{where} needs segments_info and a file_name below the folder of the PNGs")
            return
        image_id = annotation.get("image_id")
        photo = photos.get(image_id) if is_id(image_id) else None
        if photo is None:
            problems.append(f"{where} is of image {image_id}, which is not listed; add it to images")
            return
        if photo in self._listed:
            problems.append(f"{where} is the second one of {photo}; keep one")
            return
        seen: set[Any] = set()
        for segment in listed:
            if not isinstance(segment, Mapping) or not isinstance(segment.get("id"), int) or segment["id"] <= 0:
                problems.append(f"{where} ({photo}) has a segment without an id above 0; give it the one in the PNG")
                return
            if segment["id"] in seen:
                problems.append(f"{where} ({photo}) lists segment {segment['id']} twice; keep one")
            category_id = segment.get("category_id")
            if not is_id(category_id) or category_id not in self._index:
                problems.append(
                    f"{where} ({photo}): segment {segment['id']} is of category {category_id}, which is not listed; "
                    "add it to categories"
                )
            seen.add(segment["id"])
        self._listed[photo] = (self._images / photo, self._segments / annotation["file_name"], listed)

    def files(self, id: str) -> tuple[Path, ...]:
        photo, segments, _ = self._listed[id]
        return (photo, segments)

    def photo(self, id: str) -> PanopticPhoto:
        path, segments_path, listed = self._listed[id]
        image = read_image(path).rgb
        ids = read_segment_ids(segments_path)
        _same_size(segments_path, ids, path, image)
        numbers = {segment["id"] for segment in listed}
        present = set(np.unique(ids).tolist()) - {0}
        if unlisted := sorted(present - numbers):
            raise ValueError(
                f"{segments_path}: holds segment {unlisted[0]}, which {self.path.name} does not list for it; list it, "
                "or paint it 0"
            )
        if absent := sorted(numbers - present):
            raise ValueError(
                f"{segments_path}: has no pixel of segment {absent[0]}, which {self.path.name} lists; paint it, or "
                "remove it there"
            )
        classes = {
            segment["id"]: self._index[segment["category_id"]] for segment in listed if not segment.get("iscrowd", 0)
        }
        return PanopticPhoto(image, ids, classes)


class AnnotatedMasks:
    """Shapes that an annotation tool keeps, and the photos beside its file."""

    def __init__(self, annotated: AnnotatedSet, images: Path | None = None) -> None:
        path = annotated.path
        self.name, self._images = path.stem, images or path.parent / "images"
        if not self._images.is_dir():
            raise DataProblems([f"{self._images}: no such folder; photos are looked for there, or where --images says"])
        problems: list[str] = []
        self._photos: dict[str, tuple[Path, AnnotatedPhoto]] = {}
        for photo in annotated.photos:
            found = next((name for name in photo.names if (self._images / name).is_file()), None)
            if found is None:
                problems.append(
                    f"{self._images / photo.names[0]}: no such file, but {path.name} is about it; put it there"
                )
            elif found in self._photos:
                problems.append(f"{path}: is twice about {found}; keep one")
            else:
                self._photos[found] = (self._images / found, photo)
        things = annotated.is_thing or (True,) * len(annotated.classes)
        try:
            self.vocabulary = Vocabulary(
                tuple(VocabularyClass((name,), thing) for name, thing in zip(annotated.classes, things, strict=True))
            )
        except VocabularyError as error:  # there are none
            problems.append(f"{path}: {error}")
        if problems:
            raise DataProblems(problems)
        self._file = path
        self._index = {name: index for index, name in enumerate(annotated.classes)}
        self.splits = {"train": list(self._photos)}

    def files(self, id: str) -> tuple[Path, ...]:
        return (self._photos[id][0], self._file)

    def photo(self, id: str) -> PanopticPhoto:
        path, annotated = self._photos[id]
        image = read_image(path).rgb
        ids = np.zeros(image.shape[:2], np.int32)
        for number, mask in enumerate(annotated.masks, start=1):
            ids[mask.draw(image.shape[:2])] = number
        visible = set(np.unique(ids).tolist())
        classes = {
            number: self._index[mask.label]
            for number, mask in enumerate(annotated.masks, start=1)
            if number in visible and not mask.is_crowd
        }
        return PanopticPhoto(image, ids, classes)


class PackageMasks:
    """A data package."""

    def __init__(self, package: LabelledPhotos) -> None:
        self.package, self.name, self.splits = package, package.name, dict(package.splits)
        things = package.is_thing or (True,) * len(package.classes)
        self.vocabulary = Vocabulary(
            tuple(VocabularyClass((name,), is_thing=thing) for name, thing in zip(package.classes, things, strict=True))
        )
        if tuple(range(len(package.classes))) == package.word_class:
            own = zip(package.words, things, strict=True)
            self.vocabulary = Vocabulary(tuple(VocabularyClass(words, is_thing=thing) for words, thing in own))
        if "train" not in self.splits:
            raise ValueError(f"{package.path}: has no split 'train', only {', '.join(self.splits)}")

    def files(self, id: str) -> tuple[Path, ...]:
        path = self.package.path
        return (path / "images" / f"{id}{self.package.image_suffix}",) if path.is_dir() else ()

    def photo(self, id: str) -> PanopticPhoto:
        try:
            found = self.package.photo(id)
        except ValueError:
            raise
        except Exception as error:  # decoders meet damaged files with every kind of exception
            where = f"{self.package.path}: photo {id}"
            raise ValueError(f"{where}: missing or damaged ({error}); put it there again") from None
        beyond = [x for x in np.unique(found.labels).tolist() if x >= len(self.vocabulary) and x != self.package.ignore]
        if beyond:
            where = f"{self.package.path}: labels of {id}"
            raise ValueError(_beyond(where, beyond, len(self.vocabulary), self.package.ignore))
        return segments_of(found, self.package.ignore, self.package.region_classes.get(id, []))


class MaskPhotos(Sequence[PanopticPhoto]):
    """Some photos of a set, read when they are asked for, with the masks of some of its classes."""

    def __init__(self, data: MaskData, ids: Sequence[str], kept: Sequence[int] | None = None) -> None:
        """kept: the classes that are left, which are numbered in this order; None for all as they are."""
        self.data, self.ids = data, list(ids)
        self.place = None if kept is None else {index: place for place, index in enumerate(kept)}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: Any) -> Any:
        photo = self.data.photo(self.ids[number])
        return photo if self.place is None else with_classes(photo, self.place)


def with_classes(photo: PanopticPhoto, place: Mapping[int, int]) -> PanopticPhoto:
    """The photo with the masks of some classes. place: class -> its new number."""
    kept = {segment: place[index] for segment, index in photo.classes.items() if index in place}
    return PanopticPhoto(photo.image, photo.ids, kept)


# ---------------------------------------------------------------------------------------------------- looking through


@dataclass(frozen=True)
class LookedThrough:
    """What a set holds; every picture of it has been read."""

    classes: dict[str, tuple[int, ...]]
    """id -> the class of each of its masks."""
    hashes: dict[str, str] = field(default_factory=dict)
    """id -> SHA-256 of the photo's file; empty for archives."""


def look_through(
    data: MaskData,
    ids: Sequence[str],
    remembered: Path | None = None,
    progress: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> LookedThrough:
    """Reads every photo of `ids` and its masks; raises `DataProblems` with everything that is wrong.

    remembered: a file that keeps the outcome, so that a run that goes on need not look again at files that have not
    changed.
    """
    state = _state_of(data, ids)
    if remembered is not None and (known := _remembered(remembered, state)) is not None:
        return known
    problems: list[str] = []
    classes: dict[str, tuple[int, ...]] = {}
    hashes: dict[str, str] = {}
    for id in progress(ids):
        try:
            photo = data.photo(id)
            classes[id] = tuple(photo.classes.values())
            if files := data.files(id):
                hashes[id] = hashlib.sha256(files[0].read_bytes()).hexdigest()
        except (ValueError, OSError) as error:
            problems.append(str(error) if isinstance(error, ValueError) else f"{data.name}: {id}: {error}")
    if not problems and not any(classes.values()):
        problems.append(f"{data.name}: no photo has a mask; label some pixels with the number of a class")
    if problems:
        raise DataProblems(problems)
    found = LookedThrough(classes, hashes)
    if remembered is not None:
        content = {"state": state, "classes": classes, "hashes": hashes}
        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps(content), encoding="utf-8")
    return found


def refuse_overlap(train: LookedThrough, val: LookedThrough, names: tuple[str, str] = ("train", "val")) -> None:
    """Raises `DataProblems` where a photo, byte by byte, is on both sides."""
    known = {digest: id for id, digest in train.hashes.items()}
    lines = [
        f"{id}: the photo is {known[digest]} of {names[0]} and in {names[1]} too; numbers on it would mean nothing, "
        "remove it from one"
        for id, digest in val.hashes.items()
        if digest in known
    ]
    if lines:
        raise DataProblems(lines)


def split_off(ids: Sequence[str], share: float = VAL_SHARE) -> tuple[list[str], list[str]]:
    """(train, val): `share` of the photos for validation, chosen by their names, at least one of each."""
    if len(ids) < 2:
        raise DataProblems([f"{', '.join(ids)}: one photo alone cannot be trained on and measured; add more"])
    count = min(len(ids) - 1, max(1, round(share * len(ids))))
    chosen = set(sorted(ids, key=lambda id: hashlib.sha256(id.encode()).hexdigest())[:count])
    return [id for id in ids if id not in chosen], [id for id in ids if id in chosen]


def _state_of(data: MaskData, ids: Sequence[str]) -> str:
    """Stands for the files, as far as their sizes and times tell."""
    digest = hashlib.sha256(json.dumps([list(entry.phrases) for entry in data.vocabulary.classes]).encode())
    for id in ids:
        digest.update(id.encode())
        for path in data.files(id):
            try:
                status = path.stat()
            except OSError:
                continue
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _remembered(path: Path, state: str) -> LookedThrough | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["state"] != state:
            return None
        return LookedThrough({id: tuple(own) for id, own in content["classes"].items()}, content["hashes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# ------------------------------------------------------------------------------------------------------------- pieces


def _read_text(path: Path, problems: list[str]) -> list[str] | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            problems.append(f"{path}: larger than {MAX_FILE_BYTES // 2**20} MB, so hardly a list; check the file")
            return None
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        problems.append(f"{path}: not UTF-8 text; save it as UTF-8")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror}); write one entry per line there")
    return None


def _read_classes(path: Path, problems: list[str]) -> list[tuple[str, ...]]:
    """The phrases of every line; what is wrong with them goes to `problems`."""
    lines = _read_text(path, problems)
    if lines is None:
        return []
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        problems.append(f"{path}: is empty; write one class per line, the first is number 0")
    owner: dict[str, int] = {}
    classes = []
    for number, line in enumerate(lines):
        phrases = tuple(" ".join(part.split()) for part in line.split("|"))
        if not all(phrases):
            problems.append(f"{path}: line {number + 1} (class {number}) has an empty name; every line is a class")
        try:
            if all(phrases):
                Vocabulary.parse([list(phrases)])
        except VocabularyError as error:
            problems.append(f"{path}: line {number + 1} (class {number}): {str(error).partition(': ')[2] or error}")
        for phrase in filter(None, phrases):
            first = owner.setdefault(_folded(phrase), number)
            if first != number:
                problems.append(
                    f"{path}: line {number + 1} says {phrase!r}, and so does line {first + 1}; a name is one class"
                )
        classes.append(tuple(dict.fromkeys(phrases)))
    return classes


def _read_splits(folder: Path, ids: list[str], problems: list[str]) -> dict[str, list[str]]:
    paths = {split: folder / f"{split}.txt" for split in ("train", "val")}
    there = [split for split, path in paths.items() if path.is_file()]
    if not there:
        return {"train": ids}
    if len(there) == 1:
        problems.append(f"{paths[there[0]]}: is alone; write the other of train.txt and val.txt too, or remove it")
        return {"train": ids}
    splits: dict[str, list[str]] = {}
    for split, path in paths.items():
        named = [line.strip() for line in _read_text(path, problems) or [] if line.strip()]
        for id, times in Counter(named).items():
            if times > 1:
                problems.append(f"{path}: names {id!r} {times} times; keep one line")
            if id not in ids:
                problems.append(f"{path}: names {id!r}, but there is no such photo in images; names have no ending")
        if not named:
            problems.append(f"{path}: names no photo; write one id per line")
        splits[split] = list(dict.fromkeys(named))
    for id in sorted(set(splits["train"]) & set(splits["val"])):
        problems.append(f"{paths['val']}: names {id!r}, which train.txt names too; keep it in one of them")
    return splits


def _check_lists(path: Path, document: Any) -> None:
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(document, dict) or not isinstance(document.get(key), list)
    ]
    if missing:
        raise DataProblems(
            [f"{path}: has no list {missing[0]!r}, so it is no COCO panoptic file; is it the right one?"]
        )


def _same_size(path: Path, labels: NDArray[Any], photo: Path, image: NDArray[np.uint8]) -> None:
    if labels.shape == image.shape[:2]:
        return
    (height, width), (rows, columns) = labels.shape, image.shape[:2]
    turned = (rows, columns) == (width, height)
    hint = "turn it as the photo's EXIF orientation says" if turned else "make it again from the photo at its own size"
    raise ValueError(f"{path}: {width} x {height} pixels, but {photo.name} has {columns} x {rows}; {hint}")


def _beyond(path: Path | str, values: Sequence[int], classes: int, none: int) -> str:
    shown = ", ".join(str(value) for value in values[:5]) + (" ..." if len(values) > 5 else "")
    return (
        f"{path}: holds the values {shown}, but there are {classes} classes, 0 to {classes - 1}, and {none} for none; "
        "write class numbers into it (colours of a palette and blurred edges are none), or complete the classes"
    )


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
