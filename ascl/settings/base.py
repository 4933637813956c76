"""Read settings with jsonargparse: defaults, then presets of `configs/`, `--config` files and the command line.

A settings class is a frozen dataclass of frozen dataclasses. The docstring of a field is its help text.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import functools
import glob
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml
from jsonargparse import ArgumentError, Namespace, set_loader, set_parsing_settings

import ascl
from ascl.core.errors import DataError, SettingsError
from ascl.core.limits import YAML_BYTES, YAML_NODES
from ascl.core.reading import read_text, reason, require_file, shown

Settings = TypeVar("Settings")
Presets = Callable[[Namespace], Iterable[Path]]

YAML_TAG = "tag:yaml.org,2002:"
_IMPOSSIBLE = (ArgumentError, TypeError, OverflowError)  # what jsonargparse raises for values it cannot convert
MOST_LEVELS = 100  # of values in values; settings have two
OF_THE_PAPER = "ascl_paper"  # settings for --config, beside those of data sets
NEAR = 0.7  # least similarity, from 0 to 1, of a known name that is suggested for an unknown one


class Yaml(yaml.SafeLoader):
    """A YAML loader with the scalars of YAML 1.2: `no` is text and not false, 5e-4 a number, a date text.

    It raises nothing but `YAMLError`, and refuses aliases that would expand to more than `limits.YAML_NODES` values.
    """

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers
                 if tag.removeprefix(YAML_TAG) not in ("bool", "float", "timestamp")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def get_single_data(self) -> Any:
        try:
            node = self.get_single_node()
            if node is None:
                return None
            YAML_NODES.check(expanded_size(node), "with its aliases expanded")
            return self.construct_document(node)
        except yaml.YAMLError:
            raise
        except Exception as error:  # of impossible values, such as !!bool 5 or an integer of 5,000 digits
            raise yaml.YAMLError(reason(error)) from error


def expanded_size(node: yaml.Node) -> int:
    """Return the number of values of a YAML document in which every alias is replaced by what it stands for.

    Raises:
        YAMLError: a value contains itself, or there are more than `MOST_LEVELS` levels.
    """
    def measured(node: yaml.Node) -> tuple[int, int]:
        """Return the number of values and levels."""
        if node not in sizes:
            sizes[node] = None  # in progress
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            below = [measured(child) for entry in inner for child in (entry if isinstance(entry, tuple) else [entry])]
            sizes[node] = 1 + sum(size for size, _ in below), 1 + max((levels for _, levels in below), default=0)
        found = sizes[node]
        if found is None:
            raise yaml.YAMLError("an alias stands for a value that contains it")
        if found[1] > MOST_LEVELS:
            raise yaml.YAMLError(f"values are nested in more than {MOST_LEVELS} levels")
        return found

    sizes: dict[yaml.Node, tuple[int, int] | None] = {}
    return measured(node)[0]


Yaml.add_implicit_resolver(f"{YAML_TAG}bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
Yaml.add_implicit_resolver(
    f"{YAML_TAG}float",
    re.compile(r"^(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)
_parsed = functools.lru_cache(1000)(functools.partial(yaml.load, Loader=Yaml))  # the parser reads a default many times
set_loader("ascl", lambda text: copy.deepcopy(_parsed(text)), (yaml.YAMLError,))
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(jsonargparse.ArgumentParser):
    """A parser that raises `SettingsError`, in one line and with the nearest known name, and never ends the process.

    Options are spelled with underscores; hyphens mean the same.

    Args:
        short: short name -> full name of an option, such as seed -> train.seed.
        presets: function from the given options to YAML files that replace defaults; the last wins.
        options: those of `jsonargparse.ArgumentParser`.
    """

    def __init__(
        self, *, short: Mapping[str, str] | None = None, presets: Presets | None = None, **options: Any
    ) -> None:
        self.short, self.presets = dict(short or {}), presets
        self.text_lists: set[str] = set()       # options whose value is a list of texts
        self.file_options: set[str] = set()     # options whose value is a file of settings
        super().__init__(exit_on_error=False, allow_abbrev=False, parser_mode="ascl", **options)

    def add_argument(self, *names: str, **options: Any) -> argparse.Action:
        """Add an option as argparse does. One that takes several values may be repeated: argparse would silently keep
        the values of the last one only."""
        if names[0].startswith("--") and options.get("nargs") in ("+", "*"):
            options.setdefault("action", "extend")
        return super().add_argument(*names, **options)

    def add_settings(self, kind: type) -> None:
        """Add `--config` and an option for every field of a settings class, by its dotted name."""
        self.add_argument("--config", action="config", help="YAML file of settings; may be repeated, the last wins; "
                          "options override files")
        self.add_class_arguments(kind)
        self.file_options |= {"config"} | {name.rpartition(".")[0] for name in leaf_types(kind)}
        self.text_lists |= {name for name, leaf in leaf_types(kind).items() if leaf == list[str]}

    @property
    def actions(self) -> dict[str, argparse.Action]:
        """All options and positional arguments, by name."""
        return {action.dest: action for action in self._actions}

    def read(self, arguments: Sequence[str]) -> Namespace:
        """Parse the words of a command line.

        Returns:
            The options. `given` lists the names of those that are on the command line itself.

        Raises:
            SettingsError: an option is unknown, a value is impossible, or a file does not hold settings.
        """
        words, configs = self._spelled_out(arguments)
        for path in configs:
            self._check_names(path)
        given = self._checked(words, [], configs)
        files = [] if self.presets is None else list(self.presets(given))
        for path in files:
            self._check_names(path)
        found = self._checked(words, files, configs) if files else given
        found.given = [word[2:].partition("=")[0] for word in words if word.startswith("--")]
        return found

    def _checked(self, words: list[str], files: list[Path], configs: list[Path]) -> Namespace:
        """Parse, with defaults from `files`; an error names the file that caused it."""
        self.default_config_files = [glob.escape(str(path)) for path in files]
        try:
            return self.parse_args(words)
        except _IMPOSSIBLE as error:
            for path in [*files, *configs]:
                self._check_values(path)
            raise SettingsError(self._one_line(str(error))) from None
        finally:
            self.default_config_files = []

    def _check_names(self, path: Path) -> None:
        names = self.actions.keys() - self.file_options
        for name in flatten(read_yaml(path)):
            check_name(name, names, str(path))

    def _check_values(self, path: Path) -> None:
        self.default_config_files = []
        try:
            self.parse_path(str(path), defaults=False)
        except _IMPOSSIBLE as error:
            raise SettingsError(f"{path}: {self._one_line(str(error))}") from None

    def _spelled_out(self, arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
        """Return the words with full option names, and the `--config` files.

        `--config` comes first, because options override files; `configs/...` may name a shipped file. A list of texts
        becomes JSON, because `a.h5,b.h5` and `[a/{split}.h5]` are not lists in YAML.
        """
        words: list[str] = []
        configs: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if not word.startswith("--") or word == "--":
                words.append(word)
                continue
            name, equals, value = word[2:].partition("=")
            name = self.short.get(name.replace("-", "_"), name.replace("-", "_"))
            is_config = name == "config" and "config" in self.file_options
            if (is_config or name in self.text_lists) and not equals and rest and not rest[0].startswith("--"):
                equals, value = "=", rest.pop(0)
            if is_config and equals:
                configs.append(str(shipped_config(Path(value))))
                continue
            if name in self.text_lists and equals:
                value = text_list(name, value)
            words.append(f"--{name}{equals}{value}")
        return [*(f"--config={file}" for file in configs), *words], [Path(file) for file in configs]

    def _one_line(self, message: str) -> str:
        """Return jsonargparse's message in one line, with a suggestion for an unknown option."""
        unknown = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        if unknown:
            names = [name for name, action in self.actions.items() if action.option_strings] + list(self.short)
            return f"unknown option {unknown[1]}{nearest(unknown[1][2:], names)}"
        key = re.match(r'Parser key "([^"]+)":\s*', message)
        message = message[key.end():] if key else message
        if number := re.search(r"Not of type (Positive|NonNegative)Int: .*?(\S+)( does not conform|$)", message):
            least = 1 if number[1] == "Positive" else 0
            message = f"expected a whole number of at least {least}, got {number[2]}"
        elif (kinds := re.search(r"Subtypes: \[(.*)\]", message)) and "Given value: " in message:
            message = f"expected {kinds[1].replace(', ', ' or ')}, got {message.rsplit('Given value: ', 1)[1]}"
        message = message.replace(". Got value: ", ", got ").replace("Expected a ", "expected ")
        for pattern, text in (
            (r"<class '([\w.]+)'>", r"\1"), (r"typing\.Literal", "one of "), ("NoneType|None", "null"), (r"\s+", " "),
        ):
            message = re.sub(pattern, text, message)
        return f"{key[1]}: {message.strip()}" if key else message.strip()


