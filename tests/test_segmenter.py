"""The front door, on a model that knows three colours."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lexiseg.images import ImageError, ImageLimits, read_image
from lexiseg.results import Result
from lexiseg.segmenter import Segmenter, naming_system, pick_device
from lexiseg.vocabulary import Vocabulary, VocabularyClass, VocabularyError
from lexiseg.zoo.model_folder import GeneratorText
from tests.colour_model import ColourText, colour_model

WORDS = "red, green | grass, blue"


def three_colours(height: int = 60, width: int = 90) -> np.ndarray:
    """Red, green and blue thirds, side by side."""
    rgb = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        rgb[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 200
    return rgb


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(colour_model(), device="cpu")


def test_semantic(segmenter: Segmenter) -> None:
    result = segmenter(three_colours(), WORDS)
    assert isinstance(result, Result)
    assert result.label_map.shape == (60, 90)
    assert (result.label_map[:, 15], result.label_map[:, 45], result.label_map[:, 75]) == (
        pytest.approx(0),
        pytest.approx(1),
        pytest.approx(2),
    )
    assert [segment.label for segment in sorted(result.segments, key=lambda s: s.label_index)] == [
        "red",
        "green",
        "blue",
    ]
    assert all(0.2 < segment.share < 0.45 for segment in result.segments)
    assert result.model == "colours"


def test_several_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirror image is turned back: the colours are where they were."""
    monkeypatch.setattr("lexiseg.images.LOOKS", (48, 96))
    segmenter = Segmenter(colour_model(), "cpu", augmented=True)
    result = segmenter(three_colours(), WORDS)
    assert [int(result.label_map[30, x]) for x in (15, 45, 75)] == [0, 1, 2]
    found = segmenter.predict(three_colours(), WORDS, ["semantic"])["semantic"]
    assert np.array_equal(found.labels.numpy(), result.label_map)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="only the semantic task"):
        segmenter(three_colours(), WORDS, "panoptic")
    model = colour_model()
    with pytest.raises(ValueError, match="leaves pixels out"):
        partial = replace(model, outputs=model.outputs.model_copy(update={"least_cover": 0.1}))
        Segmenter(partial, "cpu", augmented=True)


def test_the_order_of_words_decides_the_indices(segmenter: Segmenter) -> None:
    result = segmenter(three_colours(), ["blue", "red"])
    assert result.label_map[0, 15] == 1
    assert result.label_map[0, 75] == 0
    assert result.words == ("blue", "red")


def test_panoptic_and_instance(segmenter: Segmenter) -> None:
    panoptic = segmenter(three_colours(), WORDS, task="panoptic")
    assert panoptic.task == "panoptic"
    assert [segment.id for segment in panoptic.segments] == [1, 2, 3]
    assert sorted(segment.label for segment in panoptic.segments) == ["blue", "green", "red"]
    instance = segmenter(three_colours(), WORDS, task="instance")
    assert sorted(segment.label for segment in instance.segments) == ["blue", "green", "red"]
    scores = [segment.score for segment in instance.segments]
    assert scores == sorted(scores, reverse=True)
    everything = segmenter(three_colours(), WORDS, task="instance", min_score=0)
    assert len(everything.segments) == 9
    stuff = Vocabulary((VocabularyClass(("red",)), VocabularyClass(("blue",), is_thing=False)))
    assert {s.label for s in segmenter(three_colours(), stuff, task="instance", min_score=0).segments} == {"red"}


def test_portrait_landscape_and_tiny_photos_come_back_at_their_own_size(segmenter: Segmenter) -> None:
    for size in ((1, 1), (2, 300), (300, 2), (97, 61), (61, 97), (400, 900)):
        for task in ("semantic", "panoptic", "instance"):
            result = segmenter(three_colours(*size), WORDS, task=task)
            assert result.label_map.shape == size
            result.overlay()


