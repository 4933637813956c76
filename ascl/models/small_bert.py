"""A small untrained BERT for data sets with a closed vocabulary, saved like any Hugging Face encoder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch

from ascl.core.files import atomic_folder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_small_bert(folder: str | os.PathLike, texts: Iterable[str], *, dim: int = 128, layers: int = 2,
                     heads: int = 4, max_words: int = 126, seed: int = 0) -> None:
    """Write a BERT with random weights and one token per distinct word of `texts`, to be trained with `text.finetune`.

    Captions of a few dozen distinct words need no pretrained encoder. The folder is written atomically.

    Args:
        texts: define the vocabulary, lower-cased and split as by BERT's tokenizer; all other words become [UNK].
        dim, layers, heads: size of the encoder. max_words: length limit of a text, without special tokens.
    """
    from transformers import BertConfig, BertModel
    from transformers.models.bert.tokenization_bert import BertTokenizer

    folder = Path(folder)
    splitter = BertTokenizer(vocab={token: i for i, token in enumerate(SPECIAL)}).backend_tokenizer
    normal = map(splitter.normalizer.normalize_str, texts)
    words = {word for text in normal for word, _ in splitter.pre_tokenizer.pre_tokenize_str(text)}
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *sorted(words)])}
    config = BertConfig(vocab_size=len(vocabulary), hidden_size=dim, num_hidden_layers=layers,
                        num_attention_heads=heads, intermediate_size=4 * dim, max_position_embeddings=max_words + 2)
    with atomic_folder(folder) as whole:
        BertTokenizer(vocab=vocabulary, model_max_length=max_words + 2).save_pretrained(whole)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            BertModel(config).save_pretrained(whole)
