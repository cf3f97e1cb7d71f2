"""Weights as files and plain state dicts: reading, saving, downloading, renaming. Knows no model."""
