"""Scores of every image with every text: the algebra, tiles, the Triton kernel, and what ranks from them."""
