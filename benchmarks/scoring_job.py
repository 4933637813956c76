"""Measure one method of image-text scoring in its own process: inputs, scoring methods, time and memory.

`measuring.py` calls `start`, `repeat` and `finish` in this process. Between two repeats other methods are measured in
other processes, so that other load on the machine affects all of them alike.
"""

from __future__ import annotations

import copy
import gc
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import scan
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ascl.data.captions import load_captions
from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.retrieval import rank_all_pairs, score_all_pairs, score_batch
from ascl.retrieval.scoring.candidates import hardest_pairs, score_chosen
from ascl.retrieval.scoring.prepared import pick
from ascl.retrieval.scoring.tiles import free_memory, make_tiles
from ascl.samples.positives import generate_positive

# Tokens at the 0th, 5th, ..., 100th percentile of the 25,000 captions of COCO's 5K test, and of positives from them.
CAPTION_LENGTHS = (6, 8, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 13, 13, 14, 16, 50)
POSITIVE_LENGTHS = (1, 4, 5, 5, 6, 6, 7, 7, 8, 9, 15, 19, 20, 21, 21, 22, 23, 24, 25, 27, 72)
TOKEN = re.compile(r"\w+|[^\w\s]")      # a word or a mark: within 4 % of the number of BERT's word pieces
STEP_BLOCK = 16                         # texts at a time, of similar length, in the pairwise step
PILOT = 1                               # images of a pilot run, whose time and memory limit the pairwise method
SHARE_OF_MEMORY = 0.7
CANDIDATES = 3                          # others that each item is scored with, in the step on candidates
GEMMS = 5                               # products of square matrices; the fastest counts
CONCEPTS = 64                           # directions that regions and words share, so that scores are not all zero
MADE_TOGETHER = 16                      # items generated at a time, to keep temporary memory below the measured peak
ERROR_IMAGES, ERROR_TEXTS = 16, 64      # sample that is compared with float64
SCAN = {"SCAN text-to-image": scan.text_to_image, "SCAN image-to-text": scan.image_to_text}
TYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}

# Names of torch's operations, without `aten::` and a trailing underscore
KINDS = {
    "matrix products": {"mm", "bmm", "addmm", "baddbmm", "mv", "dot", "mkldnn_rnn_layer"},
    "softmax": {"_softmax"},
    "copies": {"copy", "clone", "cat", "stack", "index", "index_put", "_index_put_impl", "index_select", "gather",
               "fill", "zero", "scatter", "constant_pad_nd"},
    "other elementwise": {"add", "sub", "mul", "div", "neg", "sum", "mean", "sqrt", "square", "pow", "where", "lerp",
                          "sigmoid", "masked_fill", "gt", "ge", "lt", "le", "eq", "ne", "bitwise_not", "bitwise_and",
                          "logical_not", "logical_and", "clamp_min", "exp", "amax", "any", "all", "abs", "isfinite",
                          "repeat_interleave"},
}


@dataclass(frozen=True)
class Job:
    """One thing to measure with one method."""

    what: str                   # "step": forward and backward; "scores": the whole matrix; "ranks": recalls only
    way: str                    # step: exact, candidates or pairwise. Else a backend of scoring, or a key of SCAN
    precision: str              # of the matrix products: a key of TYPES
    embed_dim: int
    heads: int
    images: int
    texts: int                  # per set; a step has four sets
    regions: int
    device: str
    seconds: float              # limit of one repeat of a pairwise method, which then uses fewer images
    captions: str | None        # file of real captions; None = lengths drawn from the percentiles above
    split: str
    gemm: int                   # size of the square matrices whose product measures the machine's peak

    @property
    def label(self) -> str:
        return f"{self.way} {self.precision}"

    @property
    def pairwise(self) -> bool:
        """Whether each pair is computed separately, so that time may allow only some of the images."""
        return self.way in ("pairwise", "reference")


@dataclass(frozen=True)
class Repeat:
    """One run. seconds: its time. peak: FLOP/s of square matrix products, mean of the best just before and after."""

    seconds: float
    peak: float


@dataclass(frozen=True)
class Flops:
    """FLOP of the matrix products for one pair. prepared: work per item, divided by this run's number of pairs."""

    pair: float
    prepared: float


@dataclass(frozen=True)
class Started:
    """A job that is ready. images: number of images in a repeat. lengths: of the texts, with their source."""

    images: int
    lengths: str


