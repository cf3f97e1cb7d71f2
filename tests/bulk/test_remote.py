"""Photos that are not on this disk, through fsspec: in memory, in a zip, on a real web server."""

import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from lexiseg.bulk.inputs import BatchError, inputs_of
from lexiseg.images import ImageError, ImageLimits
from tests.bulk.colour_batch import batch, write_photos
from tests.bulk.killing import contents

NAMES = ["01.png", "02.png", "inner/00.png", "inner/03.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_photos(tmp_path / "photos", 4)
    (folder / "notes.md").write_text("no photo")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "01.png").write_bytes(b"")
    return folder


@pytest.fixture
def bucket(photos: Path) -> Iterator[str]:
    """The same photos in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/bucket", recursive=True)
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def site(photos: Path) -> Iterator[str]:
    """A web server with the photos."""
    handler = functools.partial(_Quiet, directory=str(photos))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def found(given: str, out: Path = Path("nowhere")) -> list[str]:
    with inputs_of(given, ImageLimits(), out) as inputs:
        return [photo.name for photo in inputs]


def test_names_are_those_of_a_folder(photos: Path, bucket: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in NAMES:
            archive.write(photos / name, name)
    assert found(bucket) == found(f"{bucket}/") == found(str(photos)) == NAMES
    assert found(photos.as_uri(), photos / "inner") == NAMES[:2]
    assert found(photos.as_uri()) == found(f"zip://::{(tmp_path / 'a.zip').as_uri()}") == NAMES
    assert found(f"{bucket}/**/*.png") == NAMES
    assert found(f"{bucket}/inner/0[03].png") == ["00.png", "03.png"]
    assert found(f"{bucket}/inner") == ["00.png", "03.png"]
    assert found(f"{bucket}/01.png") == ["01.png"]


@pytest.mark.parametrize("format", ["coco", "png"])
def test_results_are_those_of_a_folder(photos: Path, bucket: str, tmp_path: Path, format: str) -> None:
    fsspec.filesystem("memory").pipe("/bucket/bad.png", b"no picture")
    (photos / "bad.png").write_bytes(b"no picture")
    batch(photos, tmp_path / "near", format)
    done = batch(bucket, tmp_path / "far", format)
    assert (done.photos, done.new, list(done.failures)) == (5, 4, ["bad.png"])
    near, far = contents(tmp_path / "near"), contents(tmp_path / "far")
    stamped = {name for name in near if name.startswith("records/")}  # they tell the state of the files
    assert near.keys() == far.keys() and all(near[name] == far[name] for name in near.keys() - stamped)
    assert batch(bucket, tmp_path / "far", format).new == 0
    fsspec.filesystem("memory").pipe("/bucket/01.png", (photos / "02.png").read_bytes())
    assert batch(bucket, tmp_path / "far", format).new == 1  # it was exchanged


def test_lists(photos: Path, bucket: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/list.txt", b"01.png\n\n inner/03.png\nmemory://bucket/inner/03.png\n")
    assert found(f"{bucket}/list.txt") == ["01.png", "inner/03.png"]
    near = tmp_path / "list.txt"
    near.write_text(f"photos/01.png\n{bucket}/02.png\n")
    assert found(str(near)) == ["bucket/02.png", "photos/01.png"]
    assert batch(near, tmp_path / "out").new == 2
    near.write_text(f"{bucket}/../02.png\n")
    with pytest.raises(BatchError, match="cannot be the name of a file"):
        found(str(near))


def test_a_web_server(photos: Path, site: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="fsspec reads http with aiohttp: pip install aiohttp")
    listed = photos / "list.txt"
    listed.write_text("".join(f"{name}\n" for name in [*NAMES, "missing.png"]))
    done = batch(f"{site}/list.txt", tmp_path / "out", "png")
    assert (done.photos, done.new) == (5, 4)
    assert done.failures == {"missing.png": f"there is nothing at {site}/missing.png; check the address"}
    batch(photos, tmp_path / "near", "png")
    far, near = (contents(tmp_path / folder / "labels") for folder in ("out", "near"))
    assert far == near


def test_what_cannot_be(bucket: str, tmp_path: Path) -> None:
    for given, said in (
        ("memory://empty", "memory://empty: there is nothing at this address"),
        (f"{bucket}/*.bmp", "no photos there"),
        (f"{bucket}/photos.zip", "the photos in a zip elsewhere are at zip://::memory://bucket/photos.zip"),
        ("nope://bucket", "nope://bucket: Protocol not known: nope"),
        (f"{bucket}/missing.txt", "missing.txt: cannot be read"),
    ):
        with pytest.raises(BatchError, match=said):
            found(given)
    with inputs_of(bucket, ImageLimits(max_bytes=10), Path("nowhere")) as inputs:
        with pytest.raises(ImageError, match="01.png: is larger than the limit"):
            inputs[0].read()
        fsspec.filesystem("memory").rm("/bucket/02.png")
        with pytest.raises(ImageError, match="02.png: there is nothing at memory://"):
            inputs[1].read()
    with pytest.raises(BatchError, match="results are written to a folder"):
        batch(bucket, "s3://bucket/results")  # type: ignore[arg-type]
