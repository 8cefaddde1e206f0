"""`packhorse decide`: probabilities of answers, calibration, resuming and errors."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

import packhorse
from packhorse import EngineConfig, InputConfig, OutputConfig
from packhorse.cli import main
from packhorse.data import Scores
from packhorse.decide.job import DecideConfig, decide
from packhorse.decide.questions import Question, ask, read_questions
from packhorse.engines.fake import ANSWERS_VARIABLE
from packhorse.errors import ConfigError, InputError, JobChangedError
from packhorse.evaluation.probabilities import fit_temperature, with_temperature

QUESTIONS = [
    {"name": "spam", "type": "yes_no", "question": "Is this mail spam?"},
    {
        "name": "tone",
        "type": "choice",
        "question": "Which tone?",
        "options": ["kind", "cold", "sad"],
    },
    {"name": "length", "type": "score", "question": "How long is it?", "scale": [1, 5]},
]


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tmp_path: Path) -> DecideConfig:
    rows = [{"id": f"r{n}", "prompt": f"mail number {n}", "more": n} for n in range(12)]
    return DecideConfig(
        model="fake",
        input=str(write_lines(tmp_path / "in.jsonl", rows)),
        output=tmp_path / "out.jsonl",
        questions=write_lines(tmp_path / "questions.jsonl", QUESTIONS),
        engine=EngineConfig(engine="fake"),
    )


def test_each_row_has_an_answer_and_probabilities_for_each_question(config: DecideConfig) -> None:
    report = decide(config)
    rows = lines(config.output)
    assert [row["id"] for row in rows] == [f"r{n}" for n in range(12)]
    for row in rows:
        assert set(row["spam_probabilities"]) == {"yes", "no"}
        assert row["spam"] == max(row["spam_probabilities"], key=row["spam_probabilities"].get)
        assert row["tone_confidence"] == max(row["tone_probabilities"].values())
        assert sum(row["tone_probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert 0 <= row["tone_entropy"] <= 1
        assert row["length"] in range(1, 6)
        mean = sum(int(option) * p for option, p in row["length_probabilities"].items())
        assert row["length_mean"] == pytest.approx(mean, abs=1e-4)
        assert "text" not in row
    manifest = json.loads(report.manifest.read_text())
    assert [each["name"] for each in manifest["resolved"]["questions"]] == [
        "spam",
        "tone",
        "length",
    ]


def test_tables_have_typed_columns_and_kept_ones(config: DecideConfig, tmp_path: Path) -> None:
    keep = OutputConfig(keep=("more",))
    decide(replace(config, output=tmp_path / "out.parquet", writing=keep))
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.names[:4] == ["id", "more", "spam", "spam_confidence"]
    assert table.schema.names[-2:] == ["error_code", "error_message"]
    assert str(table.schema.field("length").type) == "int64"
    assert table["more"].to_pylist() == list(range(12))
    decide(replace(config, output=tmp_path / "out.csv", writing=keep))
    with (tmp_path / "out.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == table.schema.names
    assert [cell["spam"] for cell in cells] == table["spam"].to_pylist()


def test_the_place_of_an_option_does_not_count(
    config: DecideConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that always takes what is listed first finds all options equally probable."""
    answers = tmp_path / "answers.json"
    listed = [f"one of: {a}, {b}, {c}." for a, b, c in ("KLM", "LMK", "MKL")]
    answers.write_text(json.dumps([[text, text.split(": ")[1][0]] for text in listed]))
    monkeypatch.setenv(ANSWERS_VARIABLE, str(answers))
    question = {"name": "q", "question": "?", "options": ["K", "L", "M"]}
    write_lines(config.questions, [question])
    decide(replace(config, divide_prior=False))
    for row in lines(config.output):
        assert list(row["q_probabilities"].values()) == pytest.approx([1 / 3] * 3, abs=0.06)
    one = replace(config, divide_prior=False, permutations=1, output=tmp_path / "one.jsonl")
    decide(one)
    assert {row["q"] for row in lines(one.output)} == {"K"}
    assert min(row["q_confidence"] for row in lines(one.output)) > 0.6


