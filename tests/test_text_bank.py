"""Rows of phrases: averaging, and what the disk remembers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg import text_bank as module
from lexiseg.text_bank import cache_folder, encode_vocabulary, text_bank, unit_rows
from lexiseg.vocabulary import TEMPLATES, Vocabulary, make_prompts

STREET = Vocabulary.parse("sky, road | street, car")


class Letters:
    """Counts letters; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self) -> "Letters":
        return self

    def encode(self, prompts: Sequence[str]) -> Tensor:
        self.asked += prompts
        return torch.tensor([[prompt.count(letter) + 0.1 for letter in "aeiosrt"] for prompt in prompts])


def never() -> Letters:
    raise AssertionError("the text tower was built")


def encode(
    vocabulary: Vocabulary, cache: Path | None, encoder=None, templates="photo1", key="weights", mix=True
) -> tuple[Tensor, list[str]]:
    letters = Letters()
    rows = encode_vocabulary(vocabulary, templates, encoder or letters, fingerprint=key, cache=cache, mix_templates=mix)
    return rows, letters.asked


def test_rows_by_hand() -> None:
    raw = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [1.0, 0.0]])
    mixed = unit_rows(raw, 2)
    assert mixed.shape == (2, 1, 2)
    torch.testing.assert_close(mixed[0, 0], functional.normalize(torch.tensor([0.3, 0.9]), dim=-1))
    torch.testing.assert_close(unit_rows(raw, 2, False)[0], torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_bank() -> None:
    letters = Letters()
    bank = text_bank(STREET, "fcclip14", letters, ["street", "Sky"])
    assert bank.query is bank.region
    assert bank.query.shape == (4, 1, 7)
    assert bank.class_of.tolist() == [0, 1, 1, 2]
    assert bank.seen.tolist() == [False, True, False]
    assert letters.asked == make_prompts(STREET.phrases, TEMPLATES["fcclip14"])
    expected = unit_rows(Letters().encode(letters.asked), 14)
    torch.testing.assert_close(bank.region, expected)


def test_templates_kept_apart() -> None:
    rows, _ = encode(STREET, None, templates="fcclip14", mix=False)
    assert rows.shape == (4, 14, 7)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(4, 14))


def test_repeated_phrases_are_encoded_once() -> None:
    vocabulary = Vocabulary.from_comma_format(["beds,bed", "bed"])
    rows, asked = encode(vocabulary, None)
    assert asked == ["a photo of a beds.", "a photo of a bed."]
    assert torch.equal(rows[1], rows[2])


@pytest.mark.parametrize("mix", [True, False])
def test_only_new_phrases_are_encoded(tmp_path: Path, mix: bool) -> None:
    first, asked = encode(STREET, tmp_path, mix=mix)
    assert len(asked) == 4
    again, _ = encode(STREET, tmp_path, never, mix=mix)
    assert torch.equal(first, again)
    more, asked = encode(Vocabulary.parse("tree, car, road"), tmp_path, mix=mix)
    assert asked == ["a photo of a tree."]
    assert torch.equal(more[1:], first[[3, 1]])
    encode(Vocabulary.parse("tree, sky"), tmp_path, never, mix=mix)


def test_what_the_key_holds(tmp_path: Path) -> None:
    encode(STREET, tmp_path)
    for change in ({"key": "others"}, {"templates": "bare"}, {"mix": False}):
        assert len(encode(STREET, tmp_path, **change)[1]) == 4


@pytest.mark.parametrize("off", [{"cache": None}, {"fingerprint": None}])
def test_without_cache(tmp_path: Path, off: dict[str, None]) -> None:
    options = {"cache": tmp_path, "fingerprint": "weights"} | off
    for _ in range(2):
        letters = Letters()
        encode_vocabulary(STREET, "bare", letters, **options)
        assert len(letters.asked) == 4
    assert not any(tmp_path.iterdir())


def zeros(content: bytes) -> bytes:
    return content[:-32] + bytes(32)


@pytest.mark.parametrize("damage", [lambda c: b"", lambda c: c[:-8], lambda c: b"x" * len(c), zeros])
def test_a_damaged_file_is_replaced(tmp_path: Path, damage, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = encode(STREET, tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again, asked = encode(STREET, tmp_path)
    assert len(asked) == 4
    assert torch.equal(first, again)
    assert "damaged" in caplog.text
    assert path.read_bytes() == whole


def test_a_foreign_file_is_no_cache(tmp_path: Path) -> None:
    encode(STREET, tmp_path)
    [path] = tmp_path.rglob("*.safetensors")
    for content in ({"rows": torch.ones(4, 1, 7)}, {"other": torch.ones(1)}):
        module.save_file(content, path, metadata={"phrases": '["sky", "road", "street", "car"]'})
        assert len(encode(STREET, tmp_path)[1]) == 4


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(STREET, tmp_path)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("read-only file system")

    monkeypatch.setattr(module.tempfile, "mkstemp", refuse)
    encode(STREET, tmp_path, never)
    rows, asked = encode(Vocabulary.parse("tree"), tmp_path)
    assert asked == ["a photo of a tree."]
    assert rows.shape == (1, 1, 7)
    (tmp_path / "file").touch()
    assert len(encode(STREET, tmp_path / "file")[1]) == 4


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PORTION", 1)

    class Stops(Letters):
        def encode(self, prompts: Sequence[str]) -> Tensor:
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().encode(prompts)

    with pytest.raises(KeyboardInterrupt):
        encode(STREET, tmp_path, Stops())
    assert encode(STREET, tmp_path)[1] == ["a photo of a street.", "a photo of a car."]
    assert not list(tmp_path.rglob(".new-*"))


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    class Broken(Letters):
        def encode(self, prompts: Sequence[str]) -> Tensor:
            return super().encode(prompts) * torch.nan

    with pytest.raises(ValueError, match="not finite"):
        encode(STREET, tmp_path, Broken())
    assert not list(tmp_path.rglob("*.safetensors"))


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEXISEG_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/lexiseg/text")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "lexiseg" / "text"
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "text"
    monkeypatch.setenv("LEXISEG_CACHE", "off")
    assert cache_folder() is None
