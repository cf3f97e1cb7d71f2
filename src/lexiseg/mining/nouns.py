"""The nouns of captions: by a tagger, or by a list of the user's own.

The original took NLTK's tagger, whose model is downloaded at its first use. TextBlob's rule-based one (Brill's method)
brings its lexicon and its rules inside its wheel, so that it works without a network and always answers alike.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from lexiseg.vocabulary import Vocabulary

Nouns = Callable[[str], tuple[str, ...]]
"""A caption -> its nouns in lower case, each once, in their order."""

WORD = re.compile(r"[^\W\d_][\w-]*[^\W\d_]")
"""What a single noun looks like: two letters at least, hyphens inside."""


class TaggerError(RuntimeError):
    """There is no tagger. The message says what to do."""


class TaggedNouns:
    """Single words that the tagger calls NN, NNS, NNP or NNPS, as in the original."""

    def __init__(self) -> None:
        try:
            from textblob.en.taggers import PatternTagger
        except ImportError as error:
            raise TaggerError(
                "nouns are found by textblob: pip install 'lexiseg[mine]', or give a list of your own with --words"
            ) from error
        self._tag = PatternTagger().tag
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it leaves its lexicon open when it first reads it
            self._tag("a photo")

    @property
    def about(self) -> str:
        """What decides about the outcome."""
        return f"textblob {version('textblob')}, NN NNS NNP NNPS"

    def __call__(self, caption: str) -> tuple[str, ...]:
        tagged = self._tag(caption.lower())  # a capital at the start of a sentence is not a name
        return tuple(dict.fromkeys(word for word, tag in tagged if tag[:2] == "NN" and WORD.fullmatch(word)))


class ListedNouns:
    """Phrases of a list that occur in a caption as whole words; of two that overlap the longer one counts."""

    def __init__(self, phrases: Iterable[str]) -> None:
        self.phrases = tuple(sorted({phrase.lower() for phrase in phrases}))
        longest_first = sorted(self.phrases, key=lambda phrase: (-len(phrase), phrase))
        self._any = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    @property
    def about(self) -> str:
        """What decides about the outcome."""
        return "listed: " + ", ".join(self.phrases)

    def __call__(self, caption: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._any.findall(" ".join(caption.lower().split()))))


def noun_finder(words: str | Path | None = None) -> TaggedNouns | ListedNouns:
    """By the tagger; words: by a list, in any form that `Vocabulary.parse` takes."""
    return TaggedNouns() if words is None else ListedNouns(Vocabulary.parse(words).phrases)


@cache
def not_shown() -> frozenset[str]:
    """Nouns that name no region of a photo ("background", "group", "front"): our own list."""
    lines = files("lexiseg.mining").joinpath("not_shown.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def words_of(captions: Sequence[str], most: int, find: Nouns) -> dict[str, int]:
    """The nouns of the first `most` captions of a photo -> which caption has them first."""
    found: dict[str, int] = {}
    for number, caption in enumerate(captions[:most]):
        for word in find(caption):
            found.setdefault(word, number)
    return found
