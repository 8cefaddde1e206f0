"""Convert Hugging Face folders to self-contained CTranslate2 folders."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.batching.memory import SHARE_OF_FREE_MEMORY, available_bytes
from packhorse.errors import ModelError, first_line
from packhorse.models.checkpoint import (
    BYTES_PER_WEIGHT,
    Checkpoint,
    require_all_weights,
    require_own_class,
    require_unquantized,
)
from packhorse.models.ctranslate2_folder import (
    TOKENIZER,
    layer_elements,
    read_variables,
    smallest_window,
    stored_quantization,
    vocabulary,
)
from packhorse.models.engine_support import instead_for_folder
from packhorse.models.loading import load_config, require_fitting_size
from packhorse.models.quiet import quiet_transformers
from packhorse.models.storage import require_free_bytes
from packhorse.tokenization.errors import tokenizer_errors

if TYPE_CHECKING:
    from packhorse.models.reference_logits import ReferenceLogits

CONVERSION = "ctranslate2-3"
"""Version of the conversion; changes if the same checkpoint would give another folder."""

_ROPE_TYPE = re.compile(r"RoPE scaling type '(\w+)' is not yet implemented")


def converter_version() -> str:
    """Return the versions that affect a conversion."""
    return f"{CONVERSION} {version('ctranslate2')}"


def convert_checkpoint(
    checkpoint: Checkpoint,
    quantization: str,
    folder: Path,
    model: Any = None,
    reference: ReferenceLogits | None = None,
) -> None:
    """Convert a checkpoint and write it as a CTranslate2 folder.

    The result is loaded once, and its logits are compared with those of the original, which are
    stored beside it (`reference_logits`).

    The tokenizer is written to `tokenizer/` together with the Hugging Face config: AutoTokenizer
    chooses its class by a config.json beside tokenizer.json, and CTranslate2 has its own
    config.json.

    Args:
        checkpoint: The checkpoint.
        quantization: Number format of the stored weights.
        folder: An empty folder.
        model: The checkpoint loaded and changed, to convert in its place; unusable afterwards.
        reference: Logits of the checkpoint before it was changed.

    Raises:
        ModelError: CTranslate2 has no converter for the model's family, or its converter loses part
            of the model.
    """
    require_own_class(checkpoint)
    require_unquantized(checkpoint)
    _require_space(checkpoint, quantization, folder)
    hint = instead_for_folder(checkpoint.folder, "ctranslate2", quantization)
    original = _convert(checkpoint, quantization, folder, model, reference, hint)
    _require_same_model(checkpoint, folder, original, hint)
    checkpoint.copy_tokenizer(folder / TOKENIZER, "config.json")


@dataclass(frozen=True, slots=True)
class _OriginalModel:
    """The model that a conversion is compared with; `elements` are those of its layers' weights."""

    logits: ReferenceLogits | None
    elements: int


def _convert(
    checkpoint: Checkpoint,
    quantization: str,
    folder: Path,
    changed: Any,
    reference: ReferenceLogits | None,
    hint: str,
) -> _OriginalModel:
    from ctranslate2.converters import TransformersConverter

    from packhorse.models.ct2_spec import (
        ModelLostError,
        complete_spec,
        read_rotary_embeddings,
        require_faithful,
        text_elements,
        vocabulary_names,
    )
    from packhorse.models.reference_logits import reference_logits

    class WholeModelConverter(TransformersConverter):  # type: ignore[misc]
        """A converter that refuses missing weights and the model's own code, completes settings of
        attention, and names every token id."""

        def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
            model = changed
            if model is None:
                require_fitting_size(checkpoint.folder)
                options["config"] = load_config(checkpoint.folder)
                model, loading = model_class.from_pretrained(
                    path, output_loading_info=True, **options
                )
                require_all_weights(loading)
            self.config, self.rotary_embeddings = model.config, read_rotary_embeddings(model)
            self.original = _OriginalModel(
                reference or reference_logits(model), text_elements(model)
            )
            self.token_ids = model.get_input_embeddings().weight.shape[0]
            return model

        def _load(self) -> Any:
            spec = super()._load()
            spec.register_vocabulary(vocabulary_names(self.vocabulary, self.token_ids))
            complete_spec(spec, self.config)
            require_faithful(spec, self.config, self.rotary_embeddings)
            return spec

        def load_tokenizer(self, tokenizer_class: Any, path: str, **options: Any) -> Any:
            with tokenizer_errors(checkpoint.folder):
                tokenizer = tokenizer_class.from_pretrained(
                    path, trust_remote_code=False, **options
                )
            self.vocabulary = tokenizer.get_vocab()
            return tokenizer

    try:
        with quiet_transformers():
            converter = WholeModelConverter(str(checkpoint.folder))
            converter.convert(str(folder), quantization=quantization, force=True)
        original: _OriginalModel = converter.original
        return original
    except ModelLostError as error:
        raise ModelError(str(error), hint) from error
    except ModelError:
        raise
    except Exception as error:  # converters raise many kinds for what they do not know
        family = str(checkpoint.config["model_type"])
        raise ModelError(_why_not_converted(family, error), hint) from error


def _why_not_converted(family: str, error: Exception) -> str:
    reason = first_line(error)
    if reason.startswith("No conversion is registered"):
        return f"CTranslate2 has no converter for {family} models"
    if rotation := _ROPE_TYPE.match(reason):
        return (
            f"CTranslate2 does not compute {rotation[1]} positions, which this {family} model has"
        )
    if isinstance(error, AttributeError | KeyError | TypeError | IndexError):
        versions = f"CTranslate2 {version('ctranslate2')}"
        return (
            f"the converter for {family} models of {versions} does not work with this model in "
            f"transformers {version('transformers')} ({type(error).__name__}: {reason})"
        )
    return f"CTranslate2 cannot convert this {family} model: {reason}"


def _require_same_model(
    checkpoint: Checkpoint, folder: Path, original: _OriginalModel, hint: str
) -> None:
    """Load the converted model, compare it with the original, and store the reference logits."""
    import ctranslate2

    from packhorse.models.ct2_check import require_same_logits
    from packhorse.models.ct2_spec import require_all_weights_used

    family = str(checkpoint.config["model_type"])
    variables = read_variables(folder)
    require_all_weights_used(family, layer_elements(variables), original.elements, hint)
    if original.logits is None:
        return
    original.logits.save(folder)
    stored = stored_quantization(variables)
    size = (folder / "model.bin").stat().st_size
    widened = size * 4 // BYTES_PER_WEIGHT.get(stored, 1)
    exact = stored == "float32" or widened < available_bytes() * SHARE_OF_FREE_MEMORY
    try:
        generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="float32" if exact else "default"
        )
        names, window = vocabulary(folder), smallest_window(variables)
        require_same_logits(generator, folder, names, window, stored)
    except ModelError as error:
        raise ModelError(
            f"CTranslate2 would run another model than this {family}: what its converter writes "
            "computes other logits than transformers",
            hint,
        ) from error
    except (RuntimeError, ValueError, MemoryError) as error:
        raise ModelError(
            f"CTranslate2 cannot run what its converter makes of this {family} model: "
            f"{first_line(error)}",
            hint,
        ) from error


def _require_space(checkpoint: Checkpoint, quantization: str, folder: Path) -> None:
    require_free_bytes(folder, checkpoint.weight_count * BYTES_PER_WEIGHT.get(quantization, 1))
