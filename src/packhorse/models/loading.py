"""A checkpoint's weights in float32, ready to be looked at and changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packhorse.errors import ModelError, first_line
from packhorse.models.checkpoint import (
    Checkpoint,
    read_json,
    refuse_kernels,
    require_all_weights,
    require_own_class,
)
from packhorse.models.quiet import quiet_transformers

_STORED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True)
class LoadedSize:
    """What a checkpoint takes in float32. model: with a head of its own (bytes). head: of it
    (bytes). channels: of the widest activation that a projection reads. vocabulary: ids."""

    model: int
    head: int
    channels: int
    vocabulary: int


def loaded_size(checkpoint: Checkpoint) -> LoadedSize:
    """Of a family in `quantization.methods.FAMILIES`; from config and file sizes alone."""
    import transformers

    config: Any = transformers.AutoConfig.from_pretrained(
        checkpoint.folder, local_files_only=True, trust_remote_code=False
    )
    stored = sum((checkpoint.folder / name).stat().st_size for name in checkpoint.weights)
    weights = 4 * stored // _STORED_BYTES.get(checkpoint.quantization, 4)
    hidden, vocabulary = config.hidden_size, config.vocab_size
    head = 4 * vocabulary * hidden
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    return LoadedSize(
        model=weights + (head if config.tie_word_embeddings else 0),
        head=head,
        channels=max(hidden, inner or 4 * hidden),
        vocabulary=vocabulary,
    )


def own_config(folder: Path) -> Any:
    """The transformers config of a folder, for its `from_pretrained`.

    transformers chooses how attention and experts are computed, never the config: it may name code
    to be fetched, or a library that is not installed. Raises ModelError for the former.
    """
    import transformers

    refuse_kernels(folder, read_json(folder / "config.json"))
    config: Any = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    config._attn_implementation = None  # noqa: SLF001 - there is no public way
    config._experts_implementation = None  # noqa: SLF001
    return config


def load_float32(checkpoint: Checkpoint) -> Any:
    """The transformers model of a checkpoint on the CPU, without gradients of its weights.

    Raises ModelError where weights are missing or the model cannot be loaded.
    """
    import transformers

    loader: Any = transformers.AutoModelForCausalLM
    require_own_class(checkpoint)
    try:
        with quiet_transformers():
            model, loading = loader.from_pretrained(
                checkpoint.folder,
                config=own_config(checkpoint.folder),
                dtype="float32",
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many kinds for what it cannot load
        raise ModelError(
            f"cannot load {checkpoint.folder}: {first_line(error)}", "copy or fetch the model again"
        ) from error
    require_all_weights(loading)
    return model.eval().requires_grad_(False)
