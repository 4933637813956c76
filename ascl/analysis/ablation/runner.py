"""The processes that make the runs: each is a training and then an evaluation, several runs at a time if asked for.

One loop looks after all of them. A run is locked while it is worked on, so that several calls, on one machine or on
several that share the folder, divide the runs among themselves. The lock belongs to the open file, which the training
and the evaluation inherit: where a call is killed and its training lives on, the run stays locked until that has ended.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from ascl.analysis.ablation.commands import eval_command, train_command
from ascl.analysis.ablation.plan import Request, Run
from ascl.analysis.ablation.state import stamp, state_of
from ascl.core.errors import DataError

POLL = 0.1      # seconds between two looks at the processes
PATIENCE = 2.0  # seconds between two looks at runs that another call has


@dataclass(frozen=True)
class Failure:
    """A run that did not finish. reason: last line of its log, or what was wrong before it started."""

    run: Run
    reason: str


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time. environment: on top of this process's own."""

    environment: dict[str, str]


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; the runs under way have saved what they had and ended."""


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    import torch  # here: takes seconds, and most calls do not need it

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y"):
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def make_slots(parallel: int | None, processes: int, threads: int | None, gpus: Sequence[str], *,
               cores: int | None = None) -> list[Slot]:
    """Return the places where runs are worked on.

    Args:
        parallel: how many; None = as many as the GPUs are enough for, 1 on a CPU.
        processes: of each run, with a GPU of their own each. Runs share GPUs where there are fewer.
        threads: OMP_NUM_THREADS of each process; None = left as it is for one run at a time, else an equal share.
        gpus: their names, as `visible_gpus` gives them.
        cores: of this machine; None = all.

    Raises:
        DataError: a run's processes are more than the GPUs.
    """
    for name, value in (("parallel", parallel), ("threads", threads)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}: has to be at least 1")
    if gpus and processes > len(gpus):
        raise DataError(f"{processes} processes need as many GPUs, and there are {len(gpus)}")
    parallel = parallel or max(1, len(gpus) // processes)
    if threads is None and parallel > 1:
        threads = max(1, (cores or os.cpu_count() or 1) // (parallel * processes))
    shared = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if not gpus and processes > 1:
        shared["ACCELERATE_USE_CPU"] = "true"       # else each of them takes itself for the only one
    turn = cycle(gpus)
    return [Slot(shared | ({"CUDA_VISIBLE_DEVICES": ",".join(islice(turn, processes))} if gpus else {}))
            for _ in range(parallel)]


@dataclass
class _Work:
    """A run under way in a slot, whose file is locked. process: None before the first program and after the last."""

    run: Run
    slot: Slot
    lock: int
    programs: Iterator[subprocess.Popen[bytes]]
    started: float
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool:
        """Return whether a program is at work: start the next where the last ended, DataError where it failed."""
        if self.process is None or self.process.poll() is not None:
            self.process = next(self.programs, None)
        return self.process is not None


def run_all(runs: Sequence[Run], request: Request, slots: Sequence[Slot], say: Callable[[str], None]) -> list[Failure]:
    """Train and evaluate what is not finished.

    A run that failed does not keep the others. One that another call works on is left to it and looked at again at the
    end.

    Args:
        say: gets a line about each run that starts or ends.

    Raises:
        Stopped: on Ctrl-C or SIGTERM, after the runs under way have saved and ended.
    """
    (request.out / "runs").mkdir(parents=True, exist_ok=True)
    (request.out / "logs").mkdir(exist_ok=True)
    waiting, free = list(runs), list(slots)
    active: list[_Work] = []
    failures: list[Failure] = []
    done, said, look_again = 0, False, 0.0
    with _stop_on_signals() as signals, _ended(active, signals):
        while waiting or active:
            if signals:
                raise Stopped("stopped; the same command continues from here")
            if free and waiting and time.monotonic() >= look_again:
                for run in list(waiting):
                    if free and (lock := _lock(run)) is not None:
                        waiting.remove(run)
                        slot = free.pop(0)
                        active.append(_Work(run, slot, lock, _programs(run, slot, lock, say), time.monotonic()))
                if free and waiting:                            # what is left is another call's
                    look_again = time.monotonic() + PATIENCE
                    if not active and not said:
                        say(f"waiting for {len(waiting)} runs that another process works on")
                        said = True
            for work in list(active):
                how, why = "done", ""
                try:
                    if work.advance():
                        continue
                except (DataError, OSError) as error:
                    how, why = "FAILED", f": {error}"
                    failures.append(Failure(work.run, str(error)))
                os.close(work.lock)
                active.remove(work)
                free.append(work.slot)
                done += 1
                minutes = (time.monotonic() - work.started) / 60
                say(f"{how}    {work.run.name} after {minutes:.1f} min [{done} of {len(runs)}]{why}")
            time.sleep(POLL)
    return failures


def _programs(run: Run, slot: Slot, lock: int, say: Callable[[str], None]) -> Iterator[subprocess.Popen[bytes]]:
    """Start each program that a run still needs, once the one before has ended; DataError where one failed."""
    said = False
    while (state := state_of(run)) != "finished":
        training = state != "trained"
        command = train_command(run, resume=state == "interrupted") if training else eval_command(run)
        with open(log_of(run), "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                       pass_fds=[lock], env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"})
        if not said:
            say(f"{'train' if training else 'evaluate'}   {run.name}; log: {log_of(run)}")
            said = True
        yield process
        if code := process.returncode:
            how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            raise DataError(f"{last_line(log_of(run))} ({how}; {log_of(run)})")
        stamp(run, evaluated=not training)


def log_of(run: Run) -> Path:
    """Return the file for what training and evaluation of a run print, one attempt after the other."""
    return run.folder.parents[1] / "logs" / f"{run.folder.name}.log"


def last_line(log: Path) -> str:
    """Return what the last program in a log ended with: its own error where it names one, else its last words."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log"
    # a launcher of several processes puts its own words, and rules, under the error of the program
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip("=-: \t")]
    program = lines[max((place for place, line in enumerate(lines) if line.startswith("$ ")), default=-1) + 1 :]
    named = [line for line in program if line.startswith("error: ")]
    return (named or program or ["it printed nothing"])[-1]


def _lock(run: Run) -> int | None:
    """The run's lock as an open file, which the programs inherit and closing releases; None where another has it."""
    file = os.open(log_of(run).with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """The SIGINT and SIGTERM that came while this is open."""
    came: list[int] = []
    usual = {number: signal.signal(number, lambda number, frame: came.append(number))
             for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


@contextmanager
def _ended(active: Sequence[_Work], signals: Sequence[int]) -> Iterator[None]:
    """Ask each program to save and end, whatever happens inside, and wait for it; a second signal kills them.

    A Ctrl-C has reached them from the terminal already; they take a second request within a second for the same.
    """
    try:
        yield
    finally:
        processes = [work.process for work in active if work.process is not None]
        for process in processes:
            process.terminate()
        while any(process.poll() is None for process in processes):
            if len(signals) > 1:
                for process in processes:
                    process.kill()
            time.sleep(POLL)
        for work in active:
            os.close(work.lock)
