"""Backbones that are no part of any CLIP: pictures in, maps at strides 4, 8, 16 and 32 out."""
