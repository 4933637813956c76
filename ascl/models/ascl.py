"""AsCL: hierarchical multi-head cross-modal fusion and the plain reference of its score (AsCL, sections 2.3, 2.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.tensors import unit
from ascl.models.base import RetrievalModel, TextEncoder
from ascl.models.encoded import EncodedImages, EncodedTexts
from ascl.models.fusion import FusionWeights, attention_weights, cross_attention, with_student
from ascl.models.image import ImageEncoder, scale_tokens

RELEASED_SCALES = (4.0, 9.0)    # logit scales of the authors' later release: region to word, word to region


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of (N, L, ...) over the real entries of axis 1; mask (N, L) bool, None = all real."""
    if mask is None:
        return tokens.mean(dim=1)
    weights = mask.to(tokens.dtype) / mask.sum(dim=1, keepdim=True)
    return (tokens * weights.reshape(*mask.shape, *[1] * (tokens.dim() - 2))).sum(dim=1)


class AsCL(RetrievalModel):
    """An image-text retrieval model whose score depends on the pair (AsCL, equations 1 and 2).

    score(I, T) = u1 * S_local + (1 - u1) * S_global (equation 2). Both terms use W* (one attended text vector per
    region) and V* (one attended image vector per word). These exist only for a pair, so no single vector of an image
    or a text determines the score. `retrieval.score_all_pairs` computes the same scores fast.

    A student is an addition of ours. It has one vector for each item, from the same features but with weights of its
    own: a linear map of the mean region and the whole image, and one of the mean word, as in VSE++. With a student,
    the score is (1 - w) * score(I, T) + w * cosine, w = student_weight. In training each part has its own loss; the
    student is not distilled from the score of pairs.

    Example:
        >>> import torch
        >>> from ascl.models import AsCL, EncodedTexts
        >>> model = AsCL(region_dim=6, global_dim=4, embed_dim=8, num_heads=2)              # without a text encoder
        >>> images = model.encode_images(torch.randn(3, 5, 6), torch.randn(3, 4))           # 3 images of 5 regions
        >>> texts = EncodedTexts(torch.randn(2, 7, 8), torch.ones(2, 7, dtype=torch.bool))  # 2 texts of 7 words
        >>> model.pair_scores(images, texts).shape
        torch.Size([3, 2])
    """

    def __init__(self, region_dim: int = 2048, global_dim: int = 2048, text: TextEncoder | None = None,
                 embed_dim: int = 1024, num_heads: int = 8, local_weight: float = 0.8, *, projections: bool = True,
                 tied_key_value: bool = False, fusion: bool = True, normalize_regions: bool = True,
                 normalize_words: bool = True, sharpness: float = 4.0, standardize: bool = False,
                 student_dim: int | None = None, student_weight: float = 0.5) -> None:
        """
        Args:
            region_dim, global_dim: dimensions of the precomputed features.
            text: encoder, (list of str) -> (hidden (N, L, text.dim), mask (N, L)); None: pass `EncodedTexts` instead.
            embed_dim: dimension D of the joint space. num_heads: H; must divide D.
            local_weight: u1 of equation 2, in [0, 1].
            projections: False drops the attention's four projections and fixes its logit scales, as in the authors'
                later release; this departs from equation 1.
            tied_key_value: a head's key and value share one matrix, as in equation 1; False learns one for each, which
                departs from it. Needs projections.
            fusion: False is the ablation "w/o MF": every attention becomes a plain mean, so image vectors do not
                depend on texts, nor text vectors on images.
            normalize_regions, normalize_words: scale every token to the same norm, which leaves cosines unchanged.
            sharpness: initial attention logit of a token with itself, averaged over heads; 0 gives uniform attention.
                Used only with normalized tokens and projections.
            standardize: scale each image feature to mean 0 and variance 1 before the projection; fit the statistics
                on training images with `standardize_regions.fit` and `standardize_globals.fit`.
            student_dim: dimension of the student's vectors; None = no student. Needs fusion: without it, the model
                is itself a score of vectors.
            student_weight: w, in [0, 1].

        Raises:
            ValueError: num_heads does not divide embed_dim, a weight or sharpness is out of range, tied_key_value
                comes without projections, or a student without fusion.
        """
        super().__init__(region_dim, global_dim, standardize=standardize)
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
        for name, weight in (("local_weight", local_weight), ("student_weight", student_weight)):
            if not 0 <= weight <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {weight}")
        if student_dim is not None and (student_dim < 1 or not fusion):
            wrong = ": it must be at least 1" if fusion else (
                ", but a student needs fusion, which is off: set student_dim to null or fusion to true")
            raise ValueError(f"student_dim is {student_dim}{wrong}")
        if not 0 <= sharpness < math.inf:
            raise ValueError(f"sharpness must be at least 0 and finite, got {sharpness}")
        if tied_key_value and not projections:
            raise ValueError("tied_key_value needs projections, which are off: set tied_key_value to false or "
                             "projections to true")
        self.embed_dim, self.num_heads, self.local_weight = embed_dim, num_heads, local_weight
        self.fusion, self.student_weight = fusion, student_weight
        # on average a head's logit is norm^2 * cos / (H * sqrt(d)), d = D / H
        norm = (sharpness * num_heads * (embed_dim / num_heads) ** 0.5) ** 0.5 if projections else 1.0
        self.word_norm = norm if normalize_words else None
        self.image = ImageEncoder(region_dim, global_dim, embed_dim, region_norm=norm if normalize_regions else None)
        self.text = text
        self.word_projection = None if text is None else nn.Linear(text.dim, embed_dim)
        if fusion:
            self.region_to_word, self.word_to_region = (
                cross_attention(embed_dim, num_heads, projections=projections, tied_key_value=tied_key_value,
                                scale=scale) for scale in RELEASED_SCALES)
        self.text_global = nn.Linear(embed_dim, embed_dim, bias=False)              # X_w
        self.attended_image_global = nn.Linear(embed_dim, embed_dim, bias=False)    # X_v
        self.image_global = nn.Linear(embed_dim, embed_dim, bias=False)             # X_g
        self.gate = nn.Linear(2 * embed_dim, embed_dim)
        self.student_image, self.student_text = None, None
        if student_dim is not None:
            self.student_image = nn.Linear(region_dim + global_dim, student_dim)
            self.student_text = None if text is None else nn.Linear(text.dim, student_dim)

    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """Project precomputed image features into the joint space (AsCL, section 2.1).

        Args:
            regions: (N, K, region_dim). globals_: (N, global_dim), the feature of the whole image.
            mask: (N, K) bool, True = a real region; None = all are real.

        Returns:
            `EncodedImages`: regions (N, K, D), globals (N, D), the mask, and the student's vectors (N, student_dim).

        Raises:
            ValueError: the feature dimensions differ from the model's.

        Example:
            >>> model = AsCL(region_dim=6, global_dim=4, embed_dim=8, num_heads=2)
            >>> images = model.encode_images(torch.randn(3, 5, 6), torch.randn(3, 4))
            >>> images.regions.shape, images.globals.shape
            (torch.Size([3, 5, 8]), torch.Size([3, 8]))
        """
        regions, globals_ = self.standardized(regions, globals_)
        student = None
        if self.student_image is not None:
            student = unit(self.student_image(torch.cat([masked_mean(regions, mask), globals_], dim=-1)))
        projected, whole = self.image(regions, globals_)
        return EncodedImages(projected, whole, mask, student)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode N captions -> words (N, L, D), mask (N, L), and the student's vectors (N, student_dim).

        L is the number of word pieces in the longest caption.

        Raises:
            ValueError: the model has no text encoder, or the list is empty.
        """
        hidden, mask = self.encoded_words(texts)
        assert self.word_projection is not None                         # exists whenever the encoder does
        student = None if self.student_text is None else unit(self.student_text(masked_mean(hidden, mask)))
        return EncodedTexts(scale_tokens(self.word_projection(hidden), self.word_norm), mask, student)

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """Return X_w of each text's mean word, (N, D): W_g under uniform attention. Differentiable, not normalized.

        Scores use vectors of pairs, so a text has no vector of its own; this one uses the same weights. Its norm is
        free even if all words share one norm: the mean's norm depends on how well the words agree, and X_w's gain on
        the mean's direction. A sum would not do: its norm counts words, so nearly every concatenation would already
        rank above its caption and every truncation below, and nothing would be learned.
        """
        return self.text_global(masked_mean(texts.words, texts.mask))

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Return the scores (N_images, N_texts) in [-1, 1], differentiable (AsCL, equation 2, and a student's part).

        This is the plain reference: one image at a time, with torch's own attention.

        Example:
            >>> model = AsCL(embed_dim=4, num_heads=2, local_weight=1.0)            # local part only
            >>> token = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
            >>> image = EncodedImages(regions=token, globals=token[:, 0])           # one region
            >>> texts = EncodedTexts(torch.cat([token, -token]), torch.ones(2, 1, dtype=torch.bool))  # one word each
            >>> model.pair_scores(image, texts).round(decimals=3).tolist()          # the same word and its opposite
            [[1.0, -1.0]]
        """
        if not self.fusion:
            return self._scores_without_fusion(images, texts)
        scores = torch.stack([self._scores_of_image(images[i : i + 1], texts) for i in range(len(images))])
        return with_student(scores, images.student, texts.student, self.student_weight)

    def fusion_weights(self) -> FusionWeights | None:
        """Return the matrices that `retrieval.scoring` needs, or None without fusion, which has no attention."""
        if not self.fusion:
            return None
        region_to_word, word_to_region = map(attention_weights, (self.region_to_word, self.word_to_region))
        first_gate, second_gate = self.gate.weight.chunk(2, dim=1)
        to_global = self.attended_image_global.weight
        return FusionWeights(region_to_word, word_to_region, of_texts=region_to_word.then(self.text_global.weight),
                             of_images=word_to_region.then(torch.cat([to_global, first_gate @ to_global])),
                             image_global=self.image_global.weight, gate=second_gate, gate_bias=self.gate.bias,
                             local_weight=self.local_weight, student_weight=self.student_weight)

    def _scores_of_image(self, image: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Score one image with N texts -> (N,)."""
        n = len(texts)
        v, w = image.regions.expand(n, -1, -1), texts.words                                     # (N, K, D), (N, L, D)
        v_mask = None if image.mask is None else image.mask.expand(n, -1)
        v_padding = None if v_mask is None else ~v_mask
        attended_text, _ = self.region_to_word(v, w, w, key_padding_mask=~texts.mask, need_weights=False)     # W*
        attended_image, _ = self.word_to_region(w, v, v, key_padding_mask=v_padding, need_weights=False)      # V*
        of_regions = masked_mean(F.cosine_similarity(v, attended_text, dim=-1), v_mask)
        of_words = masked_mean(F.cosine_similarity(w, attended_image, dim=-1), texts.mask)
        image_vector = self.fuse_globals(masked_mean(attended_image, texts.mask), image.globals)
        text_vector = self.text_global(masked_mean(attended_text, v_mask))
        return self._weigh((of_regions + of_words) / 2, F.cosine_similarity(image_vector, text_vector, dim=-1))

    def _scores_without_fusion(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Score without fusion ("w/o MF"): words attend to the mean region, regions to the mean word."""
        v_mean, w_mean = masked_mean(images.regions, images.mask), masked_mean(texts.words, texts.mask)
        v_unit = masked_mean(F.normalize(images.regions, dim=-1), images.mask)
        w_unit = masked_mean(F.normalize(texts.words, dim=-1), texts.mask)
        local = (v_unit @ F.normalize(w_mean, dim=-1).T + F.normalize(v_mean, dim=-1) @ w_unit.T) / 2
        image_vectors = F.normalize(self.fuse_globals(v_mean, images.globals), dim=-1)
        text_vectors = F.normalize(self.text_global(w_mean), dim=-1)
        return self._weigh(local, image_vectors @ text_vectors.T)

    def fuse_globals(self, attended_mean: Tensor, globals_: Tensor) -> Tensor:
        """Return V_g (..., D) from mean V* and G, both (..., D).

        V_g = t * V_g1 + (1 - t) * V_g2, t = sigmoid(gate([V_g1, V_g2])).
        """
        first = self.attended_image_global(attended_mean)
        second = self.image_global(globals_).expand_as(first)
        t = torch.sigmoid(self.gate(torch.cat([first, second], dim=-1)))
        return t * first + (1 - t) * second

    def _weigh(self, local: Tensor, global_: Tensor) -> Tensor:
        return self.local_weight * local + (1 - self.local_weight) * global_
