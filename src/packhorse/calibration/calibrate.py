"""Measures an engine: how to divide the cores, then what each kind of work costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from packhorse.calibration import store
from packhorse.calibration.fit import fit
from packhorse.calibration.probes import (
    MEMORY_PROBE,
    WARM_UP,
    fitting,
    observe,
    run_probe,
    throughput,
)
from packhorse.calibration.store import Calibration, ThreadTrial
from packhorse.config import EngineConfig
from packhorse.contract import Engine
from packhorse.engines import load_engine
from packhorse.engines.cores import usable_cores
from packhorse.meters import current_memory_bytes, peak_memory_bytes
from packhorse.models import ModelFacts, PreparedModel, model_facts

PROBE_SECONDS = 20.0
"""Probes begin within this time; the last one may take longer."""


def stored_calibration(prepared: PreparedModel, config: EngineConfig) -> Calibration | None:
    """What `calibrate` found before on this machine, with these versions; None if nothing."""
    return store.read(store.place(prepared, config))


def calibrate(
    prepared: PreparedModel,
    config: EngineConfig,
    report: Callable[[str], None],
    seconds: float = PROBE_SECONDS,
) -> Calibration:
    """Measures the engine, keeps what was found and returns it.

    Where neither workers nor threads are asked for and the engine can run batches side by side, the
    divisions of the cores are tried first and the fastest is taken.

    Raises ModelError and EngineError as loading does, and EngineError when probes cannot be run.
    """
    started = time.monotonic()
    report(f"measuring what {prepared.name} costs on this machine (once)")
    facts = model_facts(prepared)
    engine = load_engine(prepared, facts, config)
    load_seconds = time.monotonic() - started
    loaded_bytes = current_memory_bytes()
    try:
        engine, trials = _fastest(engine, prepared, facts, config)
        prefill_bytes = _prefill_bytes(engine, facts)
        observations = observe(engine, facts.vocab_size, seconds)
        coefficients, error = fit(observations)
        traits = engine.traits
    finally:
        engine.close()
    calibration = Calibration(
        model=prepared.name,
        traits=traits,
        thread_trials=trials,
        coefficients=coefficients,
        observations=len(observations),
        error=error,
        load_seconds=load_seconds,
        loaded_bytes=loaded_bytes,
        prefill_bytes=prefill_bytes,
        seconds=time.monotonic() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if not store.write(store.place(prepared, config), calibration):
        report("the calibration could not be kept: it is measured again next time")
    return calibration


def divisions(cores: int) -> list[tuple[int, int]]:
    """Ways to divide cores among workers that are worth a trial: (workers, threads of each)."""
    workers = {1, cores, *(1 << power for power in range(cores.bit_length()))}
    return [(number, cores // number) for number in sorted(workers, reverse=True)]


def _prefill_bytes(engine: Engine, facts: ModelFacts) -> int:
    """Memory that computing a prompt took beside its cache, for each of its tokens (bytes)."""
    run_probe(engine, WARM_UP, facts.vocab_size)
    before = peak_memory_bytes()
    (probe,) = fitting([MEMORY_PROBE], engine.traits)
    run_probe(engine, probe, facts.vocab_size)
    tokens = engine.traits.workers * probe.rows * probe.prompt
    grown = (peak_memory_bytes() - before) / tokens
    return max(0, round(grown - engine.traits.cache_bytes_per_token))


def _fastest(
    engine: Engine, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
) -> tuple[Engine, tuple[ThreadTrial, ...]]:
    """The engine with the fastest division of the cores, loaded, and what each one reached."""
    is_open = config.workers is None and config.threads is None and engine.traits.device == "cpu"
    if not (is_open and engine.traits.runs_side_by_side):
        return engine, ()
    trials = []
    for workers, threads in divisions(usable_cores()):
        engine = _with(engine, prepared, facts, replace(config, workers=workers, threads=threads))
        trials.append(ThreadTrial(workers, threads, throughput(engine, facts.vocab_size)))
    best = max(trials, key=lambda trial: trial.tokens_per_second)
    chosen = replace(config, workers=best.workers, threads=best.threads)
    return _with(engine, prepared, facts, chosen), tuple(trials)


def _with(
    engine: Engine, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
) -> Engine:
    """The engine as asked for: the one given where it is that already, else loaded anew."""
    if (engine.traits.workers, engine.traits.threads) == (config.workers, config.threads):
        return engine
    engine.close()
    return load_engine(prepared, facts, config)
