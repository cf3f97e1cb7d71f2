import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from lexiseg.data.packages import LabelledPhotos
from lexiseg.evaluation import Plan, candidate_of, evaluate
from lexiseg.evaluation.report import PHOTOS, ranked_photos, write_report
from lexiseg.segmenter import Segmenter
from tests.colour_model import colour_model
from tests.evaluation.conftest import by_grey_level, labelling


class Balanced(HTMLParser):
    """Every tag that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        assert tag in ("circle", "path")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page(colours: Path, tmp_path: Path) -> None:
    data = LabelledPhotos(colours)
    plan, model = Plan.of(data), candidate_of(Segmenter(colour_model(), device="cpu"))
    evaluation = evaluate(model, data, plan, progress=False)
    path = write_report(evaluation, model, data, plan, tmp_path)
    assert path.name == "colours.colours-12.val.html"
    text = path.read_text()
    Balanced(text)
    pictures = re.findall(r"base64,([^\"]+)", text)
    assert len(pictures) == 2 * PHOTOS * 3
    assert Image.open(io.BytesIO(base64.b64decode(pictures[1]))).size == (420, 280)
    for heading in ("The worst photos", "The best photos", "Most frequent mistakes", "Calibration", "Classes"):
        assert f"<h2>{heading}</h2>" in text
    assert "http" not in text.replace("https://", "http://"), "nothing is loaded from elsewhere"
    ranked = ranked_photos(evaluation)
    assert ranked[0][0] < ranked[-1][0]
    assert text.index(f"{ranked[0][1].id}: mean IoU {100 * ranked[0][0]:.1f}") < text.index("The best photos")


def test_names_are_text(package: Path, tmp_path: Path) -> None:
    description = package / "dataset.json"
    description.write_text(description.read_text().replace('"sky"', '"<script>x</script>"'))
    data = LabelledPhotos(package)
    plan, model = Plan.of(data), labelling(by_grey_level)
    evaluation = evaluate(model, data, plan, progress=False)
    text = write_report(evaluation, model, data, plan, tmp_path).read_text()
    Balanced(text)
    assert "<script>" not in text
    assert "&lt;script&gt;x&lt;/script&gt;" in text


def test_given_masks_have_numbers_only(colours: Path, tmp_path: Path) -> None:
    data = LabelledPhotos(colours)
    plan = Plan.of(data, given_masks="regions")
    model = candidate_of(Segmenter(colour_model(), device="cpu"))
    evaluation = evaluate(model, data, plan, progress=False)
    silent = replace(model, predict=None)
    text = write_report(evaluation, silent, data, plan, tmp_path).read_text()
    Balanced(text)
    assert "mask accuracy" in text
    assert "base64" not in text
