"""Validate the chat messages of one row; OpenAI's lists of text parts become text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from packhorse.data import Message
from packhorse.openai_format.row_errors import RowError, format_value

SYSTEM_ROLES = ("system", "developer")


def read_messages(value: Any) -> tuple[Message, ...]:
    """Return `value` as messages with text `role` and `content`, and other fields unless null.

    Raises:
        RowError: `bad_messages`, `unsupported_content` for parts that are not text, or
            `empty_prompt` if all messages but those of the system are blank.
    """
    if not isinstance(value, list) or not value:
        raise RowError(
            "bad_messages",
            f"messages is {'empty' if value == [] else format_value(value)}; "
            "it is a list of objects with role and content",
        )
    messages = tuple(_message(message, place) for place, message in enumerate(value, start=1))
    turns = [each for each in messages if each["role"] not in SYSTEM_ROLES] or messages
    if not any(each["content"].strip() for each in turns):
        raise RowError("empty_prompt", "all messages are blank; give one of them content")
    return messages


def merge_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return a chat with its leading system messages in the text of the first user message.

    The chat is unchanged if the message after them is not the user's.
    """
    count = next(
        (place for place, each in enumerate(messages) if each["role"] not in SYSTEM_ROLES), 0
    )
    if not count or messages[count]["role"] != "user":
        return tuple(messages)
    texts = [each["content"] for each in messages[: count + 1]]
    merged = "\n\n".join(text for text in texts if text.strip())
    return ({**messages[count], "content": merged}, *messages[count + 1 :])


def _message(value: Any, place: int) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _bad(place, f"is {format_value(value)}, not an object with role and content")
    role = value.get("role")
    if not isinstance(role, str) or not role.strip():
        raise _bad(
            place, f"has role {format_value(role)}; a role is text such as user or assistant"
        )
    kept = {name: each for name, each in value.items() if each is not None}
    _check_calls(kept, place)
    calls_tools = bool(kept.get("tool_calls") or kept.get("function_call"))
    return kept | {"content": _content(value.get("content"), place, calls_tools)}


def _check_calls(message: Mapping[str, Any], place: int) -> None:
    calls = message.get("tool_calls", [])
    if not isinstance(calls, list):
        raise _bad(place, f"has tool_calls {format_value(calls)}; they are a list")
    functions = [_function(call) for call in calls]
    if "function_call" in message:
        functions.append(message["function_call"])
    for function in functions:
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise _bad(place, "has a tool call without a function that has a name")


def _function(call: Any) -> Any:
    return call.get("function", call) if isinstance(call, Mapping) else None


def _content(value: Any, place: int, calls_tools: bool) -> str:
    if isinstance(value, str):
        return value
    if value is None and calls_tools:
        return ""
    if not isinstance(value, list):
        raise _bad(place, f"has content {format_value(value)}; content is text")
    return "".join(_text_of_part(part, place) for part in value)


def _text_of_part(part: Any, place: int) -> str:
    if not isinstance(part, Mapping):
        raise _bad(place, f"has {format_value(part)} among its content parts; a part is an object")
    if part.get("type") != "text":
        raise RowError(
            "unsupported_content",
            f"message {place} has a content part of type {format_value(part.get('type'))}; "
            "only text is supported",
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise _bad(place, f"has a text part whose text is {format_value(text)}")
    return text


def _bad(place: int, what: str) -> RowError:
    return RowError("bad_messages", f"message {place} {what}")
