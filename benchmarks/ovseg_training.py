"""Does OVSeg's training on mined pairs make a CLIP read masked crops better? Accuracy before and after, over seeds.

    python benchmarks/ovseg_training.py PAIRS DATA OUT [--start street-tiny] [--side 96] [--seeds 3] [--split val]
        [--epochs 2] [--prompt-epochs 1] [--batch 32] [--learning-rate 1e-4] [--prompt-learning-rate 0.02]
        [--control SPLIT]

PAIRS: a folder that `lexiseg data mine` made. DATA: labelled photos, whose classes are the words; the true mask of
every class of a photo is given, cut out, blanked around and read. Trained are, for each seed, the tower (full), prompts
after it (full-prompts), and prompts alone. The same command goes on where it stopped. OUT/table.md has the table:
accuracy over all masks and its mean over the classes that occur, with 95 % intervals over photos drawn anew; of a row
over seeds the interval is that of the mean of their accuracies, on the same draws. With --control the tower is also
trained, as long, on the true masks of a split of DATA and the names of their classes: what the training does with pairs
that are right.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lexiseg.data.packages import LabelledPhotos
from lexiseg.data.pairs import MaskWordPairs, Pair, Shard, blanked, shard_path, write_shard
from lexiseg.evaluation import Evaluation, Plan, candidate_of, evaluate
from lexiseg.evaluation.outcome import picture_counts
from lexiseg.metrics.bootstrap import drawn_times, interval
from lexiseg.metrics.mask_accuracy import class_masks
from lexiseg.regions.crops import boxes_of
from lexiseg.segmenter import Segmenter
from lexiseg.train.recipes.ovseg import train_pairs
from lexiseg.zoo.cropped import with_crops
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model


def true_pairs(package: LabelledPhotos, split: str, out: Path) -> Path:
    """The masks of the classes of a split with their names, as pairs."""
    regions, pairs = {}, []
    for id in package.ids(split):
        photo = package.photo(id)
        masks, classes = class_masks(torch.from_numpy(photo.labels), package.ignore)
        for mask, number, box in zip(masks, classes.tolist(), boxes_of(masks).tolist(), strict=True):
            x0, y0, x1, y1 = box
            name = f"regions/{len(regions):06}.png"
            regions[name] = blanked(photo.image[y0:y1, x0:x1], mask[y0:y1, x0:x1].numpy())
            pairs.append(Pair(name, package.classes[number], id, 0, 1.0, float(mask.float().mean())))
    out.mkdir(parents=True, exist_ok=True)
    write_shard(shard_path(out, 0), Shard(tuple(pairs), regions, {}))
    return out


def accuracies(counts: Tensor) -> Tensor:
    """counts [R, 3, K], right, true and predicted -> [R, 2]: over all masks, mean over the classes that occur."""
    right, true, _ = counts.unbind(1)
    return torch.stack([right.sum(1) / true.sum(1), (right / true).nanmean(1)], dim=1)


def measured(found: Evaluation) -> tuple[Tensor, Tensor]:
    """[2] as measured, [R, 2] of photos drawn anew."""
    counts = picture_counts(found.records, "masks", len(found.classes)).double()  # [N, 3, K]
    drawn = (drawn_times(len(counts)) @ counts.flatten(1)).unflatten(1, (3, -1))
    return accuracies(counts.sum(0, keepdim=True))[0], accuracies(drawn)


def row(name: str, seeds: Sequence[Evaluation], before: Evaluation) -> str:
    values, samples = zip(*(measured(found) for found in seeds), strict=True)
    value, sample = torch.stack(values).mean(0), torch.stack(samples).mean(0)
    base, base_sample = measured(before)
    cells = []
    for part in range(2):
        low, high = interval(sample[:, part])
        cells.append(f"{100 * value[part]:.1f} ({100 * low:.1f} to {100 * high:.1f})")
        if seeds[0] is before:
            cells.append("")
            continue
        low, high = interval(sample[:, part] - base_sample[:, part])
        each = ", ".join(f"{100 * own[part]:.1f}" for own in values)
        cells.append(f"{100 * (value - base)[part]:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}); seeds {each}")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--start", default="street-tiny")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="val")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--prompt-epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--prompt-learning-rate", type=float, default=0.02)
    parser.add_argument("--template", default="own")
    parser.add_argument("--control", metavar="SPLIT")
    options = parser.parse_args()
    torch.set_num_threads(1)
    package = LabelledPhotos(options.data)
    plan = Plan.of(package, split=options.split, given_masks="classes")

    def accuracy(model: Model, name: str) -> Evaluation:
        candidate = replace(candidate_of(Segmenter(model, "cpu")), name=name)
        found = evaluate(candidate, package, plan, out=options.out / "records")
        assert found is not None  # this is the only process
        return found

    def trained(start: str | Path, out: Path, order: str, seed: int, pairs: Path = options.pairs) -> Path:
        if not (out / "model" / "lexiseg.json").is_file():
            begun = time.perf_counter()
            train_pairs(
                pairs,
                out,
                start=str(start),
                order=order,
                epochs=options.epochs * len(MaskWordPairs(options.pairs)) / len(MaskWordPairs(pairs)),
                prompt_epochs=options.prompt_epochs,
                batch=options.batch,
                learning_rate=options.learning_rate,
                prompt_learning_rate=options.prompt_learning_rate,
                warmup=20,
                crop_side=options.side,
                draw="distinct",
                template=options.template,
                seed=seed,
                save_every=50,
                log_every=10,
            )
            print(f"{out}: {time.perf_counter() - begun:.0f} s", flush=True)
        return out / "model"

    before = accuracy(with_crops(load(options.start), options.side), "before")
    found: dict[str, list[Evaluation]] = {"full": [], "prompts": [], "full-prompts": []}
    if options.control:
        found["full, on true masks"] = []
        true = true_pairs(package, options.control, options.out / "true")
    for seed in range(options.seeds):
        folder = options.out / f"seed-{seed}"
        full = trained(options.start, folder / "full", "full", seed)
        for name, path in (
            ("full", full),
            ("full-prompts", trained(full, folder / "full-prompts", "prompts", seed)),
            ("prompts", trained(options.start, folder / "prompts", "prompts", seed)),
        ):
            found[name].append(accuracy(load(path), f"{name}-{seed}"))
        if options.control:
            path = trained(options.start, folder / "control", "full", seed, true)
            found["full, on true masks"].append(accuracy(load(path), f"control-{seed}"))
        print(f"seed {seed} done", flush=True)
    lines = [
        "| trained | over all masks | less before | mean over classes | less before |",
        "|---|---|---|---|---|",
        row("nothing: before", [before], before),
        *(row(name, seeds, before) for name, seeds in found.items()),
    ]
    table = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
