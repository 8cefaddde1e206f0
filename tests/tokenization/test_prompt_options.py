"""Options of prompts: template options, tools, reasoning, prefills, merged systems, raw prompts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import chat_template_shapes as shapes
import tiny_models
from packhorse.data import Content, Request, TokenIds
from packhorse.errors import ConfigError
from packhorse.inference.output_reader import MarkedCodec, read_output
from packhorse.params.prompt_options import PromptOptions, parse_template_option, parse_thinking
from packhorse.tokenization import HuggingFaceCodec, Refusal, SpecialTextNotice, Tokenizer

ModelWith = Callable[[str], HuggingFaceCodec]
HI = {"role": "user", "content": "hi"}
THINKS = """\
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% else %}<think>
{% endif %}{% endif -%}
"""
"""A template in the format of Qwen's models that reason."""
STRIPS = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def codec_with(llama: Path, tmp_path: Path) -> ModelWith:
    """The tokenizer of the tiny model with another chat template and <think> as tokens."""

    def made(template: str) -> HuggingFaceCodec:
        folder = with_tokens(tmp_path / "model", llama, ("<think>", "</think>"), special=False)
        (folder / "chat_template.jinja").write_text(template)
        return HuggingFaceCodec(folder)

    return made


def encode(
    codec: HuggingFaceCodec,
    content: Content | Sequence[Any],
    options: PromptOptions | None = None,
    notice: SpecialTextNotice | None = None,
    **own: Any,
) -> tuple[int, ...] | Refusal:
    if not isinstance(content, (str, TokenIds)):
        content = tuple(content)
    row = Request(0, "r", 1, content, prompt_options=own)
    tokenizer = Tokenizer(codec, notice=notice, prompts=options or PromptOptions())
    (found,) = tokenizer.encode([row], [10_000])
    return found


def text(codec: HuggingFaceCodec, content: Any, *args: Any, **own: Any) -> str:
    found = encode(codec, content, *args, **own)
    assert isinstance(found, tuple), found
    return str(codec._tokenizer.decode(list(found)))


def refusal(codec: HuggingFaceCodec, content: Any, *args: Any, **own: Any) -> Refusal:
    found = encode(codec, content, *args, **own)
    assert isinstance(found, Refusal), found
    return found


OPEN, CLOSED = "<think>\n", "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("job", "own", "ending"),
    [
        ({}, {}, OPEN),
        ({"template_options": {"enable_thinking": False}}, {}, CLOSED),
        ({"thinking": "off"}, {}, CLOSED),
        ({"thinking": 7}, {}, OPEN),
        ({}, {"thinking": "off"}, CLOSED),
        ({"thinking": "off"}, {"thinking": 7}, OPEN),
        ({"thinking": "off"}, {"template_options": {"enable_thinking": True}}, OPEN),
        ({"template_options": {"enable_thinking": False}}, {"thinking": "on"}, OPEN),
        ({}, {"reasoning_effort": "none"}, CLOSED),
    ],
)
def test_reasoning_is_switched(codec_with: ModelWith, job: Any, own: Any, ending: str) -> None:
    codec = codec_with(THINKS)
    assert text(codec, [HI], PromptOptions(**job), **own).endswith("assistant\n" + ending)


def test_the_prompt_says_whether_reasoning_is_open(codec_with: ModelWith) -> None:
    codec = codec_with(THINKS)
    tokenizer = Tokenizer(codec)

    def is_open(content: Any, **own: Any) -> bool:
        row = Request(0, "r", 1, content, prompt_options=own)
        (ids,) = tokenizer.encode([row], [10_000])
        assert not isinstance(ids, Refusal)
        found = tokenizer.output_format(row, ids)
        assert not isinstance(found, Refusal)
        return found[0].is_open

    started = {"role": "assistant", "content": "<think>\nIt is"}
    ended = {"role": "assistant", "content": "<think>\nIt is</think> 42"}
    assert is_open((HI,))
    assert not is_open((HI,), thinking="off")
    assert is_open((HI, started))
    assert not is_open((HI, ended))
    assert not is_open(({"role": "user", "content": "<think>"},), thinking="off")


