"""Photos of a batch on object storage, on a web server or in whatever else fsspec reads."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from fsspec.core import url_to_fs

from lexiseg.images import IMAGE_SUFFIXES, ImageError, ImageLimits, Photo, read_image

_VERSION = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created", "CRC")
"""What file systems call that which changes with the content, the surest first."""

Stamp = tuple[int | str, ...]


class RemoteError(ValueError):
    """An address where there is nothing to read. The message says why and what to do."""


@dataclass(frozen=True)
class RemotePhoto:
    """Reads one photo when it is called, in whatever process."""

    url: str
    name: str
    limits: ImageLimits

    def __call__(self) -> Photo:
        try:
            system, path = url_to_fs(self.url)
            with system.open(path, "rb") as file:
                return read_image(file, self.limits, self.name)
        except ImageError:
            raise
        except FileNotFoundError:
            raise ImageError(self.name, f"there is nothing at {self.url}; check the address") from None
        except Exception as error:  # every kind of storage has exceptions of its own
            raise ImageError(self.name, f"cannot be fetched from {self.url} ({_reason(error)})") from None


def is_address(text: str) -> bool:
    """Whether `text` is meant for fsspec, and not as a path."""
    return "://" in text


def before_pattern(parts: Sequence[str]) -> Iterator[str]:
    """Of the parts of a path, the folders before the first one with * ? [ ] in it."""
    return takewhile(lambda part: not has_magic(part), parts[:-1])


def find_photos(url: str) -> dict[str, tuple[str, Stamp]]:
    """Name -> (address, stamp) of the photos at `url`: one, all in a folder and below it, or those that fit * ? [ ].

    Names are relative to the folder, of a pattern to the folder before its first * ? [ ]. Raises RemoteError.
    """
    system, path = _system(url)
    system.invalidate_cache()  # of what an earlier call has found
    try:
        if has_magic(path):
            root, found = "/".join(before_pattern(path.split("/"))), system.glob(path, detail=True)
        elif path.rstrip("/") and (alone := system.info(path))["type"] == "file":
            return {posixpath.basename(path): (url, _stamp(alone))}
        else:
            root, found = path, system.find(path, detail=True)
    except FileNotFoundError:
        raise RemoteError(f"{url}: there is nothing at this address; check it") from None
    except Exception as error:  # every kind of storage has exceptions of its own
        raise RemoteError(f"{url}: cannot be listed ({_reason(error)}); check the address and your rights") from None
    photos = {}
    for file, about in found.items():
        name = file.removeprefix(root.rstrip("/")).lstrip("/")
        if about["type"] == "file" and _counts(name):
            photos[name] = (_address(system, file, url), _stamp(about))
    return photos


def read_list(url: str, most: int) -> tuple[bytes, str]:
    """The content of a list of at most so many bytes, and the address of its folder. Raises RemoteError."""
    system, path = _system(url)
    try:
        content: bytes = system.cat_file(path, end=most + 1)
    except Exception as error:  # every kind of storage has exceptions of its own
        raise RemoteError(f"{url}: cannot be read ({_reason(error)}); check the address and your rights") from None
    return content, url.rpartition("/")[0]


def _system(url: str) -> tuple[Any, str]:
    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:  # fsspec says what to install
        raise RemoteError(f"{url}: {_reason(error)}") from None
    return system, path


def _address(system: Any, path: str, url: str) -> str:
    """Of a file in a listing; behind the first part of a chain (zip://...::s3://...) nothing changes."""
    chain = url.partition("::")
    protocol = url.partition("://")[0]
    return f"{protocol}://{path}{chain[1]}{chain[2]}" if chain[1] else str(system.unstrip_protocol(path))


def _counts(name: str) -> bool:
    """As in folders: by the ending, and not what is hidden."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in parts)


def _stamp(about: Mapping[str, Any]) -> Stamp:
    versions = [str(about[key]) for key in _VERSION if about.get(key) is not None]
    return (int(about.get("size") or 0), *versions[:1])


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
