"""Distilling the text tower."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lexiseg.clip.open_clip import build_text_encoder
from lexiseg.train.lexicon import load_lexicon
from lexiseg.train.loop import RunState, run
from lexiseg.train.recipes import tiny_text
from lexiseg.train.recipes.tiny_clip import CONFIG
from lexiseg.train.recipes.tiny_text import (
    Distillation,
    encode_names,
    lean_on_relatives,
    noun_phrases,
    towards_concepts,
    whitening,
)


def test_whitening_evens_out_the_axes() -> None:
    torch.manual_seed(0)
    vectors = torch.randn(2000, 8) * torch.tensor([8.0, 4, 2, 1, 1, 1, 0.5, 0.5]) + 3
    rows = whitening(vectors, 6)(vectors)
    assert rows.shape == (2000, 6)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2000))
    spread = rows.std(0)
    assert spread.max() / spread.min() < 5  # 16 before; a quarter power leaves its root


def test_words_are_drawn_to_what_they_resemble() -> None:
    centres = torch.eye(3)[:2]
    near = F.normalize(torch.tensor([[0.6, 0.2, 0.8]]), dim=-1)
    far = torch.tensor([[0.0, 0.1, 1.0]])
    placed = towards_concepts(torch.cat([near, F.normalize(far, dim=-1)]), centres)
    torch.testing.assert_close(placed.norm(dim=-1), torch.ones(2))
    assert placed[0, 0] > 0.85
    assert placed[0, 1] < near[0, 1]  # the nearest concept, not all of them
    torch.testing.assert_close(placed[1:], F.normalize(far, dim=-1))


def test_nouns_come_with_timm() -> None:
    nouns = noun_phrases()
    assert {"lamppost", "bookcase", "street sign"} <= set(nouns)
    assert all(noun == noun.lower() for noun in nouns)


def test_distillation_moves_names_to_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    small = {**CONFIG, "embed_dim": 8, "text_cfg": {**CONFIG["text_cfg"], "width": 16, "heads": 2, "layers": 1}}
    monkeypatch.setattr(tiny_text, "CONFIG", small)
    phrases = ["sky", "road", "a tall tree", "window"]
    rows = F.normalize(torch.randn(4, 8), dim=-1)
    tower = build_text_encoder(small, device="cpu").train()
    stage = Distillation(tower, phrases, rows, lexicon_count=2, batch=16)
    state = RunState(tower, torch.optim.AdamW(tower.parameters()))
    before = float(stage(0, random.Random(0))[1]["cosine"])
    run(stage, state, 40, tmp_path, learning_rate=1e-2, warmup=2, average_decay=0.9)
    assert float(stage(0, random.Random(0))[1]["cosine"]) > max(0.6, before)
    folder = tiny_text.write_names(tiny_text.trained_tower(tmp_path), tmp_path / "names")
    names = json.loads((folder / "names.json").read_text())
    vectors = load_file(folder / "names.safetensors")["vectors"]
    assert vectors.shape == (len(names), 8)
    tower.load_state_dict(state.averaged)
    torch.testing.assert_close(vectors[names.index("sky")], encode_names(tower, ["sky"])[0])


def test_words_no_photo_shows_lean_on_the_few_that_photos_do() -> None:
    lexicon = load_lexicon()
    members, count = {}, 0
    for key, concept in lexicon.concepts.items():
        members[key] = list(range(count, count + len(concept.names)))
        count += len(concept.names)
    placed = F.normalize(torch.randn(count, 256, generator=torch.Generator().manual_seed(0)), dim=-1)
    before = placed.clone()
    lean_on_relatives(placed, members, lexicon)
    assert set(lexicon.relatives("lake")) == {"water", "sea", "river"}
    water = F.normalize(before[members["water"]].mean(0), dim=-1)
    lake = members["lake"]
    assert (placed[lake] @ water).min() > (before[lake] @ water).max() + 0.1
    torch.testing.assert_close(placed.norm(dim=-1), torch.ones(count))
    shown = [row for key, rows in members.items() if key not in lexicon.without_photos for row in rows]
    assert torch.equal(placed[shown], before[shown])
    assert torch.equal(placed[members["wheelchair"]], before[members["wheelchair"]])  # no relatives
