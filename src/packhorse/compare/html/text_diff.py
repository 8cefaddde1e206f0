"""Two texts side by side: where they part."""

from __future__ import annotations

from dataclasses import dataclass

from packhorse.compare.document import WorstRow

_LONGEST_WORD = 32
_SPACES = {"\n": "↵", "\t": "⇥", " ": "␣"}


@dataclass(frozen=True, slots=True)
class SplitText:
    """common: what both begin with; first: the word at which this one leaves it; rest: after it.

    first names what cannot be seen: white space by a sign, an end by "(ends here)".
    """

    common: str
    first: str
    rest: str


def split_at_difference(row: WorstRow) -> tuple[SplitText, SplitText]:
    """The reference's text and the trial's, parted at the word of the first difference."""
    place = _first_difference(row.reference_text, row.text)
    return _split(row.reference_text, place), _split(row.text, place)


def _first_difference(left: str, right: str) -> int:
    """Index of the first character that differs, moved back to the start of its word if in one."""
    shorter = min(len(left), len(right))
    place = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    if all(not text[place : place + 1].strip() for text in (left, right)):
        return place
    for back in range(min(place, _LONGEST_WORD) + 1):
        at = place - back
        if at == 0 or left[at - 1].isspace():
            return at
    return place


def _split(text: str, place: int) -> SplitText:
    common, rest = text[:place], text[place:]
    if not rest:
        return SplitText(common, "(ends here)" if common else "(no text)", "")
    if rest[0].isspace():
        return SplitText(common, _SPACES.get(rest[0], "␣"), rest if rest[0] == "\n" else rest[1:])
    end = next((i for i, letter in enumerate(rest[:_LONGEST_WORD]) if letter.isspace()), None)
    end = min(len(rest), _LONGEST_WORD) if end is None else end
    return SplitText(common, rest[:end], rest[end:])
