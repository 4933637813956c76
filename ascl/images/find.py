"""Find the images that a user means, in folders, lists and single files, and give each its id.

Nothing but regular files is ever opened, and nothing is left out without being counted.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from ascl.core.errors import DataError, first_of
from ascl.core.reading import irregular, read_text, require_file, shown
from ascl.images.formats import SUFFIXES, is_image_content, lacking

IdRule = Literal["path", "stem"]
# Copies and previews that network disks, recycle bins and systems keep among photos; compared in lower case.
SYSTEM_NAMES = frozenset({"@eadir", "__macosx", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
                          "$recycle.bin", "system volume information", "lost+found", ".thumbnails", "thumbs.db",
                          "ehthumbs.db", "desktop.ini", "ipod photo cache"})
EXAMPLES = 3  # names that a summary shows of each kind


@dataclass(frozen=True)
class ImageFile:
    """An image on the disk, and its id: text that can be printed and stored anywhere."""

    path: Path
    id: str


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used; the path is printable."""

    path: str
    reason: str
    fault: bool = True  # of the file: it cannot be read; False = it can, and there is nothing in it to use


@dataclass
class PassedOver:
    """How many files or folders of one kind were left out, and the first of them."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(name)


@dataclass(frozen=True)
class FoundImages(Sequence[ImageFile]):
    """The images that were found, in order, and what was left out."""

    images: list[ImageFile] = field(default_factory=list)
    faults: list[Skipped] = field(default_factory=list)  # what has the name of an image or folder and cannot be opened
    passed_over: dict[str, PassedOver] = field(default_factory=dict)  # by kind; none of it is an image to read

    @overload
    def __getitem__(self, index: int) -> ImageFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageFile]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def paths(self) -> list[Path]:
        return [image.path for image in self.images]

    @property
    def ids(self) -> list[str]:
        return [image.id for image in self.images]

    def passed_over_values(self) -> dict[str, Any]:
        """Return what was left out as JSON values."""
        return {name: vars(kind) for name, kind in self.passed_over.items()}

    def passed_over_text(self) -> str:
        """Return what was left out in one line: `2 hidden (.cache, .DS_Store), 12 .txt (a.txt, ...)`; "" = nothing."""
        return ", ".join(f"{kind.count:,} {name} ({', '.join(kind.examples)}{', ...' * (kind.count > EXAMPLES)})"
                         for name, kind in sorted(self.passed_over.items()))


def find_images(folder: str | os.PathLike, *, ids: IdRule = "path", exclude: Sequence[str] = (),
                strict: bool = False, empty: bool = False) -> FoundImages:
    """Return every image below one folder; see `images_of`.

    Raises DataError as `images_of`, or if there is no such folder; with `empty`, it may have no images.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{shown(folder)}: no such folder of images")
    return images_of(folder, ids=ids, exclude=exclude, strict=strict, empty=empty)


