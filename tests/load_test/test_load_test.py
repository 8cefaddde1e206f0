"""Load tests: arrivals and figures as tables, and one against a real server."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest

from packhorse.cli import main
from packhorse.load_test.config import Goals
from packhorse.load_test.figures import knee, trial_of
from packhorse.load_test.sending import Reply, arrivals
from servers import Served


def test_arrivals_are_a_poisson_process_and_repeat() -> None:
    moments = arrivals(4.0, 4001, seed=3)
    gaps = [after - before for before, after in pairwise(moments)]
    assert moments[0] == 0.0
    assert mean(gaps) == pytest.approx(0.25, rel=0.05)
    assert mean(gap**2 for gap in gaps) == pytest.approx(2 * 0.25**2, rel=0.15)
    assert moments == arrivals(4.0, 4001, seed=3)
    assert moments != arrivals(4.0, 4001, seed=4)
    assert arrivals(math.inf, 3, seed=0) == [0.0, 0.0, 0.0]


def reply(due: float, first: float, finished: float, tokens: int = 11, late: float = 0) -> Reply:
    return Reply(due, due + late, first, finished, tokens, "")


def test_latency_counts_from_when_a_request_was_due() -> None:
    replies = [reply(0, 1, 2, late=0.5), reply(1, 4, 6), Reply(2, 2, None, None, 0, "503 full")]
    trial = trial_of(1.0, replies, Goals(first_token=1.5))
    assert (trial.answered, trial.good, trial.errors) == (2, 1, {"503 full": 1})
    assert trial.first_token.p50 == 2.0
    assert trial.answer.p50 == 3.5
    assert trial.per_token.p50 == pytest.approx(0.15)
    assert trial.answers_per_second == pytest.approx(2 / 6)
    assert trial.goodput == pytest.approx(1 / 6)
    assert (trial.late, trial.tokens, trial.arrival_rate) == (0.5, 22, 1.0)
    assert trial.answer.p99 is None


def test_the_knee_is_the_last_rate_that_is_kept_up_with() -> None:
    def at(rate: float, seconds: float, goals: Goals) -> object:
        replies = [reply(0, seconds / 2, seconds), reply(1, 1 + seconds / 2, 1 + seconds)]
        return trial_of(rate, replies, goals)

    for goals, rates in ((Goals(), [1, 2, None]), (Goals(answer=0.5), [None, None, None])):
        found = [
            knee([at(1, 1.0, goals), at(2, second, goals)], goals)  # type: ignore[list-item]
            for second in (9.0, 2.9)
        ] + [knee([], goals)]
        assert [each.rate if each else None for each in found] == rates


def test_a_server_under_load(
    fake_server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]}, {"prompt": ""}]
    source.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--rate", "50", "inf", "--requests", "20", "--goal-answer-ms", "60000"]
    output = tmp_path / "report"
    assert main(["load-test", fake_server.address, str(source), "-o", str(output), *arguments]) == 0
    assert "keeps up with inf" in capsys.readouterr().out
    report = json.loads((output / "report.json").read_text())
    assert [trial["answered"] for trial in report["trials"]] == [20, 20]
    assert [trial["good"] for trial in report["trials"]] == [20, 20]
    assert report["trials"][0]["tokens"] == 20 * 24
    assert (report["rows"], report["model"]) == (2, "fake")
    assert "| rate |" in (output / "report.md").read_text()


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in.txt"
    source.write_text("a prompt\n")
    assert main(["load-test", "http://127.0.0.1:1", str(source)]) == 2
    assert "no server to be tested answers" in capsys.readouterr().err
    assert main(["load-test", "http://127.0.0.1:1", str(source), "--rate", "0"]) == 2
