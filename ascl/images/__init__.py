"""Pixels, for both halves: finding, reading and decoding files, the loader, pretrained backbones, pooling.

Features and their files lie in `features`, edits of images in `image_copy.edits`.
"""
