"""What a batch is made of: the photos of a folder, of a pattern, of a list, of a zip file or of object storage.

Names are relative paths with forward slashes, the same at every call: results are kept by them. Photos may be sent to
other processes and read there.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePath
from urllib.request import url2pathname

from lexiseg.bulk.remote import (
    RemoteError,
    RemotePhoto,
    Stamp,
    before_pattern,
    find_photos,
    is_address,
    read_list,
)
from lexiseg.data.sources import Source, SourceError, SourceLimits
from lexiseg.images import IMAGE_SUFFIXES, ImageError, ImageLimits, Photo, find_images, read_image

MAX_LIST_BYTES = 512 * 2**20
"""Of a list of paths."""


class BatchError(ValueError):
    """A batch that cannot begin or go on. The message says why and what to do."""


@dataclass(frozen=True)
class Input:
    """One photo that is to be read."""

    name: str
    stamp: Stamp | None
    """Size and time of change of its file, or what a storage has in its place: a photo that was exchanged is segmented
    anew. None where that is not known."""
    read: Callable[[], Photo]
    """Raises ImageError."""


@contextmanager
def inputs_of(given: str | os.PathLike[str], limits: ImageLimits, out: Path) -> Iterator[tuple[Input, ...]]:
    """The photos that `given` names, in the order of their names; a zip stays open while the block lasts.

    given: a folder, a pattern with * ? [ ] (** for folders in folders), a .txt file with one path a line, a .zip file,
    or one photo; a folder, pattern, list or photo may be an address that fsspec reads (s3://bucket/photos). Of folders,
    patterns and zips the files with the endings of pictures count; what lies in `out` does not. Raises BatchError where
    there are no photos, or a zip is not to be trusted.
    """
    text = os.fspath(given)
    if text.startswith("file://"):
        text = url2pathname(text.removeprefix("file://"))
    path = Path(text)
    if is_address(text):
        yield _remote(text, limits)
    elif path.is_dir():
        yield _files(
            text, {file.relative_to(path).as_posix(): file for file in _outside(find_images(path), out)}, limits
        )
    elif path.is_file() and path.suffix.lower() == ".zip":
        path = Path(os.path.abspath(path))
        with _one_line():
            source = _opened(path, SourceLimits(member_bytes=limits.max_bytes))
        try:
            yield _members(path, source, limits)
        finally:
            _opened.cache_clear()
            source.close()
    elif path.is_file() and path.suffix.lower() == ".txt":
        yield _list(text, limits)
    elif path.is_file():
        yield _files(text, {path.name: path}, limits)
    elif glob.has_magic(text):
        yield _files(text, _matching(text, out), limits)
    else:
        raise BatchError(f"{text}: there is no such folder or file; give a folder, a pattern, a .txt list or a .zip")


@dataclass(frozen=True)
class _File:
    """Reads a photo when it is called."""

    path: Path
    name: str
    limits: ImageLimits

    def __call__(self) -> Photo:
        return read_image(self.path, self.limits, self.name)


@dataclass(frozen=True)
class _Member:
    """The same of a member of a zip, which every process opens once."""

    archive: Path
    name: str
    limits: ImageLimits

    def __call__(self) -> Photo:
        try:
            content = _opened(self.archive, SourceLimits(member_bytes=self.limits.max_bytes)).read(self.name)
        except SourceError as error:
            raise ImageError(self.name, str(error)) from None
        return read_image(content, self.limits, self.name)


@contextmanager
def _one_line() -> Iterator[None]:
    """What other modules say about an input, as the error of a batch."""
    try:
        yield
    except (SourceError, RemoteError) as error:
        raise BatchError(str(error)) from None


def _files(given: str, files: dict[str, Path], limits: ImageLimits) -> tuple[Input, ...]:
    absolute = {name: Path(os.path.abspath(path)) for name, path in files.items()}  # others may be elsewhere
    return _sorted(given, [Input(name, _stamp(path), _File(path, name, limits)) for name, path in absolute.items()])


def _sorted(given: str, photos: list[Input]) -> tuple[Input, ...]:
    if not photos:
        raise BatchError(f"{given}: no photos there; what lies in the folder for the results does not count")
    return tuple(sorted(photos, key=lambda photo: photo.name))


def _remote(url: str, limits: ImageLimits) -> tuple[Input, ...]:
    ending = "" if "::" in url else PurePath(url).suffix.lower()
    if ending == ".txt":
        return _list(url, limits)
    if ending == ".zip":
        raise BatchError(f"{url}: the photos in a zip elsewhere are at zip://::{url}")
    with _one_line():
        found = find_photos(url)
    for name in found:
        _check_name(url, name)
    return _sorted(
        url, [Input(name, stamp, RemotePhoto(place, name, limits)) for name, (place, stamp) in found.items()]
    )


def _check_name(given: str, name: str) -> None:
    """Keys of a storage may be anything; results are kept in files of these names."""
    if any(part in ("", ".", "..") for part in name.split("/")) or "\0" in name:
        raise BatchError(f"{given}: {name!r} cannot be the name of a file; rename this photo")


def _matching(pattern: str, out: Path) -> dict[str, Path]:
    """Named from the first folder of the pattern that has no * ? [ ] in it."""
    root = Path(*before_pattern(PurePath(pattern).parts))
    found = [Path(file) for file in glob.glob(pattern, recursive=True)]
    photos = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return {file.relative_to(root).as_posix(): file for file in _outside(photos, out)}


def _list(given: str, limits: ImageLimits) -> tuple[Input, ...]:
    """One path or address a line; relative ones are meant from the folder of the list. Twice counts once."""
    far = is_address(given)
    if far:
        with _one_line():
            content, folder = read_list(given, MAX_LIST_BYTES)
    else:
        with open(given, "rb") as file:
            content, folder = file.read(MAX_LIST_BYTES + 1), os.path.abspath(os.path.dirname(given))
    if len(content) > MAX_LIST_BYTES:
        raise BatchError(f"{given}: more than {MAX_LIST_BYTES >> 20} MB; a list has one path a line")
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BatchError(f"{given}: not a text in UTF-8; save it as such, with one path a line") from None
    photos: dict[str, Input] = {}
    for line in filter(None, (line.strip() for line in lines)):
        if "\0" in line:
            raise BatchError(f"{given}: {line!r} is no path; a list has one path a line")
        if far or is_address(line):
            photo = _listed_address(given, line, folder, limits)
        else:
            photo = _listed_path(line, Path(folder), limits)
        before = photos.setdefault(photo.name, photo)
        if before.read != photo.read:
            raise BatchError(f"{given}: two photos would share the name {photo.name}; move one of them ({line})")
    return _sorted(given, list(photos.values()))


def _listed_path(line: str, folder: Path, limits: ImageLimits) -> Input:
    path = Path(os.path.abspath(folder / line))
    inside = path.is_relative_to(folder)
    name = (path.relative_to(folder) if inside else path.relative_to(path.anchor)).as_posix()
    return Input(name, _stamp(path), _File(path, name, limits))


def _listed_address(given: str, line: str, folder: str, limits: ImageLimits) -> Input:
    """What lies below the folder of the list is named from there, and nothing is asked for its state."""
    url = line if is_address(line) else f"{folder}/{line}"
    name = url.removeprefix(f"{folder}/").partition("://")[2] or url.removeprefix(f"{folder}/")
    _check_name(given, name)
    return Input(name, None, RemotePhoto(url, name, limits))


@lru_cache(maxsize=1)
def _opened(path: Path, limits: SourceLimits) -> Source:
    return Source(path, limits)


def _members(path: Path, source: Source, limits: ImageLimits) -> tuple[Input, ...]:
    stamp = _stamp(path)
    photos = [name for name in source.paths if PurePath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not photos:
        raise BatchError(f"{path}: no photos in it; give a zip with image files")
    return tuple(Input(name, stamp, _Member(path, name, limits)) for name in photos)


def _outside(files: list[Path], folder: Path) -> list[Path]:
    """Without what an earlier run has written."""
    inside = folder.resolve()
    return [file for file in files if not file.resolve().is_relative_to(inside)]


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
