"""Captions from the files that people already hold: Karpathy JSON, SCAN's text files, COCO caption JSON.

Every reader decodes UTF-8 (with or without a byte order mark; plain, gzip or inside a zip, see `text_files.locate`),
strips each caption and joins its inner white space, keeps the order of the file, and refuses what would go wrong
silently later: an empty caption, a caption that is the text of a Python bytes literal, a list that does not fit its
images, two images of one name.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
        caption_ids: the file's own number of each caption (Karpathy's `sentid`, COCO's annotation `id`: for COCO the
            same numbers); None where the file gives none.
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
                            "to more than one image; the name of an image (its file name without ending) has to be "
                            "unique, so rename the files or remove the double entries")

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
        by_image, starts = self._captions_by_image
        position = np.empty(len(by_image), dtype=np.int64)  # of each caption among its image's captions
        position[by_image] = np.arange(len(by_image)) - starts[self.owner[by_image]]
        kept = np.flatnonzero(position < n)
        return replace(self, owner=self.owner[kept], **self._chosen(kept))

    def _chosen(self, indices: Iterable[int]) -> dict[str, Any]:
        """Texts and ids of some captions."""
        chosen = list(indices)
        ids = None if self.caption_ids is None else [self.caption_ids[i] for i in chosen]
        return {"captions": [self.captions[i] for i in chosen], "caption_ids": ids}

    def subset(self, image_indices: Sequence[int] | np.ndarray) -> CaptionSet:
        """The images of the given indices, in that order, with all their captions; an index may occur once."""
        chosen = [int(i) for i in image_indices]
        captions = [self.captions_of(i) for i in chosen]
        return replace(self, image_ids=[self.image_ids[i] for i in chosen],
                       owner=np.repeat(np.arange(len(chosen)), [len(group) for group in captions]),
                       **self._chosen(c for group in captions for c in group))


def load_karpathy(path: str | os.PathLike, split: str, *, restval_in_train: bool = True) -> CaptionSet:
    """Read one split of `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json` or their like.

    Args:
        path: file with `images[]`, each with `filename`, `split` and `sentences[].raw`; also its `.gz`, or a member of
            a zip (`caption_datasets.zip/dataset_coco.json`).
        split: "train", "val", "test", or whatever else the file names.
        restval_in_train: the images of COCO's `restval` belong to `train` (113,287 images), as everybody trains.

    Raises:
        DataError: missing or damaged file, unknown split (the message lists those present), empty caption (named by
            file, image and sentid), two images of one name.
    """
    return _karpathy(read_json(path), Path(path), split, restval_in_train)


def load_coco(path: str | os.PathLike) -> CaptionSet:
    """Read a COCO caption file (`captions_val2014.json`, also `.gz`): `images[]` and `annotations[]`; the file is the
    split.

    Captions are grouped by image, in the order of the annotations; an image without captions stays, as a distractor.

    Raises:
        DataError: missing or damaged file, annotation of an unknown image, empty caption, two images of one id or name.
    """
    return _coco(read_json(path), Path(path))


def load_scan(folder: str | os.PathLike, split: str, *, captions_per_image: int | None = None) -> CaptionSet:
    """Read SCAN's `{split}_caps.txt` (one caption a line, those of one image together) and `{split}_ids.txt` if it is
    there.

    Args:
        folder: where the files lie; each may also be a `.gz`.
        split: "train", "dev", "test", "testall".
        captions_per_image: without it, from the number of ids; without ids, five. An ids file with one line for each
            caption gives the images by itself (lines of one image follow one another).

    Raises:
        DataError: missing file (the message lists the splits present), blank line or invalid UTF-8 (file and row
            named), every line a `b'...'`, a number of captions that does not fit the images.
    """
    folder = Path(folder)
    path = locate(folder / f"{split}_caps.txt")
    if path is None:
        raise DataError(f"no {split}_caps.txt (or .gz) in {folder}; splits there: {_listed(_scan_splits(folder))}. "
                        f"{GET_DATA}")
    captions = _read_lines(path)
    _check_captions(captions, path, [f"row {row}" for row in range(1, len(captions) + 1)])
    ids = read_scan_ids(folder, split)
    if ids is not None and len(ids) == len(captions):
        image_ids, owner = _runs(ids)
        per_image = np.bincount(owner)
        if captions_per_image is not None and (per_image != captions_per_image).any():
            image = int(np.flatnonzero(per_image != captions_per_image)[0])
            raise DataError(f"{split}_ids.txt in {folder} gives image {image_ids[image]} {per_image[image]} captions, "
                            f"{captions_per_image} were asked for")
    else:
        count = _captions_per_image(len(captions), None if ids is None else len(ids), captions_per_image, path)
        image_ids = [str(i) for i in range(len(captions) // count)] if ids is None else ids
        owner = np.repeat(np.arange(len(image_ids)), count)
    return CaptionSet(image_ids, captions, owner, str(path))


def load_captions(path_or_folder: str | os.PathLike, split: str) -> CaptionSet:
    """Read captions of any of the three kinds, chosen by what is found.

    Args:
        path_or_folder: a `.json` (Karpathy or COCO, told apart by content), a `*_caps.txt`, each also as `.gz` or in a
            zip (`text_files.locate` has the rule); or a folder that holds exactly one of `{split}_caps.txt`,
            `dataset_*.json`, `captions_{split}*.json`.
        split: as in `load_karpathy` and `load_scan`; a COCO caption file or a text file named after another split is
            refused.

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
        raise DataError(f"{path} is a COCO caption file, which does not say its split: name it captions_{split}.json, "
                        "one file for each split, or every split would be the same images")
    if named.group(1) != split:
        raise DataError(f"{path} holds COCO's captions of {named.group(1)}, split {split} was asked for")
    return _coco(content, path)


