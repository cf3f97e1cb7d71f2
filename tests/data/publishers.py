"""Miniatures of data sets as their publishers ship them: the same folders, file names, formats and value ranges.

Every function writes one data set below a folder; photos are 40 x 60 grey pictures unless said otherwise.
"""

import json
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image
from pycocotools import mask as rle_tools

HEIGHT, WIDTH = 40, 60
PALETTE = [value for index in range(256) for value in (index, 255 - index, index // 2)]


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture = Image.fromarray(values, "P") if values.ndim == 2 else picture
        picture.putpalette(PALETTE)
    picture.save(path)


def photo(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    grey = np.linspace(0, 255, height * width).astype(np.uint8).reshape(height, width)
    save(path, np.stack([grey, grey.T.reshape(height, width), 255 - grey], -1))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def stripes(values: list[int], dtype: type = np.uint8) -> np.ndarray:
    """[HEIGHT, WIDTH]: upright stripes of equal width."""
    return np.repeat(np.array(values, dtype), WIDTH // len(values))[None].repeat(HEIGHT, 0)


def colours(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def ade20k(folder: Path) -> None:
    root = folder / "ADEChallengeData2016"
    for number in (1, 2, 3):
        photo(root / f"images/validation/ADE_val_{number:08d}.jpg")
    photo(root / "images/training/ADE_train_00000001.jpg")
    save(root / "annotations/training/ADE_train_00000001.png", stripes([1, 2, 3, 4]))
    # wall (stuff), bed (thing 8 in the challenge's 1..150), none, plant
    save(root / "annotations/validation/ADE_val_00000001.png", stripes([1, 8, 0, 150]))
    save(root / "annotations/validation/ADE_val_00000002.png", stripes([1, 1, 3, 3]))
    save(root / "annotations/validation/ADE_val_00000003.png", stripes([0, 0, 0, 0]))
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [f"{number}\t0.1\t11664\t1172\tthing {number}, object {number}" for number in range(1, 151)]
    text(root / "objectInfo150.txt", "\n".join(lines) + "\n")
    text(root / "sceneCategories.txt", "ADE_train_00000001 airport_terminal\n")


def ade20k_instances(folder: Path) -> None:
    root = folder / "annotations_instance"
    kinds = stripes([0, 1, 1, 100])
    numbers = stripes([0, 1, 2, 1])
    save(root / "validation/ADE_val_00000001.png", np.stack([kinds, numbers, kinds * 0], -1))
    for number in (2, 3):
        save(root / f"validation/ADE_val_{number:08d}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    lines = ["Instacne100\tSceneParse150\tFullADE20K"]
    lines += [f"{kind}\t{kind + 50 if kind > 1 else 8}\t{kind + 500}" for kind in range(1, 101)]
    text(folder / "categoryMapping.txt", "\n".join(lines) + "\n")


def ade20k_full(folder: Path) -> None:
    root = folder / "ADE20K_2021_17_01/images/ADE/validation"
    # wall 2978, building 312, and kind 1, which is none of the 847
    kinds = stripes([2978, 312, 1, 0], np.int32)
    coded = np.stack([kinds // 256 * 10, kinds % 256, kinds * 0], -1).astype(np.uint8)
    notes = {
        "annotation": {
            "filename": "x.jpg",
            "object": [
                {"id": 0, "name": "wall", "name_ndx": 2978, "hypernym": []},
                {"id": 1, "name": "building, edifice", "name_ndx": 312, "hypernym": []},
            ],
        }
    }
    for number, scene in ((1, "cultural/apse__indoor"), (2, "urban/street")):
        stem = root / scene / f"ADE_val_{number:08d}"
        photo(stem.with_suffix(".jpg"))
        save(stem.with_name(stem.name + "_seg.png"), coded)
        save(stem.with_name(stem.name + "_parts_1.png"), coded)
        text(stem.with_suffix(".json"), json.dumps(notes))
        save(stem / "instance_000_ADE.png", stripes([0, 255, 0, 0]))
    large = root / "urban/street/ADE_val_00000003"
    photo(large.with_suffix(".jpg"), 600, 900)
    save(large.with_name(large.name + "_seg.png"), coded.repeat(15, 0).repeat(15, 1))
    text(large.with_suffix(".json"), json.dumps(notes))
    photo(folder / "ADE20K_2021_17_01/images/ADE/training/urban/street/ADE_train_00000001.jpg")


VOC_LABELS = {"2007_000033": [0, 1, 255, 20], "2007_000042": [0, 19, 19, 0], "2007_000061": [0, 0, 255, 0]}


def voc(folder: Path) -> None:
    root = folder / "VOCdevkit/VOC2012"
    for id, values in VOC_LABELS.items():
        photo(root / f"JPEGImages/{id}.jpg")
        save(root / f"SegmentationClass/{id}.png", stripes(values), palette=True)
    photo(root / "JPEGImages/2007_000027.jpg")
    save(root / "SegmentationClass/2007_000027.png", stripes([0, 1, 2, 3]), palette=True)
    text(root / "ImageSets/Segmentation/val.txt", "\n".join(VOC_LABELS) + "\n")
    text(root / "ImageSets/Segmentation/train.txt", "2007_000027\n")
    text(root / "ImageSets/Main/val.txt", "\n".join(VOC_LABELS) + "\n")


FREQUENT = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor", "bag", "bed", "bench", "book"),
    *("building", "cabinet", "ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food"),
    *("grass", "ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate", "road"),
    *("rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water"),
    *("window", "wood"),
)


def context_names() -> dict[int, str]:
    """459 names, of which every seventh is one of the 59, alphabetically; 1 is none of them."""
    names = {number: f"rare {number}" for number in range(1, 460)}
    names |= {7 * (place + 1): name for place, name in enumerate(sorted(FREQUENT))}
    return names


def pascal_context(folder: Path) -> None:
    root = folder / "VOCdevkit/VOC2010"
    # A frequent class, a rare one, none, the last frequent one.
    for id, values in {"2008_000008": [7, 1, 0, 413], "2008_000015": [1, 1, 0, 0], "2008_000016": [0] * 4}.items():
        photo(root / f"JPEGImages/{id}.jpg")
        (folder / "trainval").mkdir(exist_ok=True)
        scipy.io.savemat(folder / f"trainval/{id}.mat", {"LabelMap": stripes(values, np.uint16)})
    scipy.io.savemat(folder / "trainval/2008_000002.mat", {"LabelMap": stripes([7, 7, 7, 7], np.uint16)})
    photo(root / "JPEGImages/2008_000002.jpg")
    text(root / "ImageSets/Main/val.txt", "2008_000008\n2008_000015\n2008_000016\n2008_000021\n")
    text(root / "ImageSets/Main/train.txt", "2008_000002\n")
    text(folder / "labels.txt", "".join(f"{number}: {name}\n" for number, name in context_names().items()))
    text(folder / "59_labels.txt", "".join(f"{place}: {name}\n" for place, name in enumerate(FREQUENT, 1)))


def cityscapes(folder: Path) -> None:
    for city, number in (("frankfurt", "000000_000294"), ("lindau", "000000_000019")):
        id = f"{city}_{number}"
        photo(folder / f"leftImg8bit/val/{city}/{id}_leftImg8bit.png")
        truth = folder / f"gtFine/val/{city}"
        kinds = stripes([7, 24, 26, 26, 26, 4])  # road, person, two cars and a group of cars, static
        values = stripes([7, 24000, 26000, 26001, 26, 4], np.uint16)
        save(truth / f"{id}_gtFine_labelIds.png", kinds)
        save(truth / f"{id}_gtFine_instanceIds.png", values)
        save(truth / f"{id}_gtFine_color.png", colours(kinds.astype(np.int32)))
        text(truth / f"{id}_gtFine_polygons.json", "{}")
    photo(folder / "leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png")


STUFF_NAMES = {0: "unlabeled", 1: "person", 2: "bicycle", 12: "street sign", 182: "wood"}


def coco_stuff(folder: Path) -> None:
    for id, values in {"000000000139": [0, 1, 181, 255], "000000000285": [255, 255, 255, 255]}.items():
        photo(folder / f"val2017/{id}.jpg")
        save(folder / f"stuffthingmaps/val2017/{id}.png", stripes(values))
    save(folder / "stuffthingmaps/train2017/000000000009.png", stripes([0, 1, 181, 255]))
    names = {number: STUFF_NAMES.get(number, f"name {number}") for number in range(183)}
    text(folder / "labels.txt", "".join(f"{number}: {name}\n" for number, name in names.items()))


def coco_categories() -> list[dict]:
    """133 categories with gaps between their ids, 80 things first."""
    things = [{"id": number, "name": f"thing {number}", "isthing": 1} for number in range(1, 161, 2)]
    return things + [{"id": number, "name": f"stuff {number}-other-merged", "isthing": 0} for number in range(161, 214)]


def coco(folder: Path, instances: bool = True) -> None:
    ids = stripes([5, 70000, 300, 0], np.int32)
    for id in ("000000000139", "000000000285"):
        photo(folder / f"val2017/{id}.jpg")
        save(folder / f"annotations/panoptic_val2017/{id}.png", colours(ids))
    segments = [
        {"id": 70000, "category_id": 161, "iscrowd": 0, "area": 600, "bbox": [15, 0, 15, 40]},
        {"id": 5, "category_id": 3, "iscrowd": 0, "area": 600, "bbox": [0, 0, 15, 40]},
        {"id": 300, "category_id": 3, "iscrowd": 1, "area": 600, "bbox": [30, 0, 15, 40]},
    ]
    names = [f"{id}" for id in ("000000000139", "000000000285")]
    panoptic = {
        "info": {},
        "images": [{"id": int(n), "file_name": f"{n}.jpg", "height": HEIGHT, "width": WIDTH} for n in names],
        "annotations": [{"image_id": int(n), "file_name": f"{n}.png", "segments_info": segments} for n in names],
        "categories": coco_categories(),
    }
    text(folder / "annotations/panoptic_val2017.json", json.dumps(panoptic))
    if instances:
        packed = rle_tools.encode(np.asfortranarray((ids == 300).astype(np.uint8)))
        uncompressed = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 15, HEIGHT * 45]}
        document = {
            "images": panoptic["images"],
            "categories": [category for category in coco_categories() if category["isthing"]],
            "annotations": [
                {"id": 1, "image_id": 139, "category_id": 3, "iscrowd": 0, "area": 512.5, "bbox": [0, 0, 15, 40]}
                | {"segmentation": [[0, 0, 15, 0, 15, 40, 0, 40]]},
                {"id": 2, "image_id": 139, "category_id": 5, "iscrowd": 1, "area": 600, "bbox": [0, 0, 15, 40]}
                | {"segmentation": uncompressed},
                {"id": 3, "image_id": 139, "category_id": 7, "iscrowd": 0, "area": 600, "bbox": [30, 0, 15, 40]}
                | {"segmentation": {"size": packed["size"], "counts": packed["counts"].decode()}},
            ],
        }
        text(folder / "annotations/instances_val2017.json", json.dumps(document))


def mapillary(folder: Path) -> None:
    root = folder / "validation"
    ids = stripes([256, 512, 513, 0], np.int32)
    categories = [{"id": n, "name": f"Object {n}", "isthing": int(n <= 37)} for n in range(1, 66)]
    segments = [
        {"id": 256, "category_id": 1, "iscrowd": 0, "area": 600},
        {"id": 512, "category_id": 2, "iscrowd": 0, "area": 600},
        {"id": 513, "category_id": 65, "iscrowd": 0, "area": 600},
    ]
    names = ("_1Gn_xkw7sa_i9GU4mkxxQ", "-0AbCdEfGhIjKlMnOpQrSt")
    for name in names:
        photo(root / f"images/{name}.jpg")
        save(root / f"labels/{name}.png", stripes([0, 1, 64, 65]), palette=True)
        save(root / f"instances/{name}.png", stripes([256, 512, 513, 65], np.uint16))
        save(root / f"panoptic/{name}.png", colours(ids))
    document = {
        "images": [{"id": name, "file_name": f"{name}.jpg"} for name in names],
        "annotations": [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in names],
        "categories": categories,
    }
    text(root / "panoptic/panoptic_2018.json", json.dumps(document))
    text(folder / "config.json", "{}")


def everything_of_ade20k(folder: Path) -> None:
    ade20k(folder)
    ade20k_instances(folder)


PUBLISHERS = {
    "ade20k-150": everything_of_ade20k,
    "ade20k-847": ade20k_full,
    "context-59": pascal_context,
    "context-459": pascal_context,
    "voc-20": voc,
    "voc-20b": voc,
    "voc-21": voc,
    "cityscapes": cityscapes,
    "coco-stuff": coco_stuff,
    "coco": coco,
    "mapillary": mapillary,
}
