"""One further than the six: the best combination of their parts, chosen on validation photos, called lexiseg-mini.

What a candidate may take from elsewhere: the trunk of a tuned model, whole or half-way between it and the base, which
may keep more of what the tuning forgets (weights averaged as in WiSE-FT, Wortsman et al. 2022); and MAFT+'s own
generator, which was tuned together with its tower. On the best of them Mask-Adapter is trained. All are fused as
FC-CLIP does. Among these and the six as they are, the best stays. Means over all seeds choose, so that it is one recipe
that wins and not one lucky run.

OUT/combined/NAME-SEED    one candidate: its model, and what was tried for it
OUT/choice.json           validation mIoU of all, and which was chosen
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from torch import Tensor

from lexiseg.miniature.tuning import (
    ASSEMBLED,
    MODEL,
    TRIED,
    Entrant,
    Start,
    assemble,
    is_assembled,
    measured_folder,
    training_folder,
    tune_mask_adapter,
)
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
class Candidate:
    """What judges masks, and who draws them."""

    name: str
    title: str
    tuned: str
    """The entrant that judges."""
    share: float = 1.0
    """Of its trunk; the rest is the base's."""
    whole: bool = True
    """Whether the model but for the trunk is the tuned one's too, as MAFT+ needs, or the base's."""
    draws: bool = False
    """Whether the masks are the tuned model's own, not the base's."""

    def folder(self, start: Start, out: Path) -> Path:
        """Of all that is made for it."""
        return out / COMBINED / f"{self.name}-{start.seed}"

    def is_tried(self, start: Start, out: Path) -> bool:
        """Whether all that is made for it is there."""
        return is_assembled(self.folder(start, out))

    def classifier(self, start: Start, out: Path) -> Path:
        """The folder of what judges; trunks are mixed on first use."""
        tuned = tuned_model(self.tuned, start, out)
        if self.share == 1 and self.whole:
            return tuned
        mixed = self.folder(start, out) / MODEL
        return mixed if (mixed / SETTINGS_FILE).is_file() else blend(start.base, tuned, self, mixed)


CANDIDATES = (
    Candidate("maftplus-draws", "MAFT+ with its own masks", "maftplus", draws=True),
    Candidate("maftplus-half", "MAFT+, half-way from the base", "maftplus", share=0.5),
    Candidate("maskclip-pp-tower", "MaskCLIP++'s tower in the base", "maskclip-pp", whole=False),
    Candidate("maskclip-pp-half", "the same, half-way from the base", "maskclip-pp", share=0.5, whole=False),
)
ADAPTED = "adapted"


def tuned_model(name: str, start: Start, out: Path) -> Path:
    """The folder of an entrant's model of this seed; the base's where it is not trained."""
    folder = training_folder(name, start.seed, out) / MODEL
    return folder if (folder / SETTINGS_FILE).is_file() else start.base


def try_candidate(candidate: Candidate, start: Start, out: Path, photos: int) -> bool:
    """A candidate with the measures that are taken of it; see `tuning.assemble`."""
    classifier = candidate.classifier(start, out)
    measure(candidate, classifier, start, out, photos)
    return True


def measure(candidate: Candidate, classifier: Path, start: Start, out: Path, photos: int) -> None:
    """Sets a classifier behind the candidate's generator, which with `draws` is the classifier's own."""
    generator = classifier if candidate.draws else start.base
    assemble(start, classifier, candidate.folder(start, out), photos, generator)


def blend(base: Path, tuned: Path, candidate: Candidate, folder: Path) -> Path:
    """A model folder with a mean of two trunks."""
    host, settings = load(tuned if candidate.whole else base), settings_of(tuned if candidate.whole else base)
    state: dict[str, Tensor] = dict(host.system.state_dict())
    first, second = (trunk_of(load(model).system.state_dict()) for model in (base, tuned))
    for name, weight in first.items():
        state[TRUNK + name] = weight.lerp(second[name], candidate.share) if weight.is_floating_point() else second[name]
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
        card={"title": candidate.title},
    )


def trunk_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By names without the place at which a model keeps it."""
    for place in TRUNKS:
        found = {name.removeprefix(place): weight for name, weight in state.items() if name.startswith(place)}
        if found:
            return found
    raise ValueError(f"a model without a trunk at {' or '.join(TRUNKS)}")


def best_candidate(entrants: Sequence[Entrant], out: Path, seeds: int) -> Candidate:
    """On which an adapter is tried: the best that has none."""
    plain = tuple(Candidate(name, titles(entrants)[name], name) for name in ("fcclip", "maftplus"))
    return max((*CANDIDATES, *plain), key=lambda one: fmean(validated(one.name, out, seeds)))


def try_adapter(below: Candidate, start: Start, out: Path, photos: int) -> bool:
    """Mask-Adapter on a candidate, likewise; whether its training is complete."""
    candidate = adapted(below)
    tuned = candidate.folder(start, out) / MODEL
    if not (tuned / SETTINGS_FILE).is_file() and not tune_mask_adapter(
        start, tuned.parent, below.classifier(start, out)
    ):
        return False
    measure(candidate, tuned, start, out, photos)
    return True


def adapted(below: Candidate) -> Candidate:
    """The same with an adapter on it."""
    return replace(below, name=ADAPTED)


def validated(name: str, out: Path, seeds: int) -> list[float]:
    """The validation mIoU of a candidate or an entrant, percent, with the best weight tried, of every seed it has."""
    found = []
    for seed in range(seeds):
        for place in (COMBINED, ASSEMBLED):
            tried = out / place / f"{name}-{seed}" / TRIED
            if tried.is_file():
                found.append(max(json.loads(tried.read_text(encoding="utf-8"))["validation mIoU"].values()))
    return found


def choose(below: Candidate, entrants: Sequence[Entrant], out: Path, seeds: int) -> None:
    """Writes choice.json: what was tried, and the best of it. Once chosen, it stays."""
    if (out / CHOICE).is_file():
        return
    candidates = titles(entrants) | {ADAPTED: f"Mask-Adapter on: {below.title}"}
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
    return systems | {candidate.name: candidate.title for candidate in CANDIDATES}


def take_chosen(start: Start, out: Path) -> Path:
    """The chosen model of this seed or, where there is one only, of the first, as the one that is measured."""
    chosen = json.loads((out / CHOICE).read_text(encoding="utf-8"))["chosen"]
    folders = (out / place / f"{chosen}-{seed}" for seed in (start.seed, 0) for place in (COMBINED, ASSEMBLED))
    found = next(folder for folder in folders if is_assembled(folder))
    measured = measured_folder(LEXISEG_MINI.name, start.seed, out)
    shutil.copytree(found / found.name, measured, dirs_exist_ok=True)
    return measured


LEXISEG_MINI = Entrant("lexiseg-mini", "lexiseg-mini", ready=take_chosen)