def captions_exist(path_or_folder: str | os.PathLike) -> bool:
    """Whether there is anything at the path of a caption file or folder, in any of the ways that `load_captions` knows.

    Raises:
        DataError: a zip on the way is damaged or does not say which member is meant.
    """
    return Path(path_or_folder).is_dir() or locate(Path(path_or_folder)) is not None


def read_scan_ids(folder: str | os.PathLike, split: str) -> list[str] | None:
    """Lines of `{split}_ids.txt` (or `.gz`), one for each image or caption; None where there is no such file."""
    path = locate(Path(folder) / f"{split}_ids.txt")
    if path is None:
        return None
    ids = _read_lines(path)
    _check_filled(ids, path, [f"row {row}" for row in range(1, len(ids) + 1)], "id")
    return ids


def count_scan_captions(folder: str | os.PathLike, split: str) -> int | None:
    """Number of captions in `{split}_caps.txt` (or `.gz`); None where there is no such file."""
    path = locate(Path(folder) / f"{split}_caps.txt")
    return None if path is None else len(_read_lines(path))


def _karpathy(content: dict[str, Any], path: Path, split: str, restval_in_train: bool) -> CaptionSet:
    images = _entries(content, "images", path)
    wanted = {split, "restval"} if split == "train" and restval_in_train else {split}
    chosen = []
    for number, image in enumerate(images):
        if _field(image, "split", path, f"images[{number}]") in wanted:
            chosen.append((number, image))
    if not any(image["split"] == split for _, image in chosen):
        raise DataError(f"{path} has no split {split!r}; splits there: {_listed({str(i['split']) for i in images})}")
    image_ids, captions, places, counts, ids = [], [], [], [], []
    for number, image in chosen:
        filename = _field(image, "filename", path, f"images[{number}]")
        sentences = _field(image, "sentences", path, f"images[{number}]")
        image_ids.append(Path(filename).stem)
        counts.append(len(sentences))
        for position, sentence in enumerate(sentences):
            place = f"image {filename}, sentid {sentence.get('sentid', f'? (sentence {position})')}"
            captions.append(_clean(_field(sentence, "raw", path, place)))
            places.append(place)
            ids.append(sentence.get("sentid"))
    _check_captions(captions, path, places)
    return CaptionSet(image_ids, captions, np.repeat(np.arange(len(image_ids)), counts), str(path), _numbers(ids))


def _coco(content: dict[str, Any], path: Path) -> CaptionSet:
    images = _entries(content, "images", path)
    index_of: dict[Any, int] = {}
    for number, image in enumerate(images):
        image_id = _field(image, "id", path, f"images[{number}]")
        if image_id in index_of:
            raise DataError(f"{path}: two images have the id {image_id} (images[{index_of[image_id]}] and "
                            f"images[{number}])")
        index_of[image_id] = number
    captions, places, owner, ids = [], [], [], []
    for number, annotation in enumerate(_entries(content, "annotations", path)):
        place = f"annotation {annotation.get('id', f'? (annotations[{number}])')}"
        image_id = _field(annotation, "image_id", path, place)
        if image_id not in index_of:
            raise DataError(f"{path}, {place}: image_id {image_id} is not among the file's images")
        captions.append(_clean(_field(annotation, "caption", path, place)))
        places.append(place)
        owner.append(index_of[image_id])
        ids.append(annotation.get("id"))
    _check_captions(captions, path, places)
    names = [Path(_field(image, "file_name", path, f"images[{i}]")).stem for i, image in enumerate(images)]
    by_image = np.argsort(owner, kind="stable")
    return CaptionSet(names, [captions[i] for i in by_image], np.asarray(owner, dtype=np.int64)[by_image], str(path),
                      _numbers([ids[i] for i in by_image]))


