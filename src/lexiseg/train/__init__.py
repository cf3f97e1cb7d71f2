"""Losses, matching, the training loop and recipes."""
