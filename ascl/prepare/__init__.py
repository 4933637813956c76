"""Getting a data set ready: generate `scenes`, fetch the published ones, and check whatever is there."""

from ascl.prepare.checks import Check, check_dataset, table
from ascl.prepare.fetch import fetch_dataset, how_to_get
from ascl.prepare.scenes import prepare_scenes

__all__ = ["Check", "check_dataset", "fetch_dataset", "how_to_get", "prepare_scenes", "table"]
