"""The tokenizer of a Hugging Face folder.

Chats are rendered with the model's chat template (see `chat_template.py`). Text that looks like a
special token (`<|im_end|>`) inside a row stays text: a row cannot end its own turn or forge another
role's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from packhorse.data import Message
from packhorse.openai_format.row_errors import RowError
from packhorse.storage.json_files import read_object
from packhorse.tokenization.chat_template import ChatTemplate
from packhorse.tokenization.codecs import Refusal
from packhorse.tokenization.errors import tokenizer_errors
from packhorse.tokenization.loading import load_tokenizer
from packhorse.tokenization.placeholders import ROLES
from packhorse.tokenization.render_options import PLAIN, RenderOptions
from packhorse.tokenization.rendering import TemplateSource

_BEGINS_OR_ENDS = re.compile(
    r"^s$|(?:^|_)(?:end|start|begin|eo[stmd]|bo[st]|pad|unk|sep|fim)", re.I
)
_OPEN, _CLOSE = "\U0010fffd", "\U0010fffc"
_NO_CHAT_TEMPLATE = Refusal(
    "no_chat_template", "this model has no chat template, so it accepts no messages: give a prompt"
)


class HuggingFaceCodec:
    """The tokenizer of a Hugging Face folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = load_tokenizer(folder)
        with tokenizer_errors(folder):  # some settings are first read when a text is encoded
            self.encode_fragment("a")
        hidden = {_OPEN, *self._tokenizer.all_special_tokens, *self._added_specials()}
        self._special = re.compile("|".join(map(re.escape, sorted(hidden))))

    def _added_specials(self) -> set[str]:
        added = self._tokenizer.added_tokens_decoder
        return {token.content for token in added.values() if token.special}

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    @property
    def writes_date(self) -> bool:
        template = self._template
        return isinstance(template, ChatTemplate) and template.writes_date

    @property
    def end_token_id(self) -> int | None:
        """The tokenizer's end token; None if it has none."""
        token_id = self._tokenizer.eos_token_id
        return token_id if isinstance(token_id, int) else None

    def is_ordinary(self, token_id: int) -> bool:
        """Return whether a token is ordinary text, even if the settings call it special."""
        listed = self._folder / "tokenizer.json"
        if not listed.is_file():
            return False
        stored = read_object(listed)
        token = self.token_name(token_id)
        added = {each["content"] for each in stored.get("added_tokens") or []}
        return token in _listed_tokens(stored["model"].get("vocab")) and token not in added

    @cached_property
    def longest_token(self) -> int:
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def encode_texts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        encoded = self._encode(texts, add_special_tokens=True, split_special_tokens=True)
        if not (end := self._appended):
            return encoded
        return [ids[: -len(end)] if ids[-len(end) :] == end else ids for ids in encoded]

    @cached_property
    def _appended(self) -> tuple[int, ...]:
        """Special tokens that the tokenizer appends to a text (`add_eos_token`).

        They are removed, since a prompt is to be continued.
        """
        (whole,) = self._encode(["a"], add_special_tokens=True, split_special_tokens=True)
        (text,) = self._encode(["a"], add_special_tokens=False, split_special_tokens=True)
        for start in range(len(whole) - len(text) + 1):
            if text and whole[start : start + len(text)] == text:
                return whole[start + len(text) :]
        return ()

    def encode_rendered(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        return self._encode(texts, add_special_tokens=False, split_special_tokens=False)

    def encode_fragment(self, text: str) -> tuple[int, ...]:
        return self._encode([text], add_special_tokens=False, split_special_tokens=True)[0]

    def special_text(self, text: str) -> str:
        found = self._special.search(text)
        return "" if found is None or found.group() == _OPEN else found.group()

    def template_fault(self) -> str:
        if isinstance(self._template, ChatTemplate):
            return self._template.fault()
        return self._template.message if self._template is not _NO_CHAT_TEMPLATE else ""

    @property
    def num_tokens(self) -> int:
        return len(self._tokenizer)

    @property
    def chat_template(self) -> str:
        template = self._tokenizer.chat_template
        return "\n".join(template.values()) if isinstance(template, dict) else str(template or "")

    def template_variables(self) -> frozenset[str] | None:
        templates = [self._template, self._template_of_tools]
        known = [each.variables for each in templates if isinstance(each, ChatTemplate)]
        return None if None in known else frozenset().union(*filter(None, known))

    def is_single_token(self, token_id: int) -> bool:
        return token_id in self._added or token_id in self._special_ids

    @cached_property
    def _template(self) -> ChatTemplate | Refusal:
        template = self._tokenizer.chat_template
        if not template:
            return _NO_CHAT_TEMPLATE
        if isinstance(template, dict):
            if "default" not in template:
                names = ", ".join(sorted(map(str, template)))
                return Refusal(
                    "chat_template", f"the model has the templates {names} and no default"
                )
            template = template["default"]
        return ChatTemplate(TemplateSource(str(template), self._tokenizer.special_tokens_map))

    @cached_property
    def _template_of_tools(self) -> ChatTemplate | None:
        """The template for chats with tools, if the model has one of its own."""
        template = self._tokenizer.chat_template
        if not isinstance(template, dict) or "tool_use" not in template:
            return None
        text = str(template["tool_use"])
        return ChatTemplate(TemplateSource(text, self._tokenizer.special_tokens_map))

    def encode_chats(
        self,
        chats: Sequence[Sequence[Message]],
        now: datetime | None = None,
        options: Sequence[RenderOptions] = (),
    ) -> list[tuple[int, ...] | Refusal]:
        template = self._template
        if isinstance(template, Refusal):
            return [template for _ in chats]
        options = options or [PLAIN] * len(chats)
        forged = [self._forged_role(chat) for chat in chats]
        if any(forged):
            kept = [place for place, refusal in enumerate(forged) if not refusal]
            rest = iter(
                self.encode_chats([chats[at] for at in kept], now, [options[at] for at in kept])
            )
            return [refusal or next(rest) for refusal in forged]
        literals: list[list[str]] = [[] for _ in chats]
        # Tools first: a template must write all of them, but not all of the messages.
        hidden_options = [
            replace(
                chosen,
                tools=tuple(self._hide_specials(chosen.tools, found)),
                variables=self._hide_specials([chosen.variables], found)[0],
            )
            if chosen.tools or chosen.variables
            else chosen
            for chosen, found in zip(options, literals, strict=True)
        ]
        of_tools = list(map(len, literals))
        hidden = [
            self._hide_specials(chat, found) for chat, found in zip(chats, literals, strict=True)
        ]
        rendered = [
            _pieces(text, found, count)
            for text, found, count in zip(
                self._render(template, hidden, now, hidden_options),
                literals,
                of_tools,
                strict=True,
            )
        ]
        plain = [row for row in rendered if isinstance(row, str)]
        encoded = iter(self._encode(plain, add_special_tokens=False, split_special_tokens=False))
        return [next(encoded) if isinstance(row, str) else self._joined(row) for row in rendered]

    def _render(
        self,
        template: ChatTemplate,
        chats: Sequence[Sequence[Message]],
        now: datetime | None,
        options: Sequence[RenderOptions],
    ) -> list[str | RowError]:
        """Render each chat with the template for its kind."""
        if (of_tools := self._template_of_tools) is None:
            return template.render(chats, now, options)
        return [
            (of_tools if chosen.tools else template).render([chat], now, [chosen])[0]
            for chat, chosen in zip(chats, options, strict=True)
        ]

    def _forged_role(self, chat: Sequence[Message]) -> Refusal | None:
        """Return the refusal of a role that would become a special token, if there is one.

        Templates may put a role between the marks of a special token: `<|` + role + `|>`.
        """
        for place, message in enumerate(chat, start=1):
            role = str(message.get("role"))
            if role not in ROLES and _letters(role) in self._special_names:
                return Refusal(
                    "chat_template",
                    f"message {place} has role {role!r}, the name of a special token; "
                    "use user, assistant or another role of the model",
                )
        return None

    @cached_property
    def _special_names(self) -> frozenset[str]:
        """Names of tokens that begin or end something; others may be roles: `<|observation|>`."""
        names = map(_letters, [*self._tokenizer.all_special_tokens, *self._added.values()])
        return frozenset(name for name in names if _BEGINS_OR_ENDS.search(name))

    def decode(self, token_ids: Sequence[int], keep: frozenset[int] = frozenset()) -> str:
        if not keep.isdisjoint(token_ids):
            return self._decode_around(token_ids, keep)
        return str(
            self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _decode_around(self, token_ids: Sequence[int], keep: frozenset[int]) -> str:
        pieces: list[str] = []
        start = 0
        for place, token_id in enumerate(token_ids):
            if token_id in keep:
                pieces += [self.decode(token_ids[start:place]), self.token_name(token_id)]
                start = place + 1
        return "".join([*pieces, self.decode(token_ids[start:])])

    def token_name(self, token_id: int) -> str:
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        return (
            token if isinstance(token, str) else ""
        )  # a model may have ids that its tokenizer lacks

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
        """How tokens encode bytes: the name of the decoder that reads them."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = repr(backend.decoder) if backend is not None else ""
        return next((name for name in ("ByteLevel", "ByteFallback") if name in decoder), "")

    def _hide_specials(
        self, chat: Sequence[Mapping[str, Any]], literals: list[str]
    ) -> list[dict[str, Any]]:
        """Return the chat with a placeholder for each text that spells a special token.

        The texts are appended to `literals`.
        """

        def hide(match: re.Match[str]) -> str:
            literals.append(match.group())
            return f"{_OPEN}{len(literals) - 1}{_CLOSE}"

        return [
            _map_strings(message, lambda text: self._special.sub(hide, text)) for message in chat
        ]

    def _joined(self, pieces: list[str] | Refusal) -> tuple[int, ...] | Refusal:
        """Return the token ids of all pieces, by two calls of the tokenizer."""
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


def _letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def _pieces(
    text: str | RowError, literals: Sequence[str], of_tools: int
) -> str | list[str] | Refusal:
    """Return a rendered chat, split at texts that spell special tokens.

    In the pieces [text, literal, text, ...] the literals are to be encoded as plain text. The first
    `of_tools` of them are of tools and options, which a template must write as they are.
    """
    if isinstance(text, RowError):
        return Refusal(text.code, str(text))
    if not literals:
        return text
    for number, literal in enumerate(literals[:of_tools]):
        if f"{_OPEN}{number}{_CLOSE}" not in text:
            return Refusal(
                "chat_template",
                f"the model's chat template leaves out or changes the text {literal!r} of a tool "
                "or an option, which spells a special token; write it differently",
            )
    pieces = re.split(f"{_OPEN}(\\d+){_CLOSE}", text)
    pieces[1::2] = [literals[int(number)] for number in pieces[1::2]]
    return pieces


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    return value


def _byte_alphabet() -> dict[str, int]:
    """Return the byte of each character of byte-level tokenizers (Radford et al. 2019, GPT-2).

    Printable bytes are themselves; the others are the characters from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    moved = {chr(256 + place): byte for place, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | moved


_BYTES = _byte_alphabet()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _listed_tokens(vocabulary: Any) -> Collection[str]:
    """Return the tokens of a tokenizer.json: a map to ids, or Unigram's list of pairs."""
    return vocabulary if isinstance(vocabulary, dict) else {pair[0] for pair in vocabulary or []}
