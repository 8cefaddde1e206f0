"""Read and write the tensors of a safetensors file one at a time.

`SafetensorsReader` reads parts of tensors into memory of their own. `map_tensors` maps a whole
file instead, which reads nothing until it is used. `SafetensorsWriter` writes tensors as they come:
space for the header is reserved, and every tensor starts at a multiple of ALIGNMENT bytes.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from packhorse.errors import ModelError
from packhorse.models.safetensors_header import TensorEntry, data_start, read_header
from packhorse.storage.atomic_files import atomic_file

if TYPE_CHECKING:
    from torch import Tensor

ALIGNMENT = 64
_READ_BYTES = 1 << 30
_HEADER_BYTES_PER_TENSOR = 192
_NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I8": np.int8}
_NAMES = {np.dtype(kind): name for name, kind in _NUMPY_TYPES.items()}
_TORCH_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class SafetensorsReader:
    """Tensors of a file, read on demand. None of the file is mapped.

    Raises:
        ModelError: The file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.entries = read_header(path)
        self._start = data_start(path)

    def read(self, name: str, rows: slice) -> Tensor:
        """Return rows of a tensor in float32.

        Raises:
            ModelError: The tensor has no floating-point format, or the file has become shorter.
        """
        import torch

        entry = self.entries[name]
        if entry.dtype not in _TORCH_TYPES:
            raise ModelError(
                f"the weights {name} in {self._path} are stored as {entry.dtype}",
                "give the model in float32, bfloat16 or float16",
            )
        kind = getattr(torch, _TORCH_TYPES[entry.dtype])
        first, stop, step = rows.indices(entry.shape[0] if entry.shape else 1)
        assert step == 1
        shape = (max(0, stop - first), *entry.shape[1:]) if entry.shape else ()
        found = torch.empty(shape, dtype=kind)
        row_bytes = found.nbytes // max(1, stop - first)
        if found.numel():
            data = found.view(-1).view(torch.uint8).numpy().data
            self._fill(data, self._start + entry.data_offsets[0] + first * row_bytes)
        return found.float()

    def _fill(self, data: memoryview, offset: int) -> None:
        with self._path.open("rb", buffering=0) as file:
            file.seek(offset)
            while data:
                count = file.readinto(data[:_READ_BYTES])
                if not count:
                    raise ModelError(f"{self._path} is truncated", "copy or fetch the model again")
                data = data[count:]


def map_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Map the tensors of a file into memory.

    Pages are read when they are used and shared with other processes. The arrays count as writable,
    but a write would change memory only (a private map).

    Raises:
        ModelError: The file is damaged, or holds numbers of another kind.
    """
    entries, start = read_header(path), data_start(path)
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    unknown = {entry.dtype for entry in entries.values()} - {*_NUMPY_TYPES, "U8"}
    if unknown:
        raise ModelError(f"{path} holds tensors of type {min(unknown)}", "prepare the model again")
    return {
        name: np.frombuffer(
            mapped, _NUMPY_TYPES[entry.dtype], _count(entry), start + entry.data_offsets[0]
        ).reshape(entry.shape)
        for name, entry in entries.items()
        if entry.dtype != "U8"
    }


def _count(entry: TensorEntry) -> int:
    return entry.size_bytes // np.dtype(_NUMPY_TYPES[entry.dtype]).itemsize


class SafetensorsWriter:
    """Writes the tensors of one file in the order in which they come."""

    def __init__(self, file: IO[bytes], tensors: int) -> None:
        self._file = file
        self._header: dict[str, dict[str, Any]] = {}
        self._reserved = -(-(tensors * _HEADER_BYTES_PER_TENSOR) // ALIGNMENT) * ALIGNMENT
        self._end = 0
        file.seek(self._reserved)

    def write(self, name: str, tensor: NDArray[Any]) -> None:
        """Append a tensor of a type in `_NUMPY_TYPES`."""
        self.write_parts(name, tensor.shape, [tensor])

    def write_parts(self, name: str, shape: tuple[int, ...], parts: Iterable[NDArray[Any]]) -> None:
        """Append a tensor that comes in parts of its first dimension."""
        dtype = ""
        begin = self._end
        for part in parts:
            dtype = _NAMES[part.dtype]
            self._write(part)
        self._describe(name, dtype, shape, begin)
        if excess := self._end % ALIGNMENT:
            begin = self._end
            self._write(np.zeros(ALIGNMENT - excess, np.int8))
            self._describe(f"padding.{len(self._header)}", "U8", (self._end - begin,), begin)

    def _write(self, part: NDArray[Any]) -> None:
        self._file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self._end += part.nbytes

    def _describe(self, name: str, dtype: str, shape: tuple[int, ...], begin: int) -> None:
        offsets = [begin, self._end]
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}

    def finish(self) -> None:
        """Write the header, padded with spaces, into the space reserved for it."""
        text = json.dumps(self._header, separators=(",", ":")).encode()
        size = self._reserved - 8
        assert len(text) <= size, "more tensors than announced"
        self._file.seek(0)
        self._file.write(size.to_bytes(8, "little") + text.ljust(size))


@contextmanager
def open_writer(path: Path, tensors: int) -> Iterator[SafetensorsWriter]:
    """Open a writer for at most `tensors` tensors; the file appears once it is complete."""
    with atomic_file(path) as file:
        writer = SafetensorsWriter(file, 2 * tensors + 8)  # each may be followed by padding
        yield writer
        writer.finish()
