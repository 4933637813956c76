"""Text encoders: a BERT-like encoder, fine-tuned or frozen, and a disk cache for the output of a frozen one."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.files import OncePerProcess, make_folder
from ascl.core.hub import one_try_at_the_hub
from ascl.core.reading import reason
from ascl.models.base import TextEncoder

KEPT_FREE = 0.05         # share of the disk that a cache leaves free

_GIVE_ENCODER = "set text.encoder to the folder of a saved Hugging Face encoder or to a hub name (bert-base-uncased)"


class BertWords(TextEncoder):
    """A Hugging Face encoder: last hidden states of a text's words, without the special tokens.

    Words are the tokenizer's word pieces. If frozen (the default), the encoder stays in evaluation mode whatever the
    mode of the model around it, and gets no gradient.
    """

    def __init__(self, name_or_path: str, *, finetune: bool = False, max_words: int | None = None) -> None:
        """
        Args:
            name_or_path: a name on the Hugging Face hub or a local folder.
            finetune: train the encoder with the rest of the model.
            max_words: longer texts are truncated and counted in `truncated`; None = the encoder's own limit.

        Raises:
            FileNotFoundError: the folder does not exist.
            DataError: the folder or the hub has no loadable encoder of this name, or max_words < 1.
        """
        super().__init__()
        if max_words is not None and max_words < 1:
            raise DataError(f"text.max_words is {max_words}: it must be at least 1, or null for the encoder's limit")
        self.tokenizer, self.encoder = _load_encoder(name_or_path)
        self.finetune = finetune
        self.encoder.requires_grad_(finetune)
        self.dim = self.encoder.config.hidden_size
        special = self.tokenizer.num_special_tokens_to_add()
        limit = min(self.tokenizer.model_max_length, self.encoder.config.max_position_embeddings) - special
        self.max_words = limit if max_words is None else min(max_words, limit)
        self.truncated = 0
        self.train(self.training)

    def train(self, mode: bool = True) -> BertWords:
        super().train(mode)
        if not self.finetune:
            self.encoder.eval()
        return self

    def is_cut(self, text: str, words: int) -> bool:
        """Return whether a text that was encoded as `words` words had more."""
        return words == self.max_words and len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) > words

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode N texts -> hidden (N, L, dim) and mask (N, L) bool, True = a real word.

        Raises:
            DataError: a text has no words.
        """
        special = self.tokenizer.num_special_tokens_to_add()
        pieces = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for text, ids in zip(texts, pieces, strict=True):
            if not ids:
                raise DataError(f"the text {text!r} has no words: remove or complete this caption")
        self.truncated += sum(len(ids) > self.max_words for ids in pieces)
        tokens = self.tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True,
                                max_length=self.max_words + special, return_special_tokens_mask=True)
        real = (tokens.pop("special_tokens_mask") == 0) & (tokens["attention_mask"] == 1)         # (N, tokens)
        tokens = tokens.to(self.encoder.device)
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            hidden = self.encoder(**tokens).last_hidden_state
        return _only_words(hidden, real.to(hidden.device))


def _load_encoder(name_or_path: str) -> tuple[Any, Any]:
    """Load tokenizer and encoder (float32) from a local folder or the hub: `NAME` or `OWNER/NAME`."""
    from transformers import AutoModel, AutoTokenizer  # slow to import, and not needed for `EncodedTexts`

    like_a_path = name_or_path.startswith((".", "~", os.sep)) or name_or_path.count("/") > 1
    if like_a_path and not Path(name_or_path).exists():
        raise FileNotFoundError(f"text encoder folder {name_or_path!r} does not exist: {_GIVE_ENCODER}")
    local = Path(name_or_path).exists()
    try:
        with one_try_at_the_hub(not local):
            tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
            encoder = AutoModel.from_pretrained(name_or_path, dtype=torch.float32, trust_remote_code=False)
            return tokenizer, encoder
    except Exception as error:  # each underlying library has its own exceptions
        where = "the folder cannot be loaded" if local else "no such folder, not in the hub's cache, none from the hub"
        raise DataError(f"text encoder {name_or_path!r}: {where} ({reason(error)}): {_GIVE_ENCODER}") from error


