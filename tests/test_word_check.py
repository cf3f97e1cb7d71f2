"""Words that a model cannot tell apart: the embedded model's own text tower is asked."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lexiseg.apps.cli import app
from lexiseg.vocabulary import Vocabulary
from lexiseg.word_check import Alikeness, Remark, check_words, measure_alikeness
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model


@pytest.fixture(scope="module")
def model(street_tiny: Path) -> Model:
    return load("street-tiny")


@pytest.fixture(scope="module")
def limits(model: Model) -> Alikeness:
    return measure_alikeness(model)


def remarks(model: Model, limits: Alikeness, words: str, background: bool = False) -> list[Remark]:
    return list(check_words(model, Vocabulary.parse(words, background), limits=limits))


def kinds(found: list[Remark]) -> set[tuple[str, tuple[str, ...]]]:
    return {(remark.kind, remark.phrases) for remark in found}


def test_limits_lie_between_different_things_and_synonyms(model: Model, limits: Alikeness) -> None:
    """Measured: different things 0.13 in nine of ten pairs, wordings of one thing 0.86 in the middle."""
    assert 0.5 < limits.close < limits.same < 0.9
    with pytest.raises(ValueError, match="the first is the smaller one"):
        Alikeness(close=0.9, same=0.5)


def test_words_for_one_thing(model: Model, limits: Alikeness) -> None:
    found = remarks(model, limits, "road, street, car, vehicle, sky, grass, dog")
    assert kinds(found) >= {("same", ("road", "street")), ("same", ("car", "vehicle"))}
    assert not {phrase for remark in found if remark.is_warning for phrase in remark.phrases} & {"sky", "grass", "dog"}
    first = found[0]
    assert first.is_warning and first.similarity == max(remark.similarity or 0 for remark in found)
    assert '"car | vehicle"' in next(remark.says for remark in found if remark.phrases == ("car", "vehicle"))


def test_words_that_may_be_mixed_up(model: Model, limits: Alikeness) -> None:
    (found,) = remarks(model, limits, "person, man, sky")
    assert (found.kind, found.phrases, found.classes) == ("close", ("person", "man"), (0, 1))


def test_synonyms_of_one_class_are_no_trouble(model: Model, limits: Alikeness) -> None:
    assert remarks(model, limits, "road | street, car | automobile, sky, tree | trees") == []


def test_synonyms_are_compared_across_classes(model: Model, limits: Alikeness) -> None:
    (found,) = remarks(model, limits, "lake | street, sky, river | road")
    assert (found.phrases, found.classes) == (("street", "road"), (0, 2))


def test_many_words_are_compared_in_portions(model: Model, limits: Alikeness, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "road, sky | heaven, street, grass, car, tree, vehicle"
    whole = remarks(model, limits, words)
    monkeypatch.setattr("lexiseg.word_check.PORTION", 3)
    assert kinds(remarks(model, limits, words)) == kinds(whole) >= {("same", ("car", "vehicle"))}


def test_one_word_twice(model: Model, limits: Alikeness) -> None:
    found = remarks(model, limits, "tree, sky, trees, traffic light, traffic-lights")
    assert kinds(found) >= {("twice", ("tree", "trees")), ("twice", ("traffic light", "traffic-lights"))}
    assert not [remark for remark in found if remark.kind in ("same", "close")]  # told once


def test_published_lists_may_have_a_word_in_two_classes(model: Model, limits: Alikeness) -> None:
    vocabulary = Vocabulary.from_comma_format(["door, gate", "sky", "fence, gate"])
    found = [remark for remark in check_words(model, vocabulary, limits=limits) if remark.kind == "twice"]
    assert [(remark.phrases, remark.classes) for remark in found] == [(("gate", "gate"), (0, 2))]
    assert "'door' and 'fence'" in found[0].says


def test_general_words(model: Model, limits: Alikeness) -> None:
    found = remarks(model, limits, "car, Objects, thing | stuff")
    assert {phrase for remark in found if remark.kind == "general" for phrase in remark.phrases} == {
        "Objects",
        "thing",
        "stuff",
    }


def test_the_background_may_take_from_a_word(model: Model, limits: Alikeness) -> None:
    found = [remark for remark in remarks(model, limits, "street, car", background=True) if remark.is_warning]
    assert [remark.phrases for remark in found] == [("street", "road")]
    assert '"street | road"' in found[0].says
    kept = remarks(model, limits, "street | road | pavement, car", background=True)
    assert not [remark for remark in kept if remark.is_warning]


def test_what_the_tokenizer_does(model: Model, limits: Alikeness) -> None:
    long = " ".join(["very"] * 80) + " long road"
    found = remarks(model, limits, f"Straße, rhododendron, {long}, sky")
    assert {remark.kind: remark.phrases for remark in found if remark.kind in ("letters", "pieces", "cut")} == {
        "letters": ("Straße",),
        "pieces": ("rhododendron",),
        "cut": (long,),
    }


def test_words_without_training(model: Model, limits: Alikeness) -> None:
    found = [remark for remark in remarks(model, limits, "sky, zebra crossing, thurible") if remark.kind == "new"]
    assert [remark.phrases for remark in found] == [("thurible",)]
    assert not found[0].is_warning


def test_a_single_class_has_nothing_to_be_compared_with(model: Model, limits: Alikeness) -> None:
    assert remarks(model, limits, "sky") == []


# ---------------------------------------------------------------------------------------------- on the command line


def lexiseg(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["vocab", "check", *arguments])


@pytest.mark.usefixtures("street_tiny")
def test_command(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("road\nstreet\nsky\n", encoding="utf-8")
    shown = lexiseg("--classes", str(words), "--similarity", "0.8")
    assert shown.exit_code == 0, shown.output
    assert "road, street" in shown.stdout and "3 classes, 1 warning" in shown.stdout
    assert lexiseg("--classes", str(words), "--similarity", "0.8", "--strict").exit_code == 1
    assert lexiseg("--classes", "road | street, sky", "--similarity", "0.8", "--strict").exit_code == 0


@pytest.mark.usefixtures("street_tiny")
def test_command_for_programs(tmp_path: Path) -> None:
    published = tmp_path / "list.txt"
    published.write_text("0:invalid_class_id\n1:door,gate\n2:fence,gate\n", encoding="utf-8")
    told = json.loads(lexiseg("--class-list", str(published), "--similarity", "0.9", "--json").stdout)
    assert told["limits"] == {"close": 0.9, "same": 0.9}
    assert [entry["kind"] for entry in told["remarks"] if entry["is_warning"]] == ["twice"]


def test_wrong_calls(tmp_path: Path) -> None:
    for arguments, said in (
        ((), "--classes, or --class-list"),
        (("--classes", "sky, sky"), "is in class 1"),
        (("--classes", str(tmp_path / "no.txt")), "no.txt"),
    ):
        refused = lexiseg(*arguments)
        assert refused.exit_code == 2 and said in refused.stderr, refused.output
