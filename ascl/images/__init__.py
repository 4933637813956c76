"""Pixels, for retrieval and copy detection: find, read and decode images, pretrained backbones, pooling.

Features and their files are in `features`, edits of images in `image_copy.edits`.
"""
