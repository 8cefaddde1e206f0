"""Text formats of the reports: text from data, times, counted nouns, plain facts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from packhorse.reports.formats import ABSENT, gigabytes

_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def visible(text: str) -> str:
    """Replace control characters (terminal escapes, NUL) by symbols, lone surrogates by U+FFFD."""
    return _HIDDEN.sub(_picture, text)


def when(created: str) -> str:
    """Format an ISO time as 2026-11-22 22:20 UTC; return anything else unchanged."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = moment.tzname() or ""
    return f"{moment:%Y-%m-%d %H:%M} {zone}".strip()


def plain(name: str, value: object) -> tuple[str, str]:
    """Format a key and a value of a free-form dictionary: ("memory", "25.28 GB")."""
    label = name.removesuffix("_bytes").replace("_", " ")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name.endswith("_bytes"):
            return label, f"{gigabytes(value)} GB"
        return label, f"{value:,}" if "seed" not in name else str(value)
    if isinstance(value, Mapping):
        return label, ", ".join(": ".join(plain(str(key), item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return label, ", ".join(plain("", item)[1] for item in value)
    return label, ABSENT if value is None else str(value)


def machine_facts(machine: Mapping[str, Any]) -> list[str]:
    """Return processor and cores of a machine, as far as they are known."""
    processor = machine.get("processor") or machine.get("platform")
    cores = machine.get("cores")
    return [str(processor or ""), counted(int(cores), "core") if cores else ""]


def counted(number_of: int, noun: str) -> str:
    """Format a count with its noun: 1 row, 1,234 rows."""
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if match.group() == "\r":
        return ""
    return chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else "\ufffd"
