"""Frozen networks: teachers of a student, and baselines that were not trained here.

A teacher is a published file of SSCD, another TorchScript file whose code the user trusts, a finished training run, a
torchvision or timm backbone with GeM and no head, or a file of existing descriptors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.checkpoint import read_tensors
from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.core.reading import DOWNLOAD_AGAIN, reading, require_file
from ascl.image_copy.descriptors import published
from ascl.image_copy.descriptors.descriptor import Describer, Resize, read_descriptor
from ascl.image_copy.descriptors.files import read_descriptors
from ascl.image_copy.descriptors.names import model_named, refuse_unknown
from ascl.image_copy.descriptors.sscd import is_sscd_code, sscd_network
from ascl.image_copy.descriptors.torchscript import is_torchscript, read_torchscript
from ascl.images.backbones import Normalize, Precision, normalize_pixels
from ascl.images.pooling import Pool, PooledBackbone
from ascl.images.weights import TIMM, is_at_hand, torchvision_names

PROBE = 224  # side in pixels of the image that shows a TorchScript file's dimension


class Teacher(nn.Module, ABC):
    """A frozen network; always in evaluation mode and never part of a checkpoint."""

    dim: int  # of its vectors
    model: str  # name and checksum, for checkpoints and files
    about: dict[str, Any]  # its provenance, as JSON values

    @abstractmethod
    def embed(self, pixels: Tensor, items: Sequence[str]) -> Tensor:
        """Return vectors (B, dim) float32 of B images, not L2-normalized, without gradients.

        Args:
            pixels: (B, 3, H, W) in 0..255, as the student sees them.
            items: ids of the B images, which select cached descriptors.
        """

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)


class NetworkTeacher(Teacher):
    """A network from pixels in 0..255 to vectors (B, dim).

    `image_size`: side in pixels to which images are scaled for it; None = as they come. `norms`: whether the norms of
    its vectors carry information, which they do not if the network normalizes them itself.
    """

    def __init__(self, network: nn.Module, *, dim: int, model: str, about: dict[str, Any],
                 image_size: int | None = None, norms: bool = True) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.dim, self.model, self.about, self.image_size, self.norms = dim, model, about, image_size, norms

    @torch.no_grad()
    def embed(self, pixels: Tensor, items: Sequence[str]) -> Tensor:
        if self.image_size is not None and pixels.shape[2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        return self.network(pixels).float()

    def describe(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return vectors and their norms, as the `Network` of a `Describer` does."""
        vectors = self.embed(pixels, ())
        return vectors, torch.linalg.vector_norm(vectors, dim=1) if self.norms else None


class CachedTeacher(Teacher):
    """Existing descriptors of the training images: this teacher sees the images unedited, not the student's views."""

    def __init__(self, path: Path, items: Sequence[str]) -> None:
        """Read the HDF5 file `path` for the images `items`; raise DataError if it lacks some (counted)."""
        super().__init__()
        cached = read_descriptors(path, "reference")
        row_of = {name: row for row, name in enumerate(cached.names)}
        missing = [name for name in items if name not in row_of]
        if missing:
            raise DataError(f"{path} lacks {len(missing)} of the {len(items)} training images, such as "
                            f"{', '.join(missing[:3])}: describe the same folder again")
        self._row_of = {name: place for place, name in enumerate(items)}
        rows = cached.vectors[[row_of[name] for name in items]]
        self.register_buffer("vectors", torch.from_numpy(rows), persistent=False)
        self.dim = cached.vectors.shape[1]
        self.model = f"{cached.model or path.name} (cached, of the unedited images)"
        self.about = {"kind": "cached", "file": path.name, "sha256": sha256_of(path)}

    @torch.no_grad()
    def embed(self, pixels: Tensor, items: Sequence[str]) -> Tensor:
        vectors = self.get_buffer("vectors")
        return vectors[torch.tensor([self._row_of[name] for name in items], device=vectors.device)]


class _Vectors(nn.Module):
    """A network with its pixel normalization, or one output of a descriptor: from pixels to (B, dim)."""

    def __init__(self, network: nn.Module, normalize: Normalize | None, output: Literal["embeddings", "features"]):
        super().__init__()
        self.network, self.normalize, self.output = network, normalize, output

    def forward(self, pixels: Tensor) -> Tensor:
        if self.normalize is None:
            return getattr(self.network(pixels), self.output)
        return self.network(normalize_pixels(pixels, self.normalize))


