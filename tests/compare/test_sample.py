"""The rows of a comparison and their labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from input_files import batch_line, chat, jsonl
from packhorse.compare.sample import take_sample
from packhorse.config import InputConfig
from packhorse.errors import ConfigError, InputError, PackhorseError


def labels(
    folder: Path, name: str, content: str, field: str, reading: InputConfig | None = None
) -> tuple[str | None, ...]:
    source = folder / name
    source.write_text(content)
    sample = take_sample(source, reading or InputConfig(), 9, folder / "sample.jsonl", field)
    return sample.labels


@pytest.mark.parametrize("field", ["label", "m.label", "a {b}", "m[0]"])
def test_a_label_is_a_field_whatever_its_name(tmp_path: Path, field: str) -> None:
    rows = [{"prompt": "one", field: "yes"}, {"prompt": "two", field: 3}, {"prompt": "three"}]
    assert labels(tmp_path, "in.jsonl", jsonl(*rows), field) == ("yes", "3", None)
    table = f"prompt,{field}\none,yes\ntwo,\nthree, no \n"
    assert labels(tmp_path, "in.csv", table, field) == ("yes", None, " no ")


def test_labels_are_those_of_the_rows_drawn(tmp_path: Path) -> None:
    rows = [{"q": str(index), "label": f"label {index}"} for index in range(30)]
    (tmp_path / "in.jsonl").write_text("not JSON\n" + jsonl(*rows))
    reading = InputConfig(template="Say {q}")
    sample = take_sample(tmp_path / "in.jsonl", reading, 9, tmp_path / "sample.jsonl", "label")
    assert len(sample.labels) == 9
    numbers = [str(request.content).removeprefix("Say ") for request in sample.requests]
    assert list(sample.labels) == [f"label {number}" for number in numbers]


@pytest.mark.parametrize(
    ("name", "content", "error", "match"),
    [
        ("in.jsonl", jsonl({"prompt": "x"}), ConfigError, "no sampled row has a label in 'answer'"),
        ("in.csv", "prompt,anwser\nx,y\n", InputError, "has no column 'answer'"),
        ("in.txt", "x\n", InputError, "has no column 'answer'"),
        ("in.jsonl", jsonl(batch_line(chat("x"))), InputError, "which have no columns"),
    ],
)
def test_labels_that_are_not_there(
    tmp_path: Path, name: str, content: str, error: type[PackhorseError], match: str
) -> None:
    with pytest.raises(error, match=match):
        labels(tmp_path, name, content, "answer")


def test_rows_of_a_sample_have_ids_of_their_own(tmp_path: Path) -> None:
    rows = [{"id": "line-2", "prompt": "x"}, {"prompt": "y"}, {"id": "line-2-2", "prompt": "z"}]
    (tmp_path / "in.jsonl").write_text(jsonl(*rows))
    sample = take_sample(tmp_path / "in.jsonl", InputConfig(), 9, tmp_path / "sample.jsonl")
    assert [request.id for request in sample.requests] == ["line-2", "line-2-3", "line-2-2"]


def test_a_sample_of_tsv_is_read_with_the_chosen_quoting(tmp_path: Path) -> None:
    source = tmp_path / "in.tsv"
    source.write_text('prompt\tanswer\n"x"\t"y"\n')
    said: list[str] = []
    unquoted, quoted = InputConfig(), InputConfig(csv_quoting="minimal")
    for reading, expected in [(unquoted, '"x"'), (quoted, "x")]:
        path = tmp_path / "sample.jsonl"
        sample = take_sample(source, reading, 9, path, "answer", said.append)
        assert sample.requests[0].content == expected
        assert sample.labels == (expected.replace("x", "y"),)
    assert len(said) == 1
