"""The program that damages inputs and kills commands works, and a short round of it finds no fault."""

from __future__ import annotations

import sys

import pytest

from ascl.core.errors import DataError
from benchmarks import results

from .reliability.__main__ import main
from .reliability.damage import outcome
from .reliability.kinds import KINDS, Kind


def test_a_short_round_finds_no_fault(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reliability", "--cases", str(2 * len(KINDS)), "--kills", "6", "--seed", "7",
                                      "--results", "rows.csv"])
    assert main() == 0, capsys.readouterr().out
    rows = {row.figure.partition(": ")[0]: row for row in results.read(tmp_path / "rows.csv")}
    numbers = [int(number) for number in rows["reliability, damaged input, all"].value.split()]
    assert numbers[0] == 2 * len(KINDS) == sum(numbers[1:4]) and not any(numbers[4:])
    tried, same = (int(number) for number in rows["reliability, killed command, all"].value.split()[:2])
    assert tried == same >= 6


def divided(folder):
    return str(1 / 0)


def unnamed(folder):
    raise DataError("somewhere")


@pytest.mark.parametrize(("read", "exact", "fault"), [
    (divided, False, "traceback"), (unnamed, False, "unnamed"), (lambda folder: "another answer", True, "silent"),
    (lambda folder: "another answer", False, "other"), (lambda folder: "the answer", True, "same"),
])
def test_a_fault_is_counted(tmp_path, monkeypatch, read, exact, fault):
    monkeypatch.chdir(tmp_path)
    kind = Kind("a file", lambda folder: [folder / "file"], read, exact=exact)
    assert outcome(kind, tmp_path, tmp_path / "file", "the answer")[0] == fault
    (tmp_path / "canary").touch()
    assert outcome(kind, tmp_path, tmp_path / "file", "the answer")[0] == "code ran"
