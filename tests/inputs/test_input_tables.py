"""CSV and Parquet inputs."""

from __future__ import annotations

import csv
import io
import uuid
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from input_files import Row, read_content, summary
from packhorse.config import InputConfig
from packhorse.data import Request, id_to_json
from packhorse.errors import InputError
from packhorse.inputs import lines, read_rows


@pytest.fixture
def read_csv(tmp_path: Path) -> Any:
    def read(content: bytes | str, name: str = "a.csv", **config: Any) -> list[Row]:
        return read_content(tmp_path, name, content, **config)

    return read


@pytest.fixture
def read_parquet(tmp_path: Path) -> Any:
    def read(columns: dict[str, Any] | pa.Table, **config: Any) -> list[Row]:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / "a.parquet")
        return list(read_rows(tmp_path / "a.parquet", InputConfig(**config)))

    return read


# --- CSV -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "config", "expected"),
    [
        ("prompt\nx\ny\n", {}, [("row-1", 2, "x"), ("row-2", 3, "y")]),
        ("\ufeffid,prompt\r\na,x\r\n", {}, [("a", 2, "x")]),
        ("id,text\n,x\n7,y", {}, [("row-1", 2, "x"), ("7", 3, "y")]),
        ("text,prompt\nx,y\n", {}, [("row-1", 2, "y")]),
        ("prompt, q \nx,y\n", {"prompt_column": "q"}, [("row-1", 2, "y")]),
        (
            'prompt\n"a\nb\r\nc, ""d"""\nx\n',
            {},
            [("row-1", 2, 'a\nb\r\nc, "d"'), ("row-2", 5, "x")],
        ),
        ("prompt,z\na\u2028\x85\x0bb\0,1\n", {}, [("row-1", 2, "a\u2028\x85\x0bb\0")]),
        ("\n\nprompt\n\nx\n\ny\n", {}, [("row-1", 5, "x"), ("row-2", 7, "y")]),
        ("prompt\rx\ry\r", {}, [("row-1", 2, "x"), ("row-2", 3, "y")]),
        ("a,b\nx,y\n,z\n", {"template": "{b}{a}"}, [("row-1", 2, "yx"), ("row-2", 3, "z")]),
        ("prompt,temperature\nx,mild\n", {"row_options": "no"}, [("row-1", 2, "x")]),
        ("id,prompt,id\na,x,b\n", {"limit": 1}, InputError),
    ],
)
def test_csv(read_csv: Any, content: str, config: Any, expected: Any) -> None:
    if expected is InputError:
        with pytest.raises(InputError, match="more than one column 'id'"):
            read_csv(content, **config)
        return
    assert [summary(row) for row in read_csv(content, **config)] == expected


@pytest.mark.parametrize(
    ("name", "quoting", "expected"),
    [
        ("a.tsv", "auto", ["x, y", '"He said', 'so"', '"x""y"', "z"]),
        ("a.tsv", "none", ["x, y", '"He said', 'so"', '"x""y"', "z"]),
        ("a.tsv", "minimal", ["x, y", "He said\nb\tso", 'x"y', "z"]),
        ("A.TSV", "auto", ["x, y", '"He said', 'so"', '"x""y"', "z"]),
    ],
)
def test_quoting_of_tsv(read_csv: Any, name: str, quoting: str, expected: list[str]) -> None:
    content = 'id\tprompt\na\tx, y\na2\t"He said\nb\tso"\nc\t"x""y"\nd\tz\n'
    rows = read_csv(content, name, csv_quoting=quoting)
    assert [row.content for row in rows] == expected


def test_csv_without_quoting_is_one_row_per_line(read_csv: Any) -> None:
    content = 'id,prompt\na,"x\nb,say "y" twice\nc,"z",more\n'
    rows = read_csv(content, csv_quoting="none")
    assert [summary(row) for row in rows] == [
        ("a", 2, '"x'),
        ("b", 3, 'say "y" twice'),
        ("row-3", 4, "ragged_row"),
    ]
    assert "add --csv-quoting minimal" in rows[2].message


