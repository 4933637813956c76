"""One training step of image-text retrieval: encode, generate samples, score all pairs, loss (AsCL, section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ascl.asymmetry import Direction, direction, norm_ratio_loss
from ascl.core.distributed import process_index
from ascl.core.tensors import at_least_float32, check_positive, products
from ascl.data.pairs import Batch
from ascl.losses import ascl_loss, hardest_triplet, info_nce
from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.encoded import cat_students
from ascl.retrieval.scoring.candidates import hardest_pairs, score_chosen
from ascl.retrieval.scoring.prepared import score_batch
from ascl.samples.negatives import NoiseSettings, add_noise

Gather = Callable[[Tensor], Tensor]
NOISED = "noised "              # a set of generated negatives has the name of its set after this


@dataclass(frozen=True)
class TripletSettings:
    """Settings of the hardest-negative triplet loss: margin in units of the score, steps until full hardness."""

    margin: float
    warmup_steps: int

    def __post_init__(self) -> None:
        if not self.margin >= 0 or self.warmup_steps < 0:
            raise ValueError(f"margin and warmup_steps must be >= 0, got {self.margin} and {self.warmup_steps}")

    def hardness(self, step: int) -> float:
        """Return 0 at the first step, rising to 1 at `warmup_steps`."""
        return 1.0 if self.warmup_steps == 0 else min(1.0, step / self.warmup_steps)


@dataclass(frozen=True)
class RetrievalObjective:
    """The loss of a batch, as `training.fit` calls it.

    noise: settings of generated negatives; None = no generated negatives ("w/o Neg").
    temperature: of the contrastive loss; the initial value for a model that learns its own.
    triplet: replaces the contrastive loss; None = contrastive.
    label_smoothing: of the contrastive loss, see `losses.info_nce`.
    Generated positives come with the batch; a batch without them is the ablation "w/o Pos".
    norm_ratio_weight: weight of the loss that orders concatenation > caption > truncation by the norms of their text
        vectors (ASL's loss); 0 = off. It needs generated positives in the batch.
    chunk_size: encode and score this many pairs at a time, and again in the backward pass. Loss and gradients stay the
        same, and only encoded items and scores are held for the whole batch; candidates are scored all at once. Dropout
        of a fine-tuned encoder is drawn per chunk. None = the whole batch at once.
    candidates: score each item only with its true partner and with this many others, those of the whole batch that the
        student's cosines rank highest; the loss knows no other pairs. It needs a student. None = score all pairs.
    gather: rows (B, ...) of this process -> rows (P * B, ...) of all P processes in the order of their ranks. Its
        backward pass sums each row's gradient over the processes, so the loss is that of one batch of P * B pairs.
        None = each process uses its own negatives.
    """

    temperature: float
    noise: NoiseSettings | None
    triplet: TripletSettings | None = None
    norm_ratio_weight: float = 0.0
    chunk_size: int | None = None
    gather: Gather | None = None
    label_smoothing: float = 0.0
    candidates: int | None = None

    def __post_init__(self) -> None:
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or null for the whole batch, got {self.chunk_size}")
        if self.candidates is not None and self.candidates < 1:
            raise ValueError(f"candidates must be at least 1, or null for all pairs, got {self.candidates}")
        if not 0 <= self.norm_ratio_weight < math.inf:
            raise ValueError(f"norm_ratio_weight must be at least 0 and finite, got {self.norm_ratio_weight}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
        check_positive(temperature=self.temperature)

    def __call__(self, model: RetrievalModel, batch: Batch, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return `loss` and metrics of one batch: mean score of the true pairs and of all others scored.

        With a student also `student`, the part of `loss` that trains it. With a norm-ratio loss also `norm_ratio`, its
        unweighted value, and `norm_order`, the share of its pairs in the right order.
        """
        batch = batch.to(generator.device, non_blocking=True)
        images = encode_images(model, batch, self.chunk_size)
        text_sets = {"captions": encode_texts(model, batch.captions, batch.regions, self.chunk_size)}
        if batch.positives is not None:
            text_sets["positives"] = encode_texts(model, batch.positives, batch.regions, self.chunk_size)
        if self.noise is not None:
            text_sets |= {NOISED + name: noised(texts, self.noise, generator) for name, texts in text_sets.items()}
        student = {} if images.student is None else self._student_scores(images.student, text_sets)
        if self.candidates is None:
            scores = dict(zip(text_sets, self._scores(model, images, list(text_sets.values())), strict=True))
        else:
            scores = self._candidate_scores(model, images, text_sets, student)
        metrics = _gap(scores["captions"].detach())
        if (scale := model.logit_scale()) is not None:
            metrics["temperature"] = 1 / scale.detach()
        loss = self._loss(scores, scale, step)
        if student:
            term = self._loss(student, scale, step)
            loss = loss + term
            metrics["student"] = term.detach()
        if self.norm_ratio_weight > 0:
            if batch.positive_order is None:
                raise ValueError("norm_ratio_weight needs generated positives, and this batch has none: set it to 0")
            pairs = [model.text_vectors(text_sets["captions"]), model.text_vectors(text_sets["positives"]),
                     batch.positive_order]
            if self.gather is not None:
                pairs = [self.gather(at_least_float32(rows)) for rows in pairs]
            term, share = norm_order(*pairs)
            loss = loss + self.norm_ratio_weight * term
            metrics |= {"norm_ratio": term.detach(), "norm_order": share}
        return {"loss": loss, **metrics}

    def _loss(self, scores: dict[str, Tensor], scale: Tensor | None, step: int) -> Tensor:
        """Return the loss of the scores with each set of texts; scale: 1 / temperature, if the model learns it."""
        if scale is not None:
            # by way of zeros: the scale's gradient would be 0 * -inf for a pair that is no candidate
            left_out = {name: of_set == -math.inf for name, of_set in scores.items()}
            scores = {name: (at_least_float32(of_set).masked_fill(left_out[name], 0) * (scale * self.temperature))
                      .masked_fill(left_out[name], -math.inf) for name, of_set in scores.items()}
        contrast = partial(info_nce, temperature=self.temperature, label_smoothing=self.label_smoothing)
        if self.triplet is not None:
            contrast = partial(hardest_triplet, margin=self.triplet.margin, hardness=self.triplet.hardness(step))
        return ascl_loss(scores["captions"], scores.get("noised captions"), scores.get("positives"),
                         scores.get("noised positives"), temperature=self.temperature, contrast=contrast)

    def _student_scores(self, images: Tensor, text_sets: dict[str, EncodedTexts]) -> dict[str, Tensor]:
        """Return the student's cosines with each set of texts that it has vectors of, of all processes' batches.

        It has none of generated negatives, which are made of the cross-modal score's words. Every process computes the
        same cosines from the same gathered vectors; the gradient is right for the reason given in `_scores`.
        """
        vectors = {name: texts.student for name, texts in text_sets.items() if texts.student is not None}
        if self.gather is not None:
            images, vectors = self.gather(images), {name: self.gather(of_set) for name, of_set in vectors.items()}
        return {name: products(images, of_set) for name, of_set in vectors.items()}

    def _candidate_scores(self, model: RetrievalModel, images: EncodedImages, text_sets: dict[str, EncodedTexts],
                          student: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the scores as `_scores`, with -inf for pairs that are no candidates.

        Generated negatives of a set have the candidates of the set.
        """
        weights = model.fusion_weights()
        if weights is None or not student:
            raise ValueError("candidates are chosen by a student, and this model has none: set model.student_dim")
        assert self.candidates is not None
        sets, own = list(text_sets.values()), slice(None)
        if self.gather is not None:
            sets = texts_of_all(sets, self.gather)
            own = slice(process_index() * len(images), (process_index() + 1) * len(images))
        chosen = {name: hardest_pairs(cosines, self.candidates)[own] for name, cosines in student.items()}
        scores = {name: score_chosen(weights, images, texts, chosen[name.removeprefix(NOISED)])
                  for name, texts in zip(text_sets, sets, strict=True)}
        return scores if self.gather is None else {name: self.gather(rows) for name, rows in scores.items()}

    def _scores(self, model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts]) -> Sequence[Tensor]:
        """Return one square score matrix per set of texts: of this process's batch, or of all processes' batches.

        With P processes, each scores its own B images with all P * B texts, which divides the work of the large batch
        by P; then the rows of scores are gathered. DDP computes the right gradient, for this reason. Every process
        computes the same loss L from the same gathered scores. The backward pass of `gather` sums over processes, so
        each process gets its own rows' gradient times P, and all later steps are linear in it. An image affects only
        the rows of its own process; a text's gradients from the rows of all processes are summed by the `gather` of
        the texts. So process p ends with P times the part of dL / d weights that passes through its images, its texts
        and the scoring of its rows. These parts are disjoint and sum to dL / d weights; DDP's mean over the processes
        cancels the factor P.
        """
        if self.gather is None:
            return score_in_chunks(model, images, text_sets, self.chunk_size)
        everybody = texts_of_all(text_sets, self.gather)
        own_rows = torch.cat(score_in_chunks(model, images, everybody, self.chunk_size), dim=1)
        return self.gather(at_least_float32(own_rows)).split(len(everybody[0]), dim=1)


def encode_images(model: RetrievalModel, batch: Batch, size: int | None) -> EncodedImages:
    """Encode the images of a batch, `size` at a time (None = all); the backward pass recomputes chunks."""
    assert batch.globals is not None                                # checked by `build_split`
    mask = model.dropout.of_regions(batch.regions, batch.region_mask)
    if size is None or len(batch) <= size:
        return model.encode_images(batch.regions, batch.globals, mask)
    parts = _features(batch.regions, batch.globals, mask, size)
    return EncodedImages.cat([_computed_again(model.encode_images, *part, device_of=batch.regions) for part in parts])


def encode_texts(model: RetrievalModel, texts: list[str], device_of: Tensor, size: int | None) -> EncodedTexts:
    """Encode texts, `size` at a time (None = all); all chunks are padded alike, so noise does not depend on `size`.

    The backward pass recomputes chunks of a trained text encoder. A frozen one keeps no graph and runs only once.
    """
    if size is None or len(texts) <= size:
        return model.encode_texts(texts)
    trained = model.text is not None and any(parameter.requires_grad for parameter in model.text.parameters())
    chunks = [texts[start : start + size] for start in range(0, len(texts), size)]
    parts = [_computed_again(model.encode_texts, chunk, device_of=device_of) if trained else model.encode_texts(chunk)
             for chunk in chunks]
    parts = _same_length(parts, max(part.words.shape[1] for part in parts))
    return EncodedTexts(torch.cat([part.words for part in parts]), torch.cat([part.mask for part in parts]),
                        cat_students(parts))


def score_in_chunks(model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts],
                    size: int | None) -> list[Tensor]:
    """Score as `score_batch`, `size` images with `size` texts of each set at a time (None = all).

    Together with encoding in chunks this is gradient caching (GradCache, Gao et al. 2021), for a score that depends on
    the pair. Only encoded tokens and scores are kept between the passes; the backward pass recomputes each block. It
    finishes all blocks before it reaches the encoders, because the gradient of the tokens sums over blocks.
    """
    if size is None or max(len(images), len(text_sets[0])) <= size:
        return score_batch(model, images, text_sets)
    # split, not slices: the backward pass of split concatenates gradients, a slice's gradient has the full size
    image_chunks = [EncodedImages(*part) for part in _features(images.regions, images.globals, images.mask, size)]
    of_sets = zip(*(zip(texts.words.split(size), texts.mask.split(size), strict=True) for texts in text_sets),
                  strict=True)
    text_chunks = [[EncodedTexts(*part) for part in chunk] for chunk in of_sets]
    rows = []
    for chunk in image_chunks:
        blocks = [_computed_again(score_batch, model, chunk, texts, device_of=images.regions) for texts in text_chunks]
        rows.append([torch.cat(of_set, dim=1) for of_set in zip(*blocks, strict=True)])
    return [torch.cat(of_set) for of_set in zip(*rows, strict=True)]


def texts_of_all(text_sets: list[EncodedTexts], gather: Gather) -> list[EncodedTexts]:
    """Gather each set's texts from all processes, in the order of their ranks, padded to the longest text of all."""
    own = max(texts.words.shape[1] for texts in text_sets)
    longest = int(gather(torch.tensor([own], device=text_sets[0].words.device)).max())
    # to float32, because gradients are summed over processes
    return [EncodedTexts(gather(at_least_float32(texts.words)), gather(texts.mask.byte()).bool())
            for texts in _same_length(text_sets, longest)]


def _same_length(parts: list[EncodedTexts], length: int) -> list[EncodedTexts]:
    """Pad texts to `length` words."""
    missing = [length - part.words.shape[1] for part in parts]
    return [EncodedTexts(F.pad(part.words, (0, 0, 0, more)), F.pad(part.mask, (0, more)), part.student)
            for part, more in zip(parts, missing, strict=True)]


def _features(regions: Tensor, globals_: Tensor, mask: Tensor | None, size: int):
    """Split into parts of `size` images: (regions, globals, mask or None) of each."""
    parts = regions.split(size)
    return zip(parts, globals_.split(size), [None] * len(parts) if mask is None else mask.split(size), strict=True)


def _computed_again(function: Callable, *arguments, device_of: Tensor):
    """Return `function(*arguments)` without its graph; the backward pass calls it again with the same random numbers.

    device_of: a tensor on the device in use; torch restores random numbers only on devices of its own arguments.
    """
    return checkpoint(lambda _: function(*arguments), device_of.new_empty(0), use_reentrant=False)


def norm_order(captions: Tensor, positives: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss that orders captions and generated positives by norm, and the share of pairs in that order.

    Args:
        captions, positives: (B, D) text vectors, not normalized.
        order: (B,) 1 = the positive says more, -1 = less, 0 = neither; pairs with 0 are left out.

    Returns:
        `asymmetry.norm_ratio_loss` of the remaining pairs, and the share in [0, 1], without gradient; 0 and 0 if no
        pair remains.
    """
    known = order != 0
    longer = (order > 0).unsqueeze(1)
    more, less = torch.where(longer, positives, captions)[known], torch.where(longer, captions, positives)[known]
    answer = direction(*(at_least_float32(x.detach()).norm(dim=1) for x in (more, less)))
    share = (answer == Direction.B_COPIES_A).sum() / max(1, len(answer))
    return norm_ratio_loss(more, less), share


def noised(texts: EncodedTexts, noise: NoiseSettings, generator: torch.Generator) -> EncodedTexts:
    """Return generated negatives of N texts, by adding noise to their words."""
    return EncodedTexts(add_noise(texts.words, texts.mask, noise, generator), texts.mask)


def _gap(scores: Tensor) -> dict[str, Tensor]:
    """Return the mean score of true pairs and of the other pairs that were scored, which are not -inf.

    Their gap shows whether the model learns or collapses.
    """
    true, scored = scores.diagonal(), scores != -math.inf
    others = (scores.masked_fill(~scored, 0).sum() - true.sum()) / (scored.sum() - len(scores)).clamp_min(1)
    return {"score_true": true.mean(), "score_other": others}
