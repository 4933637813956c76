"""Scores of all image-text pairs: the algebra, tiles, the Triton kernel, and ranks computed from them."""
