"""Pickled arrays are read, and nothing else: no program in a pickle is run."""

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lexiseg.weights.files import CheckpointError, read_checkpoint
from lexiseg.weights.pickles import MAX_VALUES, PickleRefused, read_pickle

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.array([0.5, -1], np.float16),
    "whole numbers": np.array([1, -2]),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.array(3.0, np.float32),
    "big end first": np.arange(3, dtype=">f4"),
    "a view": np.arange(12.0)[::3],
}


def write(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_detectron2_checkpoint_is_read(protocol: int, tmp_path: Path) -> None:
    content = {"model": ARRAYS, "__author__": "third_party", "matching_heuristics": True}
    found = read_checkpoint(write(tmp_path / "model.pkl", content, protocol))
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name].numpy(), array), name
        assert found[name].dtype == torch.from_numpy(array.astype(array.dtype.newbyteorder("="))).dtype


def test_plain_values_around_the_arrays_are_kept(tmp_path: Path) -> None:
    content = {
        "model": collections.OrderedDict(a=np.ones(2)),
        "numbers": [1, -(2**70), 2.5, np.float64(0.25), np.int64(7)],
        "rest": (None, True, "é", b"raw", ()),
    }
    found = read_pickle(write(tmp_path / "w.pkl", content))
    assert found["numbers"] == [1, -(2**70), 2.5, 0.25, 7]
    assert found["rest"] == content["rest"]
    assert torch.equal(found["model"]["a"], torch.ones(2, dtype=torch.float64))


def test_python_2_strings_of_bytes(tmp_path: Path) -> None:
    """Text and raw numbers were one type then: SHORT_BINSTRING, which Python 3 does not write any more."""

    def short(data: bytes) -> bytes:
        return b"U" + bytes([len(data)]) + data

    raw = struct.pack("<2f", 1.5, -2.0)
    dtype = (
        b"cnumpy\ndtype\n("
        + short(b"f4")
        + b"K\x00K\x01tR(K\x03"
        + short(b"<")
        + b"NNNJ\xff\xff\xff\xffJ"
        + b"\xff" * 4
    )
    dtype += b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85" + short(b"b") + b"tR(K\x01K\x02\x85"
    array += dtype + b"\x89" + short(raw) + b"tb"
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02}" + short(b"model") + b"}" + short(b"w") + array + b"ss.")
    assert pickle.loads((tmp_path / "w.pkl").read_bytes(), encoding="latin1")["model"]["w"].tolist() == [1.5, -2.0]
    assert read_checkpoint(tmp_path / "w.pkl")["w"].tolist() == [1.5, -2.0]


class Trap:
    """Runs something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.parts = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


class State:
    """An object with attributes of its own."""


def made_of(obj: Any) -> Any:
    obj.secret = 1
    return obj


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("place", ["value", "key", "beside"])
def test_programs_are_refused_and_not_run(protocol: int, place: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    trap = Trap(os.mkdir, str(mark))
    content: Any = {"model": {"a": np.ones(2), "b": trap}}
    if place == "key":
        content = {"model": {(trap,): np.ones(2)}}
    elif place == "beside":
        content = [content["model"]["a"], trap]
    path = write(tmp_path / "w.pkl", content, protocol)
    with pytest.raises(PickleRefused, match="a call of .*mkdir"):
        read_pickle(path)
    with pytest.raises(CheckpointError, match=r"w\.pkl: a pickle that is more.*could run code.*save only its weights"):
        read_checkpoint(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())  # the trap is a real one
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"model": eval},
        {"model": Trap(eval, "1")},
        {"model": Trap(getattr, "text", "upper")},
        {"model": made_of(State())},
        {"model": np.array([{"a": 1}], dtype=object)},
        {"model": np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])},
        {"model": np.array(["text"])},
        {"model": np.array(["2020-01-01"], dtype="datetime64[D]")},
        {"model": np.zeros(2, np.complex64)},
        {"model": np.rec.array([1.0])},
        {"model": {1, 2}},
        {"model": torch.nn.Linear(1, 1)},
    ],
    ids=[
        *("a function", "eval", "getattr", "an object", "objects in an array", "a table", "text in an array", "dates"),
        *("complex numbers", "a kind of array", "a set", "a module"),
    ],
)
def test_everything_else_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(PickleRefused):
        read_pickle(write(tmp_path / "w.pkl", content))


HEAD = b"\x80\x04"


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"cos\nsystem\n.", "a reference to code"),
        (b"\x8c\x02os\x8c\x06system\x93.", "a reference to code"),
        (b"(X\x01\x00\x00\x00aios\nsystem\n.", "INST"),
        (b"Pfoo\n.", "PERSID"),
        (b"\x82\x01.", "EXT1"),
        (b"cos\nsystem\n)\x81.", "NEWOBJ"),
        (b"}K\x01b.", "a state for what has none"),
        (b"K\x01)R.", "a call of what is no function"),
        (b"K\x01K\x02a.", "no list"),
        (b"]K\x02K\x03s.", "no dictionary"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nmemmap\nK\x00\x85C\x01btR.", "kind of its own"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "encoding"),
        (b".", "damaged"),
        (b"K\x01", "damaged"),
        (b"h\x05.", "damaged"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
        (b"]r\xff\xff\xff\xff.", ""),
    ],
)
def test_hostile_instructions(program: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(HEAD + program)
    if not words:  # a far place in the memory of references costs nothing
        assert read_pickle(tmp_path / "w.pkl") == []
        return
    with pytest.raises(PickleRefused, match=words):
        read_pickle(tmp_path / "w.pkl")


def test_arrays_must_be_as_long_as_they_say(tmp_path: Path) -> None:
    whole = pickle.dumps({"w": np.arange(4, dtype=np.float32)}, protocol=4)
    for shape in (b"K\x05\x85", b"J\xff\xff\xff\xff\x85", b"J\xff\xff\xff\x7f\x85"):
        (tmp_path / "w.pkl").write_bytes(whole.replace(b"K\x04\x85", shape))
        with pytest.raises(PickleRefused, match="shape"):
            read_pickle(tmp_path / "w.pkl")


def test_references_do_not_multiply_without_end(tmp_path: Path) -> None:
    wide: Any = [0] * 2000
    with pytest.raises(PickleRefused, match=str(MAX_VALUES)):
        read_pickle(write(tmp_path / "w.pkl", [wide] * 2000))
    deep: Any = []
    for _ in range(20):
        deep = [deep, deep]
    with pytest.raises(PickleRefused, match="nested"):
        read_pickle(write(tmp_path / "w.pkl", deep))
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(PickleRefused, match="nested"):
        read_pickle(write(tmp_path / "w.pkl", loop))


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.98])
def test_truncated_files_are_refused(keep: float, tmp_path: Path) -> None:
    whole = pickle.dumps({"model": {"w": np.zeros(5000)}}, protocol=4)
    (tmp_path / "cut.pkl").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(CheckpointError, match=r"cut\.pkl: .*damaged"):
        read_checkpoint(tmp_path / "cut.pkl")
