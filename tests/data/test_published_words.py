import json
from pathlib import Path

import pytest

from lexiseg.data.benchmarks import BENCHMARKS
from lexiseg.data.published_words import SUMS, remark_on, sum_of
from lexiseg.vocabulary import Vocabulary

NAMES = {
    "context-59": "pascal-context-59",
    "context-459": "pascal-context-459",
    "coco": "coco-panoptic-133",
    "coco-stuff": "coco-stuff-171",
    "cityscapes": "cityscapes-19",
    "mapillary": "mapillary-65",
}


def test_only_of_benchmarks() -> None:
    assert set(SUMS) <= set(BENCHMARKS)


@pytest.mark.parametrize("name", SUMS)
def test_the_published_list_is_known_as_a_user_would_bring_it(name: str, shared: Path, tmp_path: Path) -> None:
    lists = json.loads((shared / "parity" / "benchmarks" / "vocabularies-openseg.json").read_text())["vocabularies"]
    synonyms = lists[NAMES.get(name, name)]["synonyms"]
    file = tmp_path / "list.txt"
    file.write_text("0:invalid_class_id\n" + "".join(f"{i + 1}:{','.join(own)}\n" for i, own in enumerate(synonyms)))
    phrases = [entry.phrases for entry in Vocabulary.from_class_list(file).classes]
    assert remark_on(name, phrases) is None
    assert "list of synonyms" in str(remark_on(name, [*phrases[1:], phrases[0]]))


def test_other_photos_have_no_published_list() -> None:
    assert remark_on("my photos", [["cat"]]) is None
    assert sum_of([["a", "b"]]) != sum_of([["a"], ["b"]])
