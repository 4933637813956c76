"""Python programs in processes of their own that start at once: a server has imported what they import, and forks.

A new interpreter takes two to four seconds of a core until torch and the rest are imported. A program here has its own
state, is killed and waited for as any other, and ends with the status that `python` would give it.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "ascl.analysis.ablation.report", "ascl.cli.ablate", "ascl.cli.train", "ascl.image_copy.training.train",
    "ascl.retrieval.train", "accelerate", "torch.utils.tensorboard", "torchvision", "transformers",
    "transformers.models.bert.modeling_bert",
])
if str(REPOSITORY) not in sys.path:     # the server finds this module on the path of this process
    sys.path.append(str(REPOSITORY))


class Program:
    """`python WORDS`: -m MODULE, -c CODE or a file, with its arguments. The leader of a process group.

    Args:
        words: as for `python`.
        cwd: the working directory; None = this process's.
        environment: variables beside those of this process.
    """

    def __init__(self, *words: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.words = [str(word) for word in words]
        self._files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]      # noqa: SIM115
        self._process = SERVER.Process(target=_run, args=(
            self.words, str(cwd or Path.cwd()), {**os.environ, **(environment or {})},
            [file.name for file in self._files], multiprocessing.get_start_method()))
        self._process.start()
        self.pid = self._process.pid

    def said(self) -> str:
        """What it printed so far."""
        return Path(self._files[0].name).read_text()

    def complained(self) -> str:
        """What it wrote to its standard error so far."""
        return Path(self._files[1].name).read_text()

    @property
    def status(self) -> int | None:
        """Its exit status, as of `wait`; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Its exit status, when it has ended; that of a signal is negative. Kills it after `timeout` seconds."""
        self._process.join(timeout)
        if self.status is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.words, timeout, self.said(), self.complained())
        return self.status

    def send_signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        self._process.join()


def _run(words: list[str], cwd: str, environment: dict[str, str], outputs: list[str], start_method: str) -> None:
    os.setsid()
    multiprocessing.set_start_method(start_method, force=True)      # else it is the server's
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, cwd)
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")
