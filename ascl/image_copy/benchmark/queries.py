"""Make the queries of a generated benchmark from their plans, in this process or in workers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import saving
from ascl.image_copy.benchmark.pairs import PAIRS
from ascl.image_copy.benchmark.plan import CHAINS, LEVELS, BenchmarkSettings, QueryPlan
from ascl.image_copy.edits.edits import HARD_EDITS, Edited, Step, edit_chain, random_chain, sample_rng
from ascl.images.loader import depend_on_parent, killed_workers_named
from ascl.images.read import load_image

PHOTOS_MIXED = {"overlay_onto_photo": 1, "overlay_of_photo": 1, "collage": 8, **dict.fromkeys(CHAINS, 8),
                **{name: 1 for name in HARD_EDITS if name.startswith("paste")}}
BEFORE = ("crop", "flip", "aspect", "colour_jitter", "grey", "jpeg", "text")  # for half of what goes into something


@dataclass(frozen=True)
class Made:
    """What a worker reports about a query that it has written."""

    strength_value: float
    content_scale: float
    reference_content_scale: float | None  # of a hard negative
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class QueryMaker(Dataset):
    """Item i makes and writes query i, with draws from the seed and i only. It is a text if a photo fails."""

    folder: Path
    plans: Sequence[QueryPlan]
    mix_ins: Sequence[Path]
    settings: BenchmarkSettings

    def __len__(self) -> int:
        return len(self.plans)

    def __getitem__(self, number: int) -> Made | str:
        try:
            return self._make(number)
        except DataError as error:  # the photo is gone by now; torch cannot pass this class between processes
            return str(error)

    def _make(self, number: int) -> Made:
        plan = self.plans[number]
        rng = sample_rng(self.settings.seed, number, 2)
        strength = float(rng.uniform(*LEVELS[plan.level]))
        photo = self._photo(plan.source)
        reference_scale = None
        if plan.role in PAIRS:
            partner = photo if plan.partner is None else self._photo(plan.partner)
            reference, edited = PAIRS[plan.role](photo, partner, plan.kind, strength, rng)
            self._save(reference.image, self.folder / "references" / f"{plan.reference_id}.jpg", rng)
            reference_scale = reference.content_scale
        else:
            pool = [path for path in self.mix_ins if path != plan.source]
            wanted = min(PHOTOS_MIXED.get(plan.kind, 0), len(pool))
            others = [self._photo(pool[i]) for i in rng.choice(len(pool), wanted, replace=False)] if wanted else []
            edited = edited_copy(photo, plan.kind, strength, rng, others)
        self._save(edited.image, self.folder / "queries" / f"{plan.query_id}.jpg", rng)
        return Made(strength, edited.content_scale, reference_scale, edited.steps)

    def _photo(self, path: Path) -> Image.Image:
        image, side = load_image(path).image, self.settings.max_side
        if side is not None:
            image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return image

    def _save(self, image: Image.Image, path: Path, rng: Generator) -> None:
        encoded = io.BytesIO()  # Pillow does not say why it cannot write to a file
        image.save(encoded, "JPEG", quality=self.settings.quality(rng))
        with saving(path):
            path.write_bytes(encoded.getvalue())


def edited_copy(
    photo: Image.Image, kind: str, strength: float, rng: Generator, others: Sequence[Image.Image]
) -> Edited:
    """Return a copy of a kind: an edit, several random ones, or for half of the hard edits one of `BEFORE` first."""
    if kind in CHAINS:
        return random_chain(photo, strength, rng, others, count=CHAINS[kind])
    before = [str(rng.choice(BEFORE))] if kind in HARD_EDITS and rng.random() < 0.5 else []
    return edit_chain(photo, [*before, kind], strength, rng, others)


def make_queries(maker: QueryMaker, workers: int) -> list[Made]:
    """Make all queries in `workers` processes (0 = in this one) and return the report on each.

    Raises DataError if a photo is gone by now, or a process was killed.
    """
    loader = DataLoader(maker, batch_size=None, num_workers=workers, worker_init_fn=depend_on_parent)
    made = []
    with killed_workers_named("makes queries"):
        for done in tqdm(loader, desc="making queries", unit="query", disable=None):
            if isinstance(done, str):
                raise DataError(done)
            made.append(done)
    return made
