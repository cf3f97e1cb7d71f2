"""Memory is flat in the vocabulary: many words on a large photo, and the same answer as without blocks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from lexiseg.images import read_image
from lexiseg.postprocess import Frame, semantic_scores
from lexiseg.segmenter import Segmenter
from lexiseg.vocabulary import Vocabulary

REPOSITORY = Path(__file__).resolve().parent.parent
WORDS = [f"object number {number}" for number in range(843)] + ["sky", "tree", "building", "water"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its Python does not tell the peak memory")
@pytest.mark.usefixtures("street_tiny")
def test_847_words_on_12_megapixels() -> None:
    program = REPOSITORY / "benchmarks" / "vocabulary_memory.py"
    command = [sys.executable, str(program), "--one", "847", "4000", "3000"]
    environment = {**os.environ, "LEXISEG_CACHE": "off"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1])["peak_mb"] < 3000


def test_blocks_change_no_label(street_tiny: Path, china_photo: Path) -> None:
    segmenter = Segmenter.from_pretrained(street_tiny, device="cpu")
    photo = read_image(Image.open(china_photo).resize((240, 160)))
    labels = torch.from_numpy(segmenter(photo, WORDS).label_map)
    vocabulary = Vocabulary.parse(WORDS)
    bank = segmenter.model.text_bank(vocabulary)
    images = segmenter.model.canvas([photo])
    with torch.inference_mode():
        proposals, scores = segmenter.model.system(images, bank)
        frame = Frame(images.canvas_hw, images.sizes_hw[0], images.original_hw[0])
        whole = semantic_scores(proposals.mask_logits[0], scores.class_probs[0], frame)  # [847, H, W]
    top = whole.topk(2, dim=0).values
    clear = top[0] - top[1] > 1e-6 * top[0]  # ties within rounding may fall either way
    assert len(vocabulary) == 847
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear].long(), whole.argmax(0)[clear])
