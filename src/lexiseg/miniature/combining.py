"""One further than the six: the best combination of their parts, chosen on validation photos, called lexiseg-mini.

The tower comes from the base, from MAFT+ or from MaskCLIP++, or lies half-way between the base and a tuned one, which
may keep more of what the tuning forgets (weights averaged as in WiSE-FT, Wortsman et al. 2022). On the best of them
Mask-Adapter is trained. Among these and the six as they are, the best stays. Means over all seeds choose, so that it is
one recipe that wins and not one lucky run.

OUT/combined/NAME-SEED    one candidate: its model, and what was tried for it
OUT/choice.json           validation mIoU of all, and which was chosen
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from lexiseg.miniature.tuning import MODEL, TRIED, Entrant, Start, assemble, tune_mask_adapter
from lexiseg.weights.files import replacing
from lexiseg.zoo.loading import load, settings_of
from lexiseg.zoo.model_folder import SETTINGS_FILE, save_model_folder

CHOICE = "choice.json"
COMBINED = "combined"
TRUNK = "encoder.trunk."
"""Where FC-CLIP and MAFT+ keep the tower's trunk."""
TRUNKS = (TRUNK, "embedder.trunk.trunk.")
"""The same, or where a classifier alone keeps it."""


@dataclass(frozen=True)
class Tower:
    """A candidate."""

    name: str
    title: str
    tuned: str
    """The entrant its trunk is from."""
    share: float
    """Of the tuned weights; the rest is the base's."""
    whole: bool
    """Whether the rest of the model is the tuned one's too, as MAFT+ needs, or the base's."""


TOWERS = (
    Tower("maftplus-half", "MAFT+, half-way from the base", "maftplus", 0.5, whole=True),
    Tower("maskclip-pp-tower", "MaskCLIP++'s tower, photos as small as the base's", "maskclip-pp", 1.0, whole=False),
    Tower("maskclip-pp-half", "the same, half-way from the base", "maskclip-pp", 0.5, whole=False),
)
PLAIN = ("fcclip", "maftplus")
"""Entrants that an adapter may stand on as they are."""
ADAPTED = "adapted"


def try_tower(tower: Tower, start: Start, out: Path, photos: int) -> bool:
    """A candidate with the measures that are taken of it; see `tuning.assemble`."""
    folder = out / COMBINED / f"{tower.name}-{start.seed}"
    if not (folder / MODEL / SETTINGS_FILE).is_file():
        blend(start.base, out / "tuned" / f"{tower.tuned}-{start.seed}" / MODEL, tower, folder / MODEL)
    assemble(start, folder / MODEL, folder, photos)
    return True


def blend(base: Path, tuned: Path, tower: Tower, folder: Path) -> Path:
    """A model folder with a mean of two trunks."""
    host, settings = load(tuned if tower.whole else base), settings_of(tuned if tower.whole else base)
    state: dict[str, Tensor] = dict(host.system.state_dict())
    first, second = (trunk_of(load(model).system.state_dict()) for model in (base, tuned))
    for name, weight in first.items():
        state[TRUNK + name] = weight.lerp(second[name], tower.share) if weight.is_floating_point() else second[name]
    return save_model_folder(
        folder,
        state,
        host.text_encoder(),
        builder=settings.builder,
        arguments=settings.arguments,
        templates=list(host.templates),
        canvas=host.canvas,
        outputs=host.outputs,
        training_phrases=host.training_phrases,
        card={"title": tower.title},
    )


def trunk_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By names without the place at which a model keeps it."""
    for place in TRUNKS:
        found = {name.removeprefix(place): weight for name, weight in state.items() if name.startswith(place)}
        if found:
            return found
    raise ValueError(f"a model without a trunk at {' or '.join(TRUNKS)}")


def best_tower(out: Path, seeds: int) -> str:
    return max((*(tower.name for tower in TOWERS), *PLAIN), key=lambda name: fmean(validated(name, out, seeds)))


def try_adapter(name: str, start: Start, out: Path, photos: int) -> bool:
    """Mask-Adapter on the tower `name`, likewise; whether its training is complete."""
    folder = out / COMBINED / f"{ADAPTED}-{start.seed}"
    below = next(
        model
        for model in (out / place / f"{name}-{start.seed}" / MODEL for place in (COMBINED, "tuned"))
        if (model / SETTINGS_FILE).is_file()
    )
    if not (folder / MODEL / SETTINGS_FILE).is_file() and not tune_mask_adapter(start, folder, below):
        return False
    assemble(start, folder / MODEL, folder, photos)
    return True


def validated(name: str, out: Path, seeds: int) -> list[float]:
    """The validation mIoU of a candidate or an entrant, percent, with the best weight tried, of every seed it has."""
    found = []
    for seed in range(seeds):
        for place in (COMBINED, "systems"):
            tried = out / place / f"{name}-{seed}" / TRIED
            if tried.is_file():
                found.append(max(json.loads(tried.read_text(encoding="utf-8"))["validation mIoU"].values()))
    return found


def choose(tower: str, entrants: Sequence[Entrant], out: Path, seeds: int) -> None:
    """Writes choice.json: what was tried, and the best of it. Once chosen, it stays."""
    if (out / CHOICE).is_file():
        return
    candidates = titles(entrants) | {ADAPTED: f"Mask-Adapter on: {titles(entrants)[tower]}"}
    of_seeds = {name: validated(name, out, seeds) for name in candidates}
    tried = {name: round(fmean(numbers), 2) for name, numbers in of_seeds.items() if numbers}
    chosen = max(tried, key=tried.__getitem__)
    content = {
        "chosen": chosen,
        "title": candidates[chosen],
        "tried": [{"title": candidates[name], "mean": tried[name], "of_seeds": of_seeds[name]} for name in tried],
    }
    with replacing(out / CHOICE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def titles(entrants: Sequence[Entrant]) -> dict[str, str]:
    """Of all that can be chosen but for the adapter."""
    systems = {entrant.name: entrant.title for entrant in entrants if entrant.variant_of is None}
    return systems | {tower.name: tower.title for tower in TOWERS}


def take_chosen(start: Start, out: Path) -> bool:
    """The classifier of the chosen candidate, of this seed or, where that has one only, of the first."""
    root = out.parent.parent
    chosen = json.loads((root / CHOICE).read_text(encoding="utf-8"))["chosen"]
    for seed in (start.seed, 0):
        for folder in (root / COMBINED / f"{chosen}-{seed}", root / "tuned" / f"{chosen}-{seed}"):
            if (folder / MODEL / SETTINGS_FILE).is_file():
                shutil.copytree(folder / MODEL, out / MODEL, dirs_exist_ok=True)
                return True
    shutil.copytree(start.base, out / MODEL, dirs_exist_ok=True)
    return True


LEXISEG_MINI = Entrant("lexiseg-mini", "lexiseg-mini", take_chosen)
