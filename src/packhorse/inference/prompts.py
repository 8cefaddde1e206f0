"""Prompts from Python as requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from packhorse.data import Content, Message, Request, TokenIds

PromptContent = str | Sequence[Message] | Sequence[int]
"""A prompt from Python: text, messages or token ids."""


def requests_of(prompts: Iterable[PromptContent]) -> Iterator[Request]:
    """Yield prompts as requests whose index, id and key are their position."""
    for index, prompt in enumerate(prompts):
        yield Request(
            index=index,
            id=index,
            line=index + 1,
            content=_content_of(prompt),
            key=str(index),
        )


def _content_of(prompt: PromptContent) -> Content:
    if isinstance(prompt, str):
        return prompt
    if prompt and all(isinstance(each, int) for each in prompt):
        return TokenIds(prompt)  # type: ignore[arg-type]
    return tuple(prompt)  # type: ignore[arg-type]
