"""What all systems of the miniature benchmark start from: a tower and a generator that never saw the hidden classes.

The recipes of the embedded model on the material of `miniature.material`, shorter. The words are read by the embedded
text tower, which was made without photos.
"""

from __future__ import annotations

from pathlib import Path

from lexiseg.miniature.material import HIDDEN
from lexiseg.train.lexicon import load_lexicon
from lexiseg.train.recipes import tiny_generator, tiny_text, tiny_tower
from lexiseg.train.recipes.embedded import CANVAS, OUTPUTS
from lexiseg.train.recipes.tiny_clip import CONFIG, averaged_weights
from lexiseg.zoo.loading import load
from lexiseg.zoo.model_folder import save_model_folder

WORDS_OF = "street-tiny"
"""The embedded model whose text tower is used."""
WEIGHT = 0.5
"""Of CLIP's verdict against the generator's, as in the embedded model."""


def train(
    material: Path, out: Path, *, tower_steps: int, generator_steps: int, processes: int, deadline: float | None
) -> bool:
    """Train, or go on training, in `out`; whether out/model, an FC-CLIP model, is complete."""
    names = out / "names"
    if not (names / "names.json").is_file():
        tiny_text.write_names(load(WORDS_OF).text_encoder(), names)
    tower, generator = out / "tower", out / "generator"
    complete = tiny_tower.train(
        material, tower, names, steps=tower_steps, processes=processes, deadline=deadline
    ) and tiny_generator.train(
        material, generator, tower, names, steps=generator_steps, processes=processes, deadline=deadline
    )
    if complete and not (out / "model" / "lexiseg.json").is_file():
        assemble(tower, generator, out / "model")
    return complete


def assemble(tower: Path, generator: Path, folder: Path) -> Path:
    """The model folder, from the runs of its parts."""
    lexicon = load_lexicon()
    hidden = {name for concept in HIDDEN for name in lexicon.concepts[concept].names}
    return save_model_folder(
        folder,
        tiny_generator.build(tower, averaged_weights(generator)),
        load(WORDS_OF).text_encoder(),
        builder="fcclip",
        arguments={"tower": CONFIG, "alpha": WEIGHT, "beta": WEIGHT, **tiny_generator.SIZES},
        templates=tiny_text.TEMPLATE_SET,
        canvas=CANVAS,
        outputs=OUTPUTS,
        training_phrases=[name for name in lexicon.training_names() if name not in hidden],
        card={"title": "FC-CLIP in miniature", "hidden": list(HIDDEN)},
    )
