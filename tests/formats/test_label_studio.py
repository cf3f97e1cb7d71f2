"""Label Studio: its own run lengths bit by bit, predictions that its SDK accepts, exports read as it writes them."""

import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lexiseg.data.user_masks import DataProblems, open_mask_data
from lexiseg.formats.label_studio import (
    Tags,
    decode_brush,
    encode_brush,
    labelling_config,
    to_label_studio,
    to_prediction,
    write_label_studio,
)
from lexiseg.images import ImageError, Photo
from lexiseg.mask_input import read_masks
from tests.formats.some_photos import RESULTS, WORDS, instances, panoptic, records, semantic, shapes, write_photos

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says about its own dependencies
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    LabelInterface = pytest.importorskip("label_studio_sdk.label_interface").LabelInterface
    PredictionValue = pytest.importorskip("label_studio_sdk.label_interface.objects").PredictionValue


def some_masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    found = [generator.random(generator.integers(1, 30, 2)) < generator.random() for _ in range(40)]
    wide = np.zeros((260, 300), bool)  # runs of more than 2 ** 16 values
    wide[200:, 10:] = True
    exact = np.zeros((64, 512), bool)
    exact[:32] = True  # a run of 2 ** 16 values
    return [*found, *shapes().numpy(), wide, exact, np.zeros((5, 7), bool), np.ones((5, 7), bool)]


def test_run_lengths_are_those_of_its_own_encoder() -> None:
    for mask in some_masks():
        ours = encode_brush(mask)
        assert ours == brush.mask2rle(mask.astype(np.uint8) * 255)
        assert np.array_equal(brush.decode_rle(ours).reshape(*mask.shape, 4)[..., 3] > 0, mask)
        assert np.array_equal(decode_brush(bytes(ours), mask.shape), mask)


def test_run_lengths_with_single_values_and_other_sizes_are_read() -> None:
    """What its browser's encoder may write and its Python one does not."""
    generator = np.random.default_rng(1)
    for sizes in ([3, 4, 8, 16], [1, 2, 6, 9]):
        mask = generator.random((6, 9)) < 0.5
        values = np.where(mask, 200, 0).ravel().repeat(4)
        text = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
        at = 0
        while at < len(values):  # by turns a run, and values one by one
            same = next((i for i in range(at, len(values)) if values[i] != values[at]), len(values)) - at
            run = min(same, 2 ** sizes[1])
            text += f"101{run - 1:0{sizes[1]}b}{values[at]:08b}"
            at += run
            single = values[at : at + 2 ** sizes[0]]
            if len(single):
                text += f"000{len(single) - 1:0{sizes[0]}b}" + "".join(f"{value:08b}" for value in single)
                at += len(single)
        text += "0" * (-len(text) % 8)
        packed = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
        assert np.array_equal(brush.decode_rle(list(packed)), values)
        assert np.array_equal(decode_brush(packed, mask.shape), mask)


def test_predictions_pass_its_own_checks() -> None:
    for make in RESULTS:
        record = make().record()
        for tags in (Tags(), Tags(control="masks", image="photo", value="url", shape="polygon")):
            interface = LabelInterface(labelling_config(WORDS, tags))
            prediction = to_prediction(record, tags, {})
            assert prediction["result"]
            assert interface.validate_prediction(prediction, return_errors=True) == []
            PredictionValue(**prediction)
            assert {picture.value_name for picture in interface.objects} == to_label_studio(record, tags)["data"].keys()
            label = tags.shape + "labels"
            told = [region["value"][label] for region in prediction["result"]]
            assert {name for (name,) in told} == {segment.label for segment in record.segments}
    wrong = deepcopy(prediction)
    wrong["result"][0]["value"]["polygonlabels"] = ["other"]
    assert not interface.validate_prediction(wrong)


