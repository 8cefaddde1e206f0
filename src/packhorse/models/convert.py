"""Hugging Face folders to CTranslate2 folders that need nothing beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, first_line
from packhorse.models.checkpoint import (
    Checkpoint,
    require_all_weights,
    require_own_class,
    require_unquantized,
)
from packhorse.models.ctranslate2_folder import TOKENIZER, read_variables
from packhorse.models.loading import load_config, require_fitting_size
from packhorse.models.quiet import quiet_transformers
from packhorse.models.storage import require_free_bytes
from packhorse.tokenizer_files import tokenizer_errors

CONVERSION = "ctranslate2-2"
"""Changes whenever the same checkpoint would give another folder."""

_BYTES_PER_WEIGHT = {"float32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
_USE_TRANSFORMERS = "use --engine transformers"


def converter_version() -> str:
    """What besides the checkpoint and the quantization decides a conversion."""
    from importlib.metadata import version

    return f"{CONVERSION} {version('ctranslate2')}"


def convert_checkpoint(
    checkpoint: Checkpoint, quantization: str, folder: Path, model: Any = None
) -> None:
    """Write `checkpoint` as a CTranslate2 folder with weights in `quantization` into `folder`.

    model: the checkpoint loaded and changed, to be converted in its place; it cannot be used
    afterwards.

    The tokenizer goes into `tokenizer/` together with the Hugging Face config: a config.json of
    that model type beside tokenizer.json is what makes AutoTokenizer choose the same class as
    for the checkpoint, and CTranslate2 has a config.json of its own.

    Raises ModelError for a model family that CTranslate2 has no converter for.
    """
    require_own_class(checkpoint)
    require_unquantized(checkpoint)
    _require_space(checkpoint, quantization, folder)
    _convert(checkpoint, quantization, folder, model)
    read_variables(folder)
    checkpoint.copy_tokenizer(folder / TOKENIZER, "config.json")


def _convert(checkpoint: Checkpoint, quantization: str, folder: Path, changed: Any) -> None:
    from ctranslate2.converters import TransformersConverter

    from packhorse.models.ct2_spec import complete, require_faithful, rotations_of

    class WholeModelConverter(TransformersConverter):  # type: ignore[misc]
        """Converts no random numbers in place of missing weights, never offers to run code, and
        loses no setting of attention without a word."""

        def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
            model = changed
            if model is None:
                require_fitting_size(checkpoint.folder)
                options["config"] = load_config(checkpoint.folder)
                model, loading = model_class.from_pretrained(
                    path, output_loading_info=True, **options
                )
                require_all_weights(loading)
            self.config, self.rotations = model.config, rotations_of(model)
            return model

        def _load(self) -> Any:
            spec = super()._load()
            complete(spec, self.config)
            require_faithful(spec, self.config, self.rotations)
            return spec

        def load_tokenizer(self, tokenizer_class: Any, path: str, **options: Any) -> Any:
            with tokenizer_errors(checkpoint.folder):
                return tokenizer_class.from_pretrained(path, trust_remote_code=False, **options)

    try:
        with quiet_transformers():
            converter = WholeModelConverter(str(checkpoint.folder))
            converter.convert(str(folder), quantization=quantization, force=True)
    except ModelError:
        raise
    except Exception as error:  # converters raise many kinds for what they do not know
        family = checkpoint.config["model_type"]
        reason = first_line(error)
        if reason.startswith("No conversion is registered"):
            reason = "it has no converter for this family"
        raise ModelError(
            f"CTranslate2 cannot convert this {family} model: {reason}", _USE_TRANSFORMERS
        ) from error


def _require_space(checkpoint: Checkpoint, quantization: str, folder: Path) -> None:
    stored = sum((checkpoint.folder / name).stat().st_size for name in checkpoint.weights)
    weights = stored // _BYTES_PER_WEIGHT.get(checkpoint.quantization, 4)
    require_free_bytes(folder, weights * _BYTES_PER_WEIGHT.get(quantization, 1))
