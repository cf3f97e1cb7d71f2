"""What a request asks: its body, as multipart or as JSON, read within the limits."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lexiseg.apps.server.limits import Limits
from lexiseg.apps.server.refusals import ClientLeftError, Refusal
from lexiseg.results import Task
from lexiseg.vocabulary import Vocabulary, VocabularyError

Form = Literal["json", "coco", "overlay", "labels"]
FORMS: tuple[Form, ...] = get_args(Form)

_MAX_NAME = 200
_PART_NAMES = ("image", "words", "vocabulary", "task", "model", "background", "min_score", "answer")


class Fields(BaseModel):
    """A question as JSON. As multipart/form-data the fields have the same names, and `image` is a file."""

    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="The bytes of an image file (JPEG, PNG, WebP, TIFF, ...) as base64.")
    words: str | list[Any] | dict[str, Any] = Field(
        description='"sky, road | street, car": commas separate classes, bars synonyms. Or a list of classes, or a '
        "mapping from name to synonyms, as in vocabulary files."
    )
    task: Task = Field(
        "semantic",
        description="semantic: a class for every pixel. panoptic: segments that do not overlap. instance: scored masks "
        "of things, which may overlap.",
    )
    model: str | None = Field(None, description="A name from /v1/models; the first one there unless given.")
    background: bool = Field(False, description='Adds a class for "anything else".')
    min_score: float | None = Field(
        None, ge=0, le=1, description="Segments below it are left out. Unless given 0, for instances 0.25."
    )
    answer: Form = Field(
        "json",
        description="json: segments with scores and masks. coco: a COCO data set. overlay, labels: PNG pictures.",
    )
    name: str = Field("photo", max_length=_MAX_NAME, description="What to call the photo in the answer.")


@dataclass(frozen=True)
class Ask:
    """A question as the server works on it: everything checked but the photo."""

    image: bytes
    name: str
    vocabulary: Vocabulary
    task: Task
    model: str
    min_score: float | None
    form: Form = "json"


async def read_ask(request: Request, limits: Limits, models: tuple[str, ...]) -> Ask:
    """The question of a request; raises Refusal. models: the names that may be asked for, the usual one first."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/json"):
        raise Refusal(
            "wrong_type",
            f"content type {kind[:80] or 'missing'!r}: send multipart/form-data with the file as 'image', or JSON",
        )
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > limits.max_body_bytes:
        raise _too_many_bytes(limits)
    try:
        if kind == "application/json":
            return _from_json(b"".join([chunk async for chunk in bounded_body(request, limits)]), limits, models)
        return await _from_multipart(request, limits, models)
    except ClientDisconnect:
        raise ClientLeftError from None


def read_words(words: Any, background: bool, limits: Limits) -> Vocabulary:
    """Words as text or as a tree, never as the name of a file here."""
    if isinstance(words, str):
        check_word_bytes("the words are", len(words.encode()), limits)
    try:
        if isinstance(words, str):
            return counted(Vocabulary.from_words(words, background), limits)
        return counted(Vocabulary.parse(words, background), limits)
    except VocabularyError as error:
        raise Refusal("wrong_words", str(error)) from None


def read_vocabulary_file(content: bytes, name: str, background: bool, limits: Limits) -> Vocabulary:
    """What a vocabulary file holds."""
    check_word_bytes("the words are", len(content), limits)
    try:
        return counted(Vocabulary.from_file_content(content, plain_name(name), background), limits)
    except VocabularyError as error:
        raise Refusal("wrong_words", str(error)) from None


