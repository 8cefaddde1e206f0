"""Read labelled rows and report those that cannot be used."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from packhorse.assess.config import AssessConfig
from packhorse.errors import InputError
from packhorse.evaluation.label_matching import normalise
from packhorse.inputs import read_fields

MIN_ROWS_PER_LABEL = 4
"""One row to test and three to train on, so that each fold is fitted on two."""


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One row; line: in the file, group: "" without groups."""

    line: int
    text: str
    label: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """The usable rows in the order of the file.

    Attributes:
        total: rows of the file.
        unusable: counts by reason.
        drawn_from: usable rows before drawing.
    """

    rows: tuple[LabelledRow, ...]
    total: int
    unusable: dict[str, int]
    drawn_from: int


def read_labelled(
    config: AssessConfig, report: Callable[[str], None] = lambda message: None
) -> LabelledRows:
    """Read the file; a row without text or label is counted and left out.

    Raises:
        InputError: an unreadable file, a missing column, no usable row, or labels that differ in
            spelling only.
    """
    names = [config.text_column, config.label_column]
    names += [config.group_column] if config.group_column else []
    rows: list[LabelledRow] = []
    unusable: Counter[str] = Counter()
    total, example = 0, ""
    for found in read_fields(Path(config.labelled), names, config.csv_quoting, report):
        total += 1
        text = found.values.get(config.text_column, "")
        label = found.values.get(config.label_column, "").strip()
        group = found.values.get(config.group_column or "", "").strip()
        if found.fault:
            unusable["unreadable"] += 1
            says_where = found.fault.startswith("line")
            example = example or ("" if says_where else f"line {found.line}: ") + found.fault
        elif not label:
            unusable["without a label"] += 1
        elif not text.strip():
            unusable["without text"] += 1
        else:
            # A row without a group forms its own group.
            rows.append(LabelledRow(found.line, text, label, group or f"line {found.line}"))
    if not rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in unusable.items())
        raise InputError(
            f"no row of {config.labelled} can be used: {reasons or 'it has no rows'}",
            example or "name the columns with --text-column and --label-column",
        )
    _reject_duplicate_spellings({row.label for row in rows})
    drawn = sorted(_sample_indices(len(rows), config.max_rows, config.seed))
    return LabelledRows(tuple(rows[index] for index in drawn), total, dict(unusable), len(rows))


def drop_rare_labels(
    rows: tuple[LabelledRow, ...],
) -> tuple[tuple[LabelledRow, ...], dict[str, int]]:
    """Return the rows of labels with at least MIN_ROWS_PER_LABEL rows, and the counts of the
    others.

    Raises:
        InputError: fewer than two labels are left.
    """
    counts = Counter(row.label for row in rows)
    rare = {label: count for label, count in counts.items() if count < MIN_ROWS_PER_LABEL}
    kept = tuple(row for row in rows if row.label not in rare)
    if len(counts) == 1:
        raise InputError(
            f"all {len(rows):,} distinct rows have the label {next(iter(counts))!r}",
            "a classifier needs rows of at least two labels; is --label-column the right one?",
        )
    if len(counts) - len(rare) < 2:
        few = ", ".join(f"{label!r} ({count})" for label, count in sorted(rare.items())[:5])
        raise InputError(
            f"fewer than two labels have {MIN_ROWS_PER_LABEL} distinct rows; too few have {few}"
            + (" and others" if len(rare) > 5 else ""),
            "label more rows; is --label-column a column of labels, and not of ids or numbers?",
        )
    return kept, rare


def _sample_indices(count: int, most: int, seed: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return random.Random(seed).sample(range(count), most)  # noqa: S311 - a sample, no secret


def _reject_duplicate_spellings(labels: set[str]) -> None:
    """Raise InputError for two labels that differ in spelling only."""
    seen: dict[str, str] = {}
    for label in sorted(labels):
        other = seen.setdefault(normalise(label), label)
        if other != label:
            raise InputError(
                f"the labels {other!r} and {label!r} differ in spelling only",
                "use one spelling per label",
            )
