"""Generators: (images, features, text) -> Proposals."""
