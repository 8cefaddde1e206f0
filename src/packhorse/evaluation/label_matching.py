"""Match an answer of a model with a label."""

from __future__ import annotations

import re
import unicodedata

_OPENING = " \t\"'`*_([{<“‘«„#>"
_CLOSING = " \t\"'`*_)]}>”’»“.,:;!?…"
_CLAUSE_END = re.compile(r"[.,:;!?…](?=\s|$)")


def normalise(text: str) -> str:
    """Return the form in which labels and answers are compared.

    NFKC, case folded, white space collapsed, without surrounding quotes, brackets, Markdown marks
    and closing punctuation.
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.lstrip(_OPENING).rstrip(_CLOSING)


def is_right(answer: str, label: str) -> bool:
    """Whether the first line of `answer` that is not blank, or its first clause, is the label.

    Both sides are normalised. A clause ends at . , : ; ! ? before white space or the end of the
    line: "Spam. It asks for money." is right for "spam"; "The answer is spam" and "spam filter"
    are not. A model that explains first is wrong by this rule: ask it for the label alone.
    """
    line = next((line for line in answer.splitlines() if line.strip()), "")
    wanted = normalise(label)
    return bool(wanted) and wanted in (normalise(line), normalise(_CLAUSE_END.split(line)[0]))
