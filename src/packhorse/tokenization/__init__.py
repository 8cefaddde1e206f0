"""Tokenize requests: chat template, special tokens, truncation of long prompts.

codecs.py         the interface of a model's tokenizer
huggingface.py    the tokenizer of a Hugging Face folder
chat_template.py  chat messages to text; text_search.py and placeholders.py: is all of it there?
rendering.py      the process that renders templates; renderer.py: the script that it runs
notice.py         warnings about rows
output_format.py  tags of reasoning and markers of tool calls in outputs
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from packhorse.config import OnTooLong
from packhorse.data import Content, Message, ReasoningTokens, Request, TokenIds
from packhorse.errors import ConfigError, ModelError
from packhorse.openai_format.messages import SYSTEM_ROLES, merge_system, read_messages
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.params.prompt_options import PromptOptions
from packhorse.tokenization.codecs import ByteCodec, Codec, Refusal
from packhorse.tokenization.huggingface import HuggingFaceCodec
from packhorse.tokenization.notice import SpecialTextNotice
from packhorse.tokenization.output_format import OutputFormat, OutputRules
from packhorse.tokenization.render_options import PLAIN, RenderOptions

__all__ = [
    "ByteCodec",
    "Codec",
    "HuggingFaceCodec",
    "OutputFormat",
    "Refusal",
    "SpecialTextNotice",
    "Tokenizer",
]

_TRUNCATION_ATTEMPTS = 12
_MESSAGE_NUMBER = re.compile(r"\bmessage (\d+)\b")


class Rendered(str):
    """A text prompt in which special tokens are tokens."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A prompt before it is encoded.

    Attributes:
        content: Text, rendered text, token ids or messages.
        options: How messages are rendered.
        added: Messages before those of the row; negative if some of the row's were merged.
    """

    content: Content
    options: RenderOptions = PLAIN
    added: int = 0


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
        prompts: How rows become prompts; a row's own options override it.
    """

    codec: Codec
    system: str | None = None
    on_too_long: OnTooLong = "error"
    now: datetime | None = None
    notice: SpecialTextNotice | None = field(default=None, compare=False)
    prompts: PromptOptions = field(default_factory=PromptOptions)
    _system_message: Message = field(init=False, compare=False)
    _rules: OutputRules = field(init=False, compare=False)

    def __post_init__(self) -> None:
        message = {"role": "system", "content": self.system or ""}
        object.__setattr__(self, "_system_message", message)
        object.__setattr__(self, "_rules", OutputRules(self.codec, self.prompts))

    @property
    def splits_reasoning(self) -> bool:
        """Whether reasoning is split from outputs: the model has tags for it."""
        return self._rules.tags is not None

    @property
    def marker_ids(self) -> frozenset[int]:
        """Special tokens that are tags of reasoning."""
        return self._rules.tag_ids

    def check_options(self, report: Callable[[str], None]) -> None:
        """Check the options of prompts that hold for the whole job.

        Args:
            report: Takes a warning about template options that the template does not read.

        Raises:
            ConfigError: The model cannot reason as asked, or options contradict each other.
        """
        chosen = self.prompts
        if chosen.raw_prompts and self.system is not None:
            raise ConfigError(
                "a system message cannot be added to prompts that are rendered already",
                "leave --system or --raw-prompts out",
            )
        self._rules.check()
        if fault := self._rules.thinking_fault(chosen.thinking):
            raise ConfigError(fault, "leave --thinking out, or name the tags with --thinking-tags")
        if chosen.template_options:
            notice = self.notice or SpecialTextNotice(report)
            notice.check_template_options(chosen.template_options, self.codec)

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
        if self.system is None or self.prompts.merge_system:
            return
        user = {"role": "user", "content": "Hello"}
        system = {"role": "system", "content": self.system}
        alone, both = self.codec.encode_chats([[user], [system, user]], self.now)
        if isinstance(both, Refusal) and not isinstance(alone, Refusal):
            raise ConfigError(
                f"this model takes no system message: {both.message}",
                "put it into the first user message with --merge-system",
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
        if self.notice is not None and not self.prompts.raw_prompts:
            self.notice.check(requests, self.codec)
        moment = now or self.now
        prepared = [self._prepare(request) for request in requests]
        read = [each for each in prepared if isinstance(each, _Prepared)]
        encoded = iter(self._encode(read, moment))
        return [
            each if isinstance(each, Refusal) else self._fit(each, next(encoded), room, moment)
            for each, room in zip(prepared, rooms, strict=True)
        ]

    def output_format(
        self, request: Request, ids: Sequence[int], *, is_structured: bool = False
    ) -> tuple[OutputFormat, ReasoningTokens | None] | Refusal:
        """Return how to read the output of a row, and the tokens of its reasoning.

        These tokens are None if the reasoning has no limit and no structured output follows it.

        Args:
            request: The row.
            ids: Its prompt, as `encode` returns it.
            is_structured: Whether the answer is a structured output.
        """
        return self._rules.format_of(request, ids, is_structured=is_structured)

    def _prepare(self, request: Request) -> _Prepared | Refusal:
        content = request.content
        own = request.prompt_options
        chosen = replace(self.prompts, **own) if own else self.prompts
        is_rendered = isinstance(content, TokenIds) or (
            isinstance(content, str) and chosen.raw_prompts
        )
        is_plain = isinstance(content, str) and (request.bare or not self.codec.has_chat_template)
        refusal = _needs_template(own, is_rendered=is_rendered) if is_rendered or is_plain else None
        if refusal is not None:
            return refusal
        if isinstance(content, TokenIds):
            return self._with_known_ids(content)
        if isinstance(content, str):
            if is_rendered:
                return _Prepared(Rendered(content))
            if is_plain:
                return _Prepared(content)
            content = ({"role": "user", "content": content},)
        else:
            try:  # rows from Python are not validated yet
                content = read_messages(list(content))
            except RowError as error:
                return Refusal(error.code, str(error))
        return self._prepare_chat(content, request, chosen)

    def _prepare_chat(
        self, content: tuple[Message, ...], request: Request, chosen: PromptOptions
    ) -> _Prepared | Refusal:
        own = request.prompt_options
        last = content[-1]
        ends_with_answer = last["role"] == "assistant" and not last.get("tool_calls")
        if own.get("final_assistant") == "continue" and not ends_with_answer:
            return Refusal(
                "bad_messages",
                f"continue_final_message needs a last message of the assistant, got one with role "
                f"{format_value(last['role'])}",
            )
        if ends_with_answer and chosen.final_assistant == "drop":
            content = content[:-1]
            if all(message["role"] in SYSTEM_ROLES for message in content):
                return Refusal("empty_prompt", "no message is left before the assistant's; add one")
            ends_with_answer = False
        added = 0
        if self.system is not None and content[0]["role"] not in SYSTEM_ROLES:
            content, added = (self._system_message, *content), 1
        if chosen.merge_system and not self._rules.takes_system:
            merged = merge_system(content)
            content, added = merged, added + len(merged) - len(content)
        variables = self._rules.variables(own)
        if isinstance(variables, Refusal):
            return variables
        self._notice_unknown(request)
        options = RenderOptions(
            tools=tuple(chosen.tools),
            variables=variables,
            continues=ends_with_answer and chosen.final_assistant == "continue",
            opens_answer=chosen.add_generation_prompt,
        )
        return _Prepared(content, options, added)

    def _notice_unknown(self, request: Request) -> None:
        if self.notice is not None and (names := request.prompt_options.get("template_options")):
            self.notice.check_template_options(names, self.codec)

    def _with_known_ids(self, ids: TokenIds) -> _Prepared | Refusal:
        known = self.codec.num_tokens
        strange = next((each for each in ids if not 0 <= each < known), None)
        if strange is None:
            return _Prepared(ids)
        return Refusal(
            "bad_token_ids",
            f"token id {strange} is not of this model, which has the ids 0 to {known - 1}; were "
            "the ids made with another tokenizer?",
        )

    def _encode(
        self, prepared: Sequence[_Prepared], now: datetime | None
    ) -> list[tuple[int, ...] | Refusal]:
        """Encode texts and chats, each in one call, so that the tokenizer can use its threads."""
        texts, rendered = list[str](), list[str]()
        chats: list[tuple[Message, ...]] = []
        options: list[RenderOptions] = []
        for each in prepared:
            if isinstance(each.content, Rendered):
                rendered.append(each.content)
            elif isinstance(each.content, str):
                texts.append(each.content)
            elif not isinstance(each.content, TokenIds):
                chats.append(each.content)
                options.append(each.options)
        text_ids = iter(self.codec.encode_texts(texts))
        rendered_ids = iter(self.codec.encode_rendered(rendered))
        chat_ids = iter(self.codec.encode_chats(chats, now, options))
        found: list[tuple[int, ...] | Refusal] = []
        for each in prepared:
            if isinstance(each.content, Rendered):
                found.append(next(rendered_ids))
            elif isinstance(each.content, str):
                found.append(next(text_ids))
            elif isinstance(each.content, TokenIds):
                found.append(tuple(each.content))
            else:
                found.append(_renumbered(next(chat_ids), each.added))
        return found

    def _fit(
        self,
        prepared: _Prepared,
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
        if self.on_too_long == "error" or room < 1:
            return self._too_long(len(ids), room)
        if isinstance(prepared.content, (Rendered, TokenIds)):
            return ids[-room:] if self.on_too_long == "truncate-left" else ids[:room]
        return self._truncated(prepared, len(ids), room, now)

    def _truncated(
        self, prepared: _Prepared, length: int, room: int, now: datetime | None
    ) -> tuple[int, ...] | Refusal:
        """Shorten the text by the excess tokens and encode it, until it fits.

        Text that is cut between two tokens may be tokenized differently the next time.
        """
        content = prepared.content
        assert not isinstance(content, TokenIds)
        # A message that is continued stays whole: the one before it is cut.
        place = -2 if prepared.options.continues and len(content) > 1 else -1
        text = content if isinstance(content, str) else str(content[place]["content"])
        fragment = self.codec.encode_fragment(text)
        keep = len(fragment) - (length - room)
        for _ in range(_TRUNCATION_ATTEMPTS):
            if keep <= 0:
                break
            cut = fragment[-keep:] if self.on_too_long == "truncate-left" else fragment[:keep]
            shorter: Content = self.codec.decode(cut).strip("\N{REPLACEMENT CHARACTER}")
            if not isinstance(content, str):
                messages = list(content)
                messages[place] = {**messages[place], "content": shorter}
                shorter = tuple(messages)
            ids = self._encode([replace(prepared, content=shorter)], now)[0]
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


def _needs_template(own: Mapping[str, Any], *, is_rendered: bool) -> Refusal | None:
    """Return the refusal of a row's options that only a chat template could honour.

    Args:
        own: Options of a row to which none is applied.
        is_rendered: Whether the row is rendered already. Its calls of tools can then be read.
    """
    names = {
        "template_options": "chat_template_kwargs",
        "final_assistant": "continue_final_message",
        "add_generation_prompt": "add_generation_prompt",
        "reasoning_effort": "reasoning_effort",
        **({} if is_rendered else {"tools": "tools"}),
        **({"thinking": "thinking"} if own.get("thinking") in ("on", "off") else {}),
    }
    found = next((field for name, field in names.items() if name in own), None)
    if found is None:
        return None
    return Refusal(
        "unsupported_option",
        f"{found} needs a chat template, and none is applied to this row; leave it out",
    )


def _renumbered(ids: tuple[int, ...] | Refusal, added: int) -> tuple[int, ...] | Refusal:
    """Return `ids`; a refusal counts the messages of the row, without those that were added."""
    if not isinstance(ids, Refusal) or not added:
        return ids

    def of_row(found: re.Match[str]) -> str:
        number = int(found[1]) - added
        return f"message {number}" if number > 0 else "the system message of the job"

    return Refusal(ids.code, _MESSAGE_NUMBER.sub(of_row, ids.message, count=1))
