"""Render chat messages with a model's chat template; a chat that would lose text is rejected.

A template may silently leave out unknown roles, content that it expects in another form, or tool
calls. So the shape of each conversation (roles, which messages have content, which call tools) is
first rendered with placeholders, in the forms that templates read, until all placeholders are in
the text. That form is kept for the shape (`MessageFormat`). Each row is then rendered in the form
of its shape, and the text is searched for the content of every message.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from packhorse.data import Message
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.tokenization.placeholders import (
    ROLES,
    arguments_text,
    function_of,
    is_written,
    placeholder,
    tool_calls_of,
    with_function,
    with_placeholders,
)
from packhorse.tokenization.render_options import PLAIN, RenderOptions, cut_at_mark, mark_last
from packhorse.tokenization.rendering import RenderError, TemplateSource, rendering_process
from packhorse.tokenization.text_search import contains_text

_INVENTED_ROLE = "zqinventedrole"
_MAX_FORMATS = 4096
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class MessageFormat:
    """How the messages of one shape are passed to the template.

    Attributes:
        roles: Role of each message.
        parts: Whether the content of each message is a list of parts instead of text.
        argument_objects: Whether arguments of tool calls are objects instead of JSON text.
    """

    roles: tuple[str, ...]
    parts: tuple[bool, ...]
    argument_objects: bool = True


@dataclass(frozen=True, slots=True)
class _Trial:
    """Result of one form: an error, or the messages (by place) whose text or calls are lost."""

    form: MessageFormat
    error: RenderError | None = None
    lost_texts: tuple[int, ...] = ()
    lost_calls: tuple[int, ...] = ()

    @property
    def is_complete(self) -> bool:
        return self.error is None and not self.lost_texts and not self.lost_calls

    @property
    def losses(self) -> tuple[bool, int]:
        return self.error is not None, len(self.lost_texts) + len(self.lost_calls)


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: TemplateSource) -> None:
        self._source = source
        self.writes_date = "strftime_now" in source.text
        self._formats: OrderedDict[Any, MessageFormat] = OrderedDict()
        self._known_roles: dict[str, bool] = {}
        self._fault: str | None = None

    def render(
        self,
        chats: Sequence[Sequence[Message]],
        now: datetime | None = None,
        options: Sequence[RenderOptions] = (),
    ) -> list[str | RowError]:
        """Return the prompt of each chat, up to the opening of the assistant's turn.

        Args:
            chats: Messages with text `role` and text `content`, as `read_messages` returns them.
            now: Local time that the template may write; None is the clock's.
            options: Of each chat; () for none.

        Returns:
            A RowError for each chat that the template cannot represent.
        """
        if self._fault:
            return [RowError("chat_template", self._fault) for _ in chats]
        moment = now or datetime.now()  # noqa: DTZ005 (templates write the local date)
        options = options or [PLAIN] * len(chats)
        passed: list[dict[str, Any] | RowError] = []
        for chat, chosen in zip(chats, options, strict=True):
            form = self._format(chat, moment, chosen)
            marked = mark_last(chat) if chosen.continues else chat
            found = form if isinstance(form, RowError) else _formatted(marked, form)
            passed.append(
                found if isinstance(found, RowError) else chosen.template_variables(found)
            )
        ready = [chat for chat in passed if not isinstance(chat, RowError)]
        texts = iter(rendering_process().render(self._source, ready, moment))
        return [
            row if isinstance(row, RowError) else _check_complete(chat, next(texts), chosen)
            for chat, row, chosen in zip(chats, passed, options, strict=True)
        ]

    @cached_property
    def variables(self) -> frozenset[str] | None:
        """Names of the variables that the template reads; None if it cannot be parsed."""
        (found,) = rendering_process().render(self._source, [None], datetime.now())  # noqa: DTZ005
        return None if isinstance(found, RenderError) else frozenset(json.loads(found))

    def fault(self) -> str:
        """Return why the template can render no chat; "" if it may render some.

        After a fault was found, `render` tries no chat.
        """
        if self._fault is None:
            self._fault = self._find_fault()
        return self._fault

    def _find_fault(self) -> str:
        moment = datetime.now()  # noqa: DTZ005
        hello = [{"role": "user", "content": "Hello"}]
        (result,) = self._rendered([hello], moment)
        if isinstance(result, RenderError) and result.kind in ("limit", "syntax"):
            return f"its chat template cannot be used: {result.message}"
        return ""

    def _rendered(
        self,
        chats: Sequence[Sequence[Message]],
        now: datetime,
        options: RenderOptions = PLAIN,
    ) -> list[str | RenderError]:
        variables = [options.template_variables(chat) for chat in chats]
        return rendering_process().render(self._source, variables, now)

    def _format(
        self, chat: Sequence[Message], now: datetime, options: RenderOptions
    ) -> MessageFormat | RowError:
        shape = (*map(_shape, chat), *options.shape)
        form = self._formats.get(shape)
        if form is not None:
            self._formats.move_to_end(shape)
            return form
        found = self._find_format(chat, now, replace(options, continues=False))
        if isinstance(found, MessageFormat):  # a refusal may be due to other fields of this row
            self._formats[shape] = found
            if len(self._formats) > _MAX_FORMATS:
                self._formats.popitem(last=False)
        return found

    def _find_format(
        self, chat: Sequence[Message], now: datetime, options: RenderOptions
    ) -> MessageFormat | RowError:
        """Return the first form that loses nothing; it depends only on the shape of the chat."""
        roles: list[str] = []
        for place, message in enumerate(chat):
            role = message["role"]
            meant = role.strip().lower()
            if role not in ROLES and meant in ROLES and not self._knows(role, now):
                return RowError(
                    "chat_template", f"message {place + 1} has role {role!r}; did you mean {meant}?"
                )
            is_unknown = role == "developer" and not self._knows(role, now)
            roles.append("system" if is_unknown else role)
        probes = [with_placeholders(place, message) for place, message in enumerate(chat)]
        calls = any(map(tool_calls_of, chat))
        trials: list[_Trial] = []
        for has_parts in (False, True):
            for objects in (True, False) if calls else (True,):
                form = MessageFormat(tuple(roles), (has_parts,) * len(chat), objects)
                trials.append(self._try(probes, form, now, options))
                if trials[-1].is_complete:
                    return form
                if trials[-1].error is not None and trials[-1].error.kind:
                    return _refusal_error(chat, None, trials[-1].error)
        best = min(trials, key=lambda trial: trial.losses)
        if best.error is None and best.lost_texts:
            flipped = tuple(
                has_parts != (place in best.lost_texts)
                for place, has_parts in enumerate(best.form.parts)
            )
            trial = self._try(probes, replace(best.form, parts=flipped), now, options)
            if trial.is_complete:
                return trial.form
            best = min(best, trial, key=lambda trial: trial.losses)
        return self._refusal(chat, probes, best, now, options)

    def _try(
        self,
        probes: Sequence[Message],
        form: MessageFormat,
        now: datetime,
        options: RenderOptions,
    ) -> _Trial:
        passed = _formatted(probes, form)
        if isinstance(passed, RowError):  # placeholders have arguments that are objects
            return _Trial(form, RenderError(str(passed)))
        (text,) = self._rendered([passed], now, options)
        if isinstance(text, RenderError):
            return _Trial(form, text)
        lost_texts, lost_calls = [], []
        for place, message in enumerate(probes):
            content = message["content"]
            # A list of parts that is written as Python or JSON is not text.
            literal_parts = (f"'text': '{content}'", f'"text": "{content}"')
            written = content in text and not any(each in text for each in literal_parts)
            if content and not written:
                lost_texts.append(place)
            if not all(is_written(call, text) for call in tool_calls_of(message)):
                lost_calls.append(place)
        return _Trial(form, None, tuple(lost_texts), tuple(lost_calls))

    def _knows(self, role: str, now: datetime) -> bool:
        """Return whether the template writes this role differently from an invented one."""
        if role not in self._known_roles:
            chats = [
                [
                    {"role": each, "content": placeholder("M", 0)},
                    {"role": "user", "content": "Hello"},
                ]
                for each in (role, _INVENTED_ROLE)
            ]
            text, other = self._rendered(chats, now)
            self._known_roles[role] = (
                isinstance(text, str)
                and placeholder("M", 0) in text
                and not (isinstance(other, str) and other.replace(_INVENTED_ROLE, role) == text)
            )
        return self._known_roles[role]

    def _refusal(
        self,
        chat: Sequence[Message],
        probes: Sequence[Message],
        trial: _Trial,
        now: datetime,
        options: RenderOptions,
    ) -> RowError:
        if trial.error is not None:
            place = self._refused_message(probes, trial.form, now, options)
            return _refusal_error(chat, place, trial.error)
        if trial.lost_texts:
            place = trial.lost_texts[0]
            return _lost_error(chat, place, "which the model's chat template leaves out")
        place = trial.lost_calls[0]
        return _lost_error(chat, place, "whose tool calls the model's chat template leaves out")

    def _refused_message(
        self,
        probes: Sequence[Message],
        form: MessageFormat,
        now: datetime,
        options: RenderOptions,
    ) -> int | None:
        """Return the last message of the shortest beginning that the template refuses, if any."""
        starts = [_formatted(probes[:end], form) for end in range(1, len(probes) + 1)]
        chats = [start for start in starts[:32] if not isinstance(start, RowError)]
        for place, text in enumerate(self._rendered(chats, now, options)):
            if isinstance(text, RenderError):
                return None if text.kind else place
        return None


def _shape(message: Message) -> tuple[Any, ...]:
    has_content = bool(message["content"].strip())
    return (
        message["role"],
        has_content,
        len(tool_calls_of(message)),
        tuple(sorted(map(str, message))),
    )


def _formatted(chat: Sequence[Message], form: MessageFormat) -> list[dict[str, Any]] | RowError:
    passed: list[dict[str, Any]] = []
    for place, message in enumerate(chat):
        changed = {name: value for name, value in message.items() if value is not None}
        changed["role"] = form.roles[place]
        if form.parts[place]:
            changed["content"] = [{"type": "text", "text": message["content"]}]
        if "tool_calls" in changed and not changed["tool_calls"]:
            del changed["tool_calls"]  # templates test whether it exists
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                function = _with_arguments(function_of(call), form.argument_objects)
                if function is None:
                    name = format_value(function_of(call).get("name"))
                    return RowError(
                        "bad_messages",
                        f"message {place + 1} calls {name} with arguments that are no JSON object; "
                        "write them as one",
                    )
                calls.append(with_function(call, function))
            changed["tool_calls"] = calls
        reasoning = next((changed[name] for name in _REASONING if name in changed), None)
        if reasoning is not None:  # as transformers passes it
            changed = {"thinking": reasoning, **changed, "reasoning_content": reasoning}
        passed.append(changed)
    return passed


def _with_arguments(function: Mapping[str, Any], as_object: bool) -> dict[str, Any] | None:
    """Return the function with arguments in the form the template reads; None if impossible."""
    if not as_object:
        return {**function, "arguments": arguments_text(function)}
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return None
    elif arguments is None:
        arguments = {}
    return {**function, "arguments": arguments} if isinstance(arguments, Mapping) else None


def _check_complete(
    chat: Sequence[Message], text: str | RenderError, options: RenderOptions
) -> str | RowError:
    if isinstance(text, RenderError):
        return _refusal_error(chat, None, text)
    if options.continues:
        cut = cut_at_mark(text, chat[-1]["content"])
        if cut is None:
            what = "which the model's chat template changes, so that it cannot be continued"
            return _lost_error(chat, len(chat) - 1, what)
        text = cut
    for tool in options.tools:
        if (name := str(function_of(tool).get("name"))) not in text:
            return RowError(
                "chat_template",
                f"the model's chat template leaves out the tool {format_value(name)}; leave tools "
                "out, or use a model whose template takes them",
            )
    for place, message in enumerate(chat):
        is_assistant = message["role"] not in ("user", "system", "developer", "tool", "function")
        if not contains_text(message["content"], text, is_assistant=is_assistant):
            return _lost_error(
                chat, place, "whose text the model's chat template leaves out or changes"
            )
    return text


def _refusal_error(chat: Sequence[Message], place: int | None, error: RenderError) -> RowError:
    at = (
        ""
        if place is None
        else f" at message {place + 1} (role {format_value(chat[place]['role'])})"
    )
    return RowError(
        "chat_template", f"the model's chat template refuses this row{at}: {error.message}"
    )


def _lost_error(chat: Sequence[Message], place: int, what: str) -> RowError:
    role = chat[place]["role"]
    return RowError(
        "chat_template",
        f"message {place + 1} has role {format_value(role)}, {what}; "
        "write it in a form the template knows, or use a model whose template does",
    )
