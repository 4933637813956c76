"""Which photo of a folder has which role in a generated benchmark, and which queries are made from them.

Roles are disjoint: no photo, and no near-duplicate of one, has two of them.

references: photos as they are, in the reference set.
distractors: edited copies of them are queries without a reference.
reverse_crops: hard negatives. The REFERENCE is a crop of such a photo, and the query shows all of it: not a copy.
templates: hard negatives. Two unrelated photos for each, one as reference and one as query, in the same template.
bursts: hard negatives. Reference and query are two windows of such a photo, like two photographs of one scene.
background: photos for score normalization, whitening and calibration.
mix_ins: the remaining photos, which overlays and collages use.

The standard benchmark has no templates and no bursts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.image_copy.benchmark.near_duplicates import NearDuplicates
from ascl.image_copy.descriptors.perceptual_hash import HASH_DISTANCE, PerceptualHasher
from ascl.image_copy.edits.edits import EDITS, HARD_EDITS, SEED_END, sample_rng
from ascl.image_copy.edits.templates import TEMPLATES
from ascl.images.loader import Decoder
from ascl.images.read import UnreadableImage

LEVELS = {"mild": (0.0, 0.3), "medium": (0.35, 0.65), "hard": (0.7, 1.0)}  # ranges of strength, uniform within
COMBINATION = "combination"  # two to four random edits
CHAINS = {COMBINATION: None, "chain_2": 2, "chain_3": 3}  # kinds of several random edits, and how many
REVERSE_CROP, TEMPLATE, BURST = "reverse_crop", "template", "burst"  # roles of hard negatives
UNREADABLE = "unreadable"
KINDS = (*EDITS, COMBINATION)
SHARES = {"references": 0.45, "distractors": 0.1, "reverse_crops": 0.1, "background": 0.25}  # the rest is mixed in
AFTERWARDS = ("colour_jitter", "blur", "jpeg", "tilt", "flip", "text")  # edits of the queries of hard reverse crops
HARD_KINDS = ("chain_2", "chain_3", *(name for name in HARD_EDITS if name != "tilt"))
HARD_SHARES = {"references": 0.3, "distractors": 0.08, "reverse_crops": 0.14, "templates": 0.14, "bursts": 0.08,
               "background": 0.16}
PHOTOS_EACH = {"templates": 2}
QUERY_ROLES = {"distractors": "distractor", "reverse_crops": REVERSE_CROP, "templates": TEMPLATE, "bursts": BURST}
LEAST_QUALITY = 60  # of JPEG in the hard benchmark
MIX_INS = 100  # photos to find beyond the roles, if the folder has them


@dataclass(frozen=True)
class BenchmarkSettings:
    """Sizes and seed; a size of None is a share of the usable photos, and `queries` equals references.

    `kinds` has the kinds of queries by role, `shares` the share of the photos of each size.
    """

    kinds: ClassVar[dict[str, tuple[str, ...]]] = {
        "copy": KINDS, "distractor": KINDS, REVERSE_CROP: (REVERSE_CROP,),
    }
    shares: ClassVar[dict[str, float]] = SHARES

    references: int | None = None
    queries: int | None = None  # with a reference; distractors and hard negatives add their own
    distractors: int | None = None
    reverse_crops: int | None = None
    background: int | None = None
    seed: int = 0  # of every choice, from 0 to 2**32 - 1
    jpeg_quality: int = 95  # of queries and cropped references; the others are copied as they are
    max_side: int | None = 1024  # photos are scaled to at most this many pixels per side before editing; None = not
    min_side: int = 32  # photos with a shorter side are left out

    def __post_init__(self) -> None:
        for name, least in (("references", 1), ("queries", 1), ("distractors", 0), ("reverse_crops", 0),
                            ("templates", 0), ("bursts", 0), ("background", 0), ("max_side", 1), ("min_side", 1)):
            value = getattr(self, name, None)
            if value is not None and value < least:
                raise DataError(f"{name.replace('_', ' ')} {value}: give at least {least}")
        if not 0 <= self.seed < SEED_END:
            raise DataError(f"seed {self.seed}: give a number from 0 to 2**32 - 1")
        if not 1 <= self.jpeg_quality <= 100:
            raise DataError(f"JPEG quality {self.jpeg_quality}: give a number from 1 to 100")

    @property
    def photos(self) -> int | None:
        """Return the number of photos that all roles need, or None if that depends on the folder."""
        needed = [self.photos_for(name) for name in self.shares]
        return None if None in needed else sum(count or 0 for count in needed)

    def photos_for(self, name: str) -> int | None:
        """Return the number of photos that a size needs, or None if it is open."""
        size: int | None = getattr(self, name)
        return None if size is None else size * PHOTOS_EACH.get(name, 1)

    def for_photos(self, usable: int) -> BenchmarkSettings:
        """Return settings with all sizes for a folder of `usable` photos; open sizes share what is left."""
        open_shares = {name: share for name, share in self.shares.items() if getattr(self, name) is None}
        left = max(0, usable - sum(self.photos_for(name) or 0 for name in self.shares))
        whole = sum(open_shares.values()) + 1 - sum(self.shares.values())
        sizes = {name: max(int(share / whole * left + 1e-9) // PHOTOS_EACH.get(name, 1), self.fewest(name))
                 for name, share in open_shares.items()}
        filled = replace(self, **sizes)
        return filled if filled.queries is not None else replace(filled, queries=filled.references)

    def fewest(self, name: str) -> int:
        """Return the least value of an open size."""
        return int(name == "references")

    def quality(self, rng: np.random.Generator) -> int:
        """Return the JPEG quality of a picture."""
        return self.jpeg_quality


@dataclass(frozen=True)
class HardBenchmarkSettings(BenchmarkSettings):
    """The hard benchmark: other kinds, templates and bursts, photos at their size, and pictures of many qualities."""

    kinds: ClassVar[dict[str, tuple[str, ...]]] = {
        "copy": HARD_KINDS, "distractor": HARD_KINDS,
        REVERSE_CROP: tuple(f"{REVERSE_CROP}_{how}" for how in (*AFTERWARDS, "two", "caption")),
        TEMPLATE: tuple(f"{TEMPLATE}_{name}" for name in TEMPLATES), BURST: (BURST,),
    }
    shares: ClassVar[dict[str, float]] = HARD_SHARES

    max_side: int | None = None
    templates: int | None = None
    bursts: int | None = None

    def fewest(self, name: str) -> int:
        """Return the least value of an open size: a hard benchmark has something in every role."""
        return int(name != "background")

    def quality(self, rng: np.random.Generator) -> int:
        """Return the JPEG quality of a picture, from `LEAST_QUALITY` to `jpeg_quality`."""
        return int(rng.integers(min(LEAST_QUALITY, self.jpeg_quality), self.jpeg_quality + 1))


class UsablePhotos(NamedTuple):
    """The photos of a folder in the seeded order in which roles take them, and those left out, with reasons."""

    paths: list[Path]
    skipped: list[tuple[Path, str]]
    looked_at: int


class QueryPlan(NamedTuple):
    """A query before it is made."""

    query_id: str
    role: str
    source: Path
    reference_id: str  # "" for a distractor
    kind: str
    level: str
    partner: Path | None = None  # the photo of the reference, if it is another one: a template's


def usable_photos(
    found: Sequence[Path], settings: BenchmarkSettings, workers: int, *, mix_ins: int = MIX_INS, strict: bool = False
) -> UsablePhotos:
    """Return, in a seeded order, the photos that are readable, large enough, and not near-duplicates of earlier ones.

    If all sizes are given, stop as soon as there are enough photos for the roles and `mix_ins` more. With `strict`, a
    photo that cannot be read raises UnreadableImage.
    """
    order = sample_rng(settings.seed, 0, 0).permutation(len(found)).tolist()
    enough = len(found) if settings.photos is None else settings.photos + mix_ins
    decoder = Decoder(found, order, PerceptualHasher().prepare, workers)
    duplicates = NearDuplicates(HASH_DISTANCE)
    paths: list[Path] = []
    skipped: list[tuple[Path, str]] = []
    for _ in tqdm(order, desc="looking at photos", unit="photo", disable=None):
        if len(paths) >= enough:
            break
        photo = decoder.take()
        path = found[photo.index]
        if photo.pixels is None and strict:
            raise UnreadableImage(path, photo.reason)
        if photo.pixels is None:
            skipped.append((path, f"{UNREADABLE}: {photo.reason}"))
        elif min(photo.size) < settings.min_side:
            skipped.append((path, f"too small: {photo.size[0]} x {photo.size[1]} pixels"))
        elif photo.blank:
            skipped.append((path, photo.blank))
        elif duplicates.add(photo.pixels):
            skipped.append((path, "near-duplicate of another photo"))
        else:
            paths.append(path)
    return UsablePhotos(paths, skipped, len(paths) + len(skipped))


def count_reasons(skipped: Sequence[tuple[Path, str]]) -> dict[str, int]:
    """Return the number of photos by short reason."""
    return dict(sorted(Counter(reason.split(":")[0] for _, reason in skipped).items()))


def assign_roles(photos: UsablePhotos, settings: BenchmarkSettings, found: int) -> dict[str, list[Path]]:
    """Return the photos of each role; "mix_ins" has the rest. Raise DataError if there are too few photos."""
    needed = settings.photos
    assert needed is not None
    if len(photos.paths) < needed:
        reasons = ", ".join(f"{count} {reason}" for reason, count in count_reasons(photos.skipped).items())
        sizes = " + ".join(f"{f'{PHOTOS_EACH[name]} x ' if name in PHOTOS_EACH else ''}{getattr(settings, name)} "
                           f"{name.replace('_', ' ')}" for name in settings.shares)
        raise DataError(f"{sizes} need {needed} different photos, but of {found} images {len(photos.paths)} can be used"
                        f"{f' ({reasons})' if reasons else ''}; give more images or ask for less")
    paths = iter(photos.paths)
    return {name: list(islice(paths, settings.photos_for(name))) for name in settings.shares} | {"mix_ins": list(paths)}


def reference_photos(roles: dict[str, list[Path]]) -> dict[str, list[Path]]:
    """Return the photos of which references are made, by role; of templates these are the first half."""
    return {name: paths[: len(paths) // PHOTOS_EACH.get(name, 1)] for name, paths in roles.items()
            if name in ("references", "reverse_crops", "templates", "bursts")}


def plan_queries(
    roles: dict[str, list[Path]], reference_ids: dict[Path, str], settings: BenchmarkSettings
) -> list[QueryPlan]:
    """Return the plans of all queries, shuffled so that ids reveal nothing; references repeat after all are used."""
    rng = sample_rng(settings.seed, 0, 1)
    assert settings.queries is not None

    def in_turn(items: Sequence[Any], count: int) -> list[Any]:
        """Return `count` items in random order; every item comes once before any comes again."""
        return [items[i] for _ in range(-(-count // len(items))) for i in rng.permutation(len(items))][:count]

    first = reference_photos(roles).get("templates", [])
    partners = dict(zip(roles.get("templates", [])[len(first):], first, strict=True))
    sources = {"copy": in_turn(roles["references"], settings.queries)}
    sources |= {role: list(partners) if role == TEMPLATE else roles[name]
                for name, role in QUERY_ROLES.items() if name in roles}
    plans: list[tuple[str, Path, str, str, str, Path | None]] = []
    for role, photos in sources.items():
        cells = in_turn([(kind, level) for kind in settings.kinds[role] for level in LEVELS], len(photos))
        plans += [(role, photo, reference_ids.get(partners.get(photo, photo), ""), kind, level, partners.get(photo))
                  for photo, (kind, level) in zip(photos, cells, strict=True)]
    width = max(5, len(str(len(plans) - 1)))
    order = rng.permutation(len(plans)).tolist()
    return [QueryPlan(f"Q{number:0{width}}", *plans[i]) for number, i in enumerate(order)]
