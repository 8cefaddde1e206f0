"""Energy of the processor package as the hardware counts it, where it can be read."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Joules since construction, summed over processor packages, by Intel's and AMD's RAPL counters
    (Linux powercap). The whole machine is counted, not one process. Root only on most systems; None
    where there is no counter or it may not be read: an estimate is never given.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = [
            folder for folder in sorted(root.glob("*-rapl:*")) if folder.name.count(":") == 1
        ]
        self._start = self._read()

    def _read(self) -> list[tuple[int, int]] | None:
        """(counter, its range) of each package, in microjoules."""
        try:
            return [
                (
                    int((folder / "energy_uj").read_text()),
                    int((folder / "max_energy_range_uj").read_text()),
                )
                for folder in self._domains
            ] or None
        except (OSError, ValueError):
            return None

    def joules(self) -> float | None:
        """A counter that is smaller than it was has wrapped around once."""
        end = self._read()
        if self._start is None or end is None:
            return None
        spent = 0
        for (before, span), (after, _) in zip(self._start, end, strict=True):
            spent += after - before if after >= before else after - before + span
        return spent / 1e6
