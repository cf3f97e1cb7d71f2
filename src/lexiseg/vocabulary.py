"""The words: classes with their synonyms, from whatever the user has, and the prompts made of them."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Color = tuple[int, int, int]
"""Red, green, blue, each 0..255."""

MAX_PHRASES = 20_000
"""Phrases of one vocabulary. The largest list in use (LVIS with synonyms) has some 2,000."""
MAX_CHARACTERS = 500
"""Characters of one phrase: more than CLIP reads, which is 75 tokens."""
MAX_FILE_BYTES = 4 * 2**20
"""Bytes of a vocabulary file: room for as many phrases as are allowed."""

FILE_SUFFIXES = {".txt": "text", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}

NO_CLASS_NAME = "invalid_class_id"
"""In published class lists: the line of the number that stands for no class."""

BACKGROUND_NAME = "background"
BACKGROUND_PHRASES = (
    "sky",
    "cloud",
    "ground",
    "floor",
    "road",
    "pavement",
    "grass",
    "tree",
    "vegetation",
    "mountain",
    "water",
    "sand",
    "building",
    "wall",
    "ceiling",
    "window",
    "door",
    "fence",
    "furniture",
    "clutter",
)
"""What surrounds things, indoors and outdoors. The bare word says nothing to an encoder of sentences, so "anything
else" is described by what it usually is; the words the user asks for are left out."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    # FC-CLIP's, in its order. The dots are where its released models were scored with them: not in 2 to 5.
    "fcclip14": (
        "a photo of a {}.",
        "This is a photo of a {}",
        "There is a {} in the scene",
        "There is the {} in the scene",
        "a photo of a {} in the scene",
        "a photo of a small {}.",
        "a photo of a medium {}.",
        "a photo of a large {}.",
        "This is a photo of a small {}.",
        "This is a photo of a medium {}.",
        "This is a photo of a large {}.",
        "There is a small {} in the scene.",
        "There is a medium {} in the scene.",
        "There is a large {} in the scene.",
    ),
    "photo1": ("a photo of a {}.",),
    "bare": ("{}",),
}
"""Prompt templates by the name under which a model asks for them."""


class VocabularyError(ValueError):
    """Words that cannot be used. The message names the input, says what is wrong and what to do."""


@dataclass(frozen=True)
class VocabularyClass:
    """One thing to look for, in one or more wordings."""

    phrases: tuple[str, ...]
    """The first one is the name of the class, the others are synonyms."""
    is_thing: bool = True
    """Whether it comes in countable pieces; stuff (sky, grass) is one region per photo."""
    color: Color | None = None
    """To draw it with; None leaves the choice to the drawing."""

    @property
    def name(self) -> str:
        return self.phrases[0]


