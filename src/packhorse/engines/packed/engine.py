"""The engine `packed`: rows join and leave at every step, and no padding is ever computed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from packhorse.batching.memory import SHARE_OF_FREE_MEMORY, available_bytes
from packhorse.config import EngineConfig
from packhorse.contract import EngineTraits, TokenWatch
from packhorse.data import Batch, Decoding, Failure, Prompt, Scores
from packhorse.engines.allocator import return_freed_memory
from packhorse.engines.cores import usable_cores
from packhorse.engines.packed.architecture import read_architecture
from packhorse.engines.packed.cache import KeyValueCache, bytes_per_token
from packhorse.engines.packed.compiling import compiled_now, kernel_folder
from packhorse.engines.packed.int8_products import products_are_exact
from packhorse.engines.packed.memory import weight_bytes, working_bytes
from packhorse.engines.packed.network import COUNTS, PHASES, Network, Scratch
from packhorse.engines.packed.running import Result as Outcome
from packhorse.engines.packed.running import Run
from packhorse.engines.packed.scheduler import Scheduler
from packhorse.engines.packed.scoring import Scoring, logits_after
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.weights import load_weights
from packhorse.engines.rows import Result
from packhorse.errors import EngineError, ModelError

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

QUANTIZATIONS = ("float32", "int8")
ROWS = 256
STEP_TOKENS = 512
CACHE_TOKENS = 1 << 16
_DAMAGED = "the files are damaged, incomplete or of another kind: fetch or prepare them again"
_IN_PARTS = (
    "this CPU has no VNNI: to be exact, int8 weights are held in two parts, twice as large, and "
    "each product is two; float32 may be as fast"
)
_log = logging.getLogger("packhorse.engines")


class PackedEngine:
    """Steps of packed tokens, one a thread at the same time; rows are yielded as they finish.

    folder: config.json and weights of a model of a known family (`architecture.FAMILIES`); no code
    of it is run. end_ids: token ids that end a row. max_context: prompt and generated tokens of a
    row (tokens), less where the cache holds fewer. quantization: "float32", which "auto" is, or
    "int8": weights per output channel, activations per row, the cache per token and head.
    device: "auto" or "cpu". threads: steps computed at the same time; None is one a core.
    cache_bytes: memory for keys and values, allocated once; None is what CACHE_TOKENS or one row
    of max_context take, and at most SHARE_OF_FREE_MEMORY of what is free. `traits.peak_bytes` is
    what it all comes to. rows: under way at most.
    step_tokens: tokens of a step at most, at least `rows`.

    In float32, rows answer as with transformers. In int8 a row gives the same tokens in any batch.
    One `run` at a time. Raises EngineError for a family, format, device or size it cannot do,
    ModelError for a folder that cannot be loaded whole.
    """

    def __init__(
        self,
        folder: Path,
        *,
        end_ids: tuple[int, ...],
        max_context: int,
        quantization: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        cache_bytes: int | None = None,
        rows: int = ROWS,
        step_tokens: int = STEP_TOKENS,
    ) -> None:
        _require(quantization, device)
        quantized = quantization == "int8"
        built = read_architecture(folder)
        if quantized and not products_are_exact():
            _log.warning(_IN_PARTS)
        weights = load_weights(folder, built, quantized=quantized)
        built = replace(built, ties_head=weights.ties_head)
        return_freed_memory()
        token_bytes = bytes_per_token(built, quantized=quantized)
        blocks = _blocks(token_bytes, max_context, cache_bytes)
        context = min(max_context, blocks * BLOCK)
        cache = KeyValueCache(built, blocks, quantized=quantized)
        self._network: Network | None = Network(built, weights, cache, context)
        self._end_ids = frozenset(end_ids)
        self._rows, self._step_tokens = rows, max(step_tokens, rows)
        self._threads = threads or usable_cores()
        self._scratches = [
            Scratch(built, self._step_tokens, rows, context, quantized=quantized)
            for _ in range(self._threads)
        ]
        self._run: Run | None = None
        self._lock = threading.Lock()
        self._traits = EngineTraits(
            name="packed",
            cost_rule="packed",
            device="cpu",
            compute_type="int8" if quantized else "float32",
            workers=1,
            threads=self._threads,
            max_context=context,
            model_bytes=weight_bytes(built, quantized=quantized),
            cache_bytes_per_token=token_bytes,
            preferred_batch_tokens=blocks * BLOCK,
            shares_prefixes=True,
            rows_under_way=rows,
            gives_log_probs=True,
            working_bytes=working_bytes(built, self._scratches, context),
        )
        self._try_out(folder)

    @property
    def traits(self) -> EngineTraits:
        return self._traits

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of all threads together in each of `network.PHASES`, and `network.COUNTS`, so
        far."""
        kept = [{**scratch.seconds, **scratch.counts} for scratch in self._scratches]
        return {name: sum(each[name] for each in kept) for name in (*PHASES, *COUNTS)}

    def run(self, batches: Iterator[Batch], watch: TokenWatch | None = None) -> Iterator[Result]:
        """See `packhorse.contract.Engine`. Rows are pulled as there is room for them: `rows` are
        under way, and a quarter as many wait."""
        return cast(Iterator[Result], self._results(batches, watch))

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.contract.Scorer`. Rows come and go as in `run`."""
        results = self._results(batches, scoring=Scoring(continuations))
        return cast("Iterator[Scores | Failure]", results)

    def _results(
        self,
        batches: Iterator[Batch],
        watch: TokenWatch | None = None,
        scoring: Scoring | None = None,
    ) -> Iterator[Outcome]:
        with self._lock:
            if self._network is None:
                raise EngineError("the engine is closed", "load the model again")
            if self._run is not None:
                raise EngineError("the engine is running already", "finish or close that run first")
            if scoring is not None:
                scoring.require(self._network.built.vocabulary)
            cache, context = self._network.cache, self._traits.max_context
            scheduler = Scheduler(cache, self._rows, self._step_tokens, self._threads, context)
            run = self._run = Run(
                self._network, scheduler, self._scratches, self._end_ids, context, watch, scoring
            )
        try:
            yield from run.results(batches)
        finally:
            with self._lock:
                self._run = None

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Logits [count, vocabulary] of what follows each of the last `count` of `token_ids`, at
        most `max_context`. Not while a run lasts."""
        with self._lock:
            if self._network is None or self._run is not None:
                raise EngineError("the engine is closed or running", "load the model again")
            return logits_after(self._network, self._scratches[0], token_ids, count)

    def close(self) -> None:
        with self._lock:
            run, self._network, self._scratches = self._run, None, []
        if run is not None:
            run.cancel(closes=True)

    def _try_out(self, folder: Path) -> None:
        """Computes one token, for which kernels are compiled where none are kept."""
        started, known = time.monotonic(), compiled_now()
        batch = Batch((Prompt(0, (0,), Decoding(max_new_tokens=1)),))
        (result,) = self.run(iter([batch]))
        if isinstance(result, Failure):
            raise ModelError(f"{folder} cannot be run: {result.message}", _DAMAGED)
        if count := compiled_now() - known:
            _log.warning(
                "compiled %d kernels of the packed engine in %.0f s, kept in %s",
                count, time.monotonic() - started, kernel_folder(),
            )  # fmt: skip


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> PackedEngine:
    """Loads a Hugging Face folder. Raises ModelError and EngineError as `PackedEngine`."""
    if config.workers not in (None, 1):
        raise EngineError(
            f"the packed engine runs all rows together, not {config.workers} batches",
            "leave --workers out and give it more --threads",
        )
    return PackedEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=config.quantization,
        device=config.device,
        threads=config.threads,
        cache_bytes=config.cache_bytes,
    )


def _require(quantization: str, device: str) -> None:
    if quantization not in ("auto", *QUANTIZATIONS):
        raise EngineError(
            f"the packed engine does not run {quantization}, only {', '.join(QUANTIZATIONS)}",
            "for other formats use --engine transformers or --engine ctranslate2",
        )
    if device not in ("auto", "cpu"):
        raise EngineError(
            f"the packed engine runs on a CPU only, not on {device}",
            "use --device cpu, or --engine transformers",
        )


def _blocks(token_bytes: int, max_context: int, cache_bytes: int | None) -> int:
    """Blocks of the cache; EngineError for memory that holds none."""
    block_bytes = token_bytes * BLOCK
    if cache_bytes is None:
        wanted = -(-max(CACHE_TOKENS, max_context) // BLOCK) * block_bytes
        cache_bytes = min(wanted, int(available_bytes() * SHARE_OF_FREE_MEMORY))
    blocks = cache_bytes // block_bytes
    if blocks < 2:
        raise EngineError(
            f"{cache_bytes / 1e6:,.1f} MB hold no keys and values of this model: 16 tokens take "
            f"{block_bytes / 1e6:,.1f} MB",
            "give it more, or use a smaller model or int8",
        )
    return blocks
