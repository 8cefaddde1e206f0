"""Fields of OpenAI requests that say how to generate: their names, types and ranges.

Each field is declared and read here and nowhere else:

- `read_options` and `read_request_options` read them from plain rows, batch lines and requests;
- `CHAT_FIELDS` and `COMPLETION_FIELDS` become fields of the server's request schemas;
- `range_error` checks `SamplingParams`, whether they come from the command line or from Python;
- `write_options` writes them, for the load test.

Names that mean the same in vLLM's requests (`top_k`) or only in packhorse's (`max_new_tokens`) are
read as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from packhorse.data import SamplingParams
from packhorse.openai_format.field_types import (
    BIAS,
    TOKEN_ID,
    FieldType,
    Flag,
    LogitBias,
    NumberRange,
    StopStrings,
    TokenIds,
)
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.openai_format.structured_fields import STRUCTURED_FIELDS, read_structured

MAX_NEW_TOKENS = NumberRange(int, 0, 2**31 - 1)
TEMPERATURE = NumberRange(float, 0, 100)
TOP_P = NumberRange(float, 0, 1)
TOP_K = NumberRange(int, -1, 2**31 - 1)
SEED = NumberRange(int, -1, 2**63 - 1)
STOP = StopStrings(max_count=16)
N = NumberRange(int, 1, 128)
MIN_P = NumberRange(float, 0, 1)
PENALTY = NumberRange(float, -2, 2)
"""Range of presence_penalty and frequency_penalty, as OpenAI and vLLM have it."""
REPETITION_PENALTY = NumberRange(float, 0, 100, excludes_minimum=True)
LOGIT_BIAS = LogitBias(max_count=1024)
BAD_WORDS = StopStrings(max_count=256)
TOKEN_IDS = TokenIds(max_count=1024)
FLAG = Flag()
TOP_LOGPROBS = NumberRange(int, 0, 20)
"""How many of the most probable tokens are listed per generated token."""

_PARAMS: dict[str, NumberRange] = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
    "top_k": TOP_K,
    "seed": SEED,
    "top_log_probs": TOP_LOGPROBS,
    "prompt_log_probs": TOP_LOGPROBS,
    "n": N,
    "min_p": MIN_P,
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "repetition_penalty": REPETITION_PENALTY,
    "min_tokens": MAX_NEW_TOKENS,
}
"""Range of each numeric field of SamplingParams."""
_OPTIONS: dict[str, tuple[str, FieldType]] = {
    "max_new_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "max_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "max_completion_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "temperature": ("temperature", TEMPERATURE),
    "top_p": ("top_p", TOP_P),
    "top_k": ("top_k", TOP_K),
    "seed": ("seed", SEED),
    "stop": ("stop", STOP),
    "n": ("n", N),
    "min_p": ("min_p", MIN_P),
    "presence_penalty": ("presence_penalty", PENALTY),
    "frequency_penalty": ("frequency_penalty", PENALTY),
    "repetition_penalty": ("repetition_penalty", REPETITION_PENALTY),
    "logit_bias": ("logit_bias", LOGIT_BIAS),
    "bad_words": ("bad_words", BAD_WORDS),
    "suppress_tokens": ("suppress_tokens", TOKEN_IDS),
    "min_tokens": ("min_tokens", MAX_NEW_TOKENS),
    "ignore_eos": ("ignore_eos", FLAG),
    "stop_token_ids": ("stop_token_ids", TOKEN_IDS),
    "echo": ("echo", FLAG),
    "prompt_logprobs": ("prompt_log_probs", TOP_LOGPROBS),
}
"""Field of a row or request -> the field of SamplingParams that it sets, and its type."""
OPTION_FIELDS = frozenset(_OPTIONS) | STRUCTURED_FIELDS
_USUAL_OPTIONS = tuple(_OPTIONS)[:8]
_DEFAULTS = SamplingParams()
LOG_PROB_FIELDS = frozenset({"logprobs", "top_logprobs"})

_SHARED_FIELDS: dict[str, NumberRange | type[bool]] = {
    "max_tokens": MAX_NEW_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
    "top_k": TOP_K,
    "seed": SEED,
    "min_p": MIN_P,
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "repetition_penalty": REPETITION_PENALTY,
    "min_tokens": MAX_NEW_TOKENS,
    "ignore_eos": bool,
    "prompt_logprobs": TOP_LOGPROBS,
}
CHAT_FIELDS: Mapping[str, NumberRange | type[bool]] = {
    **_SHARED_FIELDS,
    "max_completion_tokens": MAX_NEW_TOKENS,
    "logprobs": bool,
    "top_logprobs": TOP_LOGPROBS,
}
"""Optional number and boolean fields of a chat completion request."""
COMPLETION_FIELDS: Mapping[str, NumberRange | type[bool]] = {
    **_SHARED_FIELDS,
    "logprobs": TOP_LOGPROBS,
    "echo": bool,
}
"""The same for a text completion request."""
RESPONSE_FIELDS: Mapping[str, NumberRange | type[bool]] = {
    **{name: kind for name, kind in _SHARED_FIELDS.items() if name != "prompt_logprobs"},
    "max_output_tokens": MAX_NEW_TOKENS,
    "top_logprobs": TOP_LOGPROBS,
}
"""The same for a request of the Responses API."""

IGNORED_FIELDS = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "stream_options",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
"""Fields of requests that have no effect on a completion."""
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "top_logprobs": (),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "grammar": (),
    "json_schema": (),
    "reasoning": (),
    "reasoning_effort": (),
    "thinking": (),
    "enable_thinking": (),
    "thinking_budget": (),
    "verbosity": (),
    "modalities": (["text"],),
    "suffix": ("",),
    "documents": ([],),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "extra_body": ({},),
}
"""Options that are not supported, each with the values that have no effect. Chats support those of
them that are fields of `prompt_fields`."""
_GUIDED = "guided_"


def is_option(name: str) -> bool:
    """Return whether requests of OpenAI, vLLM or packhorse have an option of this name."""
    return name in OPTION_FIELDS or name in NEUTRAL_VALUES or name.startswith(_GUIDED)


def is_neutral(name: str, value: Any) -> bool:
    """Return whether a field that is not in OPTION_FIELDS has a value without effect."""
    if value is None or name in IGNORED_FIELDS:
        return True
    # Booleans equal 0 and 1 in Python, but not in JSON.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL_VALUES.get(name, ())
    )


def is_default(name: str, value: Any) -> bool:
    """Return whether an option has the value that changes nothing, such as `min_p` 0.

    False for the options that most requests set: temperature, top_p, top_k, seed, stop and limits.
    """
    if name in STRUCTURED_FIELDS:
        return value in ({"type": "text"}, {})
    if name not in _OPTIONS or name in _USUAL_OPTIONS:
        return False
    param, kind = _OPTIONS[name]
    return kind.accepts(value) and kind.convert(value) == getattr(_DEFAULTS, param)


def read_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among `fields` by the names and with the types of SamplingParams.

    A field that is null is not set.

    Raises:
        RowError: `bad_option` for a wrong type, a value out of range, or two names of one option
            with different values.
    """
    options: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for field in fields:
        if field not in _OPTIONS or (value := fields[field]) is None:
            continue
        name, kind = _OPTIONS[field]
        if not kind.accepts(value):
            raise _bad_option(field, kind, value)
        converted = kind.convert(value)
        other = set_by.setdefault(name, field)
        if options.setdefault(name, converted) != converted:
            raise RowError(
                "bad_option",
                f"{field} is {format_value(value)}, but {other} is {format_value(fields[other])}; "
                "keep one",
            )
    if structured := read_structured(fields):
        if options.get("ignore_eos"):
            raise RowError(
                "bad_option",
                "ignore_eos does not go with an answer of a given form, which ends when it is "
                "complete; leave one out",
            )
        options["structured_outputs"] = structured
    return options


