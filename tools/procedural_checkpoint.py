"""A checkpoint file of official size with made-up weights, from a manifest: `... MANIFEST OUT.safetensors [PART]`.

For measuring and trying out models whose published files are not at hand. The weights depend on the names and shapes
of the manifest alone; PART is one of its companion files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import procedural_weights
import torch

from lexiseg.weights.files import save_safetensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("part", nargs="?")
    options = parser.parse_args()
    arrays = procedural_weights.checkpoint(options.manifest, options.part)
    save_safetensors({name: torch.from_numpy(np.asarray(a)) for name, a in arrays.items()}, options.out)


if __name__ == "__main__":
    main()
