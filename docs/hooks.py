"""Pages that `mkdocs build` makes: commands, settings, files of the repository; and formulas as MathML.

The pages come from the parsers and the dataclasses, so that they cannot say anything else than the programs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import html
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from ascl.cli.program import COMMANDS, GROUPS, parser_of
from ascl.settings import image_copy, retrieval
from ascl.settings.base import leaf_types, settings_parser

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = {
    "Retrieval": (retrieval.Config, "train", "`ascl train`, `ascl ablate` and `ascl prepare`", retrieval.SHORT),
    "Copy detection": (image_copy.CopyConfig, "copy train", "`ascl copy train`", image_copy.SHORT),
}
COPIED = {  # page -> a file of the repository that it shows
    "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md",
    "results/benchmarks.md": "benchmarks/README.md",
}
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


def on_files(files: Files, config: Any) -> Files:
    pages = {"reference/commands.md": commands_page(), "reference/settings.md": settings_page()}
    pages |= {page: copied(page, source) for page, source in COPIED.items()}
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_content(content: str, **_: Any) -> str:
    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', _mathml, content, flags=re.DOTALL)


def _mathml(found: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    return convert(html.unescape(found[2]), display="block" if found[1] == "div" else "inline")


def copied(page: str, source: str) -> str:
    """A Markdown file of the repository, with its links into docs/ as the page needs them."""
    text = (REPOSITORY / source).read_text(encoding="utf-8")
    return re.sub(r"\]\(docs/", f"]({'../' * page.count('/')}", text)


def commands_page() -> str:
    return "\n".join(_commands())


def _commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "Every command with its options, made from the parsers: `ascl COMMAND --help` prints the same. "
    yield "[Command line](../commands.md) has what all commands share.\n"
    group = ""
    for name, command in COMMANDS.items():
        if " " in name and name.split()[0] != group:
            group = name.split()[0]
            yield f"## ascl {group}\n\n{_sentence(GROUPS[group])}\n"
        parser = parser_of(name)
        yield f"{'###' if ' ' in name else '##'} ascl {name}\n"
        yield f"{_sentence(command.help)} {_text(parser.description or '')}\n"
        settings = {setting for kind, *_ in SETTINGS.values() for setting in leaf_types(kind)}
        groups = {setting.partition(".")[0] for setting in settings if "." in setting}
        shown = [action for action in parser.actions.values() if action.dest not in settings | groups | {"help"}]
        if any("." in option for option in parser.actions):
            title = "Copy detection" if name == "copy train" else "Retrieval"
            anchor = title.lower().replace(" ", "-")
            yield f"It also takes every setting of [{title.lower()}](settings.md#{anchor}).\n"
        yield from _table(["Option", "Value", "Default", "Meaning"], map(_option, shown))


def _option(action: argparse.Action) -> list[str]:
    flags = [flag for flag in action.option_strings if flag.startswith("--")]
    name = ", ".join(f"`{flag}`" for flag in flags) or f"`{action.metavar or action.dest}`"
    is_flag = action.nargs == 0 or action.default == argparse.SUPPRESS      # such as --print_config
    value = "" if is_flag else " ".join(f"`{choice}`" for choice in action.choices or ()) or _metavar(action)
    required = action.required or (not flags and action.nargs in (None, "+"))
    default = "" if is_flag or action.default in (None, []) else f"`{_value(action.default)}`"
    return [name, value, "required" if required else default, _text(action.help or "")]


def _metavar(action: argparse.Action) -> str:
    name = action.metavar if isinstance(action.metavar, str) else action.dest.rpartition(".")[2].upper()
    if name.startswith("{"):        # choices by their type
        return " ".join(f"`{choice}`" for choice in name.strip("{}").split(","))
    several = action.nargs in ("+", "*") or action.default == []
    return f"`{name}`" + " ..." * several


def settings_page() -> str:
    return "\n".join(_settings())


def _settings() -> Iterator[str]:
    yield "# Settings\n"
    yield "Made from the dataclasses of `ascl/settings`. A setting is an option of the command line "
    yield "(`--model.embed_dim 512`) and a key of a YAML file. The later wins: defaults, the preset of the data set or "
    yield "method, each `--config FILE`, the command line. `--print_config` prints what they come to.\n"
    for title, (kind, _, commands, short) in SETTINGS.items():
        names = ", ".join(f"`--{one}` (`{setting}`)" for one, setting in short.items())
        yield f"## {title}\n\nFor {commands}. Short names: {names}.\n"
        yield from _fields(kind, "", settings_parser(kind).actions, title)
    yield "## Presets\n\nThe files of `configs/`; the installed package brings them as `ascl.configs`.\n"
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        yield f'??? note "{path.relative_to(REPOSITORY).as_posix()}"\n\n    ```yaml'
        yield "\n".join(f"    {line}" for line in path.read_text(encoding="utf-8").splitlines())
        yield "    ```\n"


def _fields(kind: Any, prefix: str, actions: dict[str, Any], title: str) -> Iterator[str]:
    hints = typing.get_type_hints(kind)
    fields = {entry.name: hints[entry.name] for entry in dataclasses.fields(kind)}
    if prefix:
        yield f"### {prefix.removesuffix('.')} {{ #{title.lower().replace(' ', '-')}-{prefix.removesuffix('.')} }}\n"
        yield f"{_text(kind.__doc__)}\n"
    default = kind()
    rows = [[f"`{prefix}{name}`", _kind(hint), f"`{_value(getattr(default, name))}`",
             _text(actions[prefix + name].help or "")]
            for name, hint in fields.items() if not dataclasses.is_dataclass(hint)]
    yield from _table(["Setting", "Value", "Default", "Meaning"], rows)
    for name, hint in fields.items():
        if dataclasses.is_dataclass(hint):
            yield from _fields(hint, f"{prefix}{name}.", actions, title)


@functools.cache
def _kind(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " ".join(f"`{choice}`" for choice in arguments)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(_kind, arguments))
    return f"list of {_kind(arguments[0])}s" if typing.get_origin(hint) is list else KINDS[hint]


def _value(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or '""'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _text(text: str) -> str:
    """A help text in Markdown: what is no `code` is escaped, and no cell of a table is broken."""
    parts = " ".join(text.replace("%%", "%").split()).split("`")
    parts[::2] = [re.sub(r"([\\*_\[\]])", r"\\\1", html.escape(part, quote=False)) for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def _table(head: list[str], rows: Iterable[list[str]]) -> Iterator[str]:
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    if lines:
        yield f'<div class="options" markdown>\n\n| {" | ".join(head)} |\n|{"---|" * len(head)}'
        yield "\n".join(lines) + "\n\n</div>\n"
