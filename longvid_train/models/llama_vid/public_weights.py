"""Reading weight files that other projects wrote, one tensor at a time and never running code from them.

Pickles (``.bin``, ``.pth``, ``.pt``) are loaded with ``weights_only`` and memory-mapped where their format allows;
safetensors are read by the tensor. A source is one file or a folder of shards with an index.
"""

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from longvid_train.errors import UserError

PICKLE_SUFFIXES = (".bin", ".pth", ".pt")
SAFETENSORS_SUFFIX = ".safetensors"
STAGE1_FILE = "mm_projector.bin"
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin", STAGE1_FILE)
_NESTED = "model"
_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: where it is and what it looks like, not its values."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


class _OpenFile(Protocol):
    def names(self) -> list[str]: ...

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]: ...

    def tensor(self, name: str) -> torch.Tensor: ...


class WeightReader:
    """Reads the tensors of weight files and keeps one file open at a time."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: _OpenFile | None = None

    def inventory(self, source: Path) -> dict[str, StoredTensor]:
        """Describe every tensor of a file, or of a folder's weight files.

        Raises:
            UserError: no such source, a shard is missing, a file that cannot be read or holds more than tensors.
        """
        found: dict[str, StoredTensor] = {}
        for path in weight_files(source):
            opened = self._open(path)
            for name in opened.names():
                if name in found:
                    raise UserError(
                        f"{path}: '{name}' is also in {found[name].file}; a weight may stand in one file only"
                    )
                found[name] = StoredTensor(path, name, *opened.describe(name))
        return found

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor's values, on the CPU in the dtype they are stored in."""
        return self._open(stored.file).tensor(stored.name)

    def _open(self, path: Path) -> _OpenFile:
        if self._file is None or self._path != path:
            self._path, self._file = None, None  # the old file goes before the next one comes
            self._file = _Safetensors(path) if path.suffix == SAFETENSORS_SUFFIX else _Pickle(path)
            self._path = path
        return self._file


def weight_files(source: Path) -> list[Path]:
    """The weight files of ``source``: itself, the shards that its index lists, or its one whole file.

    Raises:
        UserError: there is none, or a listed shard is missing.
    """
    if source.is_file():
        if source.suffix not in (*PICKLE_SUFFIXES, SAFETENSORS_SUFFIX):
            raise UserError(f"{source} is not a weight file; name a {', '.join(PICKLE_SUFFIXES)} or .safetensors file")
        return [source]
    if not source.is_dir():
        raise UserError(f"{source} does not exist; name a weight file or the folder of a checkpoint")
    for name in _INDEXES:
        if (source / name).is_file():
            return _listed_shards(source / name)
    for name in _WHOLE_FILES:
        if (source / name).is_file():
            return [source / name]
    raise UserError(f"{source} holds no weights; a checkpoint has one of {', '.join((*_INDEXES, *_WHOLE_FILES))}")


def _listed_shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is not an index of shards ({error}); download it again") from error
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise UserError(f"{index.parent} lacks the shards {', '.join(absent)} that {index.name} lists; download them")
    return [index.parent / name for name in names]


class _Safetensors:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is not a whole safetensors file ({error}); download it again") from error

    def names(self) -> list[str]:
        return list(self._handle.keys())

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        view = self._handle.get_slice(name)
        dtype = _SAFETENSORS_DTYPES.get(view.get_dtype())
        if dtype is None:
            raise UserError(f"{self._path}: '{name}' is stored as {view.get_dtype()}; convert unquantised weights")
        return tuple(view.get_shape()), dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._handle.get_tensor(name)


class _Pickle:
    """A ``state_dict``, bare or (as LAVIS writes it) under the key ``model``."""

    def __init__(self, path: Path) -> None:
        try:
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{path} is not a plain pickle of tensors and was not loaded, because a pickle can run code; "
                "download it from its publisher again, or save its state_dict alone"
            ) from error
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} cannot be read ({first}); download it again") from error
        if isinstance(value, Mapping) and isinstance(value.get(_NESTED), Mapping):
            value = value[_NESTED]
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"{path} holds no weights; a weight file is a dictionary of tensors by name")
        odd = [str(name) for name, tensor in value.items() if not isinstance(tensor, torch.Tensor)]
        if odd:
            raise UserError(f"{path}: {', '.join(odd[:5])} is not a tensor; a weight file is a dictionary of tensors")
        self._tensors: Mapping[str, torch.Tensor] = value

    def names(self) -> list[str]:
        return list(self._tensors)

    def describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        tensor = self._tensors[name]
        return tuple(tensor.shape), tensor.dtype

    def tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]
