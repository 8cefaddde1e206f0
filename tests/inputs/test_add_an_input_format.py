"""The example in docs/how-to/add-an-input-format.md runs as it is written."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest

from input_files import read_content, summary
from packhorse import inputs
from packhorse.errors import InputError

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "add-an-input-format.md"


@pytest.fixture
def _paragraphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The format as the page adds it to the table."""
    text = PAGE.read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (entry,) = re.findall(r'^    ("paragraphs": .*),$', text, re.MULTILINE)
    module = types.ModuleType("paragraphs")
    exec(source, module.__dict__)  # noqa: S102
    names = {"Format": inputs.Format, "open_paragraphs": module.open_paragraphs}
    table = eval(f"{{{entry}}}", names)  # noqa: S307
    for name, added in table.items():
        monkeypatch.setitem(inputs.FORMATS, name, added)


@pytest.mark.usefixtures("_paragraphs")
def test_the_example_reads_paragraphs(tmp_path: Path) -> None:
    content = b"\none\n\n\ntwo,\nover two lines\n\n\xff\n \nlast"
    rows = read_content(tmp_path, "a.paragraphs", content)
    assert [summary(row) for row in rows] == [
        ("line-2", 2, "one"),
        ("line-5", 5, "two,\nover two lines"),
        ("line-8", 8, "invalid_utf8"),
        ("line-10", 10, "last"),
    ]
    (row,) = read_content(tmp_path, "b.paragraphs", "x", template="Say {prompt}")
    assert summary(row) == ("line-1", 1, "Say x")


@pytest.mark.usefixtures("_paragraphs")
def test_the_example_reports_errors_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no rows"):
        read_content(tmp_path, "a.paragraphs", "\n \n")
    with pytest.raises(InputError, match="has no column 'text'"):
        read_content(tmp_path, "a.paragraphs", "x", prompt_column="text")
    with pytest.raises(InputError) as error:
        read_content(tmp_path, "a.unknown", "x")
    assert ".paragraphs" in str(error.value.hint)


def test_every_suffix_belongs_to_one_format() -> None:
    suffixes = [suffix for known in inputs.FORMATS.values() for suffix in known.suffixes]
    assert len(suffixes) == len(set(suffixes))
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffix in suffixes)
