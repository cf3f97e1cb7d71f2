"""Words from strings, lists and files, and what is said about mistakes."""

import json
from pathlib import Path
from typing import Any

import pytest

from lexiseg import vocabulary as module
from lexiseg.vocabulary import (
    TEMPLATES,
    Vocabulary,
    VocabularyClass,
    VocabularyError,
    make_prompts,
    split_comma_format,
    template_set,
)

STREET = (("sky",), ("road", "street"), ("car",))


def phrases(vocabulary: Vocabulary) -> tuple[tuple[str, ...], ...]:
    return tuple(entry.phrases for entry in vocabulary.classes)


@pytest.mark.parametrize(
    "words",
    [
        "sky, road | street, car",
        "  sky ,road|street,car, ",
        "sky\nroad | street\n\ncar\n",
        "sky,\nroad | street,\ncar",
        "sky, road | street | Road, car",
        ["sky", "road | street", "car"],
        [["sky"], ["road", " street "], "car"],
        ({"name": "sky"}, {"name": "road", "synonyms": ["street"]}, {"name": "car", "synonyms": []}),
        {"sky": None, "road": "street", "car": []},
        {"sky": "sky", "road": ["street"], "car": {"thing": True}},
    ],
)
def test_forms_of_the_same_words(words: Any) -> None:
    vocabulary = Vocabulary.parse(words)
    assert phrases(vocabulary) == STREET
    assert vocabulary.names == ("sky", "road", "car")
    assert vocabulary.phrases == ("sky", "road", "street", "car")
    assert vocabulary.class_of == (0, 1, 1, 2)
    assert len(vocabulary) == 3
    assert Vocabulary.parse(vocabulary) is vocabulary


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("words.txt", "# a street\nsky\n\nroad | street  # asphalt\r\ncar"),
        ("words.txt", "\ufeffsky\nroad|street\ncar\n"),
        ("words.yaml", "- sky\n- road | street\n- [car]\n"),
        ("words.yml", "sky:\nroad: [street]\ncar: {thing: true}\n"),
        ("WORDS.JSON", '["sky", ["road", "street"], {"name": "car"}]'),
        ("words.json", '{"sky": [], "road": "street", "car": null}'),
    ],
)
def test_files(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    assert phrases(Vocabulary.parse(path)) == STREET
    assert phrases(Vocabulary.parse(str(path))) == STREET


def test_details_of_a_class() -> None:
    vocabulary = Vocabulary.parse(
        [
            {"name": "sky | heaven", "thing": False, "color": "#0080fF"},
            {"name": "car", "synonyms": "auto | car", "color": [255, 0, 1]},
            VocabularyClass(("bus",), color=(1, 2, 3)),
        ]
    )
    assert vocabulary.classes == (
        VocabularyClass(("sky", "heaven"), is_thing=False, color=(0, 128, 255)),
        VocabularyClass(("car", "auto"), is_thing=True, color=(255, 0, 1)),
        VocabularyClass(("bus",), is_thing=True, color=(1, 2, 3)),
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "empty"),
        (" , ,\n", "empty"),
        ("sky,, car", "class 2: an empty name"),
        ("sky, road | | street", "class 2: an empty name in ' road"),
        ("sky, car, Sky", "'Sky' is in class 1 ('sky') and in class 3 ('Sky')"),
        ("sky, road | car, car", "'car' is in class 2 ('road') and in class 3"),
        ([], "no classes"),
        ({}, "no classes"),
        ([[]], "class 1: an empty list"),
        (["sky", ""], "class 2: an empty name"),
        (["sky", 3], "class 2: a number (3)"),
        (["sky", None], "class 2: nothing"),
        (["sky", True], "class 2: a yes/no value (True)"),
        ([["sky", 3]], "class 1: a number (3) among the synonyms"),
        (["person,child,girl"], "comma inside the name 'person,child,girl'"),
        ([{"synonyms": ["x"]}], "class 1: has no name"),
        ([{"name": "sky", "colour": "red"}], "unknown key 'colour'"),
        ([{"name": "sky", "thing": "no"}], "thing is 'no'"),
        ([{"name": "sky", "color": "blue"}], "color 'blue'"),
        ([{"name": "sky", "color": [0, 0, 256]}], "color (0, 0, 256)"),
        ([{"name": "sky", "color": [0, 0]}], "color (0, 0)"),
        ([{"name": "sky", "color": [0, 0, True]}], "color (0, 0, True)"),
        ({"sky": {"color": [0.5, 0, 0]}}, "class 'sky': color (0.5, 0, 0)"),
        ({"sky": {"synonym": "x"}}, "unknown key 'synonym'"),
        ({7: None}, "a number (7) where a name was expected"),
        (7, "is a number (7)"),
        (["a" * 501], "501 characters"),
        (["a\x00b"], "cannot be printed"),
        (["a\ud800b"], "cannot be printed"),
    ],
)
def test_mistakes(words: Any, says: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(words)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("words.txt", b"", "the file is empty"),
        ("words.txt", b"# nothing\n\n", "only comments"),
        ("words.txt", b"sky\nroad, street\n", "line 2: a comma inside the name"),
        ("words.txt", b"sky\nroad |\n", "line 2: an empty name"),
        ("words.txt", b"sky\ncaf\xe9\n", "not UTF-8 text (byte 7)"),
        ("words.txt", b"sky\ncar\nsky\n", "in class 1 ('sky') and in class 3"),
        ("words.yaml", b"- sky\n- [car\n", "not valid YAML (line 3"),
        ("words.yaml", b"sky\n", "holds one text"),
        ("words.yaml", b"- sky\n- no\n", "class 2: a yes/no value (False)"),
        ("words.yaml", b"sky: a\nsky: b\n", "'sky' is there twice"),
        ("words.yaml", b"? [a]\n: b\n", "as a key"),
        ("words.yaml", b"- !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("words.yaml", b"- a: &a [x]\n  name: b\n  synonyms: &s [*s]\n", "unknown key 'a'"),
        ("words.yaml", b"name: &s [*s]\n", "a list among the synonyms"),
        ("words.yaml", b"[" * 1_000, "not valid YAML"),
        ("words.json", b"[" * 100_000, "not valid JSON"),
        ("words.json", b'["sky",]', "not valid JSON (line 1"),
        ("words.json", b"3", "is a number (3)"),
        ("words.json", b"null", "is nothing"),
        ("words.json", b'{"sky": 1, "sky": 2}', "'sky' is there twice"),
        ("words.png", b"sky", "ends in .txt, .yaml, .yml, .json"),
    ],
)
def test_mistakes_in_files(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert says in message
    assert "\n" not in message


def test_a_bomb_is_refused_in_one_line(tmp_path: Path) -> None:
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    (tmp_path / "words.yaml").write_text("a0: &a0 [lol, '']\n" + levels)
    with pytest.raises(VocabularyError, match="empty name"):
        Vocabulary.parse(tmp_path / "words.yaml")
    (tmp_path / "words.yaml").write_text("a0: &a0 [lol]\n" + levels + "\nsky: {thing: *a8}\n")
    with pytest.raises(VocabularyError) as caught:
        Vocabulary.parse(tmp_path / "words.yaml")
    assert len(str(caught.value)) < 600


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VocabularyError, match="no such file"):
        Vocabulary.parse("nowhere/words.txt")
    with pytest.raises(VocabularyError, match="a folder"):
        (tmp_path / "folder.txt").mkdir()
        Vocabulary.parse(tmp_path / "folder.txt")
    with pytest.raises(VocabularyError, match="larger than"):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", 2**20)
        (tmp_path / "large.txt").write_bytes(b"x" * (2**20 + 1))
        Vocabulary.parse(tmp_path / "large.txt")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PHRASES", 3)
    for words in ("a, b, c, d", ["a|b|c|d"], [["a", "b", "c", "d"]], ["a", "b|c", "d"], list("abcd")):
        with pytest.raises(VocabularyError, match="at most 3"):
            Vocabulary.parse(words)
    assert len(Vocabulary.parse("a, b, c")) == 3


