"""Which published weights of backbones are on this machine; nothing here asks the network, or loads torch at import."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

TIMM = "timm:"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")     # as timm looks for them


@cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers."""
    from torchvision import models

    return tuple(models.list_models(module=models))


def address_of(name: str) -> str:
    """Return the address of the weights `default` of a torchvision classifier."""
    return str(_weights(name).url)


def place_of(name: str) -> Path:
    """Return where torchvision keeps, or would keep, the weights `default` of a classifier."""
    return _in_hub(address_of(name))


def size_of(name: str) -> int:
    """Return the bytes of the weights `default` of a torchvision classifier, as torchvision has it (rounded)."""
    return round(_weights(name).meta["_file_size"] * 2**20)


def is_at_hand(backbone: str) -> bool:
    """Return whether the published weights of a backbone, torchvision's or `timm:NAME`, are on this machine.

    True also for a name that its library does not know, because there is nothing to download.
    """
    if not backbone.startswith(TIMM):
        return backbone not in torchvision_names() or place_of(backbone).is_file()
    try:
        import timm
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return True
    config: Any = timm.get_pretrained_cfg(backbone.removeprefix(TIMM), allow_unregistered=True)
    if config is None:
        return True
    files = [config.hf_hub_filename] if config.hf_hub_filename else _HUB_FILES
    hub = config.hf_hub_id
    return bool(hub and any(isinstance(try_to_load_from_cache(hub, file), str) for file in files)) or \
        bool(config.url and _in_hub(config.url).is_file())


def timm_at_hand() -> list[str]:
    """Return `timm:NAME` of each of timm's models whose weights are in the cache of the Hugging Face hub."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return []
    start = "models--timm--"
    cached = [file for name in _HUB_FILES for file in Path(constants.HF_HUB_CACHE).glob(f"{start}*/snapshots/*/{name}")]
    return sorted({f"{TIMM}{file.parents[2].name.removeprefix(start)}" for file in cached})


def _weights(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name).DEFAULT


def _in_hub(address: str) -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(address)
