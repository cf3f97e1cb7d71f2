"""The page, driven in a real browser as a person would, against a real server process."""

import base64
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image

from lexiseg import Segmenter
from lexiseg.apps.page.building import EXAMPLE_WORDS, make_page
from lexiseg.apps.page.viewing import view
from lexiseg.apps.server.service import Service
from tests.apps.server_process import ServerProcess, server
from tests.colour_model import colour_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WORDS = "sky, tree, building | temple, lake | water"
PATIENCE = 120_000
"""Milliseconds: the machine that runs the tests may have much to do."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs lexiseg[dev]")
    program = os.environ.get("LEXISEG_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(BROWSERS)}, and LEXISEG_CHROMIUM names none")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server("street-tiny", tmp_path_factory.mktemp("server"), "--max-pixels", "1") as process:
        yield process


@pytest.fixture
def page(browser: Any, running: ServerProcess) -> Iterator[Any]:
    """The page in a window; whatever it asks for must be of the server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    opened, wrong = context.new_page(), []
    own = (running.url, "data:", "blob:")
    opened.on("request", lambda request: None if request.url.startswith(own) else wrong.append(request.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.goto(running.url)
    opened.wait_for_selector("#viewer .viewer .hint")
    yield opened
    context.close()
    assert not wrong


def test_nothing_is_left_behind(browser: Any, china_photo: Path, tmp_path: Path) -> None:
    """The server of an open page ends when it is told to, and deletes what was sent; with a key it asks first."""
    key = "0123456789-abcdef"
    with server("street-tiny", tmp_path, key=key) as process:
        context = browser.new_context()
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(process.url)
        page.locator("input").nth(0).fill("somebody")
        page.locator("input").nth(1).fill(key)
        page.click("button:has-text('Login')")
        page.wait_for_selector("#go")
        page.set_input_files("#photo input[type=file]", china_photo)
        page.wait_for_selector("#photo img")
        (folder,) = tmp_path.glob("lexiseg-page-*")
        assert list(folder.rglob("china.jpg"))
        assert process.stop() == 0
        assert not folder.exists()
        context.close()


def find(page: Any, photo: Path | None, words: str | None) -> None:
    if photo is not None:
        page.set_input_files("#photo input[type=file]", photo)
        page.wait_for_selector("#photo img")
    if words is not None:
        page.fill("#words textarea", words)
    page.click("#go")


def saved(page: Any, button: str, folder: Path) -> Path:
    with page.expect_download() as download:
        page.click(f"#viewer .downloads >> text={button}")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


@pytest.mark.usefixtures("street_tiny")
def test_from_a_photo_to_its_files(page: Any, china_photo: Path, tmp_path: Path) -> None:
    find(page, china_photo, WORDS)
    page.wait_for_selector("#viewer canvas")
    expected = Segmenter.from_pretrained("street-tiny", "cpu")(china_photo, WORDS)

    coco = json.loads(saved(page, "COCO", tmp_path).read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = {names[annotation["category_id"]]: annotation for annotation in coco["annotations"]}
    assert coco["images"] == [{"id": 1, "file_name": "china.jpg", "height": 427, "width": 640}]
    assert set(found) == {segment.label for segment in expected.segments}
    for segment in expected.segments:
        assert found[segment.label]["area"] == pytest.approx(segment.area, rel=0.01)

    told = json.loads(saved(page, "Data", tmp_path).read_text(encoding="utf-8"))
    assert [segment["label"] for segment in told["segments"]] == [segment.label for segment in expected.segments]
    with Image.open(saved(page, "Picture", tmp_path)) as picture:
        assert picture.size == (640, 427)
        assert not np.array_equal(np.array(picture.convert("RGB")), expected.rgb)
    assert {path.name for path in tmp_path.iterdir()} == {"china.coco.json", "china.json", "china.overlay.png"}

    rows = page.locator("#viewer tbody tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == [segment.label for segment in expected.segments]
    assert f"{100 * expected.segments[0].share:.1f} %" in rows[0]


@pytest.mark.usefixtures("street_tiny")
def test_looking_into_the_example(page: Any) -> None:
    """One click, and everything that the pointer can do."""
    page.click("#example")
    page.wait_for_selector("#viewer canvas")
    assert page.input_value("#words textarea") == EXAMPLE_WORDS
    box = page.locator("#viewer canvas").bounding_box()
    spot = {"x": box["width"] * 0.9, "y": box["height"] * 0.08}  # the sky

    def color() -> list[int]:
        return page.evaluate(
            "([x, y]) => { const c = document.querySelector('#viewer canvas');"
            "return [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data].slice(0, 3) }",
            [0.9, 0.08],
        )

    page.hover("#viewer canvas", position=spot)
    tip = page.locator("#viewer .tip").inner_text()
    assert tip.startswith("sky")
    assert "match" in tip
    assert "next:" in tip
    page.mouse.move(1, 1)
    tinted = color()
    page.fill("#viewer .opacity", "90")
    stronger = color()
    page.locator("#viewer tbody tr", has_text="sky").locator("input").uncheck()
    bare = color()
    assert tinted != stronger != bare != tinted
    assert abs(stronger[0] - 70) < abs(tinted[0] - 70) < abs(bare[0] - 70), "the colour of the sky has 70 of red"
    page.hover("#viewer canvas", position=spot)
    assert page.locator("#viewer .tip").is_hidden(), "nothing is told of what is switched off"
    page.locator("#viewer thead input").check()
    assert page.locator("#viewer tbody tr.off").count() == 0


def test_mistakes_are_told_in_words(page: Any, china_photo: Path, tmp_path: Path) -> None:
    said = page.locator("#said .wrong")
    page.click("#go")
    said.wait_for()
    assert "Choose a photo" in said.inner_text()
    large = tmp_path / "large.png"
    Image.new("RGB", (1200, 1000)).save(large)
    for photo, words, expected in (
        (china_photo, "", "Type what to look for"),
        (None, "sky, sky", "keep it in one of them"),
        (None, "<b>sky</b>,,", "an empty name"),
        (large, "sky", "at most 1 megapixels"),
    ):
        find(page, photo, words)
        page.locator("#said .wrong", has_text=expected).wait_for()
    assert page.locator("#said b").count() == 0, "words of people are never HTML"


@pytest.mark.usefixtures("street_tiny")
def test_choices_and_a_word_list(page: Any, china_photo: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("sky\nbuilding | temple\nzebra  # not there\n", encoding="utf-8")
    page.click("text=More choices")
    page.click("text=Areas and single objects")
    page.set_input_files("#listed input[type=file]", words)
    page.locator("#listed", has_text="words").wait_for()
    page.wait_for_timeout(1000)  # the file is on its way
    find(page, china_photo, None)
    page.wait_for_selector("#viewer canvas")
    told = json.loads(saved(page, "Data", tmp_path).read_text(encoding="utf-8"))
    assert told["task"] == "panoptic"
    assert [word["label"] for word in told["words"]] == ["sky", "building", "zebra"]
    if all(segment["label"] != "zebra" for segment in told["segments"]):
        assert "zebra" in page.locator("#viewer .missing").inner_text()


@pytest.mark.usefixtures("street_tiny")
def test_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#example")
    page.wait_for_selector("#viewer canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#viewer canvas").bounding_box()["width"] > 280


# -------------------------------------------------------------------------------------------------- without a browser


def test_nothing_is_fetched() -> None:
    """Gradio by itself would fetch an address that stands where a file is expected, in any field."""
    service = Service({"colours": Segmenter(colour_model(), "cpu")})
    page = make_page(service)
    for block in page.blocks.values():
        moving = block.async_move_resource_to_block_cache("HTTP://192.0.2.1/photo.jpg")
        with pytest.raises(gradio.Error, match="not fetched"):
            moving.send(None)
    service.close()


def test_what_the_viewer_gets() -> None:
    """Under a region that is switched off, the next one shows: instances come in layers."""
    photo = np.zeros((40, 60, 3), np.uint8)
    photo[:, :30, 0] = photo[:, 30:, 2] = 200
    masks = np.zeros((2, 40, 60), bool)
    masks[0, :, :40] = masks[1, :, 20:] = True
    result = Segmenter(colour_model(), "cpu")(photo, "red, blue <i>", "instance", masks=masks)
    told = json.loads(view(result))
    assert (told["width"], told["height"], len(told["layers"])) == (60, 40, 2)
    top, under = (_ids(layer) for layer in told["layers"])
    first, second = result.segments[0].mask, result.segments[1].mask
    assert np.array_equal(top == 1, first)
    assert np.array_equal(top == 2, second & ~first)
    assert np.array_equal(under == 2, second & first)
    assert [region["label"] for region in told["regions"]] == [segment.label for segment in result.segments]
    assert json.loads(told["coco"])["annotations"][0]["area"] == result.segments[0].area


def _ids(address: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
        values = np.array(picture).astype(int)
    return values[..., 0] + 256 * values[..., 1]
