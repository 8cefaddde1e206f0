"""Placeholder words for texts and tool calls of messages, to test what a chat template writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from packhorse.data import Message

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def tool_calls_of(message: Message) -> list[Mapping[str, Any]]:
    """Return what a message calls: `function` of each of its tool_calls, and its function_call."""
    calls = message.get("tool_calls")
    found = [function_of(call) for call in calls] if isinstance(calls, list | tuple) else []
    old = message.get("function_call")
    return found + ([old] if isinstance(old, Mapping) else [])


def function_of(call: Any) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    return function if isinstance(function, Mapping) else {}


def placeholder(kind: str, place: int, number: int = 0) -> str:
    """Return a word that no template writes: letters only, so that no escape changes it."""
    digits = f"{place:04d}{number:03d}"
    return f"Zq{kind}" + "".join(chr(ord("a") + int(digit)) for digit in digits) + "qZ"


def with_placeholders(place: int, message: Message) -> dict[str, Any]:
    """Return the message with placeholders for its content and its tool calls.

    Blank content of an ordinary role stays blank, since templates may leave such a message out.
    """
    is_required = message["content"].strip() or message["role"] not in ROLES
    changed = {**message, "content": placeholder("M", place) if is_required else ""}
    number = 0
    calls: list[Any] = []
    for call in message.get("tool_calls") or ():
        calls.append(with_function(call, _function_placeholders(function_of(call), place, number)))
        number += 1
    if calls:
        changed["tool_calls"] = calls
    if isinstance(old := message.get("function_call"), Mapping):
        changed["function_call"] = _function_placeholders(old, place, number)
    return changed


def _function_placeholders(function: Mapping[str, Any], place: int, number: int) -> dict[str, Any]:
    arguments = {placeholder("K", place, number): placeholder("V", place, number)}
    return {**function, "name": placeholder("F", place, number), "arguments": arguments}


def with_function(call: Mapping[str, Any], function: Mapping[str, Any]) -> dict[str, Any]:
    return {**call, "function": function} if "function" in call else {**call, **function}


def is_written(function: Mapping[str, Any], text: str) -> bool:
    """Return whether the placeholders of a call are in the text, but not as a Python dict."""
    ((key, value),) = json.loads(arguments_text(function)).items()
    if not all(each in text for each in (function["name"], key, value)):
        return False
    return f"'{key}': '{value}'" not in text


def arguments_text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments or {}, ensure_ascii=False, default=str)
