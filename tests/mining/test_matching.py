"""A region for every noun, by a model that knows colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lexiseg.data.pairs import FILL, shown_part
from lexiseg.images import Photo
from lexiseg.mining.matching import Filters, Matched, Matcher, Words
from lexiseg.regions.crops import MaskedCrops
from lexiseg.system import System
from lexiseg.types import TextBank
from tests.colour_model import ColourMasks, ColourText, colour_model, verdict
from tests.mining.colour_photos import striped

NOUNS = {"red": 0, "blue": 1, "cloud": 0}


WORDS = ("red", "green", "blue", "cloud")


def words() -> Words:
    rows = torch.nn.functional.normalize(ColourText().encode(WORDS), dim=-1)[:, None]
    return Words(WORDS, TextBank(rows, rows, torch.arange(4), torch.zeros(4, dtype=torch.bool)))


def test_the_words_of_a_photo_are_classes_of_their_own() -> None:
    found = words().bank(("blue", "red"))
    assert found.region.argmax(-1).flatten().tolist() == [2, 0] and found.class_of.tolist() == [0, 1]
    assert found.own_class is None
    closed = Words(WORDS, replace(words().encoded, own_class=torch.tensor([0, 3])))
    assert closed.bank(("blue",)).own_class.tolist() == [1, 1]  # none of them


def matched(photo: np.ndarray, nouns: dict[str, int], filters: Filters | None = None) -> Matched:
    (found,) = Matcher(colour_model(), words(), filters or Filters())([("x", Photo(photo, "x"), nouns)])
    return found


def test_every_noun_gets_its_region() -> None:
    found = matched(striped("red", "blue", "blue"), NOUNS)
    red, blue, cloud = found.pairs
    assert [pair.word for pair in found.pairs] == ["red", "blue", "cloud"]
    assert [pair.caption for pair in found.pairs] == [0, 1, 0] and {pair.photo for pair in found.pairs} == {"x"}
    assert red.similarity > 0.99 and blue.similarity > 0.99 and cloud.similarity < 0.1
    assert red.area == pytest.approx(1 / 3, abs=0.05) and blue.area == pytest.approx(2 / 3, abs=0.05)
    region = found.regions[red.region]
    assert (region[shown_part(region)][:, 0] > 200).mean() > 0.9 and region.shape[0] == 53  # as large as on the canvas
    assert cloud.region in (red.region, blue.region) and len(found.regions) == 2
    assert not found.left_out


def test_what_is_left_out_is_counted() -> None:
    photo = striped("red", "blue", "blue")
    assert matched(photo, NOUNS, Filters(mutual=True)).left_out == {"region is more like another word": 1}
    assert [p.word for p in matched(photo, NOUNS, Filters(mutual=True)).pairs] == ["red", "blue"]
    small = matched(photo, NOUNS, Filters(min_area=0.5))
    assert [pair.word for pair in small.pairs if pair.word != "cloud"] == ["blue"]
    assert small.left_out["region too small"] >= 1
    large = matched(photo, {"red": 0, "blue": 0}, Filters(max_area=0.5))
    assert [pair.word for pair in large.pairs] == ["red"] and large.left_out == {"region too large": 1}
    grey = matched(np.full((40, 40, 3), 128, np.uint8), NOUNS)
    assert grey.pairs == () and grey.left_out == {"no region": 3}


class CropColour(torch.nn.Module):
    """A tower that tells the mean colour of what is shown."""

    embed_dim, image_size, mask_embedding = 4, 8, None

    def keep(self, masks: torch.Tensor) -> torch.Tensor:
        return masks

    def forward(self, pixels: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        shown = keep[:, None].float()
        mean = (pixels * shown).sum((2, 3)) / shown.sum((2, 3)).clamp(min=1)
        return torch.nn.functional.pad(mean + 2, (0, 1))


def test_crops_of_several_photos_are_read_together() -> None:
    model = colour_model()
    system = System(None, ColourMasks(), MaskedCrops(CropColour(), at_once=64), model.system.scorer, verdict)
    matcher = Matcher(replace(model, system=system), words(), Filters())
    photos = [
        (str(number), Photo(striped(*colours), str(number)), {"red": 0, "blue": 0})
        for number, colours in enumerate((("red", "blue"), ("blue", "red", "green"), ("green",)))
    ]
    together = list(matcher(photos))
    alone = [found for photo in photos for found in matcher([photo])]
    assert [found.pairs for found in together] == [found.pairs for found in alone]
    assert together[0].pairs[0].similarity > 0.9 and together[0].pairs[1].similarity > 0.9
    for one, other in zip(together, alone, strict=True):
        assert all(np.array_equal(region, other.regions[name]) for name, region in one.regions.items())


def test_the_background_has_its_colour() -> None:
    found = matched(striped("red", "blue", "red"), {"red": 0})
    region = found.regions[found.pairs[0].region]
    middle = region[:, region.shape[1] // 2]
    assert (middle == FILL).all() and found.pairs[0].area == pytest.approx(2 / 3, abs=0.06)
