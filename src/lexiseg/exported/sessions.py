"""Opening ONNX files with onnxruntime, with one line for whatever is wrong with them."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch

from lexiseg.exported.description import ExportedFileError

MAX_BYTES = 16 * 2**30

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def providers_of(device: str) -> list[str]:
    """Who computes: "auto" takes CUDA where this onnxruntime has it, else the CPU."""
    there = onnxruntime.get_available_providers()
    if device == "auto":
        return [name for name in PROVIDERS.values() if name in there]
    if device not in PROVIDERS:
        raise ValueError(f"an exported model runs on {', '.join(PROVIDERS)} or auto, not on {device!r}")
    if PROVIDERS[device] not in there:
        raise ValueError("this onnxruntime has no CUDA: install onnxruntime-gpu, or use --device cpu")
    return [PROVIDERS[device]] if device == "cpu" else [PROVIDERS[device], PROVIDERS["cpu"]]


def open_session(path: Path, device: str = "auto", threads: int | None = None) -> onnxruntime.InferenceSession:
    """threads: of one run; None for as many as PyTorch takes here."""
    if not path.is_file():
        raise ExportedFileError(f"{path}: there is no such file; copy it there, or check the path")
    size = path.stat().st_size
    if size == 0 or size > MAX_BYTES:
        raise ExportedFileError(f"{path}: {size} bytes; this is no exported model, copy or export it again")
    providers, options = providers_of(device), onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3  # its warnings are about its own optimisations
    # Its threads would spin between two photos, on the processors that everything else needs then.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    # onnxruntime's errors share no class of their own: a damaged file, a missing file of weights, an unknown operator.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ExportedFileError(f"{path}: cannot be opened as ONNX ({reason}); copy or export it again") from error
