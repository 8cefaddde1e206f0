"""GitHub-flavoured Markdown: escaped text, tables, lists, code blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from packhorse.reports.text import plain, visible


def cell(value: str, around: str) -> str:
    """Return a value and its interval."""
    return f"{value} ({around})" if around else value


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column is left-aligned, the others right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """Return facts as a list."""
    known = (plain(name, value) for name, value in items)
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in known)


def fenced(words: str, language: str = "sh") -> str:
    """Return a command or a text in a code block whose fence it cannot close."""
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(words)}\n{fence}"


def escape(text: str) -> str:
    """Return the text on one line with Markdown and HTML escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(visible(text).split()))
