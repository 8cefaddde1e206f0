"""Assessments that tests hold on the fake engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelled import texts, write_answers, write_csv
from packhorse.assess.config import AssessConfig
from packhorse.assess.document import Assessment
from packhorse.assess.runner import assess
from packhorse.config import EngineConfig
from packhorse.jobs.frame import Silent


def hold(
    folder: Path, pairs: list[tuple[str, str]], *, known: bool, **changes: object
) -> Assessment:
    """An assessment of labelled rows; known: the model knows every label."""
    config = AssessConfig(
        model="fake",
        labelled=str(write_csv(folder / "rows.csv", pairs)),
        output=folder / "report",
        engine=EngineConfig("fake"),
        embeddings=None,
        command="packhorse assess fake rows.csv",
        **changes,  # type: ignore[arg-type]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PACKHORSE_HOME", str(folder / "home"))
        if known:
            answers = write_answers(folder / "answers.json", pairs)
            patch.setenv("PACKHORSE_FAKE_ANSWERS", str(answers))
        return assess(config, Silent())


def hold_learnable(folder: Path) -> Assessment:
    """Words tell the label; the model knows nothing."""
    pairs = texts(320, learnable=True)
    return hold(folder, pairs, known=False, volume=10_000, price_core_hour=0.04, price_label=0.05)


def hold_hidden(folder: Path) -> Assessment:
    """Nothing in the words tells the label; the model knows it all the same."""
    return hold(folder, texts(320, learnable=False), known=True)


def hold_both(folder: Path) -> Assessment:
    """Words tell the label of three rows in four; the model knows all of them."""
    pairs = texts(1200, learnable=True, seed=5) + texts(400, learnable=False, seed=6)
    mixed = pairs[::7] + [pair for number, pair in enumerate(pairs) if number % 7]
    return hold(folder, mixed, known=True, margin=0.03)
