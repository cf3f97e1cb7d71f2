"""What does it save to run the Mask-Adapter only near the edges of each mask?

    python benchmarks/adapter_edges.py MODEL DATA... [--photos 4] [--edges 896 1792] [--most 40]

MODEL: folder or name of a model with a Mask-Adapter, whose numbers do not matter here. DATA: labelled photos, whose
masks are made by the generator of the embedded model. A row per length of the long side: masks, the share of the
positions that is computed, the largest difference of the maps from those of the whole computation over their standard
deviation, and the time over that of the whole, both in one run.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from lexiseg.data.packages import LabelledPhotos
from lexiseg.geometry import resize
from lexiseg.images import Photo
from lexiseg.regions.mask_adapter import STEM_STRIDE, MaskAdapter, MaskAdapterPool
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load

STRIDE = 32
"""Pixels per position of CLIP's map."""


def masks_of(data: Path, photos: int, edge: int, most: int) -> list[Tensor]:
    """Masks [Q, 4 h, 4 w] of the embedded generator, as an adapter would read them at this size; not the empty ones."""
    model, package = load("street-tiny"), LabelledPhotos(data)
    if model.system.encoder is None:
        raise TypeError("the embedded model has a tower of its own")
    text = model.text_bank(Vocabulary.parse(list(package.classes)))
    ids = package.ids("test" if "test" in package.splits else "val")
    found = []
    for id in ids[:: max(1, len(ids) // photos)][:photos]:
        images = model.canvas([Photo(package.photo(id).image, id)])
        logits = model.system.generator(images, model.system.encoder(images), text).mask_logits[0]
        height, width = images.canvas_hw
        h, w = (round(side * edge / max(height, width) / STRIDE) for side in (height, width))
        masks = resize((logits > 0).float()[None], (STEM_STRIDE * h, STEM_STRIDE * w))[0]
        found.append(masks[masks.flatten(1).any(dim=1)][:most])
    return found


def seconds(work: MaskAdapter, dense: Tensor, masks: Tensor) -> tuple[float, Tensor]:
    start = time.perf_counter()
    maps = work(dense, masks[None])
    return time.perf_counter() - start, maps


class Whole(MaskAdapter):
    """Every position of every mask."""

    def activate_edges(self, image: Tensor, masks: Tensor, plain: list[Tensor]) -> Tensor:
        return self.activate(self.fused(image, masks))


def whole_of(adapter: MaskAdapter) -> Whole:
    mask_width = len(adapter.state_dict()["mask_downscaling.3.bias"])
    whole = Whole(adapter.fuse.in_channels, adapter.fuse.out_channels, mask_width, adapter.num_maps)
    whole.load_state_dict(adapter.state_dict())
    return whole


def measure(adapter: MaskAdapter, masks: list[Tensor]) -> str:
    everywhere = whole_of(adapter)
    computed, positions, times, worst = 0, 0, [0.0, 0.0], 0.0

    def count(block: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal computed
        computed += inputs[0][..., 0].numel()

    chance = torch.Generator().manual_seed(0)
    for own in masks:
        h, w = (side // STEM_STRIDE for side in own.shape[-2:])
        dense = torch.randn(1, adapter.fuse.in_channels, h, w, generator=chance)
        hooks = [block.norm.register_forward_pre_hook(count) for block in adapter.blocks]
        spent, maps = seconds(adapter, dense, own)
        for hook in hooks:
            hook.remove()
        positions += 3 * len(own) * h * w
        whole, expected = seconds(everywhere, dense, own)
        times = [times[0] + spent, times[1] + whole]
        worst = max(worst, float((maps - expected).abs().max() / expected.std()))
    count_of = sum(len(own) for own in masks)
    return f"{count_of:6} {computed / positions:9.1%} {worst:11.1e} {times[0] / times[1]:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--photos", type=int, default=4, help="of each data set")
    parser.add_argument("--edges", type=int, nargs="+", default=[896, 1792])
    parser.add_argument("--most", type=int, default=40, help="masks of a photo")
    options = parser.parse_args()
    embedder = load(Path(options.model) if Path(options.model).is_dir() else options.model).system.embedder
    if not isinstance(embedder, MaskAdapterPool):
        parser.error(f"{options.model} has no Mask-Adapter")
    print(f"{'long side':>9} {'masks':>6} {'computed':>9} {'difference':>11} {'time':>6}")
    with torch.inference_mode():
        for edge in options.edges:
            masks = [own for data in options.data for own in masks_of(data, options.photos, edge, options.most)]
            print(f"{edge:9} {measure(embedder.adapter, masks)}")


if __name__ == "__main__":
    main()