def _numbers(ids: list[Any]) -> list[int] | None:
    """The captions' own numbers, where each has one."""
    return ids if all(isinstance(number, int) for number in ids) else None


def _captions_per_image(captions: int, images: int | None, wanted: int | None, path: Path) -> int:
    if images is None:
        count = SCAN_CAPTIONS_PER_IMAGE if wanted is None else wanted
        if count < 1 or captions % count:
            raise DataError(f"{path} has {captions} captions, which is not a multiple of {count} captions an image; "
                            "the file is incomplete, or give captions_per_image or an ids file")
        return count
    if captions % images:
        raise DataError(f"{path} has {captions} captions for the {images} images of its ids file, which does not "
                        "divide; one of the two files is incomplete or belongs to another split")
    if wanted is not None and wanted != captions // images:
        raise DataError(f"{path} has {captions} captions for {images} ids = {captions // images} an image, not "
                        f"{wanted}")
    return captions // images


def _runs(ids: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Neighboring equal ids are one image: its ids, and for each line the index of its image."""
    entries = np.asarray(ids)
    first = np.concatenate([[True], entries[1:] != entries[:-1]])
    return entries[first].tolist(), np.cumsum(first) - 1


def _only_caption_file(folder: Path, split: str) -> Path:
    patterns = [f"{split}_caps.txt", "dataset_*.json", f"captions_{split}[0-9]*.json"]
    found = sorted(path for p in patterns for ending in ("", ".gz") for path in folder.glob(p + ending))
    if not found:
        raise DataError(f"no captions of split {split!r} in {folder}: looked for {', '.join(patterns)} (also .gz). "
                        f"SCAN splits there: {_listed(_scan_splits(folder))}. {GET_DATA}")
    if len(found) > 1:
        raise DataError(f"{folder} holds several caption files ({_listed(p.name for p in found)}): give the path of "
                        "one of them")
    return found[0]


def _scan_splits(folder: Path) -> set[str]:
    return {path.name.split("_caps.txt")[0] for path in folder.glob("*_caps.txt*")}


def _read_lines(path: Path) -> list[str]:
    """Lines, cleaned, without empty ones at the end; only the line feed ends a line (`str.splitlines` has ten more)."""
    lines = [_clean(line) for line in read_text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path} is empty: fetch it again")
    return lines


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Return the object in a JSON file; plain, gzip or a member of a zip."""
    path = locate(Path(path)) or Path(path)
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not whole JSON (row {error.lineno}, column {error.colno}: {error.msg}): fetch it "
                        "again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}, expected an object with `images`")
    return content


def _entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path} has no list of objects `{key}` (keys: {_listed(content)}); expected Karpathy's "
                        "`dataset_*.json` or COCO's `captions_*.json`")
    return entries


def _field(entry: dict[str, Any], key: str, path: Path, place: str) -> Any:
    if key not in entry:
        raise DataError(f"{path}, {place}: key `{key}` is missing (keys: {_listed(entry)})")
    return entry[key]


def _clean(caption: str) -> str:
    """Stripped, with single spaces: COCO has captions with a line break inside."""
    return " ".join(caption.split())


def _check_captions(captions: list[str], path: Path, places: list[str]) -> None:
    """Refuse empty captions, and files written with `str(bytes)`, which silently halve the accuracy."""
    _check_filled(captions, path, places, "caption")
    if captions and all(_BYTES_LITERAL.fullmatch(caption) for caption in captions):
        raise DataError(f"{path}: every caption is the text of a Python bytes literal (first: {captions[0][:60]}). The "
                        "file was written from undecoded bytes; write it again with .decode('utf-8'), else b, quotes "
                        "and escapes become words")


def _check_filled(lines: list[str], path: Path, places: list[str], what: str) -> None:
    for line, place in zip(lines, places, strict=True):
        if not line:
            raise DataError(f"{path}, {place}: empty {what}; remove the entry or fill it")


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(sorted(str(name) for name in names)) or "none"
