"""Embedders: each proposal as CLIP sees it."""
