"""Options a row brings itself: which of its fields are options, and their types and ranges.

One rule for JSONL, CSV, TSV and Parquet: a field named like an option (of packhorse, OpenAI or
vLLM) is an option in a row of which all fields are known; beside fields that are not known it may
be data, and the row is refused until `--row-options` says what it is. Fields of which the prompt is
made are data always. An option that cannot be honoured is refused unless it asks for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from packhorse.config import RowOptions
from packhorse.openai_format.row_errors import RowError, shown

_MAX_INT32 = 2**31 - 1
_MAX_STOPS = 16


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    allowed: str
    fits: Callable[[Any], bool]
    keep: Callable[[Any], Any]


def _whole(name: str, low: int, high: int) -> _Rule:
    def fits(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return _Rule(name, f"an integer from {low} to {high}", fits, int)


def _number(name: str, allowed: str, in_range: Callable[[float], bool]) -> _Rule:
    def fits(value: Any) -> bool:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and in_range(value)

    return _Rule(name, f"a number {allowed}", fits, float)


def _is_stop(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= _MAX_STOPS and all(isinstance(each, str) and each for each in value)
    return isinstance(value, str) and bool(value)


def _stops(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


_MAX_NEW_TOKENS = _whole("max_new_tokens", 1, _MAX_INT32)
_RULES: dict[str, _Rule] = {
    "max_new_tokens": _MAX_NEW_TOKENS,
    "max_tokens": _MAX_NEW_TOKENS,
    "max_completion_tokens": _MAX_NEW_TOKENS,
    "temperature": _number("temperature", "from 0 to 100", lambda value: 0 <= value <= 100),
    "top_p": _number("top_p", "above 0 and at most 1", lambda value: 0 < value <= 1),
    "top_k": _whole("top_k", 0, _MAX_INT32),
    "seed": _whole("seed", 0, 2**63 - 1),
    "stop": _Rule(
        "stop",
        f"text or a list of at most {_MAX_STOPS} texts, none of them empty",
        _is_stop,
        _stops,
    ),
}
OPTION_FIELDS = frozenset(_RULES)
CHANGE_NOTHING = frozenset(
    {
        "model",
        "user",
        "metadata",
        "store",
        "service_tier",
        "stream_options",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
"""Fields of requests that change no answer."""
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
"""Options that are not supported, each with the values that ask for nothing."""
_GUIDED = "guided_"


def is_option(name: str) -> bool:
    """Whether OpenAI's, vLLM's or packhorse's requests have an option of this name."""
    return name in OPTION_FIELDS or name in NEUTRAL_VALUES or name.startswith(_GUIDED)


def is_neutral(name: str, value: Any) -> bool:
    """Whether a field of a request, which is not in OPTION_FIELDS, asks for nothing."""
    if value is None or name in CHANGE_NOTHING:
        return True
    # Booleans equal 0 and 1 in Python, but not in JSON.
    return any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL_VALUES.get(name, ())
    )


def unknown_names(names: Collection[str]) -> list[str]:
    """Those of `names` that no request has."""
    return [name for name in names if not is_option(name) and name not in CHANGE_NOTHING]


def read_row_options(
    fields: Mapping[str, Any], unknown: Collection[str], row_options: RowOptions
) -> dict[str, Any]:
    """Return the options among the fields of a row, by the names and with the types of
    SamplingParams.

    Args:
        fields: those of which neither the prompt nor the id is made.
        unknown: names of the row's other fields, which are no options.

    Raises:
        RowError: `ambiguous_option` for options that may be data, `unsupported_option` for one that
            cannot be honoured, `bad_option` as `read_options`.
    """
    if row_options == "no":
        return {}
    asked = {
        name: value
        for name, value in fields.items()
        if is_option(name)
        and not (value is None if name in OPTION_FIELDS else is_neutral(name, value))
    }
    if asked and unknown and row_options == "auto":
        raise RowError("ambiguous_option", ambiguity(asked, unknown))
    for name, value in asked.items():
        if name not in OPTION_FIELDS:
            raise RowError(
                "unsupported_option",
                f"{name} is {shown(value)}, which cannot be honoured; leave it out, or say that "
                "such fields are data with --row-options no",
            )
    return read_options(asked)


def ambiguity(options: Collection[str], unknown: Collection[str]) -> str:
    """What is wrong with options beside fields that are none, and what to do."""
    named, others = (", ".join(map(shown, list(names)[:4])) for names in (options, unknown))
    return (
        f"{named} may be an option or data, since {others} is no option; say which with "
        "--row-options yes or --row-options no"
    )


def from_text(name: str, text: str) -> Any:
    """A cell of CSV as the value of an option: text of stop strings, else JSON if it is that."""
    if not text:
        return None
    if name == "stop":
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def read_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The options among `fields`, by the names and with the types of SamplingParams; null is unset.

    Raises RowError `bad_option` for a wrong type or range, or two names of one option that differ.
    """
    options: dict[str, Any] = {}
    given_as: dict[str, str] = {}
    for field, rule in _RULES.items():
        value = fields.get(field)
        if value is None:
            continue
        if not rule.fits(value):
            raise RowError("bad_option", f"{field} must be {rule.allowed}, got {shown(value)}")
        kept = rule.keep(value)
        other = given_as.setdefault(rule.name, field)
        if options.setdefault(rule.name, kept) != kept:
            raise RowError(
                "bad_option",
                f"{field} is {shown(value)}, but {other} is {shown(fields[other])}; keep one",
            )
    return options
