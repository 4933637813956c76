"""Errors caused by a user's data, settings or command; the command line prints them without a traceback."""

from __future__ import annotations

from collections.abc import Sequence


class DataError(ValueError):
    """Something that a user gave is wrong; the message says what, where (file, row, key) and what to do next."""


class SettingsError(DataError):
    """A setting or an option is unknown, missing, or has an impossible value."""


def first_of(names: Sequence[str], most: int = 5) -> str:
    """Return the first `most` names, separated by commas, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")
