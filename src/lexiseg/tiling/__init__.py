"""Photos larger than a model can take in, in overlapping tiles: what the tiles say is put together without seams.

A tile does not know what it is a part of. So the photo is looked at in tiles of several sizes, each twice the side of
the one before, and as a whole, all made as small as the model needs. A look decides about what is smaller than it is;
what is larger it leaves to the coarser looks around it, as far as `Tiling.context` says (`mixing`). Nothing that is
blended has an edge: the weight of a tile falls to zero at its border.

Semantic: the class of a pixel is the best of the scores mixed so. Panoptic: the same scores decide which class a pixel
has, and things found in the looks, joined across tiles and sizes, which thing it belongs to (`joining`).
"""

from lexiseg.tiling.cutting import Span, Tiling
from lexiseg.tiling.joining import PanopticView, panoptic, with_void
from lexiseg.tiling.mixing import semantic

__all__ = ["PanopticView", "Span", "Tiling", "panoptic", "semantic", "with_void"]