def test_quotes_in_tsv_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    quoted = 'id\tprompt\tz\n1\tsay "x"\t"unused"\n2\t"He said ""y"", twice"\t\n3\t"z"\t\n'
    path.write_text(quoted)
    reports: list[str] = []
    assert len(list(read_rows(path, InputConfig(), reports.append))) == 3
    (line,) = reports
    assert "line 3: a cell is in quotes" in line
    assert "add --csv-quoting minimal" in line
    for reading in [InputConfig(csv_quoting="minimal"), InputConfig(prompt_column="id")]:
        list(read_rows(path, reading, reports.append))
    assert len(reports) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "sep=;\nid;prompt\na;x, y\n", [("a", 3, "x, y")]),
        ("a.csv", "\ufeffSEP=,\r\nid,prompt\r\na,x\r\n", [("a", 3, "x")]),
        ("a.csv", '"sep=\t"\nid\tprompt\na\t"x\ty"\n', [("a", 3, "x\ty")]),
        ("a.tsv", "sep=|\nid|prompt\na|x\n", [("a", 3, "x")]),
        ("a.csv", "sep=,prompt\nx\n", [("row-1", 2, "ragged_row")]),
    ],
)
def test_a_first_line_may_name_the_separator(
    read_csv: Any, name: str, content: str, expected: Any
) -> None:
    assert [summary(row) for row in read_csv(content, name)] == expected


def test_options_of_a_table(read_csv: Any, read_parquet: Any) -> None:
    content = "id,prompt,temperature,stop,seed,max_tokens\na,x,0.5,[1],,7\nb,y,,,3,\nc,z,warm,,,\n"
    a, b, c = read_csv(content)
    assert a.options == {"temperature": 0.5, "stop": ("[1]",), "max_new_tokens": 7}
    assert b.options == {"seed": 3}
    assert (c.code, "'warm'" in c.message) == ("bad_option", True)
    columns = {"prompt": ["x", "y"], "temperature": [0.5, None], "stop": [["a"], None]}
    first, second = read_parquet(columns)
    assert (first.options, second.options) == ({"temperature": 0.5, "stop": ("a",)}, {})


def test_an_option_of_a_table_that_cannot_be_honoured(read_csv: Any, read_parquet: Any) -> None:
    for row in (
        *read_csv("prompt,functions\nx,false\n"),
        *read_csv('prompt,tools\nx,"[{""type"": ""custom""}]"\n'),
        *read_parquet({"prompt": ["x"], "structured_outputs": [{"other": "x"}]}),
        *read_parquet({"messages": [MESSAGES], "documents": [["x"]]}),
    ):
        assert row.code == "unsupported_option"
    (row,) = read_csv("prompt,enable_thinking,n,tools\nx,,1,[]\n")
    assert (row.content, row.options) == ("x", {"n": 1})
    (row,) = read_csv('prompt,logit_bias,stop_token_ids\nx,"{""5"": 1}","3,4"\n')
    assert row.options == {"logit_bias": ((5, 1.0),), "stop_token_ids": (3, 4)}


def test_columns_that_may_be_options_or_data_are_refused_once(
    read_csv: Any, read_parquet: Any
) -> None:
    content = "prompt,city,temperature\nx,Oslo,-3\n"
    with pytest.raises(InputError, match="'temperature' may be an option or data") as caught:
        read_csv(content)
    assert "--row-options no" in caught.value.hint
    columns = {"messages": [MESSAGES], "label": ["a"], "seed": [1]}
    with pytest.raises(InputError, match="'seed' may be an option or data"):
        read_parquet(columns)
    for row in (
        *read_csv(content, row_options="no"),
        *read_csv(content, template="{city} {temperature} {prompt}"),
        *read_parquet(columns, row_options="no"),
    ):
        assert row.options == {}
    (row,) = read_parquet(columns, row_options="yes")
    assert row.options == {"seed": 1}


@pytest.mark.parametrize(
    ("record", "row_id", "code", "words"),
    [
        ("b,x,y", "row-2", "ragged_row", "line 3 must have 2 cells, as the header has, got 3"),
        ("b", "row-2", "ragged_row", "got 1"),
        ('"b\n",x,y', "row-2", "ragged_row", "lines 3 to 4"),
        ('b,"x" y', "row-2", "malformed_csv", "line 3"),
        ("b,", "b", "empty_prompt", "blank"),
        ("b,  ", "b", "empty_prompt", "blank"),
        (b"b,caf\xe9", "b", "invalid_utf8", "character 4 of column 'prompt' (0xe9)"),
        (b"\xe9,x", "row-2", "invalid_utf8", "character 1 of column 'id' (0xe9)"),
        (b"b,\xed\xa0\x80", "b", "invalid_utf8", "0xed"),
    ],
)
def test_a_bad_record_is_one_failure(
    read_csv: Any, record: str | bytes, row_id: str, code: str, words: str
) -> None:
    raw = record if isinstance(record, bytes) else record.encode()
    rows = read_csv(b"id,prompt\na,before\n" + raw + b"\nc,after\n")
    assert [summary(row) for row in rows] == [
        ("a", 2, "before"),
        (row_id, 3, code),
        ("c", 4 + raw.count(b"\n"), "after"),
    ]
    assert words in rows[1].message
    assert len(rows[1].key) == 32


