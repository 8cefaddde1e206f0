"""Read an output: split reasoning from text and find tool calls, at once or as tokens arrive.

The pieces of a stream add up to what is read at once. `ReasoningSplitter` is a machine with four
states:

    start -> reasoning -> gap -> text        start -> text, if no reasoning begins
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from packhorse.data import Completion, FinishReason, ToolCall, find_tokens
from packhorse.openai_format.tool_calls import may_begin_call, read_tool_calls
from packhorse.tokenization import Codec, OutputFormat
from packhorse.tokenization.output_format import ReasoningTags

Part = tuple[Literal["reasoning", "text"], str]


class Decoder(Protocol):
    """Decodes token ids: a tokenizer, or one that shows markers."""

    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class MarkedCodec:
    """A tokenizer whose decoded texts show the special tokens that are markers.

    Attributes:
        codec: The tokenizer.
        keep: Ids of the markers.
    """

    codec: Codec
    keep: frozenset[int]

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.codec.decode(token_ids, self.keep)


@dataclass(frozen=True, slots=True)
class ReadOutput:
    """What an output says.

    Attributes:
        text: Text without reasoning; tool calls are part of it, as they were written.
        reasoning: Text of the reasoning; None if there is none.
        reasoning_tokens: Number of tokens of reasoning and its tags; None for a model without tags.
        tool_calls: Functions to call.
        content: Text without tool calls; None if it is `text`.
    """

    text: str
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    content: str | None = None

    def finish_reason(self, reason: FinishReason) -> FinishReason:
        """Return why the output ended.

        Args:
            reason: Why it ended, apart from tool calls.
        """
        return "tool_calls" if self.tool_calls and reason != "length" else reason


def read_output(
    codec: Codec,
    form: OutputFormat,
    token_ids: Sequence[int],
    raw: str,
    key: str,
) -> ReadOutput:
    """Return what the tokens of an output say.

    Args:
        codec: Tokenizer of the model.
        form: How the output is written.
        token_ids: Its tokens, without an end token.
        raw: Their text as `MarkedCodec` decodes it, cut at the first stop string.
        key: What identifies the row; ids of tool calls are digests of it.
    """
    if form.is_plain:
        return ReadOutput(raw)
    reasoning, tokens, text = None, None, raw
    if form.tags is not None:
        splitter = ReasoningSplitter(form.tags, form.is_open)
        parts = [*splitter.add(raw), *splitter.finish()]
        text = "".join(piece for kind, piece in parts if kind == "text")
        reasoning = "".join(piece for kind, piece in parts if kind == "reasoning") or None
        tokens = count_reasoning_tokens(codec, form, token_ids)
    if form.tool_format is None:
        return ReadOutput(text, reasoning, tokens)
    content, calls = read_tool_calls(
        text, form.tool_format, form.tool_names, key, parallel=form.parallel_tool_calls
    )
    return ReadOutput(text, reasoning, tokens, calls, content if calls else None)


def output_note(outcome: Completion) -> dict[str, Any]:
    """Return what a journal stores of an output beside its text, by the names of OutputRow."""
    found: dict[str, Any] = {
        "reasoning": outcome.reasoning,
        "reasoning_tokens": outcome.reasoning_tokens,
        "tool_calls": [call.to_json() for call in outcome.tool_calls] or None,
        "content": outcome.content,
        "is_json": outcome.is_json or None,
    }
    return {name: value for name, value in found.items() if value is not None}


def count_reasoning_tokens(codec: Codec, form: OutputFormat, token_ids: Sequence[int]) -> int:
    """Return the number of tokens up to the end of the reasoning, tags included; 0 without any."""
    assert form.tags is not None
    tags = form.tags
    head = codec.decode(token_ids[:_HEAD_TOKENS], form.keep).lstrip()
    if not form.is_open and not head.startswith(tags.start):
        return 0
    (end,) = codec.encode_rendered([tags.end])
    if len(end) == 1 and codec.is_single_token(end[0]):
        place = find_tokens(token_ids, end)
        return len(token_ids) if place < 0 else place + 1
    low, high = 0, len(token_ids)  # the tag is in the text of more than `low` tokens, or in none
    if tags.end not in codec.decode(token_ids, form.keep):
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if tags.end in codec.decode(token_ids[:middle], form.keep):
            high = middle
        else:
            low = middle
    return high


_HEAD_TOKENS = 64
"""Tokens among which the tag that begins the reasoning stands."""


class ReasoningSplitter:
    """Splits text, as it arrives, into reasoning and the text after it.

    White space around the tags belongs to neither. A text without reasoning stays as it is.
    """

    def __init__(self, tags: ReasoningTags, is_open: bool) -> None:
        self._tags = tags
        self._is_open = is_open
        self._state: Literal["start", "reasoning", "gap", "text"] = "start"
        self._held = ""
        self._has_reasoning = False

    def add(self, text: str) -> list[Part]:
        """Return the parts that become certain with more text."""
        self._held += text
        found: list[Part] = []
        while (part := self._next()) is not None:
            if part[1]:
                found.append(part)
        return found

    def finish(self) -> list[Part]:
        """Return the parts of what was held back, since the text has ended."""
        held, self._held = self._held, ""
        if self._state == "reasoning" or (self._state == "start" and self._is_open):
            held = held.rstrip() if self._has_reasoning else held.strip()
            return [("reasoning", held)] if held else []
        if self._state == "gap":
            held = held.lstrip()
        return [("text", held)] if held else []

    def _next(self) -> Part | None:
        """Return the next part, perhaps an empty one; None if more text is needed."""
        if not self._held:
            return None
        return {
            "start": self._start,
            "reasoning": self._reasoning,
            "gap": self._gap,
            "text": self._text,
        }[self._state]()

    def _start(self) -> Part | None:
        held = self._held.lstrip()
        openings = (self._tags.start, *self._tags.before_answer)
        for opening in openings:
            if held.startswith(opening):
                is_reasoning = opening == self._tags.start
                self._state = "reasoning" if is_reasoning else "gap"
                self._held = held.removeprefix(opening)
                return "text", ""
        if any(opening.startswith(held) for opening in openings):
            return None
        self._state = "reasoning" if self._is_open else "text"
        return "text", ""

    def _reasoning(self) -> Part | None:
        if not self._has_reasoning:
            self._held = self._held.lstrip()
        before, tag, after = self._held.partition(self._tags.end)
        if tag:
            self._state, self._held = "gap", after
            self._has_reasoning |= bool(before.strip())
            return "reasoning", before.rstrip()
        certain = self._held[: len(self._held) - _overlap(self._held, self._tags.end)].rstrip()
        if not certain:
            return None
        self._held = self._held[len(certain) :]
        self._has_reasoning = True
        return "reasoning", certain

    def _gap(self) -> Part | None:
        held = self._held.lstrip()
        headers = self._tags.before_answer
        if headers and held.startswith(self._tags.start):
            self._state, self._held = "reasoning", held.removeprefix(self._tags.start)
            is_first, self._has_reasoning = not self._has_reasoning, False
            return "reasoning", "" if is_first else "\n\n"
        for header in headers:
            if held.startswith(header):
                self._held = held.removeprefix(header)
                return "text", ""
        possible = (self._tags.start, *headers) if headers else ()
        if not held or any(opening.startswith(held) for opening in possible):
            return None
        self._state, self._held = "text", held
        return "text", ""

    def _text(self) -> Part:
        piece, self._held = self._held, ""
        return "text", piece


class ContentStream:
    """Text beside tool calls, as it arrives; a text that may be a call is held until it has ended.

    Args:
        form: How the output is written.
        key: What identifies the row.
    """

    def __init__(self, form: OutputFormat, key: str) -> None:
        self._form, self._key = form, key
        self._text = ""
        self._given = 0

    def add(self, text: str) -> str:
        """Return the text that is certainly no part of a call."""
        if self._form.tool_format is None:
            return text
        self._text += text
        certain = max(self._given, may_begin_call(self._text, self._form.tool_format))
        piece = self._text[self._given : certain]
        self._given = certain
        return piece

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """Return the rest of the text, and the calls."""
        if self._form.tool_format is None:
            return "", ()
        content, calls = read_tool_calls(
            self._text,
            self._form.tool_format,
            self._form.tool_names,
            self._key,
            parallel=self._form.parallel_tool_calls,
        )
        return content[self._given :], calls


def _overlap(text: str, tag: str) -> int:
    """Return the number of characters at the end of `text` that may begin `tag`."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(tag[:length])), 0)
