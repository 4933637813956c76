"""Errors that a user's data, settings or command can cause; the command line prints them without a traceback."""


class DataError(ValueError):
    """Something a user gave is wrong: the message says what, where (file, row, key) and what to do."""


class SettingsError(DataError):
    """A setting or an option is unknown, or has a value that it cannot have."""
