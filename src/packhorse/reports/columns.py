"""Columns of a report's table: name, unit, meaning, and where each is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Heading:
    """Heading of a column on a terminal.

    Attributes:
        lines: the heading in two lines.
        drop_order: on a narrow terminal the column with the highest number is left out first;
            0: always shown.
    """

    lines: tuple[str, str]
    drop_order: int = 0


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of every row of a report.

    Attributes:
        name: key in report.json.
        label: heading in Markdown and HTML, without the unit.
        unit: "" if the format of the figure includes it.
        higher_is_better: None if neither direction is better.
        meaning: definition in one sentence.
        terminal: heading on a terminal; None: not shown there.
    """

    name: str
    label: str
    unit: str
    higher_is_better: bool | None
    meaning: str
    terminal: Heading | None

    @property
    def heading(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label
