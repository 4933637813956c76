"""Which photo of a folder has which role in a generated benchmark, and which queries are made from them.

Roles are disjoint: no photo, and no near-duplicate of one, has two of them.

references: photos as they are, in the reference set.
distractors: edited copies of them are queries without a reference.
reverse_crops: hard negatives. The REFERENCE is a crop of such a photo, and the query shows all of it: not a copy.
background: photos for score normalization, whitening and calibration.
mix_ins: the remaining photos, which overlays and collages use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.image_copy.benchmark.near_duplicates import NearDuplicates
from ascl.image_copy.descriptors.perceptual_hash import HASH_DISTANCE, PerceptualHasher
from ascl.image_copy.edits.edits import EDITS, SEED_END, sample_rng
from ascl.images.loader import Decoder
from ascl.images.read import UnreadableImage

LEVELS = {"mild": (0.0, 0.3), "medium": (0.35, 0.65), "hard": (0.7, 1.0)}  # ranges of strength, uniform within
COMBINATION = "combination"  # two to four random edits
REVERSE_CROP = "reverse_crop"
UNREADABLE = "unreadable"
KINDS = (*EDITS, COMBINATION)
SHARES = {"references": 0.45, "distractors": 0.1, "reverse_crops": 0.1, "background": 0.25}  # the rest is mixed in
MIX_INS = 100  # photos to find beyond the roles, if the folder has them


@dataclass(frozen=True)
class BenchmarkSettings:
    """Sizes and seed; a size of None is a share of the usable photos (`SHARES`), and `queries` equals references."""

    references: int | None = None
    queries: int | None = None  # with a reference; distractors and reverse crops add their own
    distractors: int | None = None
    reverse_crops: int | None = None
    background: int | None = None
    seed: int = 0  # of every choice, from 0 to 2**32 - 1
    jpeg_quality: int = 95  # of queries and cropped references; the others are copied as they are
    max_side: int = 1024  # photos are scaled to at most this many pixels per side before editing
    min_side: int = 32  # photos with a shorter side are left out

    def __post_init__(self) -> None:
        for name, least in (("references", 1), ("queries", 1), ("distractors", 0), ("reverse_crops", 0),
                            ("background", 0), ("max_side", 1), ("min_side", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name.replace('_', ' ')} {value}: give at least {least}")
        if not 0 <= self.seed < SEED_END:
            raise DataError(f"seed {self.seed}: give a number from 0 to 2**32 - 1")
        if not 1 <= self.jpeg_quality <= 100:
            raise DataError(f"JPEG quality {self.jpeg_quality}: give a number from 1 to 100")

    @property
    def photos(self) -> int | None:
        """Return the number of photos that all roles need, or None if that depends on the folder."""
        sizes = [getattr(self, name) for name in SHARES]
        return None if None in sizes else sum(sizes)

    def for_photos(self, usable: int) -> BenchmarkSettings:
        """Return settings with all sizes for a folder of `usable` photos; open sizes share what is left."""
        open_shares = {name: share for name, share in SHARES.items() if getattr(self, name) is None}
        left = max(0, usable - sum(getattr(self, name) or 0 for name in SHARES))
        whole = sum(open_shares.values()) + 1 - sum(SHARES.values())
        sizes = {n: max(int(share / whole * left + 1e-9), n == "references") for n, share in open_shares.items()}
        filled = replace(self, **sizes)
        return filled if filled.queries is not None else replace(filled, queries=filled.references)


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
        sizes = " + ".join(f"{getattr(settings, name)} {name.replace('_', ' ')}" for name in SHARES)
        raise DataError(f"{sizes} need {needed} different photos, but of {found} images {len(photos.paths)} can be used"
                        f"{f' ({reasons})' if reasons else ''}; give more images or ask for less")
    paths = iter(photos.paths)
    return {name: list(islice(paths, getattr(settings, name))) for name in SHARES} | {"mix_ins": list(paths)}


def plan_queries(
    roles: dict[str, list[Path]], reference_ids: dict[Path, str], settings: BenchmarkSettings
) -> list[QueryPlan]:
    """Return the plans of all queries, shuffled so that ids reveal nothing; references repeat after all are used."""
    rng = sample_rng(settings.seed, 0, 1)
    assert settings.queries is not None

    def in_turn(items: Sequence[Any], count: int) -> list[Any]:
        """Return `count` items in random order; every item comes once before any comes again."""
        return [items[i] for _ in range(-(-count // len(items))) for i in rng.permutation(len(items))][:count]

    plans: list[tuple[str, Path, str, str, str]] = []
    for role, sources, kinds in (
        ("copy", in_turn(roles["references"], settings.queries), KINDS), ("distractor", roles["distractors"], KINDS),
        (REVERSE_CROP, roles["reverse_crops"], (REVERSE_CROP,)),
    ):
        cells = in_turn([(kind, level) for kind in kinds for level in LEVELS], len(sources))
        plans += [(role, source, reference_ids.get(source, ""), kind, level)
                  for source, (kind, level) in zip(sources, cells, strict=True)]
    width = max(5, len(str(len(plans) - 1)))
    order = rng.permutation(len(plans)).tolist()
    return [QueryPlan(f"Q{number:0{width}}", *plans[i]) for number, i in enumerate(order)]
