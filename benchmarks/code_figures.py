"""Print the size and shape of the code: files, lines, length of functions, cycles of imports.

python benchmarks/code_figures.py
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median, quantiles

PACKAGE = Path(__file__).parents[1] / "src" / "packhorse"


def function_lengths(tree: ast.AST) -> list[int]:
    """Lines of each function, decorators and docstring included."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def imported_folders(tree: ast.AST) -> set[str]:
    """Folders and modules below packhorse that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package, *rest = node.module.split(".")
            if package == "packhorse":
                found |= {rest[0]} if rest else {alias.name for alias in node.names}
    return found


def main() -> None:
    lengths: list[int] = []
    lines: dict[str, int] = {}
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        name = path.relative_to(PACKAGE)
        folder = name.parts[0].removesuffix(".py")
        lines[str(name)] = text.count("\n")
        lengths += function_lengths(tree)
        if folder not in ("__init__", "__main__"):
            graph.setdefault(folder, set()).update(imported_folders(tree) - {folder})
    try:
        list(TopologicalSorter(graph).static_order())
        cycles = "none"
    except CycleError as error:
        cycles = " -> ".join(error.args[1])
    longest = max(lines, key=lines.__getitem__)
    print(f"files              {len(lines)}")
    print(f"lines              {sum(lines.values()):,}")
    print(
        f"function length    median {median(lengths):.0f}, p90 {quantiles(lengths, n=10)[-1]:.0f}"
    )
    print(
        f"longer than 40     {sum(length > 40 for length in lengths)} of {len(lengths)} functions"
    )
    print(f"longest file       {longest} ({lines[longest]} lines)")
    print(f"top-level modules  {len(list(PACKAGE.glob('*.py')))}")
    print(f"folder cycles      {cycles}")


if __name__ == "__main__":
    main()
