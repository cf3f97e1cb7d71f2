"""Nouns of captions."""

import pytest

from lexiseg.mining.nouns import ListedNouns, not_shown, noun_finder, words_of


def test_the_tagger_finds_nouns() -> None:
    pytest.importorskip("textblob")
    find = noun_finder()
    assert find("A man is riding a skateboard down the street.") == ("man", "skateboard", "street")
    assert find("Two zebras, two zebras in a grassy field 3x J.A.L.") == ("zebras", "field")
    assert find("") == ()
    assert "textblob" in find.about


def test_listed_phrases_are_whole_words_and_the_longer_one_counts() -> None:
    find = ListedNouns(["light", "traffic light", "Cat", "tree"])
    assert find("A  traffic\nlight, a tree; cats and a light.") == ("traffic light", "tree", "light")
    assert find("a cat-flap") == ("cat",)
    assert find.about == "listed: cat, light, traffic light, tree"


def test_a_list_is_read_as_any_vocabulary(tmp_path) -> None:
    (tmp_path / "words.txt").write_text("road | street\ncar\n")
    assert noun_finder(tmp_path / "words.txt")("cars on a street with a car") == ("street", "car")


def test_words_remember_their_caption() -> None:
    find = ListedNouns(["a", "b", "c"])
    assert words_of(["b a", "c b", "c"], 2, find) == {"b": 0, "a": 0, "c": 1}
    assert words_of([], 2, find) == {}


def test_words_that_name_no_region() -> None:
    assert {"background", "front", "group", "photo"} <= not_shown()
    assert not {"man", "street", "crowd", "camera"} & not_shown()
    assert all(word == word.strip().lower() for word in not_shown())