def test_bytes_that_are_not_utf8_in_an_unused_column_cost_nothing(read_csv: Any) -> None:
    assert isinstance(read_csv(b"prompt,author\nx,Andr\xe9\n")[0], Request)


def test_a_quote_that_is_never_closed_says_which_lines_it_took(read_csv: Any) -> None:
    before, failure = read_csv('prompt\nx\n"y\nz\nz\n')
    assert (before.content, failure.code) == ("x", "malformed_csv")
    assert "lines 3 to 5" in failure.message


def test_a_line_that_is_too_long_costs_that_record(
    read_csv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 8)
    rows = read_csv("prompt\n12345678\n" + "x" * 100 + "\nab\n" + "y" * 9)
    assert [summary(row)[2] for row in rows] == ["12345678", "line_too_long", "ab", "line_too_long"]
    assert "line 3: the line has more than 8 bytes" in rows[1].message


def test_cells_may_be_larger_than_what_the_csv_module_allows_at_first(read_csv: Any) -> None:
    assert len(read_csv('prompt\n"' + "x\n" * 200_000 + '"\n')[0].content) == 400_000


@pytest.mark.parametrize(
    ("content", "config", "message", "hint"),
    [
        ("question,label\nx,y\n", {}, "no column 'prompt'; it has 'question', 'label'", "--prompt"),
        ("Prompt\nx\n", {}, "no column 'prompt'; it has 'Prompt'", "did you mean 'Prompt'?"),
        ("promt\nx\n", {"prompt_column": "prompt"}, "no column", "did you mean 'promt'?"),
        ("text\nx\n", {"template": "{txet}"}, "no column 'txet'", "did you mean 'text'?"),
        ("id;prompt\n1;x\n", {}, "no column 'prompt'", "another separator"),
        ("Why?,1\nHow?,2\n", {}, "no column 'prompt'", "no header"),
        ('"id","prompt"\n', {"csv_quoting": "none"}, "no column 'prompt'", "--csv-quoting minimal"),
        (",\nx,y\n", {}, "no header", "names its columns"),
        ('"id\nx\n', {}, "no readable header", "names its columns"),
        (b"caf\xe9,prompt\nx,y\n", {}, "not UTF-8", "convert"),
        ("prompt\n", {}, "no rows", "right file"),
        ("\n\n", {}, "no rows", "names its columns"),
        ("prompt,prompt\nx,y\n", {}, "more than one column 'prompt'", "rename"),
    ],
)
def test_unusable_csv(read_csv: Any, content: Any, config: Any, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as raised:
        read_csv(content, **config)
    assert hint in raised.value.hint


def test_csv_keys_follow_their_rows(read_csv: Any) -> None:
    records = ["a,x", "b,", ",x", ",x", "c", '"d']
    before = [row.key for row in read_csv("id,prompt\n" + "\n".join(records))]
    after = [row.key for row in read_csv("id,prompt\nnew,y\n" + "\n".join(records))]
    assert len(set(before)) == len(records)
    assert after[1:] == before


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1))
def test_any_prompt_survives_csv(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("law") / "a.csv"
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["id", "prompt"], *enumerate(prompts)])
    path.write_bytes(text.getvalue().encode())
    expected = [(str(number), prompt) for number, prompt in enumerate(prompts)]
    assert [summary(row)[::2] for row in read_rows(path, InputConfig())] == expected


@given(st.binary(min_size=1))
def test_any_bytes_after_a_csv_header_are_rows(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("law") / "a.csv"
    path.write_bytes(b"prompt\nx\n" + content)
    rows = list(read_rows(path, InputConfig()))
    assert [row.index for row in rows] == list(range(len(rows)))
    assert len({row.key for row in rows}) == len(rows)


# --- Parquet ---------------------------------------------------------------------------------

MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x", "y"]),
        pa.array(["x", "y"], pa.large_string()),
        pa.array(["x", "y"], pa.string_view()),
        pa.array(["x", "y"]).dictionary_encode(),
        pa.array([b"x", b"y"]),
        pa.array([b"x", b"y"], pa.large_binary()),
        pa.array([b"x", b"y"], pa.binary_view()),
        pa.array([b"x", b"y"], pa.binary(1)),
        pa.array([b"x", b"y"]).dictionary_encode(),
    ],
    ids=str,
)
def test_parquet_text_types(read_parquet: Any, column: Any) -> None:
    rows = read_parquet({"text": column})
    assert [summary(row) for row in rows] == [("row-1", 1, "x"), ("row-2", 2, "y")]


