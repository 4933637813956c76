"""One training step of image-text retrieval: encode, generate samples, score all pairs, loss (AsCL, section 2.4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ascl.asymmetry import Direction, direction, norm_ratio_loss
from ascl.data.embedding_noise import NoiseSettings, add_noise
from ascl.data.pairs import Batch
from ascl.losses import ascl_loss, hardest_triplet
from ascl.losses.vectors import at_least_float32
from ascl.models import EncodedTexts, RetrievalModel
from ascl.retrieval.scoring import score_batch


@dataclass(frozen=True)
class TripletSettings:
    """Hardest-negative triplet: margin in units of the score; hardness rises from 0 to 1 over `warmup_steps`."""

    margin: float
    warmup_steps: int

    def __post_init__(self) -> None:
        if not self.margin >= 0 or self.warmup_steps < 0:
            raise ValueError(f"margin and warmup_steps must be >= 0, got {self.margin} and {self.warmup_steps}")

    def hardness(self, step: int) -> float:
        """0 at the first step, 1 from `warmup_steps` on."""
        return 1.0 if self.warmup_steps == 0 else min(1.0, step / self.warmup_steps)


@dataclass(frozen=True)
class RetrievalObjective:
    """The loss of a batch as `training.fit` calls it.

    noise: how generated negatives are made, None = none of them ("w/o Neg").
    triplet: replaces the contrastive loss, None = contrastive.
    Generated positives come with the batch, or do not ("w/o Pos").
    norm_ratio_weight: of the term that orders a concatenated caption above its original above its truncation by the
        norms of their text vectors (ASL's loss); 0 = no such term. Positives then have to come with the batch.
    """

    temperature: float
    noise: NoiseSettings | None
    triplet: TripletSettings | None = None
    norm_ratio_weight: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.norm_ratio_weight < math.inf:
            raise ValueError(f"norm_ratio_weight must be at least 0 and finite, got {self.norm_ratio_weight}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    def __call__(self, model: RetrievalModel, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Loss and figures of one batch: `loss`, and the mean score of the true pairs and of all others.

        With a term for norms also `norm_ratio`, its value without weight, and `norm_order`, the share of its pairs that
        are ordered right.
        """
        batch = batch.to(generator.device)
        assert batch.globals is not None                            # `build.build_split` refuses data without
        images = model.encode_images(batch.regions, batch.globals, batch.region_mask)
        text_sets = {"captions": model.encode_texts(batch.captions)}
        if batch.positives is not None:
            text_sets["positives"] = model.encode_texts(batch.positives)
        if self.noise is not None:
            text_sets |= {f"noised {name}": noised(texts, self.noise, generator) for name, texts in text_sets.items()}
        scores = dict(zip(text_sets, score_batch(model, images, list(text_sets.values())), strict=True))
        loss = ascl_loss(
            scores["captions"], scores.get("noised captions"),
            scores.get("positives"), scores.get("noised positives"),
            temperature=self.temperature, contrast=self._contrast(step),
        )
        figures = _gap(scores["captions"].detach())
        if self.norm_ratio_weight > 0:
            if batch.positive_order is None:
                raise ValueError("norm_ratio_weight orders generated positives, and this batch has none")
            term, share = norm_order(
                model.text_vectors(text_sets["captions"]), model.text_vectors(text_sets["positives"]),
                batch.positive_order,
            )
            loss = loss + self.norm_ratio_weight * term
            figures |= {"norm_ratio": term.detach(), "norm_order": share}
        return {"loss": loss, **figures}

    def _contrast(self, step: int):
        if self.triplet is None:
            return None
        return partial(hardest_triplet, margin=self.triplet.margin, hardness=self.triplet.hardness(step))


def norm_order(captions: Tensor, positives: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the order of captions and their generated positives by norm, and the share of pairs in that order.

    Args:
        captions, positives: (B, D) text vectors, not normalised.
        order: (B,) 1 = the positive says more, -1 = less, 0 = neither: takes no part.

    Returns:
        `asymmetry.norm_ratio_loss` of the pairs that take part, and a share in [0, 1] without gradient; 0 and 0 where
        none does.
    """
    known = order != 0
    longer = (order > 0).unsqueeze(1)
    more, less = torch.where(longer, positives, captions)[known], torch.where(longer, captions, positives)[known]
    answer = direction(*(at_least_float32(x.detach()).norm(dim=1) for x in (more, less)))
    share = (answer == Direction.B_COPIES_A).sum() / max(1, len(answer))
    return norm_ratio_loss(more, less), share


def noised(texts: EncodedTexts, noise: NoiseSettings, generator: torch.Generator) -> EncodedTexts:
    """Generated negatives of N texts."""
    return EncodedTexts(add_noise(texts.words, texts.mask, noise, generator), texts.mask)


def _gap(scores: Tensor) -> dict[str, Tensor]:
    """Mean score of true pairs and of the others: their distance shows whether a model learns or collapses."""
    true = scores.diagonal()
    others = (scores.sum() - true.sum()) / max(1, scores.numel() - len(scores))
    return {"score_true": true.mean(), "score_other": others}
