"""Messages in the forms in which files store them, nested columns, and token ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from packhorse.config import InputConfig
from packhorse.data import Failure, Request, TokenIds
from packhorse.errors import InputError
from packhorse.inputs import read_rows

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
SHAREGPT = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "hi"}]
Read = Callable[..., list[Request | Failure]]


@pytest.fixture
def read_jsonl(tmp_path: Path) -> Read:
    def read(*rows: Any, **config: Any) -> list[Request | Failure]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(read_rows(path, InputConfig(**config)))

    return read


@pytest.fixture
def read_parquet(tmp_path: Path) -> Read:
    def read(columns: Any, **config: Any) -> list[Request | Failure]:
        path = tmp_path / "rows.parquet"
        pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), path)
        return list(read_rows(path, InputConfig(**config)))

    return read


def contents(rows: list[Request | Failure]) -> list[Any]:
    return [
        (row.code, row.message)
        if isinstance(row, Failure)
        else row.content
        if isinstance(row.content, (str, TokenIds))
        else [dict(message) for message in row.content]
        for row in rows
    ]


def test_messages_in_jsonl(read_jsonl: Read) -> None:
    assert (
        contents(
            read_jsonl(
                {"messages": MESSAGES}, {"messages": json.dumps(MESSAGES)}, {"prompt": MESSAGES}
            )
        )
        == [MESSAGES] * 3
    )
    nested = {"data": {"question": "hi", "chat": {"messages": MESSAGES}}, "data.x": "dotted"}
    for name, expected in (
        ("data.question", "hi"),
        ("data.chat.messages", MESSAGES),
        ("data.x", "dotted"),
    ):
        assert contents(read_jsonl(nested, prompt_column=name)) == [expected]
    (missing,) = read_jsonl(nested, prompt_column="data.answer")
    assert isinstance(missing, Failure)
    assert missing.code == "missing_prompt"


def test_text_that_looks_like_a_list_is_a_prompt(read_jsonl: Read) -> None:
    text = json.dumps(MESSAGES)
    assert contents(read_jsonl({"prompt": text}, {"prompt": "[1] see"})) == [text, "[1] see"]
    assert contents(read_jsonl({"prompt": text}, messages_format="openai")) == [MESSAGES]


def test_sharegpt(read_jsonl: Read) -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    turns = [
        *SHAREGPT,
        {"from": "gpt", "value": "Hello."},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "42"},
    ]
    (row, of_system, plain) = contents(
        read_jsonl(
            {"conversations": turns},
            {"conversations": SHAREGPT[1:], "system": "Be brief."},
            {"messages": MESSAGES},
            messages_format="sharegpt",
        )
    )
    assert [message["role"] for message in row] == [
        "system", "user", "assistant", "assistant", "tool",
    ]  # fmt: skip
    assert row[3]["tool_calls"][0]["function"] == call
    assert of_system == plain == MESSAGES


@pytest.mark.parametrize(
    ("row", "config", "code", "words"),
    [
        ({"messages": SHAREGPT}, {}, "bad_messages", "add --messages-format sharegpt"),
        ({"messages": "x"}, {}, "bad_messages", "which is not JSON"),
        ({"messages": {"role": "user"}}, {}, "bad_messages", "an object"),
        ({"conversations": SHAREGPT}, {}, "missing_prompt", "no 'prompt'"),
        (
            {"conversations": [{"from": "alien", "value": "x"}]},
            {"messages_format": "sharegpt"},
            "bad_messages",
            "is from 'alien'",
        ),
        (
            {"conversations": [{"from": "function_call", "value": "x"}]},
            {"messages_format": "sharegpt"},
            "bad_messages",
            "no JSON object",
        ),
        ({"prompt_token_ids": []}, {}, "empty_prompt", "is empty"),
        ({"prompt_token_ids": [1, "a"]}, {}, "bad_prompt", "got 'a' in place 2"),
        ({"prompt_token_ids": [1, True]}, {}, "bad_prompt", "got true in place 2"),
        ({"prompt_token_ids": "1 2"}, {}, "bad_prompt", "a list of token ids"),
        (
            {"prompt_token_ids": [1], "prompt": "x"},
            {},
            "bad_prompt",
            "both prompt and",
        ),
    ],
)
def test_what_cannot_be_read(
    read_jsonl: Read, row: Any, config: Any, code: str, words: str
) -> None:
    (failure,) = read_jsonl(row, **config)
    assert isinstance(failure, Failure), failure
    assert (failure.code, words in failure.message) == (code, True), failure.message


def test_token_ids(read_jsonl: Read, read_parquet: Read, tmp_path: Path) -> None:
    assert contents(read_jsonl({"prompt_token_ids": [1, 2]})) == [TokenIds((1, 2))]
    assert contents(read_parquet({"prompt_token_ids": [[1, 2]]})) == [TokenIds((1, 2))]
    assert contents(read_parquet({"x": [[1, 2]]}, prompt_column="x")) == [TokenIds((1, 2))]
    lines = [
        {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": [1, 2]}},
        {"custom_id": "b", "url": "/v1/completions", "body": {"prompt": [[1, 2]]}},
    ]
    first, second = read_jsonl(*lines)
    assert isinstance(first, Request)
    assert (first.content, first.bare, first.is_chat) == (TokenIds((1, 2)), True, False)
    assert isinstance(second, Failure)


STRUCT = pa.struct([("role", pa.string()), ("content", pa.string())])


@pytest.mark.parametrize(
    "kind",
    [pa.list_(STRUCT), pa.large_list(STRUCT), pa.list_(pa.map_(pa.string(), pa.string()))],
    ids=str,
)
def test_messages_in_parquet(read_parquet: Read, kind: pa.DataType) -> None:
    values: Any = [MESSAGES]
    if pa.types.is_map(kind.value_type):
        values = [[list(message.items()) for message in MESSAGES]]
    column = pa.array(values, kind)
    assert contents(read_parquet({"messages": column})) == [MESSAGES]
    assert contents(read_parquet({"chat": column}, prompt_column="chat")) == [MESSAGES]


def test_messages_as_json_text_in_tables(read_parquet: Read, tmp_path: Path) -> None:
    text = json.dumps(MESSAGES)
    assert contents(read_parquet({"messages": [text]})) == [MESSAGES]
    path = tmp_path / "rows.csv"
    path.write_text('id,messages\na,"{}"\n'.format(text.replace('"', '""')))
    assert contents(list(read_rows(path, InputConfig()))) == [MESSAGES]
    path.write_text(
        'conversations,system\n"{}",Be brief.\n'.format(json.dumps(SHAREGPT[1:]).replace('"', '""'))
    )
    assert contents(list(read_rows(path, InputConfig(messages_format="sharegpt")))) == [MESSAGES]


def test_sharegpt_in_parquet(read_parquet: Read) -> None:
    columns = {"id": ["a"], "conversations": [SHAREGPT]}
    assert contents(read_parquet(columns, messages_format="sharegpt")) == [MESSAGES]
    with pytest.raises(InputError, match="no column 'prompt'"):
        read_parquet(columns)


def test_nested_columns(read_parquet: Read) -> None:
    columns = {"data": [{"question": "hi", "n": 1, "chat": MESSAGES}]}
    assert contents(read_parquet(columns, prompt_column="data.question")) == ["hi"]
    assert contents(read_parquet(columns, prompt_column="data.chat")) == [MESSAGES]
    for name, words in (
        ("data.answer", "has no field for 'data.answer'"),
        ("data.n", "must hold text, messages or token ids, got int64"),
        ("data", "must hold text, messages or token ids"),
        ("dat.question", "no column 'dat'"),
    ):
        with pytest.raises(InputError, match=words):
            read_parquet(columns, prompt_column=name)
