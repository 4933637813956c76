"""Captions from the files that people already hold: Karpathy JSON, SCAN's text files, COCO caption JSON.

Every reader decodes UTF-8 (plain, gzip or inside a zip, see `text_files.locate`), strips each caption and joins its
inner white space, keeps the order of the file, and refuses what would go wrong silently later: an empty caption, the
text of Python bytes literals, a list that does not fit its images, two images of one name.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError, first_of
from ascl.data.text_files import GET_DATA, locate, read_text

SCAN_CAPTIONS_PER_IMAGE = 5
_BYTES_LITERAL = re.compile(r"""b(['"]).*\1""")
_COCO_NAME = re.compile(r"captions_([a-z]+)\d*\.json(?:\.gz)?")


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Images and their captions; an image may have any number of captions, also none.

    Attributes:
        image_ids: one for each image, unique: the stem of its file name ("COCO_val2014_000000391895"); for SCAN's text
            files the entry of the ids file, or the image's number where there is none.
        captions: every caption, decoded and stripped, never empty.
        owner: (N_captions,) int64, index into `image_ids` of each caption's image.
        source: the file it came from, for messages.
        caption_ids: Karpathy's `sentid`, COCO's annotation `id` (the same numbers); None where the file gives none.
    """

    image_ids: list[str]
    captions: list[str]
    owner: np.ndarray
    source: str
    caption_ids: list[int] | None = None

    def __post_init__(self) -> None:
        owner = np.asarray(self.owner, dtype=np.int64)
        object.__setattr__(self, "owner", owner)
        if owner.shape != (len(self.captions),):
            raise DataError(f"{self.source}: {len(self.captions)} captions but owner has shape {owner.shape}")
        if len(owner) and not (0 <= owner.min() and owner.max() < len(self.image_ids)):
            raise DataError(f"{self.source}: an owner lies outside the {len(self.image_ids)} images")
        if self.caption_ids is not None and len(self.caption_ids) != len(self.captions):
            raise DataError(f"{self.source}: {len(self.captions)} captions but {len(self.caption_ids)} caption ids")
        repeated = [name for name, count in Counter(self.image_ids).items() if count > 1]
        if repeated:
            raise DataError(f"{self.source}: image id{'s' if len(repeated) > 1 else ''} {first_of(repeated, 3)} given "
                            "to more than one image; rename the files (endings do not count) or remove the double ones")

    @property
    def described(self) -> str:
        """Say how many there are, and a checksum of which: the same for a moved file, another for a changed word."""
        content = json.dumps([self.image_ids, self.captions, self.owner.tolist()], ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return f"{len(self.captions)} captions of {len(self.image_ids)} images ({digest})"

    @cached_property
    def _captions_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        by_image = np.argsort(self.owner, kind="stable")
        starts = np.searchsorted(self.owner[by_image], np.arange(len(self.image_ids) + 1))
        return by_image, starts

    def captions_of(self, image_index: int) -> list[int]:
        """Indices into `captions` of one image's captions, in the order of the file."""
        if not 0 <= image_index < len(self.image_ids):
            raise IndexError(f"image {image_index} of {len(self.image_ids)} ({self.source})")
        by_image, starts = self._captions_by_image
        return by_image[starts[image_index] : starts[image_index + 1]].tolist()

    def limit_captions(self, n: int) -> CaptionSet:
        """The same images with the first `n` captions of each (COCO's test has 25,010; five an image count)."""
        if n < 1:
            raise ValueError(f"captions per image have to be at least 1, got {n}")
        kept = np.flatnonzero(number_within(self.owner) < n)
        return self._chosen(self.image_ids, kept.tolist(), self.owner[kept])

    def subset(self, image_indices: Sequence[int] | np.ndarray) -> CaptionSet:
        """The images of the given indices, in that order, with all their captions; an index may occur once."""
        groups = [self.captions_of(int(i)) for i in image_indices]
        owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return self._chosen([self.image_ids[i] for i in image_indices], list(itertools.chain(*groups)), owner)

    def _chosen(self, image_ids: list[str], captions: list[int], owner: np.ndarray) -> CaptionSet:
        ids = None if self.caption_ids is None else [self.caption_ids[i] for i in captions]
        return CaptionSet(image_ids, [self.captions[i] for i in captions], owner, self.source, ids)


def number_within(owner: np.ndarray) -> np.ndarray:
    """(N,) int64: how many entries of the same owner come before each one."""
    by_owner = np.argsort(owner, kind="stable")
    number = np.empty(len(owner), dtype=np.int64)
    number[by_owner] = np.arange(len(owner)) - np.searchsorted(owner[by_owner], owner[by_owner])
    return number


def load_karpathy(path: str | os.PathLike, split: str, *, restval_in_train: bool = True) -> CaptionSet:
    """Read one split of `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json` or their like.

    Args:
        path: file with `images[]`, each with `filename`, `split` and `sentences[].raw`; also its `.gz`, or a member of
            a zip (`caption_datasets.zip/dataset_coco.json`).
        split: "train", "val", "test", or whatever else the file names.
        restval_in_train: the images of COCO's `restval` belong to `train` (113,287 images), as everybody trains.

    Raises:
        DataError: missing or damaged file, unknown split (those present are listed), empty caption (image and sentid
            named), two images of one name.
    """
    return _karpathy(read_json(path), Path(path), split, restval_in_train)


def load_coco(path: str | os.PathLike) -> CaptionSet:
    """Read a COCO caption file (`captions_val2014.json`, also `.gz`), which is a split: `images[]` and `annotations[]`.

    Captions are grouped by image, in the order of the annotations; an image without captions stays, as a distractor.

    Raises:
        DataError: missing or damaged file, annotation of an unknown image, empty caption, two images of one id or name.
    """
    return _coco(read_json(path), Path(path))


def load_scan(folder: str | os.PathLike, split: str, *, captions_per_image: int | None = None) -> CaptionSet:
    """Read SCAN's `{split}_caps.txt` (a caption a line, those of one image together), and `{split}_ids.txt` if there.

    Args:
        folder: where the files lie; each may also be a `.gz`.
        split: "train", "dev", "test", "testall".
        captions_per_image: without it, from the ids (a line for each image, or for each caption with those of one image
            together); without ids, five.

    Raises:
        DataError: missing file (the splits present are listed), blank line or invalid UTF-8 (row named), every line a
            `b'...'`, a number of captions that does not fit the images.
    """
    folder = Path(folder)
    path = locate(folder / f"{split}_caps.txt")
    if path is None:
        raise DataError(f"no {split}_caps.txt (or .gz) in {folder}; splits there: {_scan_splits(folder)}. {GET_DATA}")
    captions = _read_lines(path, "caption")
    _refuse_bytes(captions, path)
    ids = read_scan_ids(folder, split)
    if ids is None:
        count = SCAN_CAPTIONS_PER_IMAGE if captions_per_image is None else captions_per_image
        if count < 1 or len(captions) % count:
            raise DataError(f"{path} has {len(captions)} captions, which is not a multiple of {count} captions an "
                            "image; the file is incomplete, or give captions_per_image or an ids file")
        image_ids, counts = [str(i) for i in range(len(captions) // count)], [count] * (len(captions) // count)
    elif len(ids) == len(captions):
        groups = [list(lines) for _, lines in itertools.groupby(ids)]
        image_ids, counts = [group[0] for group in groups], [len(group) for group in groups]
    else:
        if len(captions) % len(ids):
            raise DataError(f"{path} has {len(captions)} captions for the {len(ids)} images of its ids file, which "
                            "does not divide; one of the two files is incomplete or belongs to another split")
        image_ids, counts = ids, [len(captions) // len(ids)] * len(ids)
    for image_id, count in zip(image_ids, counts, strict=True):
        if captions_per_image not in (None, count):
            raise DataError(f"{path}: image {image_id} has {count} captions, {captions_per_image} were asked for")
    return CaptionSet(image_ids, captions, np.repeat(np.arange(len(counts)), counts), str(path))


def load_captions(path_or_folder: str | os.PathLike, split: str) -> CaptionSet:
    """Read captions of any of the three kinds, chosen by what is found.

    Args:
        path_or_folder: a `.json` (Karpathy or COCO, told apart by content), a `*_caps.txt`, each also as `.gz` or in a
            zip (see `text_files.locate`); or a folder that holds exactly one of `{split}_caps.txt`, `dataset_*.json`,
            `captions_{split}*.json`.
        split: as in `load_karpathy` and `load_scan`; a COCO or text file named after another split is refused.

    Raises:
        DataError: nothing or more than one thing found in the folder, or any error of the readers.
    """
    path = Path(path_or_folder)
    path = _only_caption_file(path, split) if path.is_dir() else locate(path) or path
    name = path.name.removesuffix(".gz")
    if name.endswith("_caps.txt"):
        if name != f"{split}_caps.txt":
            raise DataError(f"{path} holds split {name.removesuffix('_caps.txt')}, split {split} was asked for")
        return load_scan(path.parent, split)
    content = read_json(path)
    if "annotations" not in content:
        return _karpathy(content, path, split, restval_in_train=True)
    named = _COCO_NAME.fullmatch(path.name)
    if named is None:
        raise DataError(f"{path} is a COCO caption file, which does not say its split: name it captions_{split}.json")
    if named.group(1) != split:
        raise DataError(f"{path} holds COCO's captions of {named.group(1)}, split {split} was asked for")
    return _coco(content, path)


def captions_exist(path_or_folder: str | os.PathLike) -> bool:
    """Whether there is anything at the path of a caption file or folder, in any way that `load_captions` knows.

    Raises:
        DataError: a zip on the way is damaged or does not say which member is meant.
    """
    return Path(path_or_folder).is_dir() or locate(Path(path_or_folder)) is not None


def read_scan_ids(folder: str | os.PathLike, split: str) -> list[str] | None:
    """Lines of `{split}_ids.txt` (or `.gz`), one for each image or caption; None where there is no such file."""
    path = locate(Path(folder) / f"{split}_ids.txt")
    if path is None:
        return None
    return _read_lines(path, "id")


def count_scan_captions(folder: str | os.PathLike, split: str) -> int | None:
    """Number of captions in `{split}_caps.txt` (or `.gz`); None where there is no such file."""
    path = locate(Path(folder) / f"{split}_caps.txt")
    return None if path is None else len(_read_lines(path, "caption"))


def _karpathy(content: dict[str, Any], path: Path, split: str, restval_in_train: bool) -> CaptionSet:
    images = entries(content, "images", path)
    wanted = {split, "restval"} if split == "train" and restval_in_train else {split}
    splits = [_field(image, "split", path, f"images[{number}]") for number, image in enumerate(images)]
    if split not in splits:
        raise DataError(f"{path} has no split {split!r}; splits there: {_listed(set(splits))}")
    image_ids: list[str] = []
    captions, owner, ids = [], [], []
    for number, image in enumerate(images):
        if splits[number] not in wanted:
            continue
        filename = _field(image, "filename", path, f"images[{number}]")
        for position, sentence in enumerate(_field(image, "sentences", path, f"images[{number}]")):
            place = f"image {filename}, sentid {sentence.get('sentid', f'? (sentence {position})')}"
            captions.append(_cleaned(_field(sentence, "raw", path, place), path, place))
            owner.append(len(image_ids))
            ids.append(sentence.get("sentid"))
        image_ids.append(Path(filename).stem)
    _refuse_bytes(captions, path)
    return CaptionSet(image_ids, captions, np.array(owner, dtype=np.int64), str(path), _numbers(ids))


def _coco(content: dict[str, Any], path: Path) -> CaptionSet:
    images = entries(content, "images", path)
    index_of: dict[Any, int] = {}
    for number, image in enumerate(images):
        image_id = _field(image, "id", path, f"images[{number}]")
        if index_of.setdefault(image_id, number) != number:
            raise DataError(f"{path}: two images have the id {image_id}, the second is images[{number}]")
    found: list[tuple[int, str, Any]] = []
    for number, annotation in enumerate(entries(content, "annotations", path)):
        place = f"annotation {annotation.get('id', f'? (annotations[{number}])')}"
        image_id = _field(annotation, "image_id", path, place)
        if image_id not in index_of:
            raise DataError(f"{path}, {place}: image_id {image_id} is not among the file's images")
        caption = _cleaned(_field(annotation, "caption", path, place), path, place)
        found.append((index_of[image_id], caption, annotation.get("id")))
    found.sort(key=operator.itemgetter(0))
    owner, captions, ids = (list(column) for column in zip(*found, strict=True))
    _refuse_bytes(captions, path)
    names = [Path(_field(image, "file_name", path, f"images[{i}]")).stem for i, image in enumerate(images)]
    return CaptionSet(names, captions, np.array(owner, dtype=np.int64), str(path), _numbers(ids))


def _numbers(ids: list[Any]) -> list[int] | None:
    """The captions' own numbers, where each has one."""
    return ids if all(isinstance(number, int) for number in ids) else None


def _only_caption_file(folder: Path, split: str) -> Path:
    patterns = [f"{split}_caps.txt", "dataset_*.json", f"captions_{split}[0-9]*.json"]
    found = sorted(path for p in patterns for ending in ("", ".gz") for path in folder.glob(p + ending))
    if not found:
        raise DataError(f"no captions of split {split!r} in {folder}: looked for {', '.join(patterns)} (also .gz). "
                        f"SCAN splits there: {_scan_splits(folder)}. {GET_DATA}")
    if len(found) > 1:
        raise DataError(f"{folder} holds several caption files ({_listed(p.name for p in found)}): give one's path")
    return found[0]


def _scan_splits(folder: Path) -> str:
    return _listed({path.name.split("_caps.txt")[0] for path in folder.glob("*_caps.txt*")})


def _read_lines(path: Path, what: str) -> list[str]:
    """Lines, cleaned, without empty ones at the end; only the line feed ends a line (`str.splitlines` has ten more)."""
    text = read_text(path).rstrip()
    if not text:
        raise DataError(f"{path} is empty: fetch it again")
    return [_cleaned(line, path, f"row {row}", what) for row, line in enumerate(text.split("\n"), start=1)]


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Return the object in a JSON file; plain, gzip or a member of a zip."""
    path = locate(Path(path)) or Path(path)
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        place = f"row {error.lineno}, column {error.colno}: {error.msg}"
        raise DataError(f"{path} is not whole JSON ({place}): fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}, expected an object with `images`")
    return content


def entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The list of objects under a key of a caption file; DataError where there is none."""
    found = content.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
        raise DataError(f"{path} has no list of objects `{key}` (keys: {_listed(content)}); expected Karpathy's "
                        "`dataset_*.json` or COCO's `captions_*.json`")
    return found


def _field(entry: dict[str, Any], key: str, path: Path, place: str) -> Any:
    if key not in entry:
        raise DataError(f"{path}, {place}: key `{key}` is missing (keys: {_listed(entry)})")
    return entry[key]


def _cleaned(text: str, path: Path, place: str, what: str = "caption") -> str:
    """Stripped, with single spaces: COCO has captions with a line break inside."""
    cleaned = " ".join(text.split())
    if not cleaned:
        raise DataError(f"{path}, {place}: empty {what}; remove the entry or fill it")
    return cleaned


def _refuse_bytes(captions: list[str], path: Path) -> None:
    """Files written with `str(bytes)` silently halve the accuracy: b, quotes and escapes become words."""
    if captions and all(_BYTES_LITERAL.fullmatch(caption) for caption in captions):
        raise DataError(f"{path}: every caption is the text of a Python bytes literal (first: {captions[0][:60]}); "
                        "write the file again from text decoded with .decode('utf-8')")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "none"
