"""Whole jobs on the fake engine: nothing lost, everything in order, refused where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

import packhorse
from packhorse import BatchingConfig, EngineConfig, InputConfig, JobConfig, SamplingParams
from packhorse.batching import POLICIES
from packhorse.batching.policies import CONTINUOUS
from packhorse.data import Completion
from packhorse.errors import (
    BusyError,
    ConfigError,
    InputError,
    JobChangedError,
    OutputError,
    PackhorseError,
)
from packhorse.jobs.frame import Silent
from packhorse.jobs.journal import Counts, Journal
from packhorse.jobs.manifest import RunReport
from packhorse.jobs.workspace import Workspace
from packhorse.profiling.run_metrics import Meter

GOOD = [{"id": f"p{i}", "prompt": f"prompt number {i} " + "x" * (i * 7 % 40)} for i in range(20)]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def job(tmp_path: Path) -> JobConfig:
    return JobConfig(
        model="fake",
        input=str(write_lines(tmp_path / "in.jsonl", list(GOOD))),
        output=tmp_path / "out.jsonl",
        engine=EngineConfig(engine="fake"),
        decoding=SamplingParams(max_new_tokens=12),
    )


def rows_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_every_row_once_in_order_with_a_manifest_that_reconciles(job: JobConfig) -> None:
    report = packhorse.run(job)
    assert [row["id"] for row in rows_of(Path(job.output))] == [row["id"] for row in GOOD]
    assert all(row["text"] for row in rows_of(Path(job.output)))
    manifest = json.loads(report.manifest.read_text())
    counts = manifest["counts"]
    assert counts["rows"] == 20 == counts["completed"] + counts["failed"] + counts["pending"]
    assert manifest["resolved"]["token_budget"]["tokens"] > 0
    assert manifest["sessions"][0]["rows_completed"] == 20


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != CONTINUOUS])
def test_the_policy_changes_no_answer(job: JobConfig, policy: str) -> None:
    packhorse.run(job)
    expected = Path(job.output).read_bytes()
    other = replace(
        job,
        output=Path(job.output).with_name("other.jsonl"),
        batching=BatchingConfig(policy=policy, batch_size=3, max_batch_tokens=100, window_rows=7),
    )
    packhorse.run(other)
    assert Path(other.output).read_bytes() == expected


def test_bad_rows_cost_one_row_each(job: JobConfig) -> None:
    bad = ['{"id": "broken", "prompt": \n', "[1, 2]\n", {"id": "empty", "prompt": ""}]
    write_lines(Path(job.input), [GOOD[0], *bad, GOOD[1]])
    report = packhorse.run(job)
    rows = rows_of(Path(job.output))
    assert [row["id"] for row in rows] == ["p0", "line-2", "line-3", "empty", "p1"]
    assert [row["error"]["code"] for row in rows[1:4]] == [
        "malformed_json", "not_an_object", "empty_prompt",
    ]  # fmt: skip
    assert [row["error"]["line"] for row in rows[1:4]] == [2, 3, 4]
    assert (report.counts.completed, report.counts.failed) == (2, 3)


def test_a_second_run_has_nothing_to_do(job: JobConfig) -> None:
    packhorse.run(job)
    before = Path(job.output).read_bytes()
    report = packhorse.run(job)
    assert report.session is None
    assert Path(job.output).read_bytes() == before


class StopsAfter(Silent):
    """Raises once so many rows are done: a crash between two rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("crash")


@pytest.mark.parametrize("rows", [1, 7, 19])
def test_a_crashed_run_goes_on_where_it_stopped(job: JobConfig, rows: int) -> None:
    clean = replace(job, output=Path(job.output).with_name("clean.jsonl"))
    packhorse.run(clean)
    with pytest.raises(RuntimeError, match="crash"):
        packhorse.run(job, StopsAfter(rows))
    assert not Path(job.output).exists()
    report = packhorse.run(job)
    assert report.session is not None
    assert report.session["rows_completed"] == 20 - rows
    assert Path(job.output).read_bytes() == Path(clean.output).read_bytes()


