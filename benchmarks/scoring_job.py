"""One measurement of time and memory: scores of image-text pairs, computed exactly but fast, or pair by pair.

`exact` is what training and evaluation use (`score_batch`, `score_all_pairs`). `pairwise` is the plain reference:
`AsCL.pair_scores`, whose attentions are `torch.nn.MultiheadAttention`, and autograd through it. Both go through the
texts in the same blocks of similar length, so that a ratio of the two shows the algebra and not the padding.
"""

from __future__ import annotations

import gc
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ascl.data.caption_ops import positive_caption
from ascl.data.captions import load_captions
from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.retrieval import score_all_pairs, score_batch
from ascl.retrieval.scoring import length_blocks, trim

# Tokens at the 0th, 5th, ..., 100th percentile of the 25,000 captions of COCO's 5K test, and of positives made of them.
CAPTION_LENGTHS = (6, 8, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 13, 13, 14, 16, 50)
POSITIVE_LENGTHS = (1, 4, 5, 5, 6, 6, 7, 7, 8, 9, 15, 19, 20, 21, 21, 22, 23, 24, 25, 27, 72)
TOKEN = re.compile(r"\w+|[^\w\s]")      # a word or a mark: within 4 % of the number of BERT's word pieces
STEP_BLOCK, EVALUATION_BLOCK = 32, 64   # texts at a time, as in score_batch and score_all_pairs
PILOT = 1                               # image: its time and memory tell how many the pairwise way can take
SHARE_OF_MEMORY = 0.7


@dataclass(frozen=True)
class Job:
    """What to measure. `seconds`: no repeat is started that would end later; the first one always runs."""

    what: str                   # "step" or "evaluation"
    way: str                    # "exact" or "pairwise"
    embed_dim: int
    heads: int
    images: int
    texts: int                  # of each set: a step has four of them
    regions: int
    device: str
    repeats: int
    seconds: float
    captions: str | None        # file of real captions, None = lengths drawn from the percentiles above
    split: str


@dataclass(frozen=True)
class Measurement:
    """seconds: of each repeat, with `images` images.

    memory: bytes above the inputs at the worst moment, for all images of the job: where fewer were run, on the
    straight line through the memory of one image and of those.
    score_difference and gradient_difference: `pairwise` against `exact` on the same pairs, relative to the largest
    absolute value (of scores, and of each gradient); None where not compared.
    """

    seconds: list[float]
    memory: int
    images: int
    lengths: str
    score_difference: float | None = None
    gradient_difference: float | None = None


