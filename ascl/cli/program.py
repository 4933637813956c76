"""The program `ascl`: find the command, run it, and report errors and interrupts.

Exit status: 0 success, 1 failure (one line on stderr), 2 wrong usage, 3 done without some files that could not be read
(listed on stderr), 130 interrupted.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import TextIOWrapper
from typing import Any, NamedTuple

from jsonargparse import Namespace, set_parsing_settings

import ascl
from ascl.cli.options import Answer
from ascl.core.errors import DataError, SettingsError
from ascl.core.reading import shown
from ascl.settings.base import Parser


class Command(NamedTuple):
    """A command: function `name` of `ascl.cli.MODULE` runs it, function `name_parser` makes its parser."""

    module: str
    name: str
    help: str


COMMANDS = {
    "prepare": Command("prepare", "prepare", "generate or download a data set, and check it"),
    "extract regions": Command("extract", "region_features", "extract region features of images"),
    "extract globals": Command("extract", "global_features", "extract one feature vector per image"),
    "extract descriptors": Command("extract", "descriptors", "extract copy-detection descriptors of images"),
    "convert": Command("features", "convert", "convert feature files of other formats to our HDF5"),
    "merge": Command("features", "merge", "join the shards of an extraction"),
    "show": Command("features", "show", "draw the regions of an image"),
    "train": Command("train", "train", "train a retrieval model"),
    "eval": Command("evaluate", "evaluate", "evaluate retrieval over all pairs: recalls of runs or given scores"),
    "ablate": Command("ablate", "ablate", "train, evaluate and tabulate the paper's studies"),
    "figures": Command("figures", "figures", "plot finished runs and studies"),
    "explain": Command("explain", "explain", "explain the score of an image-caption pair"),
    "report": Command("explain", "report", "write a run as one HTML page"),
    "models": Command("models", "models", "list the models that describe images for copy detection"),
    "copy train": Command("train", "copy_train", "train an image descriptor"),
    "copy eval": Command("copy_evaluation", "evaluate", "evaluate descriptors or predictions"),
    "copy benchmark": Command("copy_evaluation", "benchmark", "make a benchmark from a folder of photos"),
    "copy index": Command("copies", "index", "make an index of images, or continue one"),
    "copy add": Command("copies", "add", "add images to an index"),
    "copy remove": Command("copies", "remove", "remove images from an index"),
    "copy prune": Command("copies", "prune", "remove images from an index whose files are gone"),
    "copy query": Command("copies", "query", "find copies of images in an index, with the direction of copying"),
    "copy groups": Command("groups", "groups", "find the groups of copies in a folder, and tidy them up"),
    "copy undo": Command("groups", "undo", "take back what copy groups has moved or linked"),
    "copy calibrate": Command("copies", "calibrate", "set the score threshold for a false-positive rate"),
    "copy info": Command("copies", "info", "print what an index holds"),
    "copy repair": Command("copies", "repair", "mend a damaged index"),
    "copy compact": Command("copies", "compact", "free the rows of removed images"),
}
TRAININGS = ("train", "copy train")
LAUNCHER_SECONDS = 3    # after which a launcher has ended the other processes of a training if one has failed
GROUPS = {
    "extract": "extract features or descriptors of images",
    "copy": "detect image copies: train, evaluate, build and query an index",
}
ABOUT = """Image-text retrieval (AsCL) and image copy detection (ASL, RDCD), where similarity has a direction.

