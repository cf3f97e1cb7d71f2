"""How good a segmentation is: pure functions, and thin accumulators over them."""