def text_lengths(captions: str | None, split: str, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    """Numbers of tokens of `count` captions, of as many generated positives, and a line that says where they are from.

    Raises:
        DataError: `captions` that cannot be read, or too few of them.
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
            positives.append(positive_caption("both", texts, siblings.index(index), rng))
        drawn = [np.array([len(TOKEN.findall(text)) for text in texts])
                 for texts in ([loaded.captions[index] for index in chosen], positives)]
        source = f"real lengths, {Path(captions).name}"
    return drawn[0], drawn[1], source


def measure(job: Job) -> Measurement:
    """Run one job; the peak of memory is right only in a process that has done nothing else."""
    lengths, positive_lengths, source = text_lengths(job.captions, job.split, job.texts)
    wanted = [lengths, positive_lengths, lengths, positive_lengths] if job.what == "step" else [lengths]
    run_exact, run_pairwise = _ways(job.what)
    run = run_exact if job.way == "exact" else run_pairwise
    tiny = _Inputs(job, 8, 2, 2, 2, [np.array([1, 2])] * len(wanted))
    run(tiny, 2)                                        # thread pools and libraries: not part of any figure
    inputs = _Inputs(job, job.embed_dim, job.heads, job.images, job.regions, wanted)
    peak = _Peak(job.device)
    images, of_pilot = (job.images, 0) if job.way == "exact" else _images_that_fit(job, inputs, run, peak)
    if job.device == "cuda":
        _timed(run, inputs, images, job.device)         # the first run of a size also chooses kernels
    seconds: list[float] = []
    while not seconds or (len(seconds) < job.repeats and sum(seconds) + seconds[-1] <= job.seconds):
        seconds.append(_timed(run, inputs, images, job.device))
    memory = peak.bytes()
    if images < job.images:
        memory += (memory - of_pilot) * (job.images - images) // (images - PILOT)
    mean = np.concatenate(wanted).mean()
    differences = (None, None) if job.way == "exact" else _differences(run_exact, run_pairwise, inputs, images)
    return Measurement(seconds, memory, images, f"{source}, mean {mean:.1f}", *differences)


class _Inputs:
    """A model and encoded items with random numbers: no figure depends on their values."""

    def __init__(
        self, job: Job, embed_dim: int, heads: int, images: int, regions: int, lengths: list[np.ndarray]
    ) -> None:
        device = torch.device(job.device)
        torch.manual_seed(0)
        self.model = AsCL(1, 1, None, embed_dim, heads).to(device)
        self.model.image.requires_grad_(False)                  # encoding is no part of any figure
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(std=embed_dim**-0.5)
        step = job.what == "step"
        where = device if step else torch.device("cpu")         # evaluation holds its encoded items on the CPU
        self.images = EncodedImages(
            torch.randn(images, regions, embed_dim, device=where, requires_grad=step),
            torch.randn(images, embed_dim, device=where, requires_grad=step),
        )
        self.text_sets = []
        for of_set in lengths:
            mask = torch.arange(int(of_set.max())) < torch.from_numpy(of_set).unsqueeze(1)
            words = torch.randn(*mask.shape, embed_dim, device=where, requires_grad=step)
            self.text_sets.append(EncodedTexts(words, mask.to(where)))
        self.score_gradients = [torch.randn(images, len(texts), device=device) for texts in self.text_sets]

    def leaves(self) -> list[Tensor]:
        """What training needs the gradient of."""
        return [*(p for p in self.model.parameters() if p.requires_grad), self.images.regions, self.images.globals,
                *(texts.words for texts in self.text_sets)]

    def gradients(self) -> list[Tensor]:
        """Of every leaf; after a step none is without."""
        found = [leaf.grad for leaf in self.leaves()]
        assert all(gradient is not None for gradient in found)
        return cast(list[Tensor], found)

    def forget_gradients(self) -> None:
        """As an optimizer's `zero_grad` before each step."""
        for leaf in self.leaves():
            leaf.grad = None


Way = Callable[[_Inputs, int], list[Tensor]]


def _ways(what: str) -> tuple[Way, Way]:
    return (_exact_step, _pairwise_step) if what == "step" else (_exact_evaluation, _pairwise_evaluation)


def _exact_step(inputs: _Inputs, images: int) -> list[Tensor]:
    inputs.forget_gradients()
    return _backward(inputs, score_batch(inputs.model, inputs.images[:images], inputs.text_sets, STEP_BLOCK))


def _pairwise_step(inputs: _Inputs, images: int) -> list[Tensor]:
    inputs.forget_gradients()
    part = inputs.images[:images]
    return _backward(inputs, [_pairwise(inputs.model, part, texts, STEP_BLOCK) for texts in inputs.text_sets])


def _backward(inputs: _Inputs, scores: list[Tensor]) -> list[Tensor]:
    torch.autograd.backward(scores, [gradient[: len(scores[0])] for gradient in inputs.score_gradients])
    return [part.detach() for part in scores]


@torch.no_grad()
def _exact_evaluation(inputs: _Inputs, images: int) -> list[Tensor]:
    return [score_all_pairs(inputs.model, inputs.images[:images], texts) for texts in inputs.text_sets]


@torch.no_grad()
def _pairwise_evaluation(inputs: _Inputs, images: int) -> list[Tensor]:
    device = inputs.score_gradients[0].device
    part = inputs.images[:images].to(device)
    return [_pairwise(inputs.model, part, texts.to(device), EVALUATION_BLOCK).cpu() for texts in inputs.text_sets]


def _pairwise(model: AsCL, images: EncodedImages, texts: EncodedTexts, block: int) -> Tensor:
    """(N_images, N_texts) by `pair_scores`, in the blocks of texts that the exact way uses."""
    blocks = length_blocks(texts.mask, block)
    columns = [model.pair_scores(images, trim(texts[index])) for index in blocks]
    return torch.cat(columns, dim=1)[:, torch.cat(blocks).argsort()]


def _timed(run: Way, inputs: _Inputs, images: int, device: str) -> float:
    """Seconds of one run."""
    gc.collect()
    _synchronize(device)
    start = time.perf_counter()
    run(inputs, images)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class _Peak:
    """The most memory used since it was made, above what was used then."""

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
    """Bytes of this process's largest resident set so far."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _available(device: str) -> int:
    """Bytes that can be taken without harm to others."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        return 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", meminfo.read_text(encoding="utf-8"))[0])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _images_that_fit(job: Job, inputs: _Inputs, run: Way, peak: _Peak) -> tuple[int, int]:
    """How many images the pairwise way can take in the time of one measurement and in the memory that is free.

    At least two, for a line needs two points. Also the bytes that one image takes.
    """
    _timed(run, inputs, PILOT, job.device)
    seconds = _timed(run, inputs, PILOT, job.device)
    memory = peak.bytes()
    fit = int(min(job.seconds / seconds, SHARE_OF_MEMORY * _available(job.device) / max(1, memory)))
    return min(job.images, max(PILOT + 1, fit)), memory


def _differences(exact: Way, pairwise: Way, inputs: _Inputs, images: int) -> tuple[float, float | None]:
    """Largest relative difference of scores and, after a step, of gradients: both ways computed the same thing."""
    expected = pairwise(inputs, images)
    if inputs.images.regions.requires_grad:
        gradients = inputs.gradients()
        found = exact(inputs, images)
        of_gradients = max(map(_difference, inputs.gradients(), gradients))
    else:
        found, of_gradients = exact(inputs, images), None
    return max(map(_difference, found, expected)), of_gradients


def _difference(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()
