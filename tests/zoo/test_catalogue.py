"""The written-out list, and the page made of it."""

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from lexiseg.clip.open_clip import clip_config
from lexiseg.zoo import cards
from lexiseg.zoo.catalogue import BENCHMARKS, ZOO, Composed, Embedded, OfficialFile
from lexiseg.zoo.coco_words import COCO_PHRASES, STUFF, THINGS
from lexiseg.zoo.loading import is_available
from lexiseg.zoo.model_folder import BUILDERS
from lexiseg.zoo.table import markdown, rows

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_entry_is_complete() -> None:
    for name, entry in ZOO.items():
        assert entry.name == name
        if isinstance(entry.source, Composed):
            assert entry.builder == "composed" and entry.state in ("fetch", "convert") and not entry.published
            continue
        assert entry.builder in BUILDERS
        inspect.signature(BUILDERS[entry.builder].system).bind_partial(**entry.arguments)
        assert set(entry.published) <= set(BENCHMARKS)
        assert (entry.miou_rule is None) == (not any("miou" in numbers for numbers in entry.published.values()))
        for field in dataclasses.fields(entry):
            assert getattr(entry, field.name) != "", f"{name}: {field.name} is empty"
        if isinstance(entry.source, Embedded):
            assert entry.state == "ready" and is_available(name)
        if isinstance(entry.source, OfficialFile):
            assert entry.state == "convert" and clip_config(entry.source.tower)


def test_published_numbers_are_percentages() -> None:
    values = [value for entry in ZOO.values() for numbers in entry.published.values() for value in numbers.values()]
    # FC-CLIP; MAFT+ and Mask-Adapter; MaskCLIP++; OVSeg; MAFT.
    assert len(values) == 6 * 16 + (5 * 5 + 3) + 49 + 2 * 5 + 3 * 5 and all(0 < value < 100 for value in values)
    assert ZOO["fcclip-convnext-large"].published["ade20k-150"] == {"pq": 26.8, "ap": 16.8, "miou": 34.1}
    assert ZOO["fcclip-rn50"].published["voc-20"] == {"miou": 89.5}
    assert ZOO["maftplus-large"].published["context-459"] == {"miou": 21.6}
    assert "| – / – / 36.1 |" in markdown() and "| 27.1 / – / – (SQ 73.5, RQ 32.9) |" in markdown()


def test_the_page_is_the_catalogue() -> None:
    said = "docs/models.md is not what the catalogue says: python -m lexiseg.zoo.table > docs/models.md"
    assert (DOCS / "models.md").read_text(encoding="utf-8") == markdown(), said


def test_the_cards_are_the_catalogue() -> None:
    said = "docs/model-cards.md is not what the catalogue says: python -m lexiseg.zoo.cards > docs/model-cards.md"
    assert (DOCS / "model-cards.md").read_text(encoding="utf-8") == cards.markdown(), said


def test_a_card_says_what_a_user_has_to_know() -> None:
    for name, entry in ZOO.items():
        told = cards.card(entry)
        assert {"What it is", "Trained on", "Measured", "Licence of the weights", "How to load it"} <= set(told), name
        assert f'from_pretrained("{name}")' in told["How to load it"]
        assert ("Published" in told) == bool(entry.published)
        assert not any("\n" in said or " | " in said for said in told.values()), f"{name}: breaks the table"
    assert "mIoU 45.8" in cards.card(ZOO["street-tiny"])["Measured"]
    assert "non-commercial" in cards.card(ZOO["street-tiny"])["Licence of the weights"]
    assert "mIoU 34.1" in cards.card(ZOO["fcclip-convnext-large"])["Published"]
    assert "never at hand" in cards.card(ZOO["fcclip-convnext-large"])["Measured"]


def test_numbers_told_in_sentences_are_those_of_the_catalogue() -> None:
    """The table of docs/choosing.md, and the headline of each system's page."""
    table = (DOCS / "choosing.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[[^|]+\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+|–)", table, re.MULTILINE)
    assert len(rows) == 6
    panoptic = {"maftplus-large": "maftplus-large-panoptic"}
    panoptic["maskclip-pp-eva-large-words-maftplus"] = "maskclip-pp-eva-large-words-maftplus-panoptic"
    for name, miou, pq in rows:
        assert f"{ZOO[name].published['ade20k-150']['miou']:.1f}" == miou
        assert pq == "–" or f"{ZOO[panoptic.get(name, name)].published['ade20k-150']['pq']:.1f}" == pq
    for page in sorted((DOCS / "systems").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        told = set(
            re.findall(r"(?<![\d.])\d\d\.\d(?!\d)", text.partition("## Numbers")[2].partition("Measured here")[0])
        )
        values = {
            f"{v:.1f}" for entry in ZOO.values() for numbers in entry.published.values() for v in numbers.values()
        }
        assert told - values <= {"52.7"}, f"{page.name}: not published: {told - values}"  # CLIP without MaskCLIP++


def test_the_table_tells_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEXISEG_MODELS", str(tmp_path))
    state = {row.name: row.state for row in rows()}
    assert state["fcclip-rn50"] == "needs the official file (0.5 GB), converted once"
    (tmp_path / "fcclip-rn50").mkdir()
    (tmp_path / "fcclip-rn50" / "lexiseg.json").touch()
    assert {row.name: row.state for row in rows()}["fcclip-rn50"] == "ready"


def test_coco_words() -> None:
    assert (len(THINGS), len(STUFF)) == (80, 53)
    assert len(set(COCO_PHRASES)) == len(COCO_PHRASES)
