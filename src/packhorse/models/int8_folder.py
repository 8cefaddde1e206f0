"""The folder of int8 weights that the packed engine reads.

It is a Hugging Face folder whose weights no other library takes for ordinary ones:

    config.json         the model's own, and "quantization_config":
                        {"quant_method": "packhorse", "version": 2, "qkv_digits": 1 or 2}
    model.safetensors   what the engine holds in memory, see `engines.packed.int8_writer`

The file is mapped into memory, so it loads in no time, and processes share its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelError
from packhorse.models.quantized_formats import OWN_METHOD
from packhorse.storage.atomic_files import write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "model.safetensors"
INT8_VERSION = 2
_AGAIN = (
    "give the model it was made from: --engine packed --quantization int8 prepares it again "
    "(packhorse prepare shows the folder)"
)


def is_int8_folder(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json belongs to such a folder; ModelError for an unknown version."""
    found = config.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != OWN_METHOD:
        return False
    if found.get("version") != INT8_VERSION:
        raise ModelError(
            f"int8 weights of version {found.get('version')!r} are not known, only {INT8_VERSION}",
            _AGAIN,
        )
    if found.get("qkv_digits") not in (1, 2):
        raise ModelError(
            f"int8 weights with {found.get('qkv_digits')!r} digits are not known, only 1 or 2",
            _AGAIN,
        )
    return True


def write_int8_config(folder: Path, config: Mapping[str, Any], qkv_digits: int) -> None:
    """Write the config.json of such a folder.

    Args:
        folder: The folder.
        config: config.json of the model.
        qkv_digits: Number of int8 digits per weight of queries, keys and values.
    """
    kept = {name: value for name, value in config.items() if name != "_name_or_path"}
    settings = {"quant_method": OWN_METHOD, "version": INT8_VERSION, "qkv_digits": qkv_digits}
    write_json(folder / "config.json", {**kept, "quantization_config": settings})


class Int8Tensors:
    """The mapped tensors of such a folder."""

    def __init__(self, path: Path) -> None:
        from packhorse.models.safetensors_data import map_tensors

        self._path, self._tensors = path, map_tensors(path)

    def get(self, name: str, kind: Any, *shape: int) -> NDArray[Any]:
        """Return a tensor of a numpy type and shape; ModelError if there is no such tensor."""
        found = self._tensors.get(name)
        if found is None or found.shape != shape or found.dtype != kind:
            held = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ModelError(
                f"{self._path} holds {held} as {name}, expected {list(shape)}",
                "the files are damaged: prepare the model again",
            )
        return found


def map_int8_tensors(folder: Path) -> Int8Tensors:
    """Map the weights of such a folder into memory."""
    return Int8Tensors(folder / WEIGHTS)
