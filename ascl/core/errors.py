"""Errors that a user's data, settings or command can cause; the command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class DataError(ValueError):
    """Something a user gave is wrong: the message says what, where (file, row, key) and what to do."""


class SettingsError(DataError):
    """A setting or an option is unknown, or has a value that it cannot have."""


def first_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list that may be long, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