def test_edited_added_and_reordered_rows_are_recognised(job: JobConfig) -> None:
    packhorse.run(job)
    old = {row["id"]: row["text"] for row in rows_of(Path(job.output))}
    edited = {"id": "p3", "prompt": "now something else"}
    changed = [GOOD[5], edited, {"id": "new", "prompt": "one more"}, *GOOD[10:], GOOD[0]]
    write_lines(Path(job.input), changed)
    report = packhorse.run(job)
    assert report.session is not None
    assert report.session["rows_completed"] == 2
    rows = rows_of(Path(job.output))
    assert [row["id"] for row in rows] == [row["id"] for row in changed]
    assert all(row["text"] == old[row["id"]] for row in rows if row["id"] not in ("p3", "new"))


def test_equal_rows_without_ids_are_all_answered(job: JobConfig) -> None:
    write_lines(Path(job.input), [{"prompt": "same"}, {"prompt": "same"}, {"prompt": "other"}])
    packhorse.run(job)
    rows = rows_of(Path(job.output))
    assert [row["id"] for row in rows] == ["line-1", "line-2", "line-3"]
    assert rows[0]["text"] == rows[1]["text"] != rows[2]["text"]


CHANGES: list[tuple[str, Callable[[JobConfig], JobConfig]]] = [
    ("max_new_tokens", lambda job: replace(job, decoding=SamplingParams(max_new_tokens=13))),
    ("temperature", lambda job: replace(job, decoding=SamplingParams(12, temperature=0.5))),
    ("system", lambda job: replace(job, reading=InputConfig(system="Be kind."))),
    ("template", lambda job: replace(job, reading=InputConfig(template="Say {prompt}"))),
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_changed_settings_are_refused_with_the_difference(
    job: JobConfig, name: str, change: Callable[[JobConfig], JobConfig]
) -> None:
    packhorse.run(job)
    before = Path(job.output).read_bytes()
    with pytest.raises(JobChangedError, match=name):
        packhorse.run(change(job))
    assert Path(job.output).read_bytes() == before


class RefusesToBegin(Silent):
    """Raises before the first row runs, as a model that is refused while it loads."""

    def begin(self, counts: Counts, meter: Meter) -> None:
        raise RuntimeError("refused")


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_run_that_was_refused_before_its_first_row_binds_no_later_one(
    job: JobConfig, name: str, change: Callable[[JobConfig], JobConfig]
) -> None:
    dated = replace(job, reading=replace(job.reading, date="2026-01-31"))
    with pytest.raises(RuntimeError, match="refused"):
        packhorse.run(dated, RefusesToBegin())
    report = packhorse.run(change(job))
    assert report.counts.completed == 20
    settings = json.loads(report.manifest.read_text())["settings"]
    assert settings["date"] != "2026-01-31T00:00:00"
    with pytest.raises(JobChangedError, match=name):
        packhorse.run(job)


def test_another_input_for_the_same_output_is_refused(job: JobConfig, tmp_path: Path) -> None:
    packhorse.run(job)
    other = write_lines(tmp_path / "other.jsonl", [{"prompt": "mine"}])
    before = Path(job.output).read_bytes()
    with pytest.raises(JobChangedError, match="input was"):
        packhorse.run(replace(job, input=str(other)))
    assert Path(job.output).read_bytes() == before


def test_batching_may_change_between_sessions(job: JobConfig) -> None:
    with pytest.raises(RuntimeError):
        packhorse.run(job, StopsAfter(3))
    report = packhorse.run(replace(job, batching=BatchingConfig("single")))
    assert report.counts.completed == 20


def test_a_row_that_is_too_long_fails_alone_and_may_be_retried(job: JobConfig) -> None:
    rows = [GOOD[0], {"id": "huge", "prompt": "y" * 200_000}, GOOD[1]]
    write_lines(Path(job.input), rows)
    first = packhorse.run(job)
    assert first.counts.failed_by_code == {"prompt_too_long": 1}
    again = packhorse.run(replace(job, retry_failed=True))
    assert again.session is not None
    assert again.session["rows_failed"] == 1


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ('{"id": "a", "prompt": "x"}\n\n{"id": "a", "prompt": "y"}\n', InputError, "lines 1 and 3"),
        ("", InputError, "empty"),
    ],
)
def test_a_bad_job_is_refused_before_a_model_is_sought(
    job: JobConfig, content: str, error: type[PackhorseError], match: str
) -> None:
    Path(job.input).write_text(content)
    absent = replace(job, model="no-such-model", engine=EngineConfig())
    with pytest.raises(error, match=match):
        packhorse.run(absent)


