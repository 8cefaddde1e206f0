"""Calibrations of the fake engine: what is measured, stored and read."""

from __future__ import annotations

import ctypes
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from packhorse.calibration import calibrate, stored_calibration
from packhorse.calibration.calibrate import choose_fastest, fit_prefill_memory, list_core_divisions
from packhorse.calibration.probes import (
    CONTINUOUS_PROBES,
    MEMORY_PROBES,
    PROBES,
    fit_to_context,
    run_probe,
    select_probes,
)
from packhorse.calibration.store import ThreadTrial, calibration_path, write
from packhorse.cli import main
from packhorse.config import BatchingConfig, EngineConfig
from packhorse.data import Batch, EngineOutput, Failure
from packhorse.engine_protocol import TokenCallback
from packhorse.engine_protocol.registry import ModelKind
from packhorse.engines.fake import FakeEngine, Faults
from packhorse.errors import EngineError
from packhorse.inference.model import load_prepared
from packhorse.models import PreparedModel, prepare


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedModel:
    monkeypatch.setenv("PACKHORSE_HOME", str(tmp_path))
    return prepare("anything", engine="fake")


def silent(message: str) -> None:
    pass


def test_it_is_kept_and_found_again(prepared: PreparedModel) -> None:
    assert stored_calibration(prepared, EngineConfig("fake")) is None
    made = calibrate(prepared, EngineConfig("fake"), silent)
    assert stored_calibration(prepared, EngineConfig("fake")) == made
    assert made.observations >= 2 * 4
    assert made.loaded_bytes > 0


def test_another_setting_is_another_calibration(prepared: PreparedModel) -> None:
    calibrate(prepared, EngineConfig("fake"), silent)
    for other in (EngineConfig("fake", workers=1), EngineConfig("fake", quantization="int8")):
        assert stored_calibration(prepared, other) is None


def test_cores_are_divided_by_trial_unless_asked_otherwise(prepared: PreparedModel) -> None:
    free = calibrate(prepared, EngineConfig("fake"), silent)
    best = choose_fastest(free.thread_trials)
    assert (free.capabilities.workers, free.capabilities.threads) == (best.workers, best.threads)
    asked = calibrate(prepared, EngineConfig("fake", workers=3), silent)
    assert (asked.capabilities.workers, asked.thread_trials) == (3, ())


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, [(1, 1)]), (2, [(2, 1), (1, 2)]), (6, [(6, 1), (4, 1), (2, 3), (1, 6)])],
)
def test_divisions(cores: int, expected: list[tuple[int, int]]) -> None:
    assert list_core_divisions(cores) == expected


@pytest.mark.parametrize("content", ["", "{}", '{"format": 1}', '{"format": 0}', "[1]", "null"])
def test_a_damaged_file_is_no_calibration(prepared: PreparedModel, content: str) -> None:
    calibrate(prepared, EngineConfig("fake"), silent)
    calibration_path(prepared, EngineConfig("fake")).write_text(content)
    assert stored_calibration(prepared, EngineConfig("fake")) is None


def test_one_of_before_other_work_was_noted_is_still_good(prepared: PreparedModel) -> None:
    made = calibrate(prepared, EngineConfig("fake"), silent)
    path = calibration_path(prepared, EngineConfig("fake"))
    document = json.loads(path.read_bytes())
    del document["other_work_share"]
    path.write_text(json.dumps(document))
    assert stored_calibration(prepared, EngineConfig("fake")) == replace(made, other_work_share=0.0)


def test_a_cache_that_cannot_be_written_costs_no_job(
    prepared: PreparedModel, tmp_path: Path
) -> None:
    (tmp_path / "calibrations").write_text("in the way")
    said: list[str] = []
    assert calibrate(prepared, EngineConfig("fake"), said.append).capabilities.cost_rule == "padded"
    assert "could not be stored" in said[-1]


def test_a_short_context_shortens_the_probes() -> None:
    capabilities = FakeEngine(max_context=64).capabilities
    assert all(probe.prompt + probe.new <= 64 for probe in fit_to_context(PROBES, capabilities))
    assert all(
        probe.prompt >= 1 and probe.new >= 1 for probe in fit_to_context(PROBES, capabilities)
    )


def test_threads_that_share_a_job_get_rows_each() -> None:
    """A probe of one row measures a single step and keeps its one row."""
    capabilities = replace(FakeEngine(threads=6).capabilities, max_num_seqs=256)
    rows = [probe.rows for probe in select_probes(capabilities)]
    assert rows == [3 * probe.rows if probe.rows > 1 else 1 for probe in CONTINUOUS_PROBES]
    assert select_probes(FakeEngine(threads=6).capabilities) == PROBES


def test_a_probe_runs_on_every_worker() -> None:
    engine = FakeEngine(workers=3)
    batches = run_probe(engine, PROBES[1], 256)
    assert [len(rows) for rows in batches] == [PROBES[1].rows] * 3


def test_an_engine_that_fails_says_so() -> None:
    engine = FakeEngine(faults=Faults(fail_rows=frozenset({0})))
    with pytest.raises(EngineError, match="cannot be calibrated") as caught:
        run_probe(engine, PROBES[0], 256)
    assert "--batching" in caught.value.hint


