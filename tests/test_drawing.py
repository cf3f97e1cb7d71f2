"""Colours that stay apart, and words where they belong."""

import numpy as np
import pytest
from PIL import Image

from lexiseg.drawing import Patch, _apart, _paper_and_ink, class_colors, overlay, shade
from lexiseg.vocabulary import Vocabulary, VocabularyClass


def vocabulary(count: int, **own: tuple[int, int, int]) -> Vocabulary:
    return Vocabulary(tuple(VocabularyClass((f"w{i}",), color=own.get(f"w{i}")) for i in range(count)))


def nearest(colors: list[tuple[int, int, int]]) -> float:
    lab = _apart(np.array(colors, np.uint8))
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    return float((distance + 9 * np.eye(len(lab))).min())


def photo(height: int, width: int, value: int | None = None) -> np.ndarray:
    if value is not None:
        return np.full((height, width, 3), value, np.uint8)
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def changed_beyond_tint(plain: Image.Image, named: Image.Image) -> np.ndarray:
    """bool [H, W]: where the words are."""
    return (np.array(plain) != np.array(named)).any(-1)


def test_colours_are_the_same_every_time_and_stay_apart() -> None:
    few, many = class_colors(vocabulary(12)), class_colors(vocabulary(40))
    assert few == many[:12]
    # A just noticeable difference is about 0.02 here.
    assert nearest(list(few)) > 0.1
    assert nearest(list(many)) > 0.05


def test_own_colours_are_kept_and_avoided() -> None:
    blue = class_colors(vocabulary(1))[0]
    colors = class_colors(vocabulary(8, w3=blue, w5=(255, 255, 255)))
    assert colors[3] == blue
    assert colors[5] == (255, 255, 255)
    assert nearest([color for i, color in enumerate(colors) if i != 5]) > 0.08


def test_more_classes_than_colours() -> None:
    colors = class_colors(vocabulary(900))
    assert len(colors) == 900
    assert len(set(colors[:512])) == 512


def test_shades_of_one_class_differ() -> None:
    color = class_colors(vocabulary(1))[0]
    shades = [shade(color, number) for number in range(6)]
    assert all(abs(a - b) <= 1 for a, b in zip(shades[0], color, strict=True))
    assert nearest(shades) > 0.02


def test_text_contrast() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        c = np.array(color) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    for color in class_colors(vocabulary(200)):
        paper, ink = _paper_and_ink(color)
        low, high = sorted((luminance(paper), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # the accessibility guidelines' limit for small text


def test_the_photo_stays_visible_and_untouched_outside() -> None:
    rgb = photo(400, 600)
    values = np.zeros((400, 600), np.int32)
    values[100:300, 100:300] = 1
    drawn = np.array(overlay(rgb, values, [Patch(1, (255, 0, 0))]))
    assert np.array_equal(drawn[values == 0], rgb[values == 0])
    inner = (slice(110, 290), slice(110, 290))
    assert np.corrcoef(drawn[inner][..., 1].ravel(), rgb[inner][..., 1].ravel())[0, 1] > 0.99
    assert drawn[inner][..., 0].mean() > rgb[inner][..., 0].mean() + 40


def test_a_word_is_placed_inside_its_region() -> None:
    rgb = photo(480, 640, 90)
    values = np.zeros((480, 640), np.int32)
    # An L, whose box has its middle outside.
    values[40:440, 40:140] = 1
    values[340:440, 40:600] = 1
    plain = overlay(rgb, values, [Patch(1, (40, 90, 200))])
    named = overlay(rgb, values, [Patch(1, (40, 90, 200), "car")])
    where = changed_beyond_tint(plain, named)
    assert where.sum() > 300
    assert (values[where] == 1).all()


def test_words_do_not_lie_on_each_other() -> None:
    rgb = photo(480, 640, 90)
    values = np.zeros((480, 640), np.int32)
    for i in range(30):
        values[200 + 6 * (i // 10) :, 40 * (i % 10) : 40 * (i % 10) + 40] = i + 1
    alone = [Patch(i + 1, (200, 60, 60), f"name {i}") for i in range(30)]
    plain = overlay(rgb, values, [Patch(p.value, p.color) for p in alone])
    together = changed_beyond_tint(plain, overlay(rgb, values, alone))
    pieces = 0
    for patch in alone:
        others = [p if p is patch else Patch(p.value, p.color) for p in alone]
        pieces += int(changed_beyond_tint(plain, overlay(rgb, values, others)).any())
    assert together.any()
    assert pieces >= 1


def test_specks_are_not_buried_under_words() -> None:
    values = np.zeros((480, 640), np.int32)
    values[100:103, 100:104] = 1
    patches = [Patch(1, (40, 90, 200), "a very long name")]
    named = overlay(photo(480, 640), values, patches)
    plain = overlay(photo(480, 640), values, [Patch(1, (40, 90, 200))])
    assert not changed_beyond_tint(plain, named).any()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 900), (7, 5), (100, 120), (900, 40), (1500, 2000)])
def test_every_size_works(size_hw: tuple[int, int]) -> None:
    values = np.ones(size_hw, np.int32)
    values[: size_hw[0] // 2] = 2
    patches = [Patch(1, (40, 90, 200), "sky"), Patch(2, (200, 90, 20), "élan vital"), Patch(7, (0, 0, 0), "absent")]
    drawn = overlay(photo(*size_hw), values, patches)
    times = drawn.height // size_hw[0]
    assert drawn.size == (size_hw[1] * times, size_hw[0] * times)
    if size_hw == (100, 120):
        assert times > 1  # words need room


def test_nothing_to_draw() -> None:
    rgb = photo(400, 700)
    assert np.array_equal(np.array(overlay(rgb, np.zeros((400, 700), np.int32), [])), rgb)


def test_very_large_photos_are_drawn_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexiseg.drawing._MOST_PIXELS", 500_000)
    rgb = np.zeros((901, 1201, 3), np.uint8)
    rgb[:, 600:] = (0, 200, 0)
    values = np.zeros((901, 1201), np.uint8)
    values[:, 600:] = 1
    picture = np.asarray(overlay(rgb, values, [Patch(1, (255, 0, 0))], opacity=0.5))
    assert picture.shape == (450, 600, 3)
    assert (picture[:, :299] == 0).all()
    assert (picture[200, 310:590] == (127, 100, 0)).all()
