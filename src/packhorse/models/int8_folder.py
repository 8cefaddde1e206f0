"""Write the folder of int8 weights that the packed engine reads.

It is a Hugging Face folder whose weights no other library takes for ordinary ones:

    config.json         the model's own, and
                        "quantization_config": {"quant_method": "packhorse", "version": 1}
    model.safetensors   each projection as NAME.weight, int8, and NAME.weight_scale, float32, shaped
                        so that their product is the weight; the embedding in float16, the rest in
                        float32

Weights of the MLP's down projection expect a rotated input (`quantization.online_hadamard`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.errors import ModelError
from packhorse.models.quantized_formats import OWN_METHOD
from packhorse.storage.atomic_files import write_json

if TYPE_CHECKING:
    from torch import Tensor

    from packhorse.quantization.foldable_model import FoldableModel, Projection

_VERSION = 1


def is_int8_folder(config: Mapping[str, Any]) -> bool:
    """Return whether a config.json belongs to such a folder; ModelError for an unknown version."""
    found = config.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != OWN_METHOD:
        return False
    if found.get("version") != _VERSION:
        raise ModelError(
            f"int8 weights of version {found.get('version')!r} are not known, only {_VERSION}",
            "prepare the model again with this version of packhorse",
        )
    return True


def write_int8_folder(foldable: FoldableModel, folder: Path) -> None:
    """Write a model whose weights were rounded by `quantization.gptq`.

    The embedding is rounded to float16, nothing else is changed.
    """
    from safetensors.torch import save_file

    projections = {
        id(projection.module): projection
        for group in foldable.groups
        for projection in group.projections
    }
    tensors: dict[str, Tensor] = {}
    for path, module in foldable.model.named_modules():
        for name, parameter in module.named_parameters(prefix=path, recurse=False):
            projection = projections.get(id(module))
            if projection is not None and name.endswith("weight"):
                tensors |= _integers(name, projection, parameter)
            elif module is foldable.embedding:
                tensors[name] = parameter.half()
            else:
                tensors[name] = parameter.detach().contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = foldable.model.config.to_dict()
    config.pop("_name_or_path", None)
    config["quantization_config"] = {"quant_method": OWN_METHOD, "version": _VERSION}
    write_json(folder / "config.json", config)


def _integers(name: str, projection: Projection, parameter: Tensor) -> dict[str, Tensor]:
    import torch

    from packhorse.quantization.int8 import row_scale

    scale = row_scale(projection.weight)
    values, steps = torch.round(projection.weight * scale).to(torch.int8), 1 / scale
    if values.shape != parameter.shape or projection.weight.stride() != parameter.stride():
        values, steps = values.T, steps.T
    return {name: values.contiguous(), f"{name}_scale": steps.contiguous()}
