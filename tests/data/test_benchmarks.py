"""The table of benchmarks against the published one, and our constants against the class lists in use."""

import json
from pathlib import Path

import pytest

from lexiseg.data import ade20k_full, cityscapes, coco_stuff, voc
from lexiseg.data.benchmarks import BENCHMARKS
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.catalogue import BENCHMARKS as PUBLISHED

LISTS = {
    "ade20k-150": "ade20k-150",
    "ade20k-847": "ade20k-847",
    "context-59": "pascal-context-59",
    "context-459": "pascal-context-459",
    "voc-20": "voc-20",
    "voc-21": "voc-21",
    "coco": "coco-panoptic-133",
    "coco-stuff": "coco-stuff-171",
    "cityscapes": "cityscapes-19",
    "mapillary": "mapillary-65",
}


@pytest.fixture
def lists(shared: Path) -> dict:
    folder = shared / "parity" / "benchmarks"
    return json.loads((folder / "vocabularies-openseg.json").read_text())["vocabularies"]


def test_everything_published_can_be_measured() -> None:
    assert set(PUBLISHED) <= set(BENCHMARKS)
    assert all(set(entry.measures) <= {"miou", "pq", "ap"} for entry in BENCHMARKS.values())


def test_numbers_of_classes_and_ignored_values(lists: dict) -> None:
    for name, other in LISTS.items():
        assert (BENCHMARKS[name].classes, BENCHMARKS[name].ignore) == (lists[other]["n"], lists[other]["ignore"]), name


def test_class_lists_with_their_oddities_are_vocabularies(lists: dict) -> None:
    """Repeated phrases inside a class and between classes are kept."""
    for entry in lists.values():
        vocabulary = Vocabulary.from_comma_format([",".join(phrases) for phrases in entry["synonyms"]])
        assert [list(word.phrases) for word in vocabulary.classes] == entry["synonyms"]


def test_constants(lists: dict, shared: Path) -> None:
    plain = json.loads((shared / "parity" / "benchmarks" / "vocabularies-plain.json").read_text())
    assert list(voc.NAMES) == [phrases[0] for phrases in lists["voc-20"]["synonyms"]]
    assert [*voc.NAMES, *voc.STAND_INS] == plain["names"]["voc-20b"]
    assert list(cityscapes.KINDS) == lists["cityscapes-19"]["dataset_ids"]
    assert [kind >= cityscapes.FIRST_THING for kind in cityscapes.KINDS] == lists["cityscapes-19"]["isthing"]
    numbers = [number for number in range(1, 183) if number not in coco_stuff.NEVER_ANNOTATED]
    assert numbers == lists["coco-stuff-171"]["dataset_ids"]
    assert [index < coco_stuff.THINGS for index in range(171)] == lists["coco-stuff-171"]["isthing"]
    assert list(ade20k_full.object_numbers()) == plain["ade20k-847"]["object_ids"]
