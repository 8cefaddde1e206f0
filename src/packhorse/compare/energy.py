"""Read the energy of the processor packages from hardware counters."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Measure joules since construction, summed over processor packages.

    Reads the RAPL counters of Intel and AMD (Linux powercap), which cover the whole machine, not
    one process. On most systems only root may read them. The result is None if there is no readable
    counter; it is never estimated.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = [
            folder for folder in sorted(root.glob("*-rapl:*")) if folder.name.count(":") == 1
        ]
        self._start = self._read()

    def _read(self) -> list[tuple[int, int]] | None:
        """Return (counter, its range) of each package in microjoules."""
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
        """Return the joules since construction.

        A counter that is smaller than before has wrapped around once.
        """
        end = self._read()
        if self._start is None or end is None:
            return None
        spent = 0
        for (before, span), (after, _) in zip(self._start, end, strict=True):
            spent += after - before if after >= before else after - before + span
        return spent / 1e6
