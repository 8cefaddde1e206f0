"""Messages in the forms in which files store them, and prompts that are token ids.

Messages are a list of objects, a list of maps (pairs of names and values), or either as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from packhorse.config import MessagesFormat
from packhorse.data import Message, TokenIds
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.row_errors import RowError, format_value

CONVERSATIONS, SYSTEM = "conversations", "system"
"""Fields of rows in ShareGPT's format: the messages, and a system message before them."""
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""`from` in ShareGPT's format -> role."""
_CALL = "function_call"


def value_at(fields: Mapping[str, Any], name: str) -> Any:
    """Return the field of this name, or the one inside others that a name with dots says.

    None if there is none.
    """
    if name in fields:
        return fields[name]
    head, dot, rest = name.partition(".")
    inner = _as_mapping(fields.get(head)) if dot else None
    return None if inner is None else value_at(inner, rest)


def is_conversation(value: Any, name: str, messages_format: MessagesFormat) -> bool:
    """Return whether the value of a field is messages, not text."""
    if isinstance(value, list):
        return not value or _as_mapping(value[0]) is not None
    is_named = name.rpartition(".")[2] in ("messages", CONVERSATIONS)
    is_json = isinstance(value, str) and value.lstrip()[:1] == "["
    return is_json and (is_named or messages_format != "auto")


def read_conversation(
    value: Any, messages_format: MessagesFormat, system: Any = None
) -> tuple[Message, ...]:
    """Return stored messages as `read_messages` does.

    Args:
        value: The messages.
        messages_format: How they are stored.
        system: System message of a row in ShareGPT's format; None for none.

    Raises:
        RowError: As `read_messages`; `bad_messages` for messages in another format.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RowError(
                "bad_messages",
                f"messages is {format_value(value)}, which is not JSON; give a list of messages",
            ) from None
    if not isinstance(value, list):
        return read_messages(value)
    messages = [each if isinstance(each, dict) else _as_mapping(each) or each for each in value]
    if messages_format == "sharegpt":
        messages = [_from_sharegpt(each, place) for place, each in enumerate(messages, start=1)]
        if isinstance(system, str) and system.strip():
            messages.insert(0, {"role": "system", "content": system})
    elif (
        messages
        and isinstance(first := messages[0], dict)
        and "role" not in first
        and "from" in first
    ):
        raise RowError(
            "bad_messages",
            "message 1 has from and value instead of role and content; add --messages-format "
            "sharegpt",
        )
    return read_messages(messages)


def read_token_ids(value: Any, name: str) -> TokenIds:
    """Return a prompt that is given as token ids.

    Raises:
        RowError: `bad_prompt` or `empty_prompt`.
    """
    if not isinstance(value, list):
        raise RowError(
            "bad_prompt", f"{name} must be a list of token ids, got {format_value(value)}"
        )
    if not value:
        raise RowError("empty_prompt", f"{name} is empty; give the row a prompt")
    for place, each in enumerate(value, start=1):
        if not isinstance(each, int) or isinstance(each, bool):
            raise RowError(
                "bad_prompt",
                f"{name} must be one list of token ids, got {format_value(each)} in place {place}",
            )
    return TokenIds(value)


def _as_mapping(value: Any) -> Mapping[str, Any] | None:
    """Return a struct or a map as a mapping; None for anything else.

    Parquet's maps are read as lists of pairs.
    """
    if isinstance(value, Mapping):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(e, tuple) and len(e) == 2 for e in value)
    ):
        return {str(name): each for name, each in value}
    return None


def _from_sharegpt(message: Any, place: int) -> Any:
    if not isinstance(message, Mapping) or ("role" in message and "from" not in message):
        return message  # `read_messages` says what is wrong with it, if anything
    source, text = message.get("from"), message.get("value")
    if source == _CALL:
        return _call(text, place)
    if not isinstance(source, str) or source.lower() not in _ROLES:
        raise RowError(
            "bad_messages",
            f"message {place} is from {format_value(source)}; known are human, gpt, system, tool, "
            "observation and function_call",
        )
    others = {name: each for name, each in message.items() if name not in ("from", "value")}
    return {**others, "role": _ROLES[source.lower()], "content": text}


def _call(text: Any, place: int) -> dict[str, Any]:
    """Return a message that calls functions, from JSON text or an object."""
    try:
        calls = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        calls = None
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list) or not calls:
        raise RowError("bad_messages", f"message {place} calls a function, but is no JSON object")
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": call} for call in calls],
    }