def text_list(name: str, text: str) -> str:
    """Return `[a, b]` or `a,b` as JSON: a list of texts."""
    if text.startswith("[") != text.endswith("]"):
        raise SettingsError(f"--{name} {text}: a bracket is missing")
    parts = text.removeprefix("[").removesuffix("]").split(",")
    return json.dumps([part.strip().strip("'\"") for part in parts if part.strip()])


def configs() -> Path:
    """Return the folder of presets: `ascl/configs` of an installed package, or `configs/` of a checkout."""
    shipped = Path(str(resources.files(ascl) / "configs"))
    return shipped if shipped.is_dir() else shipped.parents[1] / "configs"


def shipped_config(path: Path) -> Path:
    """Return `configs/...` within the package if the working directory has no such file, any other path unchanged."""
    inside = configs().joinpath(*path.parts[1:])
    return inside if path.parts[:1] == ("configs",) and not path.exists() and inside.is_file() else path


def preset(name: str, what: str, room: str = "") -> Path:
    """Return the YAML file of a data set or method, from `configs/` in the working directory or else from `ascl`.

    Args:
        name: file name without .yaml.
        what: "data set" or "method", for the message.
        room: folder within `configs/`.

    Raises:
        SettingsError: there is no such file; the message lists the known names.
    """
    folders = [place / room for place in (Path("configs"), configs())]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    names = {entry.stem for folder in folders for entry in folder.glob("*.yaml")}
    known = ", ".join(sorted(names - {OF_THE_PAPER}))
    if not name:
        raise SettingsError(f"no {what} was chosen: choose one of {known}")
    raise SettingsError(f"no settings for {what} {name!r}: {folders[0] / name}.yaml does not exist; known: {known}")


