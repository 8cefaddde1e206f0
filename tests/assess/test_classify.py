"""`packhorse classify`: the rules of a run, for labels."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import tiny_models
from labelled import texts, write_answers, write_csv
from packhorse.assess.classify import ClassifyConfig, classify
from packhorse.assess.document import Assessment
from packhorse.assess.prompting import PromptTemplate
from packhorse.assess.saved_classifier import Card, ModelPart, write_card
from packhorse.config import BatchingConfig, EngineConfig, InputConfig
from packhorse.errors import InputError, JobChangedError
from packhorse.inference.model import prepare_for
from packhorse.jobs.journal import Journal
from packhorse.jobs.workspace import Workspace

FRESH = texts(90, learnable=True, seed=9)


@pytest.fixture
def winner(learnable: Assessment, folders: dict[str, Path]) -> Path:
    return folders["learnable"] / "report" / "winner"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_in_order_with_label_and_confidence(winner: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", FRESH)
    report = classify(ClassifyConfig(winner, str(source), tmp_path / "out.jsonl"))
    assert (report.counts.completed, report.counts.failed) == (90, 0)
    found = lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [str(number) for number in range(90)]
    right = [row["label"] == label for row, (_, label) in zip(found, FRESH, strict=True)]
    assert sum(right) > 85
    assert all(0.5 <= float(str(row["confidence"])) <= 1 for row in found)
    assert {row["answered_by"] for row in found} == {"classic"}
    manifest = json.loads((tmp_path / "out.jsonl.manifest.json").read_text())
    assert manifest["counts"]["rows"] == 90
    assert manifest["model"]["classes"] == ["bad", "good"]


@pytest.mark.slow
def test_a_language_model_on_the_packed_engine_labels_as_on_transformers(tmp_path: Path) -> None:
    folder = str(tiny_models.tiny_llama(tmp_path / "llama"))
    prompting = PromptTemplate(
        "Which?", (("bad", "bad"), ("good", "good enough")), (("dull", "bad"),)
    )
    source = write_csv(tmp_path / "in.csv", FRESH[:20])
    found = {}
    for engine in ("transformers", "packed"):
        config = EngineConfig(engine)
        fingerprint = prepare_for(folder, config).fingerprint
        part = ModelPart(folder, fingerprint, config, "choice", prompting, (0.6, 0.4))
        write_card(tmp_path / engine, Card("model", "title", ("bad", "good"), model=part))
        output = tmp_path / f"{engine}.jsonl"
        report = classify(ClassifyConfig(tmp_path / engine, str(source), output))
        assert (report.counts.completed, report.counts.failed) == (20, 0)
        found[engine] = lines(output)
    for one, other in zip(found["transformers"], found["packed"], strict=True):
        assert one["label"] == other["label"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)


def test_a_card_of_a_version_that_saved_auto_keeps_its_engine(tmp_path: Path, home: Path) -> None:
    folder = str(tiny_models.tiny_gptj(tmp_path / "gptj"))
    assert prepare_for(folder, EngineConfig()).engine == "ctranslate2"
    prompting = PromptTemplate("Which?", (("bad", "bad"), ("good", "good")), ())
    fingerprint = prepare_for(folder, EngineConfig("transformers")).fingerprint
    part = ModelPart(folder, fingerprint, EngineConfig(), "choice", prompting, None)
    write_card(tmp_path / "saved", Card("model", "title", ("bad", "good"), model=part))
    source = write_csv(tmp_path / "in.csv", FRESH[:3])
    report = classify(ClassifyConfig(tmp_path / "saved", str(source), tmp_path / "out.jsonl"))
    assert report.counts.completed == 3


def test_csv_and_parquet_hold_the_same(winner: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", FRESH[:9])
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        classify(ClassifyConfig(winner, str(source), tmp_path / name))
    expected = [(row["id"], row["label"]) for row in lines(tmp_path / "out.jsonl")]
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "id", "label", "confidence", "answered_by", "error_code", "error_message",
    ]  # fmt: skip
    assert [(row["id"], row["label"]) for row in rows] == expected
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [(row["id"], row["label"]) for row in table] == expected
    assert table[0]["confidence"] == pytest.approx(float(rows[0]["confidence"]))


def test_a_bad_row_is_data_and_messages_are_not_text(winner: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(
        '{"id": 1, "text": "sunny glad calm road"}\n{"id": 2, "text": ""}\nnot json\n'
        '{"id": 4, "nothing": 1}\n'
    )
    report = classify(ClassifyConfig(winner, str(source), tmp_path / "out.jsonl"))
    assert report.counts.failed_by_code == {
        "empty_prompt": 1, "malformed_json": 1, "missing_prompt": 1,
    }  # fmt: skip
    found = lines(tmp_path / "out.jsonl")
    assert found[0]["label"] == "good"
    assert [row.get("error", {}).get("code") for row in found[1:]] == [  # type: ignore[attr-defined]
        "empty_prompt", "malformed_json", "missing_prompt",
    ]  # fmt: skip
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "sunny"}]}\n{"prompt": "sunny"}\n')
    reading = InputConfig(template=None, prompt_column=None)
    config = ClassifyConfig(winner, str(chats), tmp_path / "chats.out.jsonl", reading)
    assert classify(config).counts.failed == 2  # the column it was assessed on is not there


def test_another_column_a_template_and_plain_lines(winner: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"title": "sunny glad", "body": "calm road"}\n')
    for name, reading in (
        ("column", InputConfig(prompt_column="title")),
        ("template", InputConfig(template="{title} {body}")),
    ):
        output = tmp_path / f"{name}.jsonl"
        classify(ClassifyConfig(winner, str(source), output, reading))
        assert lines(output)[0]["label"] == "good"
    plain = tmp_path / "in.txt"
    plain.write_text("sunny glad calm\nstormy cruel sad\n")
    classify(ClassifyConfig(winner, str(plain), tmp_path / "plain.jsonl"))
    assert [row["label"] for row in lines(tmp_path / "plain.jsonl")] == ["good", "bad"]


def test_a_mistyped_column_lists_the_columns(winner: Path, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", FRESH)
    config = ClassifyConfig(
        winner, str(source), tmp_path / "out.jsonl", InputConfig(prompt_column="txt")
    )
    with pytest.raises(InputError, match="it has 'id', 'text', 'label'"):
        classify(config)


def test_it_goes_on_where_it_stopped_and_is_tied_to_its_classifier(
    winner: Path, hidden: Assessment, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = write_csv(tmp_path / "in.csv", FRESH[:30])
    config = ClassifyConfig(winner, str(source), tmp_path / "out.jsonl")
    first = classify(config)
    write_csv(source, FRESH[:50])
    second = classify(config)
    assert first.session is not None
    assert second.session is not None
    assert (first.session["rows_completed"], second.session["rows_completed"]) == (30, 20)
    assert classify(config).session is None
    other = folders["hidden"] / "report" / "winner"
    with pytest.raises(JobChangedError, match="classifier was"):
        classify(ClassifyConfig(other, str(source), tmp_path / "out.jsonl"))


def test_a_cascade_asks_the_model_what_it_is_unsure_of(
    both: Assessment, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = texts(200, learnable=True, seed=11) + texts(200, learnable=False, seed=12)
    answers = write_answers(tmp_path / "answers.json", pairs)
    monkeypatch.setenv("PACKHORSE_FAKE_ANSWERS", str(answers))
    source = write_csv(tmp_path / "in.csv", pairs)
    winner = folders["both"] / "report" / "winner"
    batching = BatchingConfig(window_rows=64)
    config = ClassifyConfig(winner, str(source), tmp_path / "out.jsonl", batching=batching)
    assert classify(config).counts.completed == 400
    found = lines(tmp_path / "out.jsonl")
    by = [row["answered_by"] for row in found]
    assert 2 * by[:200].count("model") < by[200:].count("model")
    right = [row["label"] == label for row, (_, label) in zip(found, pairs, strict=True)]
    assert sum(right) > 300
    assert both.cascade is not None
    for row in found:
        if row["answered_by"] == "classic":
            assert float(str(row["confidence"])) >= both.cascade.point.threshold


def test_a_model_alone_that_knows_no_label_fails_that_row(
    hidden: Assessment, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Free text that is no label: the fake engine without its planted answers."""
    saved = tmp_path / "saved"
    shutil.copytree(folders["hidden"] / "report" / "winner", saved)
    card = json.loads((saved / "card.json").read_text())
    card["model"]["answers"] = "text"
    (saved / "card.json").write_text(json.dumps(card))
    source = write_csv(tmp_path / "in.csv", FRESH[:5])
    report = classify(ClassifyConfig(saved, str(source), tmp_path / "out.jsonl"))
    assert report.counts.failed_by_code == {"no_label": 5}
    assert "contains no label" in str(lines(tmp_path / "out.jsonl")[0]["error"])


