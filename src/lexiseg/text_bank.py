"""From words to unit rows: prompts encoded once, and remembered on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from lexiseg.types import TextBank
from lexiseg.vocabulary import Vocabulary, make_prompts, template_set

log = logging.getLogger(__name__)

CACHE_VARIABLE = "LEXISEG_CACHE"
"""Environment variable with the folder of all caches; "off" remembers nothing."""

PORTION = 128
"""Phrases encoded and remembered at a time: half a minute of work for a large tower on a CPU."""


class Encoder(Protocol):
    """A text tower with its tokenizer."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> [N, D], not normalised."""


def cache_folder() -> Path | None:
    """Where encoded phrases are kept, or None where the user switched the cache off."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None and chosen.strip().lower() in ("", "off", "0"):
        return None
    if chosen:
        return Path(chosen).expanduser() / "text"
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(base) / "lexiseg" / "text"


def text_bank(
    vocabulary: Vocabulary,
    templates: str | Sequence[str],
    encoder: Callable[[], Encoder],
    training_phrases: Iterable[str] = (),
    *,
    fingerprint: str | None = None,
    cache: Path | None = None,
    mix_templates: bool = True,
) -> TextBank:
    """The vocabulary as a model reads it, on the CPU: rows, classes, and which classes its training knew.

    The arguments are those of `encode_vocabulary`. Generator and scorer read the same rows.
    """
    rows = encode_vocabulary(
        vocabulary, templates, encoder, fingerprint=fingerprint, cache=cache, mix_templates=mix_templates
    )
    return TextBank(
        query=rows,
        region=rows,
        class_of=torch.tensor(vocabulary.class_of, dtype=torch.int64),
        seen=torch.tensor(vocabulary.seen(training_phrases), dtype=torch.bool),
    )


def encode_vocabulary(
    vocabulary: Vocabulary,
    templates: str | Sequence[str],
    encoder: Callable[[], Encoder],
    *,
    fingerprint: str | None = None,
    cache: Path | None = None,
    mix_templates: bool = True,
) -> Tensor:
    """Unit rows [A, T, D] of the phrases, float32, T = 1 with `mix_templates`.

    `templates` is the name of a set or a list. `encoder` makes the text tower and is only called when a phrase is not
    in the cache. `fingerprint` stands for all that decides about an encoding: the weights of the tower and its
    configuration; without it, or without the folder `cache` (see `cache_folder`), nothing is remembered.
    """
    patterns = template_set(templates)
    phrases = list(dict.fromkeys(vocabulary.phrases))
    store = None
    if fingerprint is not None and cache is not None:
        store = PhraseCache(cache, fingerprint, patterns, mix_templates)
    known = store.read(phrases) if store else {}
    missing = [phrase for phrase in phrases if phrase not in known]
    if missing:
        tower = encoder()
        with tqdm(total=len(missing), desc="encoding words", unit="word", delay=3, leave=False) as progress:
            # In portions, each of them kept: an interrupted run of many words goes on where it stopped.
            for start in range(0, len(missing), PORTION):
                portion = missing[start : start + PORTION]
                raw = tower.encode(make_prompts(portion, patterns))  # [M * T, D]
                if not torch.isfinite(raw).all():
                    raise ValueError("the text tower gave values that are not finite; are its weights complete?")
                rows = unit_rows(raw.detach().float().cpu(), len(patterns), mix_templates)
                if store:
                    store.write(portion, rows)
                known |= zip(portion, rows, strict=True)
                progress.update(len(portion))
    return torch.stack([known[phrase] for phrase in vocabulary.phrases])


def unit_rows(raw: Tensor, num_templates: int, mix_templates: bool = True) -> Tensor:
    """Encoded prompts [A * T, D], phrase by phrase -> unit rows [A, 1, D] (templates averaged) or [A, T, D].

    FC-CLIP, `get_text_classifier`: each prompt counts with length one, and the mean is brought to length one again.
    """
    rows = functional.normalize(raw.unflatten(0, (-1, num_templates)), dim=-1)
    return functional.normalize(rows.mean(dim=1, keepdim=True), dim=-1) if mix_templates else rows


class PhraseCache:
    """Rows of phrases on disk, for one text tower and one set of templates.

    A folder per tower and template set; in it one safetensors file per call that brought new phrases, with their
    wording in its header. Files are written under another name first and never changed, so any number of processes
    may share the folder. A damaged file is removed and its phrases are encoded again. A folder that cannot be
    written is read all the same.
    """

    FORMAT = "1"

    def __init__(self, folder: Path, fingerprint: str, templates: Sequence[str], mix_templates: bool) -> None:
        key = json.dumps([self.FORMAT, fingerprint, list(templates), mix_templates])
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:32]
        self.num_templates = 1 if mix_templates else len(templates)

    def read(self, phrases: Sequence[str]) -> dict[str, Tensor]:
        """The rows [T, D] of those phrases that are known."""
        wanted = set(phrases)
        found: dict[str, Tensor] = {}
        width = None
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                rows = self._read_file(path, wanted)
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                log.warning("%s: damaged, its phrases are encoded again (%s)", path, error)
                _remove(path)
                continue
            for phrase, row in rows.items():
                width = width or row.shape[-1]
                if row.shape == (self.num_templates, width):
                    found.setdefault(phrase, row)
            if len(found) == len(wanted):
                break
        return found

    def _read_file(self, path: Path, wanted: set[str]) -> dict[str, Tensor]:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            phrases = json.loads(header["phrases"])
            chosen = [(index, phrase) for index, phrase in enumerate(phrases) if phrase in wanted]
            if not chosen:
                return {}
            rows = file.get_tensor("rows")
        if rows.ndim != 3 or rows.dtype != torch.float32 or len(rows) != len(phrases):
            raise ValueError("rows and phrases do not belong together")
        # Unit length is a check of the content as well: a file full of zeros has a perfect header.
        if not torch.allclose(rows.norm(dim=-1), torch.ones(()), atol=1e-3):
            raise ValueError("rows are not of unit length")
        return {phrase: rows[index].clone() for index, phrase in chosen}

    def write(self, phrases: Sequence[str], rows: Tensor) -> None:
        """phrases, rows [A, T, D] unit length. Failing to write is no error: the rows are there already."""
        name = hashlib.sha256("\n".join(phrases).encode()).hexdigest()[:32]
        temporary = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, text = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            os.close(handle)
            temporary = Path(text)
            save_file({"rows": rows.contiguous()}, temporary, metadata={"phrases": json.dumps(list(phrases))})
            temporary.replace(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            log.info("%s: encoded phrases are not kept (%s)", self.folder, error)
            if temporary is not None:
                _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.info("%s: cannot be removed (%s)", path, error)
