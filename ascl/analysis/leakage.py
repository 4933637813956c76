"""The evaluation that leaks the answer into the query, kept as a diagnostic of how much the leak is worth.

The released evaluation of AsCL computes global vectors on true pairs only: each caption's W_g with the caption's own
image, each image's V_g with one of its own captions. It then compares these vectors across pairs as if they had been
encoded independently. The answer is inside the query. Nothing else in this project may use this evaluation.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.analysis.diagnostics import local_and_global_scores
from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.models.ascl import masked_mean
from ascl.models.fusion import with_student

WARNING = (
    "*** PAIRED PROTOCOL: A DIAGNOSTIC, NOT A RESULT ***\n"
    "Every query was encoded together with its own right answer: these are not retrieval results.\n"
    "Never report them: they only show how much a number can owe to this procedure.")


def paired_global_scores(model: AsCL, images: EncodedImages, texts: EncodedTexts, owner: np.ndarray) -> Tensor:
    """Return the global scores with W_g and V_g computed on true pairs only: the leaking part.

    Args:
        owner: (N_texts,) image of each caption.

    Returns:
        (N_images, N_texts) cosines of V_g, computed with the image's first own caption, and W_g, computed with the
        caption's own image.

    Raises:
        ValueError: an image has no caption.
    """
    first_caption = np.full(len(images), -1)
    first_caption[owner[::-1]] = np.arange(len(owner))[::-1]
    if (first_caption < 0).any():
        raise ValueError(f"image {int((first_caption < 0).argmax())} has no caption to pair it with; leave it out")
    device = next(model.parameters()).device

    def text_vector(i: int, t: int) -> Tensor:
        image, text = images[i : i + 1].to(device), texts[t : t + 1].to(device)
        attended, _ = model.region_to_word(image.regions, text.words, text.words, key_padding_mask=~text.mask,
                                           need_weights=False)
        return model.text_global(masked_mean(attended, image.mask))

    def image_vector(i: int, t: int) -> Tensor:
        image, text = images[i : i + 1].to(device), texts[t : t + 1].to(device)
        padding = None if image.mask is None else ~image.mask
        attended, _ = model.word_to_region(text.words, image.regions, image.regions, key_padding_mask=padding,
                                           need_weights=False)
        return model.fuse_globals(masked_mean(attended, text.mask), image.globals)

    text_vectors = torch.cat([text_vector(i, t) for t, i in enumerate(owner)])
    image_vectors = torch.cat([image_vector(i, t) for i, t in enumerate(first_caption)])
    return (F.normalize(image_vectors, dim=-1) @ F.normalize(text_vectors, dim=-1).T).cpu()


def protocols(model: AsCL, images: EncodedImages, texts: EncodedTexts, owner: np.ndarray) -> dict[str, Tensor]:
    """Return a model's scores under the honest and the leaking evaluation, as trained and with u1 = 0.

    Both evaluations compute the same local score; only the global score leaks. So the global scores alone show what
    the leak is worth to the part that leaks.

    Returns:
        Protocol name -> (N_images, N_texts) scores; names of leaking protocols contain PAIRED.
    """
    local, honest = local_and_global_scores(model, images, texts)
    paired = paired_global_scores(model, images, texts, owner)
    honest_whole, paired_whole = (
        with_student(model.local_weight * local + (1 - model.local_weight) * global_, images.student, texts.student,
                     model.student_weight) for global_ in (honest, paired))
    return {"all pairs (honest)": honest_whole, "all pairs, global score alone (honest)": honest,
            "PAIRED (sees the answer)": paired_whole, "PAIRED, global score alone (sees the answer)": paired}
