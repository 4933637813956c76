"""Pixels: reading and decoding files, the loader, pretrained backbones, pooling. What both halves need of images."""