@dataclass(frozen=True)
class Vocabulary:
    """The classes of one question to a model, in the order of their indices.

    `parse` reads what users write and is strict about mistakes. The constructor and `from_comma_format` keep every
    phrase letter by letter, repeated ones too: published vocabularies contain them and were scored with them. The
    constructor looks at the form only; what a phrase may be is for those to judge who read one from somebody.
    """

    classes: tuple[VocabularyClass, ...]
    background: bool = False
    """Whether the last class stands for "anything else"."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise VocabularyError("the vocabulary has no classes: give at least one word")
        for index, entry in enumerate(self.classes):
            where = f"class {index + 1}"
            if not entry.phrases:
                raise VocabularyError(f"{where} has no phrase: give it a name")
            for phrase in entry.phrases:
                if not isinstance(phrase, str):
                    raise VocabularyError(f"{where}: {_kind(phrase)} where a phrase was expected")
            _check_color(entry.color, f"{where} ({_shown(entry.name)})")
        _check_count(sum(len(entry.phrases) for entry in self.classes), "the vocabulary")

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per class, K of them."""
        return tuple(entry.name for entry in self.classes)

    @property
    def phrases(self) -> tuple[str, ...]:
        """All phrases, class by class, A of them."""
        return tuple(phrase for entry in self.classes for phrase in entry.phrases)

    @property
    def class_of(self) -> tuple[int, ...]:
        """The class index of each of `phrases`."""
        return tuple(index for index, entry in enumerate(self.classes) for _ in entry.phrases)

    def seen(self, training_phrases: Iterable[str]) -> list[bool]:
        """Per class: does it share a phrase with what a model was trained on?

        FC-CLIP's rule: strings are compared letter by letter, so "Sky" is not "sky" and "traffic light" is not
        "traffic lights".
        """
        known = frozenset(training_phrases)
        return [not known.isdisjoint(entry.phrases) for entry in self.classes]

    def places_of(self, others: Vocabulary) -> list[int]:
        """Per class of `others`: the index of the class here that it is, or the number of classes for none.

        It is the first class here with which it shares a phrase, letter by letter (MaskCLIP++, for generators trained
        on a fixed list of classes).
        """
        first: dict[str, int] = {}
        for index, entry in enumerate(self.classes):
            for phrase in entry.phrases:
                first.setdefault(phrase, index)
        return [min(first.get(phrase, len(self)) for phrase in entry.phrases) for entry in others.classes]

    @classmethod
    def parse(
        cls,
        words: str | Path | Sequence[Any] | Mapping[str, Any] | Vocabulary,
        background: bool = False,
    ) -> Vocabulary:
        """A vocabulary from what the user has.

        A string: "sky, road | street, car" (commas and line ends separate classes, bars synonyms), or the name of a
        .txt, .yaml, .yml or .json file. A path: such a file. A list: one class per item, which is a string with bars,
        a list of synonyms, or a mapping with `name`, `synonyms`, `thing`, `color`. A mapping: name -> synonyms, or
        name -> mapping. A text file has one class per line, bars between synonyms, comments after #.

        Blanks around phrases do not count. Classes are things unless said otherwise. With `background` a last class
        stands for everything the others are not.
        """
        if isinstance(words, Vocabulary):
            vocabulary = words
        elif isinstance(words, Path):
            vocabulary = cls(tuple(_read_file(words)))
        elif isinstance(words, str):
            suffix = Path(words.strip()).suffix.lower() if len(words) < 4096 and not set(words) & set(",|\n") else ""
            if suffix in FILE_SUFFIXES:
                vocabulary = cls(tuple(_read_file(Path(words.strip()))))
            else:
                vocabulary = cls(tuple(_read_words(words, "the words")))
        else:
            vocabulary = cls(tuple(_read_tree(words, "the vocabulary")))
        return vocabulary.with_background() if background else vocabulary

    @classmethod
    def from_words(cls, words: str, background: bool = False) -> Vocabulary:
        """Of a string, "sky, road | street, car", that never names a file: for words that come from elsewhere."""
        vocabulary = cls(tuple(_read_words(words, "the words")))
        return vocabulary.with_background() if background else vocabulary

    @classmethod
    def from_file_content(cls, content: bytes, name: str, background: bool = False) -> Vocabulary:
        """Of what a vocabulary file holds; its ending says how to read it."""
        vocabulary = cls(tuple(_read_content(_decoded(content, name), _file_kind(name), name)))
        return vocabulary.with_background() if background else vocabulary

    @classmethod
    def from_comma_format(cls, lines: Sequence[str], is_thing: Sequence[bool] | None = None) -> Vocabulary:
        """The format of the published class lists: one string per class, commas between its synonyms.

        Nothing but the blank after a comma is trimmed and no case is changed (see `split_comma_format`): scores and the
        seen / unseen rule depend on the very letters. `is_thing` has one entry per class; without it all are things.
        """
        if isinstance(lines, str):
            raise VocabularyError(f"{_shown(lines)}: one string; the comma format is a list with a string per class")
        things = [True] * len(lines) if is_thing is None else list(is_thing)
        if len(things) != len(lines):
            raise VocabularyError(f"{len(things)} thing flags for {len(lines)} classes: give one for each")
        for index, line in enumerate(lines):
            if not isinstance(line, str):
                raise VocabularyError(f"class {index + 1} is {_kind(line)}: the comma format has one string per class")
            for phrase in split_comma_format(line):
                _check_phrase(phrase, f"class {index + 1}, {_shown(line)}")
        pairs = zip(lines, things, strict=True)
        return cls(tuple(VocabularyClass(split_comma_format(line), is_thing=thing) for line, thing in pairs))

    @classmethod
    def from_class_list(cls, path: str | Path) -> Vocabulary:
        """A published class list: a text file with a class per line in the comma format, mostly "12:door,doors".

        A number and a colon before the words are dropped, and so is the line of "invalid_class_id", which stands for
        no class.
        """
        words = []
        for line in _read_text(Path(path)).splitlines():
            number, colon, rest = line.partition(":")
            own = rest if colon and number.strip().isdigit() else line
            if own.strip() and own.strip() != NO_CLASS_NAME:
                words.append(own)
        if not words:
            raise VocabularyError(f"{path}: the file is empty; a class list has one class per line")
        return cls.from_comma_format(words)

    def with_background(self) -> Vocabulary:
        """The same classes and a last one for everything else, made of generic words that none of them uses."""
        if self.background:
            return self
        taken = {singular(phrase) for phrase in self.phrases}
        if BACKGROUND_NAME in taken:
            raise VocabularyError(
                f"the vocabulary already names {BACKGROUND_NAME!r}: remove that word or the background choice"
            )
        phrases = (BACKGROUND_NAME, *(phrase for phrase in BACKGROUND_PHRASES if singular(phrase) not in taken))
        return Vocabulary((*self.classes, VocabularyClass(phrases, is_thing=False)), background=True)


