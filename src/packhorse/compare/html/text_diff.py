"""Split two texts at their first difference."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compare.document import WorstRow

_LONGEST_WORD = 32
_SPACES = {"\n": "↵", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True, slots=True)
class SplitText:
    """A text around its first difference from another.

    Attributes:
        common: shared beginning.
        first: the word that differs; white space is shown as a sign, an end as "(ends here)".
        rest: everything after it.
    """

    common: str
    first: str
    rest: str


def split_at_difference(row: WorstRow) -> tuple[SplitText, SplitText]:
    """Return the reference's text and the trial's, split at the first word that differs."""
    index = _first_difference(row.reference_text, row.text)
    return _split(row.reference_text, index), _split(row.text, index)


def _first_difference(left: str, right: str) -> int:
    """Return the index of the first different character, moved back to the start of its word."""
    shorter = min(len(left), len(right))
    index = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    if all(not text[index : index + 1].strip() for text in (left, right)):
        return index
    for back in range(min(index, _LONGEST_WORD) + 1):
        at = index - back
        if at == 0 or left[at - 1].isspace():
            return at
    return index


def _split(text: str, index: int) -> SplitText:
    common, rest = text[:index], text[index:]
    if not rest:
        return SplitText(common, "(ends here)" if common else "(no text)", "")
    if rest[0].isspace():
        return SplitText(common, _SPACES.get(rest[0], "␣"), rest if rest[0] == "\n" else rest[1:])
    end = next((i for i, letter in enumerate(rest[:_LONGEST_WORD]) if letter.isspace()), None)
    end = min(len(rest), _LONGEST_WORD) if end is None else end
    return SplitText(common, rest[:end], rest[end:])
