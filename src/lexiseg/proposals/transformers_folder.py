"""Models of transformers in local folders, in the layout of the hub.

    config.json                what the model is
    model.safetensors          its weights, or model.safetensors.index.json and the parts it names
    preprocessor_config.json   how it wants its pictures; optional

Nothing is fetched and nothing in the folder is run: pickles and code that a folder brings along are refused. The
package transformers is an optional extra, imported when a folder is loaded and not before.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lexiseg.proposals.transformers_view import PixelScale

CONFIG_FILE = "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
"""Where later releases keep the same settings, under "image_processor"."""
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_FILE = "adapter_config.json"
"""Transformers would load another model in place of this folder's and change it."""

MAX_SETTINGS_BYTES = 4 * 2**20
MAX_WEIGHTS_BYTES = 16 * 2**30
MAX_NUMBER = 1_000_000
"""No layer of any of these models is this wide."""
MAX_LAYERS = 1000
"""Every layer costs time to build, before the weights are compared with it."""


LOSS_PREFIX = "criterion."
"""What the training loss keeps in a model."""

log = logging.getLogger(__name__)


class TransformersFolderError(ValueError):
    """A folder that cannot be loaded. The message names the folder, what is wrong and what to do."""

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder = folder
        super().__init__(f"{folder}: {problem}")

    def __reduce__(self) -> tuple[type[TransformersFolderError], tuple[Path, str]]:
        return (TransformersFolderError, (self.folder, str(self).removeprefix(f"{self.folder}: ")))


def read_config(folder: Path) -> dict[str, Any]:
    """The contents of config.json, as plain values."""
    if not folder.is_dir():
        raise TransformersFolderError(
            folder,
            f"is no folder; give the local folder of a model, with {CONFIG_FILE} and {WEIGHTS_FILE} in it"
            " (models are not fetched by name)",
        )
    config = _read_json(folder, CONFIG_FILE)
    if config is None:
        raise TransformersFolderError(
            folder, f"has no {CONFIG_FILE}; give the folder of a model in the layout of the Hugging Face hub"
        )
    _check_numbers(folder, config)
    return config


def read_preprocessor(folder: Path) -> dict[str, Any]:
    """The settings of the folder's image processor, as plain values; empty where there are none."""
    settings = _read_json(folder, PREPROCESSOR_FILE)
    if settings is None:
        nested = (_read_json(folder, PROCESSOR_FILE) or {}).get("image_processor")
        settings = nested if isinstance(nested, dict) else {}
    return settings


def pixel_scale(folder: Path, preprocessor: Mapping[str, Any], usual: PixelScale) -> PixelScale:
    """The normalisation a folder asks for; what it does not say is as `usual`, its family's."""
    factor = preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if mean is None or std is None:
        return usual
    good = _are_numbers([factor], 1) and _are_numbers(mean, 3) and _are_numbers(std, 3)
    if not good or factor <= 0 or min(std) <= 0:
        raise TransformersFolderError(
            folder,
            f"{PREPROCESSOR_FILE} has image_mean {mean}, image_std {std} and rescale_factor {factor}; needed are three"
            " numbers, three positive numbers and a positive number",
        )
    red, green, blue = (float(value / factor) for value in mean)
    red_std, green_std, blue_std = (float(value / factor) for value in std)
    return PixelScale((red, green, blue), (red_std, green_std, blue_std))


