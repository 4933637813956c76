"""Files like SSCD's published ones, small and untrained; the structure of both implementations, written anew."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet


class Gem(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, maps: Tensor) -> Tensor:
        count, channels, height, width = maps.size()
        return maps.reshape(count, channels, height * width).clamp(min=1e-6).pow(self.p).mean(dim=2).pow(1.0 / self.p)


class Unit(nn.Module):
    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.normalize(vectors)


class TorchvisionModel(nn.Module):
    """As SSCD with a backbone of torchvision."""

    def __init__(self, *, deep: bool, dim: int = 8, p: float = 3.0) -> None:
        super().__init__()
        layers = [1, 2, 1, 1]
        self.backbone = ResNet(Bottleneck, layers, num_classes=dim, groups=2, width_per_group=4) if deep else \
            ResNet(BasicBlock, layers, num_classes=dim)
        self.backbone.avgpool = Gem(p)
        self.embeddings = Unit()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embeddings(self.backbone(pixels))


class ClassyLayer(nn.Module):
    """A bottleneck with Classy Vision's names."""

    def __init__(self, planes: int, out: int, stride: int, middle: int, groups: int) -> None:
        super().__init__()
        self.convolutional_block = nn.Sequential(
            nn.Conv2d(planes, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, middle, 3, stride, 1, groups=groups, bias=False), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, out, 1, bias=False))
        self.bn, self.relu = nn.BatchNorm2d(out), nn.ReLU()
        self.downsample = None
        if stride != 1 or planes != out:
            self.downsample = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, maps: Tensor) -> Tensor:
        rest = maps if self.downsample is None else self.downsample(maps)
        out = self.bn(self.convolutional_block(maps))
        out += rest
        return self.relu(out)


class ClassyInitial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._module = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                                     nn.MaxPool2d(3, 2, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self._module(pixels)


class ClassyBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.initial_block = ClassyInitial()
        stages, planes = [], 64
        for stage, count in enumerate((1, 2, 1, 1)):
            out, stage_blocks = 256 * 2**stage, nn.Sequential()
            for place in range(count):
                stage_blocks.add_module(f"block{stage}-{place}", ClassyLayer(
                    planes, out, 2 if stage and not place else 1, 8 * 2**stage, 2))
                planes = out
            stages.append(stage_blocks)
        self.blocks = nn.Sequential(*stages)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.blocks(self.initial_block(pixels))


class ClassyModel(nn.Module):
    """As SSCD with a backbone of Classy Vision."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.backbone = ClassyBackbone()
        self.embeddings = nn.Sequential(Gem(3.0), nn.Linear(2048, dim), Unit())

    def forward(self, pixels: Tensor) -> Tensor:
        return self.embeddings(self.backbone(pixels))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in evaluation mode, with weights and statistics that all matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5),
                                    (module.running_var, 0.5)):
                    values.copy_(torch.rand(values.shape, generator=generator) + low)
            elif isinstance(module, nn.Conv2d | nn.Linear):
                scale = (2 / module.weight[0].numel()) ** 0.5
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * scale)
    return model.eval()


def write_traced(model: nn.Module, path: Path) -> None:
    """Write a model as SSCD's authors do: traced with one image of 64 x 64 pixels."""
    torch.jit.save(torch.jit.trace(model, torch.randn(1, 3, 64, 64)), str(path))
