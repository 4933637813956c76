"""The pages of docs/ say what the code says: messages, options, promised names; and the site builds."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ascl.cli.program import COMMANDS, parser_of

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"
LEAST_WORDS, LEAST_BEGINNING = 4, 12  # of a message that are not filled in; letters that it begins with


def patterns() -> list[re.Pattern[str]]:
    """Every text of the package with enough fixed words, anything where values are filled in."""
    found = set()
    for path in (REPOSITORY / "ascl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add((node.value,))
            elif isinstance(node, ast.JoinedStr):
                found.add(tuple(part.value if isinstance(part, ast.Constant) else None for part in node.values))
    telling = (parts for parts in found if len(parts[0] or "") >= LEAST_BEGINNING
               or sum(len(re.findall(r"\w\w+", part)) for part in parts if part) >= LEAST_WORDS)
    return [re.compile("".join(".*" if part is None else re.escape(part) for part in parts), re.DOTALL)
            for parts in telling]


def test_messages_of_troubleshooting_stand_in_the_code():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^```text\n(.+)\n```$", page, flags=re.MULTILINE)
    assert len(messages) >= 20
    known = patterns()
    assert [message for message in messages if not any(pattern.fullmatch(message) for pattern in known)] == []


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading of the page on the command line."""
    section = (DOCS / "commands.md").read_text(encoding="utf-8").partition(f"{heading}\n")[2].partition("\n#")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines()
            if line.startswith("| `")]


def test_the_page_on_the_command_line_lists_every_command_and_program():
    listed, programs = [], []
    for names, _, program in rows("# Command line"):
        first, *others = (name.strip("` ") for name in names.split(","))
        listed += [first.removeprefix("ascl "), *(f"copy {name}" for name in others)]
        programs.append(program.strip("`"))
    assert listed == list(COMMANDS)
    assert sorted(programs) == sorted(path.name for path in (REPOSITORY / "tools").glob("*.py"))


def test_one_name_for_one_thing_is_true():
    parsers = {name: parser_of(name) for name in COMMANDS}

    def has(name: str, option: str) -> bool:
        parser = parsers[name]
        action = parser.actions.get(parser.short.get(option, option))
        return action is not None and bool(action.option_strings)

    for names, _, where in rows("## One name for one thing"):
        having = {name for name in COMMANDS if all(has(name, option) for option in re.findall(r"--(\w+)", names))}
        if where.startswith("every command that writes"):
            continue
        if "config FILE" in names:      # the table says that these two are another thing
            having -= {"extract regions", "show"}
        wanted = {name for one in where.split(", ") for name in COMMANDS
                  if one == "every command" or name == one or name.startswith(f"{one} ")}
        assert having == wanted, names


def test_promised_names_are_documented_where_they_are():
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r'^::: (\S+)\n +options:\n +heading: "(\S+)"', page, flags=re.MULTILINE)
    assert len(entries) == page.count(":::") > 20
    for path, public in entries:
        there, promised = (getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2])
                           for name in (path, public))
        assert there is promised, public


def test_citation_names_this_version():
    import ascl

    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ascl.__version__ and citation["license"] == "MIT"


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    ran = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
                         cwd=REPOSITORY, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:      # nothing is fetched from elsewhere when a page is opened
        assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="?https?://', page.read_text(encoding="utf-8")) == []
