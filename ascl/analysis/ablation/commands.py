"""The command lines that train and evaluate a run."""

from __future__ import annotations

import shlex
import sys

from ascl.analysis.ablation.plan import NOT_IN_HASH, PATHS_IN_HASH, Run
from ascl.analysis.ablation.state import saved_settings
from ascl.analysis.run_files import flat
from ascl.settings.base import to_dict


def train_command(run: Run, *, resume: bool) -> list[str]:
    """Return the command that trains this run, from the start or as a resume."""
    launched = [*launcher(run.processes), "-m", "ascl", "train"]
    if not resume:
        return [*launched, *run.arguments]
    now = flat(to_dict(run.config))
    words = [*launched, "--resume", str(run.folder)]
    for name in _moved(run):
        value = now[name]
        text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else "null" if value is None else str(value)
        words += [f"--{name}", text]
    return words


def eval_command(run: Run) -> list[str]:
    """Return the command that evaluates this run's best checkpoint."""
    words = [sys.executable, "-m", "ascl", "eval", "--checkpoint", str(run.folder), "--split", run.config.data.test]
    if run.probe_captions:
        words += ["--probe_captions", str(run.probe_captions)]
    moved = _moved(run)
    if "data.captions" in moved:
        words += ["--captions", run.config.data.captions]
    if "data.features" in moved:
        words += ["--features", *run.config.data.features]
    return words


def launcher(processes: int) -> list[str]:
    """Return the start of a training command: python, or accelerate for several processes.

    `--multi_gpu` is needed on a CPU too: without it accelerate starts a single process there.
    """
    if processes == 1:
        return [sys.executable]
    return [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
            "--main_process_port", "0"]


def shown(run: Run) -> str:
    """Return the command that trains a run, as a user would type it."""
    words = train_command(run, resume=False)
    return shlex.join(words[2:] if run.processes == 1 else ["accelerate", "launch", *words[3:]])


def _moved(run: Run) -> list[str]:
    """Return the settings that do not identify the run and that differ from those it was started with."""
    then, now = saved_settings(run), flat(to_dict(run.config))
    if then is None:
        return []
    return [name for name in (*NOT_IN_HASH, *PATHS_IN_HASH) if name != "out" and then[name] != now[name]]
