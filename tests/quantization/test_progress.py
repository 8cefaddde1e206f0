from __future__ import annotations

from packhorse.quantization.progress import StepProgress


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_the_step_its_share_and_the_time_left() -> None:
    clock, lines = Clock(), list[str]()
    steps = StepProgress(
        "preparing m", {"loading": 1, "reading": 3, "rounding": 6}, lines.append, clock
    )
    steps.begin("loading")
    clock.now = 10.0
    reading = steps.begin("reading")
    clock.now = 12.0
    reading(0.1)
    clock.now = 20.0
    reading(0.5)
    clock.now = 400.0
    steps.begin("rounding")(1.0)
    assert lines == [
        "preparing m: loading",
        "preparing m: reading, about 90 s left".replace("90 s", "2 min"),
        "preparing m: reading, 50%, about 60 s left",
        "preparing m: rounding, about 10 min left",
    ]


def test_a_step_that_is_left_out_counts_as_done() -> None:
    clock, lines = Clock(), list[str]()
    steps = StepProgress("m", {"a": 1, "b": 8, "c": 1}, lines.append, clock)
    clock.now = 9.0
    steps.begin("c")
    assert lines == ["m: c, about 1 s left"]