@pytest.mark.slow
def test_killed_it_keeps_what_is_labelled_and_goes_on(
    hidden: Assessment, folders: dict[str, Path], tmp_path: Path
) -> None:
    """kill -9 in the middle; the second run labels only the rest."""
    source = write_csv(tmp_path / "in.csv", FRESH)
    output = tmp_path / "out.jsonl"
    winner = folders["hidden"] / "report" / "winner"
    command = [sys.executable, "-m", "packhorse", "classify", str(winner), str(source)]
    command += ["-o", str(output), "--batching", "single"]
    slow = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.05"}
    with subprocess.Popen(command, env=slow, stderr=subprocess.DEVNULL) as process:
        journal = Workspace(output).journal
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and labelled(journal) < 20:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    kept = labelled(journal)
    assert 20 <= kept < 90
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "90 rows: 90 labelled, 0 failed" in done.stdout
    assert "decided by  model 90" in done.stdout
    with Journal(journal, read_only=True) as read:
        assert read.sessions()[-1]["rows_completed"] == 90 - kept


def labelled(journal: Path) -> int:
    if not journal.exists():
        return 0
    with Journal(journal, read_only=True) as read:
        return read.counts().completed


@pytest.mark.slow
def test_the_command_line(winner: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("id,text\n1,sunny glad calm\n2,\n")
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "packhorse"]
    run = [*command, "classify", str(winner), str(source), "-o", str(output), "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["counts"]["failed"] == 1
    assert "2 rows: 1 labelled, 1 failed" in done.stderr
    refused = subprocess.run(
        [*command, "classify", str(tmp_path), str(source), "-o", str(output)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert "holds no saved classifier" in refused.stderr
    assert "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr
