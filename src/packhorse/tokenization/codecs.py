"""The interface of a model's tokenizer, and the tokenizer of the fake engine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from packhorse.data import Message
from packhorse.tokenization.render_options import PLAIN, RenderOptions


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row cannot become a prompt: code and message of its Failure."""

    code: str
    message: str


class Codec(Protocol):
    """Converts between text and token ids of one model."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def writes_date(self) -> bool:
        """Whether the chat template can write the current date."""
        ...

    @property
    def longest_token(self) -> int:
        """Largest number of characters in one token."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return token ids of texts, with special tokens as the model expects them."""
        ...

    @property
    def num_tokens(self) -> int:
        """Number of token ids: the largest one plus 1."""
        ...

    @property
    def chat_template(self) -> str:
        """Text of the chat template; "" if there is none."""
        ...

    def template_variables(self) -> frozenset[str] | None:
        """Return the variables that the chat template reads; None if that is not known."""
        ...

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        now: datetime | None = None,
        options: Sequence[RenderOptions] = (),
    ) -> list[tuple[int, ...] | Refusal]:
        """Return token ids of chats, up to and including the opening of the assistant's turn.

        Args:
            chats: Messages of each chat.
            now: Local time that a template may write; None is the clock's.
            options: Of each chat; () for none.
        """
        ...

    def encode_rendered(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return token ids of texts in which special tokens are tokens; none are added."""
        ...

    def is_single_token(self, token_id: int) -> bool:
        """Return whether a token is never joined with text beside it: special or added."""
        ...

    def template_fault(self) -> str:
        """Return why the chat template can render no chat; "" if it may render some."""
        ...

    def special_text(self, text: str) -> str:
        """Return the first special token spelled in `text`; "" for none."""
        ...

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        """Return token ids of a piece of text, without special tokens."""
        ...

    def decode(self, token_ids: Sequence[int], keep: frozenset[int] = frozenset()) -> str:
        """Return the text of token ids, without special tokens other than `keep`."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """Return the UTF-8 bytes of one token, which may be a part of a character.

        None for a special token, which has no text. The bytes of all tokens of a text, joined, are
        those of the text, apart from a leading space that decoding may drop.
        """
        ...

    def token_name(self, token_id: int) -> str:
        """Return the name of a special token; "" for an id without a token."""
        ...


class ByteCodec:
    """UTF-8 bytes as token ids, for the fake engine: reversible, no model needed."""

    has_chat_template = False
    writes_date = False
    longest_token = 1
    num_tokens = 256
    chat_template = ""

    def template_variables(self) -> frozenset[str] | None:
        return frozenset()

    def encode_rendered(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return self.encode_texts(texts)

    def is_single_token(self, token_id: int) -> bool:
        return True

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.encode_fragment(text) for text in texts]

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        now: datetime | None = None,
        options: Sequence[RenderOptions] = (),
    ) -> list[tuple[int, ...] | Refusal]:
        return [
            self.encode_fragment(_plain_chat(chat, chosen))
            for chat, chosen in zip(chats, options or [PLAIN] * len(chats), strict=True)
        ]

    def template_fault(self) -> str:
        return ""

    def special_text(self, text: str) -> str:
        return ""

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode("utf-8", "replace"))

    def decode(self, token_ids: Sequence[int], keep: frozenset[int] = frozenset()) -> str:
        return bytes(token_id & 0xFF for token_id in token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id & 0xFF])

    def token_name(self, token_id: int) -> str:
        return ""


def _plain_chat(chat: Sequence[Message], options: RenderOptions) -> str:
    tools = [f"tools: {json.dumps(options.tools)}"] if options.tools else []
    return "\n".join([*tools, *(f"{turn['role']}: {turn['content']}" for turn in chat)])