def test_outputs_that_cannot_be(job: JobConfig, tmp_path: Path) -> None:
    (tmp_path / "foreign.jsonl").write_text("mine\n")
    (tmp_path / "folder.jsonl").mkdir()
    table: list[tuple[Path, type[PackhorseError], str]] = [
        (Path(job.input), ConfigError, "output is the input"),
        (tmp_path / "absent" / "out.jsonl", OutputError, "does not exist"),
        (tmp_path / "foreign.jsonl", OutputError, "was not written by a job"),
        (tmp_path / "folder.jsonl", OutputError, "is a folder"),
        (tmp_path / "out.xlsx", ConfigError, "no known suffix"),
    ]
    for output, error, match in table:
        with pytest.raises(error, match=match):
            packhorse.run(replace(job, output=output))
    assert (tmp_path / "foreign.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("decoding", "match"),
    [
        (SamplingParams(max_new_tokens=-5), "max_new_tokens must be .*, got -5"),
        (SamplingParams(top_log_probs=21), "top_log_probs must be .*, got 21"),
        (SamplingParams(max_new_tokens=10**9), "leaves no room"),
        (SamplingParams(temperature=-1), "temperature"),
        (SamplingParams(temperature=float("nan")), "temperature"),
        (SamplingParams(top_p=-0.1), "top_p"),
        (SamplingParams(top_k=-2), "top_k"),
        (SamplingParams(seed=-2), "seed"),
        (SamplingParams(n=0), "n must be"),
        (SamplingParams(min_p=2), "min_p"),
        (SamplingParams(presence_penalty=3), "presence_penalty"),
        (SamplingParams(repetition_penalty=0), "repetition_penalty"),
        (SamplingParams(logit_bias=((5, 101.0),)), "logit_bias"),
        (SamplingParams(stop_token_ids=(-1,)), "stop_token_ids"),
        (SamplingParams(bad_words=("",)), "bad_words"),
        (SamplingParams(min_tokens=9, max_new_tokens=8), "min_tokens must be at most .* got 9"),
        (SamplingParams(stop=("",)), "stop"),
    ],
)
def test_decoding_out_of_range(job: JobConfig, decoding: SamplingParams, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        packhorse.run(replace(job, decoding=decoding))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"engine": EngineConfig("fake", workers=0)}, "workers must be at least 1, got 0"),
        ({"engine": EngineConfig("fake", threads=-2)}, "threads must be at least 1, got -2"),
        ({"warmup_rows": -1}, "warmup_rows must be at least 0, got -1"),
    ],
)
def test_numbers_that_make_no_sense(job: JobConfig, change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        packhorse.run(replace(job, **change))
    engine = change.get("engine")
    if engine is not None:
        with pytest.raises(ConfigError, match=match):
            packhorse.load("fake", engine=engine)


def test_a_row_s_own_limit_out_of_range_costs_that_row(job: JobConfig) -> None:
    rows = [GOOD[0], {"id": "greedy", "prompt": "x", "max_new_tokens": 10**9}]
    write_lines(Path(job.input), rows)
    report = packhorse.run(job)
    assert report.counts.failed_by_code == {"bad_option": 1}


def test_two_runs_on_one_output(job: JobConfig) -> None:
    workspace = Workspace.of(job.output)
    with workspace.held(), pytest.raises(BusyError, match="another run"):
        packhorse.run(job)
    packhorse.run(job)


def test_a_seed_makes_sampling_repeatable_and_row_order_does_not_matter(job: JobConfig) -> None:
    warm = replace(job, decoding=SamplingParams(12, temperature=1.0, seed=5))
    packhorse.run(warm)
    expected = {row["id"]: row["text"] for row in rows_of(Path(warm.output))}
    write_lines(Path(job.input), GOOD[::-1])
    packhorse.run(replace(warm, output=Path(job.output).with_name("again.jsonl")))
    again = {row["id"]: row["text"] for row in rows_of(Path(job.output).with_name("again.jsonl"))}
    assert again == expected
    packhorse.run(
        replace(
            warm,
            output=Path(job.output).with_name("b.jsonl"),
            decoding=SamplingParams(12, 1.0, seed=6),
        )
    )
    other = {row["id"]: row["text"] for row in rows_of(Path(job.output).with_name("b.jsonl"))}
    assert other != expected


def test_stop_strings_end_a_row_and_are_not_in_its_text(job: JobConfig) -> None:
    packhorse.run(job)
    text = rows_of(Path(job.output))[4]["text"]
    stop = text[len(text) // 2 :][:2]
    stopped = replace(
        job, output=Path(job.output).with_name("s.jsonl"), decoding=SamplingParams(12, stop=(stop,))
    )
    packhorse.run(stopped)
    row = rows_of(Path(stopped.output))[4]
    assert row["text"] == text[: text.index(stop)]
    assert row["finish_reason"] == "stop"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_in_and_out(job: JobConfig, suffix: str, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text('id,question\n1,"two\nlines"\n2,plain\n')
    output = tmp_path / f"out{suffix}"
    reading = InputConfig(template="Q: {question}")
    report = packhorse.run(replace(job, input=str(source), output=output, reading=reading))
    assert report.counts.completed == 2
    if suffix == ".parquet":
        table = pyarrow.parquet.read_table(output)
        assert table.column("id").to_pylist() == ["1", "2"]
        assert all(table.column("text").to_pylist())


def test_openai_batch_lines_come_back_as_openai_batch_output(job: JobConfig) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    chat = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    bad = {"custom_id": "c2", "method": "POST", "url": "/v1/chat/completions", "body": {}}
    write_lines(Path(job.input), [chat, bad])
    packhorse.run(job)
    good_row, bad_row = rows_of(Path(job.output))
    assert good_row["custom_id"] == "c1"
    choice = good_row["response"]["body"]["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert good_row["response"]["body"]["usage"]["completion_tokens"] <= 5
    assert bad_row["response"] is None
    assert bad_row["error"]["code"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_openai_batch_lines_into_a_table_are_refused_before_a_row_runs(
    job: JobConfig, ending: str
) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}]}
    chat = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    write_lines(Path(job.input), [chat])
    output = Path(job.output).with_suffix(ending)
    with pytest.raises(ConfigError, match="OpenAI batch output is JSONL"):
        packhorse.run(replace(job, output=output), StopsAfter(1))
    with Journal(Workspace(output).journal, read_only=True) as journal:
        assert journal.counts().pending == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda job: replace(job, model="no-such-model", engine=EngineConfig()),
        lambda job: replace(job, decoding=SamplingParams(max_new_tokens=13)),
    ],
)
def test_failures_are_forgotten_only_by_a_job_that_can_go_on(
    job: JobConfig, change: Callable[[JobConfig], JobConfig]
) -> None:
    write_lines(Path(job.input), [GOOD[0], {"id": "huge", "prompt": "y" * 200_000}])
    packhorse.run(job)
    with pytest.raises(PackhorseError):
        packhorse.run(replace(change(job), retry_failed=True))
    with Journal(Workspace.of(job.output).journal, read_only=True) as journal:
        assert journal.counts().failed_by_code == {"prompt_too_long": 1}
        assert journal.counts().pending == 0


