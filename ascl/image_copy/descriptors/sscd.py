"""SSCD's published networks, built here and filled with their weights; nothing in their files is run.

Source: Pizzi et al. 2022, the models of facebookresearch/sscd-copy-detection: a ResNet or ResNeXt, GeM with p = 3, and
a linear layer. They are published with torchvision's names (`.torchvision.pt`), with those of Classy Vision
(`.classy.pt`), and as traced TorchScript (`.torchscript.pt`) of either.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from ascl.images.backbones import refuse_misfit
from ascl.images.pooling import gem_pool

FLOOR = 1e-6        # of what GeM raises to that power
POOL = 3.0          # exponent of GeM, which their weights do not record
_CLASSY_BLOCK = re.compile(r"blocks\.(\d+)\.block\d+-(\d+)\.(.+)")
_CLASSY_PARTS = {
    "backbone.initial_block._module.0": "conv1", "backbone.initial_block._module.1": "bn1", "embeddings.1": "fc",
    "convolutional_block.0": "conv1", "convolutional_block.1": "bn1", "convolutional_block.3": "conv2",
    "convolutional_block.4": "bn2", "convolutional_block.6": "conv3", "downsample.0": "downsample.0",
    "downsample.1": "downsample.1",
}
# what tracing these networks leaves in the code; a network with other operations, or another GeM, is another network
_OPERATIONS = frozenset(
    "torch._convolution torch.conv2d torch.batch_norm torch.relu torch.relu_ torch.max_pool2d torch.add torch.add_ "
    "torch.size torch.mul torch.reshape torch.flatten torch.clamp torch.clamp_min torch.pow torch.mean torch.linear "
    "torch.addmm torch.t torch.norm torch.linalg_vector_norm torch.expand_as torch.div ops.prim.NumToTensor".split())
_SETTINGS = {       # operation -> its kind, and the places of the arguments that must be the network's
    "torch._convolution": ("convolution", (3, 4, 5, 8)), "torch.conv2d": ("convolution", (3, 4, 5, 6)),
    "torch.batch_norm": ("batch_norm", (5, 7)), "torch.max_pool2d": ("max_pool2d", (1, 2, 3, 4)),
    "torch.clamp": ("clamp", (1,)),
}


class _Gem(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return gem_pool(maps, p=POOL, floor=FLOOR)


def sscd_network(tensors: Mapping[str, Tensor], source: str) -> ResNet | None:
    """Return SSCD's network with these weights, from normalized pixels (B, 3, H, W) to vectors (B, d).

    Args:
        tensors: by the names of the published files.
        source: their file, for messages.

    Returns:
        The network; None if the names are not those of SSCD's files.

    Raises:
        DataError: some of the names or shapes do not fit the network (all are listed).
    """
    named = torchvision_names(tensors)
    blocks = [len({match[1] for name in named if (match := re.match(rf"layer{stage}\.(\d+)\.", name))})
              for stage in (1, 2, 3, 4)]
    first, last = named.get("layer1.0.conv2.weight"), named.get("fc.weight")
    if first is None or last is None or 0 in blocks or first.dim() != 4 or 0 in first.shape or last.dim() != 2:
        return None
    groups = first.shape[0] // first.shape[1]
    kind: type[Bottleneck | BasicBlock] = Bottleneck if "layer1.0.conv3.weight" in named else BasicBlock
    if groups < 1 or (kind is BasicBlock and (groups, first.shape[0]) != (1, 64)):
        return None
    with torch.device("meta"):  # drawing numbers that the file replaces takes long
        network = ResNet(kind, blocks, num_classes=len(last), groups=groups, width_per_group=first.shape[0] // groups)
    network.avgpool = _Gem()
    wanted = {name: value.shape for name, value in network.state_dict().items()}
    optional = [name for name in wanted if name.endswith("num_batches_tracked")]
    refuse_misfit(f"{source} does not fit SSCD's network", named, wanted, optional)
    counters = {name: torch.zeros((), dtype=torch.int64) for name in optional}
    network.load_state_dict(counters | {name: value.float() for name, value in named.items() if name not in counters},
                            assign=True)
    return network.eval()


def torchvision_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return SSCD's tensors by the names that torchvision's ResNet has for them; other names stay as they are."""
    named = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if block := _CLASSY_BLOCK.fullmatch(module.removeprefix("backbone.")):
            stage, place, part = int(block[1]) + 1, block[2], block[3]
            closing = "bn3" if f"{module.removesuffix(part)}convolutional_block.6.weight" in tensors else "bn2"
            module = f"layer{stage}.{place}.{closing if part == 'bn' else _CLASSY_PARTS.get(part, part)}"
        else:
            module = _CLASSY_PARTS.get(module, module.removeprefix("backbone."))
        named[f"{module}.{kind}"] = tensor
    return named


def is_sscd_code(code: str, network: ResNet) -> bool:
    """Return whether the text of a TorchScript file's code, as tracing leaves it, computes what the network computes.

    It has the operations of SSCD's network and no others, with the same strides, paddings, dilations, groups, sizes and
    constants.
    """
    try:
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = [ast.unparse(call.func) for call in calls]
    operations = {name for name in names if name.startswith(("torch.", "ops."))}
    others = {name for name in names if "." not in name} - {"int", "getattr", "annotate"}
    powers = {ast.unparse(call.args[-1]) for name, call in zip(names, calls, strict=True) if name == "torch.pow"}
    gem = all(re.fullmatch(r"3\.?0?|0\.33333\d*", power) for power in powers)
    settings = {_settings_of(name, call) for name, call in zip(names, calls, strict=True) if name in _SETTINGS}
    return operations <= _OPERATIONS and not others and gem and len(powers) == 2 and settings == _wanted(network)


def _settings_of(name: str, call: ast.Call) -> tuple[Any, ...]:
    kind, places = _SETTINGS[name]
    try:
        return kind, *(str(ast.literal_eval(call.args[place])) for place in places)
    except (ValueError, IndexError):        # computed, so not to be known without running it
        return (kind,)


def _wanted(network: ResNet) -> set[tuple[Any, ...]]:
    found: set[tuple[Any, ...]] = {("clamp", str(FLOOR)), ("max_pool2d", "[3, 3]", "[2, 2]", "[1, 1]", "[1, 1]")}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            parts = (module.stride, module.padding, module.dilation)
            found.add(("convolution", *(str(list(part)) for part in parts), str(module.groups)))
        elif isinstance(module, nn.BatchNorm2d):
            found.add(("batch_norm", "False", str(module.eps)))
    return found
