"""Move superfluous copies away, or replace equal files by hard links; and undo that.

Nothing is deleted. Each step is written to the undo file before it is done, and is done only if both files still have
the content that was compared.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.hashing import sha256_of
from ascl.core.reading import parse_json, read_text, shown
from ascl.image_copy.matching.groups import SAME_FILE
from ascl.image_copy.matching.keeping import Member

FORMAT = "ascl-undo"


@dataclass(frozen=True)
class Step:
    """One file to move, or to replace by a hard link to another file of the same content.

    Attributes:
        action: "move" or "hardlink".
        path: the superfluous file.
        to: where it is moved; for "hardlink", the file that stays.
        sha256: hexadecimal, of the file.
        kept: the file that stays, and its SHA-256.
        mtime_ns, mode: time of the last change and permissions of the superfluous file.
    """

    action: Literal["move", "hardlink"]
    path: str
    to: str
    sha256: str
    kept: str
    kept_sha256: str
    mtime_ns: int
    mode: int


def planned_moves(groups: Iterable[Sequence[Member]], folder: Path) -> list[Step]:
    """Return the moves of all superfluous files of groups into a folder, in which they keep their ids as paths."""
    steps, taken = [], set[str]()
    for kept, one in _superfluous(groups):
        if os.path.samefile(one.path, kept.path):       # one file by two names
            continue
        name = Path(*(part for part in Path(one.record.id).parts if part not in ("..", Path(one.record.id).anchor)))
        if not name.suffix:                             # ids may be stems
            name = name.with_suffix(one.path.suffix)
        to = str((folder / name).absolute())
        number = 1
        while to in taken or os.path.lexists(to):
            number += 1
            to = str((folder / name.with_stem(f"{name.stem}-{number}")).absolute())
        taken.add(to)
        steps.append(_step("move", one, kept, to))
    return steps


def planned_links(groups: Iterable[Sequence[Member]]) -> list[Step]:
    """Return the files of groups to replace by a hard link to the one that is kept, whose content is the same."""
    steps = []
    for kept, one in _superfluous(groups):
        if one.pair is not None and one.pair.reason == SAME_FILE and not os.path.samefile(one.path, kept.path):
            steps.append(_step("hardlink", one, kept, str(kept.path.absolute())))
    return steps


def _superfluous(groups: Iterable[Sequence[Member]]) -> Iterable[tuple[Member, Member]]:
    for kept, *others in groups:
        for one in others:
            if one.superfluous:
                yield kept, one


def _step(action: Literal["move", "hardlink"], one: Member, kept: Member, to: str) -> Step:
    there = one.path.stat()
    return Step(action, str(one.path.absolute()), to, one.record.sha256.hex(), str(kept.path.absolute()),
                kept.record.sha256.hex(), there.st_mtime_ns, stat.S_IMODE(there.st_mode))


def tidy(steps: Sequence[Step], undo: Path, progress: Callable[[int], Any] = lambda count: None) -> list[str]:
    """Do the steps, and return what was left undone, with the reason.

    Args:
        steps: of `planned_moves` or `planned_links`.
        undo: file to write; it must not exist. `undone` takes it.
        progress: gets the number of steps done since the last call.

    Raises:
        DataError: the undo file exists, or cannot be written.
    """
    left = []
    try:
        undo.parent.mkdir(parents=True, exist_ok=True)
        with open(undo, "x", encoding="utf-8") as file:
            file.write(json.dumps({"format": FORMAT}) + "\n")
            for step in steps:
                reason = _obstacle(step)
                if reason is None:
                    file.write(json.dumps(asdict(step)) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    try:
                        _do(step)
                    except (DataError, OSError) as error:
                        reason = str(error)
                if reason is not None:
                    left.append(f"{shown(step.path)}: {reason}")
                progress(1)
    except FileExistsError as error:
        raise DataError(f"{shown(undo)} is there already: undo it, or choose another file") from error
    except OSError as error:
        raise DataError(f"{shown(undo)}: cannot be written ({error.strerror}), so nothing more was changed") from error
    return left


def _obstacle(step: Step) -> str | None:
    """Return why a step must not be done; None if it may."""
    for path, sha256 in ((step.path, step.sha256), (step.kept, step.kept_sha256)):
        try:
            if os.path.islink(path):
                return f"{shown(path)} is a link" if path != step.path else "it is a link"
            if sha256_of(path) != sha256:
                return f"{shown(path)} has another content now: index it again"
        except OSError as error:
            return f"{shown(path)}: {error.strerror}"
    if step.action == "move" and os.path.lexists(step.to):
        return f"{shown(step.to)} is there already"
    if step.action == "move" and os.path.samefile(step.path, step.kept):
        return "it is the file to keep, by another name"
    return None


def _do(step: Step) -> None:
    if step.action == "move":
        os.makedirs(os.path.dirname(step.to), exist_ok=True)
        _move(step.path, step.to)
    else:
        with atomic_path(step.path, flush=False) as temporary:
            os.link(step.kept, temporary)


def _move(source: str, to: str) -> None:
    """Rename; across disks, copy whole before the source goes."""
    try:
        os.rename(source, to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with atomic_path(to) as temporary:
            shutil.copy2(source, temporary)
        try:
            os.unlink(source)
        except OSError:
            os.unlink(to)
            raise


def undone(undo: Path) -> tuple[int, list[str]]:
    """Undo the steps of a file, the last first.

    A moved file goes back to its place if that is free; a hard link becomes a file of its own.

    Returns:
        How many steps were undone (those never done count), and those that could not be, with the reason.

    Raises:
        DataError: there is no such file, or `tidy` did not write it.
    """
    lines = [line for line in read_text(undo, "an undo file").split("\n") if line]
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(parse_json(line, undo, remedy="restore it"))
        except DataError:
            if number < len(lines):
                raise
    if not values or values[0].get("format") != FORMAT:
        raise DataError(f"{shown(undo)} is no undo file of ascl copy groups")
    try:
        steps = [Step(**one) for one in values[1:]]
    except TypeError as error:
        raise DataError(f"{shown(undo)} is damaged ({error}); its other lines say what was moved where") from error
    left = []
    for step in reversed(steps):
        try:
            reason = _undo(step)
        except (DataError, OSError) as error:
            reason = str(error)
        if reason is not None:
            left.append(f"{shown(step.path)}: {reason}")
    return len(steps) - len(left), left


def _undo(step: Step) -> str | None:
    """Undo a step; return why that cannot be done, None if it is done or never was."""
    if step.action == "move":
        if not os.path.lexists(step.to):
            return None if os.path.lexists(step.path) else f"{shown(step.to)} is gone"
        if sha256_of(step.to) != step.sha256:
            return f"{shown(step.to)} has another content now"
        if os.path.lexists(step.path):
            if os.path.isfile(step.path) and sha256_of(step.path) == step.sha256:   # killed between copy and removal
                os.unlink(step.to)
                return None
            return "another file is in its place"
        os.makedirs(os.path.dirname(step.path), exist_ok=True)
        _move(step.to, step.path)
    elif not os.path.lexists(step.path):
        return "it is gone"
    elif os.path.exists(step.to) and os.path.samefile(step.path, step.to):
        with atomic_path(step.path) as temporary:
            shutil.copyfile(step.to, temporary)
            os.utime(temporary, ns=(step.mtime_ns, step.mtime_ns))
            os.chmod(temporary, step.mode)
    return None
