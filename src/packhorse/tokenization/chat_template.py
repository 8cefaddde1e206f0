"""Chat messages to the text that a model's chat template makes of them, whole or not at all.

A template may leave out, in silence, roles it does not know, content it expects in another form,
or calls of tools. So the shape of each conversation (roles, which messages say something, which
call tools) is rendered once with stand-ins for its texts, in the forms that templates read, until
all stand-ins are in the text; how that was done is kept for the shape (`Plan`). Then each row is
rendered by its plan and looked through for what its messages say.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from packhorse.data import Message
from packhorse.openai_format.row_errors import RowError, format_value
from packhorse.tokenization.rendering import RenderError, TemplateSource, rendering_process
from packhorse.tokenization.stand_ins import (
    ROLES,
    arguments_text,
    calls_of,
    function_of,
    is_written,
    stand_in,
    stand_in_name,
    with_function,
)
from packhorse.tokenization.whole import stands_in

_INVENTED_ROLE = "zqinventedrole"
_MOST_PLANS = 4096
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class Plan:
    """How the messages of one shape are passed to the template.

    roles: of each message. parts: whether its content is a list of parts, not text.
    argument_objects: arguments of tool calls are objects, not JSON text.
    """

    roles: tuple[str, ...]
    parts: tuple[bool, ...]
    argument_objects: bool = True


@dataclass(frozen=True, slots=True)
class _Trial:
    """What came of a plan: an error, or the messages (by place) whose text or calls are lost."""

    plan: Plan
    error: RenderError | None = None
    lost_texts: tuple[int, ...] = ()
    lost_calls: tuple[int, ...] = ()

    @property
    def is_whole(self) -> bool:
        return self.error is None and not self.lost_texts and not self.lost_calls

    @property
    def badness(self) -> tuple[bool, int]:
        return self.error is not None, len(self.lost_texts) + len(self.lost_calls)


class ChatTemplate:
    """One model's chat template."""

    def __init__(self, source: TemplateSource) -> None:
        self._source = source
        self.writes_date = "strftime_now" in source.text
        self._plans: OrderedDict[Any, Plan] = OrderedDict()
        self._known_roles: dict[str, bool] = {}
        self._fault: str | None = None

    def render(
        self, chats: Sequence[Sequence[Message]], now: datetime | None = None
    ) -> list[str | RowError]:
        """Return the prompt of each chat, up to the opening of the assistant's turn.

        Args:
            chats: messages with text `role` and text `content`, as `read_messages` returns them.
            now: the local time that the template may write; the clock's if None.

        Returns:
            For a chat that the template cannot represent, the RowError that says why.
        """
        if self._fault:
            return [RowError("chat_template", self._fault) for _ in chats]
        moment = now or datetime.now()  # noqa: DTZ005 (templates write the local date)
        passed: list[list[dict[str, Any]] | RowError] = []
        for chat in chats:
            plan = self._plan(chat, moment)
            passed.append(plan if isinstance(plan, RowError) else _by_plan(chat, plan))
        ready = [chat for chat in passed if not isinstance(chat, RowError)]
        texts = iter(rendering_process().render(self._source, ready, moment))
        return [
            row if isinstance(row, RowError) else _checked(chat, next(texts))
            for chat, row in zip(chats, passed, strict=True)
        ]

    def fault(self) -> str:
        """Why no chat can be rendered by this template; "" if some may be. Once this is known, no
        chat is tried."""
        if self._fault is None:
            self._fault = self._found_fault()
        return self._fault

    def _found_fault(self) -> str:
        moment = datetime.now()  # noqa: DTZ005
        hello = [{"role": "user", "content": "Hello"}]
        (result,) = rendering_process().render(self._source, [hello], moment)
        if isinstance(result, RenderError) and result.kind in ("limit", "syntax"):
            return f"its chat template cannot be used: {result.message}"
        return ""

    def _plan(self, chat: Sequence[Message], now: datetime) -> Plan | RowError:
        shape = tuple(map(_shape, chat))
        plan = self._plans.get(shape)
        if plan is not None:
            self._plans.move_to_end(shape)
            return plan
        found = self._found(chat, now)
        if isinstance(found, Plan):  # a refusal may be due to other fields of this row
            self._plans[shape] = found
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
        return found

    def _found(self, chat: Sequence[Message], now: datetime) -> Plan | RowError:
        """The first plan that loses nothing; depends on nothing but the shape of the chat."""
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
        stand_ins = [stand_in(place, message) for place, message in enumerate(chat)]
        calls = any(map(calls_of, chat))
        trials: list[_Trial] = []
        for has_parts in (False, True):
            for objects in (True, False) if calls else (True,):
                plan = Plan(tuple(roles), (has_parts,) * len(chat), objects)
                trials.append(self._tried(stand_ins, plan, now))
                if trials[-1].is_whole:
                    return plan
                if trials[-1].error is not None and trials[-1].error.kind:
                    return _refused(chat, None, trials[-1].error)
        best = min(trials, key=lambda trial: trial.badness)
        if best.error is None and best.lost_texts:
            flipped = tuple(
                has_parts != (place in best.lost_texts)
                for place, has_parts in enumerate(best.plan.parts)
            )
            trial = self._tried(stand_ins, replace(best.plan, parts=flipped), now)
            if trial.is_whole:
                return trial.plan
            best = min(best, trial, key=lambda trial: trial.badness)
        return self._refusal(chat, stand_ins, best, now)

    def _tried(self, stand_ins: Sequence[Message], plan: Plan, now: datetime) -> _Trial:
        passed = _by_plan(stand_ins, plan)
        if isinstance(passed, RowError):  # arguments that are no object never stand in
            return _Trial(plan, RenderError(str(passed)))
        (text,) = rendering_process().render(self._source, [passed], now)
        if isinstance(text, RenderError):
            return _Trial(plan, text)
        lost_texts, lost_calls = [], []
        for place, message in enumerate(stand_ins):
            content = message["content"]
            # A list of parts that is written as it stands is no text.
            as_it_stands = (f"'text': '{content}'", f'"text": "{content}"')
            written = content in text and not any(each in text for each in as_it_stands)
            if content and not written:
                lost_texts.append(place)
            if not all(is_written(call, text) for call in calls_of(message)):
                lost_calls.append(place)
        return _Trial(plan, None, tuple(lost_texts), tuple(lost_calls))

    def _knows(self, role: str, now: datetime) -> bool:
        """Whether the template writes a message of this role in another way than one of a role that
        there is not."""
        if role not in self._known_roles:
            chats = [
                [
                    {"role": each, "content": stand_in_name("M", 0)},
                    {"role": "user", "content": "Hello"},
                ]
                for each in (role, _INVENTED_ROLE)
            ]
            text, other = rendering_process().render(self._source, chats, now)
            self._known_roles[role] = (
                isinstance(text, str)
                and stand_in_name("M", 0) in text
                and not (isinstance(other, str) and other.replace(_INVENTED_ROLE, role) == text)
            )
        return self._known_roles[role]

    def _refusal(
        self, chat: Sequence[Message], stand_ins: Sequence[Message], trial: _Trial, now: datetime
    ) -> RowError:
        if trial.error is not None:
            place = self._blamed(stand_ins, trial.plan, now)
            return _refused(chat, place, trial.error)
        if trial.lost_texts:
            place = trial.lost_texts[0]
            return _lost(chat, place, "which the model's chat template leaves out")
        place = trial.lost_calls[0]
        return _lost(chat, place, "whose tool calls the model's chat template leaves out")

    def _blamed(self, stand_ins: Sequence[Message], plan: Plan, now: datetime) -> int | None:
        """The last message of the shortest beginning that the template refuses, if there is one."""
        starts = [_by_plan(stand_ins[:end], plan) for end in range(1, len(stand_ins) + 1)]
        chats = [start for start in starts[:32] if not isinstance(start, RowError)]
        for place, text in enumerate(rendering_process().render(self._source, chats, now)):
            if isinstance(text, RenderError):
                return None if text.kind else place
        return None


