"""What engines differ in is in the registry: nothing outside engines/ compares their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import packhorse
from packhorse.engine_protocol.registry import BUILT_IN

PACKAGE = Path(packhorse.__file__).parent
EXCEPTIONS = {
    # "packed" is a cost rule here (`engine_protocol.CostRule`), not the engine.
    ("batching/cost.py", "rule == 'packed'"),
}


def comparisons(path: Path) -> Iterator[str]:
    """Comparisons with the name of an engine, and tables that have names of engines as keys."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
            if any(named(part) for part in parts):
                yield ast.unparse(node)
        elif isinstance(node, ast.Dict) and any(map(named, filter(None, node.keys))):
            yield ast.unparse(node)
        elif isinstance(node, ast.match_case) and any(map(named, ast.walk(node.pattern))):
            yield ast.unparse(node.pattern)


def named(node: ast.AST) -> bool:
    """Whether a node is the name of an engine or holds it in a tuple, list or set."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(named, node.elts))
    value = node.value if isinstance(node, ast.Constant | ast.MatchValue) else None
    return named(value) if isinstance(value, ast.AST) else value in BUILT_IN


def test_no_module_compares_the_names_of_engines() -> None:
    found = {
        (str(path.relative_to(PACKAGE)), text)
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != "engines"
        for text in comparisons(path)
    }
    assert found == EXCEPTIONS


def test_the_search_finds_comparisons(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "a == 'packed'\nb in ('fake', 'x')\nc = {'ctranslate2': 1}\nmatch d:\n case 'fake': pass\n"
        "e == 'other'\n"
    )
    assert len(list(comparisons(tmp_path / "x.py"))) == 4
