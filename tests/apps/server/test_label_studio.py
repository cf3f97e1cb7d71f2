"""A backend for Label Studio: a real server, asked as Label Studio asks it, and judged by Label Studio's own SDK."""

import base64
import json
import threading
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lexiseg import Segmenter
from lexiseg.apps.server.label_studio import Backend, read_picture
from lexiseg.apps.server.limits import Limits
from lexiseg.apps.server.refusals import REASONS, Refusal
from lexiseg.formats.label_studio import decode_brush
from tests.apps.server_process import ServerProcess, server
from tests.apps.toy_server import photo_bytes, toy_folder

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says about its own dependencies
    LabelInterface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    PredictionValue = pytest.importorskip("label_studio_sdk.label_interface.objects").PredictionValue

KEY = "a-key-that-is-long-enough"
THEIR_KEY = "0123456789abcdef0123456789abcdef01234567"
CONFIG = """<View>
  <Header value="Draw everything"/>
  <Image name="picture" value="$photo" zoom="true"/>
  <BrushLabels name="masks" toName="picture">
    <Label value="Sky" background="#aabbcc"/>
    <Label value="road | street" alias="way"/>
    <Label value="car" alias="cls_07"/>
  </BrushLabels>
  <Choices name="weather" toName="picture"><Choice value="rain"/></Choices>
</View>"""
POLYGONS = CONFIG.replace("BrushLabels", "PolygonLabels")


class Studio(BaseHTTPRequestHandler):
    """What Label Studio gives of its pictures to who has its key."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.headers.get("Authorization") != f"Token {THEIR_KEY}":
            self.send_response(401)
        elif self.path.startswith("/data/upload/"):
            self.send_response(200)
        elif self.path.startswith("/data/moved"):
            self.send_response(302)
            self.send_header("Location", "/data/upload/1/a.jpg")
        else:
            self.send_response(404)
        self.end_headers()
        self.wfile.write(photo_bytes(seed=7) if "large" not in self.path else bytes(300_000))

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def studio() -> Iterator[ThreadingHTTPServer]:
    Studio.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Studio) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("models") / "toy")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Local files, with a secret beside their folder."""
    folder = tmp_path_factory.mktemp("files") / "root"
    (folder / "in ner").mkdir(parents=True)
    (folder / "in ner" / "a b.jpg").write_bytes(photo_bytes(seed=3))
    (folder / "large.jpg").write_bytes(bytes(300_000))
    (folder / "no.jpg").write_text("no picture")
    (folder.parent / "secret.jpg").write_bytes(photo_bytes())
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    return folder


