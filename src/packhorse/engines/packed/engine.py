"""The engine `packed`: rows join and leave at every step, and no padding is ever computed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from packhorse.batching.memory import SHARE_OF_FREE_MEMORY, available_bytes
from packhorse.config import EngineConfig
from packhorse.data import Batch, Failure, Prompt, SamplingParams, Scores
from packhorse.engine_protocol import EngineCapabilities, TokenCallback
from packhorse.engines.common.allocator import return_freed_memory
from packhorse.engines.common.rows import NOT_NUMBERS, Result, is_out_of_memory
from packhorse.engines.packed.architecture import Architecture, read_architecture
from packhorse.engines.packed.cache import KeyValueCache, bytes_per_token
from packhorse.engines.packed.compiling import count_compiled_kernels, kernel_folder
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.memory import bytes_per_position, weight_bytes, working_bytes
from packhorse.engines.packed.network import COUNTS, PHASES, Network, Scratch
from packhorse.engines.packed.run import Result as Outcome
from packhorse.engines.packed.run import Run
from packhorse.engines.packed.scheduler import Scheduler
from packhorse.engines.packed.scoring import Scoring, logits_after
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.weights import load_weights
from packhorse.errors import EngineError, ModelError, first_line
from packhorse.models.reference_logits import EXACT, Tolerance, are_near, check_text, read_reference
from packhorse.profiling.cores import usable_cores

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

QUANTIZATIONS = ("float32", "int8")
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 512
DEFAULT_CACHE_TOKENS = 1 << 16
LONGEST_ROW = 1 << 20
"""Tokens of a row that memory is set aside for unasked, whatever a config claims."""
CHECKED_TOKENS = 24
"""Tokens at the end of a text whose logits, computed one by one, are those of the whole text."""
INT8_TOLERANCE = Tolerance(largest=np.inf, typical=0.9)
"""Of int8 weights and activations: outliers of a model cost much, and its text is still its own."""
T = TypeVar("T")
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
    of max_context take (LONGEST_ROW at most), and at most SHARE_OF_FREE_MEMORY of what is free.
    `capabilities.peak_bytes` is what it all comes to. rows: under way at most.
    max_num_batched_tokens: tokens of a step at most, at least `rows`.

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
        max_num_seqs: int = MAX_NUM_SEQS,
        max_num_batched_tokens: int = MAX_NUM_BATCHED_TOKENS,
    ) -> None:
        _check_options(quantization, device)
        quantized = quantization == "int8"
        arch = read_architecture(folder, quantization)
        if quantized and not int8_matmul_is_exact():
            _log.warning(_IN_PARTS)
        described = arch
        weights = _allocate(folder, lambda: load_weights(folder, described, quantized=quantized))
        arch = replace(arch, ties_head=weights.ties_head)
        return_freed_memory()
        token_bytes = bytes_per_token(arch, quantized=quantized)
        self._end_ids = frozenset(end_ids)
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs)
        self._threads = threads or usable_cores()
        position_bytes = bytes_per_position(arch, self._threads)
        blocks = _count_cache_blocks(token_bytes, position_bytes, max_context, cache_bytes)
        context = min(max_context, blocks * BLOCK)

        def allocate() -> tuple[Network, list[Scratch]]:
            cache = KeyValueCache(arch, blocks, quantized=quantized)
            network = Network(arch, weights, cache, context)
            return network, [
                Scratch(
                    arch, self._max_num_batched_tokens, max_num_seqs, context, quantized=quantized
                )
                for _ in range(self._threads)
            ]

        self._network: Network | None
        cache_gb = blocks * BLOCK * token_bytes / 1e9
        self._network, self._scratches = _allocate(folder, allocate, cache_gb)
        self._run: Run | None = None
        self._lock = threading.Lock()
        self._capabilities = EngineCapabilities(
            name="packed",
            cost_rule="packed",
            device="cpu",
            compute_type="int8" if quantized else "float32",
            workers=1,
            threads=self._threads,
            max_context=context,
            model_bytes=weight_bytes(arch, quantized=quantized),
            cache_bytes_per_token=token_bytes,
            preferred_batch_tokens=blocks * BLOCK,
            shares_prefixes=True,
            max_num_seqs=max_num_seqs,
            gives_log_probs=True,
            working_bytes=working_bytes(arch, self._scratches, context),
        )
        self._warm_up(folder)
        self._check_logits(folder, arch)

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._capabilities

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of all threads together in each of `network.PHASES`, and `network.COUNTS`, so
        far."""
        kept = [{**scratch.seconds, **scratch.counts} for scratch in self._scratches]
        return {name: sum(each[name] for each in kept) for name in (*PHASES, *COUNTS)}

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`. Rows are pulled as there is room for them: `rows`
        are under way, and a quarter as many wait."""
        return cast(Iterator[Result], self._results(batches, on_token))

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`. Rows come and go as in `run`."""
        results = self._results(batches, scoring=Scoring(continuations))
        return cast("Iterator[Scores | Failure]", results)

    def _results(
        self,
        batches: Iterator[Batch],
        on_token: TokenCallback | None = None,
        scoring: Scoring | None = None,
    ) -> Iterator[Outcome]:
        with self._lock:
            if self._network is None:
                raise EngineError("the engine is closed", "load the model again")
            if self._run is not None:
                raise EngineError("the engine is running already", "finish or close that run first")
            if scoring is not None:
                scoring.require(self._network.arch.vocabulary)
            cache, context = self._network.cache, self._capabilities.max_context
            scheduler = Scheduler(
                cache, self._max_num_seqs, self._max_num_batched_tokens, self._threads, context
            )
            run = self._run = Run(
                self._network, scheduler, self._scratches, self._end_ids, context, on_token, scoring
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

    def _warm_up(self, folder: Path) -> None:
        """Computes one token, for which kernels are compiled where none are kept."""
        started, known = time.monotonic(), count_compiled_kernels()
        batch = Batch((Prompt(0, (0,), SamplingParams(max_new_tokens=1)),))
        (result,) = self.run(iter([batch]))
        if isinstance(result, Failure):
            raise ModelError(f"{folder} cannot be run: {result.message}", _DAMAGED)
        if count := count_compiled_kernels() - known:
            _log.warning(
                "compiled %d kernels of the packed engine in %.0f s, kept in %s",
                count, time.monotonic() - started, kernel_folder(),
            )  # fmt: skip

    def _check_logits(self, folder: Path, arch: Architecture) -> None:
        """ModelError where a text gives other logits at once than token by token, or others than
        those that are kept beside the weights."""
        reference, context = read_reference(folder), self._capabilities.max_context
        if reference is None or max(reference.token_ids) >= arch.vocabulary:
            reference, text = None, check_text(arch.vocabulary, context, min(arch.windows))
        else:
            text = reference.token_ids[:context]
        assert self._network is not None
        scratch, count = self._scratches[0], min(len(text), CHECKED_TOKENS)
        whole = logits_after(self._network, scratch, text, len(text))
        if not np.isfinite(whole).all():
            raise ModelError(f"{folder} cannot be run: {NOT_NUMBERS}", _DAMAGED)
        if not are_near(self._compute_logits_token_by_token(text, count), whole[-count:], EXACT):
            raise ModelError(
                f"the packed engine computes other logits for the prompt in {folder} than for the "
                "same tokens one after the other",
                "use --engine transformers",
            )
        tolerance = EXACT if self._capabilities.compute_type == "float32" else INT8_TOLERANCE
        if reference is not None and not reference.is_near(whole, 0, tolerance):
            raise ModelError(
                f"the packed engine computes other logits from {folder} than the model it was made "
                "from",
                "use --engine transformers with the model it was made from",
            )

    def _compute_logits_token_by_token(
        self, text: Sequence[int], count: int
    ) -> NDArray[np.float32]:
        """Logits of the last `count` tokens of a text, computed one by one."""
        assert self._network is not None
        return logits_after(self._network, self._scratches[0], text, count, at_once=1)


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


def _check_options(quantization: str, device: str) -> None:
    if quantization not in ("auto", *QUANTIZATIONS):
        raise EngineError(
            f"the packed engine does not run {quantization}, only {', '.join(QUANTIZATIONS)}",
            f"choose --quantization {' or '.join(QUANTIZATIONS)}",
        )
    if device not in ("auto", "cpu"):
        raise EngineError(
            f"the packed engine runs on a CPU only, not on {device}",
            "use --device cpu, or --engine transformers",
        )


def _count_cache_blocks(
    token_bytes: int, position_bytes: int, max_context: int, cache_bytes: int | None
) -> int:
    """Blocks of the cache; EngineError for memory that holds none. position_bytes: of what grows
    with the longest row besides."""
    block_bytes = token_bytes * BLOCK
    if cache_bytes is None:
        wanted = -(-max(DEFAULT_CACHE_TOKENS, min(max_context, LONGEST_ROW)) // BLOCK)
        cache_bytes = int(available_bytes() * SHARE_OF_FREE_MEMORY)
        by_memory = cache_bytes // block_bytes
        if max_context > DEFAULT_CACHE_TOKENS:
            by_memory = cache_bytes // (block_bytes + BLOCK * position_bytes)
        blocks = min(wanted, by_memory)
    else:
        blocks = cache_bytes // block_bytes
    if blocks < 2:
        raise EngineError(
            f"{cache_bytes / 1e6:,.1f} MB hold no keys and values of this model: 16 tokens take "
            f"{block_bytes / 1e6:,.1f} MB",
            "give it more with --cache-gb, or use a smaller model or int8",
        )
    return blocks


def _allocate(folder: Path, make: Callable[[], T], cache_gb: float | None = None) -> T:
    """What `make` returns; EngineError where there is no memory for it.

    cache_gb: size of the keys and values that it allocates (GB); None for the weights.
    """
    try:
        return make()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if cache_gb is None:
            raise EngineError(
                f"the weights of {folder} do not fit into memory ({first_line(error)})",
                "free some memory, or use a smaller model or --quantization int8",
            ) from error
        raise EngineError(
            f"there is no memory for {cache_gb:.2g} GB of keys and values beside the weights of "
            f"{folder} ({first_line(error)})",
            f"give them less, e.g. --cache-gb {max(0.01, cache_gb / 4):.2g}, or use a smaller "
            "model",
        ) from error
