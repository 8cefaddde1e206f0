"""How many rows the language model is asked, in the time there is."""

from __future__ import annotations

from dataclasses import dataclass

MIN_ROWS = 20
VALIDATION_SHARE = 1 / 3
MAX_VALIDATION_ROWS = 200
PROMPT_VARIANTS = 4
"""Ways of asking, each on all these rows."""
FREE_TEXT_COST = 1.3
"""A row's free text against its constrained choice, with SmolLM2-135M and prompts of 350 tokens."""


@dataclass(frozen=True, slots=True)
class RowBudget:
    """test, validation: rows. minutes: what all ways of asking them are expected to take."""

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
    """Test and validation rows that fit into `max_minutes`, FEWEST_ROWS at least where there are as
    many; or as many as were asked for.

    seconds_a_row: of a constrained choice, mean of zero-shot and few-shot. test_rows,
    validation_rows: that there are.
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