def test_background() -> None:
    vocabulary = Vocabulary.parse("car, roads, Sky | heaven", background=True)
    assert vocabulary.names == ("car", "roads", "Sky", "background")
    assert vocabulary.background
    last = vocabulary.classes[-1]
    assert not last.is_thing
    assert "building" in last.phrases
    assert not {"sky", "road", "car"} & set(last.phrases)
    assert vocabulary.with_background() is vocabulary
    assert not Vocabulary.parse("car").background
    with pytest.raises(VocabularyError, match="already names 'background'"):
        Vocabulary.parse("car, background", background=True)


def test_comma_format_keeps_every_letter() -> None:
    vocabulary = Vocabulary.from_comma_format(["person,child, girl", "lawn,  meadow", "Sky", "child,child"])
    assert phrases(vocabulary) == (
        ("person", "child", "girl"),
        ("lawn", " meadow"),
        ("Sky",),
        ("child", "child"),
    )
    things = Vocabulary.from_comma_format(["car", "sky"], is_thing=[True, False])
    assert [entry.is_thing for entry in things.classes] == [True, False]
    for lines, says in [
        ("person,child", "one string"),
        (["a", 3], "class 2 is a number"),
        (["b", "a,,b"], "class 2, 'a,,b': an empty name"),
        (["a,"], "class 1, 'a,': an empty name"),
        ([], "no classes"),
    ]:
        with pytest.raises(VocabularyError, match=says):
            Vocabulary.from_comma_format(lines)  # type: ignore[arg-type]
    with pytest.raises(VocabularyError, match="1 thing flags for 2 classes"):
        Vocabulary.from_comma_format(["a", "b"], is_thing=[True])


