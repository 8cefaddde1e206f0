"""The architecture as tests: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import packhorse

PACKAGE = Path(packhorse.__file__).parent

# A module imports only from lines above its own.
LAYERS = [
    {"errors"},
    {"streams"},
    {"cgroups"},
    {"json_files"},
    {"labels"},
    {"atomic"},
    {"durable"},
    {"data"},
    {"config"},
    {"contract"},
    {"batching"},
    {"sources"},
    {"tokenizer_files"},
    {"tokenization"},
    {"meters"},
    {"statistics"},
    {"export"},
    {"workspace"},
    {"journal_rows"},
    {"journal"},
    {"reports"},
    {"quantization"},
    {"models"},
    {"embeddings"},
    {"engines"},
    {"machine"},
    {"calibration"},
    {"duplicates"},
    {"answering"},
    {"growing_text"},
    {"log_probs"},
    {"session"},
    {"manifest"},
    {"interruption"},
    {"jobs"},
    {"pipeline"},
    {"compare"},
    {"assess"},
    {"quantizing"},
    {"forecast"},
    {"serve"},
    {"load_test"},
    {"cli"},
]
FACADE = {"__init__", "__main__"}
HEAVY = (
    "torch", "transformers", "ctranslate2", "sklearn", "skops", "fastapi", "pyarrow", "numpy",
    "rich",
)  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in FACADE:
            yield parts[0], path


def imported_rooms(path: Path) -> set[str]:
    """Rooms of packhorse that a file imports anywhere in it."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            head, *rest = node.module.split(".")
            if head == "packhorse":
                rooms |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                head, *rest = alias.name.split(".")
                if head == "packhorse" and rest:
                    rooms.add(rest[0])
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return rooms - {"__version__"}


def test_every_room_has_a_layer() -> None:
    known = set().union(*LAYERS)
    assert {room for room, _ in modules()} <= known


@pytest.mark.parametrize(
    ("room", "path"),
    [pytest.param(*item, id=str(item[1].relative_to(PACKAGE))) for item in modules()],
)
def test_a_room_imports_only_from_rooms_above(room: str, path: Path) -> None:
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    below = {name for name in imported_rooms(path) - {room} if level[name] >= level[room]}
    assert not below


@pytest.mark.parametrize("code", ["import packhorse", "import packhorse.cli as c; c._parser(None)"])
def test_importing_loads_no_heavy_library(code: str) -> None:
    probe = f"import sys; {code}; print([m for m in {HEAVY!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "verb",
    [
        "run", "serve", "load-test", "compare", "assess", "classify", "status", "export",
        "quantize", "prepare", "plan", "calibrate", "models",
    ],
)  # fmt: skip
def test_help_of_a_verb_loads_no_model_library(verb: str) -> None:
    probe = (
        f"import sys, packhorse.cli as c\ntry: c.main([{verb!r}, '--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'ctranslate2', 'sklearn', 'skops') "
        "if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip().splitlines()[-1] == "[]"


def test_public_names() -> None:
    assert sorted(packhorse.__all__) == packhorse.__all__
    for name in packhorse.__all__:
        assert getattr(packhorse, name).__doc__ or name == "__version__"
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        packhorse.absent  # noqa: B018
