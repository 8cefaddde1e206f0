"""Measures an engine: how to divide the cores, then what each kind of work costs."""

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
"""Probes begin within this time; the last one may take longer."""
MEMORY_REPEATS = 4
MEMORY_SECONDS = 5.0
"""A memory probe is not repeated after this time."""
NOISE = 0.05
"""Differences of throughput (share) that a trial of a fraction of a second cannot tell apart."""


def stored_calibration(prepared: PreparedModel, config: EngineConfig) -> Calibration | None:
    """What `calibrate` found before on this machine, with these versions; None if nothing."""
    return store.read(store.calibration_path(prepared, config))


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
    started, other_work = time.monotonic(), OtherWork()
    report(f"measuring what {prepared.name} costs on this machine (once)")
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
        report("the calibration could not be kept: it is measured again next time")
    return calibration


def choose_fastest(trials: Sequence[ThreadTrial]) -> ThreadTrial:
    """The fastest division; of those inside NOISE of it the one of fewest workers, because each
    worker takes memory for a batch of its own."""
    enough = (1 - NOISE) * max(trial.tokens_per_second for trial in trials)
    fast = [trial for trial in trials if trial.tokens_per_second >= enough]
    return min(fast, key=lambda trial: trial.workers)


def list_core_divisions(cores: int) -> list[tuple[int, int]]:
    """Ways to divide cores among workers that are worth a trial: (workers, threads of each)."""
    workers = {1, cores, *(1 << power for power in range(cores.bit_length()))}
    return [(number, cores // number) for number in sorted(workers, reverse=True)]


def _measure_prefill_memory(engine: Engine, facts: ModelFacts) -> PrefillMemory:
    """From the growth of this process over a batch of many short prompts and one long prompt.

    What was freed is given back before each: the allocator keeps it, and a batch that finds enough
    of it would seem to need nothing. Workers need most at moments that seldom meet, so where it is
    quick the largest of MEMORY_REPEATS is taken.
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
    """Both figures from what two batches took (bytes). A prompt's tokens take their cache at
    least; growth that is not proportional to tokens is taken to be of pairs, never below 0."""
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
    """The engine with the fastest division of the cores, loaded, and what each one reached."""
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
    """The engine as asked for: the one given where it is that already, else loaded anew."""
    if (engine.capabilities.workers, engine.capabilities.threads) == (
        config.workers,
        config.threads,
    ):
        return engine
    engine.close()
    return load_engine(prepared, facts, config)