def images_of(*sources: str | os.PathLike, ids: IdRule = "path", exclude: Sequence[str] = (),
              strict: bool = False, empty: bool = False) -> FoundImages:
    """Return the images of folders, of lists in .txt files, and of single files, in the order of the sources.

    A folder is searched at any depth and through linked folders, sorted by path. A file is an image by its suffix, or,
    without a suffix or with an unknown one, by its first bytes. Names that begin with a dot, and the folders in which
    systems keep thumbnails and removed files, are left out. A list has one path per line, relative to its own folder;
    empty lines and lines that begin with `#` are skipped. A file that is named twice comes once.

    Args:
        ids: "path": the id of an image is its path relative to the folder that was given, or as its list has it; a
            single file has its name. If several sources are given, ids in a folder begin with the folder's name; where
            ids are still equal, with as many names of parent folders as tell them apart. "stem": the file's name
            without the suffix, as in public split files and ground truths.
        exclude: patterns (`fnmatch`) of names of files and folders, or of relative paths, that are left out.
        strict: raise for the first entry of `faults`.
        empty: return nothing, instead of raising, if there are no images.

    Raises:
        DataError: no source is given, one does not exist or has no images, a list is not UTF-8, or two images have one
            id.
    """
    if not sources or "" in sources:
        raise DataError("no images: give a folder, a list of images (.txt) or an image")
    found, given = FoundImages(), []
    exclude = [pattern.rstrip("/") for pattern in exclude if pattern.rstrip("/")]
    for source in map(Path, sources):
        if source.is_dir():
            given.append(_Source(source, int(len(sources) > 1), list(_below(source, exclude, found))))
        elif source.suffix.lower() == ".txt":
            given.append(_Source(source.parent, 0, list(_listed(source, exclude, found))))
        elif os.path.lexists(source):
            given.append(_Source(source.parent, 0, list(_single(source, exclude, found))))
        else:
            raise DataError(f"{shown(source)}: no such image or folder of images")
    if strict and found.faults:
        raise DataError(f"{found.faults[0].path}: {found.faults[0].reason}; repair or remove it")
    if not empty and not any(source.files for source in given):
        left_out = found.passed_over_text()
        faults = first_of([f"{one.path}: {one.reason}" for one in found.faults], 3)
        raise DataError(f"no image in {first_of([shown(source) for source in sources], 3)}"
                        + f"; passed over: {left_out}" * bool(left_out) + f"; cannot be read: {faults}" * bool(faults)
                        + f"; looked for {', '.join(sorted(SUFFIXES))}" * (not left_out and not faults))
    found.images.extend(_with_ids(_each_once(given, found), ids))
    return found


def by_any_id(folder: str | os.PathLike) -> dict[str, Path]:
    """Return the images of a folder by every id that a feature file may give them: their path, with or without the
    suffix, or a stem; the last two only where one image has it.

    Raises DataError as `find_images`.
    """
    images = find_images(folder).images
    found: dict[str, Path] = {}
    for id_of in (lambda image: stem_of(image.path), lambda image: image.id.removesuffix(shown(image.path.suffix)),
                  lambda image: image.id):
        counts = Counter(map(id_of, images))
        found |= {id_of(image): image.path for image in images if counts[id_of(image)] == 1}
    return found


def stem_of(path: Path) -> str:
    """Return the name of a file without its suffix, as printable text."""
    return shown(path.stem)


class _Source(NamedTuple):
    """What one source gave: `files` as (path relative to `root`, file); ids begin with `depth` last names of `root`."""

    root: Path
    depth: int
    files: list[tuple[str, Path]]

    @property
    def deepest(self) -> int:
        return len(Path(os.path.abspath(self.root)).parts) - 1

    def ids(self, depth: int) -> list[str]:
        names = Path(os.path.abspath(self.root)).parts[1:]
        prefix = shown("/".join(names[self.deepest - depth:]))
        return [shown(name) if not prefix or os.path.isabs(name) else f"{prefix}/{shown(name)}"
                for name, _ in self.files]


def _pass_over(found: FoundImages, kind: str, name: str) -> None:
    found.passed_over.setdefault(kind, PassedOver()).add(shown(name))


def _below(folder: Path, exclude: Sequence[str], found: FoundImages) -> Iterator[tuple[str, Path]]:
    """Yield the images below a folder, sorted; linked folders come last, so that an image is named by its own place."""
    files, pending, linked = list[tuple[str, Path]](), [("", folder)], list[tuple[str, Path]]()
    visited: set[tuple[int, int]] = set()  # a link to a parent folder would otherwise be followed forever
    while pending or linked:
        prefix, current = (pending or linked).pop(0)
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            found.faults.append(Skipped(shown(current), f"the folder cannot be read ({error.strerror})"))
            continue
        for entry in listed:
            name, path = prefix + entry.name, current / entry.name
            if _left_out(name, exclude, found):
                continue
            if not entry.is_symlink() and entry.is_dir(follow_symlinks=False):
                pending.append((f"{name}/", path))
            elif entry.is_symlink() and os.path.isdir(path):
                linked.append((f"{name}/", path))
            elif _is_image(name, path, found):
                files.append((name, path))
    yield from sorted(files)


