"""How regions are scored against words, and how the branches of a model are fused."""
