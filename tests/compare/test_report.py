"""Reports on disk: strict JSON that can be read back, CSV, Markdown, and a disk that is full."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import resource
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from documents import FAILED, FLAGGED, KNEE, RECOMMENDED, comparison
from hypothesis import given
from hypothesis import strategies as st

from packhorse.compare.csv_table import csv_text
from packhorse.compare.document import FORMAT, Comparison, Estimate, Recommendation, Spread
from packhorse.compare.markdown import markdown_text
from packhorse.compare.report import read_report, write_reports
from packhorse.errors import InputError, OutputError
from packhorse.reports.documents import json_text

NAMES = ["report.json", "report.csv", "report.md", "report.html"]
NAN = math.nan


@pytest.fixture(scope="module")
def document() -> Comparison:
    return comparison()


def refuse(name: str) -> Any:
    raise AssertionError(f"{name} is not JSON")


def empty(document: Comparison) -> Comparison:
    """Nothing was measured: every trial failed at once."""
    trials = tuple(
        replace(
            trial, status="failed", reason="no memory", repeats=(), speed={}, quality={},
            quality_notes={}, worst_rows=(), flags=(), compute_type="", threads="",
        )
        for trial in document.trials
    )  # fmt: skip
    nothing = Recommendation("", "No trial ended well.", "", (), "")
    return replace(
        document, trials=trials, effects=(), pareto=(), knee="", recommendation=nothing,
        machine={}, versions={}, sample={}, reference={}, limits={},
    )  # fmt: skip


def with_gaps(document: Comparison) -> Comparison:
    """Figures that were not measured: absent, None and NaN."""
    first, second, *others = document.trials
    first = replace(
        first,
        speed={"generate_seconds": Spread(NAN, NAN, NAN, (NAN,))},
        quality={"cosine": Estimate(NAN, NAN, NAN)},
        quality_notes={"cosine_floor": None, "perplexity_ratio": NAN},
        repeats=tuple(
            replace(repeat, latencies=(None,) * 64, figures={}) for repeat in first.repeats
        ),
    )
    return replace(document, trials=(first, replace(second, speed={}, quality={}), *others))


def table_rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


class TestFolder:
    def test_writes_four_reports_and_nothing_else(
        self, document: Comparison, tmp_path: Path
    ) -> None:
        folder = tmp_path / "deep" / "report"
        paths = write_reports(document, folder)
        assert [path.name for path in paths] == NAMES
        assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)

    @pytest.mark.slow
    def test_replaces_older_reports(self, document: Comparison, tmp_path: Path) -> None:
        write_reports(document, tmp_path)
        write_reports(replace(document, model="other"), tmp_path)
        assert read_report(tmp_path / "report.json").model == "other"

    def test_a_folder_that_cannot_be_made(self, document: Comparison, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OutputError, match="cannot be made") as caught:
            write_reports(document, tmp_path / "file")
        assert caught.value.hint

    def test_a_disk_that_fills_up_keeps_what_was_written(
        self, document: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "report.md").write_text("older")
        files_left = 2

        def fsync(descriptor: int) -> None:
            nonlocal files_left
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
                return
            if files_left == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            files_left -= 1

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match=r"report\.md cannot be written: No space") as caught:
            write_reports(document, tmp_path)
        assert "free some space" in caught.value.hint
        assert "already written:" in caught.value.hint
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "report.csv", "report.json", "report.md",
        ]  # fmt: skip
        assert (tmp_path / "report.md").read_text() == "older"
        assert read_report(tmp_path / "report.json") == document

    def test_a_real_limit_on_file_size(self, document: Comparison, tmp_path: Path) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        try:
            with pytest.raises(OutputError, match="File too large"):
                write_reports(document, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list(tmp_path.iterdir()) == []


class TestJson:
    def test_round_trip(self, document: Comparison, tmp_path: Path) -> None:
        path = write_reports(document, tmp_path)[0]
        assert read_report(path) == document

    def test_is_strict_and_ascii(self, document: Comparison) -> None:
        text = json_text(with_gaps(document))
        assert text.isascii()
        found = json.loads(text, parse_constant=refuse)
        assert found["trials"][0]["speed"]["generate_seconds"]["median"] is None

    def test_gaps_come_back_as_nan(self, document: Comparison, tmp_path: Path) -> None:
        trial = read_report(write_reports(with_gaps(document), tmp_path)[0]).trials[0]
        assert math.isnan(trial.speed["generate_seconds"].median)
        assert trial.quality_notes == {"cosine_floor": None, "perplexity_ratio": None}
        assert trial.repeats[0].latencies[0] is None

    @given(
        figure=st.floats(allow_nan=False, allow_infinity=False),
        text=st.text(),
        count=st.integers(0, 1 << 53),
    )
    def test_any_figure_and_text_survive(self, figure: float, text: str, count: int) -> None:
        document = comparison(rows=2, repeats=1)
        trial = replace(
            document.trials[0],
            speed={"generate_seconds": Spread(figure, figure, figure, (figure,))},
            quality_notes={"rows": count, "length_ratio": figure, "mcnemar_p": None},
            reason=text,
        )
        document = replace(document, trials=(trial,), effects=(), model=text)
        found = json.loads(json_text(document), parse_constant=refuse)
        assert found == json.loads(json.dumps(asdict(document)))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"format": 2}', r"has format 2, this version reads format 1"),
            ('{"format": "1"}', r"has format '1'"),
            ("{}", "is not a packhorse report"),
            ("[]", "is not a packhorse report"),
            ("", "is empty"),
            ('{"format": NaN}', "NaN, which is not JSON"),
            ("[" * 100_000, "is nested more than 64 levels"),
            (f'{{"format": {FORMAT}}}', "report has no command"),
            (f'{{"format": {FORMAT}, "command": 3}}', "report.command must be .*, got 3"),
        ],
    )
    def test_what_cannot_be_read(self, text: str, message: str, tmp_path: Path) -> None:
        path = tmp_path / "report.json"
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_report(path)
        assert caught.value.hint

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="No such file"):
            read_report(tmp_path / "report.json")

    @pytest.mark.parametrize(
        ("path", "value", "place"),
        [
            (("trials", 0, "status"), "great", r"trials\[0\].status must be .*, got 'great'"),
            (("trials", 1, "flags"), "text", r"report.trials\[1\].flags must be .*, got 'text'"),
            (("trials", 0, "speed", "latency_p50", "low"), "1", "p50.low must be .*, got '1'"),
            (("limits", "max_p95"), True, "limits.max_p95 must be .*, got True"),
            (("effects", 2), None, r"report.effects\[2\] must be .*, got None"),
        ],
    )
    def test_a_damaged_document_names_the_place(
        self, path: tuple[Any, ...], value: Any, place: str, document: Comparison, tmp_path: Path
    ) -> None:
        found = json.loads(json_text(document))
        inner = found
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        target = tmp_path / "report.json"
        target.write_text(json.dumps(found))
        with pytest.raises(InputError, match=place):
            read_report(target)

    def test_unknown_fields_are_skipped(self, document: Comparison, tmp_path: Path) -> None:
        found = json.loads(json_text(document)) | {"added_later": 1}
        found["trials"][0]["added_later"] = {}
        path = tmp_path / "report.json"
        path.write_text(json.dumps(found))
        assert read_report(path) == document


class TestCsv:
    def test_a_line_a_trial(self, document: Comparison) -> None:
        rows = table_rows(csv_text(document))
        assert [row["name"] for row in rows] == [trial.name for trial in document.trials]

    def test_columns(self, document: Comparison) -> None:
        row = {row["name"]: row for row in table_rows(csv_text(document))}[RECOMMENDED]
        trial = next(trial for trial in document.trials if trial.name == RECOMMENDED)
        assert float(row["latency_p95_high"]) == trial.speed["latency_p95"].high
        assert float(row["matched_prefix_mean"]) == trial.quality["matched_prefix"].mean
        assert float(row["cosine_floor"]) == 0.094
        assert (row["recommended"], row["pareto"], row["knee"]) == ("1", "1", "0")
        assert row["speed_up_over"] == "transformers float32 single"
        assert float(row["speed_up"]) == pytest.approx(
            document.trials[0].speed["generate_seconds"].median
            / trial.speed["generate_seconds"].median
        )

    def test_columns_do_not_depend_on_what_was_measured(self, document: Comparison) -> None:
        full, none = table_rows(csv_text(document))[0], table_rows(csv_text(empty(document)))[0]
        assert set(none) <= set(full)
        assert {"latency_p99_median", "energy_joules_low", "label_accuracy_mean"} <= set(none)

    def test_what_was_not_measured_is_empty(self, document: Comparison) -> None:
        rows = {row["name"]: row for row in table_rows(csv_text(with_gaps(document)))}
        assert rows["transformers float32 single"]["generate_seconds_median"] == ""
        assert rows[FAILED]["status"] == "failed"
        assert "signal 9" in rows[FAILED]["reason"]
        assert rows[FAILED]["rows_per_second_median"] == ""


class TestMarkdown:
    def test_tables_are_whole(self, document: Comparison) -> None:
        """Every line of a table has as many cells as its heading."""
        widths: list[int] = []
        for line in markdown_text(document).split("\n"):
            if not line.startswith("|"):
                widths = []
                continue
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
            assert widths[0] == widths[-1], line

    def test_says_what_matters(self, document: Comparison) -> None:
        text = markdown_text(document)
        assert f"## Use {RECOMMENDED}" in text
        assert f"- {FAILED} **failed**: repeat 2 was ended by signal 9" in text
        assert f"- {FLAGGED}: generated 1.14 times" in text
        assert f"| {KNEE} ●◆ |" in text
        assert document.command in text

    def test_text_from_data_is_inert(self, document: Comparison) -> None:
        hostile = "a | b\n# c <img src=x> `d` [e](f) ![g](h) *i* _j_"
        text = markdown_text(replace(document, model=hostile))
        assert text.split("\n")[0] == (
            r"# packhorse compare: a \| b \# c \<img src=x\> \`d\` \[e\](f) !\[g\](h) \*i\* \_j\_"
        )

    def test_a_command_with_backticks_stays_in_its_fence(self, document: Comparison) -> None:
        text = markdown_text(replace(document, command="packhorse ```` x"))
        assert "`````sh\npackhorse ```` x\n`````" in text


@pytest.mark.parametrize("change", [empty, with_gaps], ids=["nothing measured", "gaps"])
def test_every_report_of_a_poor_comparison(
    change: Any, document: Comparison, tmp_path: Path
) -> None:
    paths = write_reports(change(document), tmp_path)
    for path in paths:
        assert not re.search(r"\bnan\b|\binf\b|None", path.read_text(encoding="utf-8")), path.name


def test_text_that_is_no_unicode_is_written(document: Comparison, tmp_path: Path) -> None:
    trial = replace(document.trials[0], reason="\ud800", status="failed")
    changed = replace(document, trials=(trial,), model="half \udc00")
    paths = write_reports(changed, tmp_path)
    assert read_report(paths[0]).model == "half \udc00"
    assert "half \ufffd" in paths[3].read_text(encoding="utf-8")
