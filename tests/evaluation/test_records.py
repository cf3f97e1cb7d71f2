"""What is written down of a photo says the same when it is read again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lexiseg.evaluation.records import (
    PhotoRecord,
    RecordFolder,
    add_sparse,
    add_sparse_columns,
    pack_outcome,
    sparse,
    sparse_class_counts,
    sparse_columns,
    unpack_outcome,
)
from lexiseg.metrics.instances import ScoredInstance, TrueInstance, encode_mask, match_instances
from lexiseg.metrics.semantic import class_counts


def test_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(-3, 4, (6, 5), generator=generator).clamp(min=0)
    again = torch.zeros_like(counts)
    add_sparse(again, sparse(counts))
    assert torch.equal(again, counts)
    add_sparse(again, sparse(torch.zeros_like(counts)))
    assert torch.equal(again, counts)
    assert torch.equal(sparse_class_counts(sparse(counts), 5), class_counts(counts))
    assert sparse_class_counts([], 2).tolist() == [[0, 0]] * 3
    columns = np.array([[0, 1, 0], [0, 5, 2**40]])
    again_columns = np.zeros_like(columns)
    add_sparse_columns(again_columns, sparse_columns(columns))
    assert np.array_equal(again_columns, columns)


def test_outcomes_of_instances() -> None:
    rng = np.random.default_rng(0)
    masks = [encode_mask(rng.random((9, 11)) < 0.5) for _ in range(6)]
    truth = [TrueInstance(0, masks[0], 40.0), TrueInstance(1, masks[1], 40.0, is_crowd=True)]
    found = [ScoredInstance(number % 3, 1 / (number + 3), mask) for number, mask in enumerate(masks)]
    outcome = match_instances(found, truth, 3)
    again = unpack_outcome(pack_outcome(outcome))
    assert again.keys() == outcome.keys()
    for key, matched in outcome.items():
        for name, values in matched.items():
            assert np.array_equal(again[key][name], values)


def test_files(tmp_path: Path) -> None:
    folder = RecordFolder(tmp_path / "records")
    records = [PhotoRecord(f"p{number}", 0.1 + number / 7, pixels=[[0, 1, number]]) for number in range(3)]
    with folder.writer(0) as writer:
        writer.add(records[2])
    with folder.writer(1) as writer:
        writer.add(records[0])
        writer.add(records[1])
    assert list(folder.read(["p0", "p1", "p2", "p3"]).values()) == records
    assert folder.count() == 3
    path = tmp_path / "records" / "records-1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])  # killed while it was writing
    assert list(folder.read(["p0", "p1", "p2"])) == ["p0", "p2"]
    with folder.writer(1) as writer:
        writer.add(records[1])
    assert path.read_bytes() == whole
    with pytest.raises(TypeError):
        PhotoRecord.from_line('{"nonsense": 1}')