def _listed(path: Path, exclude: Sequence[str], found: FoundImages) -> Iterator[tuple[str, Path]]:
    """Yield the images that a list names, in its order."""
    require_file(path, "list of images")
    rows = 0
    for row, line in enumerate(read_text(path, "list of images").split("\n"), start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        rows += 1
        name = Path(name).as_posix()
        image = path.parent / name
        reason = irregular(image)
        if reason is not None:
            found.faults.append(Skipped(shown(image), f"{shown(path)}, row {row}: {reason}"))
        elif not _excluded(name, exclude, found):
            yield name, image
    if not rows:
        raise DataError(f"{shown(path)} names no image; write one path per line")


def _single(path: Path, exclude: Sequence[str], found: FoundImages) -> Iterator[tuple[str, Path]]:
    reason = irregular(path)
    if reason is not None:
        found.faults.append(Skipped(shown(path), reason))
    elif not _excluded(path.name, exclude, found):
        yield path.name, path


def _left_out(name: str, exclude: Sequence[str], found: FoundImages) -> bool:
    """Return whether an entry of a folder is left out by its name, and count it."""
    last = name.rpartition("/")[2]
    if last.lower() in SYSTEM_NAMES:
        _pass_over(found, "thumbnails or removed files of the system", name)
    elif last.startswith("."):
        _pass_over(found, "hidden", name)
    else:
        return _excluded(name, exclude, found)
    return True


def _excluded(name: str, exclude: Sequence[str], found: FoundImages) -> bool:
    parts = shown(name).split("/")
    if any(fnmatchcase(part, pattern) for pattern in exclude for part in (*parts, "/".join(parts))):
        _pass_over(found, "excluded", name)
        return True
    return False


def _is_image(name: str, path: Path, found: FoundImages) -> bool:
    """Return whether an entry of a folder is an image; count or name it if not. Opens regular files only."""
    suffix = path.suffix.lower()
    reason = irregular(path)
    if reason is not None and (suffix in SUFFIXES or not suffix):
        found.faults.append(Skipped(shown(path), reason))
    elif reason is None and suffix in SUFFIXES:
        missing = lacking(suffix)
        if missing is None:
            return True
        _pass_over(found, f"{suffix}, which needs {missing}", name)
    else:
        try:
            if reason is None and is_image_content(path):
                return True
            _pass_over(found, suffix if re.fullmatch(r"\.\w{1,8}", suffix) else "of no image format", name)
        except OSError as error:
            found.faults.append(Skipped(shown(path), f"cannot be read ({error.strerror})"))
    return False


def _each_once(given: list[_Source], found: FoundImages) -> list[_Source]:
    """Return the sources without files that they name again; a folder names each of its own files once."""
    if len(given) == 1 and not _names_twice(given[0]):
        return given
    seen: set[str] = set()

    def is_new(name: str, path: Path) -> bool:
        real = os.path.realpath(path)
        if real in seen:
            _pass_over(found, "given twice", name)
            return False
        seen.add(real)
        return True

    return [source._replace(files=[(name, path) for name, path in source.files if is_new(name, path)])
            for source in given]


def _names_twice(source: _Source) -> bool:
    return len({name for name, _ in source.files}) < len(source.files)


def _with_ids(given: list[_Source], rule: IdRule) -> Iterator[ImageFile]:
    """Yield all images with their ids; raise DataError for two of one id."""
    depths = [source.depth for source in given]
    while True:
        ids = [[stem_of(path) for _, path in source.files] if rule == "stem" else source.ids(depth)
               for source, depth in zip(given, depths, strict=True)]
        counts = Counter(one for own in ids for one in own)
        if len(counts) == sum(map(len, ids)):
            break
        deeper = [min(depth + 1, source.deepest) if any(counts[one] > 1 for one in own) else depth
                  for source, depth, own in zip(given, depths, ids, strict=True)]
        if rule == "stem" or deeper == depths:
            twice = next(one for one, count in counts.items() if count > 1)
            both = [shown(path) for source, own in zip(given, ids, strict=True)
                    for (_, path), one in zip(source.files, own, strict=True) if one == twice]
            remedy = "use paths as ids (of an index: in a new one), or rename one" if rule == "stem" else "rename one"
            raise DataError(f"two images have the id {twice!r}: {both[0]} and {both[1]}; {remedy}")
        depths = deeper
    for source, own in zip(given, ids, strict=True):
        for (_, path), one in zip(source.files, own, strict=True):
            yield ImageFile(path, one)
