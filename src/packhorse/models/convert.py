"""Convert Hugging Face folders to self-contained CTranslate2 folders."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packhorse.batching.memory import SHARE_OF_FREE_MEMORY, available_bytes
from packhorse.errors import ModelError, first_line, model_errors
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
from packhorse.models.loading import require_fitting_size
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import load_config
from packhorse.models.storage import require_free_bytes
from packhorse.tokenization.errors import tokenizer_errors

if TYPE_CHECKING:
    from packhorse.models.reference_logits import ReferenceLogits

CONVERSION = "ctranslate2-3"
"""Version of the conversion; changes if the same checkpoint would give another folder."""

_DAMAGED = "the files are damaged or do not belong together: copy or fetch the model again"
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
    stored beside it (`reference_logits`). Rounding to another format than float32 hides the loss of
    small settings, such as an epsilon. So if memory and disk allow, the model is first written and
    compared as it is before rounding.

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
    _require_same_model(checkpoint, folder, original, original.logits, hint)
    checkpoint.copy_tokenizer(folder / TOKENIZER, "config.json")


@dataclass(frozen=True, slots=True)
class _OriginalModel:
    """The model that a conversion is compared with.

    Attributes:
        logits: Logits of the checkpoint; None if they are not finite.
        converted_logits: Logits of what is converted, before rounding: of the checkpoint, or of the
            changed model.
        elements: Elements of the weights of its layers.
    """

    logits: ReferenceLogits | None
    converted_logits: ReferenceLogits | None
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

    is_rounded = quantization != "float32"

    class WholeModelConverter(TransformersConverter):  # type: ignore[misc]
        """A converter that refuses missing weights and the model's own code, completes settings of
        attention, and names every token id."""

        def load_model(self, model_class: Any, path: str, **options: Any) -> Any:
            model = changed
            if model is None:
                require_fitting_size(checkpoint.folder)
                with model_errors(f"{checkpoint.folder} cannot be loaded", _DAMAGED):
                    options["config"] = load_config(checkpoint.folder)
                    model, loading = model_class.from_pretrained(
                        path, output_loading_info=True, **options
                    )
                require_all_weights(loading)
            self.config, self.rotary_embeddings = model.config, read_rotary_embeddings(model)
            own = reference_logits(model) if is_rounded or reference is None else None
            self.original = _OriginalModel(reference or own, own, text_elements(model))
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
            spec = converter._load()  # noqa: SLF001 - the steps of `convert`, with a check between
            original: _OriginalModel = converter.original
            spec.validate()
            spec.optimize(None)
            if is_rounded and _has_room_for_exact(checkpoint, folder):
                spec.save(str(folder))
                _require_same_model(
                    checkpoint, folder, original, original.converted_logits, hint, unrounded=True
                )
            spec._quantize(quantization)  # noqa: SLF001
            spec.save(str(folder))
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


def _has_room_for_exact(checkpoint: Checkpoint, folder: Path) -> bool:
    """Return whether the model fits on disk as it is, and in memory in float32."""
    widened = checkpoint.weight_count * BYTES_PER_WEIGHT["float32"]
    on_disk = shutil.disk_usage(folder).free
    return widened < min(available_bytes() * SHARE_OF_FREE_MEMORY, on_disk)


def _require_same_model(
    checkpoint: Checkpoint,
    folder: Path,
    original: _OriginalModel,
    logits: ReferenceLogits | None,
    hint: str,
    *,
    unrounded: bool = False,
) -> None:
    """Load the converted model, compare it with the original, and store the reference logits.

    Args:
        checkpoint: The checkpoint.
        folder: The converted model.
        original: The model it was converted from.
        logits: Logits to compare with and to store; None for no comparison.
        hint: Hint of the error.
        unrounded: Whether the weights are those of the checkpoint, in whatever format.
    """
    import ctranslate2

    from packhorse.models.ct2_check import require_same_logits
    from packhorse.models.ct2_spec import require_all_weights_used

    family = str(checkpoint.config["model_type"])
    variables = read_variables(folder)
    require_all_weights_used(family, layer_elements(variables), original.elements, hint)
    if logits is None:
        return
    logits.save(folder)
    stored = "float32" if unrounded else stored_quantization(variables)
    widened = checkpoint.weight_count * BYTES_PER_WEIGHT["float32"]
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
