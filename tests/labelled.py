"""Labelled rows that tests make: learnable from words, or not."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from packhorse.assess.rows import LabelledRow

WORDS = [
    "load",
    "road",
    "hill",
    "mule",
    "rope",
    "bell",
    "dawn",
    "dusk",
    "stone",
    "river",
    "bridge",
    "gate",
    "field",
    "wind",
    "cloud",
]
SIGNS = {
    "good": ["sunny", "warm", "kind", "bright", "glad", "calm"],
    "bad": ["stormy", "cold", "cruel", "dark", "sad", "wild"],
}


def texts(count: int, *, learnable: bool, seed: int = 1) -> list[tuple[str, str]]:
    """(text, label) pairs of two labels. Learnable: three words of each text tell its label; else
    nothing in it does."""
    chance = random.Random(seed)
    made = []
    for number in range(count):
        label = chance.choice(sorted(SIGNS))
        words = chance.choices(WORDS, k=14)
        if learnable:
            words += chance.choices(SIGNS[label], k=3)
            chance.shuffle(words)
        made.append((f"{' '.join(words)} {chance.randrange(10**6)} {number}", label))
    return made


def rows(
    pairs: Iterable[tuple[str, str]], groups: Sequence[str] | None = None
) -> list[LabelledRow]:
    return [
        LabelledRow(number + 1, text, label, groups[number] if groups else f"line {number + 1}")
        for number, (text, label) in enumerate(pairs)
    ]


def write_csv(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        writer.writerows((number, *pair) for number, pair in enumerate(pairs))
    return path


def write_answers(path: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    """What PACKHORSE_FAKE_ANSWERS names: the fake engine then knows every label."""
    path.write_text(json.dumps([list(pair) for pair in pairs]))
    return path
