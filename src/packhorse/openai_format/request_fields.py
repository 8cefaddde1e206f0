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
from dataclasses import dataclass
from typing import Any

from packhorse.data import SamplingParams
from packhorse.openai_format.row_errors import RowError, format_value


@dataclass(frozen=True, slots=True)
class NumberRange:
    """Type and range of a numeric field.

    Attributes:
        type: int, or float, which accepts integers too. A boolean is never a number.
        minimum: Smallest value.
        maximum: Largest value, included.
        excludes_minimum: Whether values must be above the minimum.
    """

    type: type[int] | type[float]
    minimum: int
    maximum: int
    excludes_minimum: bool = False

    def contains(self, value: float) -> bool:
        above = value > self.minimum if self.excludes_minimum else value >= self.minimum
        return above and value <= self.maximum

    def accepts(self, value: Any) -> bool:
        """Return whether a JSON value has the type and is in the range."""
        types = (int,) if self.type is int else (int, float)
        return isinstance(value, types) and not isinstance(value, bool) and self.contains(value)

    def convert(self, value: Any) -> int | float:
        return self.type(value)

    def __str__(self) -> str:
        kind = "an integer" if self.type is int else "a number"
        if self.excludes_minimum:
            return f"{kind} above {self.minimum} and at most {self.maximum}"
        return f"{kind} from {self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True)
class StopStrings:
    """Type of `stop`: one string or a list of strings, none of them empty."""

    max_count: int

    def accepts(self, value: Any) -> bool:
        if isinstance(value, list):
            is_text = all(isinstance(each, str) and each for each in value)
            return len(value) <= self.max_count and is_text
        return isinstance(value, str) and bool(value)

    def convert(self, value: str | list[str]) -> tuple[str, ...]:
        return (value,) if isinstance(value, str) else tuple(value)

    def __str__(self) -> str:
        return f"text or a list of at most {self.max_count} texts, none of them empty"


MAX_NEW_TOKENS = NumberRange(int, 1, 2**31 - 1)
TEMPERATURE = NumberRange(float, 0, 100)
TOP_P = NumberRange(float, 0, 1, excludes_minimum=True)
TOP_K = NumberRange(int, 0, 2**31 - 1)
SEED = NumberRange(int, 0, 2**63 - 1)
STOP = StopStrings(max_count=16)
TOP_LOGPROBS = NumberRange(int, 0, 20)
"""How many of the most probable tokens are listed per generated token."""

_PARAMS: dict[str, NumberRange] = {
    "max_new_tokens": MAX_NEW_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
    "top_k": TOP_K,
    "seed": SEED,
    "top_log_probs": TOP_LOGPROBS,
}
"""Range of each numeric field of SamplingParams."""
_OPTIONS: dict[str, tuple[str, NumberRange | StopStrings]] = {
    "max_new_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "max_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "max_completion_tokens": ("max_new_tokens", MAX_NEW_TOKENS),
    "temperature": ("temperature", TEMPERATURE),
    "top_p": ("top_p", TOP_P),
    "top_k": ("top_k", TOP_K),
    "seed": ("seed", SEED),
    "stop": ("stop", STOP),
}
"""Field of a row or request -> the field of SamplingParams that it sets, and its type."""
OPTION_FIELDS = frozenset(_OPTIONS)
LOG_PROB_FIELDS = frozenset({"logprobs", "top_logprobs"})

_SHARED_FIELDS: dict[str, NumberRange | type[bool]] = {
    "max_tokens": MAX_NEW_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": TOP_P,
    "top_k": TOP_K,
    "seed": SEED,
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
}
"""The same for a text completion request."""

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
    "n": (1,),
    "best_of": (1,),
    "stream": (False,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
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


def read_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options among `fields` by the names and with the types of SamplingParams.

    A field that is null is not set.

    Raises:
        RowError: `bad_option` for a wrong type, a value out of range, or two names of one option
            with different values.
    """
    options: dict[str, Any] = {}
    set_by: dict[str, str] = {}
    for field, (name, kind) in _OPTIONS.items():
        value = fields.get(field)
        if value is None:
            continue
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
    top = _read_top_log_probs(body, is_chat=is_chat)
    return options if top is None else {**options, "top_log_probs": top}


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


def _bad_option(field: str, kind: NumberRange | StopStrings, value: Any) -> RowError:
    return RowError("bad_option", f"{field} must be {kind}, got {format_value(value)}")


def range_error(params: SamplingParams) -> str:
    """Describe the first field of `params` that is out of range; return "" if all are in range."""
    for name, allowed in _PARAMS.items():
        value = getattr(params, name)
        if value is not None and not allowed.contains(value):
            return f"{name} must be {allowed}, got {value!r}"
    return "" if all(params.stop) else "stop must hold no empty text"


def write_options(options: Mapping[str, Any], *, is_chat: bool) -> dict[str, Any]:
    """Return the request fields that ask for `options`, which have the names of SamplingParams."""
    fields = dict(options)
    top = fields.pop("top_log_probs", None)
    if "max_new_tokens" in fields:
        fields["max_tokens"] = fields.pop("max_new_tokens")
    if top is not None:
        fields |= {"logprobs": True, "top_logprobs": top} if is_chat else {"logprobs": top}
    return fields
