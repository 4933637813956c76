"""Texts: words of a BERT-like encoder, fine-tuned or frozen, and a cache of a frozen one's output on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.models.base import TextEncoder

KEPT_FREE = 0.05         # share of the disk that a cache leaves to others

_GIVE_ENCODER = (
    "give text.encoder the folder of a saved Hugging Face encoder, or a name on the hub such as bert-base-uncased"
)


class BertWords(TextEncoder):
    """Last hidden state of a Hugging Face encoder for the words of a text, without the special tokens around them.

    Words are the tokenizer's word pieces. Frozen (the default), it stays in evaluation mode whatever mode the model
    around it is in, and gives no gradient.
    """

    def __init__(self, name_or_path: str, *, finetune: bool = False, max_words: int | None = None) -> None:
        """
        Args:
            name_or_path: a name on the Hugging Face hub or a local folder.
            finetune: train the encoder with the rest.
            max_words: longer texts are cut and counted in `truncated`; None = the encoder's own limit.

        Raises:
            FileNotFoundError: no such folder.
            DataError: nothing that can be loaded there or on the hub, or max_words < 1.
        """
        super().__init__()
        if max_words is not None and max_words < 1:
            raise DataError(f"text.max_words is {max_words}: has to be at least 1, or null for the encoder's limit")
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
        """Whether a text that came out with so many words had more."""
        return words == self.max_words and len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) > words

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N texts -> hidden (N, L, dim) and mask (N, L) bool, True = a real word.

        Raises:
            DataError: a text without any word.
        """
        special = self.tokenizer.num_special_tokens_to_add()
        pieces = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for text, ids in zip(texts, pieces, strict=True):
            if not ids:
                raise DataError(f"the text {text!r} has no words: remove this caption or fill it")
        self.truncated += sum(len(ids) > self.max_words for ids in pieces)
        tokens = self.tokenizer(
            list(texts), return_tensors="pt", padding=True, truncation=True, max_length=self.max_words + special,
            return_special_tokens_mask=True,
        )
        real = (tokens.pop("special_tokens_mask") == 0) & (tokens["attention_mask"] == 1)         # (N, tokens)
        tokens = tokens.to(self.encoder.device)
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            hidden = self.encoder(**tokens).last_hidden_state
        return _only_words(hidden, real.to(hidden.device))


