"""What a run of `packhorse run` over one small model came to: right, refused or wrong, and how."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from statistics import mean
from typing import Any

from decoder_models import NEW_TOKENS, TIE, Expected, Judge, character, text_of

BAD = ("WRONG", "TRACEBACK", "ABORT", "FAILED", "TIMEOUT")
INT8_LEAST_PREFIX = 0.5
"""Of a text, the share that int8 must have in common with float32, in the mean of all rows."""
INT8_MOST_GAP = 1.0
"""Standard deviations of the logits that the first other token of int8 may lie below the best."""
_REFUSED = re.compile(r"^packhorse: (.*)$", re.MULTILINE)
_HINT = re.compile(r"^  hint: (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cell:
    """One family on one engine.

    reason: why it was refused, or what is wrong. rows, refused_rows: of the input, and those that
    failed with a reason of their own. prefix: mean share of the expected text before the first
    difference. gap: the largest distance between the best logit and that of a token taken in its
    place, in standard deviations of the logits. seconds: of the whole run.
    """

    verdict: str
    reason: str = ""
    rows: int = 0
    refused_rows: int = 0
    prefix: float = 0.0
    gap: float = 0.0
    seconds: float = 0.0

    @property
    def short(self) -> str:
        """The cell of a table."""
        answered = self.rows - self.refused_rows
        return f"{self.verdict} {answered}/{self.rows}" if self.refused_rows else self.verdict


@dataclass(frozen=True, slots=True)
class Model:
    """What texts are judged by. prompts: token ids. expected: of `generate`, one for each prompt.
    cached: whether `generate` kept keys and values."""

    folder: Path
    tokens_named: bool
    prompts: list[list[int]]
    expected: list[Expected]
    cached: bool = True


def judged(status: int | None, log: str, output: Path, model: Model, *, int8: bool) -> Cell:
    """The verdict on a run. status: its exit code, a signal below 0, None if it was killed for
    taking too long. log: its standard output and error."""
    last = (log.strip().splitlines() or [""])[-1]
    if status is None:
        return Cell("TIMEOUT", last)
    if status < 0:
        return Cell("ABORT", f"signal {-status} {last}")
    if "Traceback (most recent call last)" in log:
        return Cell("TRACEBACK", last)
    said = _REFUSED.search(log)
    if status == 2 and said:
        hint = _HINT.search(log)
        advice = f" ({hint[1]})" if hint else ""
        return Cell("refused", without_folder(said[1] + advice, model.folder))
    rows = _rows(output)
    if status not in (0, 3) or len(rows) != len(model.prompts):
        return Cell("FAILED", f"exit code {status}, {len(rows)} rows written: {last}")
    errors = [row["error"] for row in rows if row.get("error")]
    broken = [error for error in errors if error["code"] == "engine_error"]
    if broken:
        return Cell("FAILED", broken[0]["message"], len(rows), len(errors))
    reason = without_folder(errors[0]["message"], model.folder) if errors else ""
    if len(errors) == len(rows):
        return Cell("refused", reason, len(rows), len(rows))
    return _compared(rows, reason, len(errors), model, int8=int8)


def _compared(
    rows: list[dict[str, Any]], reason: str, refused: int, model: Model, *, int8: bool
) -> Cell:
    prefixes, gaps, wrong = [], [], []
    for number, row in enumerate(rows):
        if row.get("error"):
            continue
        text = _text(model.expected[number], model)
        common = sum(1 for _ in takewhile(bool, map(eq, row["text"], text)))
        prefixes.append(common / len(text) if text else float(row["text"] == text))
        gap = _gap(row, number, model, forgive_ties=not int8)
        gaps.append(gap)
        if gap > (INT8_MOST_GAP if int8 else 0):
            wrong.append(number)
    share = mean(prefixes)
    bad = len(wrong) > 0.3 * len(gaps) or share < INT8_LEAST_PREFIX if int8 else bool(wrong)
    if bad:
        lengths = ", ".join(str(len(model.prompts[number])) for number in wrong)
        reason = f"{len(wrong)} of {len(gaps)} rows, with prompts of {lengths} tokens"
    verdict = "WRONG" if bad else "right"
    return Cell(
        verdict, reason, len(rows), refused, round(share, 3), round(min(max(gaps), 99.0), 3)
    )


def _text(expected: Expected, model: Model) -> str:
    return text_of(expected.token_ids, tokens_named=model.tokens_named)


def _gap(row: dict[str, Any], number: int, model: Model, *, forgive_ties: bool) -> float:
    """How much less probable than the best token the first other one was, in standard deviations
    of the logits; 0 if there is none. After a tie, `generate` goes on from the token taken."""
    ids, limit, written = list(model.prompts[number]), NEW_TOKENS, str(row["text"])
    expected = model.expected[number]
    judge: Judge | None = None
    while True:
        difference = _first_difference(written, row["finish_reason"], expected, model)
        if difference is None:
            return 0.0
        step, taken, rest = difference
        logits = expected.logits[step]
        spread = float(logits.std())
        if taken is None:
            return float("inf")
        gap = float(logits.max() - logits[taken])
        if not forgive_ties or gap > TIE * max(1.0, spread):
            return gap / spread
        ids += [*expected.token_ids[:step], taken]
        limit -= step + 1
        if limit == 0 or taken == 0:
            return 0.0
        judge = judge or Judge(model.folder, cached=model.cached)
        expected, written = judge.expected(ids, limit), rest


def _first_difference(
    written: str, finish_reason: str, expected: Expected, model: Model
) -> tuple[int, int | None, str] | None:
    """The step at which a text leaves `generate`'s, the token it has there (None: none that is
    known), and the text after that; None if it never does."""
    place = 0
    for step, token in enumerate(expected.token_ids):
        ended = place == len(written)
        if token == 0:
            if ended and finish_reason == "stop":
                return None
        elif not text_of((token,), tokens_named=model.tokens_named):
            continue
        elif written[place : place + 1] == character(token):
            place += 1
            continue
        if ended:
            return step, 0 if finish_reason == "stop" else None, ""
        return step, ord(written[place]) - ord(character(0)), written[place + 1 :]
    longer = place < len(written) or finish_reason != "length"
    return (len(expected.token_ids) - 1, None, "") if longer else None


def without_folder(text: str, folder: Path) -> str:
    """A message about a model, the same for all models."""
    return re.sub(re.escape(str(folder.parent.parent)) + r"[^\s:,]*", "the folder", text)


def _rows(output: Path) -> list[dict[str, Any]]:
    lines = output.read_text().splitlines() if output.is_file() else []
    return [json.loads(line) for line in lines]
