"""The processes that make the runs: each is a tools/train.py and then a tools/eval.py, several at a time if asked for.

One loop looks after all of them. A run is locked while it is worked on, so that several of these programs, on one
machine or on several that share the folder, divide the runs among themselves.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from ascl.analysis.ablation.plan import Request, Run, eval_command, stamp, state_of, train_command
from ascl.core.errors import DataError

POLL = 0.1      # seconds between two looks at the processes
PATIENCE = 2.0  # seconds between two looks at runs that another process has


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    reason: last line of its log, or what was wrong before it started.
    """

    run: Run
    reason: str


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time. environment: on top of this process's own."""

    environment: dict[str, str]


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the runs under way have saved what they had and ended."""


def launcher(processes: int) -> list[str]:
    """What starts a training: python, or accelerate for several processes.

    `--multi_gpu` on a CPU too: without it accelerate starts one process there, whatever number it is given.
    """
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--main_process_port", "0"]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch  # here: takes seconds, and most calls do not need it

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y"):
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def make_slots(parallel: int | None, processes: int, threads: int | None, gpus: Sequence[str]) -> list[Slot]:
    """Where runs are worked on, at most so many at a time.

    Args:
        parallel: how many; None = as many as the GPUs are enough for, 1 on a CPU.
        processes: of each run, with a GPU of their own each. Runs share GPUs where there are fewer.
        threads: OMP_NUM_THREADS of each process; None = left as it is for one run at a time, else an equal share.

    Raises:
        DataError: a run's processes are more than the GPUs.
    """
    for name, value in (("parallel", parallel), ("threads", threads)):
        if value is not None and value < 1:
            raise DataError(f"--{name} is {value}: has to be at least 1")
    if gpus and processes > len(gpus):
        raise DataError(f"--processes {processes} needs as many GPUs, and there are {len(gpus)}")
    parallel = parallel or max(1, len(gpus) // processes)
    if threads is None and parallel > 1:
        threads = max(1, (os.cpu_count() or 1) // (parallel * processes))
    slots = []
    for number in range(parallel):
        environment = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        if gpus:
            own = [gpus[(number * processes + process) % len(gpus)] for process in range(processes)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        elif processes > 1:
            environment["ACCELERATE_USE_CPU"] = "true"      # else each of them takes itself for the only one
        slots.append(Slot(environment))
    return slots


class _Work:
    """One run under way in a slot, with its lock held."""

    def __init__(self, run: Run, request: Request, slot: Slot, lock: FileLock) -> None:
        self.run, self.request, self.slot, self.lock = run, request, slot, lock
        self.log = log_of(run)
        self.started = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.training = False

    def start(self) -> bool:
        """Start the next program of this run; False where nothing is left to do.

        Raises:
            DataError: the folder holds another run.
        """
        state = state_of(self.run)
        if state == "finished":
            return False
        self.training = state != "trained"
        if self.training:
            resume = state == "interrupted"
            command = train_command(self.run, self.request, launcher(self.run.processes), resume=resume)
        else:
            command = eval_command(self.run, self.request, sys.executable)
        with open(self.log, "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **self.slot.environment, "PYTHONUNBUFFERED": "1"},
            )
        return True

    def ended(self) -> str | None:
        """None where the program is still at work, "" where it did what it should, else why it failed."""
        assert self.process is not None                     # it was started
        code = self.process.poll()
        if code is None:
            return None
        if code != 0:
            how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            return f"{last_line(self.log)} ({how}; {self.log})"
        try:
            stamp(self.run, evaluated=not self.training)
        except DataError as error:
            return str(error)
        return ""


def run_all(
    runs: Sequence[Run], request: Request, slots: Sequence[Slot], say: Callable[[str], None]
) -> list[Failure]:
    """Train and evaluate what is not finished.

    A run that failed does not keep the others. One that another process works on is left to it and looked at again at
    the end.

    Args:
        say: is told of each run that starts or ends.

    Raises:
        Stopped: on Ctrl-C or SIGTERM, after the runs under way have saved and ended.
    """
    (request.out / "runs").mkdir(parents=True, exist_ok=True)
    (request.out / "logs").mkdir(exist_ok=True)
    waiting = list(runs)
    active: list[_Work] = []
    failures: list[Failure] = []
    done, told, look_again = 0, False, 0.0

    def close(work: _Work, failure: str) -> None:
        nonlocal done
        work.lock.release()
        active.remove(work)
        done += 1
        minutes = (time.monotonic() - work.started) / 60
        say(f"{'FAILED' if failure else 'done'}    {work.run.name} after {minutes:.1f} min [{done} of {len(runs)}]"
            + (f": {failure}" if failure else ""))
        if failure:
            failures.append(Failure(work.run, failure))

    def proceed(work: _Work) -> None:
        """Start what comes next of a run, or close it."""
        try:
            if not work.start():
                close(work, "")
        except (DataError, OSError) as error:
            close(work, str(error))

    with _stop_on_signals() as stop, _ended(active, stop):
        while waiting or active:
            if stop.count:
                raise Stopped("stopped; the same command goes on from here")
            for work in list(active):
                failure = work.ended()
                if failure:
                    close(work, failure)
                elif failure == "":
                    proceed(work)
            if time.monotonic() >= look_again:
                orphans = _orphans(waiting)
                for run in list(waiting):
                    if len(active) + len(orphans) >= len(slots):
                        break
                    if run in orphans or (lock := _lock(run)) is None:
                        continue
                    waiting.remove(run)
                    taken = {id(work.slot) for work in active}
                    work = _Work(run, request, next(slot for slot in slots if id(slot) not in taken), lock)
                    active.append(work)
                    proceed(work)
                    if work in active:
                        say(f"{'train' if work.training else 'evaluate'}   {run.name}; log: {work.log}")
                if waiting and len(active) < len(slots):        # what is left is another process's
                    look_again = time.monotonic() + PATIENCE
                    if orphans and not told:
                        say(f"waiting for {len(orphans)} runs whose ablate.py was killed; their programs still work: "
                            + ", ".join(run.folder.name for run in orphans))
                        told = True
                    elif not active and not told:
                        say(f"waiting for {len(waiting)} runs that another process works on")
                        told = True
            time.sleep(POLL)
    return failures


def log_of(run: Run) -> Path:
    """What training and evaluation of a run print, one attempt after the other."""
    return run.folder.parents[1] / "logs" / f"{run.folder.name}.log"


def last_line(log: Path) -> str:
    """What the last program in a log ended with: its own error where it names one, else the last line of words."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log"
    # a launcher of several processes puts its own words, and rules, under the error of the program
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip("=-: \t")]
    program = lines[max((place for place, line in enumerate(lines) if line.startswith("$ ")), default=-1) + 1 :]
    named = [line for line in program if line.startswith("error: ")]
    return (named or program or ["it printed nothing"])[-1]


