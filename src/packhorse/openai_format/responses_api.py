"""OpenAI's Responses API: requests to chat messages and options, and response documents.

Text in and text out. A response is not stored, so a request carries the whole conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.openai_format.prompt_fields import PROMPT_FIELDS, read_prompt_options
from packhorse.openai_format.request_fields import is_option, read_options
from packhorse.openai_format.row_errors import RowError, format_value

LOG_PROBS = "message.output_text.logprobs"
"""Value of `include` that asks for log-probabilities."""
_IGNORED = frozenset(
    {
        "model",
        "input",
        "instructions",
        "stream",
        "stream_options",
        "include",
        "top_logprobs",
        "store",
        "metadata",
        "user",
        "service_tier",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    }
)
"""Fields that are read elsewhere or have no effect."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto", "none"),
    "tools": ([],),
    "truncation": ("disabled",),
    "n": (1,),
    "echo": (False,),
}
_PROMPT_FIELDS = {*PROMPT_FIELDS, "reasoning"} - {"tools", "tool_choice", "parallel_tool_calls"}
_STATE = ("previous_response_id", "conversation")
_INCLUDED = (LOG_PROBS, "reasoning.encrypted_content")
_TEXT_PARTS = ("input_text", "output_text", "text")


def read_response_messages(fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the chat messages of `instructions` and `input`.

    Raises:
        RowError: `unsupported_content` for items that are no messages, `bad_messages` for others
            that cannot be read.
    """
    given, instructions = fields["input"], fields.get("instructions")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages = [_message(item, place) for place, item in enumerate(items)]
    if not messages:
        raise RowError("bad_messages", "input is empty; give it text or messages")
    return [{"role": "system", "content": instructions}] * bool(instructions) + messages


def _message(item: Any, place: int) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RowError("bad_messages", f"input.{place} must be an object, got {format_value(item)}")
    if item.get("type") not in (None, "message"):
        raise RowError(
            "unsupported_content",
            f"input.{place} must be a message, got an item of type {format_value(item['type'])}; "
            "other items are not supported",
        )
    content = item.get("content")
    if isinstance(content, list):
        content = [_part(part, f"input.{place}.content.{n}") for n, part in enumerate(content)]
    return {"role": item.get("role"), "content": content}


def _part(part: Any, place: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in _TEXT_PARTS:
        raise RowError(
            "unsupported_content", f"{place} must be text (input_text), got {format_value(kind)}"
        )
    return {"type": "text", "text": part.get("text")}


def read_response_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request by the names of SamplingParams.

    Raises:
        RowError: `unsupported_option` for a field that would change the response and is not
            supported, `bad_option` for a value out of range.
    """
    for name, value in fields.items():
        if value is None or name in _IGNORED or name in _PROMPT_FIELDS:
            continue
        if name in _STATE:
            raise RowError(
                "unsupported_option",
                f"{name} is not supported, because responses are not stored here: send the earlier "
                "messages in input",
            )
        if name == "text" and isinstance(value, dict):
            value = {key: each for key, each in value.items() if each is not None}
        neutral = _NEUTRAL.get(name)
        if neutral is None and (name == "max_output_tokens" or is_option(name)):
            continue
        if value not in (neutral or ()) or isinstance(value, bool) != isinstance(
            (neutral or (None,))[0], bool
        ):
            raise RowError(
                "unsupported_option",
                f"{format_value(name)} is not supported, got {format_value(value)}; leave it out",
            )
    renamed = {name: value for name, value in fields.items() if name not in _NEUTRAL}
    if renamed.get("max_output_tokens") is not None:
        renamed["max_tokens"] = renamed.pop("max_output_tokens")
    options = read_options(renamed)
    included = fields.get("include") or []
    if not isinstance(included, list) or any(each not in _INCLUDED for each in included):
        raise RowError("unsupported_option", f"include must hold only {' or '.join(_INCLUDED)}")
    top = fields.get("top_logprobs")
    if LOG_PROBS in included or top:
        options["top_log_probs"] = top or 0
    return options


def read_response_prompt_options(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of chats that a request sets, by the names of PromptOptions.

    Raises:
        RowError: As `read_prompt_options`; `unsupported_option` for a summary of the reasoning.
    """
    given = {name: value for name, value in fields.items() if name in _PROMPT_FIELDS}
    reasoning = given.pop("reasoning", None) or {}
    if not isinstance(reasoning, dict):
        raise RowError("bad_option", f"reasoning must be an object, got {format_value(reasoning)}")
    for name, value in reasoning.items():
        if name == "effort":
            given.setdefault("reasoning_effort", value)
        elif value is not None:
            field = format_value(f"reasoning.{name}")
            raise RowError("unsupported_option", f"{field} is not supported; leave it out")
    return read_prompt_options(given)


def output_text(text: str, log_probs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the content part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(log_probs)}


def output_message(
    identifier: str, status: str, content: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Return the output item of a response."""
    return {
        "id": identifier,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": list(content),
    }


def response_usage(
    prompt_tokens: int, completion_tokens: int, reasoning_tokens: int = 0
) -> dict[str, Any]:
    return {
        "input_tokens": prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": prompt_tokens + completion_tokens,
    }


def response_object(
    identifier: str, created: float, model: str, fields: Mapping[str, Any], **state: Any
) -> dict[str, Any]:
    """Return a response document.

    Args:
        identifier: Its id.
        created: Seconds since 1970.
        model: Name of the model.
        fields: The request, parts of which a response repeats.
        state: status, output, usage, error, incomplete_details.
    """
    repeated = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")
    return {
        "id": identifier,
        "object": "response",
        "created_at": created,
        "model": model,
        "background": False,
        "parallel_tool_calls": bool(fields.get("parallel_tool_calls", True)),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "text": {"format": {"type": "text"}},
        "tool_choice": fields.get("tool_choice") or "auto",
        "tools": [],
        "top_logprobs": fields.get("top_logprobs") or 0,
        "truncation": "disabled",
        **{name: fields.get(name) for name in repeated},
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **state,
    }
