"""docs/how-to/add-an-engine.md, executed; and what else another package may register."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import packhorse
from docs_code import code_blocks
from packhorse.engine_protocol.registry import GROUP, engine_entry, engine_names
from packhorse.errors import ConfigError, EngineError
from packhorse.models import prepare

PAGE = "how-to/add-an-engine.md"
HERE = Path(__file__).parent


def install(folder: Path, package: str, entry_points: dict[str, str], **modules: str) -> None:
    """Lay a package out in a folder as pip does."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path with the package of the page."""
    engine, test = code_blocks(PAGE, "python")
    (project,) = code_blocks(PAGE, "toml")
    described = tomllib.loads(project)["project"]
    install(
        tmp_path / "site",
        described["name"],
        described["entry-points"][GROUP],
        toy_engine=engine,
        test_toy=test,
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    for name in ("toy_engine", "broken_engine", "other_engine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path / "site"


def environment(*folders: Path) -> dict[str, str]:
    source = Path(packhorse.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, source)))}


def test_the_page_is_short() -> None:
    from docs_code import DOCS

    for page in (DOCS / "how-to").glob("add-*.md"):
        assert len(page.read_text().splitlines()) < 120


@pytest.mark.slow
def test_the_engine_of_the_page_conforms(site: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(site / "test_toy.py")],
        cwd=site, env=environment(site, HERE, HERE.parent), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 25


@pytest.mark.slow
def test_run_takes_the_engine_of_the_page(site: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"Row {n}"}) + "\n" for n in range(5)))
    words = ["any-name", str(source), "-o", str(output), "--max-new-tokens", "6"]
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", "run", *words, "--engine", "toy"],
        env=environment(site), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(output.read_text().splitlines()) == 5
    assert "toy" in (tmp_path / "answers.jsonl.manifest.json").read_text()


def test_an_unknown_engine_lists_those_of_packages(site: Path) -> None:
    assert engine_names() == ("transformers", "ctranslate2", "packed", "fake", "toy")
    with pytest.raises(ConfigError, match="unknown engine 'vllm'") as caught:
        prepare("any", engine="vllm")
    assert caught.value.hint == "known: transformers, ctranslate2, packed, fake, toy"
    words = ["run", "any", "absent.jsonl", "-o", "o.jsonl", "--engine", "vllm"]
    done = subprocess.run(
        [sys.executable, "-m", "packhorse", *words],
        env=environment(site), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    known = "known: auto, transformers, ctranslate2, packed, fake, toy"
    assert f"unknown engine 'vllm' ({known})" in done.stderr


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("raise RuntimeError('no GPU\\nand more')", "RuntimeError: no GPU"),
        ("import absent_library", "ModuleNotFoundError: No module named 'absent_library'"),
        ("", "AttributeError: module 'broken_engine' has no attribute 'ENTRY'"),
        ("ENTRY = 'toy'", "broken_engine:ENTRY is no EngineEntry"),
        ("from toy_engine import ENTRY", "its entry is named 'toy'"),
    ],
)
def test_a_broken_package_is_one_line_and_costs_no_other(
    site: Path, module: str, message: str
) -> None:
    install(site, "broken-package", {"broken": "broken_engine:ENTRY"}, broken_engine=module)
    assert engine_names()[-2:] == ("broken", "toy")
    with pytest.raises(EngineError) as caught:
        engine_entry("broken")
    assert str(caught.value) == f"the engine 'broken' of broken-package cannot be used: {message}"
    assert engine_entry("toy").name == "toy"
    assert prepare("any", engine="fake").engine == "fake"


def test_a_built_in_name_is_never_that_of_a_package(site: Path) -> None:
    install(site, "shadow", {"fake": "other_engine:ENTRY"}, other_engine="raise SystemExit")
    assert engine_entry("fake").loader == "packhorse.engines.fake:load"
    assert engine_names().count("fake") == 1


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site, "toy-two", {"toy": "other_engine:ENTRY"}, other_engine="")
    with pytest.raises(ConfigError, match=r"register the engine 'toy': packhorse-toy, toy-two"):
        engine_entry("toy")


def test_names_are_listed_without_importing_an_engine(site: Path) -> None:
    engine_names()
    assert "toy_engine" not in sys.modules