def split_comma_format(line: str) -> tuple[str, ...]:
    """ "person, child,girl" -> its phrases by the rule of the published lists.

    ", " becomes "," and the string is split at ",". After "lawn," two blanks leave one before "meadow".
    """
    return tuple(line.replace(", ", ",").split(","))


def template_set(templates: str | Sequence[str]) -> tuple[str, ...]:
    """The templates of a set by its name, or own ones: strings with one {} each."""
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise VocabularyError(f"no template set is called {templates!r}: choose one of {', '.join(TEMPLATES)}")
        return TEMPLATES[templates]
    own = tuple(templates)
    if not own:
        raise VocabularyError("the list of templates is empty: give at least one, such as 'a photo of a {}.'")
    for template in own:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise VocabularyError(f"template {_shown(template)}: it needs exactly one {{}} where the phrase goes")
    return own


def make_prompts(phrases: Sequence[str], templates: Sequence[str]) -> list[str]:
    """A * T prompts: all templates of the first phrase, then all of the second, and so on."""
    return [template.replace("{}", phrase) for phrase in phrases for template in templates]


def _read_words(text: str, source: str) -> list[VocabularyClass]:
    """ "sky, road | street" -> two classes. A comma at the end is forgiven, one in between is a missing name."""
    lines = [line.strip().removesuffix(",") for line in text.splitlines() if line.strip()]
    pieces = [piece for line in lines for piece in line.split(",")]
    if not any(piece.strip() for piece in pieces):
        raise VocabularyError(f"{source} are empty: write some with commas between them, such as 'sky, road | street'")
    _check_count(len(pieces), source)
    return _without_repeats([_read_phrases(p, f"{source}, class {i}") for i, p in enumerate(pieces, start=1)], source)


def _read_file(path: Path) -> list[VocabularyClass]:
    kind = _file_kind(str(path))
    return _read_content(_read_text(path), kind, str(path))


def _file_kind(name: str) -> str:
    kind = FILE_SUFFIXES.get(Path(name).suffix.lower())
    if kind is None:
        raise VocabularyError(f"{name}: a vocabulary file ends in {', '.join(FILE_SUFFIXES)}")
    return kind


