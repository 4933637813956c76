"""A kill at any moment of any command leaves an index that opens, and the same command goes on to the same end."""

import multiprocessing
import os
import resource
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.descriptors.perceptual_hash import PerceptualHasher
from ascl.image_copy.matching.add import add_images
from ascl.image_copy.matching.calibrate import calibrate_index
from ascl.image_copy.matching.describe import ReadOptions
from ascl.image_copy.matching.forget import named_ids, prune_index
from ascl.image_copy.matching.model import create_index
from ascl.image_copy.matching.repair import repair_index
from ascl.images.find import images_of
from ascl.index.store import CopyIndex, is_index

pytest.importorskip("imagehash")
OURS = ("/ascl/index/", "/ascl/image_copy/matching/")
KILLS = 6      # per command
SMALL = ReadOptions(batch_size=2, together=2)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: dozens of indexes are flushed to their disk."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def pictures(folder: Path, seeds: range) -> Path:
    folder.mkdir()
    for seed in seeds:
        noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(folder / f"photo_{seed}.png")
    return folder


def index(place: Path) -> None:
    """What `ascl copy index` does: make the index unless it is there, then add."""
    folder = place / "index"
    with closing(CopyIndex(folder) if is_index(folder) else
                 create_index(folder, DescriberChoice("phash"), PerceptualHasher())) as opened:
        add_images(opened, PerceptualHasher(), images_of(place / "photos"), SMALL)


def calibrate(place: Path) -> None:
    with closing(CopyIndex(place / "index")) as opened:
        calibrate_index(opened, PerceptualHasher(), images_of(place / "background"), SMALL, rate=0.2)


def remove(place: Path) -> None:
    photos = [str(place / "photos" / f"photo_{number}.png") for number in (2, 3)]
    with closing(CopyIndex(place / "index")) as opened:
        opened.remove(named_ids(opened, photos))


def prune(place: Path) -> None:
    with closing(CopyIndex(place / "index")) as opened:
        prune_index(opened)


def compact(place: Path) -> None:
    with closing(CopyIndex(place / "index")) as opened:
        opened.compact()


def repair(place: Path) -> None:
    with closing(CopyIndex(place / "index")) as opened:
        repair_index(opened, PerceptualHasher(), SMALL)


def damage_vectors(place: Path) -> None:
    (file,) = (place / "index").glob("vectors-*.bin")
    data = bytearray(file.read_bytes())
    data[1] ^= 1
    file.write_bytes(data)


def damage_records(place: Path) -> None:
    file = place / "index" / "index.sqlite"
    data = file.read_bytes()
    at = data.rindex(b"photos/photo_4.png")
    file.write_bytes(data[:at] + b"P" + data[at + 1 :])


def rename_photos(place: Path) -> None:
    for name in ("photo_1.png", "photo_5.png"):
        (place / "photos" / name).rename(place / "photos" / f"renamed_{name}")


COMMANDS: dict[str, tuple[list[Callable[[Path], object]], Callable[[Path], object]]] = {
    "the first index": ([], index),
    "index, renamed": ([index, rename_photos], index),
    "calibrate": ([index], calibrate),
    "remove": ([index], remove),
    "prune": ([index, lambda place: (place / "photos" / "photo_1.png").unlink()], prune),
    "compact": ([index, remove, calibrate], compact),
    "repair of vectors": ([index, calibrate, damage_vectors], repair),
    "repair of records": ([index, calibrate, damage_records], repair),
}


def contents(place: Path) -> tuple:
    opened = CopyIndex(place / "index")
    held = {record.id: (record.path, record.sha256, opened.rows.vectors[row].tolist())
            for row, record in opened.each_record()}
    assert len(held) == len(opened) and opened.verify() == []
    calibration = None if opened.state.calibration is None else opened.state.calibration["threshold"]
    opened.close()
    return held, calibration


def run(command: Callable[[Path], object], place: Path, at_line: Callable[[], None]) -> None:
    """Run a command, and call `at_line` before each line of ours; no garbage keeps an index open."""
    def each_line(frame, event, argument):
        if event == "line":
            at_line()
        return each_line

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: each_line if any(one in frame.f_code.co_filename for one in OURS)
                 else None)
    try:
        command(place)
    finally:
        sys.settrace(before)


def die_at(number: int, command: Callable[[Path], object], place: Path) -> None:
    """Run in a child: be killed before the line of ours that is the `number`-th to run."""
    seen = iter(range(number + 1))
    run(command, place, lambda: next(seen) < number or os.kill(os.getpid(), signal.SIGKILL))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_any_line_and_the_same_command_again(scratch, name):
    before, command = COMMANDS[name]
    place = scratch / "place"
    place.mkdir()
    pictures(place / "photos", range(7))
    pictures(place / "background", range(100, 106))
    for step in before:
        step(place)
    shutil.copytree(place, scratch / "kept")

    lines = []
    run(command, place, lambda: lines.append(1))
    wanted = contents(place)
    rng, killed = np.random.default_rng(len(lines)), 0
    step = len(lines) / KILLS
    for number in [int(rng.integers(step * part, step * (part + 1))) for part in range(KILLS)]:
        shutil.rmtree(place)
        shutil.copytree(scratch / "kept", place)
        child = multiprocessing.get_context("fork").Process(target=die_at, args=(number, command, place))
        child.start()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        try:
            command(place)
        except DataError as error:
            assert name == "remove" and "neither ids nor paths" in str(error)   # it was confirmed already
        assert contents(place) == wanted
    assert killed >= KILLS - 1      # the number of lines differs a little


def test_what_a_kill_leaves_of_the_first_call_is_no_index(scratch):
    pictures(scratch / "photos", range(3))
    folder = scratch / "index"
    folder.mkdir()
    sqlite3.connect(folder / "index.sqlite").execute("PRAGMA journal_mode = WAL").connection.close()
    assert (folder / "index.sqlite").stat().st_size and not is_index(folder)
    with pytest.raises(DataError, match="no index there; make one first"):
        CopyIndex(folder)
    index(scratch)
    assert len(contents(scratch)[0]) == 3


def fill(folder: Path, most: int, told: int) -> None:
    """Run in a child: change an index where no file may grow beyond `most` bytes; tell what went wrong."""
    opened = CopyIndex(folder)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    scores = {"scores": np.random.default_rng(0).random(100_000)}
    for change in (lambda: opened.set_calibration({}, scores), lambda: add_images(
            opened, PerceptualHasher(), images_of(folder.parent / "photos"), ReadOptions(together=100))):
        try:
            change()
        except DataError as error:
            os.write(told, f"{error}\n".encode())


def test_a_disk_that_is_full_leaves_the_former_state(scratch):
    place = scratch / "place"
    place.mkdir()
    pictures(place / "photos", range(3))
    index(place)
    before = contents(place)
    pictures(place / "more", range(10, 14))
    for file in (place / "more").iterdir():
        file.rename(place / "photos" / file.name)
    read, write = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=fill, args=(place / "index", 24, write))
    child.start()
    child.join()
    os.close(write)
    told = os.read(read, 2**16).decode().splitlines()
    os.close(read)
    assert child.exitcode == 0 and len(told) == 2, told
    assert all("the index is as it was before this change" in line for line in told)
    assert contents(place) == before
    index(place)
    assert len(contents(place)[0]) == 7