def test_windows_do_not_change_the_result_and_bound_what_is_read_ahead(job: JobConfig) -> None:
    class Watches(Silent):
        batches: list[int]

        def begin(self, counts: Counts, meter: Meter) -> None:
            self.meter, self.batches = meter, []

        def advance(self) -> None:
            self.batches.append(self.meter.batches)

    on_token = Watches()
    batching = BatchingConfig("fixed", batch_size=2, window_rows=4)
    packhorse.run(replace(job, batching=batching), on_token)
    assert on_token.batches[0] <= 3
    assert len(on_token.batches) == 20


def test_load_and_generate() -> None:
    with packhorse.load("fake", engine=EngineConfig(engine="fake")) as model:
        outcomes = list(model.generate(["one", "two", ""], max_new_tokens=4))
        answers = {o.index: o for o in outcomes if isinstance(o, Completion)}
        assert sorted(answers) == [0, 1]
        assert answers[0].text
        assert answers[0].completion_tokens <= 4
        with pytest.raises(ConfigError):
            model.generate(["x"], max_new_tokens=-1)
    model.close()


def test_report_is_plain_json(job: JobConfig) -> None:
    report: RunReport = packhorse.run(job)
    assert json.loads(json.dumps(report.to_json()))["counts"]["rows"] == 20
