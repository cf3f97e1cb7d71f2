"""Reading weights from good, odd and hostile files."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lexiseg.weights.files import (
    CheckpointError,
    differing_settings,
    read_checkpoint,
    read_safetensors,
    replacing,
    save_safetensors,
    sha256_of,
)

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2, dtype=torch.float16)}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in found
    )


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model": STATE},
        {"state_dict": STATE},
        {"model": STATE, "optimizer": {"state": {}, "param_groups": []}, "iteration": 7, "scheduler": {"last": 1}},
        {**STATE, "iteration": 7, "optimizer": {}},
        {"model": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    ],
    ids=["bare", "model", "state_dict", "detectron2", "bare with extras", "module prefix"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pytorch_files(content: object, zipped: bool, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.any", _use_new_zipfile_serialization=zipped)
    assert same(read_checkpoint(tmp_path / "weights.any"), STATE)


def test_safetensors_are_told_by_content(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "weights.pth")
    assert same(read_checkpoint(tmp_path / "weights.pth"), STATE)


def test_safetensors_may_begin_like_a_pickle(tmp_path: Path) -> None:
    for count in range(0, 300, 8):  # header lengths that end in 0x80 among them
        save_file(STATE, tmp_path / "w", metadata={"note": "x" * count})
        assert same(read_checkpoint(tmp_path / "w"), STATE)


def test_module_prefix_is_kept_when_not_shared(tmp_path: Path) -> None:
    torch.save({"module.a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "w.pth")
    assert set(read_checkpoint(tmp_path / "w.pth")) == {"module.a", "b"}


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    torch.save({"model": STATE, "x": Trap(tmp_path / "mark")}, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"could run code.*save only its weights"):
        read_checkpoint(tmp_path / "w")
    assert not (tmp_path / "mark").exists()


def test_a_plain_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": Trap(tmp_path / "mark")}))
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "w.pkl")
    assert not (tmp_path / "mark").exists()


def write_truncated(path: Path, whole: Path, keep: float) -> None:
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.6, 0.98])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(kind: str, keep: float, tmp_path: Path) -> None:
    state = {"w": torch.zeros(5000)}
    if kind == "safetensors":
        save_file(state, tmp_path / "whole")
    else:
        torch.save(state, tmp_path / "whole", _use_new_zipfile_serialization=kind == "zip")
    write_truncated(tmp_path / "cut", tmp_path / "whole", keep)
    with pytest.raises(CheckpointError, match="cut: "):
        read_checkpoint(tmp_path / "cut")


def test_other_files_get_one_clear_line_each(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.txt", "x")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><html>Google Drive - virus scan warning</html>")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "photo.pth").write_bytes(b"\x89PNG\r\n" + bytes(100))
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/data.pkl", b"")
        archive.writestr("script/constants.pkl", b"")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"a": 1.0}, tmp_path / "numbers.pth")
    expected = {
        "absent.pth": "no such file",
        "": "a folder",
        "photos.zip": "zip archive without PyTorch weights",
        "page.pth": "web page",
        "pointer.safetensors": "git-lfs",
        "empty.pth": "empty",
        "photo.pth": "neither",
        "script.pt": "TorchScript",
        "list.pth": "holds a list",
        "numbers.pth": "a are not tensors",
    }
    for name, words in expected.items():
        with pytest.raises(CheckpointError, match=words):
            read_checkpoint(tmp_path / name)


def test_size_limit(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "w.safetensors")
    for read in (read_checkpoint, read_safetensors):
        with pytest.raises(CheckpointError, match="above the limit"):
            read(tmp_path / "w.safetensors", max_bytes=10)


def test_save_handles_shared_and_strided_tensors(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    state = {"whole": whole, "tied": whole, "row": whole[1], "turned": whole.T, "scalar": torch.tensor(2.0)}
    save_safetensors(state, tmp_path / "w.safetensors")
    assert same(read_safetensors(tmp_path / "w.safetensors"), state)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("old")
    with pytest.raises(RuntimeError, match="broken"), replacing(tmp_path / "w") as temporary:
        temporary.write_text("half")
        raise RuntimeError("broken")
    assert (tmp_path / "w").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "w"]


def test_saved_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_safetensors(STATE, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_settings_of_a_run_are_written_once_and_compared_later(tmp_path: Path) -> None:
    path = tmp_path / "run" / "settings.json"
    assert differing_settings(path, {"words": ("sky", "wäll"), "size": 3}) == {}
    written = path.read_bytes()
    assert differing_settings(path, {"size": 3, "words": ["sky", "wäll"]}) == {}
    assert differing_settings(path, {"words": ["sky"], "size": 3, "new": 1}) == {"new": None, "words": ["sky", "wäll"]}
    assert differing_settings(path, {"size": 3}) == {"words": ["sky", "wäll"]}
    assert path.read_bytes() == written
