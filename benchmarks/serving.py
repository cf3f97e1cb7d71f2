"""Does a server stay right, alive and flat in memory when twice as many come as it has places for?

    python -m benchmarks.serving [--requests 2000] [--model street-tiny] [--places 16]

It starts `lexiseg serve` as a process of its own. Then, in one run: one client asks one question after another; as
many clients as there are places ask the same questions at a time; and twice as many as there are places send a mixture
of photos of all sizes and formats, broken bodies, damaged photos, requests over every limit, and clients that leave.
Who is told to come again waits for a while and does, until the request has its outcome. Every answer is compared with
what the model says without a server, and every status with what is documented for it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_image

from lexiseg import Segmenter
from lexiseg.apps.server.refusals import REASONS
from lexiseg.formats.run_lengths import decode_rle
from lexiseg.results import TASKS, Result, Task
from tests.apps.server_process import ServerProcess, server

MAX_MEGAPIXELS = 1.0
MAX_MEGABYTES = 2.0
MAX_WORDS = 40
LIMITS = (
    *("--max-pixels", str(MAX_MEGAPIXELS), "--max-megabytes", str(MAX_MEGABYTES), "--max-words", str(MAX_WORDS)),
    *("--time-limit", "300", "--no-page"),
)

SIZES_HW = ((213, 320), (427, 640), (320, 213), (300, 300), (100, 640), (640, 960), (33, 47))
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
WORD_LISTS = (
    "sky, tree, building | temple, lake | water",
    "sky, road | street, car",
    "flower, leaf | leaves, stem",
    "person, dog, grass, house, mountain",
)
RETRY_SECONDS = 1.0
"""Until a client comes again; Retry-After is in whole seconds, too."""
ALIKE = 0.995
"""Share of the pixels that must agree: a batch rounds sums differently, and a pixel between two words may flip."""


@dataclass(frozen=True)
class Question:
    """What can be answered, with the answer."""

    image: bytes
    words: str
    task: Task
    expected: Result


@dataclass
class Report:
    """What came of it."""

    statuses: Counter[str] = field(default_factory=Counter)
    """ "kind status" -> how many."""
    mistakes: list[str] = field(default_factory=list)
    memory_mb: list[float] = field(default_factory=list)
    """Resident, along the way."""
    answered: int = 0
    seconds: float = 0.0

    @property
    def growth(self) -> float:
        """Of the memory, from the second quarter of the way to the last: 0.02 is two percent."""
        quarter = max(1, len(self.memory_mb) // 4)
        return max(self.memory_mb[-quarter:]) / max(self.memory_mb[quarter : 2 * quarter] or self.memory_mb) - 1


def questions(segmenter: Segmenter, count: int, seed: int = 0) -> list[Question]:
    """Cut from two real photos; answered without a server."""
    chance, found = random.Random(seed), []
    for number in range(count):
        photo = Image.fromarray(load_sample_image(("china.jpg", "flower.jpg")[number % 2]))
        height, width = SIZES_HW[number % len(SIZES_HW)]
        left = chance.randrange(photo.width // 3)
        part = photo.crop((left, 0, photo.width, photo.height)).resize((width, height))
        file = io.BytesIO()
        part.save(file, FORMATS[number % len(FORMATS)])
        words, task = WORD_LISTS[chance.randrange(len(WORD_LISTS))], TASKS[chance.randrange(len(TASKS))]
        found.append(Question(file.getvalue(), words, task, segmenter(file.getvalue(), words, task)))
    return found


# ---------------------------------------------------------------------------------------------------------- requests


async def ask(
    client: httpx.AsyncClient, question: Question, form: str = "json", as_json: bool = False
) -> httpx.Response:
    """As a good client does."""
    fields = {"words": question.words, "task": question.task, "answer": form}
    if as_json:
        return await client.post("/v1/segment", json={**fields, "image": base64.b64encode(question.image).decode()})
    return await client.post("/v1/segment", data=fields, files={"image": ("photo", question.image)})


def wrong(question: Question, form: str, response: httpx.Response) -> str | None:
    """What is wrong with an answer; None for nothing."""
    expected = question.expected
    if form in ("overlay", "labels"):
        with Image.open(io.BytesIO(response.content)) as picture:
            if form == "overlay":
                fits = picture.width * expected.size_hw[0] == picture.height * expected.size_hw[1]
                return None if fits else f"an overlay of {picture.size}"
            return _differ(np.array(picture).astype(int), expected.label_map, expected)
    told = response.json()
    if form == "json":
        if [entry["label"] for entry in told["words"]] != list(expected.words):
            return f"words of somebody else: {told['words']}"
        found = [(entry["label_index"], entry["rle"]) for entry in told["segments"]]
    else:
        if [entry["name"] for entry in told["categories"]] != list(expected.words):
            return f"words of somebody else: {told['categories']}"
        found = [(entry["category_id"] - 1, entry["segmentation"]) for entry in told["annotations"]]
    ours = [(segment.label_index, segment.mask) for segment in expected.segments]
    masks = [(index, decode_rle(rle["counts"], expected.size_hw)) for index, rle in found]
    return _differ(_cover(masks, expected), _cover(ours, expected), expected)


def _cover(masks: Sequence[tuple[int, np.ndarray]], expected: Result) -> np.ndarray:
    """[H, W]: the words of every pixel as bits."""
    cover = np.zeros(expected.size_hw, np.int64)
    for index, mask in masks:
        cover |= mask.astype(np.int64) << index
    return cover


def _differ(told: np.ndarray, ours: np.ndarray, expected: Result) -> str | None:
    alike = float((told == ours).mean())
    return None if alike >= ALIKE else f"{expected.task} of {expected.size_hw}: {alike:.2%} of the pixels agree"


Bad = tuple[str, int, Callable[[Question], dict[str, Any]]]
"""Code and status that are documented, and the request."""


def _form(image: bytes, **fields: str) -> dict[str, Any]:
    return {"data": {"words": "sky", **fields}, "files": {"image": ("photo", image)}}


def _raw(body: bytes, kind: str) -> dict[str, Any]:
    return {"content": body, "headers": {"content-type": kind}}


def _blank(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "PNG")
    return file.getvalue()


BAD: dict[str, Bad] = {
    "json cut short": ("broken_request", 400, lambda q: _raw(b'{"image": "', "application/json")),
    "form cut short": ("broken_request", 400, lambda q: _raw(b"--x\r\nContent-", "multipart/form-data; boundary=x")),
    "no base64": ("broken_request", 400, lambda q: {"json": {"image": "?" * 400, "words": "sky"}}),
    "photo cut short": ("wrong_photo", 422, lambda q: _form(q.image[: len(q.image) // 3])),
    "no photo": ("wrong_photo", 422, lambda q: _form(b"some text, and no photo")),
    "too many pixels": ("too_many_pixels", 413, lambda q: _form(_blank((1200, 1000)))),
    "too many bytes": ("too_many_bytes", 413, lambda q: _form(bytes(int(MAX_MEGABYTES * 2**20) + 1))),
    "far too many bytes": ("too_many_bytes", 413, lambda q: _form(bytes(8 * 2**20))),
    "too many words": ("too_many_words", 422, lambda q: _form(q.image, words=",".join(map(str, range(99))))),
    "words twice": ("wrong_words", 422, lambda q: _form(q.image, words="sky, sky")),
    "no such task": ("wrong_field", 422, lambda q: _form(q.image, task="all")),
    "an address": ("wrong_field", 422, lambda q: {"json": {"image": "http://192.0.2.1/a.jpg", "words": "sky"}}),
    "other type": ("wrong_type", 415, lambda q: _raw(q.image, "image/jpeg")),
}
FORMS = ("json", "json", "coco", "overlay", "labels")


async def leave(url: str, question: Question, part: float, after: float) -> None:
    """Sends a part of a request, waits, and closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    image = base64.b64encode(question.image).decode()
    body = json.dumps({"image": image, "words": question.words, "task": question.task}).encode()
    head = (
        f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(head.encode() + body[: int(part * len(body))])
        await writer.drain()
        await asyncio.sleep(after)
    except ConnectionError:
        pass  # refused already, for want of a place
    finally:
        writer.close()


# ------------------------------------------------------------------------------------------------------------ the runs


async def mixture(
    process: ServerProcess, asked: Sequence[Question], requests: int, clients: int, seed: int = 0
) -> Report:
    """As many requests of all kinds, from so many clients at a time."""
    report, numbers, started = Report(), iter(range(requests)), time.perf_counter()

    async def insist(send: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """The response of a client that comes again until there is a place."""
        while (response := await send()).status_code == 429:
            report.statuses["told to come again 429"] += 1
            _check_refusal(report, response, "busy", 429)
            await asyncio.sleep(RETRY_SECONDS)
        return response

    async def one(client: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(seed * 1_000_003 + number)
        question, kind = chance.choice(asked), chance.random()
        if kind < 0.10:
            await leave(process.url, question, chance.choice((0.3, 1.0)), chance.random())
            report.statuses["leaves -"] += 1
        elif kind < 0.50:
            name = chance.choice(list(BAD))
            code, status, make = BAD[name]
            response = await insist(lambda: client.post("/v1/segment", **make(question)))
            report.statuses[f"{name} {response.status_code}"] += 1
            _check_refusal(report, response, code, status)
        else:
            form, as_json = chance.choice(FORMS), chance.random() < 0.3
            response = await insist(lambda: ask(client, question, form, as_json))
            report.statuses[f"good {response.status_code}"] += 1
            if response.status_code != 200:
                report.mistakes.append(f"good: {response.status_code} {response.text[:200]}")
                return
            report.answered += 1
            if problem := wrong(question, form, response):
                report.mistakes.append(f"{form}: {problem}")

    async def client_of_many() -> None:
        async with httpx.AsyncClient(base_url=process.url, timeout=600) as client:
            for number in numbers:
                try:
                    await one(client, number)
                except httpx.HTTPError as error:
                    report.mistakes.append(f"{type(error).__name__}: {error}")
                if number % max(1, requests // 80) == 0:
                    report.memory_mb.append(resident_mb(process.process.pid))

    await asyncio.gather(*(client_of_many() for _ in range(clients)))
    report.seconds = time.perf_counter() - started
    return report


def _check_refusal(report: Report, response: httpx.Response, code: str, status: int) -> None:
    told = response.text[:200]
    try:
        right = response.json()["error"]["code"] == code and response.status_code == status == REASONS[code].status
    except (ValueError, KeyError):
        right = False
    if not right or (code == "busy" and not response.headers.get("retry-after", "").isdigit()):
        report.mistakes.append(f"{code}: {response.status_code} {told}")


async def per_second(process: ServerProcess, asked: Sequence[Question], clients: int) -> float:
    """Answers per second, all of them right, when so many clients share the questions."""
    left, started = iter(asked), time.perf_counter()

    async def client_of_many() -> None:
        async with httpx.AsyncClient(base_url=process.url, timeout=600) as client:
            for question in left:
                response = await ask(client, question)
                problem = wrong(question, "json", response) if response.status_code == 200 else response.text
                assert problem is None, problem

    await asyncio.gather(*(client_of_many() for _ in range(clients)))
    return len(asked) / (time.perf_counter() - started)


def resident_mb(pid: int) -> float:
    """Memory of a process; Linux."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", default="street-tiny")
    parser.add_argument("--places", type=int, default=16)
    parser.add_argument("--timed", type=int, default=40, help="Questions of the two runs that are timed.")
    options = parser.parse_args()
    asked = questions(Segmenter.from_pretrained(options.model, "cpu"), 42)
    timed = (asked * (options.timed // len(asked) + 1))[: options.timed]
    arguments = (*LIMITS, "--places", str(options.places))
    with tempfile.TemporaryDirectory() as folder, server(options.model, Path(folder), *arguments) as process:
        asyncio.run(per_second(process, asked, 2))  # warm
        alone = asyncio.run(per_second(process, timed, 1))
        many = asyncio.run(per_second(process, timed, options.places))
        print(f"one by one {alone:.2f} per second, {options.places} at a time {many:.2f}: {many / alone:.2f} times")
        report = asyncio.run(mixture(process, asked, options.requests, 2 * options.places))
        alive = process.process.poll() is None and httpx.get(f"{process.url}/readyz").status_code == 200
    print(f"{options.requests} requests in {report.seconds:.0f} s, {report.answered} answered in full")
    for name, count in sorted(report.statuses.items()):
        print(f"  {name:28} {count}")
    steps = [report.memory_mb[len(report.memory_mb) * eighth // 8 - 1] for eighth in range(1, 9)]
    print(f"memory, MB, eighth by eighth: {', '.join(f'{step:.0f}' for step in steps)}; growth {report.growth:.1%}")
    print(f"mistakes: {len(report.mistakes)}", *report.mistakes[:20], sep="\n  ")
    good = alive and not report.mistakes and report.growth < 0.1 and many >= 1.5 * alone
    print("good" if good else "NOT good")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
