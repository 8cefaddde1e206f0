"""Save contestants: each while it is measured, the winner permanently."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from packhorse.assess.cascade import Cascade
from packhorse.assess.config import AssessConfig
from packhorse.assess.contestants import ContestantResult
from packhorse.assess.evaluate import CASCADE
from packhorse.assess.saved_classifier import Card, ClassicPart, read_card, write_card, write_fitted
from packhorse.assess.verdict import Verdict
from packhorse.errors import OutputError


def save_contestant(
    entry: ContestantResult, folder: Path, classes: tuple[str, ...], config: AssessConfig
) -> None:
    """Save a contestant so that it can classify again."""
    column, embeddings = config.text_column, config.embeddings
    if entry.part is not None:
        card = Card("model", entry.title, classes, model=entry.part, text_column=column)
        write_card(folder, card)
        return
    assert entry.tuned is not None
    family = entry.tuned.family
    part = ClassicPart(
        family=family.name,
        value=entry.tuned.value,
        sees=family.sees,
        embeddings=embeddings or "" if family.sees == "embeddings" else "",
        sha256=write_fitted(folder, entry.fitted),
    )
    card = Card("classic", entry.title, classes, classic=part, text_column=column)
    write_card(folder, card)


def save_winner(
    verdict: Verdict,
    name: str,
    work: Path,
    target: Path,
    cascade: Cascade | None,
    facts: dict[str, Any],
) -> None:
    """Move the saved contestant `name` from `work` to `target`, replacing an older winner.

    For a cascade, both of its parts are saved.
    """
    source = work / (cascade.classic if name == CASCADE and cascade else name)
    card = read_card(source)
    if name == CASCADE:
        assert cascade is not None
        model = read_card(work / cascade.model).model
        title = f"{card.title}, where it is sure; else {read_card(work / cascade.model).title}"
        card = replace(
            card, kind="cascade", title=title, model=model, threshold=cascade.point.threshold
        )
    write_card(source, replace(card, verdict=verdict.title, facts=facts))
    try:
        if target.exists():
            shutil.rmtree(target)
        source.replace(target)
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written: {error.strerror}", "choose another folder with -o"
        ) from error
