"""What a template makes of messages: all that they say, or a reason why not."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any

import pytest

import chat_template_shapes as shapes
from packhorse.openai_format.messages import read_messages
from packhorse.openai_format.row_errors import RowError
from packhorse.tokenization.chat_template import ChatTemplate
from packhorse.tokenization.rendering import RenderingProcess, TemplateSource, rendering_process
from packhorse.tokenization.text_search import contains_text

Chat = list[dict[str, Any]]
HI = {"role": "user", "content": "hi"}
BRIEF = {"role": "system", "content": "Answer in capitals."}
DEVELOPER = {**BRIEF, "role": "developer"}
HELLO = {"role": "assistant", "content": "  Hello there.\n"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call12345",
            "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1}'},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call12345", "content": '{"sum": "3 \\"apples\\""}'}
DATE = datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 (templates write local time)


def rendered(template: str, *chat: dict[str, Any], **variables: Any) -> str | RowError:
    (found,) = ChatTemplate(TemplateSource(template, variables)).render(
        [read_messages(list(chat))], DATE
    )
    return found


def text(template: str, *chat: dict[str, Any], **variables: Any) -> str:
    found = rendered(template, *chat, **variables)
    assert isinstance(found, str), found
    return found


def refusal(template: str, *chat: dict[str, Any]) -> str:
    found = rendered(template, *chat)
    assert isinstance(found, RowError), found
    assert found.code in ("chat_template", "bad_messages")
    assert "\n" not in str(found)
    return str(found)


ALL = [value for name, value in vars(shapes).items() if name.isupper() and name != "OPENING"]
TAKE_SYSTEM = [each for each in ALL if each != shapes.NO_SYSTEM]


@pytest.mark.parametrize("template", ALL)
def test_every_shape_takes_an_ordinary_chat(template: str) -> None:
    said = text(template, HI, HELLO, {"role": "user", "content": "\n And then? \n"})
    assert "hi" in said
    assert said.index("Hello there.") < said.index("And then?")


@pytest.mark.parametrize("template", TAKE_SYSTEM)
def test_a_system_message_and_a_developer_message_arrive(template: str) -> None:
    as_system = text(template, BRIEF, HI)
    assert "Answer in capitals." in as_system
    assert "Answer in capitals." in text(template, DEVELOPER, HI)


@pytest.mark.parametrize("template", [shapes.CHATML, shapes.KNOWN_ROLES_ONLY, shapes.PARTS_ONLY])
def test_developer_is_system_where_the_template_does_not_know_it(template: str) -> None:
    assert text(template, DEVELOPER, HI) == text(template, BRIEF, HI)


def test_developer_stays_where_the_template_knows_it() -> None:
    said = text(shapes.KNOWS_DEVELOPER, DEVELOPER, HI)
    assert said != text(shapes.KNOWS_DEVELOPER, BRIEF, HI)


def test_a_system_message_that_the_template_refuses_names_the_message() -> None:
    for instructing in (BRIEF, DEVELOPER):
        message = refusal(shapes.NO_SYSTEM, instructing, HI)
        assert "message 1" in message
        assert instructing["role"] in message
        assert "System role not supported" in message
    assert "message 2 (role 'user')" in refusal(shapes.NO_SYSTEM, HI, HI)


@pytest.mark.parametrize("role", ["banana", "tool", "function", "context"])
@pytest.mark.parametrize("content", ["42 degrees", "a", "hi", ""])
def test_a_role_that_the_template_leaves_out_is_refused(role: str, content: str) -> None:
    if role in ("tool", "function") and not content:
        pytest.skip("says nothing")
    message = refusal(shapes.KNOWN_ROLES_ONLY, HI, {"role": role, "content": content})
    assert "message 2" in message
    assert repr(role) in message


def test_a_role_of_its_own_arrives_where_the_template_writes_it() -> None:
    assert "<|im_start|>critic\nNo." in text(
        shapes.CHATML, HI, {"role": "critic", "content": "No."}
    )


@pytest.mark.parametrize("role", ["System", "USER", "assistant "])
def test_a_role_in_another_case_is_no_role(role: str) -> None:
    for template in (shapes.CHATML, shapes.KNOWN_ROLES_ONLY, shapes.NO_SYSTEM):
        message = refusal(template, {"role": role, "content": "x"}, HI)
        assert f"{role!r}; did you mean {role.strip().lower()}?" in message


@pytest.mark.parametrize(
    "template", [shapes.PARTS_ONLY, shapes.FIRST_PART_ONLY, shapes.PARTS_OF_USERS]
)
def test_a_template_of_parts_gets_parts(template: str) -> None:
    said = text(template, BRIEF, {"role": "user", "content": "Is it so?"}, HELLO, HI)
    for each in ("Answer in capitals.", "Is it so?", "Hello there.", "hi"):
        assert each in said
    assert "'text'" not in said


def test_text_stays_text_where_the_template_takes_both() -> None:
    assert text(shapes.TEXT_OR_PARTS, HI) == "<t>user\nhi</t>\n"


REASONED = {"role": "assistant", "content": "<think>\nIt is 4.\n</think>\n\nFour."}


def test_reasoning_of_earlier_turns_may_be_left_out() -> None:
    said = text(shapes.QWEN_3, HI, REASONED, HI)
    assert "Four." in said
    assert "It is 4." not in said
    only_reasoning = {"role": "assistant", "content": "<think>\nIt is 4.\n</think>"}
    assert "It is 4." not in text(shapes.QWEN_3, HI, only_reasoning, HI)


def test_reasoning_of_its_own_field_reaches_the_template() -> None:
    for name in ("reasoning_content", "reasoning", "thinking"):
        assert "Hm." in text(shapes.QWEN_3, HI, {**HELLO, name: "Hm."})


def test_a_user_s_text_is_no_reasoning() -> None:
    dropping = shapes.CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    assert "message 1" in refusal(dropping, {"role": "user", "content": "Explain </think> please"})


@pytest.mark.parametrize(
    ("template", "content"),
    [
        (shapes.ESCAPING, "Is 1 < 2 & 'so'?"),
        (shapes.IMAGES, "Look: <image> what is it?"),
        (shapes.SWITCHES, "What is 2 + 2? /no_think"),
        (shapes.CHATML.replace("m.content }}", "m.content | striptags }}"), "<answer>4</answer>"),
        (shapes.NO_SYSTEM, "\n\n  much\n space \n"),
        (shapes.CHATML.replace("m.content }}", "m.content | tojson }}"), 'say "é" \n\t twice'),
        (shapes.CHATML.replace("m.content }}", "m.content.split() | join(' ') }}"), "a\n\n b\tc"),
        (shapes.CHATML.replace("m.content }}", "m.content | tojson(ensure_ascii=True) }}"), "é 漢"),
    ],
)
def test_what_templates_may_change(template: str, content: str) -> None:
    text(template, {"role": "user", "content": content})


@pytest.mark.parametrize(
    "template",
    [
        shapes.CHATML.replace("{{ m.content }}", "{{ m.content[:40] }}"),
        shapes.CHATML.replace("{{ m.content }}", "{{ m.content.split('\n')[0] }}"),
        shapes.CHATML.replace("in messages", "in messages[-2:]"),
    ],
)
def test_text_that_is_cut_is_refused(template: str) -> None:
    long = {"role": "user", "content": "first line\n" + "word " * 50 + "END"}
    assert "message 1" in refusal(template, long, HELLO, HI)


def test_short_texts_are_missed_too() -> None:
    """ "a" stands in every "assistant"."""
    template = (
        "{% for m in messages %}{% if loop.last %}{{ m.content }}{% endif %}{% endfor %}assistant:"
    )
    assert "message 1" in refusal(template, {"role": "user", "content": "a"}, HELLO, HI)


@pytest.mark.parametrize(
    "template",
    [shapes.LLAMA_3_TOOLS, shapes.HERMES_TOOLS, shapes.TEXT_ARGUMENTS, shapes.PLAIN_ARGUMENTS],
)
@pytest.mark.parametrize("arguments", ['{"a": 1, "b": {"c": "é"}}', {"a": 1, "b": {"c": "é"}}])
def test_arguments_are_written_as_json_once(template: str, arguments: Any) -> None:
    call = {**CALL, "tool_calls": [{"function": {"name": "add", "arguments": arguments}}]}
    assert '{"a": 1, "b": {"c": "é"}}' in text(template, HI, call, RESULT)


def test_arguments_one_by_one() -> None:
    assert "<parameter=a>1</parameter>" in text(shapes.ARGUMENT_BY_ARGUMENT, HI, CALL, RESULT)


@pytest.mark.parametrize("arguments", ["", "{}", None, {}])
def test_no_arguments(arguments: Any) -> None:
    call = {**CALL, "tool_calls": [{"function": {"name": "now", "arguments": arguments}}]}
    assert "now" in text(shapes.HERMES_TOOLS, HI, call)
    assert '"parameters": {}' in text(shapes.LLAMA_3_TOOLS, HI, call)


def test_arguments_that_are_no_json_are_refused_where_objects_are_read() -> None:
    call = {**CALL, "tool_calls": [{"function": {"name": "add", "arguments": "{a: 1"}}]}
    assert "no JSON object" in refusal(shapes.LLAMA_3_TOOLS, HI, call)
    assert "{a: 1" in text(shapes.TEXT_ARGUMENTS, HI, call)


@pytest.mark.parametrize("template", [shapes.CHATML, shapes.QWEN_3, shapes.KNOWN_ROLES_ONLY])
def test_calls_that_the_template_does_not_write_are_refused(template: str) -> None:
    message = refusal(template, HI, CALL, HI)
    assert "message 2" in message
    assert "tool calls" in message
    old = {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}}
    assert "tool calls" in refusal(template, HI, old, HI)


def test_a_refusal_of_one_row_is_not_that_of_the_next() -> None:
    strict = (
        "{% for c in messages[1].tool_calls %}{% if c.id | length != 9 %}"
        "{{ raise_exception('ids have 9 characters') }}{% endif %}{% endfor %}"
    )
    template = ChatTemplate(TemplateSource(strict + shapes.HERMES_TOOLS, {}))
    function = {"name": "add", "arguments": "{}"}
    chats: list[Chat] = [
        [HI, {**CALL, "content": "", "tool_calls": [{"id": name, "function": function}]}, RESULT]
        for name in ("short", "call12345", "short")
    ]
    found = template.render(chats, DATE)
    assert [isinstance(each, str) for each in found] == [False, True, False]


def test_what_is_said_beside_a_call_is_not_left_out() -> None:
    beside = {**CALL, "content": "Let me compute that."}
    assert "Let me compute that." in text(shapes.HERMES_TOOLS, HI, beside, RESULT)
    assert "message 2" in refusal(shapes.LLAMA_3_TOOLS, HI, beside, RESULT)


def test_calls_in_the_wrong_form_cost_the_row() -> None:
    wrong: list[Any] = ["add", {"name": "add"}, ["add"], [{"function": {"name": 3}}], [{}]]
    for calls in wrong:
        with pytest.raises(RowError, match="message 2 has"):
            read_messages([HI, {**CALL, "tool_calls": calls}])


def test_the_date_is_the_one_given() -> None:
    assert text(shapes.DATED, HI).startswith("02 Jan 2026\n")


def test_a_template_sees_the_names_of_special_tokens() -> None:
    assert text("{{ name }}: {{ messages[0].content }}", HI, name="packhorse") == "packhorse: hi"


HANGS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% set x = 10 ** (10 ** 10) %}",
]
GROWS = [
    "{{ 'x' * 10 ** 10 }}",
    "{{ '%999999999999d' % 1 }}",
    "{{ messages[0].content.ljust(10 ** 11) }}",
]


@pytest.mark.slow
@pytest.mark.parametrize("template", HANGS)
def test_a_template_that_does_not_end_is_ended(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("packhorse.tokenization.rendering.SECONDS_PER_CHAT", 0.4)
    started = time.monotonic()
    assert "seconds of processor time" in refusal(template + shapes.CHATML, HI)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("template", GROWS)
def test_a_template_that_takes_all_memory_is_refused(template: str) -> None:
    refusal(template + shapes.CHATML, HI)
    assert "hi" in text(shapes.CHATML, HI)


def test_one_row_that_takes_too_long_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("packhorse.tokenization.rendering.SECONDS_PER_CHAT", 0.4)
    template = (
        "{% if 'slow' in messages[0].content %}"
        "{% set x = 10 ** (10 ** (9 + messages | length)) %}{% endif %}" + shapes.CHATML
    )
    chats = [[{"role": "user", "content": each}] for each in ("one", "slow", "three")]
    one, slow, three = ChatTemplate(TemplateSource(template, {})).render(chats, DATE)
    assert isinstance(one, str)
    assert isinstance(slow, RowError)
    assert "seconds" in str(slow)
    assert isinstance(three, str)
    assert "three" in three


def test_the_sandbox_holds() -> None:
    for template in (
        "{{ ''.__class__.__mro__ }}",
        "{{ strftime_now.__self__.__class__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{{ messages.append(1) }}",
        "{{ namespace.__init__.__globals__ }}",
    ):
        found = rendered(template + shapes.CHATML, HI)
        assert isinstance(found, RowError) or found == text(shapes.CHATML, HI)


def test_a_process_that_forked_renders_in_a_process_of_its_own() -> None:
    assert "hi" in text(shapes.CHATML, HI)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if "hi" in text(shapes.CHATML, HI) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "hi" in text(shapes.CHATML, HI)


def test_many_rows_travel_together() -> None:
    template = ChatTemplate(TemplateSource(shapes.CHATML, {}))
    chats = [[{"role": "user", "content": f"row {number} " * 400}] for number in range(3000)]
    found = template.render(chats, DATE)
    assert [str(each).split()[2] for each in found] == [str(number) for number in range(3000)]


def test_the_process_renders_like_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [BRIEF, HI, {**HELLO, "content": "  Hello <b> & 漢.\n"}, HI]
    takes_text = [
        each for each in TAKE_SYSTEM if each not in (shapes.FIRST_PART_ONLY, shapes.DATED)
    ]
    for template in (
        *takes_text,
        "{% generation %}{{ messages[1].content }}{% endgeneration %}",
        "{%- for m in messages %}\n  {%- if loop.index > 2 %}{% break %}{% endif %}\n"
        "    {{- m | tojson(indent=2) }}\n  {% endfor %}\n",
        "{% set d = dict(a=1) %}{{ d.a }}{{ dict.fromkeys('ab') }}{{ tools is none }}",
    ):
        source = TemplateSource(template, {})
        theirs: Any = render_jinja_template(
            [chat], chat_template=template, add_generation_prompt=True
        )
        assert rendering_process().render(source, [{"messages": chat}], DATE) == theirs[0]


@pytest.mark.parametrize(
    ("content", "prompt", "whole"),
    [
        ("a b", "xa bx", True),
        (" a\n", "xax", True),
        ("a\nb", "a b", True),
        ("ab", "a-b", False),
        ('"q"', r"\"q\"", True),
        ("\U0010fffd0\U0010fffc é", r"\udbff\udffd0\udbff\udffc \u00e9", False),
    ],
)
def test_what_stands_in_a_prompt(content: str, prompt: str, whole: bool) -> None:
    assert contains_text(content, prompt) == whole


def test_a_process_that_is_gone_is_started_again() -> None:
    process = RenderingProcess()
    source = TemplateSource(shapes.CHATML, {})
    process.render(source, [{"messages": [HI]}], DATE)
    assert process._process is not None
    process._process.kill()
    process._process.wait()
    (first,) = process.render(source, [{"messages": [HI]}], DATE)
    (second,) = process.render(source, [{"messages": [HI]}], DATE)
    process._end()
    assert isinstance(second, str)
    assert isinstance(first, str)