def _shape(message: Message) -> tuple[Any, ...]:
    says_something = bool(message["content"].strip())
    return message["role"], says_something, len(calls_of(message)), tuple(sorted(map(str, message)))


def _by_plan(chat: Sequence[Message], plan: Plan) -> list[dict[str, Any]] | RowError:
    passed: list[dict[str, Any]] = []
    for place, message in enumerate(chat):
        changed = {name: value for name, value in message.items() if value is not None}
        changed["role"] = plan.roles[place]
        if plan.parts[place]:
            changed["content"] = [{"type": "text", "text": message["content"]}]
        if "tool_calls" in changed and not changed["tool_calls"]:
            del changed["tool_calls"]  # templates ask whether it is there
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                function = _with_arguments(function_of(call), plan.argument_objects)
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
    """The function with arguments in the form the template reads; None if they have no such."""
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


def _checked(chat: Sequence[Message], text: str | RenderError) -> str | RowError:
    if isinstance(text, RenderError):
        return _refused(chat, None, text)
    for place, message in enumerate(chat):
        is_assistant = message["role"] not in ("user", "system", "developer", "tool", "function")
        if not stands_in(message["content"], text, is_assistant=is_assistant):
            return _lost(chat, place, "whose text the model's chat template leaves out or changes")
    return text


def _refused(chat: Sequence[Message], place: int | None, error: RenderError) -> RowError:
    at = (
        ""
        if place is None
        else f" at message {place + 1} (role {format_value(chat[place]['role'])})"
    )
    return RowError(
        "chat_template", f"the model's chat template refuses this row{at}: {error.message}"
    )


def _lost(chat: Sequence[Message], place: int, what: str) -> RowError:
    role = chat[place]["role"]
    return RowError(
        "chat_template",
        f"message {place + 1} has role {format_value(role)}, {what}; "
        "write it in a form the template knows, or use a model whose template does",
    )
