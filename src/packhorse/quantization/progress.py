"""Progress of long work in lines: the start of each step, then share done and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_SECONDS_BETWEEN = 5.0


class StepProgress:
    """Report the steps of a long operation.

    A step that is skipped counts as done once a later one begins.
    """

    def __init__(
        self,
        title: str,
        shares: Mapping[str, float],
        report: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the clock.

        Args:
            title: Start of every line.
            shares: Step -> its usual share of the whole work, in any unit, in order.
            report: Receives one line per report.
            clock: Returns the time (seconds).
        """
        self._title, self._shares, self._report, self._clock = title, dict(shares), report, clock
        self._started = self._reported = clock()

    def begin(self, step: str) -> Callable[[float], None]:
        """Report the start of a step; return the function that takes the share of it done."""
        names = list(self._shares)
        before = sum(self._shares[name] for name in names[: names.index(step)])
        total = sum(self._shares.values())
        self._say(f"{self._title}: {step}{self._left(before / total)}")

        def advance(share: float) -> None:
            if share < 1 and self._clock() - self._reported >= _SECONDS_BETWEEN:
                done = (before + share * self._shares[step]) / total
                self._say(f"{self._title}: {step}, {share:.0%}{self._left(done)}")

        return advance

    def _left(self, done: float) -> str:
        """Return the time left as text, "" until a tenth of the work is done."""
        if done < 0.1:
            return ""
        seconds = (self._clock() - self._started) * (1 - done) / done
        if seconds >= 90:
            return f", about {seconds / 60:.0f} min left"
        return f", about {max(1, round(seconds))} s left"

    def _say(self, line: str) -> None:
        self._reported = self._clock()
        self._report(line)
