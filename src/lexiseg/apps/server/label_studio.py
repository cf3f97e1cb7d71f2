"""A machine learning backend for Label Studio: it draws the labels of a project on its pictures before people do.

The protocol is that of label-studio-ml-backend: /health, /setup, /predict, /versions and /webhook. Words come from the
labelling config of the project. Pictures come as data, from a folder of this machine, or from the one Label Studio that
was named at the start: addresses in tasks are written by whoever may import tasks, and a server that fetched any of
them would fetch for strangers what only it can reach.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from fastapi import FastAPI, Request
from pydantic import BaseModel, Field, ValidationError

from lexiseg.apps.server.limits import Limits
from lexiseg.apps.server.questions import (
    Ask,
    bounded_body,
    check_word_bytes,
    counted,
    plain_name,
    wrong_fields,
)
from lexiseg.apps.server.refusals import Refusal
from lexiseg.apps.server.routes import drain, drained, in_time, key_check, unless_gone
from lexiseg.apps.server.service import Service
from lexiseg.formats.annotations import FormatError
from lexiseg.formats.label_studio import LabellingConfig, read_labelling_config, to_prediction
from lexiseg.results import Task
from lexiseg.vocabulary import Vocabulary, VocabularyClass, VocabularyError

KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
"""Environment variable with the key that Label Studio asks for, when pictures are fetched from it."""

MAX_TASKS = 256
"""Of one request."""

_FETCH_SECONDS = 20.0
_REDIRECTIONS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Backend:
    """What one server is for Label Studio."""

    files: Path | None = None
    """The folder of its local files, where this machine has it too: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""
    address: str | None = None
    """Of the Label Studio from which other pictures are fetched: http://host:port, with a path if it has one."""
    api_key: str | None = field(default=None, repr=False)
    """Of a user there."""
    words: Vocabulary | None = None
    """More wordings for labels that it knows by any of them, and classes that are no labels: where one of those fits
    best, nothing is drawn."""
    task: Task = "panoptic"
    min_score: float | None = None

    def __post_init__(self) -> None:
        if self.files is not None and not self.files.is_dir():
            raise ValueError(f"--label-studio-files {self.files}: no such folder")
        if self.address is not None:
            parts = urlsplit(self.address)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
                raise ValueError(f"--label-studio-url {self.address}: write it as http://host:port")


_Body = TypeVar("_Body", bound=BaseModel)


class _Predict(BaseModel):
    """The body of /predict; Label Studio sends more than this."""

    tasks: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_TASKS)
    label_config: str


class _Setup(BaseModel):
    """The body of /setup."""

    label_config: str = Field(alias="schema")


def add_label_studio(app: FastAPI, service: Service, backend: Backend, api_key: str | None) -> None:
    """The addresses that Label Studio asks. With a key, it is the password of its basic authentication."""
    keyed = [key_check(api_key)]
    model = service.models[0]

    @app.get("/health", summary="For Label Studio: is it there?")
    async def health() -> dict[str, Any]:
        return {"status": "UP", "model_class": "Lexiseg", "v2": True}

    @app.post("/setup", dependencies=keyed, summary="For Label Studio: can it work for this project?")
    async def setup(request: Request) -> dict[str, Any]:
        async with drained(request), in_time(service) as has_arrived:
            body = _validated(_Setup, await _read(request, service.limits))
            has_arrived()
            _vocabulary(_config(body.label_config, service.limits), backend.words, service.limits)
        return {"model_version": model}

    @app.api_route("/versions", methods=["GET", "POST"], dependencies=keyed, include_in_schema=False)
    async def versions() -> dict[str, Any]:
        return {"versions": [model]}

    @app.post("/webhook", dependencies=keyed, summary="For Label Studio: what people did, which is not learnt from")
    async def webhook(request: Request) -> dict[str, Any]:
        await drain(request)
        return {"status": "ignored"}

    @app.post("/predict", dependencies=keyed, summary="For Label Studio: what the pictures of tasks show")
    async def predict(request: Request) -> dict[str, Any]:
        async with drained(request):
            with service.place():
                async with in_time(service) as has_arrived:
                    body = _validated(_Predict, await _read(request, service.limits))
                    has_arrived()
                    return {"results": await _predict(request, service, backend, body)}


