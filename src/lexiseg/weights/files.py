"""Files on disk: checkpoints read without running anything in them, saving, hashing, the settings of a run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lexiseg.weights.pickles import PickleRefused, read_pickle

MAX_BYTES = 16 * 2**30
"""Largest checkpoint read unless the caller raises it; the largest published tower here is below 4 GB."""

PYTORCH_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How PyTorch files that are no archives begin; other pickles hold arrays at best."""

TRAINING_KEYS = {"optimizer", "scheduler", "lr_scheduler", "iteration", "trainer", "epoch", "step", "__author__"}
"""What detectron2 and similar trainers put beside the weights."""


class CheckpointError(ValueError):
    """A file that cannot be read as weights. The message says why and what to do."""


def read_checkpoint(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, on the CPU, from a safetensors file, a PyTorch file or a pickle of arrays.

    The kind is told by the content, not by the name. PyTorch files are read with `weights_only` and pickles by a reader
    of ours, so nothing stored in them is executed; where its format allows it the file is mapped, not copied.
    A dictionary with the key "model" or "state_dict" is unwrapped, what a trainer stored beside it is
    left out, and a "module." prefix that all names share is removed.
    """
    path = Path(path)
    size = _checked_size(path, max_bytes)
    with path.open("rb") as file:
        start = file.read(512)
    # Safetensors first: the length they begin with may happen to look like the start of a pickle.
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return read_safetensors(path, max_bytes)
    if start.startswith((b"PK\x03\x04", PYTORCH_START)):
        return _unwrap(path, _read_pytorch(path))
    if start.startswith(b"\x80"):
        return _unwrap(path, _read_pickle(path))
    if start.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path}: this is a web page, not a checkpoint. The download page was saved instead of the file; "
            "open it in a browser and follow its download link"
        )
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: this is a git-lfs pointer, not the file itself. Fetch it with 'git lfs pull'")
    raise CheckpointError(f"{path}: neither a safetensors file nor a PyTorch checkpoint")


def read_safetensors(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, mapped from the file."""
    path = Path(path)
    _checked_size(path, max_bytes)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or incomplete safetensors file ({error}). Fetch it again") from error


def save_safetensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Writes the file completely or not at all: a crash never leaves half a checkpoint under `path`."""
    path = Path(path)
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: dict[int, str] = {}
    for name, tensor in own.items():
        # Views of one storage (tied weights, slices of a mapped file) are refused by the format.
        if tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in seen:
            own[name] = tensor.clone()
        seen[tensor.data_ptr()] = name
    with replacing(path) as temporary:
        save_file(own, temporary, metadata={"format": "pt"})


class replacing:
    """A temporary path beside `path` that takes its place when the block ends well, and vanishes when it does not."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.temporary.unlink(missing_ok=True)
            return
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp makes the file private; a model folder is as readable as any other file.
        self.temporary.chmod(0o666 & ~umask)
        os.replace(self.temporary, self.path)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well, and vanishes when it does not.

    A folder cannot be replaced at once: killed at the last moment, there is none at `path`, and never half of one.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if path.is_dir():
            old = temporary.with_name(f".{path.name}.old.part")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def differing_settings(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the settings of a run that begins, as JSON; of one that began before, those that differ.

    Returns name -> what it was then, None where it was not there, in the order of the names. Empty: the run may go on.
    Raises ValueError or AttributeError where the file holds no JSON object.
    """
    told = json.loads(json.dumps(dict(settings)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        names = sorted(told.keys() | before.keys())
        return {name: before.get(name) for name in names if told.get(name) != before.get(name)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return {}


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of the bytes of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_size(path: Path, max_bytes: int) -> int:
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; give the checkpoint file inside it")
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if not path.is_file():
        raise CheckpointError(f"{path}: not a regular file")
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    if size > max_bytes:
        raise CheckpointError(
            f"{path}: {size / 2**30:.1f} GiB, above the limit of {max_bytes / 2**30:.1f} GiB; "
            "raise the limit if the file is meant to be that large"
        )
    return size


def _read_pytorch(path: Path) -> Any:
    zipped = zipfile.is_zipfile(path)
    if not zipped:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise CheckpointError(f"{path}: the file ends too early. Fetch it again")
    else:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            raise CheckpointError(f"{path}: a TorchScript archive, which holds code. Save its state dict instead")
        if not any(name.endswith("data.pkl") for name in names):
            raise CheckpointError(f"{path}: a zip archive without PyTorch weights; unpack it and give the file inside")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)  # refused or read, it is told
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, and such objects could run code when read, "
            "so they are refused. If you trust the file, load it where it was made and save only its weights: "
            f'torch.save({{"model": model.state_dict()}}, "weights.pth"). ({_first_line(error)})'
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in the reader, with any type
        raise CheckpointError(
            f"{path}: damaged or incomplete PyTorch file ({_first_line(error)}). Fetch it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return read_pickle(path)
    except PickleRefused as error:
        raise CheckpointError(
            f"{path}: a pickle that is more than a table of arrays ({_first_line(error)}). It could run code when "
            "read, so it is refused. If you trust the file, load it where it was made and save only its weights: "
            'torch.save({"model": model.state_dict()}, "weights.pth")'
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _unwrap(path: Path, content: Any) -> dict[str, Tensor]:
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    else:
        if isinstance(content, Mapping):
            content = {name: value for name, value in content.items() if name not in TRAINING_KEYS}
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        shown = f": {', '.join(others[:5])} are not tensors" if others else ""
        raise CheckpointError(f"{path}: not a dictionary of tensors{shown}")
    names = [str(name) for name in content]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {str(name)[len(prefix) :]: value for name, value in content.items()}
