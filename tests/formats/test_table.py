"""Every format of the table: the same records give the same bytes, and the command names them all."""

from dataclasses import replace
from pathlib import Path

import pytest

from lexiseg.apps import cli
from lexiseg.formats.records import PhotoRecord, plain_text
from lexiseg.formats.table import FORMATS, find_format
from tests.formats.some_photos import WORDS, records

MERGED = [name for name, format in FORMATS.items() if format.merged is not None]


def written(name: str, folder: Path, some: object) -> dict[str, bytes]:
    merged = find_format(name).merged
    path = folder / merged.name
    folder.mkdir()
    if merged.is_folder:
        path.mkdir()
    merged.write(path, some, WORDS)
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", MERGED)
def test_same_records_same_bytes(name: str, tmp_path: Path) -> None:
    first = written(name, tmp_path / "first", records())
    again = [PhotoRecord.from_json(record.to_json()) for record in records()]
    assert first and first == written(name, tmp_path / "again", again)
    assert first != written(name, tmp_path / "other", records()[:2])


@pytest.mark.parametrize("name", MERGED)
def test_names_that_files_cannot_hold(name: str, tmp_path: Path) -> None:
    odd = "a\x01 <b>&\udcff\"'.jpg"
    assert written(name, tmp_path / "out", [replace(records()[0], photo=odd)])
    assert plain_text(odd) == "a\N{REPLACEMENT CHARACTER} <b>&\N{REPLACEMENT CHARACTER}\"'.jpg"


def test_names_of_formats() -> None:
    assert all(name in cli._FORMATS for name in FORMATS)
    with pytest.raises(ValueError, match="no format is called 'bmp': choose one of coco, png"):
        find_format("bmp")


def test_formats_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.formats.table.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"the format parquet needs pyarrow: pip install 'lexiseg\[parquet\]'"):
        find_format("parquet")
