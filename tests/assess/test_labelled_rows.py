"""Labelled rows: what can be used, and a clear message for what cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelled import rows, texts, write_csv
from packhorse.assess.config import AssessConfig
from packhorse.assess.duplicates import remove_duplicates
from packhorse.assess.profile import make_profile
from packhorse.assess.rows import LabelledRows, drop_rare_labels, read_labelled
from packhorse.assess.splits import split
from packhorse.errors import InputError

PAIRS = [("one", "a"), ("two", "b"), ("three", "a")]


def config(path: Path, **changes: Any) -> AssessConfig:
    return AssessConfig("fake", str(path), **changes)


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = [{"text": text, "label": label} for text, label in PAIRS]
    jsonl = tmp_path / "in.jsonl"
    jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    parquet = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(lines), parquet)
    for path in (write_csv(tmp_path / "in.csv", PAIRS), jsonl, parquet):
        found = read_labelled(config(path))
        assert [(row.text, row.label) for row in found.rows] == PAIRS
        assert (found.total, found.drawn_from, found.unusable) == (3, 3, {})


def test_labels_may_be_numbers_and_truths(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "x", "label": 1}\n{"text": "y", "label": true}\n')
    assert [row.label for row in read_labelled(config(path)).rows] == ["1", "true"]


def test_rows_without_label_or_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    given = [
        {"text": "x", "label": "a"}, {"text": "y"}, {"text": "y", "label": None},
        {"text": "y", "label": "  "}, {"text": " ", "label": "a"}, {"label": "a"},
        {"text": ["y"], "label": "a"}, {"text": "y \ud800", "label": "a"},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in given) + "not json\n"
                    + '{"text": ' + "[" * 100_000 + "\n")  # fmt: skip
    found = read_labelled(config(path))
    assert [row.text for row in found.rows] == ["x"]
    assert found.total == 10
    assert found.unusable == {"without a label": 3, "without text": 2, "unreadable": 4}


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_a_mistyped_column_lists_the_columns(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("csv"):
        write_csv(path, PAIRS)
    else:
        path.write_text('{"id": 1, "text": "one", "label": "a"}\n')
    with pytest.raises(InputError, match="has no column 'lable'") as caught:
        read_labelled(config(path, label_column="lable"))
    assert "'text'" in str(caught.value)
    assert "did you mean 'label'" in caught.value.hint


def test_all_labels_missing(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", [("one", ""), ("two", " ")])
    with pytest.raises(InputError, match="2 without a label"):
        read_labelled(config(path))


def test_labels_that_differ_in_writing_only(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "in.csv", [("one", "Spam"), ("two", "spam."), ("three", "ham")])
    with pytest.raises(InputError, match=r"'Spam' and 'spam\.' differ in spelling only"):
        read_labelled(config(path))


def test_openai_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match="OpenAI batch lines"):
        read_labelled(config(path))


def test_of_many_rows_some_are_drawn_in_order(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "in.csv", [(f"text {number}", "ab"[number % 2]) for number in range(50)]
    )
    found = read_labelled(config(path, max_rows=20))
    assert (len(found.rows), found.drawn_from, found.total) == (20, 50, 50)
    assert [row.line for row in found.rows] == sorted(row.line for row in found.rows)
    assert found.rows == read_labelled(config(path, max_rows=20)).rows
    assert found.rows != read_labelled(config(path, max_rows=20, seed=1)).rows


def test_one_class() -> None:
    with pytest.raises(InputError, match="all 4 distinct rows have the label 'a'"):
        drop_rare_labels(tuple(rows([(str(number), "a") for number in range(4)])))


def test_rare_classes_are_left_out() -> None:
    pairs = [(f"{label} {number}", label) for label, count in (("a", 9), ("b", 4), ("c", 3))
             for number in range(count)]  # fmt: skip
    kept, rare = drop_rare_labels(tuple(rows(pairs)))
    assert {row.label for row in kept} == {"a", "b"}
    assert rare == {"c": 3}


def test_a_column_of_ids_is_no_column_of_labels() -> None:
    with pytest.raises(InputError, match="fewer than two labels have 4 distinct rows") as caught:
        drop_rare_labels(tuple(rows([(str(number), f"id-{number}") for number in range(30)])))
    assert "ids" in caught.value.hint


def test_texts_of_a_megabyte_and_of_one_letter(tmp_path: Path) -> None:
    pairs = [("x" * 10**6, "a"), ("y", "b"), ("Ж" * 10, "a"), ("漢字", "b")] * 3
    pairs = [(f"{text} {number}", label) for number, (text, label) in enumerate(pairs)]
    found = read_labelled(config(write_csv(tmp_path / "in.csv", pairs)))
    single = remove_duplicates(found.rows)
    kept, rare = drop_rare_labels(single.rows)
    parts = split(kept, grouped=False, seed=0)
    known = make_profile(found, single, rare, parts, grouped=False)
    assert known.characters["longest"] > 10**6
    assert set(known.scripts) <= {"Latin", "Cyrillic", "Cjk"}
    assert sum(known.scripts.values()) == pytest.approx(1.0)


def test_profile_counts() -> None:
    pairs = [
        (text, "ab"[number % 4 == 0]) for number, (text, _) in enumerate(texts(40, learnable=False))
    ]
    pairs += [(f"{pairs[3][0].upper()}!", "b")]
    found = LabelledRows(tuple(rows(pairs)), 45, {"without text": 4}, 41)
    single = remove_duplicates(found.rows)
    parts = split(single.rows, grouped=False, seed=0)
    known = make_profile(found, single, {}, parts, grouped=False)
    assert (known.exact_duplicates, known.near_duplicates, known.conflicting) == (1, 0, 1)
    assert known.train + known.test == 40 == sum(known.classes.values())
    assert known.classes == {"a": 30, "b": 10}
    assert known.imbalance == 3.0
    assert known.groups == 0