`ascl COMMAND --help` explains a command. Options are spelled with underscores; hyphens mean the same. In help texts,
null is the value of an option that is not given. Shell completion: ascl --print_completion shtab-bash (or
shtab-zsh)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; None = those of this process.

    Returns:
        Exit status. A process that trained together with others does not return; it ends with this status.
    """
    status = status_of(sys.argv[1:] if arguments is None else list(arguments))
    if started_together():
        from ascl.core.distributed import leave

        leave(status)
    return status


def status_of(words: list[str]) -> int:
    """Run one command, report errors and interrupts, and return the exit status."""
    for stream in (sys.stdout, sys.stderr):  # names of files are of any bytes, and terminals of any encoding
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with silent() if rank() and command_of(words)[0] in TRAININGS else nullcontext():
            return answered(words)
    except SettingsError as error:
        return failed(error, 2)
    except BrokenPipeError:                         # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, OSError) as error:
        return failed(error, 1)
    except KeyboardInterrupt as stopped:
        if rank() == 0:
            print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        return 130


def started_together() -> bool:
    """Return whether a launcher started several processes."""
    together = os.environ.get("WORLD_SIZE", "")
    return together.isdecimal() and int(together) > 1


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    own = os.environ.get("RANK", "")
    return int(own) if started_together() and own.isdecimal() else 0


def answered(words: list[str]) -> int:
    """Run the command that the words name, print its result, and return the exit status."""
    try:
        name, rest = command_of(words)
        if name is None:
            return overview(rest)
        options = parser_of(name).read(rest)
        with open(os.devnull, "w", errors="replace") as nowhere:
            with redirect_stdout(nowhere) if options.json else nullcontext():
                answer = run(name)(options)
        if options.json:
            print(as_json(answer.content))
        status = answer.status
    except SystemExit as asked:                     # --help and the like print and exit
        status = int(asked.code or 0)
    sys.stdout.flush()
    return status


@contextmanager
def silent() -> Iterator[None]:
    """Print nothing: of processes that train together, the first one speaks for all."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")       # read when torch is first used
    with open(os.devnull, "w", errors="replace") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def as_json(content: Any) -> str:
    """Return JSON in ASCII; bytes of file names that are not UTF-8 are written as `\\xe9`, as elsewhere."""
    text = json.dumps(content, indent=1, default=str, ensure_ascii=False)
    return re.sub("[^\0-\x7f]", lambda found: json.dumps(shown(found[0]))[1:-1], text)


def failed(error: Exception, status: int) -> int:
    """Print an error in one line and return the exit status."""
    if isinstance(error, OSError) and error.strerror:
        where = shown(error.filename) if error.filename else "the output"
        error = DataError(f"{where}: {error.strerror}; check the path, its disk and its permissions")
    if rank() > 0:
        time.sleep(LAUNCHER_SECONDS)    # if the first process failed likewise, it has said so, and this one is ended
    print("error:" if rank() == 0 else f"process {rank()}: error:", *str(error).splitlines(), file=sys.stderr)
    return status


def command_of(words: list[str]) -> tuple[str | None, list[str]]:
    """Return the command that the words begin with, and the other words; None if they name no command."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    return None, words


@functools.cache
def parser_of(name: str) -> Parser:
    """Return the parser of a command, built once."""
    command = COMMANDS[name]
    module = importlib.import_module(f"ascl.cli.{command.module}")
    parser = getattr(module, f"{command.name}_parser")(f"ascl {name}")
    parser.add_argument("--json", action="store_true",
                        help="print only the result, as JSON, on the standard output")
    return parser


def run(name: str) -> Callable[[Namespace], Answer]:
    """Return the function that runs a command."""
    command = COMMANDS[name]
    return getattr(importlib.import_module(f"ascl.cli.{command.module}"), command.name)


def overview(words: list[str]) -> int:
    """Handle what is not a command: `--help`, `--version`, `--print_completion`, and unknown names."""
    if words == ["--version"]:
        print(ascl.__version__)
        return 0
    asked = words or ["--help"]
    if asked in (["extract"], ["copy"]):
        asked = [*asked, "--help"]
    whole_tree(real=asked[0].startswith("--print_completion")).read(asked)
    return 0


def whole_tree(*, real: bool) -> Parser:
    """Return the parser of the program with all its commands.

    Args:
        real: include the options of each command, which a completion needs; False = only names, which is quick.
    """
    set_parsing_settings(add_print_completion_argument=True)
    root = Parser(prog="ascl", description=ABOUT)
    root.add_argument("--version", action="store_true", help="print the version")
    level = root.add_subcommands(metavar="COMMAND")
    groups = {}
    for name, command in COMMANDS.items():
        group, _, rest = name.rpartition(" ")
        parser = parser_of.__wrapped__(name) if real else Parser(description=command.help)
        if not group:
            level.add_subcommand(rest, parser, help=command.help)
            continue
        if group not in groups:
            parent = Parser(description=GROUPS[group])
            level.add_subcommand(group, parent, help=GROUPS[group])
            groups[group] = parent.add_subcommands(metavar="COMMAND")
        groups[group].add_subcommand(rest, parser, help=command.help)
    return root
