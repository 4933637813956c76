"""Read captions from the usual files: Karpathy's JSON, SCAN's text files, COCO's caption JSON.

Every reader decodes UTF-8 (plain, gzip or in a zip, see `text_files.locate`), collapses the white space of each
caption, and keeps the order of the file. It refuses what would silently go wrong later: empty captions, the text of
Python bytes literals, lists that do not fit their images, two images with the same name.
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
from ascl.core.reading import json_kind, parse_json, shown
from ascl.data.scan_text import (
    count_scan_captions,
    images_of_captions,
    read_scan_captions,
    read_scan_ids,
    scan_splits,
)
from ascl.data.stores.scan import ScanFeatures
from ascl.data.text_files import GET_DATA, checked_text, locate, one_line, read_text

SCAN_CAPTIONS_PER_IMAGE = 5
_BYTES_LITERAL = re.compile(r"""b(['"]).*\1""")
_COCO_NAME = re.compile(r"captions_([a-z]+)\d*\.json(?:\.gz)?")


@dataclass(frozen=True, eq=False)
class CaptionSet:
    """Images and their captions; an image may have any number of captions, including zero.

    Attributes:
        image_ids: unique id of each image: its file name without the suffix ("COCO_val2014_000000391895"); for SCAN's
            text files its entry in the ids file, or its number if there is no such file.
        captions: all captions, stripped and not empty.
        owner: (N_captions,) int64, index into `image_ids` of each caption's image.
        source: the file, for messages.
        caption_ids: Karpathy's `sentid`, which is COCO's annotation `id`; None if the file has none.
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
            raise DataError(f"{self.source}: an owner is outside the {len(self.image_ids)} images")
        if self.caption_ids is not None and len(self.caption_ids) != len(self.captions):
            raise DataError(f"{self.source}: {len(self.captions)} captions but {len(self.caption_ids)} caption ids")
        repeated = [shown(name) for name, count in Counter(self.image_ids).items() if count > 1]
        if repeated:
            raise DataError(f"{self.source}: image id{'s' if len(repeated) > 1 else ''} {first_of(repeated, 3)} given "
                            "to more than one image; rename the files (suffixes do not count) or remove duplicates")

    @property
    def numbered(self) -> bool:
        """Whether the ids are only the numbers of the images, as of SCAN's text without an ids file."""
        return self.image_ids == [str(i) for i in range(len(self.image_ids))]

    @property
    def described(self) -> str:
        """The counts and a checksum of the content, which moving the file keeps and changing a word changes."""
        content = json.dumps([self.image_ids, self.captions, self.owner.tolist()], ensure_ascii=False)
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return f"{len(self.captions)} captions of {len(self.image_ids)} images ({digest})"

    @cached_property
    def _captions_by_image(self) -> tuple[np.ndarray, np.ndarray]:
        by_image = np.argsort(self.owner, kind="stable")
        starts = np.searchsorted(self.owner[by_image], np.arange(len(self.image_ids) + 1))
        return by_image, starts

    def captions_of(self, image_index: int) -> list[int]:
        """Return the indices into `captions` of an image's captions, in the order of the file."""
        if not 0 <= image_index < len(self.image_ids):
            raise IndexError(f"image {image_index} of {len(self.image_ids)} ({self.source})")
        by_image, starts = self._captions_by_image
        return by_image[starts[image_index] : starts[image_index + 1]].tolist()

    def limit_captions(self, n: int) -> CaptionSet:
        """Return the same images with the first `n` captions of each (COCO's test has 25,010; five per image count)."""
        if n < 1:
            raise ValueError(f"captions per image must be at least 1, got {n}")
        kept = np.flatnonzero(number_within(self.owner) < n)
        return self._chosen(self.image_ids, kept.tolist(), self.owner[kept])

    def subset(self, image_indices: Sequence[int] | np.ndarray) -> CaptionSet:
        """Return the images of the given indices, in that order, with all their captions; indices must not repeat."""
        groups = [self.captions_of(int(i)) for i in image_indices]
        owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        return self._chosen([self.image_ids[i] for i in image_indices], list(itertools.chain(*groups)), owner)

    def _chosen(self, image_ids: list[str], captions: list[int], owner: np.ndarray) -> CaptionSet:
        ids = None if self.caption_ids is None else [self.caption_ids[i] for i in captions]
        return CaptionSet(image_ids, [self.captions[i] for i in captions], owner, self.source, ids)


def number_within(owner: np.ndarray) -> np.ndarray:
    """Return (N,) int64: for each entry, how many earlier entries have the same owner."""
    by_owner = np.argsort(owner, kind="stable")
    number = np.empty(len(owner), dtype=np.int64)
    number[by_owner] = np.arange(len(owner)) - np.searchsorted(owner[by_owner], owner[by_owner])
    return number


def load_karpathy(path: str | os.PathLike, split: str, *, restval_in_train: bool = True) -> CaptionSet:
    """Read one split of Karpathy's `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json` or similar.

    Args:
        path: JSON file with `images[]`, each with `filename`, `split` and `sentences[].raw`; also its `.gz`, or a
            member of a zip (`caption_datasets.zip/dataset_coco.json`).
        split: "train", "val", "test", or another split that the file names.
        restval_in_train: add the images of COCO's `restval` to `train` (113,287 images in all), as is usual.

    Raises:
        DataError: the file is missing or damaged, the split is unknown (the message lists those present), a caption is
            empty (it names image and sentid), or two images have the same name.
    """
    return _karpathy(read_json(path), Path(path), split, restval_in_train)


def load_coco(path: str | os.PathLike) -> CaptionSet:
    """Read a COCO caption file (`captions_val2014.json`, also `.gz`) with `images[]` and `annotations[]`: one split.

    Captions are grouped by image, in the order of the annotations. Images without captions stay, as distractors.

    Raises:
        DataError: the file is missing or damaged, an annotation is of an unknown image, a caption is empty, or two
            images have the same id or name.
    """
    return _coco(read_json(path), Path(path))


def load_scan(folder: str | os.PathLike, split: str, *, captions_per_image: int | None = None) -> CaptionSet:
    """Read SCAN's `{split}_caps.txt` and, if there, `{split}_ids.txt`.

    The former has one caption per line, with the captions of an image together.

    Args:
        folder: folder of the files; each may also be a `.gz`.
        split: "train", "dev", "test", "testall".
        captions_per_image: None = from the ids file (one line per image, or one per caption with those of an image
            together), else from the rows of `{split}_ims.npy`, or five, as published, if there is no such file either.

    Raises:
        DataError: the file is missing (the message lists the splits present), a line is blank or not UTF-8 (it names
            the row), every line is a `b'...'`, or the number of captions does not fit the images.
    """
    folder = Path(folder)
    path, captions = read_scan_captions(folder, split)
    _refuse_bytes(captions, path)
    ids = read_scan_ids(folder, split)
    if ids is None:
        features = folder / f"{split}_ims.npy"
        if captions_per_image is not None or not features.is_file():
            count = SCAN_CAPTIONS_PER_IMAGE if captions_per_image is None else captions_per_image
            images = images_of_captions(path, len(captions), count)
        else:
            images = len(ScanFeatures(features, captions=len(captions)))
        image_ids, counts = [str(i) for i in range(images)], [len(captions) // images] * images
    elif len(ids) == len(captions):
        groups = [list(lines) for _, lines in itertools.groupby(ids)]
        image_ids, counts = [group[0] for group in groups], [len(group) for group in groups]
    else:
        if len(captions) % len(ids):
            raise DataError(f"{path} has {len(captions)} captions for the {len(ids)} images of its ids file, which is "
                            "not a multiple: one of the two files is incomplete or belongs to another split")
        image_ids, counts = ids, [len(captions) // len(ids)] * len(ids)
    for image_id, count in zip(image_ids, counts, strict=True):
        if captions_per_image not in (None, count):
            raise DataError(f"{path}: image {image_id} has {count} captions by the ids file, but "
                            f"scan_captions_per_image is {captions_per_image}: leave it out, the ids decide")
    return CaptionSet(image_ids, captions, np.repeat(np.arange(len(counts)), counts), str(path))


def load_captions(path_or_folder: str | os.PathLike, split: str, *,
                  scan_captions_per_image: int | None = None) -> CaptionSet:
    """Read captions of any of the three kinds, chosen by name and content.

    Args:
        path_or_folder: a `.json` (Karpathy's or COCO's) or a `*_caps.txt`, each also as `.gz` or in a zip (see
            `text_files.locate`); or a folder that holds exactly one of `{split}_caps.txt`, `dataset_*.json` and
            `captions_{split}*.json`.
        split: as in `load_karpathy` and `load_scan`; a COCO or text file named after another split is refused.
        scan_captions_per_image: `captions_per_image` of `load_scan`; the other formats say it themselves.

    Raises:
        DataError: the folder holds no caption file or several, or a reader raises.
    """
    path = Path(path_or_folder)
    path = _only_caption_file(path, split) if path.is_dir() else locate(path) or path
    name = path.name.removesuffix(".gz")
    if name.endswith("_caps.txt"):
        if name != f"{split}_caps.txt":
            raise DataError(f"{path} holds split {name.removesuffix('_caps.txt')}, not split {split}: give its file")
        return load_scan(path.parent, split, captions_per_image=scan_captions_per_image)
    content = read_json(path)
    if "annotations" not in content:
        return _karpathy(content, path, split, restval_in_train=True)
    named = _COCO_NAME.fullmatch(path.name)
    if named is None:
        raise DataError(f"{path} is a COCO caption file whose name does not say its split: name it "
                        f"captions_{split}.json")
    if named.group(1) != split:
        raise DataError(f"{path} holds COCO's captions of {named.group(1)}, not of split {split}: give its file")
    return _coco(content, path)


def captions_exist(path_or_folder: str | os.PathLike) -> bool:
    """Return whether a caption file or folder exists, in any form that `load_captions` reads.

    Raises:
        DataError: a zip on the path is damaged, or several of its members fit.
    """
    return Path(path_or_folder).is_dir() or locate(Path(path_or_folder)) is not None


def scan_captions_without_ids(path_or_folder: str | os.PathLike, split: str) -> int | None:
    """Return the number of captions where they are SCAN's text without an ids file, which names no images; else None.

    Raises:
        DataError: as `load_captions`.
    """
    path = Path(path_or_folder)
    path = _only_caption_file(path, split) if path.is_dir() else path
    if not path.name.removesuffix(".gz").endswith("_caps.txt") or read_scan_ids(path.parent, split) is not None:
        return None
    return count_scan_captions(path.parent, split)


def _karpathy(content: dict[str, Any], path: Path, split: str, restval_in_train: bool) -> CaptionSet:
    images = entries(content, "images", path)
    wanted = {split, "restval"} if split == "train" and restval_in_train else {split}
    splits = [_text(image, "split", f"{path}, images[{number}]") for number, image in enumerate(images)]
    if split not in splits:
        raise DataError(f"{path} has no split {split!r}; splits there: {_listed(set(splits))}")
    image_ids: list[str] = []
    captions, owner, ids = [], [], []
    for number, image in enumerate(images):
        if splits[number] not in wanted:
            continue
        image_ids.append(stem_in(image, "filename", f"{path}, images[{number}]"))
        place = f"{path}, image {shown(image['filename'])}"
        sentences = _field(image, "sentences", place)
        if not isinstance(sentences, list):
            raise DataError(f"{place}: expected `sentences` as a list of objects with `raw`, found "
                            f"{json_kind(sentences)}; correct it")
        for position, given in enumerate(sentences):
            sentence = {"raw": given} if isinstance(given, str) else given  # some files have plain texts
            where = f"{place}, sentences[{position}]"
            if not isinstance(sentence, dict):
                raise DataError(f"{where}: expected an object with `raw`, or a text, found {json_kind(given)}; "
                                "correct it")
            number_of = _number(sentence.get("sentid"), "sentid", where)
            where = f"{place}, sentid {f'? (sentence {position})' if number_of is None else number_of}"
            captions.append(one_line(_text(sentence, "raw", where, "the caption")))
            owner.append(len(image_ids) - 1)
            ids.append(number_of)
    _refuse_bytes(captions, path)
    return CaptionSet(image_ids, captions, np.array(owner, dtype=np.int64), str(path), _known(ids))


def _coco(content: dict[str, Any], path: Path) -> CaptionSet:
    images = entries(content, "images", path)
    index_of: dict[str, int] = {}
    for number, image in enumerate(images):
        image_id = _image_id(image, "id", f"{path}, images[{number}]")
        if index_of.setdefault(image_id, number) != number:
            raise DataError(f"{path}: two images have the id {shown(image_id)}, the second is images[{number}]")
    found: list[tuple[int, str, int | None]] = []
    for number, annotation in enumerate(entries(content, "annotations", path)):
        own = _number(annotation.get("id"), "id", f"{path}, annotations[{number}]")
        place = f"{path}, annotation {f'? (annotations[{number}])' if own is None else own}"
        image_id = _image_id(annotation, "image_id", place)
        if image_id not in index_of:
            raise DataError(f"{place}: image_id {shown(image_id)} is not among the ids of the file's images, which "
                            f"look like {shown(next(iter(index_of)))}; correct it, or remove the annotation")
        caption = one_line(_text(annotation, "caption", f"{place} of image_id {shown(image_id)}", "the caption"))
        found.append((index_of[image_id], caption, own))
    found.sort(key=operator.itemgetter(0))
    owner, captions, ids = (list(column) for column in zip(*found, strict=True))
    _refuse_bytes(captions, path)
    names = [stem_in(image, "file_name", f"{path}, images[{i}]") for i, image in enumerate(images)]
    return CaptionSet(names, captions, np.array(owner, dtype=np.int64), str(path), _known(ids))


def _known(ids: list[int | None]) -> list[int] | None:
    """Return the captions' own ids, or None unless every caption has one."""
    known = [number for number in ids if number is not None]
    return known if len(known) == len(ids) else None


def _whole(value: Any) -> int | None:
    """Return a whole number of a JSON file as an int, also 12.0, which pandas writes; None for anything else."""
    whole = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
    return int(value) if whole and value == int(value) else None


def _number(value: Any, key: str, where: str) -> int | None:
    """Return a caption's own id; None if it has none, or one that is a text."""
    if value is None or isinstance(value, str):
        return None
    number = _whole(value)
    if number is None:
        raise DataError(f"{where}: expected `{key}` as a whole number, found {json_kind(value)}; correct or remove it")
    return number


def _image_id(entry: dict[str, Any], key: str, where: str) -> str:
    """Return COCO's id of an image as text: files disagree on whether 100 is a number or a text."""
    value = _field(entry, key, where)
    number = _whole(value)
    if number is None and not isinstance(value, str):
        raise DataError(f"{where}: expected `{key}` as a whole number or a text, found {json_kind(value)}; correct it")
    return checked_text(value, where, f"`{key}`") if number is None else str(number)


def _only_caption_file(folder: Path, split: str) -> Path:
    patterns = [f"{split}_caps.txt", "dataset_*.json", f"captions_{split}[0-9]*.json"]
    found = sorted(path for p in patterns for ending in ("", ".gz") for path in folder.glob(p + ending))
    if not found:
        raise DataError(f"no captions of split {split!r} in {folder}: looked for {', '.join(patterns)} (also .gz). "
                        f"SCAN splits there: {scan_splits(folder)}. {GET_DATA}")
    if len(found) > 1:
        raise DataError(f"{folder} holds several caption files ({_listed(p.name for p in found)}): give one path")
    return found[0]


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Return the object in a JSON file: plain, gzip or a member of a zip."""
    path = locate(Path(path)) or Path(path)
    return parse_json(read_text(path), path)


def entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """Return the list of objects under a key of a caption file; DataError if there is none."""
    expected = "expected Karpathy's `dataset_*.json` or COCO's `captions_*.json`"
    found = content.get(key)
    if not isinstance(found, list) or not found:
        raise DataError(f"{path} has no list of objects `{key}` (keys: {_listed(content)}); {expected}")
    for number, entry in enumerate(found):
        if not isinstance(entry, dict):
            raise DataError(f"{path}, {key}[{number}] is {json_kind(entry)} and not an object; {expected}")
    return found


def stem_in(entry: dict[str, Any], key: str, where: str) -> str:
    """Return the name, without suffix, of the file that an entry of `images` names; DataError if it names none."""
    stem = Path(_text(entry, key, where)).stem
    return checked_text(stem, where, f"the name in `{key}`")


def _field(entry: dict[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: key `{key}` is missing (keys: {_listed(entry)})")
    return entry[key]


def _text(entry: dict[str, Any], key: str, where: str, what: str | None = None) -> str:
    return checked_text(_field(entry, key, where), where, what or f"`{key}`")


def _refuse_bytes(captions: list[str], path: Path) -> None:
    """Refuse captions written with `str(bytes)`, which silently halve accuracy: b, quotes and escapes become words."""
    if captions and all(_BYTES_LITERAL.fullmatch(caption) for caption in captions):
        raise DataError(f"{path}: every caption is the text of a Python bytes literal (first: {captions[0][:60]}); "
                        "write the file again from text decoded with .decode('utf-8')")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(shown(str(name)) for name in names)) or "none"
