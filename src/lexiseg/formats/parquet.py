"""A table of segments for data frames and SQL: one Parquet file, a row for every segment.

    photo, width, height, id, label, label_index, score, area, left, top, right, bottom, counts

`counts` are COCO's compressed run lengths for a mask of height x width; right and bottom are just outside. A photo
without segments has no row. The metadata of the file hold the words ("lexiseg.words", JSON).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lexiseg.formats.records import Records, plain_text
from lexiseg.vocabulary import Vocabulary

ROWS_AT_ONCE = 4096
"""Of a group of rows: what is held in memory."""


def write_parquet(path: Path, records: Records, vocabulary: Vocabulary) -> None:
    """The same records give the same bytes, with the same pyarrow."""
    import pyarrow
    from pyarrow import parquet

    text, whole = pyarrow.string(), pyarrow.int32()
    columns = {
        "photo": text,
        "width": whole,
        "height": whole,
        "id": whole,
        "label": text,
        "label_index": whole,
        "score": pyarrow.float64(),
        "area": pyarrow.int64(),
        **dict.fromkeys(("left", "top", "right", "bottom"), whole),
        "counts": text,
    }
    words = json.dumps([list(entry.phrases) for entry in vocabulary.classes])
    schema = pyarrow.schema(list(columns.items()), metadata={"lexiseg.words": words})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = _rows(records)
        while some := list(islice(rows, ROWS_AT_ONCE)):
            writer.write_batch(pyarrow.RecordBatch.from_pylist(some, schema=schema))


def _rows(records: Records) -> Iterator[dict[str, Any]]:
    for record in records:
        of_photo = {"photo": plain_text(record.photo), "width": record.width, "height": record.height}
        for segment in record.segments:
            sides = dict(zip(("left", "top", "right", "bottom"), segment.box_xyxy, strict=True))
            yield {
                **of_photo,
                "id": segment.id,
                "label": segment.label,
                "label_index": segment.label_index,
                "score": segment.score,
                "area": segment.area,
                **sides,
                "counts": segment.counts,
            }
