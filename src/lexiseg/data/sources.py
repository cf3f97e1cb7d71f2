"""A publisher's files as they come: a folder, a zip, a tar, or a folder that holds all of these.

Archives are read in place. Their members appear where unpacking them beside the archive would put them, so it does not
matter what somebody has unpacked; nothing is written, and no member's name ever becomes a path on this disk. An archive
inside an archive is opened too, one level deep, if it is small.

Refused with one line: names that are absolute or contain "..", links and devices inside archives, encrypted members,
members larger than the limit, damaged archives.
"""

from __future__ import annotations

import io
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


class SourceError(ValueError):
    """Files that cannot be used: one line naming the file, what is wrong and what to do."""


@dataclass(frozen=True)
class SourceLimits:
    """How much is read at once. They protect from archives that unpack to terabytes."""

    member_bytes: int = 2**30
    """Of one file; the largest in use are annotation files of some 500 MB."""
    members: int = 3_000_000
    """Files altogether."""
    inner_archive_bytes: int = 256 * 2**20
    """Of an archive inside an archive, which is held in memory; larger ones stay closed."""


class Source:
    """Files by their relative path with forward slashes.

    with Source(folder) as source:
        labels = source.match(r"annotations/validation/([^/]+)\\.png")    # {id: path}
        content = source.read(labels["ADE_val_00000001"])
    """

    def __init__(self, path: Path | str, limits: SourceLimits | None = None) -> None:
        self.path = Path(path)
        self.limits = limits or SourceLimits()
        self._open = ExitStack()
        self._readers: dict[str, Callable[[], bytes]] = {}
        self._files: dict[str, Path] = {}
        try:
            self._collect()
        except BaseException:
            self.close()
            raise
        self.paths: tuple[str, ...] = tuple(sorted(self._readers))

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the archives."""
        self._open.close()

    def match(self, pattern: str) -> dict[str, str]:
        """What ends in `pattern` after a slash or at its beginning: the pattern's first group -> path.

        Without a group the key is the path. Of several files with one key the shortest path counts, which is the one
        that no extra folder was put around.
        """
        compiled = re.compile(rf"(?:.*/)?(?:{pattern})")
        found: dict[str, str] = {}
        for path in self.paths:
            matched = compiled.fullmatch(path)
            if matched:
                key = matched[1] if compiled.groups else path
                if key not in found or len(path) < len(found[key]):
                    found[key] = path
        return found

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with _one_line(f"{self.path}: {path}"):
            return self._readers[path]()

    def file(self, path: str) -> Path | None:
        """The file on this disk; None for members of archives."""
        return self._files.get(path)

    def _collect(self) -> None:
        if self.path.is_dir():
            archives = []
            for file, name in _walk(self.path):
                if _is_archive(name):
                    archives.append((file, name))
                else:
                    self._add(name, _file_reader(file, self.limits.member_bytes), file)
            # Files win over members of archives: who has both has unpacked it.
            for file, name in archives:
                self._add_archive(file, self._open.enter_context(file.open("rb")), name, inner=False)
        elif self.path.is_file():
            if not _is_archive(self.path.name):
                raise SourceError(f"{self.path}: neither a folder nor an archive ({', '.join(ARCHIVES)})")
            self._add_archive(self.path, self._open.enter_context(self.path.open("rb")), self.path.name, inner=False)
        else:
            raise SourceError(f"{self.path}: no such folder or archive")
        if not self._readers:
            raise SourceError(f"{self.path}: nothing in it; give the folder with the downloaded files")

    def _add(self, name: str, reader: Callable[[], bytes], file: Path | None = None) -> None:
        if name in self._readers:
            return
        self._readers[name] = reader
        if file is not None:
            self._files[name] = file
        if len(self._readers) > self.limits.members:
            raise SourceError(f"{self.path}: more than {self.limits.members} files; give the folder of one data set")

    def _add_archive(self, shown: Path | str, content: BinaryIO, name: str, inner: bool) -> None:
        """Members of an archive called `name` in the source, as if unpacked in its folder."""
        folder = name.rpartition("/")[0]
        with _one_line(str(shown)):
            listed = _zip_members if name.lower().endswith(".zip") else _tar_members
            members = list(listed(content, str(shown), self.limits, self._open))
        for member, size, reader in members:
            path = f"{folder}/{member}" if folder else member
            if not _is_archive(member):
                self._add(path, reader)
            elif not inner and size <= self.limits.inner_archive_bytes:
                with _one_line(f"{shown}: {member}"):
                    unpacked = reader()
                self._add_archive(f"{shown}: {member}", io.BytesIO(unpacked), path, inner=True)


def _zip_members(
    content: BinaryIO, shown: str, limits: SourceLimits, opened: ExitStack
) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    archive = opened.enter_context(zipfile.ZipFile(content))
    for member in archive.infolist():
        if member.is_dir() or _is_litter(member.filename):
            continue
        name = _checked_name(member.filename, shown)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise SourceError(f"{shown}: {name} is a link; unpack the archive yourself and give the folder")
        if member.flag_bits & 1:
            raise SourceError(f"{shown}: {name} is encrypted; unpack it with its password and give the folder")
        _check_size(f"{shown}: {name}", member.file_size, limits)
        yield name, member.file_size, lambda member=member: archive.read(member)  # type: ignore[misc]


def _tar_members(
    content: BinaryIO, shown: str, limits: SourceLimits, opened: ExitStack
) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    archive = opened.enter_context(tarfile.open(fileobj=content, mode="r:*"))  # noqa: SIM115
    for member in archive:
        if member.isdir() or _is_litter(member.name):
            continue
        name = _checked_name(member.name, shown)
        if not member.isreg():
            kind = "a link" if member.issym() or member.islnk() else "no ordinary file"
            raise SourceError(f"{shown}: {name} is {kind}; unpack the archive yourself and give the folder")
        _check_size(f"{shown}: {name}", member.size, limits)

        def reader(member: tarfile.TarInfo = member) -> bytes:
            file = archive.extractfile(member)
            assert file is not None  # a regular file
            return file.read()

        yield name, member.size, reader


def _checked_name(name: str, shown: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or re.match(r"[A-Za-z]:", name) or ".." in parts or "\0" in name:
        raise SourceError(f"{shown}: holds {name!r}, a path that leads out of the archive; do not use this file")
    return "/".join(part for part in parts if part not in ("", "."))


def _is_litter(name: str) -> bool:
    """What operating systems leave behind."""
    return "__MACOSX" in name.split("/") or name.rpartition("/")[2].startswith(".")


def _is_archive(name: str) -> bool:
    return name.lower().endswith(ARCHIVES)


def _check_size(shown: str, size: int, limits: SourceLimits) -> None:
    if size > limits.member_bytes:
        raise SourceError(
            f"{shown}: {size / 2**20:.0f} MB, more than the limit of {limits.member_bytes / 2**20:.0f} MB"
        )


def _file_reader(file: Path, most: int) -> Callable[[], bytes]:
    def read() -> bytes:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
        if len(content) > most:
            raise SourceError(f"{file}: more than the limit of {most / 2**20:.0f} MB")
        return content

    return read


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Files below `root` with their relative paths; linked folders are followed, but none twice."""
    seen: set[str] = set()
    for folder, inside, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            inside.clear()
            continue
        seen.add(real)
        inside[:] = sorted(name for name in inside if not _is_litter(name))
        for name in sorted(files):
            file = Path(folder) / name
            if not _is_litter(name) and file.is_file():
                yield file, file.relative_to(root).as_posix()


@contextmanager
def _one_line(shown: str) -> Iterator[None]:
    try:
        yield
    except SourceError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise SourceError(f"{shown}: damaged or cut short ({reason}); download it again") from None
    except OSError as error:
        raise SourceError(f"{shown}: cannot be read ({error.strerror or error})") from None