def load_model(folder: Path, class_name: str) -> nn.Module:
    """A model of transformers' class `class_name` with the folder's weights, float32, in evaluation mode.

    Every weight of the model must come from the folder, but for those of its training loss, which is not used. Files
    may hold more than that: published ones carry what older releases stored beside the weights.
    """
    _check_weights(folder)
    transformers = _transformers()
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        raise TransformersFolderError(
            folder,
            f"needs {class_name}, which transformers {transformers.__version__} does not have;"
            " pip install --upgrade 'lexiseg[transformers]'",
        )
    with _quiet(transformers):
        try:
            model, report = model_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # a wrong configuration can fail anywhere in the model, with any type
            raise TransformersFolderError(
                folder,
                f"cannot be loaded as {class_name} ({_first_line(error)}); check that {CONFIG_FILE} and the weights"
                " belong together, or download the folder again",
            ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(LOSS_PREFIX))
    if missing:
        raise TransformersFolderError(
            folder,
            f"has no weights for {len(missing)} tensors ({_some(missing)}); check that {CONFIG_FILE} and the weights"
            " belong together, or download the folder again",
        )
    unread = sorted(report["unexpected_keys"])
    if unread:
        log.info("%s: %d tensors are not of the model and stay unread (%s)", folder, len(unread), _some(unread))
    return model.eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "masks from a model of transformers need an extra: pip install 'lexiseg[transformers]'"
        ) from error
    return transformers


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """No progress bars and no remarks: what matters of the loading report becomes an error."""
    its_log = transformers.utils.logging
    bars, verbosity = its_log.is_progress_bar_enabled(), its_log.get_verbosity()
    its_log.disable_progress_bar()
    its_log.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        its_log.set_verbosity(verbosity)
        if bars:
            its_log.enable_progress_bar()


def _check_weights(folder: Path) -> None:
    if (folder / ADAPTER_FILE).exists():
        raise TransformersFolderError(
            folder, f"holds an adapter ({ADAPTER_FILE}), not a whole model; merge it into its model and save that"
        )
    if not any((folder / name).is_file() for name in (WEIGHTS_FILE, INDEX_FILE)):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".ckpt"})
        if pickles:
            raise TransformersFolderError(
                folder,
                f"has its weights only as {pickles[0]}, a pickle, which could run code when read and is refused;"
                f" take the {WEIGHTS_FILE} of the model, or save it again with save_pretrained where you trust it",
            )
        raise TransformersFolderError(folder, f"has no {WEIGHTS_FILE}; download the whole folder of the model")
    index = _read_json(folder, INDEX_FILE)
    parts = set() if index is None else set(_values(index.get("weight_map")))
    for part in parts:
        if Path(part).name != part or not part.endswith(".safetensors") or not (folder / part).is_file():
            raise TransformersFolderError(
                folder, f"{INDEX_FILE} names {part!r}, which is no safetensors file in the folder; download it again"
            )
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > MAX_WEIGHTS_BYTES:
        raise TransformersFolderError(
            folder,
            f"has weights of {size / 2**30:.1f} GiB, above the limit of {MAX_WEIGHTS_BYTES / 2**30:.1f} GiB;"
            " give the folder of one model",
        )


def _values(weight_map: Any) -> list[str]:
    values = list(weight_map.values()) if isinstance(weight_map, dict) else [weight_map]
    return [str(value) for value in values]


def _read_json(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / name
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_SETTINGS_BYTES:
        raise TransformersFolderError(
            folder, f"{name} is larger than {MAX_SETTINGS_BYTES // 2**20} MiB; this is not the settings of a model"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TransformersFolderError(
            folder, f"{name} is not valid JSON ({_first_line(error)}); download it again"
        ) from error
    if not isinstance(content, dict):
        raise TransformersFolderError(folder, f"{name} is not a JSON object; download it again")
    return content


def _check_numbers(folder: Path, config: dict[str, Any]) -> None:
    """That no number anywhere in config.json asks for a model that could not be built."""
    open_fields: list[tuple[str, Any]] = list(config.items())
    while open_fields:
        name, value = open_fields.pop()
        if isinstance(value, dict):
            open_fields += value.items()
        elif isinstance(value, list):
            open_fields += [(name, inner) for inner in value]
        elif isinstance(value, int):
            limit = MAX_LAYERS if any(word in name for word in ("layers", "blocks", "depth", "stages")) else MAX_NUMBER
            if abs(value) > limit:
                raise TransformersFolderError(
                    folder, f"{CONFIG_FILE} has {name} = {value}, above the limit of {limit}; download it again"
                )


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__)[:200]
