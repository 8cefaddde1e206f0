"""The results of `families.py`: a table for a terminal, and the page docs/models.md."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version

from family_verdicts import BAD, Cell

Results = dict[str, dict[str, Cell]]
COLUMNS = ("transformers", "ctranslate2", "packed")
PAGE = """# Models

What each engine runs. This page is written by

    python benchmarks/families.py --markdown docs/models.md

which builds a small random model of each family ({families} settings of {types} model types, with
transformers {transformers} and CTranslate2 {ctranslate2}), runs `packhorse run` over rows of very
different length on every engine, and compares the texts with those of transformers' own `generate`,
greedy, a row at a time, in float32. Sliding windows and trained lengths are shorter than the
prompts. "yes" means that every text is the same. [How to read it](benchmarks.md#families).

`--engine auto` is on a CPU the first of packed, ctranslate2 and transformers that runs a model.

## Families that more than one engine runs

"int8" is there where that format runs too. A number is a reason, below.

{several}

## Families that transformers alone runs

{alone}

## Models that no engine runs

{none}
{wrong}
## Reasons

{reasons}
"""


def table(results: Results, engines: list[str]) -> str:
    """Families by engines, then every reason once with the families it holds for."""
    width = max(map(len, results), default=0)
    columns = [max(len(engine), 11) for engine in engines]
    head = "  ".join(name.ljust(w) for name, w in zip(engines, columns, strict=True))
    lines = [f"{' ' * width}  {head}"]
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
    return f"\n{len(results)} families: {', '.join(shown)} in {seconds:.0f} s"


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


def markdown(results: Results, model_types: dict[str, str]) -> str:
    """The page of the documentation. model_types: by the name of a family."""
    notes: dict[str, int] = {}
    several = [
        "| model type | setting | transformers | ctranslate2 | packed |",
        "|---|---|---|---|---|",
    ]
    alone: list[str] = []
    none: dict[str, list[str]] = {}
    wrong: list[str] = []
    for name, cells in results.items():
        engines = {engine: _of_engine(cells, engine) for engine in COLUMNS}
        runs = {engine for engine, cell in engines.items() if cell and cell.verdict == "right"}
        bad = [engine for engine, cell in cells.items() if cell.verdict in BAD]
        if bad:
            wrong.append(f"- {name} on {', '.join(bad)}")
        if runs - {"transformers"}:
            shown = [_described(engine, cells, engines[engine], notes) for engine in engines]
            several.append(f"| {model_types[name]} | {name} | {' | '.join(shown)} |")
        elif runs:
            alone.append(name + _note(engines["transformers"], notes))
        elif not bad:
            none.setdefault(_text_of(engines["transformers"]), []).append(name)
    numbered = [f"{number}. {reason}" for reason, number in notes.items()]
    return PAGE.format(
        families=len(results),
        types=len({model_types[name] for name in results}),
        transformers=version("transformers"),
        ctranslate2=version("ctranslate2"),
        several="\n".join(several),
        alone=", ".join(alone),
        none="\n".join(f"- {', '.join(names)}: {reason}" for reason, names in none.items()),
        wrong="\n".join(["", "## Wrong", "", *wrong, ""]) if wrong else "",
        reasons="\n".join(numbered),
    )


def _of_engine(cells: dict[str, Cell], engine: str) -> Cell | None:
    """The worst cell of an engine in float32."""
    found = [cell for name, cell in cells.items() if name.startswith(engine) and "int8" not in name]
    order = (*BAD, "unknown", "refused", "right")
    return min(found, key=lambda cell: order.index(cell.verdict), default=None)


def _described(
    engine: str, cells: dict[str, Cell], cell: Cell | None, notes: dict[str, int]
) -> str:
    if cell is None:
        return "not run"
    if cell.verdict != "right":
        shown = "no" if cell.verdict == "refused" else f"**{cell.verdict}**"
        return shown + _note(cell, notes)
    int8 = cells.get(f"{engine} int8")
    shown = "yes, int8" if int8 and int8.verdict == "right" else "yes"
    return f"{shown}, but for some rows{_note(cell, notes)}" if cell.refused_rows else shown


def _note(cell: Cell | None, notes: dict[str, int]) -> str:
    """The number of a cell's reason, in superscript."""
    if cell is None or not cell.reason:
        return ""
    number = notes.setdefault(_text_of(cell), len(notes) + 1)
    return f" <sup>{number}</sup>"


def _text_of(cell: Cell | None) -> str:
    return cell.reason.replace("|", "\\|").replace("<", "&lt;") if cell else "not run"
