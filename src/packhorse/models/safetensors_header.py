"""Read the header of a safetensors file: its tensors, and whether the file is complete.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets}}, data.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.models.recognize import COPY_COMPLETELY, require_content
from packhorse.storage.json_files import decode, parse_json, shown

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as the header describes it; `data_offsets` are its begin and end (bytes)."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name.

    Raises:
        ModelError: The file is something else, is truncated, or its header contradicts itself: an
            unknown number format, negative sizes, offsets that do not fit the shape, that overlap,
            leave gaps or lie beyond the file.
    """
    size = path.stat().st_size
    require_content(path)
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelError(f"{path} is truncated or no safetensors file", COPY_COMPLETELY)
        data = file.read(header_bytes)
    try:
        tensors = _decode_tensors(parse_json(data, allow_nan=False))
        end = _require_tiling(tensors)
    except ValueError as error:
        raise ModelError(
            f"{path} is no safetensors file: its header {error}", COPY_COMPLETELY
        ) from error
    if 8 + header_bytes + end != size:
        raise ModelError(
            f"{path} is truncated: {size:,} bytes of {8 + header_bytes + end:,}", COPY_COMPLETELY
        )
    return tensors


def data_start(path: Path) -> int:
    """Return where the data of a safetensors file begins (bytes)."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def bytes_by_dtype(tensors: Mapping[str, TensorEntry]) -> Counter[str]:
    """Return bytes of tensor data by number format ("float32", "bfloat16", ...)."""
    found: Counter[str] = Counter()
    for tensor in tensors.values():
        found[_NAMES.get(tensor.dtype, tensor.dtype.lower())] += tensor.size_bytes
    return found


def _decode_tensors(header: Any) -> dict[str, TensorEntry]:
    if not isinstance(header, dict):
        raise ValueError(f"must hold an object, got {shown(header)}")
    metadata = header.pop("__metadata__", {})
    try:
        decode(dict[str, str], metadata, "__metadata__")
        tensors = {
            name: decode(TensorEntry, entry, f"tensor {shown(name)}")
            for name, entry in header.items()
        }
    except ValueError as error:
        raise ValueError(f"is damaged: {error}") from error
    for name, tensor in tensors.items():
        _require_consistent(shown(name), tensor)
    return tensors


def _require_consistent(name: str, tensor: TensorEntry) -> None:
    bits = _BITS.get(tensor.dtype)
    if bits is None:
        raise ValueError(f"gives {name} the unknown number format {shown(tensor.dtype)}")
    if min(tensor.shape, default=0) < 0:
        raise ValueError(f"gives {name} the shape {shown(list(tensor.shape))}")
    if len(tensor.data_offsets) != 2 or min(tensor.data_offsets) < 0:
        raise ValueError(f"gives {name} the offsets {shown(list(tensor.data_offsets))}")
    if 8 * tensor.size_bytes != math.prod(tensor.shape) * bits:
        raise ValueError(
            f"gives {name} {tensor.size_bytes:,} bytes, which do not fit {tensor.dtype} of shape "
            f"{shown(list(tensor.shape))}"
        )


def _require_tiling(tensors: Mapping[str, TensorEntry]) -> int:
    """Return the end of the data; tensors must follow each other without gaps and overlaps."""
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_offsets):
        begin, stop = tensor.data_offsets
        if begin != end:
            raise ValueError(
                f"has {'an overlap' if begin < end else 'a gap'} before {shown(name)}: it begins "
                f"at {begin:,}, the one before ends at {end:,}"
            )
        end = stop
    return end