def test_planned_calibrates_once_and_says_so(prepared: PreparedModel) -> None:
    said: list[str] = []
    for _ in range(2):
        with load_prepared(
            prepared, EngineConfig("fake"), BatchingConfig("planned"), said.append
        ) as model:
            assert model.calibration is not None
            assert model.batching.policy == "planned"
            answers = list(model.generate(["one", "two", "three"], max_new_tokens=5))
            assert sorted(answer.index for answer in answers) == [0, 1, 2]
    assert len([line for line in said if line.startswith("measuring")]) == 1
    assert "(once)" in said[0]


def test_auto_is_sorted_dynamic_for_an_engine_that_pads(prepared: PreparedModel) -> None:
    with load_prepared(prepared, EngineConfig("fake"), BatchingConfig()) as model:
        assert model.batching.policy == "sorted-dynamic"
        assert model.calibration is None


@pytest.mark.parametrize(
    ("speeds", "workers"),
    [
        ({1: 100.0}, 1),
        ({4: 300.0, 2: 200.0, 1: 100.0}, 4),
        ({4: 300.0, 2: 290.0, 1: 100.0}, 2),
        ({4: 300.0, 2: 280.0, 1: 100.0}, 4),
        ({2: 100.1, 1: 100.0}, 1),
        ({2: 90.0, 1: 100.0}, 1),
    ],
)
def test_a_tie_goes_to_fewer_workers(speeds: dict[int, float], workers: int) -> None:
    trials = [ThreadTrial(number, 4 // number, speed) for number, speed in speeds.items()]
    assert choose_fastest(trials).workers == workers


@pytest.mark.parametrize(
    ("grown", "expected"),
    [
        ((128e6, 400e6), (100_000 - 64 * 100_000 / 1936, 100_000 / 1936)),
        ((128e6, 200e6), (100_000, 0)),
        ((128e6, 100e6), (100_000, 0)),
        ((0, 0), (46_080, 0)),
    ],
)
def test_memory_of_prompts(grown: tuple[float, float], expected: tuple[float, float]) -> None:
    """1,280 tokens of short prompts and 2,000 of one: tokens alone, tokens and pairs, nothing."""
    assert fit_prefill_memory(*MEMORY_PROBES, grown, 46_080) == pytest.approx(expected)


class Hoarder(FakeEngine):
    """Engine whose allocator keeps freed memory; 20 kB per token and 40 bytes per pair."""

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[EngineOutput | Failure]:
        libc = ctypes.CDLL(None)
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        for batch in batches:
            blocks = []
            for prompt in batch.prompts:
                size = 20_000 * len(prompt.token_ids) + 40 * len(prompt.token_ids) ** 2
                block = libc.malloc(ctypes.c_size_t(size))
                ctypes.memset(block, 1, size)
                blocks.append(block)
            for block in blocks:
                libc.free(block)
            yield from super().run(iter([batch]), on_token)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator alone")
def test_memory_that_the_allocator_keeps_is_measured(prepared: PreparedModel) -> None:
    """Runs in a process of its own, whose allocator keeps freed memory."""
    command = [sys.executable, "-c", HOARDING, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    token_bytes, pair_bytes = json.loads(done.stdout)
    assert token_bytes == pytest.approx(20_000, rel=0.2)
    assert pair_bytes == pytest.approx(40, rel=0.2)


HOARDING = """
import json, sys
sys.path.insert(0, sys.argv[1])
from packhorse.calibration.calibrate import _measure_prefill_memory
from packhorse.engines.common.allocator import keep_freed_memory
from packhorse.models import model_facts
from packhorse.models import prepare
from test_calibrate import Hoarder
keep_freed_memory()
engine = Hoarder(workers=1, max_context=4096)
print(json.dumps(_measure_prefill_memory(engine, model_facts(prepare("anything", engine="fake")))))
"""


@pytest.mark.parametrize("kind", ["huggingface", "ctranslate2", "none"])
def test_what_auto_becomes_and_what_is_named_are_one_calibration(
    prepared: PreparedModel, kind: ModelKind
) -> None:
    """`calibrate MODEL` measures what `plan` reads, and `run` uses it.

    A CTranslate2 folder runs as stored unless a format is named.
    """
    form = "int8" if kind == "ctranslate2" else "float32"
    ready = replace(prepared, kind=kind, quantization=form, quantization_method="rotate")
    left_out = calibration_path(ready, EngineConfig())
    named = EngineConfig(ready.engine, "cpu", form, quantization_method="rotate")
    assert calibration_path(ready, named) == left_out
    assert calibration_path(ready, replace(named, quantization="int16")) != left_out
    assert calibration_path(ready, replace(named, threads=1)) != left_out


def test_a_run_says_that_what_it_goes_by_was_disturbed(prepared: PreparedModel) -> None:
    """Holds for any policy: workers and threads come from the calibration too."""
    engine = EngineConfig("fake", workers=2)
    made = calibrate(prepared, engine, silent)
    for share, expected in ((0.05, 0), (0.4, 1)):
        write(calibration_path(prepared, engine), replace(made, other_work_share=share))
        said: list[str] = []
        load_prepared(prepared, engine, BatchingConfig("sorted"), said.append).close()
        assert len(said) == expected
    assert "40%" in said[0]
    assert main(shlex.split(said[0].split("to repeat it when idle: packhorse ")[1])) == 0
    again = stored_calibration(prepared, engine)
    assert again is not None
    assert again.created >= made.created
    assert again.other_work_share != 0.4
