"""Edits of images with content scales, and the augmentations made of them."""
