"""The results of `families.py` as a table for a terminal and as a page of the documentation."""

from __future__ import annotations

from collections import Counter

from family_verdicts import BAD, Cell

Results = dict[str, dict[str, Cell]]


def table(results: Results, engines: list[str]) -> str:
    """Families by engines, then every reason once with the families it holds for."""
    width = max(map(len, results), default=0)
    columns = [max(len(engine), 11) for engine in engines]
    lines = [
        " " * width + "  " + "  ".join(e.ljust(w) for e, w in zip(engines, columns, strict=True))
    ]
    for name, cells in results.items():
        shorts = [_short(engine, cells[engine]) for engine in engines]
        row = "  ".join(short.ljust(w) for short, w in zip(shorts, columns, strict=True))
        lines.append(f"{name.ljust(width)}  {row}")
    for verdict in ("refused", "right", "unknown", *BAD):
        lines += _reasons(results, verdict)
    return "\n".join(lines)


def summary(results: Results, seconds: float) -> str:
    """How many cells have which verdict."""
    counts = Counter(cell.verdict for cells in results.values() for cell in cells.values())
    shown = [f"{counts[verdict]} {verdict}" for verdict in ("right", "refused", "unknown", *BAD)]
    return f"{len(results)} families: {', '.join(shown)} in {seconds:.0f} s"


def _short(engine: str, cell: Cell) -> str:
    return f"{cell.short} {cell.prefix:.2f}" if "int8" in engine and cell.prefix else cell.short


def _reasons(results: Results, verdict: str) -> list[str]:
    found: dict[str, dict[str, None]] = {}
    for name, cells in results.items():
        for engine, cell in cells.items():
            if cell.verdict == verdict and cell.reason:
                who = f"{name} ({engine})" if verdict in BAD else name
                found.setdefault(f"{engine.split()[0]}: {cell.reason}", {})[who] = None
    return [f"\n{verdict}, {reason}\n    {', '.join(names)}" for reason, names in found.items()]


def markdown(results: Results) -> str:
    """To be written."""
    return str(len(results))
