"""Choose how many rows the language model answers in the available time."""

from __future__ import annotations

from dataclasses import dataclass

MIN_ROWS = 20
VALIDATION_SHARE = 1 / 3
MAX_VALIDATION_ROWS = 200
PROMPT_VARIANTS = 4
"""Prompt variants; each answers all these rows."""
FREE_TEXT_COST = 1.3
"""Time of free text / constrained choice per row (SmolLM2-135M, prompts of 350 tokens)."""


@dataclass(frozen=True, slots=True)
class RowBudget:
    """Rows for the language model.

    Attributes:
        test: test rows.
        validation: validation rows.
        minutes: expected for all prompt variants.
    """

    test: int
    validation: int
    minutes: float


def plan_model_rows(
    seconds_per_row: float,
    max_minutes: float,
    test_rows: int,
    validation_rows: int,
    asked_for: int | None = None,
) -> RowBudget:
    """Return how many test and validation rows fit into `max_minutes`.

    At least MIN_ROWS if there are as many; exactly `asked_for` if given.

    Args:
        seconds_per_row: of a constrained choice, mean of zero-shot and few-shot.
        test_rows: available test rows.
        validation_rows: available validation rows.
    """
    each_way = PROMPT_VARIANTS * seconds_per_row * (1 + FREE_TEXT_COST) / 2
    if asked_for is not None:
        test = min(asked_for, test_rows)
    else:
        affordable = max_minutes * 60 / each_way / (1 + VALIDATION_SHARE)
        test = min(max(int(affordable), MIN_ROWS), test_rows)
    wanted = max(round(test * VALIDATION_SHARE), MIN_ROWS)
    validation = min(wanted, MAX_VALIDATION_ROWS, validation_rows)
    return RowBudget(test, validation, (test + validation) * each_way / 60)