@pytest.mark.parametrize(
    ("columns", "config", "expected"),
    [
        ({"id": [5, None], "prompt": ["x", "y"]}, {}, [(5, 1, "x"), ("row-2", 2, "y")]),
        ({"id": ["a", ""], "prompt": ["x", "y"]}, {}, [("a", 1, "x"), ("row-2", 2, "bad_id")]),
        ({"id": [True], "prompt": ["x"]}, {}, [("row-1", 1, "bad_id")]),
        ({"id": [float("nan")], "prompt": ["x"]}, {}, [("row-1", 1, "bad_id")]),
        ({"prompt": ["x", None, " "]}, {}, ["x", "missing_prompt", "empty_prompt"]),
        ({"prompt": pa.nulls(1)}, {}, ["missing_prompt"]),
        (
            {"messages": [MESSAGES, None, []]},
            {},
            [tuple(MESSAGES), "missing_prompt", "bad_messages"],
        ),
        ({"messages": [MESSAGES], "text": ["t"]}, {}, [tuple(MESSAGES)]),
        ({"messages": [MESSAGES], "prompt": ["p"]}, {}, ["p"]),
        ({"messages": ["x"]}, {}, ["bad_messages"]),
        ({"q": ["x"], "prompt": ["y"]}, {"prompt_column": "q"}, ["x"]),
        ({"n": [1], "d": [date(2024, 1, 2)]}, {"template": "{n} {d}"}, ["1 2024-01-02"]),
        ({"a.b": ["x"], "a": ["y"]}, {"prompt_column": "a.b"}, ["x"]),
        ({"n": [b"caf\xc3\xa9", b"\xff"]}, {"template": "{n}"}, ["caf\xe9", "invalid_utf8"]),
        ({"d": [Decimal("0.0000000000")]}, {"template": "{d}"}, ["0.0000000000"]),
        ({"f": pa.array([0.1], pa.float32())}, {"template": "{f}"}, ["0.1"]),
        ({"n": [None], "m": ["x"]}, {"template": "{n}{m}"}, ["missing_field"]),
        ({"prompt": ["x"], "temperature": ["mild"]}, {"row_options": "no"}, ["x"]),
        ({"prompt": ["x"], "temperature": ["mild"]}, {}, ["bad_option"]),
    ],
)
def test_parquet(read_parquet: Any, columns: Any, config: Any, expected: Any) -> None:
    rows = [summary(row) for row in read_parquet(columns, **config)]
    assert rows == [
        row if isinstance(row, tuple) and len(row) == 3 else (f"row-{n}", n, row)
        for n, row in enumerate(expected, start=1)
    ]


EVENING = datetime(2024, 1, 2, 23, 4, 5)  # noqa: DTZ001


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**64 - 1, 0], pa.uint64()), ["18446744073709551615", "0"]),
        (pa.array([0.1, 1.0]), ["0.1", "1.0"]),
        (pa.array([0.1, 1e20], pa.float32()), ["0.1", "1e+20"]),
        (pa.array([0.1, 2], pa.float16()), ["0.1", "2.0"]),
        (pa.array([Decimal("1.50"), Decimal("0.00")]), ["1.50", "0.00"]),
        (pa.array([Decimal("0E-10"), None], pa.decimal256(70, 10)), ["0.0000000000", '"row-2"']),
        (pa.array([date(2024, 1, 2)]), ['"2024-01-02"']),
        (pa.array([EVENING]), ['"2024-01-02 23:04:05"']),
        (
            pa.array([1_700_000_000_123_456_789, 1_700_000_000_123_456_000], pa.timestamp("ns")),
            ['"2023-11-14 22:13:20.123456789"', '"2023-11-14 22:13:20.123456"'],
        ),
        (
            pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "Europe/Zurich")),
            ['"2023-11-14 23:13:20.123456789+01:00"'],
        ),
        (pa.array([-1], pa.timestamp("ns")), ['"1969-12-31 23:59:59.999999999"']),
        (pa.array([3_723_000_000_001], pa.time64("ns")), ['"01:02:03.000000001"']),
        (pa.array([b"a\xc3\xa9", b"b"]), ['"a\\u00e9"', '"b"']),
        (pa.array([b"ab", b"cd"], pa.binary(2)), ['"ab"', '"cd"']),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_parquet_ids_keep_their_text(read_parquet: Any, column: Any, expected: Any) -> None:
    rows = read_parquet({"id": column, "prompt": ["x", "y"][: len(column)]})
    assert [id_to_json(row.id) for row in rows] == expected
    assert all(isinstance(row, Request) for row in rows)


