"""What every system of the miniature benchmark is asked: which photos, under which names, which numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Question:
    """One pass over one split."""

    key: str
    title: str
    package: str
    split: str
    words: tuple[str, ...] = ()
    """Other names for the classes, in their order; none for their own."""
    measures: tuple[str, ...] = ("miou",)
    given_masks: Literal["classes", "regions"] | None = None
    """Mask accuracy instead of the measures."""
    left_out: tuple[str, ...] = ()
    """Classes with next to no photos: not in the means."""
    photos: int | None = None
    """So many, evenly spread over the split; None is all."""


FACADES = ("facade", "automobile", "doorway", "footpath", "roadway", "heavens", "vegetation", "window pane")
"""For the classes of labelmefacade: strings no training has seen."""
DRIVES = (
    *("heavens", "facade", "column", "roadway", "footpath", "vegetation", "traffic signal board", "fencing"),
    *("automobile", "passer-by", "cyclist"),
)
"""For the classes of camvid, likewise."""
RARE = ("horse", "mountain")

QUESTIONS = (
    Question("Z1", "streets never trained on", "labelmefacade", "test", photos=120),
    Question("Z1-syn", "the same under names never trained on", "labelmefacade", "test", words=FACADES, photos=60),
    Question("Z1-masks", "its true masks named", "labelmefacade", "test", given_masks="classes", photos=120),
    Question("Z2", "objects, five of 23 classes hidden", "msrc", "test", left_out=RARE),
    Question("Z2-masks", "its true masks named", "msrc", "test", given_masks="classes", left_out=RARE),
    Question("Z3", "133 classes", "coco_panoptic", "val", measures=("miou", "pq")),
    Question("Z3-masks", "its true regions named", "coco_panoptic", "val", given_masks="regions"),
    Question("S", "streets, other photos of the training films", "camvid", "test", photos=60),
    Question("S-syn", "the same under names never trained on", "camvid", "test", words=DRIVES, photos=60),
)

SEEN, UNSEEN = "seen", "unseen"
GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "Z1": {
        "trained": ("building", "car", "road", "sky", "pavement", "vegetation"),
        "trained under another name": ("pavement", "vegetation"),
        "rarely trained": ("door", "window"),
    },
    "Z2": {UNSEEN: ("sheep", "cat", "boat", "bicycle", "flower")},
}
"""Beginning of a question's key -> group -> classes of the data, for means of their own."""