def test_score_and_names() -> None:
    record = panoptic().record()
    told = to_prediction(record, Tags(), {"car & <van>": "Vehicle"})
    areas = [segment.area for segment in record.segments]
    assert told["score"] == pytest.approx(np.average([0.9, 0.5, 0.25], weights=areas))
    assert [region["value"]["brushlabels"] for region in told["result"]] == [["Vehicle"], ["Vehicle"], ["tree"]]
    assert told["model_version"] == "colours"


def test_polygons_fill_holes_and_part_parts() -> None:
    task = instances().to_label_studio(Tags(shape="polygon"), address="https://example.org/c.tif")
    assert task["data"] == {"image": "https://example.org/c.tif"}
    ids = [region["id"] for region in task["predictions"][0]["result"]]
    assert ids == ["1-1", "1-2", "2-1", "2-2", "3-1", "4-1", "4-2"]
    first = np.array(task["predictions"][0]["result"][0]["value"]["points"]) * [0.4, 0.31]
    assert np.allclose(first, [[3, 2], [22, 2], [22, 20], [3, 20]], atol=1e-4)


def exported(path: Path, results: list[Any]) -> list[dict[str, Any]]:
    """What Label Studio gives back where somebody accepted all predictions."""
    write_label_studio(path.parent, [result.record() for result in results], WORDS)
    tasks = json.loads((path.parent / "tasks.json").read_text())
    for number, task in enumerate(tasks, start=1):
        accepted = [
            {key: value for key, value in region.items() if key != "score"}
            for region in task["predictions"][0]["result"]
        ]
        task |= {"id": number, "annotations": [{"id": 10 + number, "was_cancelled": False, "result": accepted}]}
    path.write_text(json.dumps(tasks))
    return tasks


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An export, with its photos in images/ beside it."""
    write_photos(tmp_path / "images")
    path = tmp_path / "project.json"
    exported(path, [make() for make in RESULTS])
    (tmp_path / "tasks.json").unlink()
    (tmp_path / "config.xml").unlink()
    return path


def test_there_and_back(project: Path) -> None:
    for make in RESULTS:
        result = make()
        given = read_masks(project, Photo(result.rgb, f"elsewhere/{result.photo}"))
        assert np.array_equal(given.masks, np.stack([segment.mask for segment in result.segments]))
    data = open_mask_data(project.parent)
    assert data.vocabulary.names == ("sky", "car & <van>", "tree")
    assert data.splits["train"] == ["a/b c.jpg", "b.png", "c.tif"]
    photo = data.photo("b.png")
    assert photo.classes == {1: 1, 2: 1, 3: 2}
    for number, segment in enumerate(panoptic().segments, start=1):
        assert np.array_equal(photo.ids == number, segment.mask)
    top = data.photo("c.tif").ids  # later regions lie on top
    assert np.array_equal(top == 4, instances().segments[3].mask)


def test_its_own_converter_reads_the_same_masks(project: Path) -> None:
    for task, make in zip(json.loads(project.read_text()), RESULTS, strict=True):
        # As its converter hands them over: the values and what stands beside them in one.
        results = [{**region, **region["value"], "type": "BrushLabels"} for region in task["annotations"][0]["result"]]
        layers = brush.decode_from_annotation("label", results)
        for layer, segment in zip(layers.values(), make().segments, strict=True):
            assert np.array_equal(layer > 0, segment.mask)


def region(kind: str, value: dict[str, Any], **more: Any) -> dict[str, Any]:
    size = {"original_width": 40, "original_height": 30}
    return {"id": "r", "type": kind, "from_name": "l", "to_name": "i", **size, "value": value, **more}


def labelled(kind: str, **value: Any) -> dict[str, Any]:
    return region(f"{kind}labels", {**value, f"{kind}labels": ["car"]})


TASK = {"id": 7, "data": {"image": "/data/upload/3/0a1b2c3d-a%20b.png"}}
PHOTO = Photo(np.zeros((30, 40, 3), np.uint8), "a b.png")


def read(path: Path, *regions: dict[str, Any], task: dict[str, Any] = TASK) -> np.ndarray:
    path.write_text(json.dumps([{**task, "annotations": [{"result": list(regions)}]}]))
    return read_masks(path, PHOTO).masks


def test_boxes_and_polygons(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    box = {"x": 25, "y": 20, "width": 50, "height": 40, "rotation": 0}
    (mask,) = read(path, labelled("rectangle", **box))
    assert mask[6:18, 10:30].all() and mask.sum() == 240
    (turned,) = read(path, labelled("rectangle", **(box | {"x": 50, "rotation": 90})))  # about its upper left corner
    assert turned[6:26, 8:20].all() and turned.sum() == 240
    (polygon,) = read(path, labelled("polygon", points=[[25, 20], [75, 20], [75, 60], [25, 60]]))
    assert np.array_equal(polygon, mask)


def test_labels_in_a_result_of_their_own(tmp_path: Path) -> None:
    shape = region("rectangle", {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0})
    label = region("labels", {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0, "labels": ["car"]})
    for regions in ((shape, label), (label, shape)):
        assert read(tmp_path / "a.json", *regions)[0][:, :20].all()


def test_which_annotation_counts(tmp_path: Path) -> None:
    def half(x: int) -> list[dict[str, Any]]:
        return [labelled("rectangle", x=x, y=0, width=50, height=100, rotation=0)]

    path = tmp_path / "a.json"
    left, right = {"result": half(0)}, {"result": half(50)}
    choices = {"result": [*half(50), region("choices", {"choices": ["day"]})]}
    for annotations, on_the_left in (
        ([left, right], False),
        ([left, right | {"was_cancelled": True}], True),
        ([left | {"ground_truth": True}, right], True),
        ([left, choices], False),
    ):
        path.write_text(json.dumps([{**TASK, "annotations": annotations}, {**TASK, "annotations": []}]))
        assert read_masks(path, PHOTO).masks[0, 0, 0] == on_the_left


@pytest.mark.parametrize(
    "image",
    [
        "/data/upload/3/0a1b2c3d-a%20b.png",
        "/data/local-files/?d=some%2Ffolder/a%20b.png",
        "https://example.org/bucket/a%20b.png?token=1",
        "s3://bucket/a b.png",
        "a b.png",
    ],
)
def test_addresses_of_photos(image: str, tmp_path: Path) -> None:
    box = labelled("rectangle", x=0, y=0, width=50, height=100, rotation=0)
    assert read(tmp_path / "a.json", box, task={"data": {"image": image}}).any()


BRUSH = {"format": "rle", "rle": encode_brush(np.ones((30, 40), bool))}
WRONG_REGIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no bytes": (labelled("brush", rle=[1, 2, 300]), "its run lengths are no list of bytes"),
    "no run lengths": (labelled("brush", rle="abc"), "its run lengths are no list of bytes"),
    "cut": (labelled("brush", rle=BRUSH["rle"][:-4]), "its run lengths are cut short"),
    "of another size": (labelled("brush", rle=encode_brush(np.ones((3, 4), bool))), "not of the 40 x 30 pixels"),
    "a list as id": (labelled("brush", **BRUSH) | {"id": [1], "type": "brush"}, "has 0 labels"),
    "a huge number": (labelled("polygon", points=[[1, 1], [2, 2], [1, 10**400]]), "needs two numbers for each point"),
    "turned": (labelled("brush", **BRUSH) | {"image_rotation": 90}, "its picture was turned in Label Studio"),
    "another size": (labelled("brush", **BRUSH) | {"original_width": 50}, "of a photo of 50 x 30 pixels, the upright"),
    "no size": (labelled("brush", **BRUSH) | {"original_width": None}, "its original height and width are"),
    "two labels": (region("brushlabels", {**BRUSH, "brushlabels": ["a", "b"]}), "has 2 labels; give every region one"),
    "no label": (region("brush", BRUSH), "has 0 labels"),
    "two points": (labelled("polygon", points=[[1, 1], [2, 2]]), "its polygon needs 3 to"),
    "no numbers": (labelled("polygon", points=[[1, 1], [2, 2], [1, None]]), "its polygon needs two numbers for each"),
    "infinite": (labelled("polygon", points=[[1, 1], [2, 2], [1, float("inf")]]), "two numbers for each point"),
    "far": (labelled("polygon", points=[[1, 1], [2, 2], [1, 1e9]]), "its polygon lies far outside"),
    "no box": (labelled("rectangle", x=0, y=0, width=0, height=1), "its box is empty or no numbers"),
    "an ellipse": (labelled("ellipse", x=0, y=0), "a region of type 'ellipse' is no mask; draw a brush"),
}


@pytest.mark.parametrize("case", WRONG_REGIONS)
def test_wrong_regions(case: str, tmp_path: Path) -> None:
    wrong, told = WRONG_REGIONS[case]
    good = labelled("rectangle", x=0, y=0, width=50, height=100, rotation=0) | {"id": "other"}
    with pytest.raises(ImageError, match=f"a.json: task 7, result 2: .*{told}") as raised:
        read(tmp_path / "a.json", good, wrong)
    assert "\n" not in str(raised.value)


def changed(change: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tasks = json.loads(path.read_text())
        path.write_text(json.dumps(change(tasks) or tasks))

    return spoil


WRONG_EXPORTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "JSON-MIN": (
        changed(lambda tasks: [{"image": "a.png", "label": [], "annotation_id": 5}]),
        "task 1: has no annotations or no data; export the project as JSON, not as JSON-MIN",
    ),
    "no list": (changed(lambda tasks: tasks[1].update(annotations=None)), "task 2: has no annotations or no data"),
    "no results": (changed(lambda tasks: tasks[1]["annotations"][0].update(result=3)), "has no list of results"),
    "no picture": (changed(lambda tasks: tasks[0].update(data={"text": "hello"})), "task 1: its data name no picture"),
    "a way out": (changed(lambda tasks: tasks[0].update(data={"image": "../../x.png"})), "its data name no picture"),
    "this folder": (changed(lambda tasks: tasks[0].update(data={"image": "."})), "its data name no picture"),
    "no photo": (lambda path: (path.parent / "images/b.png").unlink(), "images/b.png: no such file, but project.json"),
    "no folder": (lambda path: (path.parent / "images").rename(path.parent / "elsewhere"), "images: no such folder"),
    "twice": (changed(lambda tasks: tasks[0].update(data=tasks[1]["data"])), "is twice about b.png; keep one"),
    "nothing": (changed(lambda tasks: [{"annotations": [], "data": {}}]), "1 tasks, none of them annotated"),
}


@pytest.mark.parametrize("case", WRONG_EXPORTS)
def test_wrong_exports(case: str, project: Path) -> None:
    spoil, told = WRONG_EXPORTS[case]
    spoil(project)
    with pytest.raises(DataProblems) as raised:
        open_mask_data(project)
    assert any(told in line for line in raised.value.lines), raised.value.lines
    assert all(line.startswith(str(project.parent)) for line in raised.value.lines)


def test_what_is_written_for_many(tmp_path: Path) -> None:
    write_label_studio(tmp_path, records(), WORDS)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        f"/data/local-files/?d={name}" for name in ("a/b%20c.jpg", "b.png", "c.tif", "inner/nothing.jpg")
    ]
    assert tasks[-1]["predictions"][0] == {"model_version": "lexiseg", "score": 0.0, "result": []}
    interface = LabelInterface((tmp_path / "config.xml").read_text())
    assert next(iter(interface.labels)).keys() == {"sky", "car & <van>", "tree"}
    assert semantic().record().segments[0].label in next(iter(interface.labels))
