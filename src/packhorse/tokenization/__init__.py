"""Tokenize requests: chat template, special tokens, truncation of long prompts.

codecs.py         the interface of a model's tokenizer
huggingface.py    the tokenizer of a Hugging Face folder
chat_template.py  chat messages to text; text_search.py and placeholders.py: is all of it there?
rendering.py      the process that renders templates; renderer.py: the script that it runs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from packhorse.config import OnTooLong
from packhorse.data import Message, Request
from packhorse.errors import ConfigError, ModelError
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.tokenization.codecs import ByteCodec, Codec, Refusal
from packhorse.tokenization.huggingface import HuggingFaceCodec

__all__ = [
    "ByteCodec",
    "Codec",
    "Content",
    "HuggingFaceCodec",
    "Refusal",
    "SpecialTextNotice",
    "Tokenizer",
]

Content = str | tuple[Message, ...]

_TRUNCATION_ATTEMPTS = 12
_MESSAGE_NUMBER = re.compile(r"\bmessage (\d+)\b")


@dataclass(slots=True)
class SpecialTextNotice:
    """Warns once if rows spell special tokens.

    Such rows are often prompts to which a chat template has been applied already.

    Attributes:
        report: Takes the warning.
    """

    report: Callable[[str], None]
    _was_reported: bool = False

    def check(self, requests: Sequence[Request], codec: Codec) -> None:
        if self._was_reported:
            return
        found = [(row, text) for row in requests if (text := _special_text(row, codec))]
        if not found:
            return
        self._was_reported = True
        row, text = found[0]
        is_wrapped = codec.has_chat_template and not row.bare
        self.report(
            f"{len(found):,} of the first {len(requests):,} rows spell special tokens of this model"
            f" (line {row.line}: {format_value(text)}): these stay text"
            + (", and the chat template is put around the prompt" * is_wrapped)
            + "; if they are meant, give messages and let the chat template write them"
        )


def _one_less(found: re.Match[str]) -> str:
    number = int(found[1]) - 1
    return f"message {number}" if number else "the system message of the job"


def _special_text(request: Request, codec: Codec) -> str:
    content = request.content
    texts = [content] if isinstance(content, str) else [each.get("content") for each in content]
    return next(
        (found for text in texts if isinstance(text, str) and (found := codec.special_text(text))),
        "",
    )


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Converts requests to prompt token ids by the settings of one job.

    Attributes:
        codec: The model's tokenizer.
        system: System message for chats without one.
        on_too_long: What to do with a prompt of more than `room` tokens. Truncation shortens the
            text of a bare prompt or of a chat's last message and keeps the template complete.
        now: Local time that chat templates may write, the same for the whole job; None is the
            clock's.
        notice: Warns about special tokens in rows; None for no warning.
    """

    codec: Codec
    system: str | None = None
    on_too_long: OnTooLong = "error"
    now: datetime | None = None
    notice: SpecialTextNotice | None = field(default=None, compare=False)
    _system_message: Message = field(init=False, compare=False)

    def __post_init__(self) -> None:
        message = {"role": "system", "content": self.system or ""}
        object.__setattr__(self, "_system_message", message)

    def check(self) -> None:
        """Check before the first row what would reject every chat.

        Raises:
            ModelError: If the model's chat template cannot be used.
            ConfigError: If it takes no system message, but `system` is set.
        """
        if not self.codec.has_chat_template:
            return
        if fault := self.codec.template_fault():
            raise ModelError(
                f"this model can run no chats: {fault}",
                "correct chat_template.jinja (or chat_template in tokenizer_config.json), "
                "or use another model",
            )
        if self.system is None:
            return
        user = {"role": "user", "content": "Hello"}
        system = {"role": "system", "content": self.system}
        alone, both = self.codec.encode_chats([[user], [system, user]], self.now)
        if isinstance(both, Refusal) and not isinstance(alone, Refusal):
            raise ConfigError(
                f"this model takes no system message: {both.message}",
                "leave --system out and write it into the prompts, as with "
                "--template 'INSTRUCTION {prompt}'",
            )

    def encode(
        self, requests: Sequence[Request], rooms: Sequence[int], now: datetime | None = None
    ) -> list[tuple[int, ...] | Refusal]:
        """Return the token ids of each request, or why it has none.

        Args:
            requests: The rows.
            rooms: Largest number of prompt tokens of each request.
            now: Overrides `self.now`.
        """
        if self.notice is not None:
            self.notice.check(requests, self.codec)
        moment = now or self.now
        contents = [self._as_chat(request) for request in requests]
        read = [content for content in contents if not isinstance(content, Refusal)]
        encoded = iter(self._encode(read, moment))
        return [
            content
            if isinstance(content, Refusal)
            else self._fit(content, next(encoded), room, moment)
            for content, room in zip(contents, rooms, strict=True)
        ]

    def _as_chat(self, request: Request) -> Content | Refusal:
        content = request.content
        if isinstance(content, str):
            if request.bare or not self.codec.has_chat_template:
                return content
            content = ({"role": "user", "content": content},)
        else:
            try:  # rows from Python are not validated yet
                content = read_messages(list(content))
            except RowError as error:
                return Refusal(error.code, str(error))
        if self.system is not None and content[0].get("role") not in ("system", "developer"):
            content = (self._system_message, *content)
        return content

    def _encode(
        self, contents: Sequence[Content], now: datetime | None
    ) -> list[tuple[int, ...] | Refusal]:
        """Encode texts and chats, each in one call, so that the tokenizer can use its threads."""
        texts = iter(self.codec.encode_texts([row for row in contents if isinstance(row, str)]))
        chats = [row for row in contents if isinstance(row, tuple)]
        chat_ids = map(self._renumbered, chats, self.codec.encode_chats(chats, now))
        return [next(texts) if isinstance(row, str) else next(chat_ids) for row in contents]

    def _renumbered(
        self, chat: Sequence[Message], ids: tuple[int, ...] | Refusal
    ) -> tuple[int, ...] | Refusal:
        """Return `ids`; a refusal counts messages without the job's system message."""
        if isinstance(ids, tuple) or chat[0] is not self._system_message:
            return ids
        return Refusal(ids.code, _MESSAGE_NUMBER.sub(_one_less, ids.message, count=1))

    def _fit(
        self,
        content: Content,
        ids: tuple[int, ...] | Refusal,
        room: int,
        now: datetime | None,
    ) -> tuple[int, ...] | Refusal:
        if isinstance(ids, Refusal):
            return ids
        if not ids:
            return Refusal("empty_prompt", "the prompt has no tokens")
        if len(ids) <= room:
            return ids
        if self.on_too_long == "error":
            return self._too_long(len(ids), room)
        return self._truncated(content, len(ids), room, now)

    def _truncated(
        self, content: Content, length: int, room: int, now: datetime | None
    ) -> tuple[int, ...] | Refusal:
        """Shorten the text by the excess tokens and encode it, until it fits.

        Text that is cut between two tokens may be tokenized differently the next time.
        """
        text = content if isinstance(content, str) else str(content[-1]["content"])
        fragment = self.codec.encode_fragment(text)
        keep = len(fragment) - (length - room)
        for _ in range(_TRUNCATION_ATTEMPTS):
            if keep <= 0:
                break
            cut = fragment[-keep:] if self.on_too_long == "truncate-left" else fragment[:keep]
            shorter: Content = self.codec.decode(cut).strip("\N{REPLACEMENT CHARACTER}")
            if isinstance(content, tuple):
                shorter = (*content[:-1], {**content[-1], "content": shorter})
            ids = self._encode([shorter], now)[0]
            if isinstance(ids, Refusal) or 0 < len(ids) <= room:
                return ids
            keep -= max(1, len(ids) - room)
        return self._too_long(length, room)

    def _too_long(self, length: int, room: int) -> Refusal:
        advice = "shorten it, lower max_new_tokens, or use --on-too-long truncate-left"
        if self.on_too_long != "error":
            advice = (
                "only a chat's last message may be cut and the others are too long: "
                "shorten them or lower max_new_tokens"
            )
        return Refusal(
            "prompt_too_long",
            f"the prompt has {length} tokens, {room} fit beside the tokens to be generated: "
            f"{advice}",
        )
