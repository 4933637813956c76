"""Get a published data set ready: addresses, download, unpacking, and a check of what is there."""

from ascl.datasets.checks import Check, check_dataset, table
from ascl.datasets.fetch import fetch_dataset, how_to_get

__all__ = ["Check", "check_dataset", "fetch_dataset", "how_to_get", "table"]
