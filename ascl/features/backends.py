"""The backends by name. Importing this module loads neither torch nor a backend, so that a command's help is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ascl.core.errors import DataError

if TYPE_CHECKING:
    from ascl.features.writer import Backend

REGION_BACKENDS = ("grid", "patches", "bottom-up", "torchvision", "detectron2")
GLOBAL_BACKENDS = ("classifier", "encoder")
BATCH_SIZE = {"bottom-up": 4, "torchvision": 4, "detectron2": 4}  # 32 for the others: a detector's images are large


def backend_class(kind: str) -> type:
    """Return the class of a backend by its name; import only the libraries that it needs."""
    if kind == "grid":
        from ascl.features.grid import GridBackend
        return GridBackend
    if kind == "classifier":
        from ascl.features.globals import GlobalBackend
        return GlobalBackend
    if kind == "patches":
        from ascl.features.patches import PatchBackend
        return PatchBackend
    if kind == "encoder":
        from ascl.features.patches import PatchGlobalBackend
        return PatchGlobalBackend
    if kind == "bottom-up":
        from ascl.features.detectors.bottom_up import BottomUpBackend
        return BottomUpBackend
    if kind == "torchvision":
        from ascl.features.detectors.torchvision_detector import TorchvisionDetectorBackend
        return TorchvisionDetectorBackend
    if kind == "detectron2":
        from ascl.features.detectors.detectron2_backend import Detectron2Backend
        return Detectron2Backend
    raise DataError(f"unknown backend {kind!r}; choose one of {', '.join((*REGION_BACKENDS, *GLOBAL_BACKENDS))}")


def make_backend(kind: str, arguments: dict[str, Any], device: str) -> Backend:
    """Return the backend on `device` of the calling machine (`auto`: CUDA if there is a GPU, else the CPU)."""
    from ascl.images.backbones import pick_device

    return backend_class(kind)(**arguments, device=pick_device(device))
