"""Every writer on a full disk: exit status 1, one line that names the path, the former files whole, nothing left over.

As root the disk is a real one, a tmpfs of a few MiB that a filler leaves almost no room on. Elsewhere the kernel
refuses to write beyond a small size of a file (RLIMIT_FSIZE).
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ascl.cli import main
from ascl.core.files import atomic_path
from ascl.data.stores import convert as converting
from ascl.features import feature_file, writer
from ascl.image_copy.descriptors.files import write_descriptors
from ascl.images.find import find_images
from ascl.scenes.prepare import prepare_lab, prepare_scenes

from .data.stores.foreign_files import make_images, write_tsv

PAGE = 4096


@pytest.fixture(scope="module")
def mountable(tmp_path_factory) -> bool:
    """Whether this process may mount a small disk."""
    place = tmp_path_factory.mktemp("probe")
    done = os.geteuid() == 0 and not subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place],
                                                    capture_output=True).returncode
    if done:
        subprocess.run(["umount", place], check=True)
    return done


@pytest.fixture
def disk(mountable, tmp_path) -> Iterator[Path]:
    """A folder on a disk of its own, if this process may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if mountable:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        if mountable:
            subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def on_full(disk, mountable) -> Callable[..., None]:
    """(command or function, room, *words) -> run it with `room` bytes left; the message has all words.

    `replaced` names files that the command may have written anew, whole.
    """
    def run(work: list[str] | Callable[[], object], room: int, *words: str, replaced: Sequence[str] = ()) -> str:
        before = contents(disk)
        filler = disk / "filler"
        if mountable:
            free = shutil.disk_usage(disk).free
            filler.write_bytes(bytes(free - room))
        status, said = in_a_child(work, None if mountable else room)
        filler.unlink(missing_ok=True)
        assert status == 1, f"status {status}: {said}"
        last = said.strip().splitlines()[-1]
        assert last.startswith("error: ") and "Traceback" not in said, said
        for word in (str(disk), *words):
            assert word in last, f"{word!r} is not in: {last}"
        after = contents(disk)
        kept = [path for path in before if path.name not in replaced]
        assert all(after.get(path) == before[path] for path in kept), "a former file was changed"
        return last

    return run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def left_over(folder: Path) -> list[str]:
    """Names of unfinished files."""
    return [path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".text")]


def in_a_child(work: list[str] | Callable[[], object], file_size: int | None) -> tuple[int, str]:
    """Run a command or a function in a forked process; return its exit status and what it wrote to stderr."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        try:
            os.close(receive)
            os.dup2(send, 2)
            sys.stderr = os.fdopen(2, "w", closefd=False)
            torch.set_num_threads(1)
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            with contextlib.redirect_stdout(io.StringIO()):
                status = main(work) if isinstance(work, list) else as_a_command(work)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(send)
    with os.fdopen(receive, errors="replace") as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def as_a_command(work: Callable[[], object]) -> int:
    try:
        work()
    except ValueError as error:     # a DataError
        print("error:", error, file=sys.stderr)
        return 1
    return 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data, train_arguments) -> Path:
    """A finished run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert main(["train", *train_arguments(tiny_data, run)]) == 0
    return run


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


# ---- features


def tsv(folder: Path) -> Path:
    return write_tsv(folder / "a.tsv", make_images([30] * 60))


@pytest.mark.parametrize("room", [0, 3 * PAGE, 8 * PAGE, 20 * PAGE])
@pytest.mark.parametrize("looked", [True, False])
def test_convert(on_full, disk, tmp_path, monkeypatch, room, looked):
    source, out = tsv(tmp_path), disk / "out.h5"
    if not looked:                                                      # others fill the disk after the look
        monkeypatch.setattr(converting, "require_space", lambda *_: None)
    words = ["convert", str(source), "--out", str(out)]
    on_full(words, room, "out.h5", "free some space", "" if looked else "nothing was written")
    assert not out.exists() and left_over(disk) == []
    assert main(["convert", str(source), "--out", str(out)]) == 0       # the same command, with room


class Ramp:
    """A backend of large regions."""

    settings = {"backend": "ramp"}
    names: dict[str, list[str]] = {}
    prepare = staticmethod(np.asarray)

    def extract(self, pixels, sizes):
        return {"regions": np.random.default_rng(0).random((len(pixels), 8, 64), dtype=np.float32)}


def extracted(photos: Path, out: Path) -> None:
    writer.extract(Ramp(), find_images(photos, ids="stem"), out, workers=0, resume=True, progress=False, part_size=4,
                   dtype="float32")


@pytest.mark.parametrize("room", [0, PAGE, 3 * PAGE])
def test_extract_keeps_its_parts(on_full, disk, photos, room):
    on_full(lambda: extracted(photos, disk / "f.h5"), room, "f.h5.parts")
    assert not (disk / "f.h5").exists() and left_over(disk) == []
    extracted(photos, disk / "f.h5")


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize("room", [PAGE, 6 * PAGE])
def test_the_last_join_of_extract(on_full, disk, photos, monkeypatch, room, looked):
    def stopped(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer, "join_parts", stopped)
        extracted(photos, disk / "f.h5")
    if not looked:
        monkeypatch.setattr(feature_file, "require_space", lambda *_: None)
    on_full(lambda: extracted(photos, disk / "f.h5"), room, "f.h5:")
    assert not (disk / "f.h5").exists() and left_over(disk) == []
    extracted(photos, disk / "f.h5")


