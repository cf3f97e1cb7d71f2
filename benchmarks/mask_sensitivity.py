"""Do the scores of a mask depend on the mask, or on the picture alone?

    python benchmarks/mask_sensitivity.py MODEL... --data PACKAGE [--split val] [--masks street-tiny] [--photos 40]

MAFT's point is that a CLIP which has seen whole pictures gives all masks of one picture nearly the same scores. Every
MODEL names the masks that one generator draws, with the classes of the package as words. Per photo, then the mean:

    same label   share of the masks whose best class is the one that most masks of the photo have
    apart        mean distance (total variation, 0..1) between the class probabilities of two masks
    follows IoU  correlation of the probability of a class with the overlap with it, over the masks of the photo, mean
                 over the classes in it: 1 where good masks stand out
    right        share of the masks whose best class is the one they overlap with most, of those that overlap by half

`same label` falls and the others rise when a tower looks at its masks. For comparison the first row is of the truth:
the class a mask overlaps with most.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.data.package_splits import PackagePhotos
from lexiseg.data.packages import LabelledPhotos
from lexiseg.images import Photo
from lexiseg.train.mask_aware import soft_ious
from lexiseg.train.recipes.maftplus import targets_of
from lexiseg.vocabulary import Vocabulary
from lexiseg.zoo.loading import compose

FIGURES = ("same label", "apart", "follows IoU", "right")
OVERLAPS = 0.5
"""With a class, for a mask to be asked which it is."""


def figures(probs: Tensor, ious: Tensor, labels: Tensor) -> Tensor:
    """probs [Q, K] of the masks of a photo, ious [N, Q] with the classes labels [N] in it -> the four FIGURES; NaN
    where a photo has nothing to say."""
    best = probs.argmax(-1)
    same = (best == best.mode().values).float().mean()
    distance = (probs[:, None] - probs[None]).abs().sum(-1) / 2  # [Q, Q]
    apart = distance.sum() / max(1, len(probs) * (len(probs) - 1))
    pairs = torch.stack((probs[:, labels].T, ious), dim=1)  # [N, 2, Q]
    pairs = pairs - pairs.mean(-1, keepdim=True)
    spread = pairs.square().sum(-1).sqrt().prod(-1)  # [N]
    follows = (pairs.prod(1).sum(-1) / spread)[spread > 1e-8].mean()
    overlap, own = ious.max(0)
    asked = overlap > OVERLAPS
    right = (best == labels[own])[asked].float().mean()
    return torch.stack((same, apart, follows, right))


@torch.no_grad()
def measured(model: str, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Means of FIGURES over the photos, of the model and of the truth."""
    package = LabelledPhotos(options.data)
    composed = compose(options.masks, model)
    text = composed.text_bank(Vocabulary.parse(list(package.classes)))
    photos = PackagePhotos(package, options.split)
    step = max(1, len(photos) // options.photos)
    found, truth = [], []
    for number in range(0, len(photos), step):
        photo = photos[number]
        system = composed.system
        images = composed.canvas([Photo(photo.image, photo.id)])
        features = system.encoder(images) if system.encoder is not None else None
        masks = system.generator(images, features, text).mask_logits
        regions = system.embedder(images, features, masks)
        seen = regions.valid[0]
        probs = system.scorer(regions, text)[0].softmax(-1)[seen]
        targets = targets_of(photo.labels, package.ignore)
        if len(targets.labels) == 0 or len(probs) < 2:
            continue
        height, width = images.sizes_hw[0]
        on_canvas = functional.interpolate(masks, size=images.canvas_hw, mode="bilinear")
        ious = soft_ious(on_canvas[0, seen, :height, :width], targets.masks)
        found.append(figures(probs, ious, targets.labels))
        classes = torch.zeros(len(package.classes), len(probs)).index_copy(0, targets.labels, ious)
        ideal = functional.one_hot(classes.argmax(0), len(package.classes)).float()
        truth.append(figures(ideal, ious, targets.labels))
    return torch.stack(found).nanmean(0), torch.stack(truth).nanmean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--masks", default="street-tiny")
    parser.add_argument("--photos", type=int, default=40)
    options = parser.parse_args()
    print(f"{'':<32}" + "".join(f"{name:>13}" for name in FIGURES))
    rows: dict[str, Tensor] = {"the class it overlaps most with": torch.empty(0)}
    for model in options.models:
        rows[model], rows["the class it overlaps most with"] = measured(model, options)
    for name, values in rows.items():
        print(f"{name:<32}" + "".join(f"{value:>13.3f}" for value in values.tolist()))


if __name__ == "__main__":
    main()
