"""Image-text retrieval that can be trusted: AsCL, trained and evaluated honestly.

`from ascl import AsCL, load_model`; everything else lies in the rooms `data`, `features`, `models`, `losses`,
`retrieval`, `training`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ascl.models import AsCL
    from ascl.retrieval.build import load_model

__all__ = ["AsCL", "load_model"]
__version__ = "0.2.0"


def __getattr__(name: str):
    """Import torch and the models only when they are asked for: `ascl.core.files` and the like stay light."""
    if name == "AsCL":
        from ascl.models import AsCL

        return AsCL
    if name == "load_model":
        from ascl.retrieval.build import load_model

        return load_model
    raise AttributeError(f"module 'ascl' has no attribute {name!r}")