def test_a_model_without_reasoning(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    for tags in (("none",), ()):
        options = PromptOptions(thinking_tags=tags)
        row = Request(0, "r", 1, (HI,))
        found = Tokenizer(codec, prompts=options).output_format(row, (5,))
        assert not isinstance(found, Refusal)
        assert (found[0].tags is None) == bool(tags)  # <think> is a token of the vocabulary
    options = PromptOptions(thinking="on", thinking_tags=("none",))
    with pytest.raises(ConfigError, match="thinking must be auto or off, got on"):
        Tokenizer(codec, prompts=options).check_options(print)
    with pytest.raises(ConfigError, match="no switch"):
        Tokenizer(codec, prompts=PromptOptions(thinking="off")).check_options(print)
    assert refusal(codec, [HI], thinking="off").code == "unsupported_option"
    assert "reasoning_effort is 'low'" in refusal(codec, [HI], reasoning_effort="low").message
    with pytest.raises(ConfigError, match="two texts"):
        Tokenizer(codec, prompts=PromptOptions(thinking_tags=("<a>",))).check_options(print)


def test_tags_of_many_tokens_cannot_be_limited(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    options = PromptOptions(thinking=5, thinking_tags=("<why>", "</why>"))
    row = Request(0, "r", 1, (HI,))
    found = Tokenizer(codec, prompts=options).output_format(row, (5,))
    assert isinstance(found, Refusal)
    assert "several tokens" in found.message


def test_unknown_template_options_are_warned_of_once(codec_with: ModelWith) -> None:
    codec, lines = codec_with(THINKS), list[str]()
    notice = SpecialTextNotice(lines.append)
    options = PromptOptions(template_options={"enable_thinkin": False})
    Tokenizer(codec, notice=notice, prompts=options).check_options(lines.append)
    for _ in range(2):
        encode(codec, [HI], None, notice, template_options={"verbose": 1, "enable_thinking": True})
    assert len(lines) == 2
    assert "'enable_thinkin'" in lines[0]
    assert "it reads enable_thinking" in lines[0]
    assert "'verbose'" in lines[1]


def test_tools_are_rendered(codec_with: ModelWith) -> None:
    codec = codec_with(THINKS)
    assert '"name": "weather"' in text(codec, [HI], tools=(TOOL,))
    assert "tools" not in text(codec, [HI])
    described = {"type": "function", "function": {"name": "f", "description": "ends <|im_end|> it"}}
    found = encode(codec, [HI], tools=(described,))
    assert isinstance(found, tuple)
    ends = [place for place, each in enumerate(found) if each == 2]
    assert len(ends) == 2  # of the list of tools and of the message
    assert "ends <|im_end|> it" in codec._tokenizer.decode(list(found))


def test_tools_that_the_template_leaves_out_are_refused(codec_with: ModelWith) -> None:
    found = refusal(codec_with(shapes.CHATML), [HI], tools=(TOOL,))
    assert found.code == "chat_template"
    assert "leaves out the tool 'weather'" in found.message


@pytest.mark.parametrize("template", [shapes.CHATML, STRIPS])
@pytest.mark.parametrize("prefill", ["It is", " It is ", "It\nis \n", "é <|im_end|> x", ""])
def test_a_prefill_is_continued_as_in_transformers(
    codec_with: ModelWith, template: str, prefill: str
) -> None:
    codec = codec_with(template)
    chat = [HI, {"role": "assistant", "content": prefill}]
    ours = text(codec, chat)
    theirs = codec._tokenizer.apply_chat_template(chat, tokenize=False, continue_final_message=True)
    assert ours == theirs
    assert text(codec, chat, final_assistant="continue") == theirs


def test_what_else_becomes_of_a_last_answer(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    chat = [HI, {"role": "assistant", "content": "It is"}]
    asked = text(codec, [HI])
    assert text(codec, chat, PromptOptions(final_assistant="drop")) == asked
    assert "It is<|im_end|>\n<|im_start|>assistant\n" in text(codec, chat, final_assistant="answer")
    closed = text(codec, chat, final_assistant="answer", add_generation_prompt=False)
    assert closed.endswith("It is<|im_end|>\n")
    assert refusal(codec, chat[1:], final_assistant="drop").code == "empty_prompt"
    found = refusal(codec, [HI], final_assistant="continue")
    assert "needs a last message of the assistant" in found.message


def test_a_prefill_that_the_template_changes_is_refused(codec_with: ModelWith) -> None:
    changed = shapes.CHATML.replace("{{ m.content }}", "{{ m.content | replace('i', 'j') }}")
    codec = codec_with(changed)
    found = refusal(codec, [HI, {"role": "assistant", "content": "It is"}])
    assert found.code == "chat_template"


def test_system_messages_are_merged_where_there_is_no_such_role(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.NO_SYSTEM)
    chat = [{"role": "system", "content": "Be brief."}, HI]
    assert refusal(codec, chat).code == "chat_template"
    merged = text(codec, chat, PromptOptions(merge_system=True))
    assert merged == text(codec, [{"role": "user", "content": "Be brief.\n\nhi"}])
    row = Request(0, "r", 1, (HI, HI))
    tokenizer = Tokenizer(codec, "Be brief.", prompts=PromptOptions(merge_system=True))
    tokenizer.check()
    (found,) = tokenizer.encode([row], [1000])
    assert isinstance(found, Refusal)
    assert "message 2" in found.message


def test_system_messages_stay_where_the_template_takes_them(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    chat = [{"role": "system", "content": "Be brief."}, HI]
    assert text(codec, chat, PromptOptions(merge_system=True)) == text(codec, chat)


def test_raw_prompts(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    chat = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    raw = PromptOptions(raw_prompts=True)
    assert encode(codec, chat, raw) == encode(codec, [HI])
    assert encode(codec, chat) != encode(codec, [HI])
    row = Request(0, "r", 1, chat)
    whole = encode(codec, chat, raw)
    assert isinstance(whole, tuple)
    for where, part in (("truncate-left", whole[-5:]), ("truncate-right", whole[:5])):
        tokenizer = Tokenizer(codec, None, where, prompts=raw)  # type: ignore[arg-type]
        assert tokenizer.encode([row], [5]) == [part]
    with pytest.raises(ConfigError, match="rendered already"):
        Tokenizer(codec, "Be brief.", prompts=raw).check_options(print)


def test_token_ids(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    assert encode(codec, TokenIds((5, 1, 301))) == (5, 1, 301)
    for strange in (302, -1, 10**9):
        found = refusal(codec, TokenIds((5, strange)))
        assert (found.code, str(strange) in found.message) == ("bad_token_ids", True)


def test_a_template_of_its_own_for_tools(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    codec._tokenizer.chat_template = {"default": shapes.CHATML, "tool_use": THINKS}
    assert "weather" in text(codec, [HI], tools=(TOOL,))
    assert "think" not in text(codec, [HI])


def test_options_of_the_command_line() -> None:
    assert parse_template_option("a=false") == ("a", False)
    assert parse_template_option("a=x=y") == ("a", "x=y")
    thinking = ["auto", "off", "on", 12]
    assert [parse_thinking(str(each)) for each in thinking] == thinking
    for wrong in ("", "=1", "a"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            parse_template_option(wrong)
    for wrong in ("-1", "many"):
        with pytest.raises(ValueError, match="a number of tokens"):
            parse_thinking(wrong)


def test_options_of_the_template_need_one(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    raw = PromptOptions(raw_prompts=True)
    own: dict[str, Any]
    for own in (
        {"template_options": {"x": 1}},
        {"thinking": "on"},
        {"reasoning_effort": "low"},
        {"final_assistant": "answer"},
    ):
        for content in ("a", TokenIds((5,))):
            assert "needs a chat template" in refusal(codec, content, raw, **own).message
    assert isinstance(encode(codec, "a", raw, tools=(TOOL,), thinking=5), tuple)


def test_a_message_that_is_continued_is_not_cut(codec_with: ModelWith) -> None:
    codec = codec_with(shapes.CHATML)
    row = Request(0, "r", 1, ({**HI, "content": "x " * 50}, {"role": "assistant", "content": "It"}))
    (found,) = Tokenizer(codec, None, "truncate-left").encode([row], [40])
    assert isinstance(found, tuple)
    assert len(found) <= 40
    assert str(codec._tokenizer.decode(list(found))).endswith("assistant\nIt")


def with_tokens(folder: Path, source: Path, texts: Sequence[str], *, special: bool) -> Path:
    """A copy of a model whose tokenizer has further tokens, from id 300 on."""
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    token = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    stored["added_tokens"] += [
        {"id": 300 + place, "content": text, "special": special, **token}
        for place, text in enumerate(texts)
    ]
    file.write_text(json.dumps(stored))
    return folder


@pytest.mark.parametrize(
    ("tokens", "output", "expected"),
    [
        (("[THINK]", "[/THINK]"), "[THINK]so[/THINK]42", ("so", "42")),
        (
            ("<|channel|>", "<|message|>", "<|end|>", "<|start|>"),
            "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>42",
            ("so", "42"),
        ),
    ],
)
def test_tags_that_are_special_tokens(
    llama: Path, tmp_path: Path, tokens: Sequence[str], output: str, expected: tuple[str, str]
) -> None:
    codec = HuggingFaceCodec(with_tokens(tmp_path / "model", llama, tokens, special=True))
    row = Request(0, "r", 1, (HI,))
    tokenizer = Tokenizer(codec, prompts=PromptOptions(thinking=2))
    (ids,) = tokenizer.encode([row], [1000])
    assert not isinstance(ids, Refusal)
    found = tokenizer.output_format(row, ids)
    assert not isinstance(found, Refusal)
    form, forced = found
    (generated,) = codec.encode_rendered([output])
    raw = MarkedCodec(codec, form.keep).decode(generated)
    assert raw == output
    assert codec.decode(generated) != output  # special tokens are no text elsewhere
    read = read_output(codec, form, generated, raw, "r")
    assert (read.reasoning, read.text) == expected
    end = codec.encode_rendered(["[/THINK]" if "[/THINK]" in tokens else "<|end|>"])[0][0]
    assert read.reasoning_tokens == generated.index(end) + 1
    assert forced is not None
    start = codec.encode_rendered([output.partition("so")[0]])[0]
    limited = list(start)
    for _ in range(20):
        token = forced.next(limited)
        limited.append(5 if token is None else token)
    text = MarkedCodec(codec, form.keep).decode(limited)
    cut = read_output(codec, form, limited, text, "r")
    assert cut.reasoning == codec.decode((5, 5)).strip()
    assert cut.text
