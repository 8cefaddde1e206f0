"""Load a checkpoint with transformers, after checking that its config fits its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, model_errors
from packhorse.models.checkpoint import (
    Checkpoint,
    require_all_weights,
    require_own_class,
    stored_elements,
)
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import load_config, read_config

_AGAIN = "copy or fetch the model again"
_SLACK = 1 << 24
_MASK_NUMBERS_PER_WEIGHT = 16


@dataclass(frozen=True, slots=True)
class LoadedSize:
    """Sizes of a checkpoint in float32.

    Attributes:
        model: Model with an untied head (bytes).
        head: Head (bytes).
        channels: Channels of the widest activation that a projection reads.
        vocabulary: Number of token ids.
    """

    model: int
    head: int
    channels: int
    vocabulary: int


def loaded_size(checkpoint: Checkpoint) -> LoadedSize:
    """Return the sizes of a checkpoint of a family in `quantization.methods.FAMILIES`.

    They follow from the config and the sizes of files alone.
    """
    config = read_config(checkpoint.folder)
    weights = 4 * checkpoint.weight_count
    hidden, vocabulary = config.hidden_size, config.vocab_size
    head = 4 * vocabulary * hidden
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return LoadedSize(
        model=weights + (head if config.tie_word_embeddings else 0),
        head=head,
        channels=max(hidden, inner or 4 * hidden),
        vocabulary=vocabulary,
    )


def require_fitting_size(folder: Path) -> None:
    """Raise ModelError if a folder's config describes a much larger model than its weights hold."""
    require_fitting_config(load_config(folder), stored_elements(folder), f"{folder}/config.json")


def require_fitting_config(config: Any, stored: int, where: str) -> None:
    """Raise ModelError if a transformers config describes a much larger model than `stored`.

    transformers initializes weights that are missing or of another shape before it reports them,
    which may take all memory. So the model is first built without memory (torch's device "meta"),
    and its sizes are added up.

    Args:
        config: The config.
        stored: Number of elements in the weights.
        where: File of the config, for the message.
    """
    import torch
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    try:
        with quiet_transformers(), torch.device("meta"):
            model = loader.from_config(config, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - reported when the model is loaded
        return
    described = sum(parameter.numel() for parameter in model.parameters())
    masks = sum(buffer.numel() for buffer in model.buffers())
    if max(described, masks // _MASK_NUMBERS_PER_WEIGHT) > 2 * stored + _SLACK:
        raise ModelError(
            f"{where} describes a model of {described + masks:,} numbers, and its weights hold "
            f"{stored:,}",
            f"they do not belong together; {_AGAIN}",
        )


def load_float32(checkpoint: Checkpoint) -> Any:
    """Load a checkpoint as a transformers model in float32 on the CPU, without gradients.

    Raises:
        ModelError: Weights are missing, or the model cannot be loaded.
    """
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    require_own_class(checkpoint)
    require_fitting_size(checkpoint.folder)
    what = f"{checkpoint.folder} cannot be loaded"
    with model_errors(what, _AGAIN), quiet_transformers():
        model, loading = loader.from_pretrained(
            checkpoint.folder,
            config=load_config(checkpoint.folder),
            dtype="float32",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    require_all_weights(loading)
    return model.eval().requires_grad_(False)
