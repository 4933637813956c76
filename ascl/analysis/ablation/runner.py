"""Run the trainings and evaluations of an ablation as processes, several runs in parallel if requested.

One loop controls all processes. A run is locked while it is in progress, so several calls, on one machine or on several
that share the folder, divide the runs among themselves. The lock belongs to an open file that training and evaluation
inherit: if a call is killed but its training continues, the run stays locked until the training ends.
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
from ascl.analysis.ablation.state import saved_settings, stamp, stamp_failure, state_of
from ascl.core.errors import DataError
from ascl.core.files import make_folder, saving

POLL = 0.02     # seconds between checks of the processes
PATIENCE = 2.0  # seconds between checks of runs that another call has locked
DIVERGED = "is not finite"  # what `training.fit` says of a loss or gradient that is lost


@dataclass(frozen=True)
class Failure:
    """A run that did not finish. reason: last line of its log, or the error before it started."""

    run: Run
    reason: str


@dataclass(frozen=True)
class Slot:
    """A slot for one run at a time. environment: variables in addition to this process's environment."""

    environment: dict[str, str]


class Stopped(KeyboardInterrupt):
    """Raised after Ctrl-C or SIGTERM, when the active runs have saved their state and ended."""


def visible_gpus() -> list[str]:
    """Return the names of the GPUs that this process may use, in the format of CUDA_VISIBLE_DEVICES."""
    import torch  # takes seconds, and most calls do not need it

    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y"):
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def make_slots(parallel: int | None, processes: int, threads: int | None, gpus: Sequence[str], *,
               cores: int | None = None) -> list[Slot]:
    """Return the slots for runs.

    Args:
        parallel: number of slots; None = as many as the GPUs allow, 1 on a CPU.
        processes: processes per run, each with its own GPU. Slots share GPUs if there are too few.
        threads: OMP_NUM_THREADS of each process; None = unchanged for a single slot, else an equal share of the cores.
        gpus: GPU names, as from `visible_gpus`.
        cores: number of cores; None = all of this machine.

    Raises:
        DataError: a value is below 1, or a run has more processes than there are GPUs.
    """
    for name, value in (("parallel", parallel), ("threads", threads)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}: it must be at least 1")
    if gpus and processes > len(gpus):
        raise DataError(f"{processes} processes need as many GPUs, but there are {len(gpus)}: use fewer processes")
    parallel = parallel or max(1, len(gpus) // processes)
    if threads is None and parallel > 1:
        threads = max(1, (cores or os.cpu_count() or 1) // (parallel * processes))
    shared = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    if not gpus and processes > 1:
        shared["ACCELERATE_USE_CPU"] = "true"       # otherwise each process believes it is the only one
    turn = cycle(gpus)
    return [Slot(shared | ({"CUDA_VISIBLE_DEVICES": ",".join(islice(turn, processes))} if gpus else {}))
            for _ in range(parallel)]


@dataclass
class _Work:
    """An active run in a slot, with its lock. process: None before the first program and after the last."""

    run: Run
    slot: Slot
    lock: int
    programs: Iterator[subprocess.Popen[bytes]]
    started: float
    process: subprocess.Popen[bytes] | None = None

    def advance(self) -> bool:
        """Start the next program if the last one has ended; return whether one is running. DataError if one failed."""
        if self.process is None or self.process.poll() is not None:
            self.process = next(self.programs, None)
        return self.process is not None


def run_all(runs: Sequence[Run], request: Request, slots: Sequence[Slot], say: Callable[[str], None]) -> list[Failure]:
    """Train and evaluate all unfinished runs, and return the failures.

    A failed run does not stop the others, and a trial that diverges is no failure. A run that another call has locked
    is left to that call and checked again later.

    Args:
        say: called with a line about each run that starts or ends.

    Raises:
        Stopped: on Ctrl-C or SIGTERM, after the active runs have saved and ended.
    """
    make_folder(request.out / "runs")
    make_folder(request.out / "logs")
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
                if free and waiting:                            # the rest is locked by other calls
                    look_again = time.monotonic() + PATIENCE
                    if not active and not said:
                        say(f"waiting for {len(waiting)} runs that another process is working on")
                        said = True
            for work in list(active):
                how, why = "done", ""
                try:
                    if work.advance():
                        continue
                    how = "diverged" if state_of(work.run) == "diverged" else how
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
    """Start each program that a run still needs, after the previous one ended; raise DataError if one failed."""
    announced = False
    while (state := state_of(run)) not in ("finished", "diverged"):
        training = state != "trained"
        command = train_command(run, resume=state == "interrupted") if training else eval_command(run)
        with saving(log_of(run), "its earlier lines are kept"), open(log_of(run), "ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                       pass_fds=[lock], env={**os.environ, **slot.environment, "PYTHONUNBUFFERED": "1"})
        if not announced:
            say(f"{'train' if training else 'evaluate'}   {run.name}; log: {log_of(run)}")
            announced = True
        yield process
        if code := process.returncode:
            said = last_line(log_of(run))
            if run.trial and DIVERGED in said and saved_settings(run) is not None:
                stamp_failure(run, said)
                continue
            how = f"exit status {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
            raise DataError(f"{said} ({how}; {log_of(run)})")
        stamp(run, evaluated=not training)
        if not training and state_of(run) != "finished":
            raise DataError(f"{run.evaluation} does not hold what an evaluation of this run should ({log_of(run)})")


def log_of(run: Run) -> Path:
    """Return the log file that training and evaluation of a run append their output to."""
    return run.folder.parents[1] / "logs" / f"{run.folder.name}.log"


def last_line(log: Path) -> str:
    """Return the last error line of the last program in a log, or its last line if it printed no error."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "no log"
    # a launcher of several processes prints its own lines and rules below the program's error
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip("=-: \t")]
    program = lines[max((place for place, line in enumerate(lines) if line.startswith("$ ")), default=-1) + 1 :]
    named = [line for line in program if line.startswith("error: ")]
    return (named or program or ["it printed nothing"])[-1]


def _lock(run: Run) -> int | None:
    """Lock the run; return the open file, which programs inherit and whose closing unlocks, or None if it is locked."""
    path = log_of(run).with_suffix(".lock")
    with saving(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


@contextmanager
def _stop_on_signals() -> Iterator[list[int]]:
    """Collect the SIGINT and SIGTERM that arrive inside the context."""
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
    """On exit, ask each program to save and end, and wait for it; a second signal kills them.

    Ctrl-C already reaches them from the terminal; they ignore a second request within a second.
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