def test_one_gives_one_and_many_give_a_list(segmenter: Segmenter, tmp_path: Path) -> None:
    rgb = three_colours()
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    for one in (path, str(path), Image.open(path), rgb, tensor, path.read_bytes(), read_image(path)):
        assert isinstance(segmenter(one, WORDS), Result)
    for many in ([path, rgb], (p for p in (path, path)), torch.stack([tensor, tensor]), np.stack([rgb, rgb])):
        results = segmenter(many, WORDS)
        assert [result.label_map.shape for result in results] == [(60, 90)] * 2
    assert segmenter([], WORDS) == []
    assert segmenter(path, WORDS).photo == str(path)
    assert [r.photo for r in segmenter([path, rgb, Image.fromarray(rgb)], WORDS)] == [str(path), "image 2", "image 3"]


def test_a_bad_picture_raises_in_a_call_and_is_reported_in_a_stream(segmenter: Segmenter, tmp_path: Path) -> None:
    good = three_colours()
    bad = tmp_path / "no.jpg"
    with pytest.raises(ImageError, match="no such file"):
        segmenter(bad, WORDS)
    with pytest.raises(ImageError, match="no such file"):
        segmenter([good, bad], WORDS)
    outcomes = list(segmenter.stream([good, bad, np.zeros((2, 2, 9), np.uint8), good], WORDS))
    assert [type(outcome) for _, outcome in outcomes] == [Result, ImageError, ImageError, Result]
    assert outcomes[1][0] is bad
    assert str(outcomes[2][1]).startswith("image 3: has the shape")


def test_streams_are_lazy(segmenter: Segmenter) -> None:
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield three_colours()

    stream = segmenter.stream(endless(), WORDS)
    assert taken == []
    next(stream)
    next(stream)
    assert len(taken) == 2


def test_memory_trouble_with_one_photo_does_not_stop_the_rest(
    segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = segmenter.model.system.forward

    def tight(images, text):
        if images.original_hw[0] == (70, 70):
            raise torch.OutOfMemoryError("no")
        return original(images, text)

    monkeypatch.setattr(segmenter.model.system, "forward", tight)
    photos = [three_colours(), three_colours(70, 70), three_colours()]
    outcomes = [outcome for _, outcome in segmenter.stream(photos, WORDS)]
    assert [type(outcome) for outcome in outcomes] == [Result, ImageError, Result]
    assert "does not fit into memory" in str(outcomes[1])


def test_words_are_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path))
    model = colour_model("once")
    segmenter = Segmenter(model, "cpu")
    segmenter([three_colours()] * 3, WORDS)
    segmenter(three_colours(), WORDS)
    assert sorted(model.text_encoder().prompts) == ["blue", "grass", "green", "red"]
    again = colour_model("once")
    Segmenter(again, "cpu")(three_colours(), "green, red")
    assert again.text_encoder().prompts == []  # from the disk


class OtherText(ColourText):
    """The tower of another CLIP."""

    def encode(self, prompts: Sequence[str]) -> torch.Tensor:
        return super().encode(prompts).flip(-1)


def test_a_generator_may_read_the_words_of_another_clip(segmenter: Segmenter) -> None:
    text = OtherText()
    query = GeneratorText(lambda: text, "other tower", ("a {}", "{}."))
    both = Segmenter(replace(colour_model(), query=query), "cpu")
    read = []
    both.model.system.generator.register_forward_hook(lambda module, given, out: read.append(given[2]))
    result = both(three_colours(), WORDS)
    assert text.prompts[:2] == ["a red", "red."]
    torch.testing.assert_close(read[0].query, read[0].region.flip(-1))
    assert np.array_equal(result.label_map, segmenter(three_colours(), WORDS).label_map)  # regions read their own


