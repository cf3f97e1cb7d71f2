"""The models this package knows by name, how each is built, and how they are stored in folders.

catalogue: ZOO, the written-out list. loading: a model by name, folder or hub repository. model_folder: the format on
disk. convert: official checkpoints into it. The others are builders.
"""