def read_request_options(body: Mapping[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """Return the options of a request: as `read_options`, and `top_log_probs`.

    Args:
        body: The request, without fields that are not supported.
        is_chat: Whether it asks for a chat completion, which asks for log-probabilities by
            `logprobs: true` and `top_logprobs`, or for a text completion, in which `logprobs` is
            their number.

    Raises:
        RowError: `bad_option`.
    """
    options = read_options(body)
    if is_chat and options.get("echo"):
        raise RowError("bad_option", "echo is for text completions; leave it out of chats")
    top = _read_top_log_probs(body, is_chat=is_chat)
    if top is None:
        return options
    options["top_log_probs"] = top
    if options.get("echo"):  # OpenAI's logprobs then cover the prompt too
        options["prompt_log_probs"] = max(top, options.get("prompt_log_probs", 0))
    return options


def _read_top_log_probs(body: Mapping[str, Any], *, is_chat: bool) -> int | None:
    log_probs, top = body.get("logprobs"), body.get("top_logprobs")
    if not is_chat:
        if top is not None:
            raise RowError(
                "bad_option",
                "top_logprobs is only valid for chats; use logprobs for text completions",
            )
        has_log_probs = log_probs is not None and log_probs is not False
        return _read_count("logprobs", log_probs) if has_log_probs else None
    if not isinstance(log_probs, bool | None):
        raise RowError(
            "bad_option", f"logprobs must be true or false, got {format_value(log_probs)}"
        )
    count = 0 if top is None else _read_count("top_logprobs", top)
    if count and not log_probs:
        raise RowError("bad_option", "top_logprobs needs logprobs: true")
    return count if log_probs else None


def _read_count(field: str, value: Any) -> int:
    if not TOP_LOGPROBS.accepts(value):
        raise _bad_option(field, TOP_LOGPROBS, value)
    return int(value)


def _bad_option(field: str, kind: FieldType, value: Any) -> RowError:
    return RowError("bad_option", f"{field} must be {kind}, got {format_value(value)}")


def range_error(params: SamplingParams) -> str:
    """Describe the first field of `params` that is out of range; return "" if all are in range."""
    for name, allowed in _PARAMS.items():
        value = getattr(params, name)
        if value is not None and not allowed.contains(value):
            return f"{name} must be {allowed}, got {value!r}"
    for name in ("stop", "bad_words"):
        if not all(getattr(params, name)):
            return f"{name} must hold no empty text"
    for token, bias in params.logit_bias:
        if not (TOKEN_ID.contains(token) and BIAS.contains(bias)):
            return f"logit_bias must be token ids and biases from -100 to 100, got {token}={bias:g}"
    for name in ("suppress_tokens", "stop_token_ids"):
        if wrong := [token for token in getattr(params, name) if not TOKEN_ID.accepts(token)]:
            return f"{name} must be token ids, got {format_value(wrong[0])}"
    return ""


def write_options(options: Mapping[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """Return the request fields that ask for `options`, which have the names of SamplingParams."""
    fields = dict(options)
    top = fields.pop("top_log_probs", None)
    if "prompt_log_probs" in fields:
        fields["prompt_logprobs"] = fields.pop("prompt_log_probs")
    if "logit_bias" in fields:
        fields["logit_bias"] = {str(token): bias for token, bias in fields["logit_bias"]}
    if "max_new_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_new_tokens")
    if top is not None:
        fields |= {"logprobs": True, "top_logprobs": top} if is_chat else {"logprobs": top}
    return fields