def _lock(run: Run) -> FileLock | None:
    """The run's lock; None where another process has it."""
    lock = FileLock(log_of(run).with_suffix(".lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def _orphans(runs: Sequence[Run]) -> list[Run]:
    """Those that a tools/train.py or eval.py works on whose ablate.py was killed: its lock died with it, they did not.

    Each takes a slot, because it takes a processor or a GPU.
    """
    at_work: set[Path] = set()
    names = {run.folder.name for run in runs}
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words, cwd = process.info["cmdline"] or [], process.info["cwd"]
        if any(Path(word).name in ("train.py", "eval.py") for word in words):
            paths = [Path(word.partition("=")[2] if word.startswith("--") else word) for word in words]
            at_work |= {Path(cwd or ".", path).resolve() for path in paths if path.name in names}
    found = []
    for run in runs:
        if run.folder.resolve() in at_work and (lock := _lock(run)) is not None:
            lock.release()
            found.append(run)
    return found


# A stop


class _Stop:
    count = 0


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """SIGINT and SIGTERM are counted while this is open."""
    stop = _Stop()

    def on_signal(number: int, frame: object) -> None:
        stop.count += 1

    usual = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _ended(active: Sequence[_Work], stop: _Stop) -> Iterator[None]:
    """Whatever happens inside, no program is left behind: each is asked to save and end, and waited for.

    A Ctrl-C has reached them from the terminal already; they take a second request within a second for the same. On a
    second signal they are ended at once.
    """
    try:
        yield
    finally:
        _end(active, stop)


def _end(active: Sequence[_Work], stop: _Stop) -> None:
    processes = [work.process for work in active if work.process is not None]
    for process in processes:
        if process.poll() is None:
            process.terminate()
    while any(process.poll() is None for process in processes):
        if stop.count > 1:
            for process in processes:
                process.kill()
        time.sleep(POLL)
    for work in active:
        work.lock.release()