def _only_words(hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move the real words of each row to the front and drop the rest."""
    length = int(real.sum(dim=1).max())
    order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)[:, :length]
    return hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), real.gather(1, order)


class CachedWords(TextEncoder):
    """A frozen `BertWords` with its output cached on disk in float16: each distinct text is encoded only once.

    The cache holds captions and generated positives. It stops growing when less than a twentieth of the disk is free;
    new texts are then encoded each time. (20 epochs draw about 11 texts per caption: 4 GB on Flickr8k with MiniLM,
    140 GB on COCO with BERT.) It is an SQLite database: any number of processes of one machine may share it, and a
    killed process does not damage it.
    """

    def __init__(self, encoder: BertWords, folder: str | os.PathLike) -> None:
        """
        Raises:
            DataError: the encoder is fine-tuned.
        """
        super().__init__()
        if encoder.finetune:
            raise DataError("text.cache is set, but a fine-tuned encoder's output changes at each step and cannot be "
                            "cached: set text.cache to null or text.finetune to false")
        self.encoder = encoder
        self.dim = encoder.dim
        self.folder = Path(folder) / _fingerprint(encoder)
        make_folder(self.folder)
        self.truncated = 0
        self._full = False
        self._database = OncePerProcess(partial(_open_words, self.folder / "words.sqlite"))

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode as `BertWords` does, rounded to float16; returns float32 on the encoder's device.

        Raises:
            DataError: a text has no words, or the cache cannot be read or written.
        """
        keys = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
        try:
            found = self._read(keys)
            for encoded in self._encoded({k: t for k, t in zip(keys, texts, strict=True) if k not in found}):
                found |= encoded
                if self._has_room():
                    with self._database() as transaction:
                        transaction.executemany("INSERT OR IGNORE INTO words VALUES (?, ?, ?)",
                                                [(key, *row) for key, row in encoded.items()])
        except sqlite3.Error as error:
            raise DataError(f"the text cache {self.folder} cannot be read or written ({error}): free disk space, "
                            "delete the folder if it is damaged, or set text.cache to null") from error
        if any(not isinstance(words, bytes) or not words or len(words) % (2 * self.dim) for words, _ in found.values()):
            raise DataError(f"the text cache {self.folder} is damaged: delete the folder")
        rows = [np.frombuffer(found[key][0], np.float16).reshape(-1, self.dim) for key in keys]
        if not all(np.isfinite(row).all() for row in rows):
            raise DataError(f"the text cache {self.folder} holds values that are not finite: delete the folder, or "
                            "check the encoder")
        self.truncated += sum(found[key][1] for key in keys)
        hidden = np.zeros((len(texts), max(map(len, rows)), self.dim), dtype=np.float16)
        for row, words in enumerate(rows):
            hidden[row, : len(words)] = words
        mask = torch.arange(hidden.shape[1]) < torch.tensor([len(words) for words in rows]).unsqueeze(1)
        device = self.encoder.encoder.device
        return torch.from_numpy(hidden).to(device).float(), mask.to(device)

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, tuple[bytes, int]]:
        """Return the cached texts: key -> words in float16, and whether the text was truncated."""
        database = self._database()
        rows = {key: database.execute("SELECT words, cut FROM words WHERE text = ?", (key,)).fetchone() for key in keys}
        return {key: row for key, row in rows.items() if row is not None}

    def _encoded(self, texts: dict[bytes, str], batch: int = 128) -> Iterator[dict[bytes, tuple[bytes, int]]]:
        """Encode texts that are not cached, `batch` at a time; yields what `_read` returns."""
        keys = sorted(texts, key=lambda key: (len(texts[key]), key))        # similar lengths together: less padding
        for begin in range(0, len(keys), batch):
            part = keys[begin : begin + batch]
            hidden, mask = self.encoder([texts[key] for key in part])
            words = hidden.cpu().to(torch.float16).numpy()
            yield {key: (words[row, :length].tobytes(), int(self.encoder.is_cut(texts[key], length)))
                   for row, (key, length) in enumerate(zip(part, mask.sum(dim=1).tolist(), strict=True))}

    def _has_room(self) -> bool:
        """Return whether the cache may grow; warn once if it may not."""
        usage = shutil.disk_usage(self.folder)
        if usage.free > KEPT_FREE * usage.total:
            return True
        if not self._full:
            warnings.warn(f"the disk of {self.folder} is nearly full ({usage.free / 2**30:.1f} GiB free): new texts "
                          "are no longer cached, which makes training slower; free space, or move text.cache to "
                          "another disk", stacklevel=2)
            self._full = True
        return False


def _open_words(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=600)               # seconds to wait for another process's write
    database.execute("PRAGMA page_size = 16384")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = NORMAL")             # a power cut may lose the last texts, nothing else
    database.execute("CREATE TABLE IF NOT EXISTS words (text BLOB PRIMARY KEY, words BLOB, cut INTEGER)")
    return database


def _fingerprint(encoder: BertWords) -> str:
    """Return a hash of weights, heads, tokenizer and length limit: equal hashes give equal words.

    The vocabulary does not show whether a tokenizer lowers case or strips accents; the tokens of a sample text do.
    """
    digest = hashlib.sha256(f"{encoder.max_words}".encode())
    digest.update(repr(sorted(encoder.tokenizer.get_vocab().items())).encode())
    digest.update(repr(encoder.tokenizer.tokenize("An Éclair's naïve test-case, in UPPER case.")).encode())
    digest.update(repr(getattr(encoder.encoder.config, "num_attention_heads", None)).encode())
    for name, tensor in encoder.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
