"""Tables of segments, read by pyarrow."""

import json
from pathlib import Path

import numpy as np
import pytest

from lexiseg.formats import parquet as ours
from lexiseg.formats.run_lengths import decode_rle
from tests.formats.some_photos import RESULTS, WORDS, records

parquet = pytest.importorskip("pyarrow.parquet")


def test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "ROWS_AT_ONCE", 3)
    ours.write_parquet(tmp_path / "a.parquet", records(), WORDS)
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 4  # ten rows
    rows = file.read().to_pylist()
    segments = [(result, segment) for result in (make() for make in RESULTS) for segment in result.segments]
    for row, (result, segment) in zip(rows, segments, strict=True):
        assert (row["photo"], row["height"], row["width"]) == (result.photo, *result.size_hw)
        told = (segment.id, segment.label, segment.label_index, segment.score, segment.area, *segment.box_xyxy)
        names = ("id", "label", "label_index", "score", "area", "left", "top", "right", "bottom")
        assert told == tuple(row[name] for name in names)
        assert np.array_equal(decode_rle(row["counts"], result.size_hw), segment.mask)
    assert json.loads(file.schema_arrow.metadata[b"lexiseg.words"])[0] == ["sky", "heavens"]


def test_no_rows(tmp_path: Path) -> None:
    ours.write_parquet(tmp_path / "a.parquet", [], WORDS)
    assert parquet.read_table(tmp_path / "a.parquet").num_rows == 0