def _load_encoder(name_or_path: str) -> tuple[Any, Any]:
    """Tokenizer and encoder in float32, of a local folder or of a name on the hub: `NAME` or `OWNER/NAME`."""
    from transformers import AutoModel, AutoTokenizer  # slow to import, and not needed where texts come encoded

    like_a_path = name_or_path.startswith((".", "~", os.sep)) or name_or_path.count("/") > 1
    if like_a_path and not Path(name_or_path).exists():
        raise FileNotFoundError(f"text encoder folder {name_or_path!r} does not exist: {_GIVE_ENCODER}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        return tokenizer, AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
    except Exception as error:  # each of the libraries behind it has exceptions of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = "the folder cannot be loaded" if Path(name_or_path).exists() else "no such folder, none from the hub"
        raise DataError(f"text encoder {name_or_path!r}: {where} ({reason}): {_GIVE_ENCODER}") from error


def _only_words(hidden: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Move the real words of each row to its front and cut the rest."""
    length = int(real.sum(dim=1).max())
    order = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)[:, :length]
    return hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), real.gather(1, order)


_RECORD = np.dtype([("key", "V16"), ("start", "<i8"), ("words", "<i4")])     # words < 0: -words, of a text that was cut


class CachedWords(TextEncoder):
    """A frozen `BertWords` whose output is kept on disk in float16: each distinct text is encoded once, ever.

    Captions and generated positives alike, as long as more than a twentieth of the disk is free; after that what is new
    is encoded whenever it comes. (20 epochs draw about 11 texts for each caption: with MiniLM 3 GB on Flickr8k, with
    BERT 120 GB on COCO.) The folder holds, per process that ever missed, a data file and an index file
    that only grow; a text counts as present when its index record is whole and its words lie within the data
    file, so a kill at any moment loses at most the text being written. Processes write to files of their own.
    """

    def __init__(self, encoder: BertWords, folder: str | os.PathLike) -> None:
        super().__init__()
        if encoder.finetune:
            raise DataError("the words of an encoder that is being fine-tuned change with each step: they cannot be "
                            "cached; set text.cache to null or text.finetune to false")
        self.encoder = encoder
        self.dim = encoder.dim
        self.folder = Path(folder) / _fingerprint(encoder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files: list[int] = []
        self._places: dict[bytes, tuple[int, int, int]] = {}       # file, first word, words as in the record
        self.truncated = 0
        self._full = False
        for index in sorted(self.folder.glob("*.index")):
            self._read_index(index)
        self._writer: tuple | None = None

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As `BertWords`; float32 values that are exactly representable in float16, on the encoder's device."""
        keys = [hashlib.sha256(text.encode()).digest()[:16] for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._places}
        fresh: dict[bytes, tuple[np.ndarray, int]] = {}
        if missing:
            try:
                fresh = self._encode(missing)
            except OSError as error:
                raise DataError(
                    f"could not write the encoded words to {self.folder} ({error.strerror}): make room or check the "
                    "folder, or set text.cache to null; nothing that was there is lost"
                ) from error
        signed = [fresh[key][1] if key in fresh else self._places[key][2] for key in keys]
        self.truncated += sum(words < 0 for words in signed)
        lengths = torch.tensor(signed).abs()
        hidden = np.zeros((len(texts), int(lengths.max()), self.dim), dtype=np.float16)
        for row, (key, words) in enumerate(zip(keys, lengths.tolist(), strict=True)):
            hidden[row, :words] = fresh[key][0] if key in fresh else self._read(*self._places[key])
        mask = torch.arange(hidden.shape[1]) < lengths.unsqueeze(1)
        device = self.encoder.encoder.device
        return torch.from_numpy(hidden).to(device).float(), mask.to(device)

    def _read(self, file: int, start: int, words: int) -> np.ndarray:
        content = os.pread(self._files[file], abs(words) * self.dim * 2, start * self.dim * 2)
        return np.frombuffer(content, np.float16).reshape(abs(words), self.dim)

    def _has_room(self) -> bool:
        """Whether the disk has; says so once where it has not."""
        usage = shutil.disk_usage(self.folder)
        if usage.free > KEPT_FREE * usage.total:
            return True
        if not self._full:
            warnings.warn(f"the disk of {self.folder} is nearly full ({usage.free / 2**30:.1f} GiB free): words of new "
                          "texts are no longer kept, which takes longer; make room, or set text.cache to another disk",
                          stacklevel=2)
            self._full = True
        return False

    def _read_index(self, index: Path) -> None:
        data = index.with_suffix(".f16")
        if not data.exists():
            return
        content = index.read_bytes()
        records = np.frombuffer(content[: len(content) // _RECORD.itemsize * _RECORD.itemsize], _RECORD)
        available = data.stat().st_size // (2 * self.dim)
        file = len(self._files)
        self._files.append(os.open(data, os.O_RDONLY))
        for key, start, words in records.tolist():
            if words != 0 and start >= 0 and start + abs(words) <= available:     # a power cut can leave zeros
                self._places[bytes(key)] = (file, start, words)

    def _encode(self, missing: dict[bytes, str], batch: int = 128) -> dict[bytes, tuple[np.ndarray, int]]:
        """Encode and keep these texts; what there is no room for comes back, as words and their signed number."""
        if not self._has_room():
            return {key: found for part in self._encoded(missing, batch) for key, found in part.items()}
        if self._writer is None:
            name = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            data, index = open(name.with_suffix(".f16"), "ab"), open(name.with_suffix(".index"), "ab")
            self._files.append(os.open(name.with_suffix(".f16"), os.O_RDONLY))
            self._writer = (data, index, len(self._files) - 1)
        data, index, file = self._writer
        for part in self._encoded(missing, batch):
            first = data.tell() // (2 * self.dim)
            records = np.zeros(len(part), _RECORD)
            places = {}
            for row, (key, (words, signed)) in enumerate(part.items()):
                data.write(words.tobytes())
                records[row] = (np.void(key), first, signed)
                places[key] = (file, first, signed)
                first += len(words)
            data.flush()
            index.write(records.tobytes())
            index.flush()
            self._places |= places
        return {}

    def _encoded(self, texts: dict[bytes, str], batch: int) -> Iterator[dict[bytes, tuple[np.ndarray, int]]]:
        """(words in float16, their number, negative where the text was cut) by key, `batch` texts at a time."""
        keys = sorted(texts, key=lambda key: (len(texts[key]), key))        # similar lengths together: less padding
        for begin in range(0, len(keys), batch):
            part = keys[begin : begin + batch]
            hidden, mask = self.encoder([texts[key] for key in part])
            words = hidden.cpu().to(torch.float16).numpy()
            yield {
                key: (words[row, :length], -length if self.encoder.is_cut(texts[key], length) else length)
                for row, (key, length) in enumerate(zip(part, mask.sum(dim=1).tolist(), strict=True))
            }


def _fingerprint(encoder: BertWords) -> str:
    """Same weights, heads, tokenizer and limit give the same words.

    A vocabulary does not tell whether a tokenizer lowers case or strips accents: how it splits a sample does.
    """
    digest = hashlib.sha256(f"{encoder.max_words}".encode())
    digest.update(repr(sorted(encoder.tokenizer.get_vocab().items())).encode())
    digest.update(repr(encoder.tokenizer.tokenize("An Éclair's naïve test-case, in UPPER case.")).encode())
    digest.update(repr(getattr(encoder.encoder.config, "num_attention_heads", None)).encode())
    for name, tensor in encoder.encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
