"""Downloads: files of a Hugging Face hub repository, and release files by https. Limited in size, checked by hash.

Nothing is downloaded at import or construction time; the zoo asks for a file when a model is loaded.
`HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` mean what they mean to huggingface_hub; the
progress bar of a hub download is huggingface_hub's own.
"""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import WeakFileLock
from tqdm import tqdm

from lexiseg.weights.files import sha256_of

MAX_BYTES = 8 * 2**30
"""Largest file downloaded unless the caller raises it."""

ATTEMPTS = 4
"""Times a broken release download is resumed before giving up."""

CHUNK = 1 << 20


class DownloadError(RuntimeError):
    """A file that could not be fetched, or was not what it should be. The message says what to do."""


class MissingFileError(DownloadError):
    """A repository that is there, without a file of that name."""


class UnreachableError(DownloadError):
    """A file that is not in the cache, while the hub cannot be asked for it."""


def is_offline(offline: bool | None = None) -> bool:
    """The argument where it is given, else what HF_HUB_OFFLINE says."""
    if offline is not None:
        return offline
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def hub_file(
    repo: str,
    name: str,
    *,
    revision: str = "main",
    sha256: str | None = None,
    max_bytes: int = MAX_BYTES,
    offline: bool | None = None,
) -> Path:
    """The local copy of one file of a hub repository, fetched into the hub's own cache when it is not there.

    The size is asked for before anything is fetched. Without `sha256`, a fresh download is checked
    against the hash the hub itself gives for its large files. A copy in the cache is used when the
    hub cannot be reached.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo) or ".." in repo:
        raise DownloadError(f"{repo!r} is not a hub repository; write it as 'organisation/name'")
    _check_name(name)
    endpoint = os.environ.get("HF_ENDPOINT") or None
    where = f"{repo}/{name}"
    if is_offline(offline):
        path = _cached(repo, name, revision)
        if path is None:
            raise UnreachableError(
                f"{where}: not in the cache, and HF_HUB_OFFLINE forbids to fetch it; run once online, "
                "or copy the model folder here and give its path"
            )
        return _verified(path, sha256, where)

    try:
        facts = get_hf_file_metadata(hf_hub_url(repo, name, revision=revision, endpoint=endpoint), endpoint=endpoint)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise DownloadError(
            f"{where}: no such repository, or it needs a login. Check the name; "
            "for a gated one accept its terms on its page and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise DownloadError(f"{where}: the repository has no revision {revision!r}") from error
    except EntryNotFoundError as error:
        raise MissingFileError(f"{where}: the repository has no such file; it may not be a Lexiseg model") from error
    except Exception as error:  # no network: the type depends on huggingface_hub's HTTP client
        path = _cached(repo, name, revision)
        if path is None:
            raise UnreachableError(f"{where}: the hub cannot be reached ({_short(error)}). Try again later") from error
        return _verified(path, sha256, where)
    _check_size(facts.size, max_bytes, where)

    cached_before = facts.commit_hash is not None and _cached(repo, name, facts.commit_hash) is not None
    try:
        path = Path(hf_hub_download(repo, name, revision=revision, endpoint=endpoint))
    except Exception as error:  # as above
        raise DownloadError(
            f"{where}: the download broke off ({_short(error)}). Run the command again: it goes on where it stopped"
        ) from error
    if sha256 is None and not cached_before and re.fullmatch("[0-9a-f]{64}", facts.etag or ""):
        sha256 = facts.etag
    return _verified(path, sha256, where)


def is_cached(repo: str, name: str, revision: str = "main") -> bool:
    """Whether `hub_file` has fetched the file before."""
    return _cached(repo, name, revision) is not None


def release_file(
    url: str,
    folder: str | Path,
    *,
    sha256: str,
    max_bytes: int = MAX_BYTES,
    offline: bool | None = None,
) -> Path:
    """The local copy of a published file in `folder`, fetched by https when it is not there.

    An interrupted download leaves "<name>.part", from which the next call goes on. The file gets its
    name only when its hash is right.
    """
    _check_url(url)
    name = urllib.parse.unquote(PurePosixPath(urllib.parse.urlsplit(url).path).name)
    _check_name(name)
    folder = Path(folder)
    path = folder / name
    if path.is_file():
        return _verified(path, sha256, name)
    if is_offline(offline):
        raise DownloadError(f"{name}: not in {folder}, and HF_HUB_OFFLINE forbids to fetch it from {url}")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{name}.part"
    with WeakFileLock(folder / f"{name}.lock"):
        if path.is_file():  # another process was faster
            return _verified(path, sha256, name)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                _fetch(url, part, max_bytes, name)
                break
            except urllib.error.HTTPError as error:
                raise DownloadError(f"{name}: the server answered {error.code} {error.reason} for {url}") from error
            except (OSError, http.client.HTTPException) as error:
                if attempt == ATTEMPTS:
                    raise DownloadError(
                        f"{name}: the download broke off ({_short(error)}). "
                        "Run the command again: it goes on where it stopped"
                    ) from error
        _verified(part, sha256, name)
        os.replace(part, path)
    return path


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, url):  # type: ignore[no-untyped-def]
        _check_url(url)
        return super().redirect_request(request, response, code, message, headers, url)


def _fetch(url: str, part: Path, max_bytes: int, name: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and have:
            return  # the whole file was there already; its hash decides
        raise
    with response:
        if have and response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0  # the server does not resume: from the start
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        _check_size(total, max_bytes, name)
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=name, total=total, initial=have, unit="B", unit_scale=True, leave=False) as progress,
        ):
            while chunk := response.read(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
                # A server may send more than it announced.
                _check_size(file.tell(), max_bytes, name)
    if part.stat().st_size < (total or 0):
        raise ConnectionError(f"{part.stat().st_size} of {total} bytes came")


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in {"localhost", "127.0.0.1", "::1"}
    if parts.scheme != "https" and not local:
        raise DownloadError(f"{url}: only https addresses are fetched (plain http only from this machine)")


def _check_name(name: str) -> None:
    parts = name.split("/")
    if (
        not name
        or any(part in {"", ".", ".."} for part in parts)
        or any(character in name for character in "\\:\0")
        or len(name) > 255
    ):
        raise DownloadError(f"{name!r} is not a file name inside a repository")


def _check_size(size: int | None, max_bytes: int, where: str) -> None:
    if size is None:
        raise DownloadError(f"{where}: the server does not say how large the file is, so it is not fetched")
    if size > max_bytes:
        raise DownloadError(
            f"{where}: {size / 2**20:.1f} MiB, above the limit of {max_bytes / 2**20:.1f} MiB; "
            "raise the limit if the file is meant to be that large"
        )


def _cached(repo: str, name: str, revision: str) -> Path | None:
    try:
        return Path(hf_hub_download(repo, name, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _verified(path: Path, sha256: str | None, where: str) -> Path:
    """`path`, or an error after deleting it (and, in the hub's cache, the file its link points to)."""
    if sha256 is None:
        return path
    found = sha256_of(path)
    if found == sha256.lower():
        return path
    for wrong in {path.resolve(), path}:
        wrong.unlink(missing_ok=True)
    raise DownloadError(
        f"{where}: the hash of the file is {found[:12]}..., expected {sha256[:12]}...: damaged on the way or "
        "replaced at its source. It was deleted; fetch it again, and if this repeats do not use it"
    )


def _short(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:160]
