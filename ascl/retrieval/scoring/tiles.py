"""Compute the score matrix in tiles: choose the backend, the order and the block size.

Some hundred images are prepared and kept while all texts are scored with them, in blocks of similar length. So memory
beyond the encoded items stays bounded, whatever their number. Nothing here knows which text belongs to which image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.fusion import FusionWeights
from ascl.retrieval.ranking import first_not_finite
from ascl.retrieval.scoring.attention import Attended, Chunks, Keys, Queries, attend, chunks_for
from ascl.retrieval.scoring.distinct import CHECKED_TOGETHER, Distinct, distinct_rows
from ascl.retrieval.scoring.prepared import pick, prepare_images, prepare_texts, score_prepared

BACKENDS = ("auto", "reference", "algebra", "triton")
CPU_BLOCK = (64, 64)            # images and texts scored at a time
GPU_BLOCK = (256, 256)
REFERENCE_BLOCK = (16, 64)
SMALLEST_BLOCK = 16             # if memory is short; smaller blocks would take too long
SHARE = 0.5                     # share of the free memory that default blocks may take
CGROUP = Path("/sys/fs/cgroup")
BUFFERS = 8                     # number of temporary tensors of the largest size at one time

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Limits:
    """Memory limits of scoring; they change scores by rounding only.

    free: bytes that scoring may use; None = all free memory of the device. kept_bytes, kept_images: limits of the
    images kept prepared while all texts are scored; more would save little and hold larger parts of the matrix.
    texts_bytes: limit of one block of prepared texts; long texts come in smaller blocks. cheap_block: images and texts
    at a time for models whose tokens do not meet. chunks: of the attention; None = chosen by device.
    """

    free: int | None = None
    kept_bytes: int = 2 << 30
    kept_images: int = 512
    texts_bytes: int = 512 << 20
    cheap_block: tuple[int, int] = (1024, 1024)
    chunks: Chunks | None = None


USUAL_LIMITS = Limits()


class _Way(NamedTuple):
    """The scoring functions of one backend, and the memory they need.

    images, texts: prepare a block. score: score two prepared blocks, (N_images, N_texts).
    image: bytes of a prepared image. text: number of words -> bytes of a prepared text. pair: bytes per pair of a tile.
    working: temporary bytes, independent of the block. block: images and texts at a time.
    """

    images: Callable[[EncodedImages], Any]
    texts: Callable[[EncodedTexts], Any]
    score: Callable[[Any, Any], Tensor]
    image: int
    text: Callable[[int], int]
    pair: int
    working: int
    block: tuple[int, int]


class Tile(NamedTuple):
    """Scores (n, m) float32 of distinct images and texts, given by number: images (n,), consecutive; texts (m,)."""

    images: np.ndarray
    texts: np.ndarray
    scores: Tensor


@dataclass(frozen=True)
class Tiles:
    """The score matrix of a model over encoded images and texts, tile by tile; made by `make_tiles`.

    Only distinct images and texts are scored; blocks and tiles count those, `expanded` adds their copies.

    of_images, of_texts: which items are equal. kept: number of image blocks kept prepared together. lengths: words of
    each distinct text.
    """

    images: EncodedImages
    texts: EncodedTexts
    of_images: Distinct
    of_texts: Distinct
    device: torch.device
    way: _Way
    image_block: int
    text_block: int
    kept: int
    texts_bytes: int
    lengths: np.ndarray
    progress: Progress | None

    def groups(self) -> list[list[slice]]:
        """Return the blocks of distinct images, in groups that are kept prepared together."""
        starts = range(0, len(self.of_images.first), self.image_block)
        blocks = [slice(start, min(start + self.image_block, len(self.of_images.first))) for start in starts]
        return [blocks[first : first + self.kept] for first in range(0, len(blocks), self.kept)]

    def of(self, group: list[slice], chosen: np.ndarray) -> Iterator[Tile]:
        """Score a group with the chosen distinct texts; yield scores on the device."""
        if not len(chosen):
            return
        prepared = []
        for rows in group:
            index = torch.from_numpy(self.of_images.first[rows]).to(self.images.regions.device)
            prepared.append(self.way.images(self.images[index].to(self.device)))
        for columns in self._text_blocks(chosen):
            index = torch.from_numpy(self.of_texts.first[columns]).to(self.texts.mask.device)
            texts = self.way.texts(pick(self.texts, index).to(self.device))
            for rows, images in zip(group, prepared, strict=True):
                tile = Tile(np.arange(rows.start, rows.stop), columns, self.way.score(images, texts).float())
                yield tile
                if self.progress is not None:
                    counts = (held.copies_of(part)[0].size for held, part in
                              ((self.of_images, tile.images), (self.of_texts, tile.texts)))
                    self.progress(math.prod(counts))

    def finite(self, group: list[slice], chosen: np.ndarray) -> Iterator[Tile]:
        """Score as `of`, for counting and sorting; raise DataError for a score that is not finite."""
        for tile in self.of(group, chosen):
            if (bad := first_not_finite(tile.scores)) is not None:
                row, column, value = bad
                image, text = self.of_images.first[tile.images[row]], self.of_texts.first[tile.texts[column]]
                raise DataError(f"the score of image {image} with text {text} is {value}: look for an overflow in the "
                                "model's weights")
            yield tile

    def expanded(self, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows (n,) int64, columns (m,) int64 and scores (n, m) of all images and texts that a tile covers."""
        (rows, own_rows), (columns, own_columns) = (self.of_images.copies_of(tile.images),
                                                    self.of_texts.copies_of(tile.texts))
        scores = tile.scores
        if len(rows) > scores.shape[0]:             # else nothing has a copy
            scores = scores[torch.from_numpy(own_rows).to(self.device)]
        if len(columns) > scores.shape[1]:
            scores = scores[:, torch.from_numpy(own_columns).to(self.device)]
        return torch.from_numpy(rows).to(self.device), torch.from_numpy(columns).to(self.device), scores

    def strips(self) -> Iterator[tuple[slice, Tensor]]:
        """Score some images at a time with all texts; yield rows and scores (n, N_texts), float32 on the CPU."""
        everything = np.arange(len(self.of_texts.first))
        last_use = np.zeros(len(self.of_images.first), dtype=np.int64)
        np.maximum.at(last_use, self.of_images.number, np.arange(len(self.of_images.number)))
        held: dict[int, Tensor] = {}        # scores of images that occur again, in later strips
        done = 0
        for group in self.groups():
            start, stop = group[0].start, group[-1].stop
            strip = torch.empty(stop - start, len(everything), device=self.device)
            for tile in self.of(group, everything):
                strip[tile.images[0] - start : tile.images[-1] + 1 - start,
                      torch.from_numpy(tile.texts).to(self.device)] = tile.scores
            later = np.flatnonzero(self.of_images.number[done:] >= stop)
            end = done + int(later[0]) if len(later) else len(self.of_images.number)
            own = strip.cpu()[:, torch.from_numpy(self.of_texts.number)]
            numbers = self.of_images.number[done:end]
            yield slice(done, end), torch.stack([held[n] if n < start else own[n - start] for n in numbers])
            held |= {n: own[n - start].clone() for n in range(start, stop) if last_use[n] >= end}
            held = {n: scores for n, scores in held.items() if last_use[n] >= end}
            done = end

    def _text_blocks(self, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the chosen texts' numbers in blocks of similar length, to save padding."""
        order = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        while len(order):
            block = order[: self.text_block]
            block = block[: max(1, self.texts_bytes // self.way.text(int(self.lengths[block[-1]])))]
            yield block
            order = order[len(block) :]


def make_tiles(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, backend: str = "auto",
               block: int | None = None, dtype: torch.dtype | None = None, progress: Progress | None = None,
               limits: Limits = USUAL_LIMITS) -> Tiles:
    """Check the arguments and choose block sizes, without computing scores.

    Arguments and errors as for `all_pairs.score_all_pairs`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    check_encoded(model, images, texts)
    parameter = next(model.parameters())
    low, (regions, dim) = _product_type(parameter, dtype), images.regions.shape[1:]
    weights = model.fusion_weights()
    if weights is None:
        way = _own_way(model, parameter.device, regions, dim, limits)
    elif backend == "reference":
        way = _reference_way(model, low, parameter.device, regions, dim)
    else:
        way = _algebra_way(weights, backend, low, parameter.device, regions, dim, limits)
    of_images = distinct_rows(images.regions, images.globals, *_given(images.student), mask=images.mask)
    of_texts = distinct_rows(texts.words, *_given(texts.student), mask=texts.mask)
    lengths = texts.mask.sum(dim=1).cpu().numpy()[of_texts.first]
    longest = int(lengths.max())

    def need(image_block: int, text_block: int) -> int:
        return (image_block * way.image + min(text_block * way.text(longest), limits.texts_bytes + way.text(longest))
                + image_block * text_block * way.pair + way.working)

    free = free_memory(parameter.device) if limits.free is None else limits.free
    image_block, text_block = (min(number, count) for number, count in
                               zip((block, block) if block else way.block, (len(of_images.first), len(lengths)),
                                   strict=True))
    if block and need(image_block, text_block) > free:
        raise ValueError(f"a block of {image_block} images and {text_block} texts needs about "
                         f"{need(image_block, text_block) / 2**30:.2f} GiB and {free / 2**30:.2f} are free on "
                         f"{parameter.device}: give a smaller block, or none to choose it automatically")
    while not block and max(image_block, text_block) > SMALLEST_BLOCK and need(image_block, text_block) > SHARE * free:
        image_block, text_block = (image_block + 1) // 2, (text_block + 1) // 2
    room = max(0, min(limits.kept_bytes, free - need(image_block, text_block)))
    kept = max(1, min(room // (image_block * way.image) + 1, limits.kept_images // image_block))
    return Tiles(images, texts, of_images, of_texts, parameter.device, way, image_block, text_block, kept,
                 limits.texts_bytes, lengths, progress)


def check_encoded(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts) -> None:
    """Raise ValueError for items that cannot be scored; see `all_pairs.score_all_pairs`."""
    if len(images) == 0 or len(texts) == 0:
        raise ValueError(f"nothing to score: got {len(images)} images and {len(texts)} texts, need at least one each")
    tensors = {"region": images.regions, "image global": images.globals, "word": texts.words}
    masks = {name: mask for name, mask in (("image mask", images.mask), ("text mask", texts.mask)) if mask is not None}
    students = {"image's student": images.student, "text's student": texts.student}
    vectors = {name: held for name, held in students.items() if held is not None}
    found = _listed({name: tuple(held.shape) for name, held in (tensors | masks | vectors).items()})
    if [held.dim() for held in tensors.values()] != [3, 2, 3] or len({held.shape[-1] for held in tensors.values()}) > 1:
        raise ValueError(f"expected regions (N, K, D), globals (N, D) and words (N, L, D) of one D, got {found}")
    if (len(images.globals) != len(images.regions) or texts.mask.shape != texts.words.shape[:2]
            or images.mask is not None and images.mask.shape != images.regions.shape[:2]):
        raise ValueError(f"masks and globals do not fit the items: {found}; their sizes must agree")
    if isinstance(model, AsCL) and model.student_image is not None and not vectors:
        raise ValueError("the model has a student, and the items have no vectors of it: encode both by this model")
    if len(vectors) == 1 or len({held.shape[1:] for held in vectors.values()}) > 1 or any(
            len(held) != len(items) for held, items in ((images.student, images), (texts.student, texts))
            if held is not None):
        raise ValueError(f"the student's vectors do not fit the items: {found}; encode both by one model")
    types = {"model": next(model.parameters()).dtype} | {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(types.values())) > 1:
        raise ValueError(f"dtypes differ: {_listed(types)}; convert the items to the model's dtype with .to(dtype)")
    for of, names in (("images", ("region", "image global", "image mask", "image's student")),
                      ("texts", ("word", "text mask", "text's student"))):
        devices = {name: held.device for name, held in (tensors | masks | vectors).items() if name in names}
        if len(set(devices.values())) > 1:
            raise ValueError(f"the {of} are on several devices: {_listed(devices)}; move them with .to(device)")
    for name, tensor in (tensors | vectors).items():
        finite = torch.cat([part.flatten(1).isfinite().all(dim=1) for part in tensor.split(CHECKED_TOGETHER)])
        if not finite.all():
            raise ValueError(f"{name} embeddings of item {int((~finite).nonzero()[0])} are not finite "
                             f"({int((~finite).sum())} items in total): look for NaN features or an overflow in the "
                             "model")
    for name, mask in masks.items():
        if not mask.any(dim=1).all():
            raise ValueError(f"{name.removesuffix(' mask')} {int((~mask.any(dim=1)).nonzero()[0])} has no real token: "
                             "its mask is all False; remove the item or correct the mask")


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _product_type(parameter: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype of the matrix products."""
    allowed = [parameter.dtype]
    if parameter.dtype == torch.float32:
        # on a CPU float16 is a thousand times slower than bfloat16
        allowed += [torch.bfloat16] if parameter.device.type == "cpu" else [torch.bfloat16, torch.float16]
    if dtype is not None and dtype not in allowed:
        raise ValueError(f"dtype {dtype}: a model in {parameter.dtype} on {parameter.device} can be scored in "
                         f"{', '.join(map(str, allowed))}")
    return parameter.dtype if dtype is None else dtype


def _own_way(model: RetrievalModel, device: torch.device, regions: int, dim: int, limits: Limits) -> _Way:
    """Score with the model's own methods."""
    usual = GPU_BLOCK if device.type == "cuda" else CPU_BLOCK
    return _Way(
        model.prepare_images, model.prepare_texts, model.score_prepared,
        image=4 * model.prepared_numbers(regions, dim), text=lambda words: 4 * model.prepared_numbers(words, dim),
        pair=8, working=4 * BUFFERS * model.working_numbers(device),
        block=usual if model.tokens_meet else limits.cheap_block,
    )


def _reference_way(model: RetrievalModel, low: torch.dtype, device: torch.device, regions: int, dim: int) -> _Way:
    """Score with `pair_scores`, one image at a time."""
    def score(images: EncodedImages, texts: EncodedTexts) -> Tensor:
        with _products_in(low, device):
            return model.pair_scores(images, texts)

    width = BUFFERS * 4 * dim
    return _Way(lambda images: images, lambda texts: texts, score, image=regions * width,
                text=lambda words: (words + regions) * width, pair=8, working=0, block=REFERENCE_BLOCK)


def _algebra_way(weights: FusionWeights, backend: str, low: torch.dtype, device: torch.device, regions: int, dim: int,
                 limits: Limits) -> _Way:
    """Score with the algebra of `attention.py`, or with the fused kernel."""
    heads, size = weights.region_to_word.heads, low.itemsize
    chunks = limits.chunks or chunks_for(device)
    if backend == "triton":
        from ascl.retrieval.scoring import triton  # slow to import, rarely used

        query = torch.empty(heads, dim // heads, 1, dtype=low, device=device)
        if (reason := triton.supported(query, query.transpose(1, 2).unsqueeze(1), [0, 1])) is not None:
            raise ValueError(f"backend triton: {reason}")

    def in_type(prepare: Callable[..., Any], items: Any) -> Any:
        with _products_in(low, device):
            return prepare(weights, items, chunks).to(low)

    return _Way(
        images=lambda images: in_type(prepare_images, images),
        texts=lambda texts: in_type(prepare_texts, texts),
        score=lambda images, texts: score_prepared(weights, images, texts, chunks,
                                                   _fused if backend == "triton" else attend),
        image=_prepared_bytes(regions, heads, dim, 2 * dim, size),
        text=lambda words: _prepared_bytes(words, heads, dim, dim, size),
        pair=dim * size + 2 * 4 * heads * 2 * regions,
        working=4 * BUFFERS * (chunks.entries + chunks.pairs),
        block=GPU_BLOCK if device.type == "cuda" else CPU_BLOCK,
    )


def _products_in(low: torch.dtype, device: torch.device) -> AbstractContextManager:
    """Return autocast if the dtype is half precision, else a context that does nothing."""
    return torch.autocast(device.type, low) if low in (torch.bfloat16, torch.float16) else nullcontext()


def _prepared_bytes(tokens: int, heads: int, dim: int, outputs: int, size: int) -> int:
    """Return the bytes of four projections, the Gram matrix and the outputs."""
    rows = heads * tokens
    return size * (4 * tokens * dim + rows * rows + rows * outputs) + 4 * 2 * dim


def _fused(queries: Queries, keys: Keys, chunks: Chunks) -> Attended:
    """Attend with the fused kernel, or with the algebra if a block has texts too long for the kernel."""
    from ascl.retrieval.scoring import triton

    weight = queries.members @ (1 / queries.count)
    try:
        return Attended(*triton.attend(queries.query, queries.out, keys.key, keys.value, keys.gram, keys.mask, weight,
                                       queries.bounds))
    except triton.CannotFuse:
        return attend(queries, keys, chunks)


def free_memory(device: torch.device, cgroup: Path = CGROUP) -> int:
    """Return the free bytes of a device, within the memory limit of a container."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = psutil.virtual_memory().available
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if limit.exists() and (text := limit.read_text(encoding="ascii").strip()) != "max":
        # the page cache counts as used but is freed on demand
        statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
        files = sum(int(statistics.get(name, 0)) for name in ("inactive_file", "active_file"))
        available = min(available, int(text) - int(used.read_text(encoding="ascii")) + files)
    return max(0, available)
