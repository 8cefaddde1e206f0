"""Axes, names beside points, strips, and where two texts part."""

from __future__ import annotations

import pytest
from documents import KNEE, RECOMMENDED, comparison
from hypothesis import given
from hypothesis import strategies as st

from packhorse.compare.document import WorstRow
from packhorse.compare.html.scatter import NARROW, WIDE, Layout, outline, scatters
from packhorse.compare.html.strips import latency_strips
from packhorse.compare.html.text_diff import SplitText, split_at_difference
from packhorse.reports.html.axes import ratio_axis, share_axis, spanning_axis
from packhorse.reports.html.label_placement import Box, Disc, place_labels

POSITIVE = st.floats(1e-6, 1e9)
COORDINATE = st.floats(0, 500)


class TestAxes:
    @pytest.mark.parametrize(
        ("low", "high", "log", "ticks"),
        [
            (0.33, 1.48, False, (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6)),
            (0.5, 100.0, True, (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)),
            (1.0, 1e8, True, tuple(10.0**power for power in range(9))),
            (2.0, 2.0, False, (1.6, 1.8, 2.0, 2.2, 2.4)),
        ],
    )
    def test_spanning(self, low: float, high: float, log: bool, ticks: tuple[float, ...]) -> None:
        axis = spanning_axis(low, high, 0, 100)
        assert (axis.log, axis.ticks) == (log, ticks)

    @given(POSITIVE, POSITIVE)
    def test_everything_is_inside(self, one: float, other: float) -> None:
        low, high = sorted((one, other))
        axis = spanning_axis(low, high, 10, 90)
        assert 10 <= axis.at(low) <= axis.at(high) <= 90
        assert all(10 <= axis.at(tick) <= 90 for tick in axis.ticks)

    @pytest.mark.parametrize(
        ("low", "bottom"),
        [(0.0, 0.0), (0.39, 0.0), (0.41, 0.3), (0.85, 0.8), (0.9, 0.8), (1.0, 0.0)],
    )
    def test_share(self, low: float, bottom: float) -> None:
        axis = share_axis(low, 100, 0)
        assert axis.low == pytest.approx(bottom)
        assert axis.high == 1.0
        assert (axis.at(1.0), axis.at(axis.low)) == (0, 100)

    def test_twice_and_half_are_equally_far_from_one(self) -> None:
        axis = ratio_axis(0.5, 2.0, 0, 100)
        assert axis.at(2.0) - axis.at(1.0) == pytest.approx(axis.at(1.0) - axis.at(0.5))


class TestLabels:
    ROOM = Box(0, 0, 500, 500)

    @pytest.mark.slow
    @given(st.lists(st.tuples(COORDINATE, COORDINATE, st.floats(2, 12)), max_size=15))
    def test_cover_neither_each_other_nor_a_point_nor_the_edge(
        self, places: list[tuple[float, float, float]]
    ) -> None:
        discs = [Disc(*place) for place in places]
        labels = [label for label in place_labels(discs, [60.0] * len(discs), self.ROOM) if label]
        for number, label in enumerate(labels):
            assert label.box.inside(self.ROOM)
            assert not any(label.box.touches(disc.box) for disc in discs)
            assert not any(label.box.touches(other.box) for other in labels[:number])

    def test_beside_when_there_is_room(self) -> None:
        label = place_labels([Disc(100, 100, 5)], [60.0], self.ROOM)[0]
        assert label is not None
        assert (label.x, label.anchor, label.leader) == (110, "start", None)

    def test_keeps_clear_of_lines_if_it_can(self) -> None:
        line = Box(0, 99, 500, 101)
        label = place_labels([Disc(100, 100, 5)], [60.0], self.ROOM, lines=[line])[0]
        assert label is not None
        assert label.anchor == "middle"

    def test_no_room_no_label(self) -> None:
        assert place_labels([Disc(5, 5, 5)], [60.0], Box(0, 0, 20, 20)) == [None]


class TestScatter:
    @pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
    def test_points_and_marks(self, layout: Layout) -> None:
        drawings = scatters(comparison(), layout)
        assert [drawing.measure.name for drawing in drawings] == [
            "matched_prefix", "rows_identical", "cosine",
        ]  # fmt: skip
        for drawing in drawings:
            marked = [(p.trial.name, p.knee, p.recommended) for p in drawing.points if p.label]
            assert (KNEE, True, False) in marked
            assert (RECOMMENDED, False, True) in marked
            for point in drawing.points:
                assert layout.margins[0] <= point.x <= layout.width - layout.margins[2]
                assert 0 <= point.y <= layout.height - layout.margins[3]

    def test_every_trial_has_its_name_where_there_is_room(self) -> None:
        assert all(point.label for point in scatters(comparison(), WIDE)[0].points)

    def test_the_front_of_another_measure_is_its_own(self) -> None:
        by_prefix, _, by_cosine = scatters(comparison(), WIDE)
        assert [p.trial.name for p in by_prefix.points if p.pareto] == list(comparison().pareto)
        assert [p.trial.name for p in by_cosine.points if p.pareto] == [KNEE, RECOMMENDED]

    @pytest.mark.parametrize("shape", range(6))
    def test_outlines_are_closed_paths(self, shape: int) -> None:
        path = outline(shape, 6.0)
        assert path.startswith("M")
        assert path.endswith("z")


class TestStrips:
    @pytest.mark.parametrize("narrow", [False, True])
    def test_a_dot_a_row_and_repeat(self, narrow: bool) -> None:
        drawing = latency_strips(comparison(), narrow=narrow)
        assert drawing is not None
        assert [strip.dots.count("M") for strip in drawing.strips] == [192] * 7 + [64] + [192] * 7
        assert drawing.strips[7].name.endswith("(failed)")
        assert drawing.strips[7].p50 is None

    def test_many_rows_are_thinned_out(self) -> None:
        drawing = latency_strips(comparison(rows=2_000), narrow=False)
        assert drawing is not None
        assert all(strip.dots.count("M") == 400 for strip in drawing.strips)


def parted(left: str, right: str) -> tuple[SplitText, SplitText]:
    return split_at_difference(WorstRow("id", "prompt", left, right, 0.0, None))


class TestTexts:
    @pytest.mark.parametrize(
        ("left", "right", "expected"),
        [
            ("a big dog", "a bit dog", (("a ", "big", " dog"), ("a ", "bit", " dog"))),
            ("one", "two", (("", "one", ""), ("", "two", ""))),
            ("same start", "same", (("same", "␣", "start"), ("same", "(ends here)", ""))),
            ("", "text", (("", "(no text)", ""), ("", "text", ""))),
            ("a\nb", "a b", (("a", "↵", "\nb"), ("a", "␣", "b"))),
            ("x" * 90 + "1", "x" * 90 + "2", (("x" * 90, "1", ""), ("x" * 90, "2", ""))),
        ],
    )
    def test_part_at_the_first_word_that_differs(
        self, left: str, right: str, expected: tuple[tuple[str, str, str], ...]
    ) -> None:
        assert parted(left, right) == tuple(SplitText(*three) for three in expected)

    @given(st.text(), st.text())
    def test_share_what_is_common(self, left: str, right: str) -> None:
        ours, theirs = parted(left, right)
        assert ours.common == theirs.common
        assert left.startswith(ours.common)
        assert right.startswith(theirs.common)
