"""What do OVSeg's masked crops cost, and what is saved without changing a result?

    python benchmarks/ovseg_crops.py [--size small|large] [--photos 2] [--regions 48] [--at-once 32] [--threads 1]

The system has its official size and random weights, which change no cost. Its own masks would be noise, so they are
drawn by the embedded model. Compared in one run, on the same photos and masks, are the computation as it is written
down (one crop after the other, every token of every block) and ours. A row per way: seconds per photo with the
generator and without, and the largest difference of an embedding as a share of its length. Seconds are the
processor's own: with one thread, those of a machine with nothing else to do. Photos are the two that scikit-learn
carries; at most --regions of the embedded model's 48 masks are read of each.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import sklearn
import torch
from torch import Tensor, nn

from lexiseg.clip.vit import MaskPromptedTransformer
from lexiseg.geometry import resize
from lexiseg.images import Photo, read_image
from lexiseg.regions.crops import MaskedCrops
from lexiseg.types import Images, TextBank
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import Model
from lexiseg.zoo.ovseg import LARGE_CANVAS, SMALL_CANVAS, SMALL_THRESHOLD, ovseg

SIZES = {
    "small": ("ViT-B-16-quickgelu", {"backbone": "resnet101c", "threshold": SMALL_THRESHOLD}, SMALL_CANVAS),
    "large": ("ViT-L-14-quickgelu", {"backbone": "swin_base"}, LARGE_CANVAS),
}


class EverythingComputed(nn.Module):
    """The tower as its paper writes it down: no token is left out anywhere."""

    def __init__(self, tower: MaskPromptedTransformer) -> None:
        super().__init__()
        self.tower = tower
        self.embed_dim, self.image_size = tower.embed_dim, tower.image_size
        self.shown: list[float] = []

    def keep(self, masks: Tensor) -> Tensor:
        return self.tower.keep(masks)

    def forward(self, pixels: Tensor, keep: Tensor) -> Tensor:
        self.shown += keep.float().mean(1).tolist()
        m, prompts = keep[..., None].float(), self.tower.mask_embedding
        x = self.tower.begin(self.tower.patches(pixels) * m + prompts[0] * (1 - m))
        for index, block in enumerate(self.tower.blocks, 1):
            x = block(x)
            if index < self.tower.prompt_depth:
                x = torch.cat((x[:, :1], x[:, 1:] * m + prompts[index] * (1 - m)), dim=1)
        return self.tower.end(x[:, 0])


@cache
def embedded() -> Model:
    return load("street-tiny")


def drawn(photo: Photo, images: Images) -> Tensor:
    """Masks of the embedded model [1, Q, H, W] on the canvas of `images`."""
    model = embedded()
    own = model.canvas([photo])
    text = model.text_bank(Vocabulary.parse("sky, building, tree, water, grass, person, road, flower"))
    masks = model.system.generator(own, model.system.encoder(own), text).mask_logits
    (height, width), (canvas_h, canvas_w) = own.sizes_hw[0], own.canvas_hw
    shown = resize(masks, (canvas_h, canvas_w))[..., :height, :width]
    (height, width), (canvas_h, canvas_w) = images.sizes_hw[0], images.canvas_hw
    return nn.functional.pad(resize(shown, (height, width)), (0, canvas_w - width, 0, canvas_h - height), value=-9.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--photos", type=int, default=2)
    parser.add_argument("--regions", type=int, default=48)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    name, arguments, canvas = SIZES[options.size]
    system = ovseg(name, **arguments, device="cpu").eval()
    reader = system.embedder
    assert isinstance(reader, MaskedCrops)
    whole = EverythingComputed(reader.tower)
    folder = Path(sklearn.__file__).parent / "datasets" / "images"
    photos = [read_image(folder / file) for file in ("china.jpg", "flower.jpg")]
    photos = [Photo(photos[n % 2].rgb[:, :: 1 if n % 4 < 2 else -1], str(n)) for n in range(options.photos)]
    rows = torch.nn.functional.normalize(torch.randn(20, 1, reader.tower.embed_dim), dim=-1)
    text = TextBank(rows, rows, torch.arange(20), torch.zeros(20, dtype=torch.bool))

    with torch.inference_mode():
        canvases: list[Images] = []
        start = time.process_time()
        for photo in photos:
            images = canvas([photo])
            system.generator(images, None, text)
            canvases.append(images)
        generator_s = (time.process_time() - start) / len(photos)
        pairs = zip(canvases, photos, strict=True)
        seen = [(images, drawn(photo, images)[:, : options.regions]) for images, photo in pairs]

        def embeds(tower: nn.Module, at_once: int, together: bool) -> Tensor:
            own = MaskedCrops(tower, threshold=reader.threshold, at_once=at_once)
            found = own.together(seen) if together else [own(*batch_of) for batch_of in swapped]
            return torch.cat([regions.embeds[regions.valid] for regions in found])

        swapped = [(images, None, masks) for images, masks in seen]
        ways: dict[str, Callable[[], Tensor]] = {
            "as written down": lambda: embeds(whole, 1, together=False),
            "crops of a photo together": lambda: embeds(whole, options.at_once, together=False),
            "and no needless token": lambda: embeds(reader.tower, options.at_once, together=False),
            "and crops of all photos together": lambda: embeds(reader.tower, options.at_once, together=True),
        }
        found: dict[str, tuple[float, Tensor]] = {}
        for way, compute in ways.items():
            start = time.process_time()
            result = compute()
            found[way] = ((time.process_time() - start) / len(photos), result)
            print(f"{way}: {found[way][0]:.1f} s per photo", file=sys.stderr, flush=True)
    first_s, first = found["as written down"]
    crops, shown = len(first) / len(photos), torch.tensor(whole.shown).mean()
    print(
        f"OVSeg {options.size} ({name}), {len(photos)} photos, {crops:.0f} crops each, {shown:.0%} of their patches "
        f"shown, {options.threads} threads; generator {generator_s:.1f} s per photo"
    )
    print(f"{'way':34} {'s per photo':>11} {'crops alone':>12} {'of that':>8} {'difference':>11}")
    for way, (seconds, result) in found.items():
        difference = ((result - first).norm(dim=1) / first.norm(dim=1)).max()
        total = seconds + generator_s
        print(f"{way:34} {total:>11.1f} {seconds:>12.1f} {seconds / first_s:>8.2f} {difference:>11.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
