"""Encode every image and every caption of a split once, for evaluation and search."""

from __future__ import annotations

import numpy as np
import torch

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.data.stores.open import FeatureStore
from ascl.models import EncodedImages, EncodedTexts, RetrievalModel


def check_dimensions(model: RetrievalModel, store: FeatureStore) -> None:
    """Raise DataError if the features' dimensions differ from those that the model was trained on."""
    wanted, found = (model.region_dim, model.global_dim), (store.region_dim, store.global_dim)
    if found != wanted:
        raise DataError(f"{store.source} has regions of {found[0]} and globals of {found[1]} dimensions, but the model "
                        f"takes {wanted[0]} and {wanted[1]}: give features of the extractor that it was trained on")


@torch.no_grad()
def encode_images(model: RetrievalModel, captions: CaptionSet, store: FeatureStore, *,
                  batch: int = 128) -> EncodedImages:
    """Encode the images of a caption set, in its order; the result is on the CPU."""
    check_dimensions(model, store)
    device = next(model.parameters()).device
    rows = store.rows(captions.image_ids)
    parts = []
    for start in range(0, len(rows), batch):
        features = store.read(rows[start : start + batch])
        assert features.regions is not None and features.globals is not None         # by `check_dimensions`
        mask = None if features.mask is None else torch.from_numpy(features.mask).to(device)
        encoded = model.encode_images(torch.from_numpy(features.regions).to(device),
                                      torch.from_numpy(features.globals).to(device), mask)
        parts.append(encoded.to("cpu"))
    return EncodedImages.cat(parts)


@torch.no_grad()
def encode_texts(model: RetrievalModel, texts: list[str], *, batch: int = 256) -> EncodedTexts:
    """Encode texts, in their order; the result is on the CPU. Batches hold texts of similar length, to save padding."""
    order = torch.from_numpy(np.argsort([len(text) for text in texts], kind="stable"))
    blocks = order.split(batch)
    parts = [model.encode_texts([texts[i] for i in block]).to("cpu") for block in blocks]
    longest = max(part.words.shape[1] for part in parts)
    # filled in place: concatenating and reordering would hold three copies of all padded words
    words = torch.zeros(len(texts), longest, parts[0].words.shape[2], dtype=parts[0].words.dtype)
    mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for block, part in zip(blocks, parts, strict=True):
        words[block, : part.words.shape[1]] = part.words
        mask[block, : part.mask.shape[1]] = part.mask
    return EncodedTexts(words, mask)