async def _predict(request: Request, service: Service, backend: Backend, body: _Predict) -> list[dict[str, Any]]:
    """A prediction for each task; of several, those that cannot be made are empty and say why."""
    config = _config(body.label_config, service.limits)
    vocabulary = _vocabulary(config, backend.words, service.limits)
    told = {"model": service.models[0], "task": backend.task, "words": len(vocabulary), "photos": len(body.tasks)}
    request.scope["lexiseg.told"] = told
    turns = asyncio.Semaphore(2 * service.workers)

    async def one(task: Mapping[str, Any]) -> dict[str, Any] | Refusal:
        async with turns:
            try:
                return await _predicted(task, service, backend, config, vocabulary)
            except Refusal as refusal:
                return refusal

    async def all_of_them() -> list[dict[str, Any] | Refusal]:
        async with asyncio.TaskGroup() as group:
            working = [group.create_task(one(task)) for task in body.tasks]
        return [task.result() for task in working]

    found = await unless_gone(request, all_of_them())
    if len(found) == 1 and isinstance(found[0], Refusal):
        raise found[0]
    empty = {"model_version": service.models[0], "score": 0.0, "result": []}
    return [{**empty, "error": one.message} if isinstance(one, Refusal) else one for one in found]


async def _predicted(
    task: Mapping[str, Any], service: Service, backend: Backend, config: LabellingConfig, vocabulary: Vocabulary
) -> dict[str, Any]:
    data = task.get("data")
    where = f"task {plain_name(str(task.get('id', '?')))}"
    address = data.get(config.tags.value) if isinstance(data, dict) else None
    if not isinstance(address, str) or not address:
        raise Refusal("wrong_field", f"{where}: its data have no {config.tags.value!r}, where the config looks for it")
    image = await service.in_pool("fetch", lambda: read_picture(address, where, backend, service.limits))
    ask = Ask(image, where, vocabulary, backend.task, service.models[0], backend.min_score)
    result = await service.segment(ask)

    def answer() -> dict[str, Any]:
        record = result.record()
        labels = dict(zip(vocabulary.names, config.labels, strict=False))  # the labels come first
        drawn = tuple(segment for segment in record.segments if segment.label in labels)
        return to_prediction(replace(record, segments=drawn), config.tags, labels)

    return await service.in_pool("answer", answer)


def _config(text: str, limits: Limits) -> LabellingConfig:
    check_word_bytes("the labelling config is", len(text.encode()), limits)
    try:
        return read_labelling_config(text)
    except FormatError as error:
        raise Refusal("wrong_words", str(error)) from None


def _vocabulary(config: LabellingConfig, words: Vocabulary | None, limits: Limits) -> Vocabulary:
    """The labels in their order, then what other classes there are."""
    more = list(words.classes) if words is not None else []
    classes = []
    for wordings in config.labels.values():
        folded = {wording.casefold() for wording in wordings}
        same = next((entry for entry in more if folded & {phrase.casefold() for phrase in entry.phrases}), None)
        if same is None:
            classes.append(VocabularyClass(wordings))
            continue
        more.remove(same)
        new = (phrase for phrase in same.phrases if phrase.casefold() not in folded)
        classes.append(replace(same, phrases=(*wordings, *new)))
    try:
        told = [{"name": e.name, "synonyms": list(e.phrases[1:]), "thing": e.is_thing} for e in (*classes, *more)]
        return counted(Vocabulary.parse(told), limits)
    except VocabularyError as error:
        raise Refusal("wrong_words", f"the labels: {error}") from None


# ----------------------------------------------------------------------------------------------------------- pictures


def read_picture(address: str, where: str, backend: Backend, limits: Limits) -> bytes:
    """The bytes of a picture; raises Refusal."""
    if address.startswith("data:"):
        return _from_data(address, where, limits)
    try:
        parts = urlsplit(address)
    except ValueError:
        raise Refusal("wrong_photo", f"{where}: the address of its picture cannot be read") from None
    local = re.fullmatch(r"/data/local-files/?", parts.path) and parse_qs(parts.query).get("d")
    if local and backend.files is not None and _is_at(parts, backend):
        return _from_folder(local[0], where, backend.files, limits)
    if not _is_at(parts, backend):
        raise Refusal(
            "wrong_photo",
            f"{where}: its picture is elsewhere; this server takes data, files below --label-studio-files, and what "
            "Label Studio itself keeps",
        )
    if backend.address is None:
        raise Refusal(
            "wrong_photo",
            f"{where}: its picture is kept by Label Studio; start the server with --label-studio-url and its key in "
            f"{KEY_VARIABLE}, or with --label-studio-files",
        )
    return _fetched(parts.path + (f"?{parts.query}" if parts.query else ""), where, backend, limits)


