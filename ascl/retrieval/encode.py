"""Encode every image and every caption of a split once, for evaluation and search."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.data.stores.open import FeatureStore
from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.encoded import cat_students
from ascl.retrieval.scoring.distinct import distinct_items


def check_dimensions(model: RetrievalModel, store: FeatureStore) -> None:
    """Raise DataError if the features' dimensions differ from those that the model was trained on."""
    wanted, found = (model.region_dim, model.global_dim), (store.region_dim, store.global_dim)
    if found != wanted:
        raise DataError(f"{store.source} has regions of {found[0]} and globals of {found[1]} dimensions, but the model "
                        f"takes {wanted[0]} and {wanted[1]}: give features of the extractor that it was trained on")


@torch.no_grad()
def encode_images(model: RetrievalModel, captions: CaptionSet, store: FeatureStore, *,
                  batch: int = 128) -> EncodedImages:
    """Encode the images of a caption set, in its order; the result is on the CPU.

    Images of equal features get the vectors of the first of them: elsewhere in a batch they would differ by rounding.
    """
    check_dimensions(model, store)
    device = next(model.parameters()).device
    rows = store.rows(captions.image_ids)
    parts, digests = [], list[bytes]()
    for start in range(0, len(rows), batch):
        features = store.read(rows[start : start + batch])
        assert features.regions is not None and features.globals is not None         # by `check_dimensions`
        held = [part for part in (features.regions, features.globals, features.mask) if part is not None]
        digests += [hashlib.sha256(b"".join(part.tobytes() for part in image)).digest()
                    for image in zip(*held, strict=True)]
        mask = None if features.mask is None else torch.from_numpy(features.mask).to(device)
        encoded = model.encode_images(torch.from_numpy(features.regions).to(device),
                                      torch.from_numpy(features.globals).to(device), mask)
        parts.append(encoded.to("cpu"))
    images = EncodedImages.cat(parts)
    return images if len(set(digests)) == len(images) else images[torch.from_numpy(distinct_items(digests).source)]


@torch.no_grad()
def encode_texts(model: RetrievalModel, texts: list[str], *, batch: int = 256) -> EncodedTexts:
    """Encode texts, in their order; the result is on the CPU. Batches hold texts of similar length, to save padding.

    Each distinct text is encoded once: in batches of other lengths equal texts would differ by rounding.
    """
    found = distinct_items(texts)
    distinct = [texts[i] for i in found.first]
    order = torch.from_numpy(np.argsort([len(text) for text in distinct], kind="stable"))
    blocks = order.split(batch)
    parts = [model.encode_texts([distinct[i] for i in block]).to("cpu") for block in blocks]
    longest, vectors = max(part.words.shape[1] for part in parts), cat_students(parts)
    # filled in place: concatenating and reordering would hold three copies of all padded words
    words = torch.zeros(len(distinct), longest, parts[0].words.shape[2], dtype=parts[0].words.dtype)
    mask = torch.zeros(len(distinct), longest, dtype=torch.bool)
    for block, part in zip(blocks, parts, strict=True):
        words[block, : part.words.shape[1]] = part.words
        mask[block, : part.mask.shape[1]] = part.mask
    encoded = EncodedTexts(words, mask, None if vectors is None else vectors[order.argsort()])
    return encoded if len(distinct) == len(texts) else encoded[torch.from_numpy(found.number)]
