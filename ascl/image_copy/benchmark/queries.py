"""Make the queries of a generated benchmark from their plans, in this process or in workers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import saving
from ascl.image_copy.benchmark.plan import COMBINATION, LEVELS, REVERSE_CROP, BenchmarkSettings, QueryPlan
from ascl.image_copy.edits.edits import EDITS, Step, edit_chain, random_chain, sample_rng
from ascl.images.loader import depend_on_parent, killed_workers_named
from ascl.images.read import load_image

PHOTOS_MIXED = {"overlay_onto_photo": 1, "overlay_of_photo": 1, "collage": 8, COMBINATION: 8}
HARMLESS = ("flip", "jpeg", "blur", "colour_jitter", "grey")  # one of them for half of the reverse-crop queries


@dataclass(frozen=True)
class Made:
    """What a worker reports about a query that it has written."""

    strength_value: float
    content_scale: float
    reference_content_scale: float | None  # of a reverse crop
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
        if plan.role == REVERSE_CROP:
            reference = EDITS["crop"](photo, strength, rng)
            self._save(reference.image, self.folder / "references" / f"{plan.reference_id}.jpg")
            reference_scale = reference.content_scale
            names = [HARMLESS[int(rng.integers(len(HARMLESS)))]] if rng.random() < 0.5 else []
            edited = edit_chain(photo, names, 0.2, rng)
        else:
            pool = [path for path in self.mix_ins if path != plan.source]
            wanted = min(PHOTOS_MIXED.get(plan.kind, 0), len(pool))
            others = [self._photo(pool[i]) for i in rng.choice(len(pool), wanted, replace=False)] if wanted else []
            if plan.kind == COMBINATION:
                edited = random_chain(photo, strength, rng, others)
            else:
                edited = EDITS[plan.kind](photo, strength, rng, others)
        self._save(edited.image, self.folder / "queries" / f"{plan.query_id}.jpg")
        return Made(strength, edited.content_scale, reference_scale, edited.steps)

    def _photo(self, path: Path) -> Image.Image:
        image = load_image(path).image
        image.thumbnail((self.settings.max_side, self.settings.max_side), Image.Resampling.BILINEAR, reducing_gap=2.0)
        return image

    def _save(self, image: Image.Image, path: Path) -> None:
        encoded = io.BytesIO()  # Pillow does not say why it cannot write to a file
        image.save(encoded, "JPEG", quality=self.settings.jpeg_quality)
        with saving(path):
            path.write_bytes(encoded.getvalue())


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
