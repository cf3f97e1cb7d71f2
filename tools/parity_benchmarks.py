"""Golden cases of the benchmarks: metrics, conversions of labels.

A case is recognised by what it stores. The class lists that conversions need lie beside the cases.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lexiseg.data import ade20k, ade20k_full, coco_stuff, pascal_context, voc
from lexiseg.metrics.boundary import BoundaryConfusion
from lexiseg.metrics.instances import InstanceMatches, IouType, ScoredInstance, TrueInstance
from lexiseg.metrics.panoptic import PanopticCounts, PanopticSegment, Quality, iou_sums
from lexiseg.metrics.semantic import (
    MeanRule,
    SemanticConfusion,
    class_accuracy,
    class_iou,
    frequency_weighted_iou,
    harmonic_mean,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)

Case = dict[str, Any]
Arrays = Mapping[str, np.ndarray]
Values = dict[str, Any]


def run(case: Case, arrays: Arrays, folder: Path) -> Values | None:
    """The values of a case of this module, or None if it is not one."""
    if "stats_segm" in case and "detections" in case:
        return coco_ap(case)
    if case["inputs"] == ["ade847_sizes_in"]:
        return label_maps(arrays, folder)
    if {"gt0", "pred0"} <= set(case["inputs"]):
        return panoptic(case, arrays)
    if set(case["inputs"]) == {"gt", "pred"}:
        return seen_and_unseen(case, arrays) if "unseen" in case else semantic(case, arrays)
    return None


def counted(case: Case, arrays: Arrays, accumulator: SemanticConfusion | BoundaryConfusion) -> torch.Tensor:
    for prediction, truth in zip(arrays["pred"], arrays["gt"], strict=True):
        accumulator.update(torch.from_numpy(prediction), torch.from_numpy(truth))
    return accumulator.counts


def semantic(case: Case, arrays: Arrays) -> Values:
    """Section 3.1: both rules of the mean, per class where the classes have names, Boundary IoU."""
    classes = case.get("classes", [])
    number = len(classes) or case["num_classes"]
    counts = counted(case, arrays, SemanticConfusion(number, case["ignore_label"]))
    new: Values = {
        "results_current": semantic_values(counts, "gt", classes),
        "results_detectron2_v0.6": semantic_values(counts, "gt_or_pred", classes),
    }
    if classes:
        boundary = BoundaryConfusion(number, case["ignore_label"], "eroded_labels")
        counted(case, arrays, boundary)
        current = new["results_current"]
        for name, value in zip(classes, (100 * boundary.iou()).tolist(), strict=True):
            iou = current[f"IoU-{name}"]
            current[f"BoundaryIoU-{name}"] = value
            current[f"min(IoU, B-Iou)-{name}"] = math.nan if math.isnan(iou) else min(iou, value)
        # Stored with a row and a column for ignored pixels, which are counted as if predictions on them mattered.
        whole = SemanticConfusion(number + 1, ignore=number + 1)
        for prediction, truth in zip(arrays["pred"], arrays["gt"], strict=True):
            truth = np.where(truth == case["ignore_label"], number, truth)
            whole.update(torch.from_numpy(prediction), torch.from_numpy(truth))
        new["confusion_pred_rows_gt_columns"] = whole.counts[:-1].tolist()
    return new


def semantic_values(counts: torch.Tensor, rule: MeanRule, classes: list[str]) -> Values:
    iou, accuracy = (100 * class_iou(counts)).tolist(), (100 * class_accuracy(counts)).tolist()
    return {
        "mIoU": 100 * mean_iou(counts, rule),
        "fwIoU": 100 * frequency_weighted_iou(counts),
        "mACC": 100 * mean_accuracy(counts),
        "pACC": 100 * pixel_accuracy(counts),
        **{f"IoU-{name}": iou[index] for index, name in enumerate(classes)},
        **{f"ACC-{name}": accuracy[index] for index, name in enumerate(classes)},
    }


def seen_and_unseen(case: Case, arrays: Arrays) -> Values:
    """Section 3.2, both official variants."""
    classes = case["classes"]
    counts = counted(case, arrays, SemanticConfusion(len(classes), case["ignore_label"]))
    unseen = torch.tensor([name in case["unseen"] for name in classes])
    both = semantic_values(counts, "gt_or_pred", classes)
    plain = [mean_iou(counts, "gt", chosen) for chosen in (~unseen, unseen)]
    by_sets = [mean_iou(counts, "gt_or_pred", chosen) for chosen in (~unseen, unseen)]
    return {
        "results_by_names": {
            **both,
            "seen_IoU": 100 * plain[0],
            "unseen_IoU": 100 * plain[1],
            "harmonic mean": 100 * harmonic_mean(*plain),
        },
        "results_by_sets": {
            **both,
            "mIoU-base": 100 * by_sets[0],
            "pAcc-base": 100 * pixel_accuracy(counts, ~unseen),
            "mIoU-unbase": 100 * by_sets[1],
            "pAcc-unbase": 100 * pixel_accuracy(counts, unseen),
            "hIoU-base": 100 * harmonic_mean(*by_sets),
        },
        "per_class_iou": both,
    }


def panoptic(case: Case, arrays: Arrays) -> Values:
    """Section 3.3."""
    index = {category["id"]: number for number, category in enumerate(case["categories"])}
    total = PanopticCounts([category["isthing"] for category in case["categories"]])
    for number, image in enumerate(case["images"]):
        predicted, true = (
            [
                PanopticSegment(entry["id"], index[entry["category_id"]], bool(entry.get("iscrowd")))
                for entry in image[key]
            ]
            for key in ("pred_segments", "gt_segments")
        )
        maps = [arrays[f"{key}{number}"].astype(np.int64) for key in ("pred", "gt")]
        total.update(maps[0], predicted, maps[1], true)
    quality, sums = total.quality(), iou_sums(total.counts)
    found, false_positives, false_negatives = total.counts[:3].tolist()

    def numbers(group: Quality) -> Values:
        return {"pq": group.pq, "sq": group.sq, "rq": group.rq, "n": group.classes}

    return {
        "results": {
            "All": numbers(quality.all),
            "Things": numbers(quality.things),
            "Stuff": numbers(quality.stuff),
            "per_class": {str(id): numbers(quality.per_class[row]) for id, row in index.items()},
            "counts": {
                str(id): {
                    "iou_sum": sums[row],
                    "tp": found[row],
                    "fp": false_positives[row],
                    "fn": false_negatives[row],
                }
                for id, row in index.items()
            },
        }
    }


def coco_ap(case: Case) -> Values:
    """Section 3.4: masks and boxes."""
    index = {id: number for number, id in enumerate(case["categories"])}
    new: Values = {}
    kinds: tuple[IouType, ...] = ("segm", "bbox")
    for kind in kinds:
        matches = InstanceMatches(len(index), kind)
        for image in case["images"]:
            detections = [
                ScoredInstance(index[entry["category_id"]], entry["score"], entry["segmentation"])
                for entry in case["detections"]
                if entry["image_id"] == image["id"]
            ]
            truth = [
                TrueInstance(
                    index[entry["category_id"]],
                    entry["segmentation"],
                    entry["area"],
                    tuple(entry["bbox"]),
                    bool(entry["iscrowd"]),
                )
                for entry in case["annotations"]
                if entry["image_id"] == image["id"]
            ]
            matches.update(image["id"], detections, truth)
        result = matches.result()
        numbers = [result.numbers[name] for name in case["stats_order"]]
        new[f"stats_{kind}"] = [-1.0 if math.isnan(value) else value for value in numbers]
        new[f"per_class_AP_{kind}"] = {str(id): result.per_class[row] for id, row in index.items()}
    return new


def label_maps(arrays: Arrays, folder: Path) -> Values:
    """Sections 2 and 4: every conversion of every raw value. The names of Pascal Context come from its class lists."""
    lists = json.loads((folder / "vocabularies-plain.json").read_text())["names"]
    names = dict(enumerate(lists["pascal-context-459"], start=1))
    numbers = pascal_context.frequent_numbers(names, lists["pascal-context-59"])
    bytes_ = np.arange(256, dtype=np.uint8)
    return {
        "voc21_to_voc20b": voc.table_20b(),
        "voc21_to_voc20": voc.table_20(),
        "voc21_to_voc20_table": voc.table_20(),
        "coco_stuff_182_to_171": coco_stuff.table(),
        "ade150": ade20k.class_labels(bytes_),
        "pascal_context_59": pascal_context.table_59(numbers),
        "pascal_context_459": pascal_context.class_labels(np.arange(461, dtype=np.uint16)),
        "ade847": ade20k_full.table(),
        "ade847_sizes_out": np.array([ade20k_full.measured_size(tuple(size)) for size in arrays["ade847_sizes_in"]]),
    }
