"""Read calls of tools from the text of a completion, in the formats of common models.

    hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>  (Hermes, Qwen)
    mistral  [TOOL_CALLS][{"name": ..., "arguments": {...}}]  or  [TOOL_CALLS]name[ARGS]{...}
    llama3   {"name": ..., "parameters": {...}}, alone or after <|python_tag|>, joined by ;

A text that is not a call from its marker to its end has no calls: nothing is guessed. Nothing is
called either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from packhorse.data import ToolCall

ToolFormat = Literal["hermes", "mistral", "llama3"]
TOOL_MARKERS: dict[ToolFormat, tuple[str, ...]] = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    "llama3": ("<|python_tag|>",),
}
"""Texts that mark calls in each format, the one that begins a call first."""
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]([\w-]+))?(?:\[ARGS\])?\s*(?=\{)")
_BETWEEN = re.compile(r"[\s;,]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: str
    id: str = ""


def read_tool_calls(
    text: str, tool_format: ToolFormat, names: Collection[str], key: str, *, parallel: bool = True
) -> tuple[str, tuple[ToolCall, ...]]:
    """Return the text beside the calls, and the calls.

    Args:
        text: A completion without its reasoning.
        tool_format: How the model writes calls.
        names: Names of the tools. A JSON object without a marker is a call only of one of them.
        key: What identifies the completion; ids of calls are digests of it.
        parallel: Whether to return more than the first call.
    """
    try:
        rest, calls = _READERS[tool_format](text, names)
    except (ValueError, RecursionError):
        return text, ()
    found = tuple(
        ToolCall(call.id or _call_id(key, place, tool_format), call.name, call.arguments)
        for place, call in enumerate(calls if parallel else calls[:1])
    )
    return (rest, found) if found else (text, ())


def may_begin_call(text: str, tool_format: ToolFormat) -> int:
    """Return the place in `text` from which on it may be a call; its length if nowhere.

    White space before that place is held too: it is no part of the text beside calls.
    """
    marker = TOOL_MARKERS[tool_format][0]
    if tool_format == "llama3" and text.lstrip()[:1] in ("{", ""):
        return 0
    place = text.find(marker)
    if place < 0:
        overlaps = (n for n in range(min(len(marker) - 1, len(text)), 0, -1))
        count = next((n for n in overlaps if text.endswith(marker[:n])), 0)
        place = len(text) - count
    return len(text[:place].rstrip())


def _hermes(text: str, names: Collection[str]) -> tuple[str, list[_Call]]:
    start, end = TOOL_MARKERS["hermes"]
    calls: list[_Call] = []
    others: list[str] = []
    read = 0
    while (place := text.find(start, read)) >= 0:
        others.append(text[read:place])
        value, read = _DECODER.raw_decode(text, _skip(text, place + len(start)))
        calls.append(_call_of(value))
        read = _skip(text, read)
        # The end tag of the last call may be missing, since some models end the turn with it.
        if text.startswith(end, read):
            read += len(end)
        elif read < len(text):
            raise ValueError("a call is not closed")
    return _joined([*others, text[read:]]), calls


def _mistral(text: str, names: Collection[str]) -> tuple[str, list[_Call]]:
    marker = TOOL_MARKERS["mistral"][0]
    before, *parts = text.split(marker)
    calls: list[_Call] = []
    for part in parts:
        place = 0
        while place < len(part.rstrip()):
            if named := _NAMED.match(part, place):
                arguments, place = _DECODER.raw_decode(part, named.end())
                calls.append(_Call(named[1], _arguments(arguments), named[2] or ""))
                continue
            value, place = _DECODER.raw_decode(part, _skip(part, place))
            calls += map(_call_of, value if isinstance(value, list) else [value])
    return _joined([before]), calls


def _llama3(text: str, names: Collection[str]) -> tuple[str, list[_Call]]:
    marker = TOOL_MARKERS["llama3"][0]
    before, marked, body = text.partition(marker)
    if not marked:
        before, body = "", text
    calls: list[_Call] = []
    place = 0
    while place < len(body.rstrip()):
        value, place = _DECODER.raw_decode(body, _skip(body, place))
        calls.append(_call_of(value))
    if not marked and any(call.name not in names for call in calls):
        raise ValueError("an object that is no call")
    return _joined([before]), calls


_READERS = {"hermes": _hermes, "mistral": _mistral, "llama3": _llama3}


def _skip(text: str, place: int) -> int:
    """Return the place after separators."""
    found = _BETWEEN.match(text, place)
    return place if found is None else found.end()


def _call_of(value: Any) -> _Call:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        raise ValueError("not a call")
    arguments = value.get("arguments", value.get("parameters", {}))
    own = value.get("id")
    return _Call(value["name"], _arguments(arguments), own if isinstance(own, str) else "")


def _arguments(value: Any) -> str:
    """Return arguments as JSON of an object; models may write them as text."""
    parsed = json.loads(value) if isinstance(value, str) else value
    if not isinstance(parsed, dict):
        raise ValueError("arguments are no object")
    return json.dumps(parsed, ensure_ascii=False)


def _joined(parts: Sequence[str]) -> str:
    """Return the text beside calls, one line per part that is not blank."""
    first, *rest = parts
    return "\n".join(filter(None, [first.rstrip(), *(part.strip() for part in rest)]))


def _call_id(key: str, place: int, tool_format: ToolFormat) -> str:
    """Return the id of a call, the same for the same completion. Mistral's have 9 characters."""
    digest = blake2b(f"{key}:{place}".encode(), digest_size=12).hexdigest()
    return digest[:9] if tool_format == "mistral" else f"call_{digest}"
