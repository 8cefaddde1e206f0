"""Fixtures that many tests share: the real demonstration model, and small random ones."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import hypothesis
import pytest

import tiny_models
from packhorse.storage.cache_folder import cache_root
from servers import FAKE, Served, served

if TYPE_CHECKING:
    from packhorse.assess.document import Assessment

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; libraries that are loaded later would each take all of them.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of a process that waits for a core otherwise spin: small operations then take 10 times the
# CPU time as soon as there are more busy threads than cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Kernels depend on the source and the machine only: tests with an empty model cache share them.
os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_root() / "kernels"))

# A busy machine is no failure: laws are about results, not about milliseconds. In CI every run has
# the same examples, so that what failed fails again; everywhere else they are new each time.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


CONTESTS = {"learnable", "hidden", "both"}
"""Fixtures that hold an assessment, which takes about 15 s."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that load the demonstration model, or that need an assessment, by fixtures."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "demo_model_folder" in fixtures:
            item.add_marker(pytest.mark.real_model)
        if fixtures & CONTESTS:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def demo_model_folder() -> Path:
    """The Hugging Face folder of smollm2-135m-instruct, prepared in the cache."""
    from packhorse.models import prepare

    return prepare("smollm2-135m-instruct", engine="transformers").folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model cache."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PACKHORSE_HOME", str(folder))
    return folder


@pytest.fixture
def messages() -> list[str]:
    """What was reported: give `messages.append` as report."""
    return []


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {
        "llama": tiny_models.tiny_llama(root / "llama"),
        "tied": tiny_models.tiny_llama(root / "tied", tied=True),
        "gpt2": tiny_models.tiny_gpt2(root / "gpt2"),
    }


@pytest.fixture
def tiny(built: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a small model, to be changed at will: tiny("llama"), tiny("gpt2")."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(built[name], tmp_path / name))

    return copied


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each of the assessments below, by name; all test processes share them."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    return {name: root / f"contest-{name}" for name in CONTESTS}


@pytest.fixture(scope="session")
def learnable(folders: dict[str, Path]) -> Assessment:
    from contests import hold_learnable

    return held_once(folders["learnable"], hold_learnable)


@pytest.fixture(scope="session")
def hidden(folders: dict[str, Path]) -> Assessment:
    from contests import hold_hidden

    return held_once(folders["hidden"], hold_hidden)


@pytest.fixture(scope="session")
def both(folders: dict[str, Path]) -> Assessment:
    from contests import hold_both

    return held_once(folders["both"], hold_both)


def held_once(folder: Path, hold: Callable[[Path], Assessment]) -> Assessment:
    """Hold a contest in a folder unless another test process of this run has held it there."""
    with filelock.FileLock(folder.with_suffix(".lock")):
        result = folder / "assessment.pickle"
        if not result.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            result.write_bytes(pickle.dumps(hold(folder)))
        assessment: Assessment = pickle.loads(result.read_bytes())  # noqa: S301
        return assessment


@pytest.fixture(scope="session")
def fake_server() -> Iterator[Served]:
    """`packhorse serve` with the fake engine; answers at once."""
    with served(*FAKE) as server:
        yield server


@pytest.fixture(scope="module")
def slow_server() -> Iterator[Served]:
    """The same, 20 ms a token and two batches at a time."""
    arguments = ("--workers", "2", "--max-queue", "6")
    with served(*FAKE, *arguments, seconds_per_token=0.02) as server:
        yield server
