"""OVSeg's data engine: regions with words, mined from captions without any labels.

Open-Vocabulary Semantic Segmentation with Mask-adapted CLIP (CVPR 2023, arXiv 2210.04150), section 3.2; its code was
not published. `nouns` finds words in captions, `matching` a region for each, `running` writes the pairs in shards,
`scaling` shares the shards among machines, `summary` counts, `sheet` draws.
"""
