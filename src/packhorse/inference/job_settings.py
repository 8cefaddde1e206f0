"""Sampling parameters of a job: what its journal stores, and whether its engine has them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from packhorse.data import SamplingParams
from packhorse.engine_protocol import EngineCapabilities
from packhorse.engine_protocol.registry import EngineEntry, sampling_refusal
from packhorse.errors import ConfigError

_FLAT_FIELDS = (
    "max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop", "top_log_probs",
)  # fmt: skip
_DEFAULT_DECODING = SamplingParams()


def result_settings(quantization: str, decoding: SamplingParams) -> dict[str, Any]:
    """Return the settings that determine results, apart from model, engine and input.

    A journal is bound to them. The result is a flat dictionary; parameters that older journals do
    not have are in `sampling`, as far as they are set.

    Args:
        quantization: Number format, with "auto" resolved.
        decoding: Sampling parameters of the job.
    """
    fields = {name: getattr(decoding, name) for name in _FLAT_FIELDS}
    others = {
        name: value
        for name, value in asdict(decoding).items()
        if name not in _FLAT_FIELDS and value != getattr(_DEFAULT_DECODING, name)
    }
    more: dict[str, Any] | None = json.loads(json.dumps(others)) or None
    fields |= {"stop": list(decoding.stop), "sampling": more}
    return {"quantization": quantization, **fields}


def check_sampling_support(
    decoding: SamplingParams, capabilities: EngineCapabilities | EngineEntry
) -> None:
    """Raise ConfigError for parameters of a job that its engine does not support."""
    name, supported = capabilities.name, capabilities.sampling_fields
    if problem := sampling_refusal(name, supported, decoding):
        raise ConfigError(problem, "--engine names the engine")
