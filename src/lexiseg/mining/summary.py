"""What a run of the data engine gave: counts, and a line per word."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from lexiseg.data.pairs import Pair, read_report, read_table, shard_paths

SUMMARY, WORDS_TABLE = "summary.json", "words.tsv"


@dataclass(frozen=True)
class WordCount:
    """What was found for a word."""

    word: str
    pairs: int
    similarity: float
    """Mean cosine of its regions with it."""
    area: float
    """Mean share of the photo."""


@dataclass(frozen=True)
class Summary:
    """A run as far as it is."""

    photos: int
    nouns: int
    """Nouns of captions, each once per photo."""
    pairs: int
    regions: int
    """Different ones: words of a photo may share one."""
    left_out: dict[str, int]
    """Reason -> nouns without a pair."""
    failures: dict[str, str]
    """Photo -> what is wrong with it."""
    words: tuple[WordCount, ...]
    """Most frequent first."""

    def to_dict(self) -> dict[str, Any]:
        """Without the words, of which there are many."""
        plain = {name: value for name, value in vars(self).items() if name != "words"}
        return plain | {"distinct_words": len(self.words)}

    def lines(self, most: int = 15) -> str:
        """For a person."""
        told = [
            f"{self.photos} photos, {self.nouns} nouns, {self.pairs} pairs of {len(self.words)} words "
            f"and {self.regions} regions",
            *(f"  left out: {count} ({reason})" for reason, count in self.left_out.items()),
            *([f"  {len(self.failures)} photos failed: {', '.join(list(self.failures)[:5])}"] if self.failures else []),
            "most frequent: " + ", ".join(f"{entry.word} {entry.pairs}" for entry in self.words[:most]),
        ]
        return "\n".join(told)


def summarise(folder: str | Path) -> Summary:
    """Counts all shards of a run."""
    pairs: list[tuple[Path, Pair]] = []
    left_out: Counter[str] = Counter()
    failures: dict[str, str] = {}
    photos = nouns = 0
    for path in shard_paths(Path(folder)).values():
        pairs += [(path, pair) for pair in read_table(path)]
        report = read_report(path)
        photos += len(report["photos"])
        nouns += report["nouns"]
        left_out.update(report["left_out"])
        failures |= report["failures"]
    by_word: dict[str, list[Pair]] = defaultdict(list)
    for _, pair in pairs:
        by_word[pair.word].append(pair)
    words = [
        WordCount(word, len(own), round(fmean(p.similarity for p in own), 4), round(fmean(p.area for p in own), 5))
        for word, own in by_word.items()
    ]
    return Summary(
        photos=photos,
        nouns=nouns,
        pairs=len(pairs),
        regions=len({(path, pair.region) for path, pair in pairs}),
        left_out=dict(sorted(left_out.items())),
        failures=failures,
        words=tuple(sorted(words, key=lambda entry: (-entry.pairs, entry.word))),
    )


def save_summary(summary: Summary, folder: str | Path) -> None:
    """summary.json and words.tsv beside the shards."""
    text = json.dumps(summary.to_dict(), indent=1, ensure_ascii=False) + "\n"
    (Path(folder) / SUMMARY).write_text(text, encoding="utf-8")
    table = io.StringIO()
    rows = csv.writer(table, delimiter="\t", lineterminator="\n")
    rows.writerow(("word", "pairs", "similarity", "area"))
    rows.writerows((entry.word, entry.pairs, entry.similarity, entry.area) for entry in summary.words)
    (Path(folder) / WORDS_TABLE).write_text(table.getvalue(), encoding="utf-8")
