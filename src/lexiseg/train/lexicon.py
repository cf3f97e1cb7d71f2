"""Concepts and their names: the words the embedded models are taught.

The words are in `lexicon.yaml`, our own list of streets, outdoors and the things of COCO. Some names of every concept
are held out, among them every string of the zero-shot synonym tests: they measure, they never train.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Concept:
    """One meaning. `names[0]` is its usual name."""

    names: tuple[str, ...]
    held_out: tuple[str, ...]

    def draw(self, rng: random.Random) -> str:
        """A name to train with: the usual one two times in five, since most users type that one."""
        return self.names[0] if rng.random() < 0.4 else rng.choice(self.names)


@dataclass(frozen=True)
class Lexicon:
    """All concepts, and which of them may be true of the same pixel."""

    concepts: dict[str, Concept]
    overlaps: frozenset[frozenset[str]]
    """Pairs of concepts that can both be true of a pixel."""
    parts: dict[str, frozenset[str]]
    """Concept -> concepts that are small parts of it; they are among its overlaps."""
    without_photos: frozenset[str]
    """Concepts that no training photo shows under a name of their own."""
    taught_as_wrong: tuple[str, ...]
    """Those of them that are wrong wherever something is shown that they do not overlap with."""
    kinds: dict[str, frozenset[str]]
    """Concept with photos -> concepts taught as wrong that are kinds of it."""

    def concept_of(self, name: str) -> str:
        """The concept a class name of a label set stands for: its own entry, or the one that lists it."""
        if name in self.concepts:
            return name
        owners = [key for key, concept in self.concepts.items() if name in concept.names]
        if len(owners) != 1:
            raise KeyError(f"{name!r} is a name of {len(owners)} concepts; the lexicon must hold it once")
        return owners[0]

    def overlap(self, a: str, b: str) -> bool:
        return a == b or frozenset((a, b)) in self.overlaps

    def relatives(self, concept: str) -> list[str]:
        """The concepts with photos that a concept without any overlaps with."""
        return [other for other in self.concepts if other not in self.without_photos and self.overlap(concept, other)]

    def training_names(self) -> list[str]:
        return [name for concept in self.concepts.values() for name in concept.names]

    def held_out_names(self) -> list[str]:
        return [name for concept in self.concepts.values() for name in concept.held_out]


def split_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def load_lexicon() -> Lexicon:
    """The lexicon of this package. A name has one owner, except where `lexicon.yaml` is wrong: then ValueError."""
    content = yaml.safe_load(files("lexiseg.train").joinpath("lexicon.yaml").read_text(encoding="utf-8"))
    concepts = {}
    owner: dict[str, str] = {}
    for key, text in content["concepts"].items():
        names = split_names(text)
        held_out = tuple(name[1:] for name in names if name.startswith("~"))
        concepts[key] = Concept(tuple(name for name in names if not name.startswith("~")), held_out)
        for name in (*concepts[key].names, *held_out):
            if name in owner:
                raise ValueError(f"lexicon: {name!r} belongs to {owner[name]!r} and to {key!r}")
            owner[name] = key
    overlaps = set()
    for key, text in content["overlaps"].items():
        for other in split_names(text):
            for concept in (key, other):
                if concept not in concepts:
                    raise ValueError(f"lexicon: overlaps name {concept!r}, which is no concept")
            overlaps.add(frozenset((key, other)))
    parts = {whole: frozenset(split_names(text)) for whole, text in content["parts"].items()}
    for whole, pieces in parts.items():
        missing = [piece for piece in pieces if frozenset((whole, piece)) not in overlaps]
        if missing:
            raise ValueError(f"lexicon: parts of {whole!r} that do not overlap with it: {', '.join(missing)}")
    without_photos = frozenset(split_names(content["without_photos"]))
    if unknown := sorted(without_photos - concepts.keys()):
        raise ValueError(f"lexicon: without_photos names {', '.join(unknown)}, which are no concepts")
    taught_as_wrong = tuple(split_names(content["taught_as_wrong"]))
    if unknown := sorted(set(taught_as_wrong) - without_photos):
        raise ValueError(f"lexicon: taught_as_wrong names {', '.join(unknown)}, which without_photos does not list")
    kinds = {general: frozenset(split_names(text)) for general, text in content["kinds"].items()}
    for general, special in kinds.items():
        if unfit := sorted(k for k in special if k not in taught_as_wrong or frozenset((general, k)) not in overlaps):
            raise ValueError(f"lexicon: kinds of {general!r} that do not overlap with it: {', '.join(unfit)}")
    return Lexicon(concepts, frozenset(overlaps), parts, without_photos, taught_as_wrong, kinds)
