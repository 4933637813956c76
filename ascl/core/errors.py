"""The one exception that a user's data or settings can cause; tools print it without a traceback."""


class DataError(ValueError):
    """Something a user gave is wrong: the message says what, where (file, row, key) and what to do."""
