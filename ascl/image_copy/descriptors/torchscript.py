"""Read a TorchScript file without running it: its tensors by name, and its code as text.

`torch.jit.load` compiles the file's code and may run parts of it, and calling the result runs all of it, which can read
and write files. Nothing here does either.
"""

from __future__ import annotations

import io
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ascl.core.reading import check_unpacked, reading

_STORAGES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
             "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
             "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
             "BoolStorage": torch.bool}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


class ScriptFile(NamedTuple):
    """The content of a TorchScript file: tensors by dotted name, and the text of its code."""

    tensors: dict[str, Tensor]
    code: str


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which is a zip that contains code."""
    if not zipfile.is_zipfile(path):
        return False
    with reading(path, "an archive"), zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> ScriptFile:
    """Return the parameters, buffers and code of a TorchScript file, without running any of it.

    Raises:
        DataError: the file is damaged or of another kind, unpacks to more than `limits.ARRAY_BYTES`, or its data name
            classes other than TorchScript's own.
    """
    with reading(path, "a TorchScript file"), zipfile.ZipFile(path) as archive:
        check_unpacked(path)
        names = archive.namelist()
        data = next(name for name in names if name.endswith("/data.pkl"))
        root = data.removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder").decode() != sys.byteorder:
            raise ValueError("its numbers have another byte order than this machine's")
        module = _ModuleUnpickler(archive, root).load()
        code = "\n".join(archive.read(name).decode("utf-8") for name in sorted(names)
                         if name.startswith(f"{root}code/") and name.endswith(".py"))
        return ScriptFile(dict(_named(module, (), set())), code)


class _Module:
    """Stands for any class of the file's code."""

    values: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.values = dict(state)


def _named(module: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, _Module):
        raise ValueError(f"its data hold a {type(module).__name__} instead of a module")
    if id(module) in seen or len(path) > 100:       # a small file could name its modules in 2^100 ways
        raise ValueError("one of its modules occurs twice, or they are nested too deep")
    seen.add(id(module))
    for name, value in module.values.items():
        if isinstance(value, Tensor):
            yield ".".join((*path, name)), value
        elif isinstance(value, _Module):
            yield from _named(value, (*path, name), seen)


class _ModuleUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """An unpickler for TorchScript's data only.

    It is Python's plain one, because a damaged file can make the compiled one ask for 64 GB.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")), encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = _admitted(module, name)
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return found

    def persistent_load(self, identity: Sequence[Any]) -> Tensor:
        """Return a storage as a vector."""
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"it asks for a {kind}")
        if key not in self._storages:
            content = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = torch.frombuffer(bytearray(content), dtype=dtype) if content else \
                torch.empty(0, dtype=dtype)
        if len(self._storages[key]) < count:
            raise ValueError(f"its tensor {key} is cut short")
        return self._storages[key]


def _admitted(module: str, name: str) -> Callable[..., Any] | torch.dtype | type | None:
    """Return what stands for a name in the data of a TorchScript file; None = nothing may."""
    if module == "__torch__" or module.startswith("__torch__."):
        return _Module
    if module == "torch" and name in _STORAGES:
        return _STORAGES[name]
    if module == "torch.jit._pickle" and name in _LISTS:
        return _itself          # a copy for each time that a small file asks could fill the memory
    others: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild, ("collections", "OrderedDict"): _no_items,
        ("torch.jit._pickle", "restore_type_tag"): _itself,
    }
    return others.get((module, name))


def _rebuild(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _itself(value: Any, *_: Any) -> Any:
    return value


def _no_items(*_: Any) -> dict[str, Any]:
    return {}                   # hooks of tensors, which nothing reads
