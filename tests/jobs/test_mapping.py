"""`packhorse.map` over tables in memory. Those of libraries that are not installed are skipped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import packhorse
from docs_code import code_blocks
from packhorse import EngineConfig
from packhorse.errors import PackhorseError
from packhorse.inference.model import Model

ADDED = [
    "text", "finish_reason", "prompt_tokens", "completion_tokens", "error_code", "error_message",
]  # fmt: skip
COLUMNS: dict[str, list[Any]] = {
    "question": ["one", "two", "", None, "one"],
    "text": ["a", "b", "c", "d", "e"],
    "seed": [5, 4, 3, 2, 1],
}
CODES = [None, None, "empty_prompt", "missing_prompt", None]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with packhorse.load("fake", engine=EngineConfig(engine="fake")) as model:
        yield model


def made(kind: str, columns: dict[str, list[Any]] = COLUMNS) -> Any:
    """Return columns as a table of a library."""
    if kind == "table":
        return pa.table(columns)
    if kind == "batch":
        return pa.RecordBatch.from_pydict(columns)
    library = pytest.importorskip(kind.partition(".")[0])
    if kind == "datasets":
        return library.Dataset.from_dict(columns)
    return getattr(library, kind.partition(".")[2])(columns)


KINDS = ("table", "batch", "pandas.DataFrame", "polars.DataFrame", "polars.LazyFrame", "datasets")


def values(data: Any) -> dict[str, list[Any]]:
    """Return all columns as lists, missing values as None."""
    if hasattr(data, "collect"):
        data = data.collect()
    if hasattr(data, "to_pydict"):
        return dict(data.to_pydict())
    if hasattr(data, "assign"):
        return {
            name: [None if missing else value for value, missing in zip(column, gone, strict=True)]
            for (name, column), gone in zip(data.items(), data.isna().values.T, strict=True)
        }
    return dict(data.to_dict(as_series=False) if hasattr(data, "hstack") else data.to_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_kind_comes_back_with_columns(model: Model, kind: str) -> None:
    data = made(kind)
    found = packhorse.map(data, model, prompt_column="question", max_new_tokens=6, progress=False)
    assert type(found) is type(data)
    columns = values(found)
    assert list(columns) == ["question", "input_text", "seed", *ADDED]
    assert columns["input_text"] == COLUMNS["text"]
    assert columns["seed"] == COLUMNS["seed"]
    assert columns["error_code"] == CODES
    assert [text is None for text in columns["text"]] == [code is not None for code in CODES]
    assert columns["text"][0] == columns["text"][4] != columns["text"][1]
    assert columns["completion_tokens"][:3] == [6, 6, None]
    assert list(values(data)) == list(COLUMNS)


@pytest.mark.parametrize("kind", KINDS)
def test_templates_messages_and_no_rows(model: Model, kind: str) -> None:
    found = packhorse.map(
        made(kind), model, template="{seed}: {text}", output_column="answer", progress=False
    )
    assert list(values(found)) == [*COLUMNS, "answer", *ADDED[1:]]
    assert values(found)["error_code"] == [None] * 5
    chats: dict[str, list[Any]] = {
        "messages": [[{"role": "user", "content": "hello"}]],
        "id": [True],
    }
    found = packhorse.map(made(kind, chats), model, progress=False)
    assert list(values(found)) == ["messages", "id", *ADDED]
    assert values(found)["error_code"] == [None]
    if kind != "datasets":
        none = {name: column[:0] for name, column in COLUMNS.items()}
        found = packhorse.map(made(kind, none), model, progress=False)
        assert list(values(found))[-6:] == ADDED


def test_pandas_keeps_index_and_whole_numbers(model: Model) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["x", None], 7: [1, "mixed"]}, index=["b", "b"])
    found = packhorse.map(frame, model, progress=False)
    assert list(found.index) == ["b", "b"]
    assert list(found.columns) == ["prompt", 7, *ADDED]
    assert str(found["prompt_tokens"].dtype) == "Int64"
    frame["prompt"] = [1, "x"]
    with pytest.raises(PackhorseError, match="columns prompt cannot be read"):
        packhorse.map(frame, model, progress=False)


def test_datasets_with_indices_formats_and_splits(model: Model) -> None:
    datasets = pytest.importorskip("datasets")
    data = made("datasets").select([4, 1, 0]).with_format("numpy", columns=["seed"])
    found = packhorse.map(data, model, prompt_column="question", progress=False)
    assert found.with_format(None)["question"][:] == ["one", "two", "one"]
    assert found.with_format(None)["error_code"][:] == [None] * 3
    splits = datasets.DatasetDict({"train": made("datasets"), "test": made("datasets")})
    mapped = packhorse.map(splits, model, prompt_column="question", progress=False)
    assert type(mapped) is datasets.DatasetDict
    assert mapped["test"].column_names[-6:] == ADDED
    with pytest.raises(PackhorseError, match="IterableDataset"):
        packhorse.map(made("datasets").to_iterable_dataset(), model, prompt_column="question")


class Capsule:
    """A table of a library that only hands over Arrow data."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


