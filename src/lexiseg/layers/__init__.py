"""Leaf blocks in plain PyTorch, shared by the slots."""