def _from_json(body: bytes, limits: Limits, models: tuple[str, ...]) -> Ask:
    try:
        fields = Fields.model_validate_json(body)
    except ValidationError as error:
        raise wrong_fields(error) from None
    if fields.image[:8].lower().startswith(("http:", "https:", "ftp:", "file:", "s3:")):
        raise Refusal("wrong_field", "image: an address; this server fetches nothing, so send the bytes as base64")
    if len(fields.image) > limits.max_base64:
        raise _too_many_bytes(limits)
    try:
        image = base64.b64decode(fields.image, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal("broken_request", "image: is not base64; encode the bytes of the file") from None
    return _ask(fields, image, read_words(fields.words, fields.background, limits), models)


async def _from_multipart(request: Request, limits: Limits, models: tuple[str, ...]) -> Ask:
    ending = bytearray()
    parser = MultiPartParser(
        request.headers,
        bounded_body(request, limits, ending),
        max_files=2,
        max_fields=len(_PART_NAMES),
        max_part_size=limits.max_word_bytes,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if "maximum size" in error.message:
            raise Refusal(
                "too_many_bytes", f"a text field is larger than {_size(limits.max_word_bytes)}; give fewer words"
            ) from None
        raise Refusal("broken_request", f"the multipart body cannot be read: {error.message}") from None
    except (KeyError, UnicodeDecodeError):
        raise Refusal("broken_request", "the multipart body cannot be read: its content type is damaged") from None
    try:
        if not ending.rstrip().endswith(b"--"):  # the parser forgives it, and forgets the part that is cut off
            raise Refusal("broken_request", "the multipart body is cut short; send it again")
        return await _from_form(form, limits, models)
    finally:
        await form.close()


async def _from_form(form: FormData, limits: Limits, models: tuple[str, ...]) -> Ask:
    names = [name for name, _ in form.multi_items()]
    for name in names:
        if name not in _PART_NAMES:
            raise Refusal("wrong_field", f"no field is called {plain_name(name)!r}; there are {', '.join(_PART_NAMES)}")
        if names.count(name) > 1:
            raise Refusal("wrong_field", f"{name}: given {names.count(name)} times; give it once")
    image, listed = form.get("image"), form.get("vocabulary")
    if not isinstance(image, UploadFile):
        raise Refusal("wrong_field", "image: missing; send the photo as a file")
    if (image.size or 0) > limits.max_bytes:
        raise _too_many_bytes(limits)
    if ("words" in names) == ("vocabulary" in names):
        raise Refusal("wrong_field", "give the words as 'words', or a file with them as 'vocabulary'")
    if "vocabulary" in names and not isinstance(listed, UploadFile):
        raise Refusal("wrong_field", "vocabulary: is a file; words as text go into the field 'words'")
    texts = {name: value for name, value in form.items() if name not in ("image", "vocabulary")}
    if any(isinstance(value, UploadFile) for value in texts.values()):
        raise Refusal("wrong_field", "only image and vocabulary are files; all other fields are text")
    try:
        # Numbers and yes or no come as text here.
        fields = Fields.model_validate_strings(
            {"words": "in a file", **texts, "image": "in a file", "name": plain_name(image.filename or "photo")}
        )
    except ValidationError as error:
        raise wrong_fields(error) from None
    if isinstance(listed, UploadFile):
        content = await listed.read(limits.max_word_bytes + 1)
        vocabulary = read_vocabulary_file(content, listed.filename or "vocabulary", fields.background, limits)
    else:
        vocabulary = read_words(fields.words, fields.background, limits)
    return _ask(fields, await image.read(), vocabulary, models)


def _ask(fields: Fields, image: bytes, vocabulary: Vocabulary, models: tuple[str, ...]) -> Ask:
    model = models[0] if fields.model is None else fields.model
    if model not in models:
        raise Refusal("wrong_field", f"model: this server has no {plain_name(model)!r}; it has {', '.join(models)}")
    return Ask(image, plain_name(fields.name), vocabulary, fields.task, model, fields.min_score, fields.answer)


async def bounded_body(
    request: Request, limits: Limits, ending: bytearray | None = None
) -> AsyncGenerator[bytes, None]:
    """The body as it comes; raises Refusal where it is too large. ending: gets the last bytes of it."""
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > limits.max_body_bytes:
            raise _too_many_bytes(limits)
        if ending is not None:
            ending[:] = (ending + chunk)[-100:] if len(chunk) < 100 else chunk[-100:]
        yield chunk


def _too_many_bytes(limits: Limits) -> Refusal:
    return Refusal("too_many_bytes", f"the photo is larger than {_size(limits.max_bytes)}; make it smaller")


def check_word_bytes(what: str, size: int, limits: Limits) -> None:
    """what: "the words are", say. Raises Refusal."""
    if size > limits.max_word_bytes:
        raise Refusal("too_many_bytes", f"{what} larger than {_size(limits.max_word_bytes)}; give fewer words")


def counted(vocabulary: Vocabulary, limits: Limits) -> Vocabulary:
    """The same, unless it has too many words: then it raises Refusal."""
    if len(vocabulary.phrases) > limits.max_phrases:
        raise Refusal(
            "too_many_words",
            f"{len(vocabulary.phrases)} words with their synonyms; this server takes at most {limits.max_phrases}; "
            "give fewer",
        )
    return vocabulary


def wrong_fields(error: ValidationError) -> Refusal:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return Refusal("broken_request", f"the body is not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')}")
    where = ".".join(plain_name(str(part)) for part in first["loc"][:1])
    return Refusal("wrong_field", f"{where}: {first['msg']}" if where else first["msg"])


def plain_name(name: str) -> str:
    """A name from outside as it may stand in messages and answers: no folders, one line."""
    last = PurePath(name.replace("\\", "/")).name
    return "".join(c if c.isprintable() else "_" for c in last)[:_MAX_NAME] or "photo"


def _size(size: int) -> str:
    return f"{size / 2**20:.4g} MB" if size >= 2**20 else f"{size / 2**10:.4g} KB"