class Interchange:
    """A table of a library that only has the dataframe interchange protocol."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __dataframe__(self, *arguments: Any, **options: Any) -> Any:
        return self._table.__dataframe__(*arguments, **options)


@pytest.mark.parametrize("kind", [Capsule, Interchange])
def test_any_table_that_hands_over_arrow_data(model: Model, kind: Any) -> None:
    found = packhorse.map(kind(pa.table({"prompt": ["x", "y"]})), model, progress=False)
    assert isinstance(found, pa.Table)
    assert found.column_names == ["prompt", *ADDED]


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ([{"prompt": "x"}], {}, "must be a table, got a list"),
        (pa.table({"promt": ["x"]}), {}, "the data has no column 'prompt'; it has 'promt'"),
        (pa.table({"a": ["x"]}), {"template": "{b}"}, "has no column 'b'"),
        (pa.table({"a": [1]}), {"prompt_column": "a"}, "must hold text"),
        (pa.table({"a": ["x"]}), {"prompt_column": "a", "template": "{a}"}, "both a template"),
        (pa.table({"prompt": ["x"]}), {"output_column": "error_code"}, "must not be called"),
        (pa.table({"prompt": ["x"]}), {"top_log_probs": 1}, "log-probabilities"),
        (pa.table({"prompt": ["x"]}), {"temperature": -1}, "temperature"),
        (pa.table({"prompt": ["x"]}), {"engine": EngineConfig()}, "the model is loaded"),
    ],
)
def test_refusals(model: Model, data: Any, options: Any, message: str) -> None:
    with pytest.raises(PackhorseError, match=message):
        packhorse.map(data, model, **{"progress": False, **options})


def test_errors_of_the_data_come_before_the_model_is_loaded() -> None:
    with pytest.raises(PackhorseError, match="has no column 'b'"):
        packhorse.map(pa.table({"a": ["x"]}), "no-such-model", prompt_column="b")


def test_a_model_is_loaded_by_name() -> None:
    found = packhorse.map(
        pa.table({"prompt": ["x"]}), "fake", engine=EngineConfig(engine="fake"), max_new_tokens=3
    )
    assert found["completion_tokens"].to_pylist() == [3]


def test_a_journal_continues_an_interrupted_call(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"prompt": [*(f"p{n}" for n in range(9)), "", "p1"]})
    expected = packhorse.map(table, model, max_new_tokens=4, progress=False)
    runs: list[list[Any]] = []
    generate = Model.generate

    def stops(self: Model, prompts: Any, **options: Any) -> Iterator[Any]:
        runs.append([])
        for place, outcome in enumerate(generate(self, prompts, **options)):
            if len(runs) == 1 and place == 5:
                raise KeyboardInterrupt
            runs[-1].append(outcome)
            yield outcome

    monkeypatch.setattr(Model, "generate", stops)
    call: Any = {"max_new_tokens": 4, "progress": False, "journal": tmp_path / "answers"}
    with pytest.raises(KeyboardInterrupt):
        packhorse.map(table, model, **call)
    assert packhorse.map(table, model, **call).equals(expected)
    assert [len(each) for each in runs] == [5, 5]
    assert packhorse.map(table, model, **call).equals(expected)
    assert (tmp_path / "answers.packhorse" / "journal.sqlite3").exists()
    with pytest.raises(PackhorseError, match="other settings: options"):
        packhorse.map(table, model, **{**call, "max_new_tokens": 5})


def test_the_bar_shows_on_request(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    table = pa.table({"prompt": ["x", ""]})
    packhorse.map(table, model)
    assert "2/2" not in capsys.readouterr().err
    packhorse.map(table, model, progress=True)
    assert "2/2" in capsys.readouterr().err


def test_the_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = code_blocks("dataframes.md", "python")
    loads = 'load("smollm2-135m-instruct")'
    assert loads in code
    fake = 'load("fake", engine=packhorse.EngineConfig(engine="fake"))'
    exec(code.replace(loads, fake), {})  # noqa: S102
    assert str(["question", "input_text", *ADDED]) in capsys.readouterr().out


def test_no_library_of_tables_is_imported() -> None:
    code = (
        "import sys, pyarrow, packhorse\n"
        "packhorse.map(pyarrow.table({'prompt': ['x']}), 'fake',"
        " engine=packhorse.EngineConfig(engine='fake'))\n"
        "print({'polars', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
