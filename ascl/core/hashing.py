"""SHA-256 digests, by which files, settings and weights are told apart."""

from __future__ import annotations

import hashlib
import os


def sha256_of(path: str | os.PathLike) -> str:
    """Return the hexadecimal digest of a file's content; an `OSError` where the disk does not give it."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the hexadecimal digest of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
