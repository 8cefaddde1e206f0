"""What text and token ids of one model are to the others; the codec of the fake engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from packhorse.data import Message


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row cannot become a prompt: `code` and `message` of its Failure."""

    code: str
    message: str


class Codec(Protocol):
    """Text and token ids of one model."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def writes_date(self) -> bool:
        """Whether the chat template can write today's date."""
        ...

    @property
    def longest_token(self) -> int:
        """Characters of a text that one token stands for, at most."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Bare texts to ids, with the special tokens the model wants around a text."""
        ...

    def encode_chats(
        self, chats: Sequence[Sequence[Message]], now: datetime | None = None
    ) -> list[tuple[int, ...] | Refusal]:
        """Chats to ids, up to and with the opening of the assistant's turn; now: the local time
        that a template may write, None for the clock's."""
        ...

    def template_fault(self) -> str:
        """Why the chat template can render no chat at all; "" if it may render some."""
        ...

    def special_text(self, text: str) -> str:
        """The first special token that `text` spells; "" for none."""
        ...

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        """A piece of text to ids, nothing added."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Ids to text without special tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes | None:
        """What one token writes, in UTF-8, be it a part of a character; None for one that writes
        nothing (special tokens). Those of a text, joined, are its bytes, but for a space that
        decoding may drop at its beginning."""
        ...

    def token_name(self, token_id: int) -> str:
        """What a token that writes nothing is called; "" for an id without a token."""
        ...


class ByteCodec:
    """UTF-8 bytes as token ids, for the fake engine: reversible and without a model."""

    has_chat_template = False
    writes_date = False
    longest_token = 1

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.encode_fragment(text) for text in texts]

    def encode_chats(
        self, chats: Sequence[Sequence[Message]], now: datetime | None = None
    ) -> list[tuple[int, ...] | Refusal]:
        return [
            self.encode_fragment("\n".join(f"{turn['role']}: {turn['content']}" for turn in chat))
            for chat in chats
        ]

    def template_fault(self) -> str:
        return ""

    def special_text(self, text: str) -> str:
        return ""

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode("utf-8", "replace"))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_id & 0xFF for token_id in token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id & 0xFF])

    def token_name(self, token_id: int) -> str:
        return ""
