"""What one row may hold: content, options, templates, OpenAI requests; and its key."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from input_files import Row, batch_line, chat, jsonl, read_content, summary
from packhorse.data import Request, id_to_json
from packhorse.errors import ConfigError
from packhorse.openai_format import batch_lines


@pytest.fixture
def read(tmp_path: Path) -> Any:
    return partial(read_content, tmp_path)


# --- content and options ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_messages", "expected"),
    [
        ([{"role": "user", "content": "x"}], None),
        ([{"role": "system", "content": "only this"}], None),
        ([{"role": "user", "content": "x", "name": "eve", "extra": [{"deep": 1}]}], None),
        ([{"role": "user", "content": "x", "name": None}], [{"role": "user", "content": "x"}]),
        (
            [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a ", "b")]}],
            [{"role": "user", "content": "a b"}],
        ),
        (
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "", "tool_call_id": "1"},
            ],
            [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
                {"role": "tool", "content": "", "tool_call_id": "1"},
            ],
        ),
    ],
)
def test_messages(read: Any, given_messages: Any, expected: Any) -> None:
    (row,) = read("a.jsonl", jsonl({"messages": given_messages}))
    assert row.content == tuple(expected or given_messages)
    assert not row.bare


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"max_new_tokens": None, "stop": None}, {}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_new_tokens": 5}),
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"top_p": 1, "top_k": 0, "seed": 0}, {"top_p": 1.0, "top_k": 0, "seed": 0}),
        ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {"stop": ()}),
        ({"tools": [], "response_format": {"type": "text"}, "enable_thinking": None}, {}),
        ({"top_k": -1, "seed": -1, "top_p": 0}, {"top_k": -1, "seed": -1, "top_p": 0.0}),
        ({"n": 2, "min_p": 0, "echo": False}, {"n": 2, "min_p": 0.0, "echo": False}),
        ({"logit_bias": {"7": 1, "5": -100}}, {"logit_bias": ((5, -100.0), (7, 1.0))}),
        ({"stop_token_ids": [3], "ignore_eos": True}, {"stop_token_ids": (3,), "ignore_eos": True}),
        ({"bad_words": "x", "suppress_tokens": []}, {"bad_words": ("x",), "suppress_tokens": ()}),
        ({"prompt_logprobs": 0, "min_tokens": 0}, {"prompt_log_probs": 0, "min_tokens": 0}),
        ({"label": "ignored", "temperature": None, "n": 1, "chat_template_kwargs": {}}, {}),
        ({"model": "m", "user": "u", "top_k": 2}, {"top_k": 2}),
    ],
)
def test_options(read: Any, options: Any, expected: Any) -> None:
    (row,) = read("a.jsonl", jsonl({"prompt": "x"} | options))
    assert row.options == expected
    assert {name: type(value) for name, value in row.options.items()} == {
        name: type(value) for name, value in expected.items()
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{"type": "custom", "custom": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
        ("structured_outputs", {"other": "x"}),
        ("guided_anything", "x"),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("documents", [{"text": "x"}]),
    ],
)
def test_an_option_that_cannot_be_honoured_is_named(read: Any, name: str, value: Any) -> None:
    (row,) = read("a.jsonl", jsonl({"prompt": "x", name: value}))
    assert (row.code, name in row.message) == ("unsupported_option", True)
    (row,) = read("a.jsonl", jsonl({"prompt": "x", "label": "y", name: value}))
    assert (row.code, name in row.message) == ("ambiguous_option", True)
    (row,) = read("a.jsonl", jsonl({"prompt": "x", name: value}), row_options="no")
    assert row.options == {}
    (row,) = read("a.jsonl", jsonl({"q": "x", name: "data"}), template="{q} {" + name + "}")
    assert (row.content, row.options) == ("x data", {})


@pytest.mark.parametrize("field", ["seed", "temperature", "stop", "max_tokens", "min_tokens"])
def test_options_beside_unknown_fields_may_be_data(read: Any, field: str) -> None:
    value = "." if field == "stop" else 1
    fields = {"id": "a", "prompt": "x", "label": "y", field: value}
    (row,) = read("a.jsonl", jsonl(fields))
    assert row.code == "ambiguous_option"
    for each in (repr(field), "'label'", "--row-options yes", "--row-options no"):
        assert each in row.message
    (row,) = read("a.jsonl", jsonl(fields), row_options="yes")
    assert len(row.options) == 1
    (row,) = read("a.jsonl", jsonl(fields), row_options="no")
    assert row.options == {}
    (row,) = read("a.jsonl", jsonl({"q": "x", "r": "y", field: value}), template="{q}")
    assert row.code == "ambiguous_option"


@pytest.mark.parametrize(
    ("config", "fields", "content"),
    [
        ({"template": "{temperature} {seed}"}, {"temperature": -5, "seed": "no"}, "-5 no"),
        ({"template": "{temperature}"}, {"temperature": 25}, "25"),
        ({"prompt_column": "stop"}, {"stop": "the end"}, "the end"),
    ],
)
def test_what_the_prompt_is_made_of_is_no_option(
    read: Any, config: Any, fields: Any, content: str
) -> None:
    (row,) = read("a.jsonl", jsonl(fields | {"top_k": 3}), **config)
    assert (row.content, row.options) == (content, {"top_k": 3})


@pytest.mark.parametrize(
    ("template", "fields", "expected"),
    [
        ("Sum: {text}", {"text": "x", "prompt": "unused"}, "Sum: x"),
        ("{{{a b}}} {a b}", {"a b": "x"}, "{x} x"),
        ("{a}{b}", {"a": "", "b": "{a}"}, "{a}"),
        ("{n} {f} {t}", {"n": 3, "f": 0.1, "t": True}, "3 0.1 true"),
        ("{a}", {"b": "x"}, "missing_field"),
        ("{a}", {"a": None}, "missing_field"),
        ("{n}", {"n": 10**30}, "1" + "0" * 30),
        ("{a}", {"a": ["x"]}, "bad_field"),
        ("{a}", {"a": float("nan")}, "bad_field"),
        ("Sum: {a}", {"a": " "}, "empty_prompt"),
    ],
)
def test_template(read: Any, template: str, fields: Any, expected: str) -> None:
    (row,) = read("a.jsonl", jsonl(fields), template=template)
    assert summary(row)[2] == expected


def test_a_null_field_is_not_called_absent(read: Any) -> None:
    absent, null = read("a.jsonl", jsonl({"b": "x"}, {"a": None}), template="{a}")
    assert "the row has no 'a'" in absent.message
    assert "'a' is null" in null.message


@pytest.mark.parametrize(
    "template",
    ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>10}", "{a:{b}}", "{}", "{ }", "{a", "a}", "none", ""],
)
def test_template_that_is_refused(read: Any, template: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read("a.jsonl", '{"a": "x"}', template=template)
    assert "template" in str(raised.value)
    assert raised.value.hint


def test_template_and_prompt_column_of_text_and_jsonl(read: Any) -> None:
    assert read("a.txt", "x", template="Why {text}?")[0].content == "Why x?"
    assert read("a.txt", "x", template="Why {prompt}?")[0].content == "Why x?"
    assert read("a.jsonl", '{"q": "x", "prompt": "y"}', prompt_column="q")[0].content == "x"
    assert read("a.jsonl", '{"prompt": "y"}', prompt_column="q")[0].code == "missing_prompt"


# --- OpenAI batch lines ----------------------------------------------------------------------


def test_openai_requests(read: Any) -> None:
    rows = read(
        "a.jsonl",
        jsonl(
            batch_line(chat("hi", model="m", max_tokens=3, n=1, stream=False, tools=[], user="u")),
            batch_line({"prompt": "once", "temperature": 0}, "/v1/completions", custom_id="b"),
            batch_line({"prompt": "upon"}, None, custom_id=3, method=None),
            batch_line(chat([{"type": "text", "text": "x"}]), custom_id=None),
        ),
    )
    assert [(row.id, row.content, row.options, row.bare) for row in rows] == [
        ("a", ({"role": "user", "content": "hi"},), {"max_new_tokens": 3, "n": 1}, False),
        ("b", "once", {"temperature": 0.0}, True),
        (3, "upon", {}, True),
        ("line-4", ({"role": "user", "content": "x"},), {}, False),
    ]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (batch_line(chat(n=129)), "bad_option", "n must be an integer from 1 to 128, got 129"),
        (batch_line(chat(n=True)), "bad_option", "n must be an integer from 1 to 128, got true"),
        (batch_line(chat(echo=True)), "bad_option", "echo"),
        (batch_line(chat(min_p=1.1)), "bad_option", "min_p"),
        (batch_line(chat(repetition_penalty=0)), "bad_option", "above 0"),
        (batch_line(chat(stop_token_ids=[-1])), "bad_option", "stop_token_ids must be a list"),
        (batch_line(chat(suppress_tokens=["a"])), "bad_option", "suppress_tokens must be a list"),
        (batch_line(chat(bad_words=[""])), "bad_option", "bad_words"),
        (batch_line(chat(ignore_eos=1)), "bad_option", "ignore_eos must be true or false, got 1"),
        (batch_line(chat(logprobs=0)), "bad_option", "logprobs must be true or false, got 0"),
        (batch_line(chat(top_logprobs=2)), "bad_option", "top_logprobs needs logprobs"),
        (batch_line(chat(logprobs=True, top_logprobs=21)), "bad_option", "from 0 to 20"),
        (
            batch_line({"prompt": "x", "logprobs": True}, "/v1/completions"),
            "bad_option",
            "logprobs must be an integer from 0 to 20, got true",
        ),
        (
            batch_line({"prompt": "x", "top_logprobs": 1}, "/v1/completions"),
            "bad_option",
            "only valid for chats",
        ),
        (batch_line(chat(tools=[{}])), "bad_option", "tools[0] must be a function"),
        (batch_line(chat(response_format={"type": "xml"})), "bad_option", "json_schema, got 'xml'"),
        (batch_line(chat(stream=True)), "unsupported_option", "stream"),
        (batch_line(chat(presence_penalty=2.5)), "bad_option", "2.5"),
        (batch_line(chat(frequency_penalty=-3)), "bad_option", "-3"),
        (batch_line(chat(logit_bias={"5": 101})), "bad_option", "logit_bias"),
        (batch_line(chat(logit_bias={"x": 1})), "bad_option", "logit_bias"),
        (batch_line(chat(tool_choice="required")), "unsupported_option", "'required'"),
        (batch_line(chat(never_heard_of=1)), "unsupported_option", "never_heard_of"),
        (batch_line(chat(prompt="x")), "unsupported_option", "prompt"),
        (batch_line(chat(), method="GET"), "unsupported_option", "'GET'"),
        (batch_line(chat(), "/v1/embeddings"), "unsupported_url", "'/v1/embeddings'"),
        (batch_line(chat(), 5), "unsupported_url", "5"),
        (batch_line(None), "bad_body", "null"),
        (batch_line("x"), "bad_body", "'x'"),
        (batch_line({}), "missing_prompt", "no messages"),
        (batch_line({}, "/v1/completions"), "missing_prompt", "no prompt"),
        (batch_line({"prompt": ["x"]}, "/v1/completions"), "bad_prompt", "a list"),
        (batch_line(chat([{"type": "input_audio"}])), "unsupported_content", "'input_audio'"),
        (batch_line(chat(temperature=-1)), "bad_option", "temperature"),
        (batch_line(chat(), custom_id=[1]), "bad_id", "a list"),
    ],
)
def test_openai_faults(read: Any, line: Any, code: str, words: str) -> None:
    failure, after = read("a.jsonl", jsonl(line, batch_line(chat(), custom_id="after")))
    assert (failure.id, failure.code) == ("line-1" if code == "bad_id" else "a", code)
    assert words in failure.message
    assert after.id == "after"


def test_null_and_neutral_options_of_openai_are_no_fault(read: Any) -> None:
    neutral = {
        "n": 1,
        "logprobs": None,
        "top_logprobs": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "tool_choice": "auto",
        "whatever": None,
    }
    assert isinstance(read("a.jsonl", jsonl(batch_line(chat(**neutral))))[0], Request)


@pytest.mark.parametrize(
    ("body", "url", "wanted"),
    [
        (chat(logprobs=True), "/v1/chat/completions", 0),
        (chat(logprobs=True, top_logprobs=20), "/v1/chat/completions", 20),
        (chat(logprobs=False), "/v1/chat/completions", None),
        ({"prompt": "x", "logprobs": 0}, "/v1/completions", 0),
        ({"prompt": "x", "logprobs": 5}, "/v1/completions", 5),
        ({"prompt": "x", "logprobs": None}, "/v1/completions", None),
    ],
)
def test_log_probs_of_openai(read: Any, body: Any, url: str, wanted: int | None) -> None:
    (row,) = read("a.jsonl", jsonl(batch_line(body, url)))
    assert row.options == ({} if wanted is None else {"top_log_probs": wanted})


OTHER_MODEL = jsonl(
    batch_line(chat(model="tiny"), custom_id="a"),
    batch_line(chat(model="other"), custom_id="b"),
    batch_line(chat(), custom_id="c"),
    batch_line(chat(model=None), custom_id="d"),
    batch_line(chat(model=5), custom_id="e"),
)


@pytest.mark.parametrize(
    ("names", "refused"),
    [
        ((), {}),
        (("tiny",), {"b": "model_not_found", "e": "bad_option"}),
        (("x", "TINY"), {"b": "model_not_found", "e": "bad_option"}),
        (("tiny", "other"), {"e": "bad_option"}),
    ],
)
def test_a_batch_line_of_another_model_is_refused(read: Any, names: Any, refused: Any) -> None:
    rows = read("a.jsonl", OTHER_MODEL, served_model_name=names)
    found = {row.id: row.code for row in rows if not isinstance(row, Request)}
    assert found == refused
    for row in rows:
        if not isinstance(row, Request) and row.code == "model_not_found":
            assert f"model must be '{names[0]}'" in row.message
            assert "got 'other'" in row.message
            assert "--served-model-name 'other'" in row.message


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("smollm2-135m-instruct", {"smollm2-135m-instruct"}),
        ("Qwen/Qwen2.5-0.5B", {"Qwen/Qwen2.5-0.5B", "Qwen2.5-0.5B"}),
        ("a/b.c@main", {"a/b.c@main", "a/b.c", "b.c"}),
        ("/models/tiny/", {"/models/tiny/", "tiny"}),
        ("/x@y/tiny", {"/x@y/tiny", "tiny"}),
        ("./m/Tiny-Q4.gguf", {"./m/Tiny-Q4.gguf", "Tiny-Q4.gguf", "Tiny-Q4"}),
        (
            "/hub/models--org--Tiny-1B/snapshots/0123abcd",
            {"/hub/models--org--Tiny-1B/snapshots/0123abcd", "0123abcd", "org/Tiny-1B", "Tiny-1B"},
        ),
    ],
)
def test_names_of_a_model(model: str, names: set[str]) -> None:
    assert set(batch_lines.model_names(model)) == names
    assert batch_lines.model_names(model)[0] == model
    assert set(batch_lines.model_names(model, ["gpt-4o-mini"])) == names | {"gpt-4o-mini"}


def test_a_folder_given_as_a_dot_has_the_name_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path / "tiny")
    assert batch_lines.model_names(".") == (".", "tiny")


def test_log_probs_are_no_option_of_other_rows(read: Any) -> None:
    (row,) = read("a.jsonl", jsonl({"prompt": "x", "top_log_probs": 3}))
    assert row.options == {}


# --- ids ---

EXACT_NUMBERS = [
    "7", "0", "-0", "-0.0", "1.0", "1.50", "0.1", "1e3", "1E+03", "1e999", "1e-999", "-2.50e-7",
    "9223372036854775808", "18446744073709551615", "18446744073709551616", "-" + "9" * 300,
    "0.12345678901234567890123",
]  # fmt: skip


@pytest.mark.parametrize("envelope", [False, True], ids=["jsonl", "batch"])
def test_ids_that_are_numbers_keep_their_text(read: Any, envelope: bool) -> None:
    row = '{"id": %s, "prompt": "x", "temperature": 1.50}'
    if envelope:
        row = '{"custom_id": %s, "url": "/v1/completions", "body": {"prompt": "x"}}'
    rows = read("a.jsonl", "\n".join(row % number for number in EXACT_NUMBERS))
    assert [str(row.id) for row in rows] == EXACT_NUMBERS
    assert [id_to_json(row.id) for row in rows] == EXACT_NUMBERS
    assert all(isinstance(row, Request) and row.has_own_id for row in rows)
    assert len(set(keys(rows))) == len(rows)


def test_the_text_of_a_number_is_another_row_than_the_number(read: Any) -> None:
    number, text = read("a.jsonl", '{"id": 1.0, "prompt": "x"}\n{"id": "1.0", "prompt": "x"}')
    assert (id_to_json(number.id), id_to_json(text.id)) == ("1.0", '"1.0"')
    assert number.key != text.key


def test_rows_say_whether_their_id_is_their_own(read: Any) -> None:
    rows = read("a.jsonl", '{"id": 1, "prompt": "x"}\n{"prompt": "x"}\n{"id": 2}\n{\n')
    assert [row.has_own_id for row in rows] == [True, False, True, False]


# --- keys ------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"id": "a", "prompt": "x"},
    {"id": 1, "prompt": "x"},
    {"id": "1", "prompt": "x"},
    {"prompt": "x"},
    {"prompt": "x", "temperature": 1},
    {"messages": [{"role": "user", "content": "x"}]},
    {"prompt": ""},
    {"id": "b"},
    {"prompt": "y"},
]


def keys(rows: list[Row]) -> list[str]:
    return [row.key for row in rows]


def test_keys_differ(read: Any) -> None:
    assert len(set(keys(read("a.jsonl", jsonl(*ROWS))))) == len(ROWS)


def test_keys_follow_their_rows(read: Any) -> None:
    before = keys(read("a.jsonl", jsonl(*ROWS)))
    assert keys(read("b.jsonl", jsonl(*reversed(ROWS)))) == before[::-1]
    assert keys(read("c.jsonl", jsonl({"prompt": "new"}, *ROWS)))[1:] == before
    for place in range(len(ROWS)):
        edited = [*ROWS[:place], ROWS[place] | {"prompt": "other"}, *ROWS[place + 1 :]]
        edited[place].pop("messages", None)
        after = keys(read("d.jsonl", jsonl(*edited)))
        assert [n for n in range(len(ROWS)) if after[n] != before[n]] == [place]


def test_keys_do_not_depend_on_how_a_row_is_written(read: Any) -> None:
    written = ['{"prompt":"\\u00e9","temperature":1}', ' {"temperature": 1.0, "prompt": "é"}']
    assert keys(read("a.jsonl", written[0])) == keys(read("b.jsonl", written[1]))
    assert keys(read("a.jsonl", '{"prompt": "x"}')) == keys(read("a.txt", "x"))


def test_a_key_holds_what_the_template_made(read: Any) -> None:
    row = '{"text": "x"}'
    one, two = (read("a.jsonl", row, template=template)[0] for template in ("A {text}", "B {text}"))
    assert one.key != two.key
    assert one.key == read("a.jsonl", row, template="A {text}", system="s")[0].key


def test_bare_prompts_have_keys_of_their_own(read: Any) -> None:
    (bare,) = read("a.jsonl", jsonl(batch_line({"prompt": "x"}, "/v1/completions")))
    (templated,) = read("b.jsonl", '{"id": "a", "prompt": "x"}')
    assert (bare.id, bare.content) == (templated.id, templated.content)
    assert bare.key != templated.key


@pytest.mark.parametrize("line", ['{"prompt": "x"}', '{"prompt": ""}', "{"])
def test_equal_rows_without_ids_are_counted(read: Any, line: str) -> None:
    first, second, third = keys(read("a.jsonl", f"{line}\n{line}\n{line}\n"))
    assert [second, third] == [f"{first}-2", f"{first}-3"]
