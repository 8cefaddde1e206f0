"""Whole assessments on the fake engine: who should win does, and the rest adds up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contests import hold
from labelled import rows, texts, write_csv
from packhorse.assess import evaluate, runner
from packhorse.assess.config import AssessConfig
from packhorse.assess.document import Assessment
from packhorse.assess.report import read_report
from packhorse.assess.runner import assess
from packhorse.assess.saved_classifier import read_card
from packhorse.assess.splits import make_folds, split
from packhorse.config import EngineConfig
from packhorse.engine_protocol import Engine
from packhorse.errors import ConfigError, EngineError, InputError, ModelError, OutputError
from packhorse.jobs.frame import Silent

NAMES = (
    "majority", "stratified", "tfidf-logistic", "tfidf-svm", "tfidf-bayes", "zero-shot-choice",
    "few-shot-choice", "zero-shot-text", "few-shot-text",
)  # fmt: skip


def test_the_classic_one_wins_what_words_tell(
    learnable: Assessment, folders: dict[str, Path]
) -> None:
    assert learnable.verdict.kind == "classic"
    winner = learnable.contestant(learnable.verdict.winner)
    assert winner.kind == "classic"
    assert winner.figures.accuracy.value > 0.95
    assert learnable.pair.is_superior
    assert learnable.pair.mcnemar_p < 0.001
    card = read_card(folders["learnable"] / "report" / "winner")
    assert card.kind == "classic"
    assert card.verdict == "Use the classic classifier"
    assert learnable.saved.endswith("winner")
    (curve,) = learnable.curves
    assert curve.needed.value == 0.0
    assert learnable.cascade is not None
    assert learnable.cascade.point.share == 0.0


def test_the_classic_one_does_not_win_what_words_do_not_tell(
    hidden: Assessment, folders: dict[str, Path]
) -> None:
    assert hidden.verdict.kind == "language-model"
    assert hidden.language_model.shared.accuracy.value == 1.0
    assert hidden.classic.shared.accuracy.value < 0.7
    assert not hidden.classic_gain.is_superior
    (curve,) = hidden.curves
    assert curve.needed.value is None
    card = read_card(folders["hidden"] / "report" / "winner")
    assert card.kind == "model"
    assert card.model is not None
    assert card.model.model == "fake"


def test_a_cascade_wins_where_both_know_something(
    both: Assessment, folders: dict[str, Path]
) -> None:
    assert both.verdict.kind == "cascade", both.verdict.reason
    assert both.cascade is not None
    point = both.cascade.point
    assert 0.05 < point.share < 0.9
    assert point.accuracy.value > both.classic.shared.accuracy.value + 0.03
    assert both.cascade.against_model.is_non_inferior(0.03)
    card = read_card(folders["both"] / "report" / "winner")
    assert card.kind == "cascade"
    assert card.threshold == point.threshold
    assert card.classic is not None
    assert card.model is not None


@pytest.mark.slow
def test_twenty_rows_are_too_small(tmp_path: Path) -> None:
    found = hold(tmp_path, texts(20, learnable=True), known=True)
    assert found.verdict.kind == "too-small-to-say"
    assert found.verdict.title == "Too small to say"
    assert found.verdict.winner == ""


def test_everybody_takes_part_and_figures_reconcile(learnable: Assessment) -> None:
    assert tuple(each.name for each in learnable.contestants) == NAMES
    known = learnable.profile
    for each in learnable.contestants:
        assert each.shared.rows == learnable.model_rows
        assert each.figures.rows == (learnable.model_rows if each.kind == "model" else known.test)
        assert (each.costs is None) == (each.kind == "dummy")
    assert sum(each.finalist for each in learnable.contestants) == 2
    free = learnable.contestant("zero-shot-text")
    assert free.shared.invalid == free.shared.rows
    assert free.shared.brier is None
    assert learnable.pair.rows == learnable.model_rows
    assert learnable.classic_gain.rows == known.test
    costs = learnable.classic.costs
    assert costs is not None
    assert 0 < costs.p50 <= costs.p95 < costs.cold_start
    assert costs.peak_memory_bytes > 10**7
    assert costs.bytes_on_disk > 10**4
    assert [month.name for month in learnable.economy.months][:2] == [
        learnable.pair.left, learnable.pair.right,
    ]  # fmt: skip
    assert learnable.seconds > 0
    assert "rows.csv" in str(learnable.settings["labelled"])


def test_the_cascades_ends_are_each_alone(both: Assessment) -> None:
    assert both.cascade is not None
    first, last = both.cascade.points[0], both.cascade.points[-1]
    assert first.accuracy == both.classic.shared.accuracy
    assert last.accuracy == both.language_model.shared.accuracy
    assert (first.share, last.share) == (0.0, 1.0)


def test_the_reports_can_be_read_back(learnable: Assessment, folders: dict[str, Path]) -> None:
    folder = folders["learnable"] / "report"
    assert read_report(folder / "report.json") == learnable
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.json", "report.md", "winner",
    ]  # fmt: skip


@pytest.mark.slow
def test_nobody_wins_what_nobody_knows(tmp_path: Path) -> None:
    """In groups, from JSON lines, with labels that are numbers."""
    path = tmp_path / "rows.jsonl"
    pairs = texts(120, learnable=False)
    lines = [
        f'{{"body": "{text}", "y": {int(label == "good")}, "who": "w{number % 10}"}}\n'
        for number, (text, label) in enumerate(pairs)
    ]
    path.write_text("".join(lines))
    config = AssessConfig(
        "fake", str(path), "body", "y", "who", tmp_path / "report", engine=EngineConfig("fake"),
        embeddings=None, model_rows=15,
    )  # fmt: skip
    found = assess(config, Silent())
    assert found.verdict.kind in ("neither", "too-small-to-say")
    assert found.verdict.winner == found.saved == found.classify == ""
    assert not (tmp_path / "report" / "winner").exists()
    assert found.profile.groups == 10
    assert found.profile.test % 12 == 0
    assert any("15 of" in caution for caution in found.verdict.cautions)
    assert any("numbers" in caution for caution in found.verdict.cautions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"margin": 0.0}, "margin is 0.0"),
        ({"margin": 1.0}, "margin is 1.0"),
        ({"max_p95": 0.0}, "max_p95 is 0.0"),
        ({"volume": -1.0}, "volume is -1.0"),
        ({"model_rows": 0}, "model_rows is 0"),
        ({"max_minutes": 0.0}, "max_minutes is 0.0"),
        ({"shots": -1}, "shots is -1"),
        ({"label_column": "text"}, "text and label are both in 'text'"),
    ],
)
def test_options_that_make_no_sense(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        assess(AssessConfig("fake", "absent.csv", **change), Silent())  # type: ignore[arg-type]


class Mute:
    """An engine that generates and does not score."""

    def __init__(self, engine: Engine) -> None:
        self.capabilities, self.run, self.close = engine.capabilities, engine.run, engine.close


def test_an_engine_that_does_not_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from packhorse.engines import fake

    load = fake.load
    monkeypatch.setattr(fake, "load", lambda *given: Mute(load(*given)))
    with pytest.raises(EngineError, match="the engine fake does not score given texts"):
        hold(tmp_path, texts(60, learnable=True), known=False)


def test_a_sentence_model_that_was_named_is_sought_before_the_model_is_asked(
    home: Path, tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "rows.csv", texts(60, learnable=True))
    config = AssessConfig(
        "no-such-model", str(path), output=tmp_path / "report", embeddings="all-minilm-l7"
    )
    with pytest.raises(ModelError, match="no embedding model 'all-minilm-l7'"):
        assess(config, Silent())
    with pytest.raises(ModelError, match="no model 'no-such-model'"):
        assess(replace(config, embeddings=None), Silent())
    assert not config.output.exists()


def test_default_embeddings_that_cannot_be_had_take_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path / "home"))
    parts = split(rows(texts(40, learnable=True)), grouped=False, seed=0)
    notes: list[str] = []
    config = AssessConfig("fake", "rows.csv")
    classic = runner.prepare_classic_data(
        config, parts, make_folds(parts.train, grouped=False, seed=0), Silent(), notes
    )
    assert classic.data.embeddings is None
    assert notes[0].startswith("Sentence embeddings were not used: ")


def test_what_breaks_the_limit_on_the_latency(both: Assessment) -> None:
    costs = {each.name: each.costs for each in both.contestants if each.costs is not None}
    p95 = {name: each.p95 for name, each in costs.items()}
    model, classic = both.pair.right, both.pair.left
    config = AssessConfig("fake", "rows.csv", max_p95=max(p95.values()))
    assert evaluate.find_too_slow(config, costs, both.cascade) == frozenset()
    costs[model] = replace(costs[model], p95=9.0)
    config = replace(config, max_p95=8.0)
    assert evaluate.find_too_slow(config, costs, both.cascade) == {model, "cascade"}
    costs[classic] = replace(costs[classic], p95=9.0)
    assert evaluate.find_too_slow(config, costs, None) == {model, classic}
    assert evaluate.find_too_slow(replace(config, max_p95=None), costs, both.cascade) == frozenset()
    costs[model] = replace(costs[model], p95=1.0)
    assert evaluate.find_too_slow(config, costs, both.cascade) == {classic, "cascade"}


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report" / "winner").mkdir(parents=True)
    (tmp_path / "report" / "winner" / "medal.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no saved classifier"):
        hold(tmp_path, texts(60, learnable=True), known=False)
    assert (tmp_path / "report" / "winner" / "medal.txt").read_text() == "mine"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    config = AssessConfig("fake", str(tmp_path / "absent.csv"), engine=EngineConfig("fake"))
    with pytest.raises(InputError, match="does not exist"):
        assess(config, Silent())
