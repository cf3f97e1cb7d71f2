"""Words looked at before photos are: which of them a model cannot tell apart, and what else is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.clip.text import byte_pair_tokenizer
from lexiseg.vocabulary import Vocabulary, folded, make_prompts, singular
from lexiseg.zoo.coco_words import STUFF, THINGS
from lexiseg.zoo.model_folder import Model

Kind = Literal["twice", "same", "close", "general", "cut", "pieces", "letters", "new"]

GENERAL_WORDS = frozenset(
    (
        "anything",
        "area",
        "background",
        "everything",
        "foreground",
        "item",
        "miscellaneou",  # what `singular` leaves of it
        "misc",
        "nothing",
        "object",
        "other",
        "part",
        "region",
        "rest",
        "something",
        "stuff",
        "thing",
        "unknown",
        "void",
    )
)
"""Words that fit everything: every region is somewhat like them, so they win where nothing else does, or nowhere."""

UNRELATED_QUANTILE = 0.999
"""Of a thousand pairs of words for different classes of COCO one is more alike than `Alikeness.close`."""

PORTION = 512
"""Phrases compared with all others at a time: the largest vocabulary would have 400 million pairs."""

SHORT_PROMPT = 30
"""Pieces that every tower reads."""

MANY_PIECES = 4
"""Pieces of one word for the tokenizer. English words have one or two, rare ones three."""


@dataclass(frozen=True)
class Alikeness:
    """How alike words are to one text tower: cosines of their vectors."""

    close: float
    """Words for different things are hardly ever more alike than this."""
    same: float
    """From here on words are more like two names for one thing."""

    def __post_init__(self) -> None:
        if not -1 <= self.close <= self.same <= 1:
            raise ValueError(
                f"limits of {self.close:.2f} and {self.same:.2f}: they are cosines, and the first is the smaller one"
            )


@dataclass(frozen=True)
class Remark:
    """One thing about some words that their author should know."""

    kind: Kind
    phrases: tuple[str, ...]
    """The wordings it is about: two where it is about a pair."""
    classes: tuple[int, ...]
    """The classes they belong to, by index."""
    says: str
    """What is so, and what to do, in one line."""
    similarity: float | None = None
    """Cosine of the pair, -1..1."""

    @property
    def is_warning(self) -> bool:
        """Whether results will suffer; the others are good to know."""
        return self.kind in ("twice", "same", "close", "general", "cut")


def check_words(
    model: Model, vocabulary: Vocabulary, cache_folder: Path | None = None, limits: Alikeness | None = None
) -> tuple[Remark, ...]:
    """What is to be said about a vocabulary before a model is asked with it: warnings first, most alike pairs first.

    Words of different classes are compared as the model's scorer reads them, templates included. What counts as alike
    is measured on the model's own text tower (`measure_alikeness`) unless `limits` says it. cache_folder: see
    `text_bank.cache_folder`.
    """
    remarks = [
        *_twice(vocabulary),
        *_alike(model, vocabulary, cache_folder, limits),
        *_general(vocabulary),
        *_tokens(model, vocabulary),
        *_new(model, vocabulary),
    ]
    return tuple(sorted(remarks, key=lambda remark: (not remark.is_warning, -(remark.similarity or 0))))


def measure_alikeness(model: Model, cache_folder: Path | None = None) -> Alikeness:
    """How alike words are to this model's text tower, measured on the 133 classes of COCO panoptic.

    Cosines mean different things to different towers: one keeps all words in a narrow cone, another spreads them until
    different things are at right angles. So each tower is asked itself. `close` is what one of a thousand pairs of
    wordings of two classes exceeds, `same` is halfway from there to the median over pairs of wordings of one class.
    Wordings are the first two of each class. A tower to which different things are as alike as these has one limit.
    """
    known = Vocabulary.from_comma_format([",".join(line.split(", ")[:2]) for line in (*THINGS, *STUFF)])
    rows, class_of = _rows(model, known, cache_folder)
    cosines = rows @ rows.T
    one_class = class_of[:, None] == class_of
    upper = torch.ones_like(one_class).triu(1)
    one_thing = float(cosines[one_class & upper].median())
    close = float(torch.quantile(cosines[~one_class & upper], UNRELATED_QUANTILE))
    return Alikeness(close=close, same=max(close, (close + one_thing) / 2))


def _rows(model: Model, vocabulary: Vocabulary, cache_folder: Path | None) -> tuple[Tensor, Tensor]:
    """Of each phrase the unit vector [A, D], and its class [A]."""
    bank = model.text_bank(vocabulary, cache_folder)
    return functional.normalize(bank.region.mean(1), dim=-1), bank.class_of


def _twice(vocabulary: Vocabulary) -> Iterator[Remark]:
    """The same word in two classes, or but for an s, a hyphen or a capital."""
    first: dict[str, tuple[str, int]] = {}
    for phrase, two in zip(vocabulary.phrases, vocabulary.class_of, strict=True):
        earlier, one = first.setdefault(_bare(phrase), (phrase, two))
        if one == two:
            continue
        if folded(earlier) == folded(phrase):
            names = vocabulary.names
            says = f"in two classes, {names[one]!r} and {names[two]!r}: keep it in one of them"
        else:
            says = f"one word to the model, in two classes: write {_joined(earlier, phrase)} for one class"
        yield Remark("twice", (earlier, phrase), (one, two), says)


def _alike(
    model: Model, vocabulary: Vocabulary, cache_folder: Path | None, limits: Alikeness | None
) -> Iterator[Remark]:
    """Per pair of classes the two wordings that are most alike, where that is too much."""
    if len(vocabulary) < 2:
        return
    limits = limits or measure_alikeness(model, cache_folder)
    rows, class_of = _rows(model, vocabulary, cache_folder)
    wordings, names = vocabulary.phrases, vocabulary.names
    worst: dict[tuple[int, int], tuple[float, int, int]] = {}
    for start in range(0, len(rows), PORTION):
        cosines = rows[start : start + PORTION] @ rows.T  # [a, A]
        alike = (cosines >= limits.close) & (class_of[start : start + PORTION, None] < class_of)
        for row, two in alike.nonzero().tolist():
            one = start + row
            if _bare(wordings[one]) != _bare(wordings[two]):  # those are told already
                pair = (int(class_of[one]), int(class_of[two]))
                worst[pair] = max(worst.get(pair, (-1.0, 0, 0)), (float(cosines[row, two]), one, two))
    for pair, (similarity, one, two) in worst.items():
        phrases = (wordings[one], wordings[two])
        if vocabulary.background and pair[1] == len(vocabulary) - 1:
            yield Remark(
                "same" if similarity >= limits.same else "close",
                phrases,
                pair,
                f"the background stands for {phrases[1]!r}, too, and takes from {names[pair[0]]!r}: "
                f"write {_joined(names[pair[0]], phrases[1])} to keep it",
                similarity,
            )
        elif similarity >= limits.same:
            says = f"as alike as two words for one thing: join them, {_joined(*phrases)}, or leave one out"
            yield Remark("same", phrases, pair, says, similarity)
        else:
            says = f"more alike than different things are: they may be mixed up; join them, {_joined(*phrases)}, or "
            yield Remark("close", phrases, pair, says + "say more about each", similarity)


def _general(vocabulary: Vocabulary) -> Iterator[Remark]:
    asked = len(vocabulary) - 1 if vocabulary.background else len(vocabulary)
    for phrase, owner in zip(vocabulary.phrases, vocabulary.class_of, strict=True):
        if owner < asked and singular(phrase) in GENERAL_WORDS:
            yield Remark(
                "general",
                (phrase,),
                (owner,),
                "fits everything: say what is meant; for what the other words are not, there is --background",
            )


def _tokens(model: Model, vocabulary: Vocabulary) -> Iterator[Remark]:
    """What CLIP's tokenizer, made for English, does to words."""
    for phrase, owner in zip(vocabulary.phrases, vocabulary.class_of, strict=True):
        longest = max(len(byte_pair_tokenizer().encode(prompt)) for prompt in make_prompts([phrase], model.templates))
        # The tower is large, and loaded only where a phrase may be too long for it.
        if longest > SHORT_PROMPT and longest + 2 > (room := model.text_encoder().context_length):  # start and end
            says = f"{longest} pieces with its prompt, of which the model reads {room - 2}: make it shorter"
            yield Remark("cut", (phrase,), (owner,), says)
            continue
        if not phrase.isascii():
            says = (
                "CLIP was taught English: a word in another language, or with accents, is mostly a guess; translate it"
            )
            yield Remark("letters", (phrase,), (owner,), says)
            continue
        worst = max((len(_pieces(word)), word) for word in phrase.split())
        if worst[0] >= MANY_PIECES:
            says = f"a rare word or a mistake: the tokenizer makes {worst[0]} pieces of {worst[1]!r}; a plainer word is"
            yield Remark("pieces", (phrase,), (owner,), says + " safer")


def _new(model: Model, vocabulary: Vocabulary) -> Iterator[Remark]:
    """Classes of which the model's training had no wording, all in one remark."""
    if not model.training_phrases:
        return
    asked = len(vocabulary) - 1 if vocabulary.background else len(vocabulary)
    unseen = [index for index, seen in enumerate(vocabulary.seen(model.training_phrases)[:asked]) if not seen]
    if unseen:
        says = f"not among the words that the masks of {model.name} were trained with: known by meaning alone"
        yield Remark("new", tuple(vocabulary.names[index] for index in unseen), tuple(unseen), says)


@cache
def _pieces(word: str) -> Sequence[int]:
    return byte_pair_tokenizer().encode(word)


def _bare(phrase: str) -> str:
    """Without what makes no difference: capitals, hyphens, blanks, the s of a plural."""
    return singular(phrase.replace("-", " ").replace(" ", ""))


def _joined(*phrases: str) -> str:
    return f'"{" | ".join(phrases)}"'
