"""Checkpoints quantized by other tools: their method, the package it needs, what is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError
from packhorse.storage.json_files import shown

OWN_METHOD = "packhorse"
_PACKAGES: Mapping[str, str] = {
    "awq": "gptqmodel", "gptq": "gptqmodel", "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes", "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes", "aqlm": "aqlm", "quanto": "optimum-quanto",
    "quark": "quark", "fouroversix": "fouroversix", "fp_quant": "fp_quant", "eetq": "kernels",
    "higgs": "flute-kernel", "hqq": "hqq", "fbgemm_fp8": "fbgemm-gpu", "torchao": "torchao",
    "vptq": "vptq", "spqr": "spqr_quant", "auto-round": "auto-round", "metal": "kernels",
    "sinq": "sinq", "nvfp4": "kernels",
    "bitnet": "", "fp8": "", "mxfp8": "", "mxfp4": "", "gemma": "",
}  # fmt: skip
"""Method known to transformers -> package that computes it, "" if none is needed."""
_MODULES = {"fbgemm-gpu": "fbgemm_gpu", "flute-kernel": "flute", "optimum-quanto": "optimum.quanto"}
_TENSOR_SUFFIXES: Mapping[str, str] = {
    ".qweight": "GPTQ or AWQ", ".absmax": "bitsandbytes", ".SCB": "bitsandbytes",
    ".weight_packed": "compressed-tensors", ".B_24": "Marlin",
}  # fmt: skip
_UNQUANTIZED = "give the unquantized model, or one that is quantized as GGUF"


def quantization_method(settings: Any) -> str:
    """Return the method by which a checkpoint is quantized, "" if it is not quantized.

    Args:
        settings: `quantization_config` of a config.json or of a transformers config, or None.
    """
    if settings is None:
        return ""
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method) or "quantized")


def needed_package(method: str) -> str:
    """Return the package that transformers needs to compute `method`, "" for none."""
    return _PACKAGES.get(method, "")


def runs_on_transformers(method: str) -> bool:
    """Return whether transformers can compute `method` with the packages installed here."""
    return method in _PACKAGES and _is_installed(_PACKAGES[method])


def require_known_format(
    folder: Path, config: Mapping[str, Any], tensors: Iterable[str], dtypes: set[str]
) -> None:
    """Check that an engine can compute the weights of a checkpoint in this environment.

    Args:
        folder: Folder of the checkpoint, for the message.
        config: The checkpoint's config.json.
        tensors: Names of the checkpoint's tensors.
        dtypes: Number formats in its safetensors headers.

    Raises:
        ModelError: The weights are quantized by a method that no engine computes, or whose package
            is not installed.
    """
    packed = config.get("quantization")
    if isinstance(packed, dict) and "bits" in packed and "U32" in dtypes:
        raise ModelError(
            f"{folder} holds weights that are quantized in MLX's format, which no engine reads",
            "give the model it was made from",
        )
    method = quantization_method(config.get("quantization_config"))
    if not method:
        _require_no_quantized_tensors(folder, tensors)
    elif method == OWN_METHOD:
        return
    elif method not in _PACKAGES:
        raise ModelError(
            f"{folder} is quantized in a form that no engine computes ({shown(method)})",
            _UNQUANTIZED,
        )
    elif not runs_on_transformers(method):
        package = needed_package(method)
        raise ModelError(
            f"{folder} is quantized ({method}), which only transformers computes, with the package "
            f"{package}, and that is not installed",
            f"{_UNQUANTIZED}; or pip install {package} and use --engine transformers",
        )


def _require_no_quantized_tensors(folder: Path, tensors: Iterable[str]) -> None:
    for name in tensors:
        for ending, tool in _TENSOR_SUFFIXES.items():
            if name.endswith(ending):
                raise ModelError(
                    f"{folder} holds quantized weights ({tool}), and its config.json does not say "
                    "how they are quantized",
                    _UNQUANTIZED,
                )


def _is_installed(package: str) -> bool:
    if not package:
        return True
    module = _MODULES.get(package, package.replace("-", "_"))
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