def _is_at(parts: SplitResult, backend: Backend) -> bool:
    """Whether an address is of a picture that Label Studio keeps: without a host, or with its."""
    path = parts.path
    if parts.scheme or parts.netloc:
        own = urlsplit(backend.address or "")
        if not own.netloc or (parts.scheme, parts.netloc) != (own.scheme, own.netloc):
            return False
        path = path.removeprefix(own.path.rstrip("/"))
    return path.startswith(("/data/", "/storage-data/")) and ".." not in unquote(path).split("/")


def _from_data(address: str, where: str, limits: Limits) -> bytes:
    head, _, content = address.partition(",")
    if not head.endswith(";base64"):
        raise Refusal("wrong_photo", f"{where}: its data are not base64; write data:image/png;base64,...")
    if len(content) > limits.max_base64:
        raise _too_large(where, limits)
    try:
        return base64.b64decode(unquote(content), validate=True)
    except ValueError:
        raise Refusal("wrong_photo", f"{where}: its data are not base64; encode the bytes of the file") from None


def _from_folder(name: str, where: str, folder: Path, limits: Limits) -> bytes:
    """A file below the folder, links followed."""
    root = folder.resolve()
    try:
        path = (root / name.lstrip("/")).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            content = file.read(limits.max_bytes + 1)
    except (OSError, ValueError):  # the latter: a name with a zero byte
        raise Refusal(
            "wrong_photo", f"{where}: its picture is not below --label-studio-files, or cannot be read"
        ) from None
    if len(content) > limits.max_bytes:
        raise _too_large(where, limits)
    return content


def _fetched(target: str, where: str, backend: Backend, limits: Limits) -> bytes:
    """From the Label Studio that was named at the start, which may send nobody elsewhere."""
    assert backend.address is not None  # for the reader of types
    parts = urlsplit(backend.address)
    assert parts.hostname is not None
    if not target.isascii() or not target.isprintable() or " " in target:
        raise Refusal("wrong_photo", f"{where}: the address of its picture has characters that none may have")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_FETCH_SECONDS)
    headers = {}
    if backend.api_key:
        # A legacy token, or an access token, which is three pieces of base64.
        headers["Authorization"] = f"{'Bearer' if backend.api_key.count('.') == 2 else 'Token'} {backend.api_key}"
    inside = parts.path.rstrip("/")
    try:
        connection.request(
            "GET", target if inside and target.startswith(f"{inside}/") else inside + target, headers=headers
        )
        response = connection.getresponse()
        content = response.read(limits.max_bytes + 1) if response.status == 200 else b""
    except (OSError, http.client.HTTPException) as error:
        raise Refusal(
            "wrong_photo", f"{where}: Label Studio does not give its picture ({type(error).__name__})"
        ) from None
    finally:
        connection.close()
    if response.status != 200:
        hint = "it is kept elsewhere" if response.status in _REDIRECTIONS else f"is {KEY_VARIABLE} right?"
        raise Refusal("wrong_photo", f"{where}: Label Studio does not give its picture ({response.status}; {hint})")
    if len(content) > limits.max_bytes:
        raise _too_large(where, limits)
    return content


def _too_large(where: str, limits: Limits) -> Refusal:
    return Refusal(
        "too_many_bytes", f"{where}: its picture is larger than {limits.max_bytes / 2**20:.4g} MB; make it smaller"
    )


# ---------------------------------------------------------------------------------------------------------- the body


async def _read(request: Request, limits: Limits) -> bytes:
    return b"".join([chunk async for chunk in bounded_body(request, limits)])


def _validated(kind: type[_Body], body: bytes) -> _Body:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise wrong_fields(error) from None
