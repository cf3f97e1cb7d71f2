"""What a batch is made of: the photos of a folder, of a pattern, of a list or of a zip file, each under its own name.

Names are relative paths with forward slashes, the same at every call: results are kept by them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

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
    stamp: tuple[int, int] | None
    """Size and time of change of its file: a photo that was exchanged is segmented anew. None where there is none."""
    read: Callable[[], Photo]
    """Raises ImageError."""


@contextmanager
def inputs_of(given: str | os.PathLike[str], limits: ImageLimits, out: Path) -> Iterator[tuple[Input, ...]]:
    """The photos that `given` names, in the order of their names; a zip stays open while the block lasts.

    given: a folder, a pattern with * ? [ ] (** for folders in folders), a .txt file with one path a line, a .zip file,
    or one photo. Of folders, patterns and zips the files with the endings of pictures count; what lies in `out` does
    not. Raises BatchError where there are no photos, or a zip is not to be trusted.
    """
    text = os.fspath(given)
    path = Path(text)
    if path.is_dir():
        yield _files(
            text, {file.relative_to(path).as_posix(): file for file in _outside(find_images(path), out)}, limits
        )
    elif path.is_file() and path.suffix.lower() == ".zip":
        with _zip(path, limits) as source:
            yield _members(path, source, limits)
    elif path.is_file() and path.suffix.lower() == ".txt":
        yield _files(text, _listed(path), limits)
    elif path.is_file():
        yield _files(text, {path.name: path}, limits)
    elif glob.has_magic(text):
        yield _files(text, _matching(text, out), limits)
    else:
        raise BatchError(f"{text}: there is no such folder or file; give a folder, a pattern, a .txt list or a .zip")


def _files(given: str, files: dict[str, Path], limits: ImageLimits) -> tuple[Input, ...]:
    if not files:
        raise BatchError(f"{given}: no photos there; what lies in the folder for the results does not count")
    return tuple(_file(name, files[name], limits) for name in sorted(files))


def _file(name: str, path: Path, limits: ImageLimits) -> Input:
    return Input(name, _stamp(path), lambda: read_image(path, limits, name))


def _matching(pattern: str, out: Path) -> dict[str, Path]:
    """Named from the first folder of the pattern that has no * ? [ ] in it."""
    fixed = []
    for part in PurePath(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = Path(*fixed)
    found = [Path(file) for file in glob.glob(pattern, recursive=True)]
    photos = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return {file.relative_to(root).as_posix(): file for file in _outside(photos, out)}


def _listed(path: Path) -> dict[str, Path]:
    """Relative lines are meant from the folder of the list. A line that comes twice counts once."""
    if path.stat().st_size > MAX_LIST_BYTES:
        raise BatchError(f"{path}: more than {MAX_LIST_BYTES >> 20} MB; a list has one path a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BatchError(f"{path}: not a text in UTF-8; save it as such, with one path a line") from None
    folder = Path(os.path.abspath(path.parent))
    found: dict[str, Path] = {}
    for line in filter(None, (line.strip() for line in lines)):
        if "\0" in line:
            raise BatchError(f"{path}: {line!r} is no path; a list has one path a line")
        file = Path(os.path.abspath(folder / line))
        inside = file.is_relative_to(folder)
        name = (file.relative_to(folder) if inside else file.relative_to(file.anchor)).as_posix()
        if found.setdefault(name, file) != file:
            raise BatchError(f"{path}: {file} and {found[name]} would share the name {name}; move one of them")
    return found


def _zip(path: Path, limits: ImageLimits) -> Source:
    try:
        return Source(path, SourceLimits(member_bytes=limits.max_bytes))
    except SourceError as error:
        raise BatchError(str(error)) from None


def _members(path: Path, source: Source, limits: ImageLimits) -> tuple[Input, ...]:
    stamp = _stamp(path)

    def reader(name: str) -> Callable[[], Photo]:
        def read() -> Photo:
            try:
                content = source.read(name)
            except SourceError as error:
                raise ImageError(name, str(error)) from None
            return read_image(content, limits, name)

        return read

    photos = [name for name in source.paths if PurePath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not photos:
        raise BatchError(f"{path}: no photos in it")
    return tuple(Input(name, stamp, reader(name)) for name in photos)


def _outside(files: list[Path], folder: Path) -> list[Path]:
    """Without what an earlier run has written."""
    inside = folder.resolve()
    return [file for file in files if not file.resolve().is_relative_to(inside)]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
