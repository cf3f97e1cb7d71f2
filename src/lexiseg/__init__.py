"""Mask-based open-vocabulary image segmentation: an image and a list of words in, masks out."""
