"""Edits of images with content scales (`edits` has them by name), and augmentations built from them (`augment`).

`canvas` tracks what an edited picture still shows; `geometry`, `color` and `overlay` hold the edits by kind.
"""