@functools.cache
def settings_parser(kind: type) -> Parser:
    """Return a parser with the fields of a settings class as its only options."""
    parser = Parser(add_help=False)
    parser.add_settings(kind)
    return parser


def read_settings(kind: type, path: Path) -> dict[str, Any]:
    """Return what a YAML file sets: dotted name -> value.

    Raises:
        SettingsError: the file does not exist, is not YAML, or sets an unknown name.
    """
    values = flatten(read_yaml(path))
    for name in values:
        check_name(name, leaf_types(kind), str(path))
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the names and values of a YAML file; `SettingsError` if there are none to read."""
    try:
        YAML_BYTES.check(require_file(path, "file of settings").st_size, shown(path))
        text = read_text(path, "a file of settings (YAML)", "repair it, or give another")
        values = yaml.load(text, Loader=Yaml)
    except yaml.YAMLError as error:
        raise SettingsError(f"{shown(path)}: not valid YAML: {' '.join(str(error).split())}") from error
    except DataError as error:
        raise SettingsError(str(error)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{shown(path)}: expected settings by name, found {type(values).__name__}")
    return values


def from_dict(kind: type[Settings], values: Mapping[str, Any], where: str = "settings") -> Settings:
    """Return settings from saved values, nested or by dotted name; missing ones have their defaults.

    Args:
        where: what the values are from, for the message.

    Raises:
        SettingsError: a name is unknown (the message suggests the nearest) or a value has the wrong type.
    """
    flat = flatten(values)
    kinds = leaf_types(typing.cast(Any, kind))
    for name, value in flat.items():
        check_name(name, kinds, where)
        if value is None and type(None) not in typing.get_args(kinds[name]):    # the parser lets it through
            raise SettingsError(f"{where}: {name} cannot be null; leave it out for its default")
    parser = settings_parser(typing.cast(Any, kind))
    try:
        return build(kind, parser.parse_object(nest(flat)))
    except _IMPOSSIBLE as error:
        raise SettingsError(f"{where}: {parser._one_line(str(error))}") from None


def to_dict(settings: Any) -> dict[str, Any]:
    """Return settings as a plain nested dict, for YAML and checkpoints."""
    return dataclasses.asdict(settings)


def build(kind: type[Settings], values: Namespace | Mapping[str, Any]) -> Settings:
    """Return a settings class made of parsed values; names that are not its fields are ignored.

    Raises:
        SettingsError: a value is null where it cannot be, or is no group of settings where one belongs.
    """
    hints = typing.get_type_hints(kind)
    found = vars(values) if isinstance(values, Namespace) else values
    made = {}
    for entry in dataclasses.fields(typing.cast(Any, kind)):
        value, hint = found[entry.name], hints[entry.name]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, (Namespace, Mapping)):
                raise SettingsError(f"{entry.name}: expected settings by name, got {value!r}")
            value = build(typing.cast(type, hint), value)
        elif value is None and type(None) not in typing.get_args(hint):
            raise SettingsError(f"{entry.name} cannot be null; leave it out for its default")
        made[entry.name] = value
    return kind(**made)


@functools.cache
def leaf_types(kind: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field, by the dotted name that the command line uses."""
    hints = typing.get_type_hints(kind)
    found: dict[str, Any] = {}
    for entry in dataclasses.fields(typing.cast(Any, kind)):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint):
            found |= leaf_types(typing.cast(type, hint), f"{prefix}{entry.name}.")
        else:
            found[prefix + entry.name] = hint
    return found


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted names as nested ones."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return nested


def check_name(name: str, known: Iterable[str], where: str) -> None:
    """Raise SettingsError if a name is not a known setting."""
    names = list(known)
    if name not in names:
        raise SettingsError(f"{where}: unknown setting {name!r}{nearest(name, names)}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?` if a known name is similar as a whole or in its last part (lr -> optimizer.lr)."""
    def likeness(other: str) -> tuple[float, float]:
        def ratio(a: str, b: str) -> float:
            return difflib.SequenceMatcher(None, a, b).ratio()

        whole = ratio(name, other)
        return max(whole, ratio(name.rpartition(".")[2], other.rpartition(".")[2])), whole

    best = max(known, key=likeness, default="")
    return f"; did you mean {best!r}?" if best and likeness(best)[0] >= NEAR else ""
