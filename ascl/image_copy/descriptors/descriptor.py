"""Descriptors of images: the networks that are trained here, and what turns images into vectors.

A `Descriptor` is backbone -> GeM -> `feature_dim` -> `dim`, like RDCD's students, or has the projector of ASL instead
of the last layer or beside it. A `Describer` applies any trained network: from images to unit vectors and norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.images.backbones import Normalize, Precision, autocast
from ascl.images.pooling import Pool, PooledBackbone
from ascl.images.read import SquarePixels
from ascl.images.rgb import TRANSPARENCY

STUDENT = "student."  # prefix of the descriptor's parameters in the checkpoint of a training run

NormOf = Literal["projector", "feature", "embedding"]
Resize = Literal["squash", "crop"]


@dataclass(frozen=True)
class DescriptorSettings:
    """The architecture of a descriptor and its input; saved with it."""

    backbone: str = "efficientnet_b0"  # this and the next five: see `PooledBackbone`
    weights: str = "default"
    same_padding: bool = False
    normalize: Normalize = "imagenet"
    last_stride: int = 2
    pool: Pool = "gem"
    feature_dim: int | None = 512  # of the linear layer after GeM; None = GeM's vector is the feature
    dim: int | None = 64  # of the linear layer from feature to descriptor; None = no such layer
    projector_hidden: int = 4096  # of ASL's projector on the feature
    projector_dim: int | None = None  # of its output, which is the descriptor if `dim` is None; None = no projector
    norm_of: NormOf = "embedding"  # the vector whose norm is the content norm
    freeze_batch_norm: bool = False  # keep the initial batch norm statistics of the backbone in training
    input_size: int = 288  # side of the square input, in pixels
    resize: Resize = "squash"  # how an image becomes a square

    def __post_init__(self) -> None:
        for name in ("feature_dim", "dim", "projector_hidden", "projector_dim", "input_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}: give at least 1")
        if self.norm_of == "projector" and self.projector_dim is None:
            raise DataError("norm_of projector needs a projector: set projector_dim")


class Described(NamedTuple):
    """The output of a descriptor for B images; nothing is L2-normalized."""

    features: Tensor  # (B, feature_dim), compared with the teacher's in distillation
    embeddings: Tensor  # (B, d), the descriptor; images are compared by its cosine
    content: Tensor  # (B, n), the vector whose norm says how much an image shows


class Projector(nn.Sequential):
    """The projector of ASL: linear, batch norm, leaky ReLU, linear, batch norm with its bias frozen at 0."""

    def __init__(self, features: int, hidden: int, dim: int) -> None:
        last = nn.BatchNorm1d(dim)
        last.bias.requires_grad_(False)
        super().__init__(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2),
                         nn.Linear(hidden, dim), last)


class Descriptor(nn.Module):
    """A network that describes images.

    Attributes:
        settings: its settings. dim: of the embedding. feature_dim: of the feature.
        origin: provenance of the backbone's initial weights.
    """

    def __init__(self, settings: DescriptorSettings, *, initialise: bool = True) -> None:
        """Build the network; `initialise` loads the backbone's weights, False = a checkpoint replaces them anyway."""
        super().__init__()
        self.settings = settings
        self.backbone = PooledBackbone(settings.backbone, settings.weights if initialise else "random:0",
                                       same_padding=settings.same_padding, normalize=settings.normalize,
                                       last_stride=settings.last_stride, pool=settings.pool)
        self.origin = self.backbone.origin
        self.feature_dim = settings.feature_dim or self.backbone.dim
        self.fc = nn.Linear(self.backbone.dim, self.feature_dim) if settings.feature_dim else nn.Identity()
        self.head = nn.Linear(self.feature_dim, settings.dim) if settings.dim else None
        self.projector = (Projector(self.feature_dim, settings.projector_hidden, settings.projector_dim)
                          if settings.projector_dim else None)
        self.dim = settings.dim or settings.projector_dim or self.feature_dim

    def forward(self, pixels: Tensor) -> Described:
        """Return the `Described` of (B, 3, H, W) pixels in 0..255, uint8 or floating."""
        features = self.fc(self.backbone(pixels))
        projected = features if self.projector is None else self.projector(features)
        embeddings = projected if self.head is None else self.head(features)
        content = {"projector": projected, "feature": features, "embedding": embeddings}[self.settings.norm_of]
        return Described(features, embeddings, content)

    def train(self, mode: bool = True) -> Descriptor:
        super().train(mode)
        if mode and self.settings.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @torch.no_grad()
    def center(self, pixels: Tensor) -> None:
        """Set the biases so that feature and embedding have mean 0 over these images.

        Pooled maps are positive, so all images start in nearly the same direction. A loss that pushes descriptors away
        from a queue of earlier ones then moves all images together, and a short run never gets to the differences
        between them. A projector does not need this, because it ends in batch norm.

        Args:
            pixels: as for `forward`, a few hundred views.
        """
        was_training = self.training
        pooled = self.eval().backbone(pixels)
        if isinstance(self.fc, nn.Linear):
            self.fc.bias.copy_(-F.linear(pooled, self.fc.weight).mean(dim=0))
        if self.head is not None:  # not from the head's output: the rounding of its bias may exceed a small mean
            self.head.bias.copy_(-F.linear(self.fc(pooled), self.head.weight).mean(dim=0))
        self.train(was_training)

    def describe(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return vectors (B, dim) and content norms (B,), both float32, of pixels as for `forward`."""
        described = self(pixels)
        return described.embeddings.float(), torch.linalg.vector_norm(described.content.float(), dim=1)


class Network(Protocol):
    """What a `Describer` applies: a `Descriptor`, or a frozen network of `ascl.image_copy.descriptors.teachers`."""

    def describe(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return vectors (B, d) and content norms (B,), or None without norms, of (B, 3, H, W) pixels in 0..255."""

    def to(self, device: torch.device) -> Any: ...

    def eval(self) -> Any: ...


class Describer:
    """A trained network, applied to images: from pixels to unit vectors and norms.

    It is also a `Backend` of `ascl.features.writer`.

    Attributes:
        model: name and checksum of the network, to which an index or a descriptor file is bound.
        dim: of the vectors.
        orders_norms: whether the network was trained to give what shows more the larger norm; the norms of other
            networks do not say who copied whom.
        settings: everything that determines the vectors, as JSON values.
        prepare: picklable function of the workers from an upright RGB image to (S, S, 3) uint8.
    """

    names: dict[str, list[str]] = {}

    def __init__(self, network: Network, settings: dict[str, Any], *, model: str, input_size: int, resize: Resize,
                 device: str = "cpu", precision: Precision = "float32", orders_norms: bool = False) -> None:
        self.device = torch.device(device)
        self.network, self.precision, self.model = network, precision, model
        network.to(self.device)
        network.eval()
        self.prepare = SquarePixels(input_size, resize)
        self.settings = {**settings, "model": model, "input_size": input_size, "resize": resize, "precision": precision,
                         "transparency": TRANSPARENCY}
        vectors, norms = self([self.prepare(Image.new("RGB", (input_size, input_size)))])
        if orders_norms and norms is None:
            raise DataError(f"{model} gives only vectors of length 1: its norms cannot order anything")
        self.dim, self.orders_norms = vectors.shape[1], orders_norms

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """Return unit vectors (B, dim) float32 and content norms (B,) float32 or None, of B arrays from `prepare`."""
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2)
            with autocast(self.device, self.precision):
                vectors, norms = self.network.describe(batch)
            unit = F.normalize(vectors.float(), dim=1).cpu().numpy()
            return unit, None if norms is None else norms.float().cpu().numpy()

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `globals` (B, dim), and `norms` (B,) if the network has them, as every `Backend` does."""
        vectors, norms = self(pixels)
        return {"globals": vectors} if norms is None else {"globals": vectors, "norms": norms}


class SavedDescriptor(NamedTuple):
    """A descriptor, in evaluation mode on the CPU, its checkpoint, and whether the norm-ratio loss trained it."""

    descriptor: Descriptor
    path: Path
    orders_norms: bool


def read_descriptor(run: str | Path) -> SavedDescriptor:
    """Return the descriptor of a copy-detection training run, or of one of its checkpoints.

    Raises DataError if there is no checkpoint, it is damaged, or it holds no descriptor.
    """
    path = checkpoint.find(run)
    state = checkpoint.load(path)
    values = state.get("extra", {}).get("descriptor")
    if values is None:
        raise DataError(f"{path} holds no descriptor; give a run of copy-detection training")
    known = {entry.name for entry in fields(DescriptorSettings)}
    if set(values) - known:
        raise DataError(f"{path} was written by another version: it sets {', '.join(sorted(set(values) - known))}; use "
                        "the version that wrote it")
    descriptor = Descriptor(DescriptorSettings(**values), initialise=False)
    weights = {name.removeprefix(STUDENT): value for name, value in state["model"].items() if name.startswith(STUDENT)}
    try:
        descriptor.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit its own settings: {error}") from error
    trained = state["extra"].get("settings", {})
    orders_norms = trained.get("objective") == "asl" and trained["asl"]["norm_ratio_weight"] > 0
    return SavedDescriptor(descriptor.eval(), path, orders_norms)


def load_descriptor(run: str | Path, *, input_size: int | None = None, resize: Resize | None = None,
                    device: str = "cpu", precision: Precision = "float32") -> Describer:
    """Return the descriptor of a copy-detection run, ready to describe images.

    Args:
        run: folder of a run of `ascl copy train`, or a checkpoint file. A folder gives its best.pt, or else its last.pt
            with a warning.
        input_size: side in pixels of the square that the network sees; None = as in the run.
        resize: "squash" the whole image to that square, or "crop" its center; None = as in the run.
        device: a torch device.
        precision: of the network (autocast); vectors and norms are float32.

    Returns:
        A `Describer`. `prepare` turns an upright RGB image into pixels; calling it with a list of those returns
        L2-normalized vectors (B, dim) and content norms (B,), float32 numpy arrays. If `orders_norms` is true, the
        image with the larger norm shows more.

    Raises:
        DataError: there is no checkpoint, it is damaged, or it holds no descriptor.

    Example:
        >>> from ascl.images.read import load_image
        >>> describe = load_descriptor("runs/asl")                                                  # doctest: +SKIP
        >>> pixels = [describe.prepare(load_image(name).image) for name in ("a.jpg", "b.jpg")]      # doctest: +SKIP
        >>> vectors, norms = describe(pixels)                                                       # doctest: +SKIP
        >>> cosine = vectors[0] @ vectors[1]                                                        # doctest: +SKIP
    """
    saved = read_descriptor(run)
    settings, digest = saved.descriptor.settings, sha256_of(saved.path)
    return Describer(saved.descriptor, {"descriptor": asdict(settings), "sha256": digest},
                     model=f"{settings.backbone}-{saved.descriptor.dim}d sha256:{digest}",
                     input_size=input_size or settings.input_size, resize=resize or settings.resize, device=device,
                     precision=precision, orders_norms=saved.orders_norms)
