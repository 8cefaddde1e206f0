"""Calibration of an engine: how to divide the cores, then the cost of each kind of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from packhorse.batching.cost import PrefillMemory
from packhorse.calibration import store
from packhorse.calibration.fit import fit
from packhorse.calibration.probes import (
    MEMORY_PROBES,
    Probe,
    fit_to_context,
    observe,
    run_probe,
    throughput,
    warm_up,
)
from packhorse.calibration.store import Calibration, ThreadTrial
from packhorse.config import EngineConfig
from packhorse.engine_protocol import Engine
from packhorse.engines import load_engine
from packhorse.engines.common.allocator import return_freed_memory
from packhorse.models import ModelFacts, PreparedModel, model_facts
from packhorse.profiling.cores import usable_cores
from packhorse.profiling.run_metrics import (
    OtherWork,
    current_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)

PROBE_SECONDS = 20.0
"""Probes start within this time; the last one may take longer."""
MEMORY_REPEATS = 4
MEMORY_SECONDS = 5.0
"""A memory probe is not repeated after this time."""
NOISE = 0.05
"""Relative throughput difference that a trial of a fraction of a second cannot resolve."""


def stored_calibration(prepared: PreparedModel, config: EngineConfig) -> Calibration | None:
    """Return an earlier calibration for this machine and these versions; None if there is none."""
    return store.read(store.calibration_path(prepared, config))


def calibrate(
    prepared: PreparedModel,
    config: EngineConfig,
    report: Callable[[str], None],
    seconds: float = PROBE_SECONDS,
) -> Calibration:
    """Measure the engine, store the calibration and return it.

    If neither workers nor threads are given and the engine can run batches side by side, divisions
    of the cores are tried first and the fastest one is used.

    Raises:
        ModelError: The model cannot be loaded.
        EngineError: The engine cannot be loaded or probes fail.
    """
    started, other_work = time.monotonic(), OtherWork()
    report(f"measuring the cost of {prepared.name} on this machine (once)")
    facts = model_facts(prepared)
    engine = load_engine(prepared, facts, config)
    load_seconds = time.monotonic() - started
    prepared.codec()
    loaded_bytes = current_memory_bytes()
    try:
        memory = _measure_prefill_memory(engine, facts)
        engine, trials = _load_fastest(engine, prepared, facts, config)
        observations = observe(engine, facts.vocab_size, seconds)
        coefficients, error = fit(observations)
        capabilities = engine.capabilities
    finally:
        engine.close()
    calibration = Calibration(
        model=prepared.name,
        capabilities=capabilities,
        thread_trials=trials,
        coefficients=coefficients,
        observations=len(observations),
        error=error,
        load_seconds=load_seconds,
        loaded_bytes=loaded_bytes,
        memory=memory,
        seconds=time.monotonic() - started,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        other_work_share=other_work.share(),
    )
    if not store.write(store.calibration_path(prepared, config), calibration):
        report("the calibration could not be stored: it will be measured again next time")
    return calibration


def choose_fastest(trials: Sequence[ThreadTrial]) -> ThreadTrial:
    """Return the fastest division; of those within NOISE of it, the one with the fewest workers.

    Fewer workers are preferred because each one needs memory for its own batch.
    """
    enough = (1 - NOISE) * max(trial.tokens_per_second for trial in trials)
    fast = [trial for trial in trials if trial.tokens_per_second >= enough]
    return min(fast, key=lambda trial: trial.workers)


def list_core_divisions(cores: int) -> list[tuple[int, int]]:
    """Return the divisions of cores to try: (workers, threads per worker)."""
    workers = {1, cores, *(1 << power for power in range(cores.bit_length()))}
    return [(number, cores // number) for number in sorted(workers, reverse=True)]


def _measure_prefill_memory(engine: Engine, facts: ModelFacts) -> PrefillMemory:
    """Measure the growth of this process for a batch of short prompts and for one long prompt.

    Freed memory is returned to the system before each measurement: the allocator keeps it, and a
    batch that finds enough of it would seem to need nothing. Workers seldom reach their peaks at
    the same moment, so the largest of MEMORY_REPEATS measurements is used if there is time.
    """
    warm_up(engine, facts.vocab_size)
    capabilities = engine.capabilities
    short, long = fit_to_context(MEMORY_PROBES, capabilities)
    grown = []
    for probe in (short, long):
        largest, started = 0, time.monotonic()
        for _ in range(MEMORY_REPEATS):
            return_freed_memory()
            before = reset_peak_memory()
            run_probe(engine, probe, facts.vocab_size)
            largest = max(largest, peak_memory_bytes() - before)
            if time.monotonic() - started > MEMORY_SECONDS:
                break
        grown.append(largest / capabilities.workers - probe.rows * capabilities.step_bytes_per_row)
    return fit_prefill_memory(short, long, grown, capabilities.cache_bytes_per_token)


def fit_prefill_memory(
    short: Probe, long: Probe, grown: Sequence[float], cache_bytes: int
) -> PrefillMemory:
    """Return the memory per token and per pair from the growth in two batches (bytes).

    A token needs at least its cache; growth that is not proportional to tokens is attributed to
    pairs and never negative.
    """
    tokens = (short.rows * short.prompt, long.rows * long.prompt)
    pairs = (tokens[0] * short.prompt, tokens[1] * long.prompt)
    pair_bytes = (grown[1] / tokens[1] - grown[0] / tokens[0]) / max(1, long.prompt - short.prompt)
    pair_bytes = max(0.0, pair_bytes)
    token_bytes = max(
        float(cache_bytes),
        *(
            (each - pair_bytes * pair) / token
            for each, pair, token in zip(grown, pairs, tokens, strict=True)
        ),
    )
    return PrefillMemory(token_bytes, pair_bytes)


def _load_fastest(
    engine: Engine, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
) -> tuple[Engine, tuple[ThreadTrial, ...]]:
    """Return the engine loaded with the fastest division of the cores, and all trials."""
    is_open = (
        config.workers is None and config.threads is None and engine.capabilities.device == "cpu"
    )
    if not (is_open and engine.capabilities.runs_side_by_side):
        return engine, ()
    trials = []
    for workers, threads in list_core_divisions(usable_cores()):
        engine = _reload(engine, prepared, facts, replace(config, workers=workers, threads=threads))
        trials.append(ThreadTrial(workers, threads, throughput(engine, facts.vocab_size)))
    best = choose_fastest(trials)
    chosen = replace(config, workers=best.workers, threads=best.threads)
    return _reload(engine, prepared, facts, chosen), tuple(trials)


def _reload(
    engine: Engine, prepared: PreparedModel, facts: ModelFacts, config: EngineConfig
) -> Engine:
    """Return the engine with the given options, loaded again only if they differ."""
    if (engine.capabilities.workers, engine.capabilities.threads) == (
        config.workers,
        config.threads,
    ):
        return engine
    engine.close()
    return load_engine(prepared, facts, config)