@dataclass(frozen=True)
class Finished:
    """The results after the last repeat.

    memory: peak bytes above the inputs, for all images of the job; for a step with fewer images, a linear extrapolation
    from the memory of one image and of these.
    scores: (images, texts) of the last repeat. flops: work of a pair. Both are None for ranks and for a step.
    pairs: for a step, number of pairs that have a score.
    differences: for a pairwise step, largest relative difference of scores and of gradients to the exact method.
    """

    memory: int
    scores: np.ndarray | None = None
    flops: Flops | None = None
    differences: tuple[float, float] | None = None
    pairs: int = 0


def text_lengths(captions: str | None, split: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the token counts of `count` captions and of as many generated positives, and a line on their source.

    Raises:
        DataError: `captions` cannot be read, or holds too few.
    """
    rng = np.random.default_rng(seed)
    if captions is None:
        grid = np.linspace(0, 1, len(CAPTION_LENGTHS))
        drawn = [np.interp(rng.random(count), grid, lengths).round().astype(int)
                 for lengths in (CAPTION_LENGTHS, POSITIVE_LENGTHS)]
        source = "generated lengths, distributed as in the COCO 5K test"
    else:
        loaded = load_captions(captions, split)
        chosen = rng.choice(len(loaded.captions), count, replace=count > len(loaded.captions))
        positives = []
        for index in chosen:
            siblings = loaded.captions_of(int(loaded.owner[index]))
            texts = [loaded.captions[sibling] for sibling in siblings]
            positives.append(generate_positive("both", texts, siblings.index(index), rng).text)
        drawn = [np.array([len(TOKEN.findall(text)) for text in texts])
                 for texts in ([loaded.captions[index] for index in chosen], positives)]
        source = f"real lengths, {Path(captions).name}"
    return drawn[0], drawn[1], source


class _Inputs:
    """A newly initialized model with noise, and encoded items that share concepts, so that scores differ by pair."""

    def __init__(
        self, job: Job, embed_dim: int, heads: int, images: int, regions: int, lengths: list[np.ndarray]
    ) -> None:
        device = torch.device(job.device)
        torch.manual_seed(0)
        self.model = AsCL(1, 1, None, embed_dim, heads)
        self.model.image.requires_grad_(False)                  # encoding is not measured
        with torch.no_grad():
            for linear in (self.model.text_global, self.model.attended_image_global, self.model.image_global):
                torch.nn.init.eye_(linear.weight)               # like the initial attentions
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.5 * embed_dim**-0.5)
        self.model.to(device)
        assert self.model.word_norm is not None
        norm = 1.0 if job.way in SCAN else self.model.word_norm
        concepts = torch.randn(CONCEPTS, embed_dim)
        step = job.what == "step"
        where = device if step else torch.device("cpu")         # evaluation keeps encoded items on the CPU
        self.images = EncodedImages(
            _tokens(concepts, norm, images, regions).to(where).requires_grad_(step),
            _tokens(concepts, norm, images, 1).squeeze(1).to(where).requires_grad_(step),
        )
        self.text_sets = []
        for of_set in lengths:
            mask = torch.arange(int(of_set.max())) < torch.from_numpy(of_set).unsqueeze(1)
            words = _tokens(concepts, norm, *mask.shape).to(where).requires_grad_(step)
            self.text_sets.append(EncodedTexts(words, mask.to(where)))
        self.score_gradients = [torch.randn(images, len(texts), device=device) for texts in self.text_sets] if step \
            else []

    @property
    def texts(self) -> EncodedTexts:
        """The captions."""
        return self.text_sets[0]

    def leaves(self) -> list[Tensor]:
        """Return the tensors whose gradients training needs."""
        return [*(p for p in self.model.parameters() if p.requires_grad), self.images.regions, self.images.globals,
                *(texts.words for texts in self.text_sets)]

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all leaves, which exist after a step."""
        found = [leaf.grad for leaf in self.leaves()]
        assert all(gradient is not None for gradient in found)
        return cast(list[Tensor], found)

    def forget_gradients(self) -> None:
        """Remove all gradients, like an optimizer's `zero_grad` before each step."""
        for leaf in self.leaves():
            leaf.grad = None


def _tokens(concepts: Tensor, norm: float, items: int, tokens: int) -> Tensor:
    """Return (items, tokens, D) vectors, each near a random concept, all with norm `norm`."""
    made = torch.empty(items, tokens, concepts.shape[1])
    for part in made.split(MADE_TOGETHER):
        part.normal_(std=0.5)
        part += concepts[torch.randint(len(concepts), part.shape[:2])]
        part *= norm / part.norm(dim=-1, keepdim=True)
    return made


def _autocast(job: Job) -> AbstractContextManager:
    low = TYPES[job.precision] != torch.float32
    return torch.autocast(job.device, TYPES[job.precision]) if low else nullcontext()


def _exact_step(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    inputs.forget_gradients()
    with _autocast(job):
        scores = score_batch(inputs.model, inputs.images[:images], inputs.text_sets)
    return _backward(inputs, scores)


def _candidates_step(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    """Score the pairs that random cosines rank highest, for a noised set the pairs of its set; others get 0."""
    inputs.forget_gradients()
    generator = torch.Generator().manual_seed(0)
    chosen = [hardest_pairs(torch.rand(images, len(texts), generator=generator), CANDIDATES).to(job.device)
              for texts in inputs.text_sets[:2]] * 2
    with _autocast(job):
        weights = inputs.model.fusion_weights()
        assert weights is not None
        scores = [score_chosen(weights, inputs.images[:images], texts, of_set).masked_fill(~of_set, 0)
                  for texts, of_set in zip(inputs.text_sets, chosen, strict=True)]
    return _backward(inputs, scores)


def _pairwise_step(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    """Score with `pair_scores`, in blocks of texts of similar length, so that padding does not affect the ratio."""
    inputs.forget_gradients()
    scores = []
    with _autocast(job):
        for texts in inputs.text_sets:
            blocks = torch.argsort(texts.mask.sum(dim=1), stable=True).split(STEP_BLOCK)
            columns = [inputs.model.pair_scores(inputs.images[:images], pick(texts, index)) for index in blocks]
            scores.append(torch.cat(columns, dim=1)[:, torch.cat(blocks).argsort()])
    return _backward(inputs, scores)


def _backward(inputs: _Inputs, scores: list[Tensor]) -> list[Tensor]:
    torch.autograd.backward(scores, [gradient[: len(scores[0])].to(part.dtype) for part, gradient in
                                     zip(scores, inputs.score_gradients, strict=True)])
    return [part.detach() for part in scores]


def _scores(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    return [score_all_pairs(inputs.model, inputs.images[:images], inputs.texts, backend=job.way,
                            dtype=TYPES[job.precision])]


def _scan_scores(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    lengths = inputs.texts.mask.sum(dim=1).tolist()
    return [scan.score_all(SCAN[job.way], inputs.images.regions[:images], inputs.texts.words, lengths,
                           torch.device(job.device))]


def _ranks(job: Job, inputs: _Inputs, images: int) -> list[Tensor]:
    """Rank with one caption per image; the recalls of random items are meaningless."""
    rank_all_pairs(inputs.model, inputs.images[:images], inputs.texts, torch.arange(len(inputs.texts)) % images,
                   backend=job.way, dtype=TYPES[job.precision])
    return []


Way = Callable[[Job, _Inputs, int], list[Tensor]]


def _way(job: Job) -> Way:
    if job.what == "step":
        return {"exact": _exact_step, "candidates": _candidates_step, "pairwise": _pairwise_step}[job.way]
    if job.what == "ranks":
        return _ranks
    return _scan_scores if job.way in SCAN else _scores


class Measuring:
    """A job in its own process. Peak memory is correct only if the process has done nothing else."""

    def __init__(self, job: Job) -> None:
        self.job, self.run = job, _way(job)
        torch.set_float32_matmul_precision("high" if job.precision == "tf32" else "highest")
        lengths, positive_lengths, source = text_lengths(job.captions, job.split, job.texts)
        wanted = [lengths, positive_lengths, lengths, positive_lengths] if job.what == "step" else [lengths]
        self.run(job, _Inputs(job, 8, 2, 2, 2, [np.array([1, 2])] * len(wanted)), 2)
        self.inputs = _Inputs(job, job.embed_dim, job.heads, job.images, job.regions, wanted)
        self.lengths = f"{source}, mean {np.concatenate(wanted).mean():.1f}"
        self.gemm = _Gemm(job)
        self.gemm.best()                                # like the tiny run, this loads libraries and thread pools first
        self.peak = _Peak(job.device)
        self.images, self.of_pilot = self._images_that_fit() if job.pairwise else (job.images, 0)
        self.scores: list[Tensor] = []
        if job.device == "cuda":
            self._timed(self.images)                    # the first run of a size also selects or compiles kernels

    def repeat(self) -> Repeat:
        """Time one run, between two measurements of the machine's peak."""
        before = self.gemm.best()
        seconds = self._timed(self.images)
        return Repeat(seconds, (before + self.gemm.best()) / 2)

    def finish(self) -> Finished:
        """Return the results of the job."""
        job, memory = self.job, self.peak.bytes()       # first, because what follows needs memory too
        if job.what == "step":
            if self.images < job.images:
                memory += (memory - self.of_pilot) * (job.images - self.images) // (self.images - PILOT)
            pairs = sum(int((of_set != 0).sum()) for of_set in self.scores)
            return Finished(memory, differences=self._differences() if job.way == "pairwise" else None, pairs=pairs)
        if job.what == "ranks":
            return Finished(memory)
        return Finished(memory, self.scores[0].numpy(), count_flops(job, self.inputs))

    def profile(self) -> dict[str, float]:
        """Return kind of operation -> share of one run's time; "other" is the remaining wall time, Python included."""
        self.run(self.job, self.inputs, self.images)
        on_gpu = self.job.device == "cuda"
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if on_gpu else []
        with torch.profiler.profile(activities=activities) as profile:
            whole = self._timed(self.images)
        seconds = dict.fromkeys((*KINDS, "other"), 0.0)
        for event in profile.key_averages():
            if event.device_type != torch.autograd.DeviceType.CPU:
                continue                                # a kernel's time is included in its operation
            spent = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
            name = event.key.removeprefix("aten::").removesuffix("_")
            kind = next((kind for kind, names in KINDS.items() if name in names), None)
            if kind is not None:
                seconds[kind] += spent
        seconds["other"] = max(0.0, whole - sum(seconds.values()))
        return {kind: spent / sum(seconds.values()) for kind, spent in seconds.items()}

    def _timed(self, images: int) -> float:
        """Return the seconds of one run."""
        self.scores = []                                # scores of an earlier run must not count as memory of this one
        gc.collect()
        _synchronize(self.job.device)
        start = time.perf_counter()
        self.scores = self.run(self.job, self.inputs, images)
        _synchronize(self.job.device)
        return time.perf_counter() - start

    def _images_that_fit(self) -> tuple[int, int]:
        """Return how many images a pairwise method can use within the time and the free memory, and one image's bytes.

        At least two images, because a linear extrapolation needs two points.
        """
        self._timed(PILOT)
        seconds = self._timed(PILOT)
        memory, free = self.peak.bytes(), free_memory(torch.device(self.job.device))
        # scoring a matrix keeps nothing of one image while it computes the next
        by_memory = SHARE_OF_MEMORY * free / max(1, memory) if self.job.what == "step" else float("inf")
        fit = int(min(self.job.images, self.job.seconds / seconds, by_memory))
        return min(self.job.images, max(PILOT + 1, fit)), memory

    def _differences(self) -> tuple[float, float]:
        """Return the largest relative difference of scores and of gradients between both methods."""
        expected = _pairwise_step(self.job, self.inputs, self.images)
        gradients = self.inputs.gradients()
        found = _exact_step(self.job, self.inputs, self.images)
        return (max(map(difference, found, expected)), max(map(difference, self.inputs.gradients(), gradients)))


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, relative to the largest absolute expected value."""
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


class _Gemm:
    """Products of square matrices in a job's dtype. Their memory is allocated before peak memory is measured."""

    def __init__(self, job: Job) -> None:
        self.device = job.device
        self.left, self.right, self.product = (
            torch.randn(job.gemm, job.gemm).to(job.device, TYPES[job.precision]) for _ in range(3)
        )

    @torch.no_grad()
    def best(self) -> float:
        """Return the FLOP/s of the fastest product."""
        seconds = []
        for _ in range(GEMMS):
            _synchronize(self.device)
            start = time.perf_counter()
            torch.matmul(self.left, self.right, out=self.product)
            _synchronize(self.device)
            seconds.append(time.perf_counter() - start)
        return 2 * len(self.left) ** 3 / min(seconds)


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class _Peak:
    """The peak memory since its creation, above the memory in use at that time."""

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.baseline = torch.cuda.memory_allocated() if device == "cuda" else _peak_resident()

    def bytes(self) -> int:
        most = torch.cuda.max_memory_allocated() if self.device == "cuda" else _peak_resident()
        return most - self.baseline


def _peak_resident() -> int:
    """Return the bytes of this process's largest resident set so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class _Count:
    """A function with the FLOP of the matrix products of all its calls, by torch's own counter."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.flops = function, 0

    def __call__(self, *arguments: Any) -> Any:
        # with plain attention the counter sees every product; in older versions of torch it misses fused ones
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            result = self.function(*arguments)
        self.flops += counter.get_total_flops()
        return result


@torch.no_grad()
def count_flops(job: Job, inputs: _Inputs) -> Flops:
    """Count the FLOP of one pair, and of the preparation of items, divided by the number of pairs of the job.

    It counts one block of images (one image if all are computed alike) with all texts. Products inside our own kernel
    cannot be counted; `needed_flops` is used instead.
    """
    if job.way in SCAN:
        count = _Count(_scan_scores)
        count(job, inputs, 1)
        return Flops(count.flops / len(inputs.texts), 0.0)
    fused = job.way == "triton"
    tiles = make_tiles(inputs.model, inputs.images, inputs.texts, backend="algebra" if fused else job.way,
                       dtype=TYPES[job.precision])
    groups = tiles.groups()
    rows = slice(0, 1) if job.way == "reference" else groups[0][0]
    images, texts = _Count(tiles.way.images), _Count(tiles.way.texts)
    score = _Count((lambda *prepared: torch.zeros(())) if fused else tiles.way.score)
    counted = replace(tiles, way=tiles.way._replace(images=images, texts=texts, score=score))
    for _ in counted.of([rows], np.arange(len(inputs.texts))):
        pass
    of_images = rows.stop - rows.start
    pairs = len(inputs.images) * len(inputs.texts)
    prepared = images.flops * len(inputs.images) / of_images + texts.flops * len(groups)
    pair = needed_flops(tiles.lengths, job.regions, job.embed_dim, job.heads) if fused else \
        score.flops / (of_images * len(inputs.texts))
    return Flops(pair, prepared / pairs)


def needed_flops(lengths: Sequence[int] | np.ndarray, regions: int, embed_dim: int, heads: int) -> float:
    """Return the FLOP that the algebra of `retrieval/scoring/attention.py` needs for one pair, averaged over texts.

    Padding is excluded, and so are sums over tokens, which some methods compute as matrix products.
    """
    words = np.asarray(lengths, dtype=float)
    match = 2 * 2 * 2 * regions * words * embed_dim                     # logits and x . y, in two directions
    square = 2 * (regions * (heads * words) ** 2 + words * (heads * regions) ** 2)
    outputs = 2 * heads * embed_dim * (words + 2 * regions)             # one matrix for texts, two for images
    return float((match + square + outputs).mean())


@dataclass(frozen=True)
class Errors:
    """The largest absolute error of each method's scores against float64, and the range of these scores."""

    largest: list[float]
    lowest: float
    highest: float


def refusal(job: Job) -> str | None:
    """Return the reason why `score_all_pairs` would refuse a job's backend and dtype, or None."""
    inputs = _Inputs(job, job.embed_dim, job.heads, 1, job.regions, [np.array([1])])
    try:
        make_tiles(inputs.model, inputs.images, inputs.texts, backend=job.way, dtype=TYPES[job.precision])
    except ValueError as error:
        return str(error)
    return None


def errors(jobs: list[Job]) -> Errors:
    """Return each method's error on a small sample, against `pair_scores` with model and items in float64."""
    first = replace(jobs[0], images=ERROR_IMAGES, texts=ERROR_TEXTS)
    lengths = text_lengths(first.captions, first.split, first.texts)[0]
    inputs = _Inputs(first, first.embed_dim, first.heads, first.images, first.regions, [lengths])
    device = torch.device(first.device)
    with torch.no_grad():
        expected = copy.deepcopy(inputs.model).double().pair_scores(
            inputs.images.to(device, torch.float64), inputs.texts.to(device, torch.float64)
        ).cpu()
    largest = []
    for job in jobs:
        torch.set_float32_matmul_precision("high" if job.precision == "tf32" else "highest")
        largest.append((_scores(job, inputs, first.images)[0] - expected).abs().max().item())
    return Errors(largest, expected.min().item(), expected.max().item())


_measuring: Measuring | None = None         # the job of this process


def start(job: Job) -> Started:
    """Create the inputs, without measuring."""
    global _measuring
    _measuring = Measuring(job)
    return Started(_measuring.images, _measuring.lengths)


def repeat() -> Repeat:
    assert _measuring is not None
    return _measuring.repeat()


def finish() -> Finished:
    assert _measuring is not None
    return _measuring.finish()


def profile(job: Job) -> dict[str, float]:
    return Measuring(job).profile()
