"""Read the header of a GGUF file with limits, before any library reads the file.

The gguf package trusts counts and lengths of a file, and takes all memory or minutes if they lie.

Format, versions 2 and 3, little-endian: "GGUF", u32 version, u64 tensors, u64 metadata entries;
entries of text name, u32 type, value; tensors of text name, u32 dimensions, u64 each, u32 number
format, u64 offset; then data at the next multiple of general.alignment. A text is u64 length and
bytes. (ggml/docs/gguf.md of llama.cpp)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from packhorse.errors import ModelError
from packhorse.storage.json_files import shown

_AGAIN = "copy or fetch it again"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_TEXT, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
_MAX_NUMBER = 1 << 48
_MIN_ENTRY_BYTES, _MIN_TENSOR_BYTES = 13, 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor as the header describes it; `offset` is relative to the data (bytes)."""

    shape: tuple[int, ...]
    number_format: int
    offset: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Metadata and tensors of a GGUF file, by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


class _Reader:
    """Reader of values that must lie within the file; ValueError otherwise."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.left = file, size

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError(f"{count:,} bytes are announced and {self.left:,} are left")
        self.left -= count
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it ends in its header")
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def count(self, least_bytes: int) -> int:
        """Read the number of the entries that follow, each of at least `least_bytes` bytes."""
        found: int = self.number("<Q")
        if found * least_bytes > self.left:
            raise ValueError(f"{found:,} entries are announced and {self.left:,} bytes are left")
        return found

    def text(self) -> str:
        try:
            return self.take(self.count(1)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError("a text is not UTF-8") from error

    def value(self, kind: int, in_array: bool = False) -> Any:
        if kind == _TEXT:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise ValueError(f"there is no type of metadata {kind}")
        if in_array:
            raise ValueError("it has arrays in arrays")
        inner = self.number("<I")
        if inner in _SCALARS:
            form = _SCALARS[inner]
            count = self.count(struct.calcsize(form))
            return list(
                struct.unpack(f"<{count}{form[1]}", self.take(count * struct.calcsize(form)))
            )
        count = self.count(8)
        return [self.value(inner, in_array=True) for _ in range(count)]


def read_header(path: Path) -> GgufHeader:
    """Return metadata and tensors of a GGUF file.

    Raises:
        ModelError: The file is truncated or damaged: counts, lengths or offsets that lie beyond
            its end, unknown types, two entries of one name, an alignment that is no power of two.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        reader = _Reader(file, size)
        try:
            version = _read_version(reader)
            if version not in (2, 3):
                raise ModelError(
                    f"{path} is GGUF of version {version}, and packhorse reads 2 and 3",
                    "fetch a newer GGUF file of the model",
                )
            count = reader.count(_MIN_TENSOR_BYTES)
            fields = _read_fields(reader)
            tensors = _read_tensors(reader, count)
            _require_tensors_in_file(fields, tensors, size, size - reader.left)
        except (ValueError, struct.error) as error:
            raise ModelError(f"{path} is truncated or damaged: {error}", _AGAIN) from error
    return GgufHeader(fields, tensors)


def _read_version(reader: _Reader) -> int:
    reader.take(4)
    version: int = reader.number("<I")
    if version and not version & 0xFFFF:
        raise ValueError("it is big-endian")
    return version


def _read_fields(reader: _Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(reader.count(_MIN_ENTRY_BYTES)):
        name = reader.text()
        if name in found:
            raise ValueError(f"it has {shown(name)} twice")
        found[name] = reader.value(reader.number("<I"))
    return found


def _read_tensors(reader: _Reader, count: int) -> dict[str, GgufTensor]:
    found: dict[str, GgufTensor] = {}
    for _ in range(count):
        name = reader.text()
        if name in found:
            raise ValueError(f"it has the tensor {shown(name)} twice")
        dimensions = reader.number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {shown(name)} has {dimensions} dimensions")
        shape: Sequence[int] = [reader.number("<Q") for _ in range(dimensions)]
        if math.prod(shape) > _MAX_NUMBER or 0 in shape:
            raise ValueError(f"the tensor {shown(name)} has the shape {shown(list(shape))}")
        found[name] = GgufTensor(tuple(shape), reader.number("<I"), reader.number("<Q"))
    return found


def _require_tensors_in_file(
    fields: Mapping[str, Any], tensors: Mapping[str, GgufTensor], size: int, header: int
) -> None:
    from gguf.constants import GGML_QUANT_SIZES

    blocks = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    alignment = fields.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {shown(alignment)}, which is no power of two")
    start = -(-header // alignment) * alignment
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.number_format not in blocks:
            raise ValueError(
                f"the tensor {shown(name)} has the unknown number format {tensor.number_format}"
            )
        numbers, block_bytes = blocks[tensor.number_format]
        if tensor.offset < end or tensor.offset % alignment:
            raise ValueError(f"the tensor {shown(name)} lies at {tensor.offset:,}, on another one")
        end = tensor.offset + -(-tensor.elements // numbers) * block_bytes
        if start + end > size:
            raise ValueError(f"the tensor {shown(name)} ends at byte {start + end:,} of {size:,}")
