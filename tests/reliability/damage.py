"""Damage inputs of every kind, read them, and record what came of it."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError

from ..mutations import mutated, mutated_json
from .kinds import KINDS, Insane, Kind

HANG = 20.0             # seconds that one case may take
CHUNK = 100             # cases of one forked process
FINE = ("same", "other", "refused")
FAULTS = ("traceback", "unnamed", "insane", "silent", "hang", "dead", "code ran")


class Hanging(BaseException):
    """A case takes longer than `HANG`."""


class Harmful:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path("canary").touch, ()


def damage(content: bytes, kind: Kind, rng: np.random.Generator) -> bytes:
    """Return the content of a damaged file; now and then that of one that would run code, or of another kind."""
    chance = rng.random()
    if chance < 0.01:
        return pickle.dumps(Harmful(), protocol=int(rng.integers(0, 6)))
    if chance < 0.02:
        return b"!!python/object/apply:os.system ['touch canary']\n"
    if chance < 0.03:
        return [b"", b"\0" * 100, b"\xff\xfe" + bytes(50), b"null", b"[]", b"{}", b"[" * 20_000,
                b"9" * 6000, gzip.compress(bytes(1 << 20))][int(rng.integers(9))]
    if kind.json and chance < 0.5:
        return json.dumps(mutated_json(json.loads(content), rng)).encode("utf-8", "surrogatepass")
    for _ in range(1 + int(rng.integers(0, 3)) // 2):
        content = mutated(content, rng)
    return content


def outcome(kind: Kind, folder: Path, damaged: Path, expected: str) -> tuple[str, str]:
    """Read damaged input; return what happened, and the message or traceback."""
    def stop(*_: object) -> None:
        raise Hanging

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
            found = kind.read(folder)
    except DataError as error:
        said = str(error)
        named = damaged.name in said or str(folder) in said
        result = ("refused" if named else "unnamed"), said
    except Insane as error:
        result = "insane", str(error)
    except Hanging:
        result = "hang", "".join(traceback.format_exc())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        result = "traceback", traceback.format_exc()
    else:
        result = ("same" if found == expected else "silent" if kind.exact else "other"), ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return ("code ran", damaged.name) if Path("canary").exists() else result


def damaged_inputs(scratch: Path, kinds: list[Kind], seed: int, number: int, until: float, most: int,
                   record: Path) -> None:
    """Try cases in this process, from `number` on, until the time is over; write a line for each to `record`."""
    made = {}
    for kind in kinds:
        folder = scratch / "made" / f"{KINDS.index(kind)}"
        if not folder.exists():
            folder.mkdir(parents=True)
            kind.make(folder)
    turns = [kind for turn in range(10) for kind in kinds if turn % kind.every == 0]
    with open(record, "a", encoding="utf-8") as lines:
        for case in range(number, number + most):
            if time.time() > until:
                return
            rng = np.random.default_rng([seed, case])
            kind = turns[case % len(turns)]
            pristine = scratch / "made" / f"{KINDS.index(kind)}"
            if kind.name not in made:
                made[kind.name] = (sorted(kind_files(kind, pristine)), expected_answer(kind, pristine, scratch))
            files, expected = made[kind.name]
            work = Path(tempfile.mkdtemp(dir=scratch))
            folder = work / "case"
            shutil.copytree(pristine, folder, symlinks=True)
            os.chdir(work)
            target = folder / files[int(rng.integers(len(files)))]
            target.write_bytes(damage(target.read_bytes(), kind, rng))
            print(json.dumps({"case": case, "kind": kind.name}), file=lines, flush=True)
            result, said = outcome(kind, folder, target, expected)
            print(json.dumps({"case": case, "outcome": result, "said": said[-1500:]}), file=lines, flush=True)
            os.chdir(scratch)
            shutil.rmtree(work, ignore_errors=True)


def kind_files(kind: Kind, pristine: Path) -> list[str]:
    """Return the files of a kind that are damaged, relative to its folder."""
    again = Path(tempfile.mkdtemp(dir=pristine.parent.parent))
    found = [str(path.relative_to(again)) for path in kind.make(again)]
    shutil.rmtree(again)
    return found


def expected_answer(kind: Kind, pristine: Path, scratch: Path) -> str:
    """Return the answer of undamaged input."""
    work = Path(tempfile.mkdtemp(dir=scratch))
    shutil.copytree(pristine, work / "case")
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        answer = kind.read(work / "case")
    shutil.rmtree(work)
    return answer


def forked(work: Callable[[], None], *, seconds: float) -> bool:
    """Run in a forked process; return whether it ended well, and kill it when it takes longer."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    end = time.time() + seconds
    while time.time() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return False


def try_damage(scratch: Path, kinds: list[Kind], seed: int, until: float, cases: int, record: Path) -> None:
    """Try cases in forked processes, so that one that dies is seen and the rest goes on."""
    number = 0
    while number < cases and time.time() < until:
        size = min(CHUNK, cases - number)
        fine = forked(partial(damaged_inputs, scratch, kinds, seed, number, until, size, record),
                      seconds=HANG * 4 + size)
        if not fine:
            last = json.loads(record.read_text(encoding="utf-8").splitlines()[-1])
            if "outcome" in last:
                raise RuntimeError("a case of the harness itself failed, see above")
            with open(record, "a", encoding="utf-8") as lines:
                print(json.dumps({"case": last["case"], "outcome": "dead", "said": "the process died"}), file=lines)
            size = last["case"] - number + 1
        number += size
