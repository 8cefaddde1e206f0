"""Place the names of points so that no name covers another, a point or the edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Anchor = Literal["start", "middle", "end"]

LINE_HEIGHT = 13.0
_RINGS = (0.0, 16.0, 31.0, 46.0, 61.0, 76.0)


@dataclass(frozen=True, slots=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def inside(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True)
class Disc:
    """A point as drawn: centre and radius."""

    x: float
    y: float
    radius: float

    @property
    def box(self) -> Box:
        reach = self.radius + 1.5
        return Box(self.x - reach, self.y - reach, self.x + reach, self.y + reach)


@dataclass(frozen=True, slots=True)
class Label:
    """A placed text.

    Attributes:
        x: anchor on the base line.
        y: as x.
        leader: a line (x1, y1, x2, y2) to a point that is not adjacent.
        box: the area the text covers.
    """

    x: float
    y: float
    anchor: Anchor
    leader: tuple[float, float, float, float] | None
    box: Box


def place_labels(
    discs: Sequence[Disc],
    widths: Sequence[float],
    inside: Box,
    first: Sequence[int] = (),
    lines: Sequence[Box] = (),
) -> list[Label | None]:
    """Return a position for a text of each width as near its disc as possible, or None.

    Args:
        first: indices that choose before the others.
        lines: boxes that texts avoid if they can.
    """
    placed: list[Label | None] = [None] * len(discs)
    order = [*first, *(index for index in range(len(discs)) if index not in first)]
    for index in order:
        others = [label for label in placed if label]
        free = [
            label
            for label in _candidates(discs[index], widths[index])
            if label.box.inside(inside) and not _collides(label, index, discs, others)
        ]
        clear = [label for label in free if not any(label.box.touches(line) for line in lines)]
        placed[index] = next(iter(clear + free), None)
    return placed


def _candidates(disc: Disc, width: float) -> Iterator[Label]:
    """Yield positions beside, above and below the disc, then at growing distance."""
    reach = disc.radius + 5
    yield _label(disc.x + reach, disc.y + 4, "start", width, None)
    yield _label(disc.x - reach, disc.y + 4, "end", width, None)
    anchors: tuple[tuple[Anchor, float], ...] = (
        ("middle", 0), ("start", -4), ("end", 4), ("start", 10), ("end", -10),
        ("start", 26), ("end", -26),
    )  # fmt: skip
    for ring in _RINGS:
        for anchor, shift in anchors if ring else anchors[:1]:
            for sign in (-1, 1):
                edge = disc.y + sign * (disc.radius + 1)
                end = edge + sign * (ring + 3)
                base = end - 3 if sign < 0 else end + LINE_HEIGHT - 3
                leader = (disc.x, edge, disc.x + shift, end) if ring else None
                yield _label(disc.x + shift, base, anchor, width, leader)


def _label(
    x: float,
    y: float,
    anchor: Anchor,
    width: float,
    leader: tuple[float, float, float, float] | None,
) -> Label:
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return Label(x, y, anchor, leader, Box(left, y - LINE_HEIGHT + 3, left + width, y + 3))


def _collides(label: Label, own: int, discs: Sequence[Disc], others: Sequence[Label]) -> bool:
    if any(label.box.touches(disc.box) for disc in discs):
        return True
    if any(label.box.touches(other.box) for other in others):
        return True
    if any(_crosses(other.leader, label.box) for other in others):
        return True
    obstacles = [other.box for other in others]
    obstacles += [disc.box for index, disc in enumerate(discs) if index != own]
    return any(_crosses(label.leader, box) for box in obstacles)


def _crosses(line: tuple[float, float, float, float] | None, box: Box) -> bool:
    """Whether the line, sampled at 17 points, crosses the box."""
    if line is None:
        return False
    x1, y1, x2, y2 = line
    steps = [step / 16 for step in range(17)]
    return any(
        box.left < x1 + s * (x2 - x1) < box.right and box.top < y1 + s * (y2 - y1) < box.bottom
        for s in steps
    )
