"""Text to token ids and back: chat template, special tokens, and what happens to long prompts.

A chat model gets its template (rendered by transformers in Jinja's immutable sandbox), a base model
the bare text. Text that looks like a special token (`<|im_end|>`) inside a row stays text: a row
cannot end its own turn or forge another role's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from packhorse.config import OnTooLong
from packhorse.data import Message, Request
from packhorse.errors import ModelError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Content = str | tuple[Message, ...]

_OPEN, _CLOSE = "\U0010fffd", "\U0010fffc"
_TRUNCATION_ATTEMPTS = 12


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a row cannot become a prompt: `code` and `message` of its Failure."""

    code: str
    message: str


_NO_CHAT_TEMPLATE = Refusal(
    "no_chat_template", "this model has no chat template, so it cannot read messages: give a prompt"
)


class Codec(Protocol):
    """Text and token ids of one model."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def longest_token(self) -> int:
        """Characters of a text that one token stands for, at most."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Bare texts to ids, with the special tokens the model wants around a text."""
        ...

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...] | Refusal]:
        """Chats to ids, up to and with the opening of the assistant's turn."""
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


class HuggingFaceCodec:
    """The tokenizer of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = _load_tokenizer(folder)
        hidden = {_OPEN, *self._tokenizer.all_special_tokens, *self._added_specials()}
        self._special = re.compile("|".join(map(re.escape, sorted(hidden))))

    def _added_specials(self) -> set[str]:
        added = self._tokenizer.added_tokens_decoder
        return {token.content for token in added.values() if token.special}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def end_token_id(self) -> int | None:
        """The token that the tokenizer says ends a text; None if it names none."""
        token_id = self._tokenizer.eos_token_id
        return token_id if isinstance(token_id, int) else None

    def is_ordinary(self, token_id: int) -> bool:
        """Whether a token is a piece of text, also if the tokenizer's settings call it special."""
        listed = self._folder / "tokenizer.json"
        if not listed.is_file():
            return False
        stored = json.loads(listed.read_bytes())
        token = self.token_name(token_id)
        added = {each["content"] for each in stored.get("added_tokens") or []}
        return token in _pieces(stored["model"].get("vocab")) and token not in added

    @cached_property
    def longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return self._encode(texts, add_special_tokens=True, split_special_tokens=True)

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        return self._encode([text], add_special_tokens=False, split_special_tokens=True)[0]

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...] | Refusal]:
        if not self.has_chat_template:
            return [_NO_CHAT_TEMPLATE for _ in chats]
        rendered = [self._render(chat) for chat in chats]
        plain = [row for row in rendered if isinstance(row, str)]
        encoded = iter(self._encode(plain, add_special_tokens=False, split_special_tokens=False))
        return [next(encoded) if isinstance(row, str) else self._joined(row) for row in rendered]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def token_name(self, token_id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return token if isinstance(token, str) else ""  # a model may have ids its tokenizer lacks

    def token_bytes(self, token_id: int) -> bytes | None:
        token = self.token_name(token_id)
        if not token or token_id in self._special_ids:
            return None
        if (added := self._added.get(token_id)) is not None:
            return added.encode("utf-8", "replace")
        if self._spelling == "ByteLevel" and all(each in _BYTES for each in token):
            return bytes(_BYTES[each] for each in token)
        if self._spelling == "ByteFallback":
            if byte := _BYTE_TOKEN.fullmatch(token):
                return bytes([int(byte[1], 16)])
            return token.replace("\u2581", " ").encode("utf-8", "replace")
        return self.decode((token_id,)).encode("utf-8", "replace")

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self._tokenizer.all_special_ids)

    @cached_property
    def _added(self) -> dict[int, str]:
        added = self._tokenizer.added_tokens_decoder
        return {token_id: str(token.content) for token_id, token in added.items()}

    @cached_property
    def _spelling(self) -> str:
        """How tokens spell bytes, by the name of the decoder that reads them."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = repr(backend.decoder) if backend is not None else ""
        return next((name for name in ("ByteLevel", "ByteFallback") if name in decoder), "")

    def _render(self, chat: Sequence[Message]) -> str | list[str] | Refusal:
        """The chat as text; where it contains special-token text, as pieces [text, literal, ...]:
        odd pieces are to be encoded as plain text."""
        literals: list[str] = []

        def hide(match: re.Match[str]) -> str:
            literals.append(match.group())
            return f"{_OPEN}{len(literals) - 1}{_CLOSE}"

        hidden = [
            _map_strings(message, lambda text: self._special.sub(hide, text)) for message in chat
        ]
        try:
            text = str(
                self._tokenizer.apply_chat_template(
                    hidden, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # noqa: BLE001 (a template may raise anything)
            return Refusal("chat_template", f"the model's chat template refuses this row: {error}")
        if not literals:
            return text
        pieces = re.split(f"{_OPEN}(\\d+){_CLOSE}", text)
        pieces[1::2] = [literals[int(number)] for number in pieces[1::2]]
        return pieces

    def _joined(self, pieces: list[str] | Refusal) -> tuple[int, ...] | Refusal:
        """Two calls of the tokenizer, however many pieces there are."""
        if isinstance(pieces, Refusal):
            return pieces
        between = [piece for piece in pieces[::2] if piece]
        plain = iter(self._encode(between, add_special_tokens=False, split_special_tokens=False))
        literals = list(dict.fromkeys(pieces[1::2]))
        encoded = self._encode(literals, add_special_tokens=False, split_special_tokens=True)
        ids_of = dict(zip(literals, encoded, strict=True))
        ids: list[int] = []
        for position, piece in enumerate(pieces):
            if piece:
                ids += ids_of[piece] if position % 2 else next(plain)
        return tuple(ids)

    def _encode(
        self, texts: Sequence[str], *, add_special_tokens: bool, split_special_tokens: bool
    ) -> list[tuple[int, ...]]:
        if not texts:
            return []
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            split_special_tokens=split_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [tuple(ids) for ids in encoded["input_ids"]]


class ByteCodec:
    """UTF-8 bytes as token ids, for the fake engine: reversible and without a model."""

    has_chat_template = False
    longest_token = 1

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return [self.encode_fragment(text) for text in texts]

    def encode_chats(self, chats: Sequence[Sequence[Message]]) -> list[tuple[int, ...] | Refusal]:
        return [
            self.encode_fragment("\n".join(f"{turn['role']}: {turn['content']}" for turn in chat))
            for chat in chats
        ]

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode("utf-8", "replace"))

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_id & 0xFF for token_id in token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id & 0xFF])

    def token_name(self, token_id: int) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Requests to prompt ids, by the rules of one job.

    system: put before chats that have no system message.
    on_too_long: what to do with a prompt of more than `room` tokens. The truncations shorten the
        text of a bare prompt or of a chat's last message and leave the template whole.
    """

    codec: Codec
    system: str | None = None
    on_too_long: OnTooLong = "error"

    def encode(
        self, requests: Sequence[Request], rooms: Sequence[int]
    ) -> list[tuple[int, ...] | Refusal]:
        """Token ids of each request, or why not. rooms: prompt tokens allowed, one a request."""
        contents = [self._as_chat(request) for request in requests]
        encoded = self._encode(contents)
        return [
            self._fit(content, ids, room)
            for content, ids, room in zip(contents, encoded, rooms, strict=True)
        ]

    def _as_chat(self, request: Request) -> Content:
        content = request.content
        if isinstance(content, str):
            if request.bare or not self.codec.has_chat_template:
                return content
            content = ({"role": "user", "content": content},)
        if self.system is not None and content[0].get("role") not in ("system", "developer"):
            content = ({"role": "system", "content": self.system}, *content)
        return content

    def _encode(self, contents: Sequence[Content]) -> list[tuple[int, ...] | Refusal]:
        """Encodes texts and chats each in one call: the tokenizer's own threads do the work."""
        texts = iter(self.codec.encode_texts([row for row in contents if isinstance(row, str)]))
        chats = iter(self.codec.encode_chats([row for row in contents if isinstance(row, tuple)]))
        return [next(texts) if isinstance(row, str) else next(chats) for row in contents]

    def _fit(
        self, content: Content, ids: tuple[int, ...] | Refusal, room: int
    ) -> tuple[int, ...] | Refusal:
        if isinstance(ids, Refusal):
            return ids
        if not ids:
            return Refusal("empty_prompt", "the prompt has no tokens")
        if len(ids) <= room:
            return ids
        if self.on_too_long == "error":
            return self._too_long(len(ids), room)
        return self._truncated(content, len(ids), room)

    def _truncated(self, content: Content, length: int, room: int) -> tuple[int, ...] | Refusal:
        """Shortens the text by the tokens it is over, encodes again, until it fits: text cut at a
        token border may be split differently when it is encoded anew."""
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
            ids = self._encode([shorter])[0]
            if isinstance(ids, Refusal) or 0 < len(ids) <= room:
                return ids
            keep -= max(1, len(ids) - room)
        return self._too_long(length, room)

    def _too_long(self, length: int, room: int) -> Refusal:
        return Refusal(
            "prompt_too_long",
            f"the prompt has {length} tokens, {room} fit beside the tokens to be generated: "
            "shorten it, lower max_new_tokens, or use --on-too-long truncate-left",
        )


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as (Radford et al. 2019, GPT-2):
    printable ones stand for themselves, the others for those from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    moved = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


_BYTES = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _pieces(vocabulary: Any) -> Collection[str]:
    """Tokens of a tokenizer.json: a map to ids, or Unigram's list of pairs."""
    return vocabulary if isinstance(vocabulary, dict) else {pair[0] for pair in vocabulary or []}


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds for a damaged folder
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded: {first_line(error)}",
            "the folder needs tokenizer.json (or tokenizer.model) and tokenizer_config.json",
        ) from error