def test_the_constructor_looks_at_the_form_only() -> None:
    assert Vocabulary((VocabularyClass(split_comma_format("a,")),)).phrases == ("a", "")
    for classes, says in [
        ((), "no classes"),
        ((VocabularyClass(()),), "class 1 has no phrase"),
        ((VocabularyClass((3,)),), "class 1: a number"),  # type: ignore[arg-type]
        ((VocabularyClass(("a",), color=(0, 0, -1)),), "color"),
    ]:
        with pytest.raises(VocabularyError, match=says):
            Vocabulary(classes)


def test_seen_is_by_the_letter() -> None:
    training = Vocabulary.from_comma_format(["person,child,girl", "traffic light, traffic lights", "grass", "Sky"])
    test = Vocabulary.from_comma_format(["girl, boy", "traffic lights", "sky", "grass field,grass", "lawn", " girl"])
    assert test.seen(training.phrases) == [True, True, False, True, False, False]
    assert test.seen([]) == [False] * 6


def test_places_of_a_fixed_list() -> None:
    """Of two classes that share a word with one of the list, the first one has it."""
    asked = Vocabulary.from_comma_format(["kitten", "tree,dog", "sea", "sky,clouds", "dog"])
    known = Vocabulary.from_comma_format(["cat,kitten", "dog", "sky", "tree,trees", "dog house"])
    assert asked.places_of(known) == [0, 1, 3, 1, 5]


def test_templates() -> None:
    assert len(template_set("fcclip14")) == 14
    assert [template.endswith(".") for template in TEMPLATES["fcclip14"]] == [True] + [False] * 4 + [True] * 9
    assert template_set(["a {}", "{} b"]) == ("a {}", "{} b")
    assert make_prompts(["x", "{y}"], ("a {}.", "{}")) == ["a x.", "x", "a {y}.", "{y}"]
    for templates, says in [("nope", "no template set"), ([], "empty"), (["a"], "exactly one"), (["{}{}"], "one")]:
        with pytest.raises(VocabularyError, match=says):
            template_set(templates)


def test_the_published_lists(shared: Path) -> None:
    """Sizes and seen classes of every list the papers use."""
    document = json.loads((shared / "parity/fc-clip/vocabularies.json").read_text())
    assert template_set("fcclip14") == tuple(document["templates"])
    training = Vocabulary.from_comma_format(document["datasets"]["coco_panoptic"]["classes"]).phrases
    for name, entry in document["datasets"].items():
        vocabulary = Vocabulary.from_comma_format(entry["classes"])
        if "num_names" in entry:
            assert len(vocabulary.phrases) == entry["num_names"], name
            assert [bool(seen) for seen in entry["seen_mask_vs_coco_panoptic"]] == vocabulary.seen(training), name


def test_published_class_lists(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("0:invalid_class_id\n1:person,child, girl\n12:sky\nrail:way,lawn,  meadow\n\n")
    vocabulary = Vocabulary.from_class_list(path)
    assert vocabulary.names == ("person", "sky", "rail:way")
    assert vocabulary.phrases == ("person", "child", "girl", "sky", "rail:way", "lawn", " meadow")
    path.write_text("0:invalid_class_id\n")
    with pytest.raises(VocabularyError, match=r"list\.txt: the file is empty"):
        Vocabulary.from_class_list(path)
    with pytest.raises(VocabularyError, match="no such file"):
        Vocabulary.from_class_list(tmp_path / "absent.txt")


def test_words_from_elsewhere_never_name_a_file(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("sky\nroad | street\n", encoding="utf-8")
    assert Vocabulary.parse(str(file)).names == ("sky", "road")
    assert Vocabulary.from_words(str(file)).names == (str(file),)
    assert Vocabulary.from_words("sky, road | street", background=True).names == ("sky", "road", "background")
    assert Vocabulary.from_file_content(file.read_bytes(), "w.txt") == Vocabulary.parse(file)
    with pytest.raises(VocabularyError, match=r"w\.csv: a vocabulary file ends in"):
        Vocabulary.from_file_content(b"sky", "w.csv")
    with pytest.raises(VocabularyError, match=r"w\.json: not UTF-8"):
        Vocabulary.from_file_content(b"\xff", "w.json")