@pytest.mark.skipif(not hasattr(pa, "json_"), reason="this pyarrow has no such types")
def test_parquet_types_that_extend_others(read_parquet: Any) -> None:
    name = uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")
    columns = {"id": pa.array([name.bytes], pa.uuid()), "prompt": pa.array(["{}"], pa.json_())}
    assert [summary(row) for row in read_parquet(columns)] == [(str(name), 1, "{}")]


@pytest.mark.parametrize(
    ("column", "code", "words"),
    [
        (pa.array([b"\xff", b"a"]), "invalid_utf8", "byte 1 of column 'id' (0xff)"),
        (pa.array([b"\xff\xff", b"ab"], pa.binary(2)), "invalid_utf8", "0xff"),
        (pa.array([2**62, 0], pa.timestamp("ms")), "bad_field", "column 'id' has a value"),
        (pa.array([10**7, 0], pa.date32()), "bad_field", "out of range"),
        (pa.array([1, 1000], pa.duration("ns")), "bad_field", "column 'id'"),
    ],
    ids=str,
)
def test_a_parquet_id_that_cannot_be_read_costs_its_row(
    read_parquet: Any, column: Any, code: str, words: str
) -> None:
    first, second = read_parquet({"id": column, "prompt": ["x", "y"]})
    assert (first.id, first.code) == ("row-1", code)
    assert words in first.message
    assert second.id != "row-2" or second.code == "bad_id"  # a duration is no id


def test_bytes_inside_messages_are_text(read_parquet: Any) -> None:
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.binary())]))
    rows = [[{"role": "user", "content": content}] for content in (b"caf\xc3\xa9", b"\xff")]
    good, bad = read_parquet({"messages": pa.array(rows, kind)})
    assert good.content == ({"role": "user", "content": "caf\xe9"},)
    assert bad.code == "invalid_utf8"


@pytest.mark.parametrize("encode", [False, True], ids=["plain", "dictionary"])
def test_parquet_text_that_is_not_utf8_costs_its_row(read_parquet: Any, encode: bool) -> None:
    prompts = pa.array([b"x", b"caf\xe9", b"caf\xe8", b"y"]).cast(pa.binary())
    prompts = pa.Array.from_buffers(pa.string(), 4, prompts.buffers())
    rows = read_parquet(
        {"id": ["a", "b", "c", "d"], "prompt": prompts.dictionary_encode() if encode else prompts}
    )
    assert [summary(row)[::2] for row in rows] == [
        ("a", "x"),
        ("b", "invalid_utf8"),
        ("c", "invalid_utf8"),
        ("d", "y"),
    ]
    assert "byte 4 of column 'prompt' (0xe9)" in rows[1].message
    assert len({row.key for row in rows}) == 4


def test_parquet_reads_in_batches(read_parquet: Any) -> None:
    rows = read_parquet({"prompt": [str(n) for n in range(2500)]}, limit=2400)
    assert [row.content for row in rows] == [str(n) for n in range(2400)]
    assert rows[-1].index == 2399


def test_parquet_keys_equal_those_of_other_formats(read_parquet: Any, read_csv: Any) -> None:
    from_parquet = read_parquet({"id": ["a", None], "prompt": ["x", "x"]})
    from_csv = read_csv("id,prompt\na,x\n,x\n")
    assert [row.key for row in from_parquet] == [row.key for row in from_csv]


def test_unusable_parquet(read_parquet: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    twice = pa.table([["x"], ["y"]], names=["prompt", "prompt"])
    for columns, config, words in [
        ({"q": ["x"]}, {}, "no column 'prompt'; it has 'q'"),
        ({"q": ["x"]}, {"template": "{qq}"}, "no column 'qq'"),
        ({"prompt": [1]}, {}, "must hold text, messages or token ids, got int64"),
        ({"prompt": pa.array([], pa.string())}, {}, "has no rows"),
        (twice, {}, "more than one column 'prompt'"),
    ]:
        with pytest.raises(InputError, match=words):
            read_parquet(columns, **config)
    read_parquet({"prompt": [str(n) for n in range(5000)]})
    whole = path.read_bytes()
    middle = len(whole) // 3
    for content in [b"PAR1", whole[:-20], whole[:100], b"x" * 5000, b"PAR1" + bytes(100) + b"PAR1"]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            read_rows(path, InputConfig())
    path.write_bytes(whole[:middle] + bytes(500) + whole[middle + 500 :])
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        list(read_rows(path, InputConfig()))
