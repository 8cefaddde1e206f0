"""Sampling with a seed on CTranslate2, independent of batch and order.

Each worker thread of CTranslate2 has one random generator, seeded from a process-wide number when
it draws for the first time, and never again (src/random.cc). So a row with a seed needs a worker
that has never drawn. Loading a generator makes ROWS_PER_LOAD of them at once, which share its
weights; a worker whose row has ended is held inside its last callback until all of them have been
used, so that no row can get a used one.

Cost: such rows run alone, as many at a time as the engine has workers; measured with SmolLM2-135M
in int8, a tenth more CPU time than the same rows alone without a seed (a load takes 0.05 s there).
While they run, memory holds the weights once more, and the caches of up to ROWS_PER_LOAD rows.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import ctranslate2

from packhorse.engines.ctranslate2.loading import GeneratorSource

ROWS_PER_LOAD = 8
NO_SEED = 0xFFFFFFFF
_POLL_SECONDS = 0.05
_SEEDING = threading.Lock()


@dataclass(slots=True)
class _Fresh:
    """Workers of one load. retired: releases the held workers once no row will use the rest."""

    generator: Any
    unused: int = ROWS_PER_LOAD
    retired: threading.Event = field(default_factory=threading.Event)


class SeededWorkers:
    """Run rows, one per worker, each with its own seed. Thread-safe; must be closed."""

    def __init__(self, source: GeneratorSource) -> None:
        self._source = source
        self._fresh: _Fresh | None = None
        atexit.register(self.close)

    def generate(
        self, tokens: Sequence[str], seed: int, callback: Callable[[Any], bool], **options: Any
    ) -> None:
        """Generate from one prompt until `callback` or the limit ends the row.

        Rows start one after the other, up to their first token: the seed they start from is one
        number for the whole process.
        """
        drawn, ended = threading.Event(), threading.Event()
        with _SEEDING:
            fresh = self._with_unused_worker()
            fresh.unused -= 1
            retired = fresh.retired

            def on_token(step: Any) -> bool:
                drawn.set()
                is_over = callback(step) or step.is_last
                if is_over:
                    ended.set()
                    retired.wait()
                return is_over

            ctranslate2.set_random_seed(as_32_bits(seed))
            try:
                (job,) = fresh.generator.generate_batch(
                    [tokens], asynchronous=True, callback=on_token, **options
                )
                _await(drawn, job)
            finally:
                ctranslate2.set_random_seed(NO_SEED)
        _await(ended, job)
        if not ended.is_set():
            with _SEEDING:
                self._retire(fresh)
            job.result()

    def close(self) -> None:
        """Release all workers and their memory; may be repeated."""
        atexit.unregister(self.close)
        with _SEEDING:
            if self._fresh is not None:
                self._retire(self._fresh)

    def _with_unused_worker(self) -> _Fresh:
        if self._fresh is not None and not self._fresh.unused:
            self._retire(self._fresh)
        if self._fresh is None:
            self._fresh = _Fresh(self._source.load(ROWS_PER_LOAD))
        return self._fresh

    def _retire(self, fresh: _Fresh) -> None:
        fresh.retired.set()
        if self._fresh is fresh:
            self._fresh = None


def as_32_bits(seed: int) -> int:
    """CTranslate2's seeds have 32 bits, of which the largest number means none: smaller seeds stay
    what they are, others become a digest."""
    if 0 <= seed < NO_SEED:
        return seed
    return int.from_bytes(blake2b(str(seed).encode(), digest_size=8).digest(), "big") % NO_SEED


def _await(event: threading.Event, job: Any) -> None:
    """Returns when the event is set, or the job is over without setting it: it has failed."""
    while not event.wait(_POLL_SECONDS) and not job.done():
        pass
