"""Code, commands and links of the documentation, for tests that execute and check them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = ("assess", "compare")
"""Folders of docs/ with reports that verbs wrote."""
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (
        *sorted(ROOT.glob("*.md")),
        *(path for path in sorted(DOCS.rglob("*.md")) if path.parent.name not in GENERATED),
    )
)
"""All pages that people write, relative to the project's folder."""
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELLS = ("", "console", "sh", "shell", "bash")


def text_of(page: str) -> str:
    """Return a page, named relative to the project's folder."""
    return (ROOT / page).read_text(encoding="utf-8")


def code_blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a language on a page of docs/, in order."""
    return [code for name, code in _FENCE.findall(text_of(f"docs/{page}")) if name == language]


def prose(page: str) -> str:
    """Return a page without its fenced and indented blocks."""
    return re.sub(r"^ {4}.*$", "", _FENCE.sub("", text_of(page)), flags=re.MULTILINE)


def shell_commands(page: str, program: str) -> Iterator[list[str]]:
    """Yield the commands of a page's blocks that start with `program`, as lists of words.

    Blocks are indented by four spaces or fenced as a shell's. A backslash continues a line, and
    comments are left out.
    """
    text = text_of(page)
    blocks = "".join(code for name, code in _FENCE.findall(text) if name in _SHELLS)
    blocks += re.sub(r"^(?! {4}).*$", "", _FENCE.sub("", text), flags=re.MULTILINE)
    for line in re.sub(r"\\\n", " ", blocks).splitlines():
        command = line.strip().removeprefix("$ ")
        if command.startswith(f"{program} "):
            yield shlex.split(command, comments=True)


def inline_code(page: str) -> list[str]:
    """Return the texts in single backticks outside of blocks."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: str) -> list[str]:
    """Return the targets of a page's links and images that are no web addresses."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.*)$", _FENCE.sub("", text_of(page)), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
        base = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number, anchor = 0, base
        while anchor in found:
            number += 1
            anchor = f"{base}-{number}"
        found.add(anchor)
    return found
