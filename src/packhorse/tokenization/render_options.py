"""What a chat template gets besides the messages, and prompts that end inside the last message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packhorse.data import Message

_CONTINUED = "CONTINUEDHEREZQ "
"""Marks the end of a message that is continued. The space at its end shows whether the template
strips messages, as in transformers' `apply_chat_template`."""


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """What a chat template gets besides the messages.

    Attributes:
        tools: Definitions of functions, as in OpenAI's `tools`.
        variables: Variables of the template by name.
        continues: Whether the prompt ends inside the last message, which is continued.
        opens_answer: Whether the prompt ends by opening the assistant's message.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    opens_answer: bool = True

    @property
    def shape(self) -> tuple[Any, ...]:
        """What decides, beside the shape of the messages, which branches a template takes."""
        if not self.tools and not self.variables:
            return ()
        return len(self.tools), json.dumps(self.variables, sort_keys=True, default=str)

    def template_variables(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Return all variables that the template gets."""
        return {
            **self.variables,
            "messages": messages,
            "tools": list(self.tools) or None,
            "add_generation_prompt": self.opens_answer and not self.continues,
        }


PLAIN = RenderOptions()


def mark_last(chat: Sequence[Message]) -> list[Message]:
    """Return the chat with a mark after its last message."""
    return [*chat[:-1], {**chat[-1], "content": chat[-1]["content"] + _CONTINUED}]


def cut_at_mark(text: str, content: str) -> str | None:
    """Return the prompt up to the end of the message that is continued; None if it is not there.

    White space at its end is kept if the template keeps it.
    """
    place = text.rfind(_CONTINUED.strip())
    if place < 0:
        return None
    is_kept = text.startswith(_CONTINUED, place)
    found = text[:place] if is_kept else text[:place].rstrip()
    return found if found.endswith(content.lstrip() if is_kept else content.strip()) else None
