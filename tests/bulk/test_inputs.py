"""Where the photos of a batch come from, and which zip files are refused."""

import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lexiseg.bulk.inputs import BatchError, Input, inputs_of
from lexiseg.images import ImageError, ImageLimits
from tests.bulk.colour_batch import batch, write_photos

NAMES = ["01.png", "02.png", "inner/00.png", "inner/03.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = write_photos(tmp_path / "photos", 4)
    (folder / "notes.md").write_text("no photo")
    return folder


def found(given: Path | str, out: Path = Path("nowhere"), limits: ImageLimits | None = None) -> list[str]:
    with inputs_of(given, limits or ImageLimits(), out) as inputs:
        return [photo.name for photo in inputs]


def zipped(photos: Path, **more: bytes) -> Path:
    path = photos.parent / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in reversed(NAMES):
            archive.write(photos / name, name)
        for name, content in more.items():
            archive.writestr(name, content)
    return path


def test_folder_pattern_and_zip_name_photos_alike(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(photos) == NAMES
    assert found(f"{photos}/**/*.png") == NAMES
    assert found(f"{photos}/**") == NAMES
    assert found(zipped(photos, **{"notes.md": b"no photo"})) == NAMES
    assert found(zipped(photos).rename(photos.parent / "PHOTOS.ZIP")) == NAMES
    assert found(f"{photos}/*.png") == NAMES[:2]
    assert found(f"{photos}/inner/0[03].png") == ["00.png", "03.png"]
    assert found(photos / "01.png") == ["01.png"]
    monkeypatch.chdir(photos)
    assert found("*/*.png") == NAMES[2:]


def test_a_list(photos: Path, tmp_path: Path) -> None:
    """From its own folder; what lies elsewhere is called by its whole path."""
    (photos.parent / "elsewhere.png").write_bytes((photos / "01.png").read_bytes())
    path = photos / "list.txt"
    path.write_text(f"02.png\n\n inner/00.png\n./inner/../02.png\n{photos}/01.png\r\n../elsewhere.png\nmissing.png\n")
    elsewhere = (photos.parent / "elsewhere.png").as_posix().lstrip("/")
    assert found(path) == sorted(["01.png", "02.png", "inner/00.png", "missing.png", elsewhere])
    done = batch(path, tmp_path / "out")
    assert (done.photos, done.new) == (5, 4)
    assert done.failures == {"missing.png": "there is no such file; check the path"}
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BatchError, match="not a text in UTF-8"):
        found(path)


def test_results_of_an_earlier_run_are_no_photos(photos: Path) -> None:
    out = photos / "out"
    batch(photos, out, "png")
    assert found(photos, out) == found(f"{photos}/**", out) == NAMES
    assert batch(photos, out, "png").new == 0


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in ("empty", "empty/*.png"):
        with pytest.raises(BatchError, match=r"empty.*no photos there"):
            found(str(tmp_path / given))
    with pytest.raises(BatchError, match="there is no such folder or file"):
        found(tmp_path / "missing")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("notes.md", b"no photo")
    with pytest.raises(BatchError, match="a.zip: no photos in it"):
        found(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "x/../../a.png", "C:/a.png"])
def test_a_zip_that_leads_elsewhere_is_refused(photos: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(BatchError, match="a path that leads out of the archive"):
        batch(zipped(photos, **{name: b"x"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_and_giants_in_a_zip_are_refused(photos: Path) -> None:
    path = zipped(photos)
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BatchError, match="link.png is a link"):
        found(path)
    with pytest.raises(BatchError, match=r"giant.png: 2 MB, more than the limit of 1 MB"):
        found(zipped(photos, **{"giant.png": bytes(2 * 2**20)}), limits=ImageLimits(max_bytes=2**20))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(BatchError, match="damaged or cut short"):
        found(path)


def test_a_damaged_member_fails_alone(photos: Path, tmp_path: Path) -> None:
    path = zipped(photos, **{"text.png": b"no picture", "torn.png": b"0123456789"})
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))  # no longer what its checksum says
    done = batch(path, tmp_path / "out")
    assert (done.new, sorted(done.failures)) == (4, ["text.png", "torn.png"])
    assert "damaged or cut short" in done.failures["torn.png"]
    batch(photos, tmp_path / "from folder")
    assert (tmp_path / "out" / "coco.json").read_bytes() == (tmp_path / "from folder" / "coco.json").read_bytes()


def test_photos_are_read_when_asked_for(photos: Path) -> None:
    with inputs_of(photos, ImageLimits(max_pixels=26 * 80), Path("nowhere")) as inputs:
        one: Input = inputs[0]
        assert one.stamp == (os.stat(photos / "01.png").st_size, os.stat(photos / "01.png").st_mtime_ns)
        photo = one.read()
        assert (photo.name, photo.source, photo.size_hw) == ("01.png", photos / "01.png", (26, 78))
        assert photo.rgb.dtype == np.uint8
        with pytest.raises(ImageError, match="megapixels, more than the limit"):
            inputs[3].read()


def test_names_that_are_no_text(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 2)
    try:
        (photos / "01.png").rename(photos / os.fsdecode(b"\xff\xfe.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    (photos / os.fsdecode(b"bad\xff.png")).write_bytes(b"no picture")
    for new in (2, 0):
        done = batch(photos, tmp_path / "out", "png")
        assert (done.photos, done.new, list(done.failures)) == (3, new, [os.fsdecode(b"bad\xff.png")])


def test_names_too_long_for_a_file_system_are_shortened(tmp_path: Path) -> None:
    long = "ä" * 115
    (tmp_path / "photos").mkdir()
    small = (write_photos(tmp_path / "small", 2) / "01.png").read_bytes()
    for ending in ("a.png", "b.png"):
        (tmp_path / "photos" / f"{long}{ending}").write_bytes(small)
    for _ in range(2):
        done = batch(tmp_path / "photos", tmp_path / "out", "png")
    assert (done.photos, done.new, done.failures) == (2, 0, {})
    assert len(list((tmp_path / "out" / "labels").iterdir())) == 2