def test_what_the_model_says_without_a_row_is_divided_out(
    config: DecideConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says yes to everything but row 3, also to rows without content."""
    answers = tmp_path / "answers.json"
    pairs = [["Is this mail spam?", "yes"], ["number 3", "no"]]
    answers.write_text(json.dumps(pairs))
    monkeypatch.setenv(ANSWERS_VARIABLE, str(answers))
    write_lines(config.questions, QUESTIONS[:1])
    kept = replace(config, divide_prior=False, output=tmp_path / "kept.jsonl")
    decide(kept)
    decide(config)
    raw, divided = lines(kept.output), lines(config.output)
    assert raw[0]["spam_probabilities"]["yes"] > 0.75
    assert divided[0]["spam_probabilities"]["yes"] == pytest.approx(0.5, abs=0.02)


def test_labels_give_a_temperature_and_figures(config: DecideConfig, tmp_path: Path) -> None:
    labelled = [
        {"prompt": f"labelled {n}", "spam": "Yes" if n % 3 else "no", "tone": "sad"}
        for n in range(30)
    ]
    labelled.append({"prompt": "no label"})
    labels = write_lines(tmp_path / "labels.jsonl", labelled)
    questions = write_lines(tmp_path / "two.jsonl", QUESTIONS[:2])
    report = decide(replace(config, labels=labels, questions=questions))
    spam, tone = json.loads(report.manifest.read_text())["resolved"]["questions"]
    assert (spam["labelled_rows"], tone["labelled_rows"]) == (30, 30)
    assert spam["temperature"] > 0
    assert spam["brier_after"] <= spam["brier_before"] + 0.05
    assert 0 <= tone["accuracy"] <= 1


def test_temperature_of_probabilities_that_are_too_sure() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    honest = np.where(rng.random(4000) < 0.75, truth, 1 - truth)
    sure = np.full((4000, 2), 0.01)
    sure[np.arange(4000), honest] = 0.99
    temperature = fit_temperature(sure, truth)
    assert temperature == pytest.approx(math.log(99) / math.log(3), rel=0.05)
    assert with_temperature(sure, temperature).max() == pytest.approx(0.75, abs=0.02)
    assert np.array_equal(with_temperature(sure, 1.0).round(6), sure)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ("x", "must be an object"),
        ({"name": "a"}, "must have a question"),
        ({"name": "", "question": "?"}, "must have a name"),
        ({"name": "a", "question": "?", "type": "open"}, "types are yes_no, choice, score"),
        ({"name": "a", "question": "?", "options": ["x"]}, "list of 2 to"),
        ({"name": "a", "question": "?", "options": ["x", "X"]}, "an option twice"),
        ({"name": "a", "question": "?", "options": ["x", 1]}, "no text"),
        ({"name": "a", "question": "?", "type": "score", "scale": [1]}, "two integers"),
        ({"name": "a", "question": "?", "type": "score", "scale": [5, 1]}, "must go up"),
        ({"name": "a", "question": "?", "scale": [1, 5]}, "a field 'scale'"),
        ({"name": "id", "question": "?"}, "which is taken"),
        ({"name": "a\ud800", "question": "?"}, "surrogate"),
    ],
)
def test_questions_that_are_not_valid(question: Any, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", [question])
    with pytest.raises(ConfigError, match=message):
        read_questions(path)


def test_files_of_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps(QUESTIONS, indent=2))
    assert [each.kind for each in read_questions(path)] == ["yes_no", "choice", "score"]
    for text, message in (("", "from 1 to"), ("{", "no JSON"), ('{"a": 1}', "a field 'a'")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            read_questions(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_questions(tmp_path / "absent")
    same = [{"name": "a", "question": "?"}, {"name": "a_entropy", "question": "?"}]
    with pytest.raises(ConfigError, match="a_entropy"):
        read_questions(write_lines(path, same))


def test_orders_of_options() -> None:
    question = Question("q", "choice", "?", ("a", "b", "c", "d", "e", "f"))
    assert question.orders(2) == [(0, 1, 2, 3, 4, 5), (3, 4, 5, 0, 1, 2)]
    assert {order[0] for order in question.orders(99)} == set(range(6))
    score = Question("s", "score", "?", ("1", "2", "3"))
    assert score.orders(4) == [(0, 1, 2), (2, 1, 0)]


def test_messages_are_asked_about_at_their_end() -> None:
    question = Question("q", "yes_no", "Polite?", ("yes", "no"))
    talk = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "What?"})
    asked = ask(talk, question, (0, 1), is_chat=True)
    assert asked is not None
    assert asked[:2] == talk
    merged = ask(talk[:1], question, (1, 0), is_chat=True)
    assert merged == (
        {"role": "user", "content": "Hi\n\nPolite?\nAnswer with exactly one of: no, yes."},
    )


def test_bad_rows_cost_no_other(config: DecideConfig) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "prompt": "fine"},
        {"id": "b", "prompt": ""},
        {"id": "c", "prompt_token_ids": [5, 6]},
        {"id": "d", "prompt": "x" * 100_000},
        {"id": "e", "messages": [{"role": "user", "content": "Hello"}]},
    ]
    write_lines(Path(config.input), rows)
    with Path(config.input).open("a") as file:
        file.write("{broken\n")
    decide(config)
    found = lines(config.output)
    codes = [row.get("error", {}).get("code") for row in found]
    assert codes == [None, "empty_prompt", "not_text", "prompt_too_long", None, "malformed_json"]


def test_labels_that_are_no_option(config: DecideConfig, tmp_path: Path) -> None:
    labels = write_lines(tmp_path / "labels.jsonl", [{"prompt": "x", "spam": "perhaps"}])
    questions = write_lines(tmp_path / "one.jsonl", QUESTIONS[:1])
    with pytest.raises(ConfigError, match=r"row 1 of .* has the label 'perhaps'"):
        decide(replace(config, labels=labels, questions=questions))
    write_lines(labels, [{"prompt": "x", "other": "yes"}])
    with pytest.raises(InputError, match="spam"):
        decide(replace(config, labels=labels, questions=questions, output=tmp_path / "b.jsonl"))


def test_a_job_goes_on_and_is_tied_to_its_questions(config: DecideConfig) -> None:
    whole = replace(config, output=config.output.with_name("whole.jsonl"))
    decide(whole)
    decide(replace(config, reading=InputConfig(limit=5)))
    decide(config)
    assert config.output.read_bytes() == whole.output.read_bytes()
    write_lines(config.questions, QUESTIONS[:2])
    with pytest.raises(JobChangedError, match="questions"):
        decide(config)


@pytest.mark.slow
def test_killed_and_continued(config: DecideConfig) -> None:
    rows = [{"prompt": f"mail {n}"} for n in range(60)]
    write_lines(Path(config.input), rows)
    clean = config.output.with_name("clean.jsonl")

    def command(output: Path) -> list[str]:
        asked = ["--questions", str(config.questions), "--engine", "fake", "--window-rows", "60"]
        run = [sys.executable, "-m", "packhorse", "decide", "fake", config.input]
        return [*run, "-o", str(output), *asked]

    environment = {**os.environ, "PACKHORSE_FAKE_SECONDS_PER_TOKEN": "0.02"}
    started = time.monotonic()
    subprocess.run(command(clean), check=True, capture_output=True, env=environment)
    seconds = time.monotonic() - started
    for number, share in enumerate((0.4, 0.6, 0.8)):
        output = config.output.with_name(f"killed{number}.jsonl")
        process = subprocess.Popen(command(output), stderr=subprocess.DEVNULL, env=environment)
        time.sleep(share * seconds)
        process.kill()
        process.wait()
        subprocess.run(command(output), check=True, capture_output=True)
        assert output.read_bytes() == clean.read_bytes()


@pytest.mark.parametrize("engine", ["packed", "transformers", "ctranslate2"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_probabilities_are_those_of_the_model(
    config: DecideConfig, built: dict[str, Path], engine: str, family: str
) -> None:
    """Against `Model.score` of the same prompts, one at a time."""
    job = replace(
        config,
        model=str(built[family]),
        engine=EngineConfig(engine=engine, quantization="float32", threads=1),
        divide_prior=False,
        reading=InputConfig(limit=3),
    )
    decide(job)
    (spam, *_) = read_questions(config.questions)
    with packhorse.load(str(built[family]), engine=job.engine) as model:
        is_chat = model.codec.has_chat_template
        continuations = [("" if is_chat else " ") + option for option in spam.options]
        lengths = np.array([len(model.codec.encode_fragment(each)) for each in continuations])
        for row in lines(job.output):
            number = row["id"].removeprefix("r")
            found = []
            for order in spam.orders(4):
                prompt = ask(f"mail number {number}", spam, order, is_chat=is_chat)
                assert prompt is not None
                (scores,) = model.score([prompt], continuations)
                assert isinstance(scores, Scores)
                means = np.array(scores.log_probs) / lengths
                found.append(np.exp(means) / np.exp(means).sum())
            expected = np.mean(found, axis=0)
            assert list(row["spam_probabilities"].values()) == pytest.approx(expected, abs=2e-4)


@pytest.mark.real_model
def test_the_demonstration_model_tells_a_question_from_a_statement(
    config: DecideConfig, demo_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"id": "good", "prompt": "I love this film, it is wonderful and I would see it again."},
        {"id": "bad", "prompt": "I hate this film, it is terrible and I left after ten minutes."},
    ]
    write_lines(Path(config.input), rows)
    question = {"name": "mood", "question": "Is this review positive or negative?",
                "options": ["positive", "negative"]}  # fmt: skip
    write_lines(config.questions, [question])
    arguments = ["decide", str(demo_model_folder), config.input, "-o", str(config.output)]
    assert main([*arguments, "--questions", str(config.questions)]) == 0
    good, bad = lines(config.output)
    assert good["mood_probabilities"]["positive"] > bad["mood_probabilities"]["positive"]
    assert "2 answered" in capsys.readouterr().out
