"""Reasoning and tool calls in outputs: what is read at once, and the pieces of a stream."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packhorse.inference.output_reader import ContentStream, ReasoningSplitter, read_output
from packhorse.openai_format.tool_calls import read_tool_calls
from packhorse.tokenization import ByteCodec, OutputFormat
from packhorse.tokenization.output_format import KNOWN_TAGS, ReasoningTags

THINK = KNOWN_TAGS[0]
HARMONY = KNOWN_TAGS[-1]
ANALYSIS, FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
AGAIN = "<|end|><|start|>assistant"


def split(text: str, tags: ReasoningTags, *, is_open: bool, cuts: Any = ()) -> tuple[str, str]:
    splitter = ReasoningSplitter(tags, is_open)
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts = []
    for start, end in itertools.pairwise(places):
        parts += splitter.add(text[start:end])
    parts += splitter.finish()
    return (
        "".join(piece for kind, piece in parts if kind == "reasoning"),
        "".join(piece for kind, piece in parts if kind == "text"),
    )


@pytest.mark.parametrize(
    ("text", "tags", "is_open", "expected"),
    [
        ("<think>a</think>b", THINK, False, ("a", "b")),
        ("\n<think>\na b\n</think>\n\n b\n", THINK, False, ("a b", "b\n")),
        ("a\n</think>\n\nb", THINK, True, ("a", "b")),
        ("<think>\na</think>b", THINK, True, ("a", "b")),
        ("a, never ends", THINK, True, ("a, never ends", "")),
        ("<think>never", THINK, False, ("never", "")),
        (" no reasoning </think> here ", THINK, False, ("", " no reasoning </think> here ")),
        ("<thin", THINK, False, ("", "<thin")),
        ("a</thin", THINK, True, ("a</thin", "")),
        ("<think></think>b", THINK, False, ("", "b")),
        ("<think>a</think>", THINK, False, ("a", "")),
        ("<think>a</think><think>b</think>c", THINK, False, ("a", "<think>b</think>c")),
        ("", THINK, True, ("", "")),
        ("[THINK]a[/THINK]b", KNOWN_TAGS[1], False, ("a", "b")),
        (f"{ANALYSIS}a{AGAIN}{FINAL}b", HARMONY, False, ("a", "b")),
        (f"{ANALYSIS}a{AGAIN}{ANALYSIS}c{AGAIN}{FINAL}b", HARMONY, False, ("a\n\nc", "b")),
        (f"{FINAL}b", HARMONY, False, ("", "b")),
        (f"{ANALYSIS}a", HARMONY, False, ("a", "")),
    ],
)
def test_splitting(text: str, tags: ReasoningTags, is_open: bool, expected: Any) -> None:
    assert split(text, tags, is_open=is_open) == expected
    assert split(text, tags, is_open=is_open, cuts=range(len(text))) == expected


PIECES = ["<think>", "</think>", "<thi", "</", ">", " ", "\n", "a", "b c", ANALYSIS, FINAL, AGAIN]


@given(
    st.lists(st.sampled_from(PIECES), max_size=12).map("".join),
    st.sampled_from([THINK, HARMONY]),
    st.booleans(),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_a_stream_splits_as_the_whole(text: str, tags: Any, is_open: bool, cuts: Any) -> None:
    assert split(text, tags, is_open=is_open, cuts=cuts) == split(text, tags, is_open=is_open)


CALL = {"name": "f", "arguments": {"x": [1, "</tool_call>"]}}
JSON = json.dumps(CALL)
LLAMA = json.dumps({"name": "f", "parameters": {"x": 1}})


@pytest.mark.parametrize(
    ("name", "text", "rest", "calls"),
    [
        ("hermes", f"<tool_call>\n{JSON}\n</tool_call>", "", [CALL["arguments"]]),
        ("hermes", f"Hi.\n<tool_call>{JSON}</tool_call>\n", "Hi.", [CALL["arguments"]]),
        (
            "hermes",
            f"a <tool_call>{JSON}</tool_call> b <tool_call>{JSON}",
            "a\nb",
            [CALL["arguments"]] * 2,
        ),
        ("hermes", f"<tool_call>{JSON}, and more", None, []),
        ("hermes", '<tool_call>{"name": 3}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name": "f", "arguments": 3}</tool_call>', None, []),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [{}]),
        ("hermes", "no call", None, []),
        ("mistral", f"[TOOL_CALLS][{JSON}, {JSON}]", "", [CALL["arguments"]] * 2),
        ("mistral", 'Hm.[TOOL_CALLS]f[ARGS]{"x": 1}', "Hm.", [{"x": 1}]),
        ("mistral", '[TOOL_CALLS]f{"x": 1}[TOOL_CALLS]g[ARGS]{}', "", [{"x": 1}, {}]),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"x": 1}', "", [{"x": 1}]),
        ("mistral", "[TOOL_CALLS]what?", None, []),
        ("llama3", LLAMA, "", [{"x": 1}]),
        ("llama3", f" {LLAMA}; {LLAMA}\n", "", [{"x": 1}] * 2),
        ("llama3", f"<|python_tag|>{LLAMA}", "", [{"x": 1}]),
        ("llama3", '{"name": "unknown", "parameters": {}}', None, []),
        ("llama3", '{"answer": 42}', None, []),
        ("llama3", f"{LLAMA} and text", None, []),
        ("llama3", "<|python_tag|>print(1)", None, []),
    ],
)
def test_tool_calls(name: Any, text: str, rest: str | None, calls: list[Any]) -> None:
    content, found = read_tool_calls(text, name, {"f", "g"}, "row")
    assert [json.loads(call.arguments) for call in found] == calls
    assert content == (text if rest is None else rest)
    assert len({call.id for call in found}) == len(found)
    assert read_tool_calls(text, name, {"f", "g"}, "row")[1] == found
    assert len(read_tool_calls(text, name, {"f", "g"}, "row", parallel=False)[1]) <= 1
    form = OutputFormat(tool_format=name, tool_names=frozenset({"f", "g"}))
    for size in (1, 3, 1000):
        stream = ContentStream(form, "row")
        given_ = "".join(stream.add(text[at : at + size]) for at in range(0, len(text), size))
        rest_, streamed = stream.finish()
        assert (given_ + rest_, streamed) == (content, found)


def test_ids_of_mistral_have_nine_characters() -> None:
    _, (call,) = read_tool_calls(f"[TOOL_CALLS][{JSON}]", "mistral", {"f"}, "row")
    assert len(call.id) == 9
    assert call.id.isalnum()


def test_reading_counts_tokens() -> None:
    codec = ByteCodec()
    form = OutputFormat(tags=THINK, tool_format="hermes", tool_names=frozenset({"f"}))
    raw = f"<think>why</think> so <tool_call>{JSON}</tool_call>"
    read = read_output(codec, form, codec.encode_fragment(raw), raw, "row")
    assert (read.reasoning, read.content) == ("why", "so")
    assert read.text == f"so <tool_call>{JSON}</tool_call>"
    assert read.reasoning_tokens == len("<think>why</think>")
    assert [read.finish_reason("stop"), read.finish_reason("length")] == ["tool_calls", "length"]
    for text, tokens in (("no", 0), ("<think>no end", 13)):
        found = read_output(codec, form, codec.encode_fragment(text), text, "row")
        assert found.reasoning_tokens == tokens