def test_background(segmenter: Segmenter) -> None:
    result = segmenter(three_colours(), "red", background=True)
    assert result.words == ("red", "background")
    assert result.label_map[0, 15] == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "empty"),
        ([], "no classes"),
        (["red", " "], "empty"),
        ("red, red", "red"),
        (["a" * 5000], "a phrase has at most"),
        (7, "list of classes"),
        ("no-such-file.yaml", "no such file"),
    ],
)
def test_bad_words_are_told_before_any_picture_is_read(segmenter: Segmenter, words: object, expected: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        segmenter.stream(iter(["never read"]), words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def thirds(height: int = 60, width: int = 90) -> np.ndarray:
    """A label map of the three colours with a frame around each: 10 red, 20 green, 30 blue, 0 between them."""
    labels = np.zeros((height, width), np.uint8)
    for number in range(3):
        labels[5:-5, number * width // 3 + 3 : (number + 1) * width // 3 - 3] = 10 * (number + 1)
    return labels


def test_given_masks_come_back_as_they_are_and_are_named(segmenter: Segmenter) -> None:
    labels = thirds()
    expected = {10: "red", 20: "green", 30: "blue"}
    for task in ("instance", "panoptic"):
        result = segmenter(three_colours(), WORDS, task=task, masks=labels)
        assert {segment.mask_id: segment.label for segment in result.segments} == expected
        for segment in result.segments:
            assert np.array_equal(segment.mask, labels == segment.mask_id)
            assert segment.score > 0.9
    semantic = segmenter(three_colours(), WORDS, masks=labels)
    assert np.array_equal(semantic.label_map, labels.astype(int) // 10 - 1)
    assert sum(semantic.shares.values()) == pytest.approx((labels > 0).mean())


def test_given_masks_on_photos_of_every_size(segmenter: Segmenter) -> None:
    """Larger and smaller than the canvas, and of other proportions: nothing is lost on the way there and back."""
    for size in ((400, 900), (24, 30), (300, 31), (97, 61)):
        labels = np.random.default_rng(1).integers(0, 9, (4, 5)).astype(np.uint8).repeat(size[0], 0).repeat(size[1], 1)
        labels = labels[::4, ::5]
        result = segmenter(three_colours(*size), WORDS, task="panoptic", masks=labels)
        assert {s.mask_id for s in result.segments} == set(np.unique(labels)) - {0}
        assert all(np.array_equal(segment.mask, labels == segment.mask_id) for segment in result.segments)


def test_overlapping_and_tiny_masks(segmenter: Segmenter) -> None:
    rgb = three_colours(600, 900)
    masks = np.zeros((3, 600, 900), bool)
    masks[0, :, :450] = True  # red, and some green
    masks[1, 100:200, 320:420] = True  # green, inside it
    masks[2, 7, 700] = True  # one blue pixel; the canvas is six times smaller
    instance = segmenter(rgb, WORDS, task="instance", masks=masks)
    assert {s.mask_id: (s.label, s.area) for s in instance.segments} == {
        1: ("red", 270_000),
        2: ("green", 10_000),
        3: ("blue", 1),
    }
    panoptic = segmenter(rgb, WORDS, task="panoptic", masks=masks)
    assert {s.mask_id: s.area for s in panoptic.segments} == {1: 260_000, 2: 10_000, 3: 1}
    assert segmenter(rgb, WORDS, task="semantic", masks=masks).label_map[7, 700] == 2


def test_every_given_mask_is_answered_whatever_its_score(segmenter: Segmenter) -> None:
    grey = np.full((60, 90, 3), 128, np.uint8)
    stuff = Vocabulary((VocabularyClass(("red",), is_thing=False), VocabularyClass(("blue",), is_thing=False)))
    result = segmenter(grey, stuff, task="instance", masks=thirds())
    assert [segment.mask_id for segment in result.segments] == [10, 20, 30]
    many = np.arange(60 * 90).reshape(60, 90) // 40  # more than a model's hundred instances, 0 is none
    assert len(segmenter(grey, WORDS, task="instance", masks=many).segments) == 134
    assert segmenter(grey, WORDS, task="instance", masks=thirds(), min_score=0.9).segments == ()


def test_masks_for_many_pictures(segmenter: Segmenter, tmp_path: Path) -> None:
    Image.fromarray(thirds()).save(tmp_path / "a.png")
    photos = [three_colours(), three_colours(30, 60)]
    masks = [tmp_path / "a.png", thirds(30, 60)]
    for many in (photos, iter(photos)):
        results = segmenter(many, WORDS, "instance", masks=masks)
        assert [len(result.segments) for result in results] == [3, 3]
    one = segmenter.stream(photos[0], WORDS, "instance", masks=masks[0])
    assert [len(result.segments) for _, result in one] == [3]
    four = [*photos, three_colours(50, 90), photos[0]]
    outcomes = [outcome for _, outcome in segmenter.stream(four, WORDS, masks=[*masks, thirds(), "no.png"])]
    assert [type(outcome) for outcome in outcomes] == [Result, Result, ImageError, ImageError]
    assert str(outcomes[2]).startswith("image 3: its masks have 90 x 60 pixels, the upright photo 90 x 50; give")
    assert str(outcomes[3]).startswith("image 4: its masks cannot be used: no.png: there is no such file")
    for wrong, expected in (
        (masks[:1], "there are 2 pictures, but masks for 1"),
        (iter(masks[:1]), "there are masks for 1 pictures only"),
        (masks[0], "a.png' is one file, but there are many pictures"),
    ):
        with pytest.raises(ValueError, match=expected):
            segmenter(photos, WORDS, masks=wrong)
    with pytest.raises(ImageError, match="NoneType object: is no masks"):
        segmenter(photos, WORDS, masks=[masks[0], None])


def test_a_model_without_masks_of_its_own_asks_for_them(segmenter: Segmenter) -> None:
    alone = Segmenter(replace(colour_model(), system=naming_system(colour_model().system)), "cpu")
    with pytest.raises(ValueError, match=r"colours draws no masks of its own: give the photos' masks"):
        alone(three_colours(), WORDS)
    same, result = (model(three_colours(), WORDS, "panoptic", masks=thirds()) for model in (segmenter, alone))
    assert np.array_equal(same.label_map, result.label_map)


def test_other_mistakes(segmenter: Segmenter) -> None:
    with pytest.raises(ValueError, match="choose one of semantic, panoptic, instance"):
        segmenter(three_colours(), WORDS, task="things")
    with pytest.raises(ValueError, match="between 0 and 1"):
        segmenter(three_colours(), WORDS, min_score=40)
    sky = Vocabulary((VocabularyClass(("sky",), is_thing=False),))
    with pytest.raises(ValueError, match="is stuff"):
        segmenter(three_colours(), sky, task="instance")
    with pytest.raises(ImageError, match="raise max_pixels"):
        Segmenter(colour_model(), "cpu", ImageLimits(max_pixels=99))(three_colours(), WORDS)
    with pytest.raises(ValueError, match="no model or folder"):
        Segmenter.from_pretrained("street-teeny")


def test_devices(segmenter: Segmenter) -> None:
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    assert pick_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(ValueError, match="no device is called 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="use cpu or auto"):
            pick_device("cuda")
    assert segmenter.to("cpu") is segmenter
    assert segmenter(three_colours(), WORDS).label_map.shape == (60, 90)


def test_gradients_are_not_kept(segmenter: Segmenter) -> None:
    assert torch.is_grad_enabled()
    segmenter(three_colours(), WORDS)
    assert torch.is_grad_enabled()


def test_importing_the_package_is_light() -> None:
    program = (
        "import sys, lexiseg\n"
        "heavy = {'torch', 'open_clip', 'timm', 'PIL', 'numpy', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from lexiseg import Vocabulary\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(lexiseg.__all__) <= set(dir(lexiseg))\n"
        "assert lexiseg.__version__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_several_outcomes_from_one_look(segmenter: Segmenter) -> None:
    outcomes = segmenter.predict(three_colours(), WORDS, ["semantic", "panoptic", "instance"])
    assert set(outcomes) == {"semantic", "panoptic", "instance"}
    for task, outcome in outcomes.items():
        alone = segmenter.predict(three_colours(), WORDS, [task])[task]
        whole = segmenter(three_colours(), WORDS, task, min_score=0)
        assert type(alone) is type(outcome)
        assert [s.class_index for s in outcome.segments] == [s.class_index for s in alone.segments]
        assert len(whole.segments) == sum(segment.area > 0 for segment in outcome.segments)
    labels = segmenter(three_colours(), WORDS).label_map
    assert np.array_equal(segmenter.predict(three_colours(), WORDS, ["semantic"])["semantic"].labels, labels)


def test_given_masks_are_all_scored(segmenter: Segmenter) -> None:
    masks = np.zeros((2, 60, 90), bool)
    masks[0, :, 65:], masks[1, :, :25] = True, True
    probs = segmenter.classify_masks(three_colours(), WORDS, masks)
    assert probs.shape == (2, 3)
    assert probs.argmax(1).tolist() == [2, 0]
