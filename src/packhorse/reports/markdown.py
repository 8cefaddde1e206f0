"""Markdown as GitHub reads it: text that stays text, tables, lists, commands."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from packhorse.reports.text import plain, visible


def cell(value: str, around: str) -> str:
    """A value and its interval."""
    return f"{value} ({around})" if around else value


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column from the left, the others from the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """Facts as a list."""
    known = (plain(name, value) for name, value in items)
    return "\n".join(f"- {escape(name)}: {escape(value)}" for name, value in known)


def fenced(words: str, language: str = "sh") -> str:
    """A command or a text in a block of its own, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", words)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(words)}\n{fence}"


def escape(text: str) -> str:
    """Text that Markdown and the HTML inside it leave alone, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~&])", r"\\\1", " ".join(visible(text).split()))
