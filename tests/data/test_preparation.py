"""Every benchmark from a miniature of its publisher's files, as folder, zip and tar; broken files; going on."""

import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.data import preparation
from lexiseg.data.benchmarks import BENCHMARKS, prepared_folder
from lexiseg.data.packages import LabelledPhotos
from lexiseg.data.preparation import prepare
from lexiseg.data.sources import SourceError, SourceLimits
from tests.data.publishers import PUBLISHERS, ade20k, coco, pascal_context, photo, save, stripes, voc


def ship(folder: Path, form: str) -> Path:
    """A folder of files as somebody has them: unpacked, or in an archive."""
    if form == "folder":
        return folder
    archive = folder.with_suffix(".zip" if form == "zip" else ".tar" if form == "tar" else ".tar.gz")
    if form == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(folder.rglob("*")):
                packed.write(file, file.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if form == "tar.gz" else "w") as tar:
            for file in sorted(folder.iterdir()):
                tar.add(file, file.name)
    return archive


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def values(labels: np.ndarray) -> list[int]:
    """From left to right, each once."""
    row = labels[labels.shape[0] // 2].tolist()
    return [value for place, value in enumerate(row) if place == 0 or row[place - 1] != value]


EXPECTED = {
    # id, its labels from left to right, and every photo of the package
    "ade20k-150": ("ADE_val_00000001", [0, 7, 255, 149], 3),
    "ade20k-847": ("ADE_val_00000001", [0, 1, 65535], 3),
    "context-59": ("2008_000008", [0, 255, 58], 1),
    "context-459": ("2008_000008", [6, 0, 65535, 412], 2),
    "voc-20": ("2007_000033", [255, 0, 255, 19], 2),
    "voc-20b": ("2007_000033", [20, 0, 255, 19], 3),
    "voc-21": ("2007_000033", [0, 1, 255, 20], 3),
    "cityscapes": ("frankfurt_000000_000294", [0, 11, 13, 255], 2),
    "coco-stuff": ("000000000139", [0, 1, 170, 255], 1),
    "coco": ("000000000139", [1, 80, 1, 255], 2),
    "mapillary": ("-0AbCdEfGhIjKlMnOpQrSt", [0, 1, 64, 65], 2),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("name", PUBLISHERS)
def test_a_miniature_of_every_publisher(name: str, form: str, source: Path, tmp_path: Path) -> None:
    PUBLISHERS[name](source)
    done = prepare(name, ship(source, form), tmp_path / "out")
    id, labels, photos = EXPECTED[name]
    assert done.photos == photos
    assert not done.complete
    assert any(f"{photos} photos where" in remark for remark in done.remarks)
    package = LabelledPhotos(tmp_path / "out")
    assert package.name == name
    assert len(package.classes) == BENCHMARKS[name].classes
    assert len(package.ids("val")) == photos
    assert values(package.photo(id).labels) == labels
    assert not (tmp_path / "out" / preparation.JOURNAL).exists()
    assert prepare(name, source / "gone", tmp_path / "out") == done  # a finished package needs no source
    for other in package.ids("val"):
        package.photo(other)


def test_every_benchmark_is_tested() -> None:
    assert set(PUBLISHERS) == set(EXPECTED) == set(BENCHMARKS)


def test_photos_stay_as_they_are(source: Path, tmp_path: Path) -> None:
    voc(source)
    original = source / "VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg"
    prepare("voc-21", source, tmp_path / "linked")
    linked = tmp_path / "linked/images/2007_000033.jpg"
    assert linked.samefile(original)
    prepare("voc-21", ship(source, "zip"), tmp_path / "copied")
    assert (tmp_path / "copied/images/2007_000033.jpg").read_bytes() == original.read_bytes()


def test_ade20k_panoptic(source: Path, tmp_path: Path) -> None:
    PUBLISHERS["ade20k-150"](source)
    done = prepare("ade20k-150", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    assert package.measures == ("miou", "pq", "ap")
    assert sum(package.is_thing) == 100
    assert package.words[0] == ("thing 1", "object 1")
    assert package.classes[0] == "thing 1, object 1"
    # The stripes are wall, bed 1, bed 2 on nothing, and thing 150, which the instances tell too.
    assert package.region_classes["ADE_val_00000001"] == [[1, 0, 0], [2, 7, 0], [3, 7, 0], [4, 149, 0]]
    assert values(package.photo("ADE_val_00000001").regions) == [1, 2, 3, 4]
    assert package.region_classes["ADE_val_00000003"] == []
    assert len(done.remarks) == 1


def test_without_instances(source: Path, tmp_path: Path) -> None:
    ade20k(source)
    done = prepare("ade20k-150", source, tmp_path / "out")
    assert LabelledPhotos(tmp_path / "out").measures == ("miou",)
    assert any("without instances, PQ and AP are not measured (annotations_instance.tar" in r for r in done.remarks)


def test_stuff_under_instances(source: Path, tmp_path: Path) -> None:
    """An instance hides the stuff below it; what is hidden completely is no segment."""
    PUBLISHERS["ade20k-150"](source)
    kinds = stripes([1, 1, 0, 0])
    save(source / "annotations_instance/validation/ADE_val_00000002.png", np.stack([kinds, kinds, kinds], -1))
    prepare("ade20k-150", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    assert package.region_classes["ADE_val_00000002"] == [[2, 2, 0], [3, 7, 0]]
    assert values(package.photo("ADE_val_00000002").regions) == [3, 2]


def test_cityscapes_groups(source: Path, tmp_path: Path) -> None:
    PUBLISHERS["cityscapes"](source)
    prepare("cityscapes", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    id = "lindau_000000_000019"
    assert package.region_classes[id] == [[1, 0, 0], [2, 13, 1], [3, 11, 0], [4, 13, 0], [5, 13, 0]]
    assert values(package.photo(id).regions) == [1, 3, 4, 5, 2, 0]
    assert package.photo(id).image.shape == (40, 60, 3)
    assert sum(package.is_thing) == 8
    assert package.measures == ("miou", "pq", "ap") and package.instance_rules == "cityscapes"


def test_coco_instances(source: Path, tmp_path: Path) -> None:
    coco(source)
    prepare("coco", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    assert package.classes[80] == "stuff 161"  # without the endings that only tell COCO's lists apart
    assert package.region_classes["000000000139"] == [[1, 80, 0], [2, 1, 0], [3, 1, 1]]
    assert values(package.photo("000000000139").regions) == [2, 1, 3, 0]
    first, second, third = package.instances["000000000139"]
    assert (first["class"], first["area"], first["iscrowd"]) == (1, 512.5, 0)
    assert (second["class"], second["iscrowd"]) == (2, 1)
    assert first["rle"] == second["rle"] != third["rle"]
    assert package.instances["000000000285"] == []
    (source / "annotations/instances_val2017.json").unlink()
    prepare("coco", source, tmp_path / "without")
    assert LabelledPhotos(tmp_path / "without").instances is None


def test_nested_and_separate_archives(source: Path, tmp_path: Path) -> None:
    """As COCO ships them: photos in one zip, panoptic maps in a zip inside another."""
    files = tmp_path / "files"
    coco(files)
    inner = ship_part(files / "annotations/panoptic_val2017", tmp_path / "panoptic_val2017.zip", "panoptic_val2017")
    with zipfile.ZipFile(source / "panoptic_annotations_trainval2017.zip", "w") as packed:
        packed.write(inner, "annotations/panoptic_val2017.zip")
        packed.write(files / "annotations/panoptic_val2017.json", "annotations/panoptic_val2017.json")
        packed.writestr("__MACOSX/annotations/._panoptic_val2017.json", b"litter")
    ship_part(files / "val2017", source / "val2017.zip", "val2017")
    done = prepare("coco", source, tmp_path / "out")
    assert done.photos == 2
    assert any("AP is not measured" in remark for remark in done.remarks)


def ship_part(folder: Path, archive: Path, top: str) -> Path:
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.iterdir()):
            packed.write(file, f"{top}/{file.name}")
    return archive


def test_large_photos_of_the_full_ade20k(source: Path, tmp_path: Path) -> None:
    PUBLISHERS["ade20k-847"](source)
    done = prepare("ade20k-847", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    assert package.photo("ADE_val_00000003").labels.shape == (512, 768)
    assert package.photo("ADE_val_00000003").labels.dtype == np.uint16
    assert package.photo("ADE_val_00000001").labels.shape == (40, 60)
    assert package.classes[:2] == ("wall", "building, edifice")
    assert package.words[1] == ("building", "edifice")
    assert any("845 of 847 classes occur in no photo" in remark for remark in done.remarks)


def test_more_words_than_classes(source: Path, tmp_path: Path) -> None:
    voc(source)
    prepare("voc-20b", source, tmp_path / "out")
    package = LabelledPhotos(tmp_path / "out")
    assert len(package.words) == len(package.word_class) == 59
    assert package.word_class[:21] == (*range(20), 20)
    assert package.classes[-1] == "background"


def test_names_of_the_frequent_classes(source: Path, tmp_path: Path) -> None:
    pascal_context(source)
    prepare("context-59", source, tmp_path / "out")
    assert LabelledPhotos(tmp_path / "out").classes[:3] == ("aeroplane", "bag", "bed")
    text = (source / "59_labels.txt").read_text()
    for other in ("diningtable", "dining table"):  # two other spellings of "table"
        (source / "59_labels.txt").write_text(text.replace("table", other))
        prepare("context-59", source, tmp_path / other)
        assert "table" in LabelledPhotos(tmp_path / other).classes
    (source / "59_labels.txt").write_text(text.replace("wood", "gold"))
    with pytest.raises(SourceError, match=r"59_labels.txt: 'gold' is none of the 459 names"):
        prepare("context-59", source, tmp_path / "wrong")


def test_everything_in_one_folder(source: Path, tmp_path: Path) -> None:
    """Data sets that share file names do not disturb each other."""
    for number, name in enumerate(("coco", "coco-stuff", "context-59", "voc-20", "cityscapes")):
        folder = source / str(number)
        folder.mkdir()
        PUBLISHERS[name](folder)
    for name in ("coco", "coco-stuff", "context-59", "voc-20", "cityscapes"):
        assert prepare(name, source, tmp_path / name).photos == EXPECTED[name][2]


@pytest.mark.parametrize("name", ["voc-21", "coco"])
def test_goes_on_where_it_was_stopped(name: str, source: Path, tmp_path: Path, monkeypatch) -> None:
    PUBLISHERS[name](source)
    written: list[str] = []
    write = preparation._write_photo

    def stops(id: str, *others):
        written.append(id)
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(id, *others)

    monkeypatch.setattr(preparation, "_write_photo", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare(name, source, tmp_path / "out")
    with pytest.raises(ValueError, match="preparation is not finished"):
        LabelledPhotos(tmp_path / "out")
    journal = tmp_path / "out" / preparation.JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"cut sho')  # killed in the middle of a line
    remaining: list[int] = []
    done = prepare(name, source, tmp_path / "out", progress=lambda ids, total: remaining.append(total) or ids)
    assert remaining == [EXPECTED[name][2] - 1]
    prepare(name, source, tmp_path / "whole")
    for file in (path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        assert (tmp_path / "out" / file.relative_to(tmp_path / "whole")).read_bytes() == file.read_bytes(), file
    assert done.photos == EXPECTED[name][2]


def test_an_unfinished_package_of_other_files(source: Path, tmp_path: Path, monkeypatch) -> None:
    voc(source)
    monkeypatch.setattr(preparation, "_check_files", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare("voc-21", source, tmp_path / "out")
    with pytest.raises(SourceError, match="unfinished preparation of other files"):
        prepare("voc-20", source, tmp_path / "out")
    monkeypatch.undo()
    prepare("voc-21", source, tmp_path / "out")
    with pytest.raises(SourceError, match="holds voc-21, not voc-20"):
        prepare("voc-20", source, tmp_path / "out")


def test_what_is_missing_and_where_it_is_offered(source: Path, tmp_path: Path) -> None:
    photo(source / "ADEChallengeData2016/images/validation/ADE_val_00000001.jpg")
    with pytest.raises(SourceError) as error:
        prepare("ade20k-150", source, tmp_path / "out")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{source}: 2 parts of ADE20K-150 are missing"
    assert len(lines) == 3
    assert "labels" in lines[1]
    assert "sceneparsing.csail.mit.edu" in lines[1]
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- broken sources


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def broken_photo(source: Path) -> Path:
    voc(source)
    (source / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg").write_bytes(b"<html>not found</html>")
    return source


def broken_labels(source: Path) -> Path:
    voc(source)
    cut(source / "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png")
    return source


def other_size(source: Path) -> Path:
    voc(source)
    photo(source / "VOCdevkit/VOC2012/JPEGImages/2007_000042.jpg", 30, 60)
    return source


def strange_value(source: Path) -> Path:
    voc(source)
    save(source / "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png", stripes([0, 1, 77, 0]), palette=True)
    return source


def colour_labels(source: Path) -> Path:
    """What picture programs make of palette files."""
    voc(source)
    path = source / "VOCdevkit/VOC2012/SegmentationClass/2007_000042.png"
    Image.open(path).convert("RGB").save(path)
    return source


def cut_zip(source: Path) -> Path:
    voc(source)
    archive = ship(source, "zip")
    cut(archive)
    return archive


def damaged_zip(source: Path) -> Path:
    """The list of its members is whole, the middle of one is not."""
    voc(source)
    archive = ship(source, "zip")
    with zipfile.ZipFile(archive) as packed:
        start = packed.getinfo("VOCdevkit/VOC2012/SegmentationClass/2007_000042.png").header_offset
    content = bytearray(archive.read_bytes())
    content[start + 100 : start + 120] = bytes(20)
    archive.write_bytes(content)
    return archive


def cut_tar(source: Path) -> Path:
    voc(source)
    archive = ship(source, "tar.gz")
    cut(archive)
    return archive


def climbing_zip(source: Path) -> Path:
    with zipfile.ZipFile(source / "a.zip", "w") as packed:
        packed.writestr("VOCdevkit/../../../etc/passwd", b"x")
    return source


def absolute_zip(source: Path) -> Path:
    with zipfile.ZipFile(source / "a.zip", "w") as packed:
        packed.writestr("/etc/passwd", b"x")
    return source


def windows_zip(source: Path) -> Path:
    with zipfile.ZipFile(source / "a.zip", "w") as packed:
        packed.writestr("C:/Windows/x", b"x")
    return source


def linked_zip(source: Path) -> Path:
    with zipfile.ZipFile(source / "a.zip", "w") as packed:
        entry = zipfile.ZipInfo("photo.jpg")
        entry.external_attr = 0o120777 << 16
        packed.writestr(entry, "/etc/passwd")
    return source


def tar_with(source: Path, name: str, kind: bytes, target: str = "") -> Path:
    with tarfile.open(source / "a.tar", "w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, target
        tar.addfile(entry)
    return source


def encrypted_zip(source: Path) -> Path:
    path = source / "a.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("photo.jpg", b"x")
    content = bytearray(path.read_bytes())
    content[content.find(b"PK\x01\x02") + 8] |= 1  # the flag in the list of members
    path.write_bytes(content)
    return source


def large_member(source: Path) -> Path:
    with zipfile.ZipFile(source / "a.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("photo.jpg", bytes(3_000_000))
    return source


def empty(source: Path) -> Path:
    return source


def nowhere(source: Path) -> Path:
    return source / "nowhere"


def no_archive(source: Path) -> Path:
    (source / "notes.txt").write_text("x")
    return source / "notes.txt"


BROKEN = {
    broken_photo: r"2007_000042\.jpg: no picture, or damaged",
    broken_labels: r"2007_000042\.png: no picture, or damaged",
    other_size: r"2007_000042\.jpg: \(30, 60\) pixels \(height, width\), but its labels have \(40, 60\)",
    strange_value: r"2007_000042\.png: holds the value 77",
    colour_labels: r"2007_000042\.png: 3 channels where a picture of class numbers was expected",
    cut_zip: r"source\.zip: damaged or cut short",
    damaged_zip: r"2007_000042\.png: damaged or cut short",
    cut_tar: r"source\.tar\.gz: damaged or cut short",
    climbing_zip: r"a\.zip: holds 'VOCdevkit/\.\./\.\./\.\./etc/passwd', a path that leads out",
    absolute_zip: r"a\.zip: holds '/etc/passwd'",
    windows_zip: r"a\.zip: holds 'C:/Windows/x'",
    linked_zip: r"photo\.jpg is a link",
    encrypted_zip: r"photo\.jpg is encrypted",
    large_member: r"photo\.jpg: 3 MB, more than the limit of 1 MB",
    empty: "nothing in it",
    nowhere: "no such folder or archive",
    no_archive: "neither a folder nor an archive",
}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_broken_sources_give_one_line(make, source: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=BROKEN[make]) as error:
        prepare("voc-21", make(source), tmp_path / "out", limits=SourceLimits(member_bytes=2**20))
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../x", tarfile.REGTYPE, "leads out"),
        ("x", tarfile.SYMTYPE, "x is a link"),
        ("x", tarfile.LNKTYPE, "x is a link"),
        ("x", tarfile.FIFOTYPE, "no ordinary file"),
    ],
)
def test_tars_that_are_refused(source: Path, tmp_path: Path, name: str, kind: bytes, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        prepare("voc-21", tar_with(source, name, kind, "/etc/passwd"), tmp_path / "out")


def spoiled(path: Path, content: str | bytes) -> None:
    assert path.is_file()
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("coco", "annotations/panoptic_val2017.json", "{", "not valid JSON"),
        ("coco", "annotations/panoptic_val2017.json", "[]", "without 'categories'"),
        ("coco", "annotations/panoptic_val2017.json", '{"categories": [], "annotations": []}', "0 classes where 133"),
        ("coco", "annotations/panoptic_val2017.json", '{"categories": [1], "annotations": []}', "not a COCO panoptic"),
        (
            "coco",
            "annotations/instances_val2017.json",
            '{"images": [], "annotations": [{}], "categories": []}',
            "not a COCO instance",
        ),
        ("coco-stuff", "labels.txt", "1: person\n", "not the 182 names"),
        ("coco-stuff", "labels.txt", "person\n", "is not 'number: name'"),
        ("context-459", "trainval/2008_000008.mat", b"no matlab", "no .mat file"),
        ("context-459", "labels.txt", "1: a\n", "not the 459 names"),
        ("ade20k-150", "ADEChallengeData2016/objectInfo150.txt", "Idx\tName\n1\twall\n", "1 classes where 150"),
        ("ade20k-150", "categoryMapping.txt", "1 8\n", "1 kinds of things where 100"),
        ("ade20k-150", "categoryMapping.txt", "1 900\n", "maps no kind"),
        (
            "ade20k-847",
            "ADE20K_2021_17_01/images/ADE/validation/urban/street/ADE_val_00000002.json",
            "{}",
            "not the notes",
        ),
    ],
)
def test_broken_lists(name: str, file: str, content, message: str, source: Path, tmp_path: Path) -> None:
    PUBLISHERS[name](source)
    spoiled(source / file, content)
    with pytest.raises(SourceError, match=message) as error:
        prepare(name, source, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert Path(file).name in str(error.value)


def test_segments_that_are_not_listed(source: Path, tmp_path: Path) -> None:
    coco(source)
    path = source / "annotations/panoptic_val2017.json"
    document = json.loads(path.read_text())
    del document["annotations"][0]["segments_info"][0]
    path.write_text(json.dumps(document))
    with pytest.raises(SourceError, match=r"000000000139\.png: holds segment 70000, which its annotations do not list"):
        prepare("coco", source, tmp_path / "out")


def test_some_instances_are_missing(source: Path, tmp_path: Path) -> None:
    PUBLISHERS["ade20k-150"](source)
    (source / "annotations_instance/validation/ADE_val_00000002.png").unlink()
    with pytest.raises(SourceError, match="1 photos have none, such as ADE_val_00000002"):
        prepare("ade20k-150", source, tmp_path / "out")


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no benchmark is called 'ade': choose one of ade20k-150"):
        prepare("ade", tmp_path, tmp_path / "out")


def test_where_packages_are_looked_for(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEXISEG_DATA", str(tmp_path))
    assert prepared_folder("voc-21") == tmp_path / "voc-21"
    monkeypatch.delenv("LEXISEG_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert prepared_folder("voc-21") == tmp_path / "share/lexiseg/data/voc-21"