class _Unit(nn.Module):
    """SSCD's network with the normalization that ends it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.network(pixels).float(), dim=1)


def load_teacher(source: str, *, items: Sequence[str] = (), weights: str = "default", same_padding: bool = False,
                 normalize: Normalize = "imagenet", pool: Pool = "gem", image_size: int | None = None,
                 output: Literal["embeddings", "features"] = "embeddings", trust_code: bool = False) -> Teacher:
    """Return the teacher that `source` names.

    Args:
        source: a path or a name, see `names.model_named` (weights that are named are downloaded); or an HDF5 file of
            descriptors.
        items: ids of the training images, for cached descriptors.
        weights, same_padding, pool: of a backbone, see `PooledBackbone`.
        normalize: of a backbone or a TorchScript file (SSCD's take ImageNet's).
        image_size: side in pixels to which images are scaled for it; None = as the student sees them.
        output: of a run: its descriptor, or the feature before it.
        trust_code: of a TorchScript file, see `load_script`.

    Raises:
        DataError: `source` is none of these, or cannot be read.
    """
    path = Path(source)
    if path.suffix.lower() in (".h5", ".hdf5"):
        if not path.is_file():
            raise DataError(f"{path}: no such file of descriptors")
        return CachedTeacher(path, items)
    named = model_named(source)
    if named.kind == "phash":
        raise DataError("the perceptual hash is not a network and cannot teach: choose another model")
    if named.kind == "sscd":
        return load_published(named.source, image_size=image_size, download=True)
    if named.kind == "torchscript":
        return load_script(path, normalize=normalize, image_size=image_size, trust_code=trust_code)
    if named.kind == "checkpoint":
        saved = read_descriptor(path)
        descriptor, digest = saved.descriptor, sha256_of(saved.path)
        dim = descriptor.dim if output == "embeddings" else descriptor.feature_dim
        about = {"kind": "run", "descriptor": asdict(descriptor.settings), "output": output, "sha256": digest}
        return NetworkTeacher(_Vectors(descriptor, None, output), dim=dim, about=about, image_size=image_size,
                              model=f"{descriptor.settings.backbone}-{dim}d sha256:{digest}")
    return load_backbone(named.source, weights, same_padding=same_padding, normalize=normalize, pool=pool,
                         image_size=image_size)


def load_published(name: str, *, image_size: int | None, download: bool) -> NetworkTeacher:
    """Return a published network of SSCD's by its name, as `load_script` does of its file.

    Args:
        image_size: as for `load_script`.
        download: download the file if it is not on this machine.

    Raises:
        DataError: it is not there and may not be downloaded, cannot be downloaded, or has other bytes than it should.
    """
    path = published.bring(name, download=download)
    digest = published.verified(name, path)
    if not is_torchscript(path):
        raise DataError(f"{path} is no file of SSCD's, but perhaps an error page that came instead: remove it, and the "
                        f"next use of {name} downloads it again")
    network = sscd_network(read_torchscript(path).tensors, str(path))
    if network is None:
        raise DataError(f"{path}: its tensors do not have the names of SSCD's network; remove it, and the next use of "
                        f"{name} downloads it again")
    published.keep(path, digest)
    return _network_of(_Unit(network), path, digest, network.fc.out_features, normalize="imagenet",
                       image_size=image_size, unit=True)


def load_script(path: Path, *, normalize: Normalize, image_size: int | None,
                trust_code: bool = False) -> NetworkTeacher:
    """Return a published network from normalized pixels to vectors (B, dim).

    SSCD's files are read as weights of the network that is built here. Any other TorchScript file is code, which runs
    with all rights of the user, so that it is run only if the user trusts it.

    Args:
        path: TorchScript file, or SSCD's weights (`.torchvision.pt`, `.classy.pt`).
        normalize: with which the network was trained (SSCD's: ImageNet's).
        image_size: side in pixels to which images are scaled for it; None = as they come.
        trust_code: run the code of a file that is not SSCD's.

    Raises:
        DataError: the file is missing, damaged or of another kind, gives no vectors, or holds untrusted code.
    """
    require_file(path)
    if is_torchscript(path):
        script = read_torchscript(path)
        network = sscd_network(script.tensors, str(path))
        if network is not None and not is_sscd_code(script.code, network):
            network = None
        if network is None and not trust_code:
            raise DataError(f"{path} is TorchScript of another network than SSCD's: to use it is to run its code, "
                            "which can read and write your files. If you trust its source, say so with trust_code")
    else:
        tensors = read_tensors(path, "a TorchScript file or weights of SSCD", DOWNLOAD_AGAIN)
        if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
            raise DataError(f"{path}: expected a TorchScript file, or names and tensors of SSCD's network")
        network = sscd_network({str(name): value for name, value in tensors.items()}, str(path))
        if network is None:
            raise DataError(f"{path}: its tensors do not have the names of SSCD's network")
    run: nn.Module
    if network is not None:
        run, dim, unit = _Unit(network), network.fc.out_features, True
    else:
        run, dim, unit = _run_script(path, image_size or PROBE)
    return _network_of(run, path, sha256_of(path), dim, normalize=normalize, image_size=image_size, unit=unit)


def _network_of(run: nn.Module, path: Path, digest: str, dim: int, *, normalize: Normalize, image_size: int | None,
                unit: bool) -> NetworkTeacher:
    about = {"kind": "torchscript", "file": path.name, "sha256": digest, "normalize": normalize}
    return NetworkTeacher(_Vectors(run, normalize, "embeddings"), dim=dim, model=f"{path.name} sha256:{digest}",
                          about=about, image_size=image_size, norms=not unit)


def _run_script(path: Path, side: int) -> tuple[nn.Module, int, bool]:
    """Load and run a TorchScript file: return it, the dimension of its vectors, and whether their length is 1."""
    with reading(path, "a TorchScript network of images", "use another file"):      # its code can raise anything
        script = torch.jit.load(str(path), map_location="cpu").eval()
        with torch.no_grad():
            output = script(torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    if not isinstance(output, Tensor) or output.dim() != 2:
        raise DataError(f"{path}: gives {getattr(output, 'shape', type(output).__name__)} instead of vectors (B, d)")
    return script, output.shape[1], bool(((output.norm(dim=1) - 1).abs() < 1e-3).all())


def load_backbone(backbone: str, weights: str, *, same_padding: bool = False, normalize: Normalize = "imagenet",
                  pool: Pool = "gem", image_size: int | None = None, download: bool = True) -> NetworkTeacher:
    """Return a classifier's backbone with GeM and no head, without further training.

    Raises DataError if the name is unknown, as `names.refuse_unknown`, or if published weights are not at hand and
    `download` is false; otherwise as `PooledBackbone`.
    """
    if not backbone.startswith(TIMM):
        refuse_unknown(backbone, torchvision_names())
    if weights == "default" and not download and not is_at_hand(backbone):
        raise DataError(f"the published weights of {backbone} are not on this machine: name it as the model, and they "
                        "are downloaded")
    network = PooledBackbone(backbone, weights, same_padding=same_padding, normalize=normalize, pool=pool)
    about = {"kind": "backbone", "backbone": backbone, **network.origin, "same_padding": same_padding,
             "normalize": normalize, "pool": pool}
    model = f"{backbone}{'-same' * same_padding}-{normalize}-{pool} sha256:{network.origin['weights_sha256']}"
    return NetworkTeacher(network, dim=network.dim, model=model, about=about, image_size=image_size)


def teacher_describer(teacher: Teacher, *, input_size: int, resize: Resize, device: str = "cpu",
                      precision: Precision = "float32", orders_norms: bool = False) -> Describer:
    """Return a `Describer` that applies a frozen network to images.

    `orders_norms`: the network was trained elsewhere with a norm-ratio loss, which its file does not record. Raises
    DataError for cached descriptors, which cannot describe other images, and for ordered norms of a network without
    norms.
    """
    if not isinstance(teacher, NetworkTeacher):
        raise DataError(f"{teacher.model} cannot describe images: it is a file of descriptors; give a network")
    return Describer(teacher, teacher.about, model=teacher.model, input_size=input_size, resize=resize, device=device,
                     precision=precision, orders_norms=orders_norms)
