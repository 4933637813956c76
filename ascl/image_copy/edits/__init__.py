"""Edits of images with content scales (`edits` has them by name), and the augmentations made of them (`augment`).

`canvas` follows what an edited picture still shows; `geometry`, `color` and `overlay` hold the edits by kind.
"""