@pytest.fixture(scope="module")
def running(
    toy: Path, files: Path, studio: ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    url = f"http://127.0.0.1:{studio.server_address[1]}"
    options = ("--label-studio", "--label-studio-files", str(files), "--label-studio-url", url, "--no-page")
    limits = (
        "--max-megabytes",
        "0.2",
        "--max-words",
        "12",
        "--classes",
        "Car | automobile, lorry",
        "--task",
        "semantic",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABEL_STUDIO_API_KEY", THEIR_KEY)
        with server(toy, tmp_path_factory.mktemp("server"), *options, *limits, key=KEY) as process:
            yield process


def post(running: ServerProcess, path: str, body: Any, key: str | None = KEY) -> httpx.Response:
    auth = None if key is None else ("label-studio", key)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    return httpx.post(running.url + path, content=content, headers=headers, auth=auth, timeout=60)


def asked(*addresses: Any, config: str = CONFIG) -> dict[str, Any]:
    """As Label Studio asks for predictions."""
    tasks = [
        {"id": 10 + number, "data": {"photo": address}, "annotations": [], "predictions": []}
        for number, address in enumerate(addresses)
    ]
    params = {"login": None, "password": None, "context": None}
    return {"tasks": tasks, "model_version": "toy", "project": "3.1700000000", "label_config": config, "params": params}


def as_data(photo: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(photo).decode()}"


def test_it_is_there_and_takes_a_project(running: ServerProcess) -> None:
    health = httpx.get(f"{running.url}/health", timeout=60)
    assert (health.status_code, health.json()["status"]) == (200, "UP")
    body = {
        "project": "3.1700000000",
        "schema": CONFIG,
        "hostname": "http://x",
        "access_token": "y",
        "extra_params": None,
    }
    assert post(running, "/setup", body).json() == {"model_version": "toy"}
    assert post(running, "/versions", {"project": "3"}).json() == {"versions": ["toy"]}
    assert post(running, "/webhook", {"action": "ANNOTATION_CREATED"}).status_code == 200


@pytest.mark.parametrize("config", [CONFIG, POLYGONS])
def test_predictions(running: ServerProcess, toy: Path, config: str) -> None:
    photos = [photo_bytes(seed=seed) for seed in range(5)]
    response = post(running, "/predict", asked(*map(as_data, photos), config=config))
    assert response.status_code == 200, response.text
    interface = LabelInterface(config)
    segmenter = Segmenter.from_pretrained(toy, "cpu")
    labels = {"Sky": "Sky", "road": "way", "car": "cls_07"}
    for prediction, photo in zip(response.json()["results"], photos, strict=True):
        assert interface.validate_prediction(prediction, return_errors=True) == []
        PredictionValue(**prediction)
        assert prediction["model_version"] == "toy" and 0 <= prediction["score"] <= 1
        expected = segmenter(photo, "Sky, road | street | way, car | automobile, lorry")
        drawn = [segment for segment in expected.segments if segment.label != "lorry"]
        if config is CONFIG:
            told = [(one["value"]["brushlabels"], one["value"]["rle"]) for one in prediction["result"]]
            assert [label for label, _ in told] == [[labels[segment.label]] for segment in drawn]
            found = np.stack([decode_brush(bytes(packed), expected.size_hw) for _, packed in told])
            # Photos that go through together round differently: one pixel of 1,000 may flip.
            assert (found == np.stack([segment.mask for segment in drawn])).mean() > 0.999
        else:
            assert {one["value"]["polygonlabels"][0] for one in prediction["result"]} == {
                labels[s.label] for s in drawn
            }


def test_pictures_from_everywhere_they_may_come(running: ServerProcess, studio: ThreadingHTTPServer) -> None:
    here = f"http://127.0.0.1:{studio.server_address[1]}"

    def result(address: str) -> Any:
        response = post(running, "/predict", asked(address))
        assert response.status_code == 200, response.text
        return response.json()["results"][0]["result"]

    local, kept = result(as_data(photo_bytes(seed=3))), result(as_data(photo_bytes(seed=7)))
    assert local != kept
    for address in ("/data/local-files/?d=in%20ner/a%20b.jpg", f"{here}/data/local-files/?d=in%20ner%2Fa%20b.jpg"):
        assert result(address) == local
    for address in ("/data/upload/1/a.jpg", f"{here}/data/upload/1/a%20b.jpg"):
        assert result(address) == kept
    assert Studio.asked[-2:] == ["/data/upload/1/a.jpg", "/data/upload/1/a%20b.jpg"]


REFUSED = {
    "elsewhere": ("http://example.org/data/upload/1/a.jpg", "wrong_photo", "its picture is elsewhere"),
    "another port": ("http://127.0.0.1:1/data/upload/1/a.jpg", "wrong_photo", "its picture is elsewhere"),
    "a trick": ("//example.org/data/upload/a.jpg", "wrong_photo", "its picture is elsewhere"),
    "another scheme": ("file:///etc/passwd", "wrong_photo", "its picture is elsewhere"),
    "a bucket": ("s3://bucket/a.jpg", "wrong_photo", "its picture is elsewhere"),
    "a way out": ("/data/local-files/?d=../secret.jpg", "wrong_photo", "not below --label-studio-files"),
    "from the root": ("/data/local-files/?d=/etc/passwd", "wrong_photo", "not below --label-studio-files"),
    "a link": ("/data/local-files/?d=link.jpg", "wrong_photo", "not below --label-studio-files"),
    "a zero": ("/data/local-files/?d=a%00.jpg", "wrong_photo", "not below --label-studio-files"),
    "a folder": ("/data/local-files/?d=in%20ner", "wrong_photo", "not below --label-studio-files"),
    "a large file": ("/data/local-files/?d=large.jpg", "too_many_bytes", "its picture is larger than 0.2 MB"),
    "no picture": ("/data/local-files/?d=no.jpg", "wrong_photo", "task 10: is not an image"),
    "a large answer": ("/data/upload/1/large.jpg", "too_many_bytes", "its picture is larger than 0.2 MB"),
    "sent elsewhere": ("/data/moved/a.jpg", "wrong_photo", "Label Studio does not give its picture (302; it is kept"),
    "not there": ("/data/other/a.jpg", "wrong_photo", "Label Studio does not give its picture (404"),
    "a line break": ("/data/upload/1/a.jpg\r\nX: y", "wrong_photo", "characters that none may have"),
    "no base64": ("data:image/png;base64,!!", "wrong_photo", "its data are not base64"),
    "no base64 at all": ("data:image/svg+xml,<svg/>", "wrong_photo", "its data are not base64"),
    "large data": ("data:image/png;base64," + "A" * 290_000, "too_many_bytes", "larger than 0.2 MB"),
    "nothing": ("", "wrong_field", "task 10: its data have no 'photo', where the config looks for it"),
    "no text": ({"a": 1}, "wrong_field", "task 10: its data have no 'photo'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_pictures(case: str, running: ServerProcess) -> None:
    address, code, said = REFUSED[case]
    refused = post(running, "/predict", asked(address))
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (REASONS[code].status, code), error
    assert said in error["message"] and "\n" not in error["message"]


def test_one_bad_picture_of_several(running: ServerProcess) -> None:
    good = as_data(photo_bytes())
    first, bad, last = post(running, "/predict", asked(good, "s3://a/b.jpg", good)).json()["results"]
    assert first["result"] and first == last
    assert bad["result"] == [] and "its picture is elsewhere" in bad["error"]


def label_config(labels: str, image: str = '<Image name="i" value="$photo"/>') -> str:
    return f'<View>{image}<BrushLabels name="l" toName="i">{labels}</BrushLabels></View>'


ONE = '<Label value="sky"/>'
BAD_CONFIGS = {
    "no XML": ("<View>", "wrong_words", "the labelling config: not valid XML"),
    "entities": ('<!DOCTYPE a [<!ENTITY b "c">]><View/>', "wrong_words", "the labelling config: not valid XML"),
    "boxes alone": (CONFIG.replace("BrushLabels", "RectangleLabels"), "wrong_words", "no BrushLabels or PolygonLabels"),
    "no labels": (label_config(""), "wrong_words", "no BrushLabels or PolygonLabels with labels for an Image"),
    "no picture": (label_config(ONE, image=""), "wrong_words", "no BrushLabels or PolygonLabels"),
    "a fixed picture": (label_config(ONE, '<Image name="i" value="a.jpg"/>'), "wrong_words", "is no $name of a task"),
    "a comma": (label_config('<Label value="sky, road"/>'), "wrong_words", "the labels: "),
    "many": (label_config("".join(f'<Label value="w{n}"/>' for n in range(20))), "too_many_words", "at most 12"),
    "large": (label_config(f'<Label value="{"a" * 300_000}"/>'), "too_many_bytes", "larger than 256 KB"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs(case: str, running: ServerProcess) -> None:
    config, code, said = BAD_CONFIGS[case]
    for path, body in (
        ("/setup", {"project": "1.2", "schema": config}),
        ("/predict", asked(as_data(photo_bytes()), config=config)),
    ):
        refused = post(running, path, body)
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (REASONS[code].status, code), error
        assert said in error["message"]


def test_bad_requests(running: ServerProcess) -> None:
    for path, body, code in (
        ("/predict", b"{", "broken_request"),
        ("/predict", {"tasks": []}, "wrong_field"),
        ("/predict", {"tasks": [{}] * 300, "label_config": CONFIG}, "wrong_field"),
        ("/predict", {"tasks": "all", "label_config": CONFIG}, "wrong_field"),
        ("/predict", {"tasks": [{}]}, "wrong_field"),
        ("/predict", b" " * 1_000_000, "too_many_bytes"),
        ("/setup", {}, "wrong_field"),
    ):
        refused = post(running, path, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (REASONS[code].status, code)


def test_the_key_is_the_password(running: ServerProcess) -> None:
    for path in ("/setup", "/predict", "/versions", "/webhook"):
        for key in (None, "wrong"):
            assert post(running, path, asked(as_data(photo_bytes())), key).status_code == 401
    broken = httpx.post(f"{running.url}/setup", headers={"Authorization": "Basic !!"}, json={}, timeout=60)
    assert broken.status_code == 401
    assert httpx.get(f"{running.url}/health", timeout=60).status_code == 200


def test_logs_tell_sizes_alone(running: ServerProcess) -> None:
    post(running, "/predict", asked("/data/local-files/?d=in%20ner/a%20b.jpg"))
    lines = [line for line in running.log() if line.get("path") == "/predict" and line["status"] == 200]
    assert lines[-1]["photos"] == 1 and lines[-1]["words"] == 4
    text = running.log_file.read_text(encoding="utf-8")
    assert "ner" not in text and "lorry" not in text and KEY not in text and THEIR_KEY not in text


def test_without_a_folder_and_an_address() -> None:
    for address in ("/data/upload/1/a.jpg", "/data/local-files/?d=a.jpg"):
        with pytest.raises(Refusal, match="^task 1: its picture is kept by Label Studio; start the server with"):
            read_picture(address, "task 1", Backend(), Limits())
    for address in (
        "http://h:1/api/users",
        "http://h:1/data/../api/users",
        "/data/%2e%2e/api/users",
        "http://h:1x/data/a",
    ):
        with pytest.raises(Refusal, match="^task 1: its picture is elsewhere"):
            read_picture(address, "task 1", Backend(address="http://h:1"), Limits())
    with pytest.raises(Refusal, match="^task 1: the address of its picture cannot be read"):
        read_picture("http://[h/data/a", "task 1", Backend(), Limits())
    assert read_picture(as_data(b"abc"), "task 1", Backend(), Limits()) == b"abc"


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        Backend(files=tmp_path / "none")
    for address in ("localhost:8080", "ftp://a", "http://", "http://user:secret@host", "http://a/?b"):
        with pytest.raises(ValueError, match="write it as http://host:port"):
            Backend(address=address)
