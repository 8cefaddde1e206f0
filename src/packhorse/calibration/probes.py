"""Small batches whose times reveal the costs of an engine."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from packhorse.batching.cost import WorkCounts, count_work
from packhorse.batching.sizes import RowSize
from packhorse.data import Batch, EngineOutput, Failure, Prompt, SamplingParams
from packhorse.engine_protocol import Engine, EngineCapabilities
from packhorse.errors import EngineError


@dataclass(frozen=True, slots=True)
class Probe:
    """A batch of equal rows: number of rows, and prompt and generated tokens of each."""

    rows: int
    prompt: int
    new: int


PROBES = (
    Probe(1, 24, 16),
    Probe(8, 48, 16),
    Probe(1, 300, 8),
    Probe(24, 48, 12),
    Probe(4, 300, 8),
    Probe(1, 1000, 6),
    Probe(12, 150, 10),
    Probe(48, 40, 10),
    Probe(8, 300, 8),
    Probe(2, 1000, 6),
    Probe(40, 100, 6),
    Probe(20, 220, 8),
)
"""Cheapest first: a slow model runs out of time after some of them."""
CONTINUOUS_PROBES = (
    Probe(1, 40, 24),
    Probe(16, 64, 1),
    Probe(32, 32, 24),
    Probe(8, 128, 24),
    Probe(2, 1000, 1),
    Probe(8, 256, 1),
    Probe(64, 32, 32),
    Probe(4, 500, 40),
    Probe(96, 16, 40),
    Probe(4, 1000, 1),
    Probe(16, 256, 24),
)
"""Probes for an engine with continuous batching on two threads; more threads get more rows.

Prompts fill several steps, otherwise some threads would be idle. Only the total time counts,
because some rows generate while the prompts of others are computed.
"""
FEWEST_OBSERVATIONS = 8
THROUGHPUT_PROBE = Probe(8, 64, 12)
MEMORY_PROBES = (Probe(20, 64, 1), Probe(1, 2000, 1))
WARM_UP = Probe(2, 16, 4)


@dataclass(frozen=True, slots=True)
class Observation:
    """Work done by one worker while all were busy, and the seconds it took."""

    work: WorkCounts
    seconds: float


def observe(engine: Engine, vocab_size: int, seconds: float) -> list[Observation]:
    """Run probes until `seconds` have passed and return the observations.

    Each batch gives two: up to its first token, and from there to its last. An engine with
    continuous batching gives one. Raises EngineError if the engine cannot run a probe.
    """
    warm_up(engine, vocab_size)
    observations: list[Observation] = []
    started = time.monotonic()
    for probe in fit_to_context(select_probes(engine.capabilities), engine.capabilities):
        if len(observations) >= FEWEST_OBSERVATIONS and time.monotonic() - started > seconds:
            break
        for rows in run_probe(engine, probe, vocab_size):
            observations += _split_observations(engine.capabilities, probe, rows)
    return observations


def select_probes(capabilities: EngineCapabilities) -> Sequence[Probe]:
    """Return the probes for an engine."""
    if not capabilities.max_num_seqs:
        return PROBES
    pairs = -(-capabilities.threads // 2)
    return [
        replace(probe, rows=probe.rows * pairs) if probe.rows > 1 else probe
        for probe in CONTINUOUS_PROBES
    ]


def warm_up(engine: Engine, vocab_size: int) -> None:
    """Run rows that are not measured."""
    (probe,) = fit_to_context([WARM_UP], engine.capabilities)
    run_probe(engine, probe, vocab_size)


def throughput(engine: Engine, vocab_size: int) -> float:
    """Return prompt and generated tokens per second of all workers together."""
    warm_up(engine, vocab_size)
    (probe,) = fit_to_context([THROUGHPUT_PROBE], engine.capabilities)
    started = time.monotonic()
    batches = run_probe(engine, probe, vocab_size)
    elapsed = time.monotonic() - started
    tokens = sum(probe.prompt + len(row.token_ids) for rows in batches for row in rows)
    return tokens / max(elapsed, 1e-9)


def fit_to_context(probes: Sequence[Probe], capabilities: EngineCapabilities) -> Iterator[Probe]:
    """Yield probes, cut to the model's context."""
    for probe in probes:
        new = min(probe.new, max(1, capabilities.max_context // 4))
        longest = min(
            capabilities.max_context - new, capabilities.max_prompt or capabilities.max_context
        )
        yield Probe(probe.rows, min(probe.prompt, longest), new)


def run_probe(engine: Engine, probe: Probe, vocab_size: int) -> list[list[EngineOutput]]:
    """Run `probe` on all workers at once and return its outputs per batch.

    Tokens are drawn from the middle of the vocabulary, which contains words.
    """
    chance = random.Random(probe.rows * probe.prompt)  # noqa: S311 - not for cryptography
    lowest, highest = vocab_size // 4, max(vocab_size // 2, vocab_size // 4 + 1)
    batches = [
        Batch(
            tuple(
                Prompt(
                    worker * probe.rows + row,
                    tuple(chance.randrange(lowest, highest) for _ in range(probe.prompt)),
                    SamplingParams(max_new_tokens=probe.new),
                )
                for row in range(probe.rows)
            )
        )
        for worker in range(engine.capabilities.workers)
    ]
    found: list[list[EngineOutput]] = [[] for _ in batches]
    for result in engine.run(iter(batches)):
        if isinstance(result, Failure):
            raise EngineError(
                f"the engine cannot be calibrated: {result.message}",
                "choose another --batching, e.g. sorted-dynamic",
            )
        found[result.index // probe.rows].append(result)
    return found


def _split_observations(
    capabilities: EngineCapabilities, probe: Probe, rows: Sequence[EngineOutput]
) -> Iterator[Observation]:
    sizes = [RowSize(probe.prompt, probe.new)] * len(rows)
    generated = [len(row.token_ids) + (row.finish_reason == "stop") for row in rows]
    whole = count_work(capabilities.cost_rule, sizes, generated)
    begun = min(row.timing.submitted for row in rows)
    ended = max(row.timing.finished for row in rows)
    firsts = [row.timing.first_token for row in rows if row.timing.first_token is not None]
    if len(firsts) < len(rows) or capabilities.max_num_seqs:
        yield Observation(whole, ended - begun)
        return
    first = count_work(capabilities.cost_rule, sizes, [1] * len(rows))
    yield Observation(first, max(firsts) - begun)
    rest = WorkCounts(*(all_of_it - part for all_of_it, part in zip(whole, first, strict=True)))
    if rest.steps > 0:
        yield Observation(rest, ended - max(firsts))