def _read_content(text: str, kind: str, source: str) -> list[VocabularyClass]:
    if not text.strip():
        raise VocabularyError(f"{source}: the file is empty; write one class per line")
    if kind == "text":
        return _read_lines(text, source)
    try:
        if kind == "json":
            tree = json.loads(text, object_pairs_hook=lambda pairs: _unique_mapping(pairs, source))
        else:
            tree = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 - a SafeLoader that also refuses repeated keys
    except VocabularyError:
        raise
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise VocabularyError(f"{source}: not valid YAML ({line}{error.problem})") from error
    except json.JSONDecodeError as error:
        raise VocabularyError(f"{source}: not valid JSON (line {error.lineno}: {error.msg})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise VocabularyError(f"{source}: not valid {'JSON' if kind == 'json' else 'YAML'} ({reason})") from error
    if isinstance(tree, str):
        raise VocabularyError(f"{source}: holds one text; write a list of classes or a mapping from name to synonyms")
    return _read_tree(tree, source)


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise VocabularyError(f"{path}: a folder; give the file inside it")
        # Not what stat says but what is there: devices and pipes claim to have no size.
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise VocabularyError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise VocabularyError(f"{path}: cannot be read ({reason})") from error
    return _decoded(content, str(path))


def _decoded(content: bytes, name: str) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise VocabularyError(f"{name}: larger than {MAX_FILE_BYTES // 2**20} MB, so hardly a list of classes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise VocabularyError(f"{name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _read_lines(text: str, source: str) -> list[VocabularyClass]:
    classes = []
    for number, line in enumerate(text.splitlines(), start=1):
        content = re.split(r"(?:^|\s)#", line, maxsplit=1)[0]
        if content.strip():
            where = f"{source}, line {number}"
            classes.append(_read_phrases(content, where))
            _check_count(len(classes), source)
    if not classes:
        raise VocabularyError(f"{source}: only comments; write one class per line")
    return _without_repeats(classes, source)


def _read_tree(tree: Any, source: str) -> list[VocabularyClass]:
    """A list of classes, or a mapping from name to synonyms or to a mapping."""
    if isinstance(tree, Mapping):
        items = [_read_named(name, value, f"{source}, class {_shown(name)}") for name, value in tree.items()]
    elif isinstance(tree, Sequence) and not isinstance(tree, (str, bytes)):
        _check_count(len(tree), source)
        items = [_read_item(item, f"{source}, class {number}") for number, item in enumerate(tree, start=1)]
    else:
        raise VocabularyError(f"{source}: is {_kind(tree)}; it must be a list of classes or a mapping name -> synonyms")
    if not items:
        raise VocabularyError(f"{source} has no classes: give at least one word")
    return _without_repeats(items, source)


def _read_item(item: Any, where: str) -> VocabularyClass:
    if isinstance(item, VocabularyClass):
        return item
    if isinstance(item, Mapping):
        unknown = [str(key) for key in item if key not in ("name", "synonyms", "thing", "color")]
        if unknown:
            raise VocabularyError(
                f"{where}: unknown key {_shown(unknown[0])}; a class has name, synonyms, thing and color"
            )
        if "name" not in item:
            raise VocabularyError(f"{where}: has no name")
        return _read_named(item["name"], {key: value for key, value in item.items() if key != "name"}, where)
    return _read_phrases(item, where)


def _read_named(name: Any, value: Any, where: str) -> VocabularyClass:
    """name -> synonyms (none, a string with bars, a list) or a mapping with `synonyms`, `thing`, `color`."""
    details: Mapping[Any, Any] = value if isinstance(value, Mapping) else {"synonyms": value}
    unknown = [str(key) for key in details if key not in ("synonyms", "thing", "color")]
    if unknown:
        raise VocabularyError(f"{where}: unknown key {_shown(unknown[0])}; a class has synonyms, thing and color")
    phrases = _read_phrases(name, where).phrases
    synonyms = details.get("synonyms")
    if synonyms is not None and not (isinstance(synonyms, (list, tuple)) and not synonyms):
        phrases = tuple(dict.fromkeys((*phrases, *_read_phrases(synonyms, where).phrases)))
    is_thing = details.get("thing", True)
    if not isinstance(is_thing, bool):
        raise VocabularyError(f"{where}: thing is {_shown(is_thing)}; it must be true or false")
    return VocabularyClass(phrases, is_thing, _read_color(details.get("color"), where))


def _read_phrases(value: Any, where: str) -> VocabularyClass:
    """A string with bars, or a list of strings, to a class; phrases trimmed, repeated ones once."""
    if isinstance(value, str):
        parts: list[Any] = value.split("|")
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        raise VocabularyError(f"{where}: {_kind(value)} where a name was expected; put it in quotes if it is one")
    if not parts:
        raise VocabularyError(f"{where}: an empty list; give at least one name")
    _check_count(len(parts), where)
    phrases: dict[str, str] = {}
    for part in parts:
        if not isinstance(part, str):
            raise VocabularyError(f"{where}: {_kind(part)} among the synonyms; put it in quotes if it is a word")
        phrase = " ".join(part.split())
        if not phrase:
            raise VocabularyError(f"{where}: an empty name in {_shown(value)}; remove it or write the missing word")
        if "," in phrase:
            raise VocabularyError(
                f"{where}: a comma inside the name {_shown(phrase)}; write one class per entry, with | between synonyms"
            )
        _check_phrase(phrase, where)
        phrases.setdefault(folded(phrase), phrase)
    return VocabularyClass(tuple(phrases.values()))


def _read_color(value: Any, where: str) -> Color | None:
    """(r, g, b) or "#rrggbb"."""
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return (int(value[1:3], 16), int(value[3:5], 16), int(value[5:7], 16))
    color = tuple(value) if isinstance(value, (list, tuple)) else value
    _check_color(color, where)
    return color


def _check_color(color: Any, where: str) -> None:
    if color is None:
        return
    numbers = isinstance(color, tuple) and len(color) == 3 and all(type(part) is int for part in color)
    if not numbers or not all(0 <= part <= 255 for part in color):
        raise VocabularyError(f"{where}: color {_shown(color)}; it must be '#rrggbb' or three numbers from 0 to 255")


def _check_phrase(phrase: str, where: str) -> None:
    if not phrase.strip():
        raise VocabularyError(f"{where}: an empty name; remove it or write the missing word")
    if len(phrase) > MAX_CHARACTERS:
        raise VocabularyError(
            f"{where}: {len(phrase)} characters ({_shown(phrase)}); a phrase has at most {MAX_CHARACTERS}"
        )
    if not phrase.isprintable():
        raise VocabularyError(f"{where}: {_shown(phrase)} has characters that cannot be printed; remove them")


def _check_count(count: int, source: str) -> None:
    if count > MAX_PHRASES:
        raise VocabularyError(f"{source}: {count} phrases or more; at most {MAX_PHRASES} fit into one vocabulary")


def _without_repeats(classes: list[VocabularyClass], source: str) -> list[VocabularyClass]:
    """The classes as they are, if no phrase is in two of them (the encoder does not see upper and lower case)."""
    owner: dict[str, int] = {}
    for index, entry in enumerate(classes):
        for phrase in entry.phrases:
            first = owner.setdefault(folded(phrase), index)
            if first != index:
                raise VocabularyError(
                    f"{source}: {_shown(phrase)} is in class {first + 1} ({classes[first].name!r}) and in class "
                    f"{index + 1} ({entry.name!r}); keep it in one of them"
                )
    return classes


def folded(phrase: str) -> str:
    """A phrase without what the encoder does not see: capitals, and more than one blank."""
    return " ".join(phrase.split()).casefold()


def singular(phrase: str) -> str:
    """Not English grammar: enough to see that "trees" and "tree" are one word."""
    return folded(phrase).removesuffix("s")


def _shown(value: Any) -> str:
    """A value as it fits into one line of a message."""
    # Bounded in depth and length: a small YAML file can expand to a value whose full text would fill the memory.
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxtuple, short.maxdict, short.maxstring = 2, 4, 4, 2, 60
    return short.repr(value)


def _kind(value: Any) -> str:
    names = {bool: "a yes/no value", int: "a number", float: "a number", type(None): "nothing", str: "a text"}
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    name = names.get(type(value), f"a {type(value).__name__}")
    return f"{name} ({_shown(value)})" if type(value) in names and value is not None else name


def _unique_mapping(pairs: Sequence[tuple[Hashable, Any]], source: str) -> dict[Hashable, Any]:
    """A mapping whose keys occur once: JSON and YAML would silently keep the last of two."""
    mapping: dict[Hashable, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise VocabularyError(f"{source}: {_shown(key)} is there twice; keep it once")
        mapping[key] = value
    return mapping


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which makes plain values only, refusing repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a list or mapping as a key", key_node.start_mark)
            if key in seen:
                problem = f"{_shown(key)} is there twice; keep it once"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
