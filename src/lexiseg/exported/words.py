"""Words to rows by an exported text tower, with CLIP's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lexiseg.exported.description import TEXT_KEY, ExportedFileError, TextDescription, TextFile, read_description
from lexiseg.exported.sessions import open_session
from lexiseg.weights.files import sha256_of


class ExportedTextEncoder:
    """A text tower in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = open_session(path, "cpu")
        metadata = self.session.get_modelmeta().custom_metadata_map
        self.description = read_description(metadata, TEXT_KEY, TextDescription, path)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """N prompts -> float32 [N, D], not normalised."""
        from lexiseg.clip.text import encode_prompts  # takes open_clip along, for its tokenizer

        def forward(tokens: Tensor) -> Tensor:
            return torch.from_numpy(self.session.run(None, {"tokens": tokens.numpy()})[0])

        return encode_prompts(prompts, forward, self.description.embed_dim, self.description.context_length)


def text_encoder_beside(model: Path, file: TextFile) -> ExportedTextEncoder:
    """The text tower that a model came with."""
    path = model.with_name(file.file)
    if not path.is_file():
        raise ExportedFileError(f"{path}: missing; {model.name} needs it to encode words: keep both in one folder")
    if sha256_of(path) != file.sha256:
        raise ExportedFileError(f"{path}: is not the file that {model.name} came with; copy both again")
    return ExportedTextEncoder(path)
