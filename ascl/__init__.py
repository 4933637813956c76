"""Image-text retrieval (AsCL) and image copy detection (ASL, RDCD), where similarity has a direction.

Start with `from ascl import AsCL, load_model, load_descriptor, CopyIndex, find_copy_groups`. Everything else is in the
subpackages, whose docstrings say what belongs there. `import ascl` is quick: torch and the models are imported on first
use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ascl.image_copy.descriptors.descriptor import load_descriptor
    from ascl.image_copy.matching.groups import find_copy_groups
    from ascl.index.store import CopyIndex
    from ascl.models import AsCL
    from ascl.retrieval.build import load_model

__version__ = "0.2.0"
__all__ = ["AsCL", "CopyIndex", "__version__", "find_copy_groups", "load_descriptor", "load_model"]

_ROOMS = {
    "AsCL": "ascl.models",
    "CopyIndex": "ascl.index.store",
    "find_copy_groups": "ascl.image_copy.matching.groups",
    "load_descriptor": "ascl.image_copy.descriptors.descriptor",
    "load_model": "ascl.retrieval.build",
}


def __getattr__(name: str):
    """Import an exported name, and torch with it, on first use."""
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'ascl' has no attribute {name!r}")
