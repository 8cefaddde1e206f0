"""The header of a safetensors file: enough to tell a whole file from a truncated one.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets}}, data.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from packhorse.errors import ModelError

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100_000_000
_FETCH_AGAIN = "it was not copied or fetched completely: do that again"


def bytes_by_dtype(path: Path) -> Counter[str]:
    """Bytes of tensor data by number format ("float32", "bfloat16", ...).

    Raises ModelError when the file is truncated or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ModelError(f"{path} is a Git LFS pointer, not the weights", "git lfs pull")
        header_bytes = int.from_bytes(start, "little")
        if len(start) < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
            raise ModelError(f"{path} is truncated or no safetensors file", _FETCH_AGAIN)
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            tensors = [(tensor["dtype"], *tensor["data_offsets"]) for tensor in header.values()]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} is no safetensors file", _FETCH_AGAIN) from error
    end = max((stop for _, _, stop in tensors), default=0)
    if 8 + header_bytes + end != size:
        raise ModelError(
            f"{path} is truncated: {size:,} bytes of {8 + header_bytes + end:,}", _FETCH_AGAIN
        )
    found: Counter[str] = Counter()
    for dtype, begin, stop in tensors:
        found[_NAMES.get(dtype, dtype.lower())] += stop - begin
    return found
