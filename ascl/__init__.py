"""Image-text retrieval and image copy detection that can be trusted: trained and evaluated honestly.

`from ascl import AsCL, load_model, load_descriptor, CopyIndex`; everything else lies in the rooms, whose docstrings say
what belongs there. Nothing heavy is imported before it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ascl.image_copy.descriptors.descriptor import load_descriptor
    from ascl.index.store import CopyIndex
    from ascl.models import AsCL
    from ascl.retrieval.build import load_model

__version__ = "0.2.0"
__all__ = ["AsCL", "CopyIndex", "__version__", "load_descriptor", "load_model"]

_ROOMS = {
    "AsCL": "ascl.models",
    "CopyIndex": "ascl.index.store",
    "load_descriptor": "ascl.image_copy.descriptors.descriptor",
    "load_model": "ascl.retrieval.build",
}


def __getattr__(name: str):
    """Import torch and the models only when they are asked for."""
    if name in _ROOMS:
        return getattr(importlib.import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'ascl' has no attribute {name!r}")
