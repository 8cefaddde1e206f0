"""Entries of the built-in engines (`packhorse.engine_protocol.registry`). Imports no engine."""

from __future__ import annotations

from packhorse.config import QUANTIZATIONS
from packhorse.engine_protocol.registry import CTRANSLATE2, HUGGINGFACE, NO_MODEL, EngineEntry
from packhorse.params.sampling_params import ENGINE_FIELDS

ENTRIES = (
    EngineEntry(
        name="transformers",
        loader="packhorse.engines.transformers.engine:load",
        model_kind=HUGGINGFACE,
        number_formats=("float32", "bfloat16", "float16"),
        device_rule="packhorse.models:torch_device",
        refusal="packhorse.models.engine_support:transformers_refusal",
        gives_logits=True,
        sampling_fields=ENGINE_FIELDS,
        forces_tokens=True,
    ),
    EngineEntry(
        name="ctranslate2",
        loader="packhorse.engines.ctranslate2.engine:load",
        model_kind=CTRANSLATE2,
        number_formats=tuple(name for name in QUANTIZATIONS if name != "auto"),
        format_rule="packhorse.engines.ctranslate2.loading:supported_formats",
        device_rule="packhorse.engines.ctranslate2.loading:available_device",
        refusal="packhorse.models.engine_support:ctranslate2_refusal",
        runs_side_by_side=True,
        gives_logits=True,
        sampling_fields=(
            "bad_words",
            "suppress_tokens",
            "min_tokens",
            "ignore_eos",
            "stop_token_ids",
            "prompt_log_probs",
        ),
    ),
    EngineEntry(
        name="packed",
        loader="packhorse.engines.packed:load",
        model_kind=HUGGINGFACE,
        number_formats=("float32", "int8"),
        refusal="packhorse.models.engine_support:packed_refusal",
        is_continuous=True,
        int8_writer="packhorse.engines.packed.int8_writer:write_int8",
        gives_logits=True,
        sampling_fields=ENGINE_FIELDS,
        forces_tokens=True,
    ),
    EngineEntry(
        name="fake",
        loader="packhorse.engines.fake:load",
        model_kind=NO_MODEL,
        number_formats=("float32", "int8", "int16"),
        sampling_fields=tuple(name for name in ENGINE_FIELDS if name != "structured_outputs"),
        forces_tokens=True,
    ),
)
