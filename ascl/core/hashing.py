"""SHA-256 digests, which identify files, settings and weights."""

from __future__ import annotations

import hashlib
import os


def sha256_of(path: str | os.PathLike) -> str:
    """Return the hexadecimal digest of a file's content; `OSError` if it cannot be read."""
    digest = hashlib.sha256()  # hashlib.file_digest needs Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the hexadecimal digest of a text, encoded in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
