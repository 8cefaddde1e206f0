"""The architecture as tests: who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import packhorse

PACKAGE = Path(packhorse.__file__).parent

# A folder imports from its own layer and from layers above it; the table reads from the ground up.
LAYERS = {
    "base": {
        "errors",
        "data",
        "params",
        "config",
        "engine_protocol",
        "cgroups",
        "storage",
    },
    "rows": {"batching", "profiling", "openai_format", "inputs", "outputs", "tokenization"},
    "models": {"decoders", "quantization", "models", "embeddings"},
    "running": {"engines", "calibration", "inference"},
    "jobs": {"jobs", "reports", "evaluation", "techniques"},
    "verbs": {"compare", "assess", "decide", "quantize", "estimate", "serve", "load_test"},
    "cli": {"cli"},
}
LEVEL = {folder: level for level, layer in enumerate(LAYERS.values()) for folder in layer}
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


def imported_folders(path: Path) -> set[str]:
    """Folders of packhorse that a file imports anywhere in it."""
    folders = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            head, *rest = node.module.split(".")
            if head == "packhorse":
                folders |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                head, *rest = alias.name.split(".")
                if head == "packhorse" and rest:
                    folders.add(rest[0])
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return folders - {"__version__"}


def files_imported(path: Path) -> Iterator[str]:
    """Dotted names below packhorse of the modules that a file imports when it runs."""
    tree = ast.parse(path.read_text())
    for_types = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").partition(".")[0] == "packhorse"
        ):
            base = (node.module or "").partition(".")[2]
            for alias in node.names:
                deeper = f"{base}.{alias.name}" if base else alias.name
                yield deeper if file_of(deeper) else base


def file_of(module: str) -> Path | None:
    place = PACKAGE / Path(*module.split(".")) if module else PACKAGE
    found = [place.with_suffix(".py"), place / "__init__.py"]
    return next((path for path in found if path.is_file()), None)


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Names that import each other in a circle, or none."""
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_folder_has_a_layer() -> None:
    assert {folder for folder, _ in modules()} == set(LEVEL)


def test_the_top_level_has_few_modules() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 8


@pytest.mark.parametrize(
    ("folder", "path"),
    [pytest.param(*item, id=str(item[1].relative_to(PACKAGE))) for item in modules()],
)
def test_a_folder_imports_no_layer_below_its_own(folder: str, path: Path) -> None:
    imported = imported_folders(path) - {folder}
    assert not {name for name in imported if LEVEL[name] > LEVEL[folder]}
    if folder in LAYERS["verbs"]:
        assert not imported & LAYERS["verbs"], "verbs do not import each other"


def test_folders_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {folder: set() for folder in LEVEL}
    for folder, path in modules():
        graph[folder] |= imported_folders(path) - {folder}
    assert cycle_of(graph) == []


@pytest.mark.parametrize("folder", sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
def test_files_of_a_folder_do_not_import_each_other_in_a_circle(folder: str) -> None:
    graph: dict[str, set[str]] = {}
    for path in (PACKAGE / folder).rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)}
        graph[name] = set(files_imported(path)) - {name} - parents
    assert cycle_of(graph) == []


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