def test_merge_and_descriptors(on_full, disk, photos, tmp_path):
    for number in (1, 2):
        writer.extract(Ramp(), find_images(photos, ids="stem"), tmp_path / "f.h5", workers=0, progress=False,
                       dtype="float32", shard=writer.Shard(number, 2))
    on_full(["merge", str(disk / "f.h5"), *map(str, sorted(tmp_path.glob("f.shard*")))], PAGE, "f.h5")
    vectors = np.random.default_rng(0).random((200, 64))
    on_full(lambda: write_descriptors(disk / "d.h5", list(map(str, range(200))), vectors), 2 * PAGE, "d.h5: ")
    assert left_over(disk) == []


# ---- training and what comes after it


@pytest.mark.parametrize("room", [0, 4 * PAGE, 30 * PAGE])
def test_train(on_full, disk, tiny_data, train_arguments, room):
    on_full(["train", *train_arguments(tiny_data, disk / "run")], room, "run")
    assert left_over(disk) == []


@pytest.mark.parametrize("room", [0, 8 * PAGE])
def test_a_resumed_training_keeps_its_checkpoint(on_full, disk, finished, room):
    run = Path(shutil.copytree(finished, disk / "run"))
    kept = {name: (run / name).read_bytes() for name in ("last.pt", "best.pt")}
    for path in (run / "tensorboard").glob("*"):
        path.unlink()                                                   # they grow, as metrics.jsonl does
    words = ["train", "--resume", str(run), "--train.max_steps", "8"]
    (run / "metrics.jsonl").unlink()
    on_full(words, room, "run", replaced=["settings.yaml"])
    assert kept == {name: (run / name).read_bytes() for name in kept} and left_over(disk) == []


def test_eval_explain_and_report(on_full, disk, finished, tiny_data):
    run = Path(shutil.copytree(finished, disk / "run"))
    on_full(["eval", "--checkpoint", str(run)], 0, "ranks-")
    on_full(["eval", "--checkpoint", str(run), "--save_scores", str(disk / "s.npz")], 0, "s.npz")
    assert main(["eval", "--checkpoint", str(run), "--save_scores", str(disk / "s.npz")]) == 0
    on_full(["eval", "--checkpoint", str(run), "--out", str(disk / "again")], PAGE, "again")
    explain = ["explain", "--checkpoint", str(run), "--image", "photo20", "--caption", "a red dog", "--grid", "--out"]
    on_full([*explain, str(disk / "x.png")], PAGE, "x.png", "nothing was written")
    on_full(["report", str(run), "--out", str(disk / "r.html")], PAGE, "r.html")
    assert left_over(disk) == []


def test_figures_and_ablate(on_full, disk, finished):
    on_full(["figures", "curves", str(finished), "--out", str(disk / "figures")], 0, "figures")
    ablate = ["ablate", "--dataset", "flickr30k", "--study", "table2", "--seeds", "1", "--out", str(disk / "a")]
    on_full([*ablate, "--report"], 0, str(disk / "a"))
    on_full(ablate, 0, str(disk / "a"))
    assert left_over(disk) == []


# ---- copies


def test_copy_benchmark(on_full, disk, photos):
    words = ["copy", "benchmark", "--images", str(photos), "--out", str(disk / "b"), "--references", "4",
             "--distractors", "2", "--reverse_crops", "1", "--background", "2", "--min_side", "32"]
    for room in (0, 3 * PAGE, 9 * PAGE):
        on_full(words, room, str(disk / "b"))
        assert list(disk.iterdir()) == []
    assert main(words) == 0


# ---- the data set of generated scenes


def test_prepare_lab(on_full, disk):
    def prepare() -> None:
        prepare_lab(disk / "lab", train=3, val=1, test=1, seed=0, family=2, family_share=1.0, noise=0.1)

    for room in (0, 3 * PAGE, 8 * PAGE, 60 * PAGE):       # captions, regions, the text encoder
        on_full(prepare, room, "lab")
        assert left_over(disk) == []


def test_prepare_scenes(on_full, disk):
    def prepare() -> None:
        prepare_scenes(disk / "scenes", train=3, val=1, test=1, seed=0, detector_steps=1)

    for room in (0, 8 * PAGE, 60 * PAGE, 300 * PAGE):       # pictures, captions, the detector, the text encoder
        on_full(prepare, room, "scenes")
        assert left_over(disk) == []


# ---- what all of them use


def test_the_message_says_what_is_left_and_what_became_of_the_file(disk, on_full):
    (disk / "a.txt").write_text("former")

    def write() -> None:
        with atomic_path(disk / "a.txt") as temporary:
            temporary.write_bytes(bytes(9 * PAGE))

    said = on_full(write, PAGE, "a.txt", "the previous a.txt is intact", " free)", "run the command again")
    assert str(disk / "a.txt") in said and left_over(disk) == []


@pytest.mark.parametrize("fail_at", [1, 2, 3, 5, 8, 13, 21])
def test_libhdf5_survives_a_write_that_fails_anywhere(tmp_path, monkeypatch, fail_at):
    """In a child: the former crash came when the process ended."""
    from ascl.core.hdf5 import NewHdf5

    def work() -> None:
        real, count = os.pwrite, iter(range(1, 10**6))

        def pwrite(*arguments):
            if next(count) >= fail_at:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        os.pwrite = pwrite
        with atomic_path(tmp_path / "x.h5") as temporary, NewHdf5(temporary) as file:
            rows = file.create_dataset("rows", (200, 64), "f4", chunks=(1, 64))
            file.create_dataset("names", data=["n"] * 500, dtype=h5py.string_dtype())
            for row in range(200):
                rows[row] = row

    status, said = in_a_child(work, None)
    assert (status, list(tmp_path.iterdir())) == (1, [])
    assert "x.h5: No space left on device; nothing was written" in said
