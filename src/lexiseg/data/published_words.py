"""Is this the class list that published numbers were made with?

FC-CLIP, MAFT+, Mask-Adapter and MaskCLIP++ were scored with OpenSeg's lists of synonyms, which are others' work and are
not part of this package. Only a sum of each is: a list that somebody brings can be told to be the right one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

SUMS = {
    "ade20k-150": "1f0ccd7610ca6830f5ddb13b48ea569db7f21504c9292225c57feceb5c250681",
    "ade20k-847": "ec44e6b69c37c05183a83fef3538e37c1f2011fe86e0a79bceb3dcb9a0500a4e",
    "context-59": "2b0bd8f7b1da23e7f2efaf8e23c17c27441df4d74a43d2392b6f092b36eb275e",
    "context-459": "12516b4fd764148294ae20053e9cdb436455d763bdca1563b5d5e9a0b787b355",
    "voc-20": "5b8edb0337c17379be3845ed928e44c84d3d4e084916fd8990fe80320c4f5c76",
    "voc-21": "094ae3c1b8a75280ea614eccf88553eeeccbe2caa507df884ee26860c6283a1b",
    "coco": "c26c048ee1a819a3eea5c0b0cfa7f74186af89f25337548f9a932f208cc6f664",
    "coco-stuff": "487df34742e9834375247e80b10511147f2baf64ec4ee03a48c6e8a7aeb33c17",
    "cityscapes": "cd68e5cf17091e602b95cf8f67d9c247f36e5b67e83352b29e74b31d29fd892f",
    "mapillary": "b0df0b715473bebb7be126ca66ac64b9065c1ef14e38d9caba2d20a0c67e3b24",
}
"""SHA-256 of the synonyms of each class, in their order, as compact as `json.dumps` writes a list of lists."""


def sum_of(phrases: Sequence[Sequence[str]]) -> str:
    """phrases: of each class."""
    return hashlib.sha256(json.dumps([list(own) for own in phrases]).encode()).hexdigest()


def remark_on(benchmark: str, phrases: Sequence[Sequence[str]]) -> str | None:
    """What a reader of published numbers must know about these words; None where there is nothing to say."""
    if benchmark not in SUMS or sum_of(phrases) == SUMS[benchmark]:
        return None
    return (
        "the classes are not asked for by the published list of synonyms, which FC-CLIP, MAFT+, Mask-Adapter and "
        "MaskCLIP++ were scored with (--class-list FILE)"
    )
