"""Does leaving out the proposals that cannot matter change a result, and how many are left?

    python benchmarks/skipping.py MODEL DATA [--photos 50] [--split test] [--edge PIXELS]

MODEL: folder or name of a model with a Mask-Adapter. DATA: labelled photos, a folder or a zip with dataset.json, whose
classes are the words. Every photo is segmented with and without skipping, for all three tasks. A row per task: photos
whose results differ, pixels that differ, the share of the proposals that was computed, and the time with skipping over
the time without. Exit status 1 if any result differs.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from stages import output, select
from tqdm import tqdm

from lexiseg.data.packages import LabelledPhotos
from lexiseg.images import Canvas, Photo
from lexiseg.postprocess import Frame
from lexiseg.results import TASKS
from lexiseg.types import InstanceMasks, PanopticMap, Prediction, SemanticMap
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load


@dataclass
class Tally:
    """What was counted for one task, over all photos."""

    photos: int = 0
    different: int = 0
    pixels: int = 0
    computed: int = 0
    proposals: int = 0
    whole_s: float = 0.0
    skipping_s: float = 0.0


def differing_pixels(one: Prediction, other: Prediction) -> int:
    """Pixels whose label, segment or instance differs; all of them where the segments are others.

    Instances without a pixel score zero, and stand in any order at the end: they are left out.
    """
    if isinstance(one, SemanticMap) and isinstance(other, SemanticMap):
        return int((one.labels != other.labels).sum())
    classes = [[part.class_index for part in outcome.segments if part.area] for outcome in (one, other)]
    same = classes[0] == classes[1]
    if isinstance(one, PanopticMap) and isinstance(other, PanopticMap):
        return int((one.ids != other.ids).sum()) if same else one.ids.numel()
    if isinstance(one, InstanceMasks) and isinstance(other, InstanceMasks):
        masks, others = (found.masks[found.masks.flatten(1).any(1)] for found in (one, other))
        return int((masks != others).sum()) if same else one.masks[0].numel()
    raise TypeError(f"{type(one).__name__} and {type(other).__name__} cannot be compared")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--photos", type=int, default=50)
    parser.add_argument("--split", default="test")
    parser.add_argument("--edge", type=int, help="long edge photos are brought to; default: the model's own canvas")
    options = parser.parse_args()
    model = load(Path(options.model) if Path(options.model).is_dir() else options.model)
    system, settings = model.system, model.outputs
    canvas = Canvas(options.edge, options.edge, model.canvas.multiple) if options.edge else model.canvas
    package = LabelledPhotos(options.data)
    vocabulary = Vocabulary.parse(list(package.classes))
    ids = package.ids(options.split)
    count = min(options.photos, len(ids))
    tallies = {task: Tally() for task in TASKS}
    with torch.inference_mode():
        text = model.text_bank(vocabulary)
        for position in tqdm(range(count), unit="photo"):
            name = ids[position * len(ids) // count]  # evenly spread: neighbours are often frames of one film
            images = canvas([Photo(package.photo(name).image, name)])
            frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
            start = time.perf_counter()
            proposals, scores = system(images, text)
            system_s = time.perf_counter() - start
            for task, tally in tallies.items():
                start = time.perf_counter()
                parts = proposals.mask_logits[0], scores.class_probs[0], scores.void_prob[0]
                whole = output(task, *parts, frame, settings)
                middle = time.perf_counter()
                few = select(task, system, images, text, frame, settings)
                skipped = output(task, few.mask_logits, few.class_probs, few.void_prob, frame, settings)
                tally.whole_s += system_s + middle - start
                tally.skipping_s += time.perf_counter() - middle
                pixels = differing_pixels(whole, skipped)
                tally.photos += 1
                tally.pixels += pixels
                tally.different += pixels > 0
                tally.computed += len(few.computed)
                tally.proposals += few.count
    print(f"{model.name}, {count} photos of {package.name} {options.split}, canvas {images.canvas_hw}")
    print(f"{'task':10} {'different':>9} {'pixels':>8} {'computed':>9} {'time':>6}")
    for task, tally in tallies.items():
        share, ratio = tally.computed / tally.proposals, tally.skipping_s / tally.whole_s
        print(f"{task:10} {tally.different:>4}/{tally.photos:<4} {tally.pixels:>8} {share:>9.1%} {ratio:>6.2f}")
    return int(any(tally.different for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
