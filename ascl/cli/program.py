"""The program `ascl`: which command it is, and how every command fails and stops.

Exit status: 0 done, 1 refused or failed (one line on stderr), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import NamedTuple

from jsonargparse import Namespace, set_parsing_settings

import ascl
from ascl.cli.options import Answer
from ascl.core.errors import DataError, SettingsError
from ascl.settings.base import Parser


class Command(NamedTuple):
    """A command: `NAME` in `ascl.cli.MODULE` runs it, `NAME_parser` makes its parser."""

    module: str
    name: str
    help: str


COMMANDS = {
    "prepare": Command("prepare", "prepare", "get a data set ready: generate or fetch it, then check it"),
    "extract regions": Command("extract", "region_features", "region features of images"),
    "extract globals": Command("extract", "global_features", "one feature vector for each image"),
    "extract descriptors": Command("extract", "descriptors", "copy-detection descriptors of images"),
    "convert": Command("features", "convert", "features of any format that is read, as our HDF5"),
    "merge": Command("features", "merge", "join the shards of an extraction"),
    "show": Command("features", "show", "draw the regions of an image"),
    "train": Command("train", "train", "train a retrieval model"),
    "eval": Command("evaluate", "evaluate", "recalls of a model, or of scores, over every pair"),
    "ablate": Command("ablate", "ablate", "train, evaluate and tabulate the studies of the paper"),
    "figures": Command("figures", "figures", "plots of finished runs and studies"),
    "explain": Command("explain", "explain", "why a pair has its score"),
    "report": Command("explain", "report", "a run as one HTML page"),
    "copy train": Command("train", "copy_train", "train an image descriptor"),
    "copy eval": Command("copy_evaluation", "evaluate", "metrics of descriptors or predictions"),
    "copy benchmark": Command("copy_evaluation", "benchmark", "make a benchmark from a folder of photographs"),
    "copy index": Command("copies", "index", "make an index of images, or go on with one"),
    "copy add": Command("copies", "add", "add images to an index"),
    "copy remove": Command("copies", "remove", "remove images by id"),
    "copy query": Command("copies", "query", "best matches of images, whether copies, and in which direction"),
    "copy calibrate": Command("copies", "calibrate", "threshold of a false-positive rate from unrelated images"),
    "copy info": Command("copies", "info", "what an index holds"),
    "copy compact": Command("copies", "compact", "give the rows of removed images back"),
}
GROUPS = {
    "extract": "features and descriptors of images",
    "copy": "image copy detection: descriptors, evaluation, an index of images",
}
ABOUT = """Image-text retrieval (AsCL) and image copy detection (ASL, RDCD), where similarity has a direction.

`ascl COMMAND --help` says what a command takes. Options are spelled with underscores; hyphens mean the same.
Shell completion: ascl --print_completion shtab-bash (or shtab-zsh)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: words of the command line; None = this process's.

    Returns:
        Exit status.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            name, rest = command_of(words)
            if name is None:
                return overview(rest)
            options = parser_of(name).read(rest)
            with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if options.json else nullcontext():
                answer = run(name)(options)
            if options.json:
                print(json.dumps(answer.content, indent=1, default=str))
            status = answer.status
        except SystemExit as asked:                 # --help and the like print and end
            status = int(asked.code or 0)
        sys.stdout.flush()
        return status
    except SettingsError as error:
        return failed(error, 2)
    except BrokenPipeError:                         # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DataError, OSError) as error:
        return failed(error, 1)
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        return 130


def failed(error: Exception, status: int) -> int:
    """Say what is wrong in one line."""
    print("error:", *str(error).splitlines(), file=sys.stderr)
    return status


def command_of(words: list[str]) -> tuple[str | None, list[str]]:
    """The name that the words begin with, and the rest; None where they name no command."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            return name, words[count:]
    return None, words


def parser_of(name: str) -> Parser:
    """The parser of a command."""
    command = COMMANDS[name]
    module = importlib.import_module(f"ascl.cli.{command.module}")
    parser = getattr(module, f"{command.name}_parser")(f"ascl {name}")
    parser.add_argument("--json", action="store_true",
                        help="print the result as JSON, and nothing else on the standard output")
    return parser


def run(name: str) -> Callable[[Namespace], Answer]:
    """What a command does with its options."""
    command = COMMANDS[name]
    return getattr(importlib.import_module(f"ascl.cli.{command.module}"), command.name)


def overview(words: list[str]) -> int:
    """What no command answers: `--help`, `--version`, `--print_completion`, and names that do not exist."""
    if words == ["--version"]:
        print(ascl.__version__)
        return 0
    asked = words or ["--help"]
    if asked in (["extract"], ["copy"]):
        asked = [*asked, "--help"]
    whole_tree(real=asked[0].startswith("--print_completion")).read(asked)
    return 0


def whole_tree(*, real: bool) -> Parser:
    """The parser of the program with all its commands.

    Args:
        real: with the options of each command, as a completion needs them; False = names alone, which is quick.
    """
    set_parsing_settings(add_print_completion_argument=True)
    root = Parser(prog="ascl", description=ABOUT)
    root.add_argument("--version", action="store_true", help="print the version")
    level = root.add_subcommands(metavar="COMMAND")
    groups = {}
    for name, command in COMMANDS.items():
        group, _, rest = name.rpartition(" ")
        parser = parser_of(name) if real else Parser(description=command.help)
        if not group:
            level.add_subcommand(rest, parser, help=command.help)
            continue
        if group not in groups:
            parent = Parser(description=GROUPS[group])
            level.add_subcommand(group, parent, help=GROUPS[group])
            groups[group] = parent.add_subcommands(metavar="COMMAND")
        groups[group].add_subcommand(rest, parser, help=command.help)
    return root
