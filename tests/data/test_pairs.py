"""Pairs on disk: written whole or not at all, always the same bytes, masks known again."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lexiseg.data.pairs import (
    FILL,
    MaskWordPairs,
    Pair,
    PairError,
    Shard,
    blanked,
    read_report,
    shard_path,
    shard_paths,
    shown_part,
    write_shard,
)


def shard(seed: int = 0) -> Shard:
    rng = np.random.default_rng(seed)
    regions = {f"regions/{n}.png": rng.integers(0, 256, (5 + n, 7, 3), np.uint8) for n in range(2)}
    pairs = (
        Pair("regions/0.png", "dog", "a\tb", 0, 0.25, 0.5),
        Pair("regions/1.png", "hot dog", 'the "x"', 2, -0.125, 0.125),
        Pair("regions/0.png", "animal", "a\tb", 1, 0.5, 0.5),
    )
    return Shard(pairs, regions, {"photos": ["a\tb"], "seed": seed})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_shard(shard_path(tmp_path, 12), shard())
    write_shard(shard_path(tmp_path, 3), shard(1))
    assert list(shard_paths(tmp_path)) == [3, 12]
    found = MaskWordPairs(tmp_path)
    assert [pair for _, pair in found.entries] == [*shard(1).pairs, *shard().pairs]
    assert found.words == ("animal", "dog", "hot dog")
    region, word = found[4]
    assert word == "hot dog" and np.array_equal(region, shard().regions["regions/1.png"])
    assert read_report(shard_path(tmp_path, 3)) == {"photos": ["a\tb"], "seed": 1}
    assert len(MaskWordPairs(tmp_path, [12])) == 3


def test_the_same_pairs_are_the_same_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    for number in (0, 1):
        write_shard(shard_path(tmp_path, number), shard())
    first, second = (path.read_bytes() for path in shard_paths(tmp_path).values())
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-00000.zip", "shard-00001.zip"]


def test_the_mask_is_read_back_exactly() -> None:
    pixels = np.full((3, 4, 3), FILL, np.uint8)
    pixels[0] = 9
    inside = np.zeros((3, 4), bool)
    inside[:2, 1:3] = True  # a part of what is shown has the colour of the background
    region = blanked(pixels, inside)
    assert np.array_equal(shown_part(region), inside)
    assert region[1, 1].tolist() == [FILL[0], FILL[1], FILL[2] + 1] and region[0, 1].tolist() == [9, 9, 9]
    assert (region[~inside] == FILL).all()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(PairError, match="no such folder"):
        MaskWordPairs(tmp_path / "none")
    with pytest.raises(PairError, match="has no pairs"):
        MaskWordPairs(tmp_path)
    shard_path(tmp_path, 0).write_bytes(b"PK not a zip")
    with pytest.raises(PairError, match="mine again"):
        MaskWordPairs(tmp_path)
    with zipfile.ZipFile(shard_path(tmp_path, 0), "w") as archive:
        archive.writestr("pairs.tsv", "a\tb\n")
    with pytest.raises(PairError, match="other columns"):
        MaskWordPairs(tmp_path)
