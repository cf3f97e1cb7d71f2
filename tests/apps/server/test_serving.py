"""A real server process, asked over a real socket."""

import base64
import io
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from lexiseg import Segmenter
from lexiseg.apps.server.refusals import REASONS
from tests.apps.server_process import ServerProcess, server
from tests.apps.toy_server import assert_answers, masks_of, photo_bytes, toy_folder

WORDS = "sky, road | street, car"
KEY = "a key that is long enough".replace(" ", "-")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def running(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    limits = ("--max-pixels", "0.05", "--max-words", "12", "--max-megabytes", "0.2", "--no-page")
    with server(toy, tmp_path_factory.mktemp("server"), *limits) as process:
        yield process


@pytest.fixture(scope="module")
def small(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One place, little time, many words allowed."""
    options = ("--places", "1", "--time-limit", "1.5", "--max-words", "20000", "--no-page")
    with server(toy, tmp_path_factory.mktemp("server"), *options) as process:
        yield process


def ask(url: str, photo: bytes | None = None, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    files = {"image": ("a photo.jpg", photo_bytes() if photo is None else photo)}
    fields = {"words": WORDS, **fields}
    return httpx.post(f"{url}/v1/segment", files=files, data=fields, headers=headers, timeout=60)


def ask_json(url: str, **fields: Any) -> httpx.Response:
    image = base64.b64encode(photo_bytes()).decode()
    return httpx.post(f"{url}/v1/segment", json={"image": image, "words": WORDS, **fields}, timeout=60)


def code(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert REASONS[error["code"]].status == status
    assert error["message"] and "\n" not in error["message"]
    return error["code"]


# ------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("task", ["semantic", "panoptic", "instance"])
def test_the_answer_is_the_segmenters(running: ServerProcess, toy: Path, task: str) -> None:
    response = ask(running.url, task=task, min_score="0")
    assert response.status_code == 200, response.text
    told = response.json()
    assert (told["photo"], told["height"], told["width"], told["task"]) == ("a photo.jpg", 60, 80, task)
    expected = Segmenter.from_pretrained(toy, "cpu")(photo_bytes(), WORDS, task, min_score=0)
    assert [word for word, _ in masks_of(told)] == [segment.label for segment in expected.segments]
    assert all(np.array_equal(m, s.mask) for (_, m), s in zip(masks_of(told), expected.segments, strict=True))


def test_json_says_the_same(running: ServerProcess) -> None:
    of_form, of_json = ask(running.url).json(), ask_json(running.url, name="a photo.jpg").json()
    assert of_form == of_json
    as_list = ask_json(running.url, name="a photo.jpg", words=["sky", ["road", "street"], {"name": "car"}]).json()
    assert as_list == of_json


# pycocotools 2.0 asks numpy for copies in an old way.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco(running: ServerProcess) -> None:
    told = ask(running.url, answer="coco").json()
    coco = COCO()
    coco.dataset = told
    coco.createIndex()
    annotation = told["annotations"][0]
    assert coco.annToMask(annotation).sum() == annotation["area"]
    assert [category["name"] for category in told["categories"]] == ["sky", "road", "car"]


@pytest.mark.parametrize(("form", "mode"), [("overlay", "RGB"), ("labels", "L")])
def test_pictures(running: ServerProcess, form: str, mode: str) -> None:
    response = ask(running.url, answer=form)
    assert response.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert picture.mode == mode
        assert picture.width * 60 == picture.height * 80


def test_a_vocabulary_file(running: ServerProcess) -> None:
    files = {
        "image": ("p.png", photo_bytes(kind="PNG")),
        "vocabulary": ("words.yaml", b"- {name: sky, thing: false}\n- [road, street]\n"),
    }
    told = httpx.post(f"{running.url}/v1/segment", files=files, timeout=60).json()
    assert [(word["label"], word["is_thing"]) for word in told["words"]] == [("sky", False), ("road", True)]


def test_background(running: ServerProcess) -> None:
    told = ask(running.url, words="car", background="true")
    assert code(told, 422) == "too_many_words", "its own words count"
    assert ask_json(running.url, words="car", background=False).json()["words"][-1]["label"] == "car"


def test_words_are_never_a_file_of_the_server(running: ServerProcess, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("opensesame\n", encoding="utf-8")
    response = ask(running.url, words=str(secret))
    assert [word["label"] for word in response.json()["words"]] == [str(secret)]


def test_models(running: ServerProcess) -> None:
    (model,) = httpx.get(f"{running.url}/v1/models").json()["models"]
    assert (model["name"], model["default"], model["tasks"]) == ("toy", True, ["semantic", "panoptic", "instance"])


# ------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"photo": b"not a picture"}, 422, "wrong_photo"),
        ({"photo": b""}, 422, "wrong_photo"),
        ({"photo": photo_bytes()[:200]}, 422, "wrong_photo"),
        ({"photo": photo_bytes((300, 300))}, 413, "too_many_pixels"),
        ({"photo": bytes(250_000)}, 413, "too_many_bytes"),
        ({"photo": bytes(3_000_000)}, 413, "too_many_bytes"),
        ({"words": ""}, 422, "wrong_words"),
        ({"words": "sky, sky"}, 422, "wrong_words"),
        ({"words": ",".join(f"w{n}" for n in range(13))}, 422, "too_many_words"),
        ({"words": "x" * 300_000}, 413, "too_many_bytes"),
        ({"task": "everything"}, 422, "wrong_field"),
        ({"model": "other"}, 422, "wrong_field"),
        ({"min_score": "2"}, 422, "wrong_field"),
        ({"answer": "pdf"}, 422, "wrong_field"),
        ({"background": "perhaps"}, 422, "wrong_field"),
        ({"colour": "red"}, 422, "wrong_field"),
    ],
    ids=str,
)
def test_refused(running: ServerProcess, fields: dict[str, Any], status: int, expected: str) -> None:
    assert code(ask(running.url, **fields), status) == expected
    assert ask(running.url).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        ({"image": "***"}, 400, "broken_request"),
        ({"image": "https://example.org/photo.jpg"}, 422, "wrong_field"),
        ({"image": base64.b64encode(bytes(250_000)).decode()}, 413, "too_many_bytes"),
        ({"words": {"sky": 3}}, 422, "wrong_words"),
        ({"words": 3}, 422, "wrong_field"),
        ({"address": "https://example.org/photo.jpg"}, 422, "wrong_field"),
    ],
    ids=str,
)
def test_refused_json(running: ServerProcess, fields: dict[str, Any], status: int, expected: str) -> None:
    assert code(ask_json(running.url, **fields), status) == expected


@pytest.mark.parametrize(
    ("kind", "body", "status", "expected"),
    [
        ("application/json", b'{"image": ', 400, "broken_request"),
        ("application/json", b"[" * 100_000, 400, "broken_request"),
        ("application/json", b"\xff\xfe", 400, "broken_request"),
        ("application/json", b"[]", 422, "wrong_field"),
        ("multipart/form-data", b"hello", 400, "broken_request"),
        ("multipart/form-data; boundary=x", b"--x\r\nhello", 400, "broken_request"),
        ("multipart/form-data; boundary=x", b"", 400, "broken_request"),
        ("multipart/form-data; boundary=x", b"--x--\r\n", 422, "wrong_field"),
        ("image/jpeg", b"hello", 415, "wrong_type"),
        ("", b"hello", 415, "wrong_type"),
    ],
    ids=str,
)
def test_broken_bodies(running: ServerProcess, kind: str, body: bytes, status: int, expected: str) -> None:
    response = httpx.post(f"{running.url}/v1/segment", content=body, headers={"content-type": kind})
    assert code(response, status) == expected


def test_other_addresses(running: ServerProcess) -> None:
    assert code(httpx.get(f"{running.url}/v1/nothing"), 404) == "not_found"
    assert code(httpx.get(f"{running.url}/v1/segment"), 405) == "wrong_method"


def test_the_key_and_ctrl_c(toy: Path, tmp_path: Path) -> None:
    with server(toy, tmp_path, "--no-page", key=KEY) as process:
        assert code(ask(process.url), 401) == "wrong_key"
        assert code(ask(process.url, headers={"authorization": "Bearer wrong"}), 401) == "wrong_key"
        assert code(ask(process.url, headers={"x-api-key": KEY[:-1]}), 401) == "wrong_key"
        assert code(httpx.get(f"{process.url}/v1/models"), 401) == "wrong_key"
        assert ask(process.url, headers={"authorization": f"Bearer {KEY}"}).status_code == 200
        assert ask(process.url, headers={"x-api-key": KEY}).status_code == 200
        assert httpx.get(f"{process.url}/healthz").status_code == 200
        assert process.stop(signal.SIGINT) == 0, "Ctrl-C is how a person stops it"
        written = process.log_file.read_text(encoding="utf-8")
        assert KEY not in written
        assert "Traceback" not in written


# ------------------------------------------------------------------------------------------- places, time, the end


def hold(url: str, body: bytes = b"{" * 1000) -> socket.socket:
    """A client that has sent the head of a request and one byte, and takes its time with the rest of the body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + body[:1])
    return connection


def wait_for_places(url: str, taken: int) -> None:
    end = time.monotonic() + 30
    while f"lexiseg_places_taken {float(taken)}" not in httpx.get(f"{url}/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_place_is_left_until_somebody_leaves(small: ServerProcess) -> None:
    with hold(small.url):
        wait_for_places(small.url, 1)
        response = ask(small.url)
        assert code(response, 429) == "busy"
        assert 1 <= int(response.headers["retry-after"]) <= 60
    wait_for_places(small.url, 0)
    assert ask(small.url).status_code == 200


def test_who_is_slow_is_told(small: ServerProcess) -> None:
    with hold(small.url) as connection:
        answer = connection.recv(65536).decode()
        assert answer.startswith("HTTP/1.1 408"), answer
    wait_for_places(small.url, 0)


def test_the_time_limit(small: ServerProcess) -> None:
    words = ",".join(f"word {n}" for n in range(19_000))
    assert code(ask(small.url, words=words), 504) == "too_late"
    wait_for_places(small.url, 0)
    assert httpx.get(f"{small.url}/readyz").status_code == 200


def test_shutdown_finishes_what_was_accepted(toy: Path, tmp_path: Path) -> None:
    body = json.dumps({"image": base64.b64encode(photo_bytes()).decode(), "words": WORDS}).encode()
    with server(toy, tmp_path, "--no-page", "--workers", "1") as process:
        early = [hold(process.url, body) for _ in range(4)]
        wait_for_places(process.url, 4)
        process.process.send_signal(signal.SIGTERM)
        wait_until_refused(process.url)
        for connection in early:
            connection.sendall(body[1:])
        for connection in early:
            with connection, connection.makefile("rb") as answer:
                told = answer.read()
                assert told.startswith(b"HTTP/1.1 200"), told[:300]
                assert json.loads(told.partition(b"\r\n\r\n")[2])["words"][1]["label"] == "road"
        assert process.process.wait(30) == 0
        assert not list(tmp_path.glob("lexiseg-page-*")), "nothing that was sent is left behind"


def wait_until_refused(url: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            httpx.get(f"{url}/healthz")
        except httpx.HTTPError:
            return
        time.sleep(0.02)
    raise AssertionError("it still listens")


# ------------------------------------------------------------------------------------------------- many at a time


def test_nobody_gets_the_words_of_another(running: ServerProcess, toy: Path) -> None:
    """Many clients at a time, each with words and a photo of its own, in batches and alone."""
    segmenter = Segmenter.from_pretrained(toy, "cpu")
    sizes = ((60, 80), (120, 160), (80, 60))
    asked = []
    for number in range(48):
        words = ", ".join(f"{word} {number % 7}" for word in ("sky", "road", "car", "tree")[: 2 + number % 3])
        photo = photo_bytes(sizes[number % 3], seed=number)
        asked.append((photo, words, ("semantic", "panoptic", "semantic")[number % 3]))

    def answered(question: tuple[bytes, str, str]) -> httpx.Response:
        photo, words, task = question
        return ask(running.url, photo, words=words, task=task)

    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(answered, asked))
    for (photo, words, task), response in zip(asked, responses, strict=True):
        assert response.status_code == 200, response.text
        assert_answers(response.json(), segmenter, photo, words, task)
    counted = httpx.get(f"{running.url}/metrics").text
    (largest,) = (line for line in counted.splitlines() if line.startswith('lexiseg_batch_photos_bucket{le="1.0"}'))
    (every,) = (line for line in counted.splitlines() if line.startswith("lexiseg_batch_photos_count"))
    assert float(largest.split()[-1]) < float(every.split()[-1]), "some went through together"


# ------------------------------------------------------------------------------------------- what can be looked up


def test_documentation(running: ServerProcess) -> None:
    """The example is a request that works, and every refusal of the code is there with its example."""
    told = httpx.get(f"{running.url}/openapi.json").json()
    operation = told["paths"]["/v1/segment"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["examples"]["semantic"]["value"]
    assert httpx.post(f"{running.url}/v1/segment", json=example, timeout=60).status_code == 200
    shown = json.dumps(operation["responses"])
    assert all(name in shown for name in REASONS if name not in ("not_found", "wrong_method"))
    assert set(operation["requestBody"]["content"]) == {"multipart/form-data", "application/json"}


def test_counts_and_logs_tell_nothing_of_contents(running: ServerProcess) -> None:
    response = ask(running.url, words="opensesame, sky")
    number = response.headers["x-request-id"]
    counts = httpx.get(f"{running.url}/metrics").text
    assert 'lexiseg_requests_total{path="/v1/segment",status="200"}' in counts
    text = running.log_file.read_text(encoding="utf-8")
    assert "opensesame" not in text + counts
    assert "a photo" not in text + counts
    (line,) = (line for line in running.log() if line.get("request") == number)
    assert (line["status"], line["words"], line["height"], line["width"], line["model"]) == (200, 2, 60, 80, "toy")


def test_health(running: ServerProcess) -> None:
    assert httpx.get(f"{running.url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{running.url}/readyz").json() == {"status": "ready"}
