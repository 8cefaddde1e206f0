"""The `packed` engine: continuous batching without padding on a CPU."""

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
from packhorse.engines.common.grammars import Grammars
from packhorse.engines.common.rows import NOT_NUMBERS, Result, is_out_of_memory
from packhorse.engines.packed.architecture import Architecture, read_architecture
from packhorse.engines.packed.cache import KeyValueCache, bytes_per_token
from packhorse.engines.packed.caller import Caller
from packhorse.engines.packed.compiling import count_compiled_kernels, kernel_folder
from packhorse.engines.packed.int8_matmul import int8_matmul_is_exact
from packhorse.engines.packed.memory import bytes_per_position, weight_bytes, working_bytes
from packhorse.engines.packed.network import Network
from packhorse.engines.packed.panel_network import PanelNetwork
from packhorse.engines.packed.panels import has_panel_kernels
from packhorse.engines.packed.run import Result as Outcome
from packhorse.engines.packed.run import Run
from packhorse.engines.packed.scheduler import Scheduler
from packhorse.engines.packed.scoring import Scoring, logits_after
from packhorse.engines.packed.scratch import COUNTS, PHASES, Scratch
from packhorse.engines.packed.tiles import BLOCK
from packhorse.engines.packed.weights import load_weights
from packhorse.errors import EngineError, ModelError, first_line
from packhorse.models.reference_logits import EXACT, Tolerance, are_near, check_text, read_reference
from packhorse.params.sampling_params import ENGINE_FIELDS
from packhorse.profiling.cores import usable_cores

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

QUANTIZATIONS = ("float32", "int8")
MAX_NUM_SEQS = 256
MAX_NUM_BATCHED_TOKENS = 512
SHARED_ROWS = 32
"""Up to this number of running rows, all threads compute one step together."""
DEFAULT_CACHE_TOKENS = 1 << 16
LONGEST_ROW = 1 << 20
"""Maximum row length (tokens) that the default cache is sized for, whatever a config claims."""
CHECKED_TOKENS = 8
"""Number of first tokens of the check text whose logits are also computed token by token; all of
them if it exceeds an attention window."""
INT8_TOLERANCE = Tolerance(largest=np.inf, typical=0.9)
"""Tolerance for int8 weights and activations: outlier tokens may differ a lot."""
T = TypeVar("T")
_DAMAGED = "the files are damaged, incomplete or of the wrong kind: fetch or prepare them again"
_NO_VNNI = (
    "this CPU has no VNNI: exact int8 stores weights in two parts, which doubles their memory and "
    "the number of matrix multiplications; float32 may be as fast"
)
_log = logging.getLogger("packhorse.engines")


class PackedEngine:
    """Engine that packs the tokens of all running rows into steps, one step per thread at a time.

    In float32, rows give the same output as with transformers. In int8, a row gives the same tokens
    in any batch. Several runs may be open at the same time; their rows are computed in the same
    steps. `capabilities.peak_bytes` states the peak memory.

    Args:
        folder: config.json and weights of a model of a known family (`decoders.FAMILIES`); no
            code in it is run.
        end_ids: Token ids that end a row.
        tokenizer_folder: Folder of the tokenizer, for structured outputs; None if it is `folder`.
        max_context: Maximum number of prompt and generated tokens per row; lower if the cache holds
            fewer.
        quantization: "float32" (also for "auto"), or "int8": weights per output channel,
            activations per row, the cache per token and head.
        device: "auto" or "cpu".
        threads: Number of steps computed at the same time; None for one per core.
        cache_bytes: Memory of the key/value cache, allocated once; None for what
            DEFAULT_CACHE_TOKENS or one row of `max_context` (at most LONGEST_ROW) need, limited to
            SHARE_OF_FREE_MEMORY of free memory.
        max_num_seqs: Maximum number of running rows.
        max_num_batched_tokens: Maximum number of tokens per step; at least `max_num_seqs`.

    Raises:
        EngineError: The family, format, device or size is not supported.
        ModelError: The folder cannot be loaded completely.
    """

    def __init__(
        self,
        folder: Path,
        *,
        end_ids: tuple[int, ...],
        max_context: int,
        tokenizer_folder: Path | None = None,
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
        read, panels = arch, has_panel_kernels()
        if quantized and not panels and not int8_matmul_is_exact():
            _log.warning(_NO_VNNI)
        weights = _allocate(
            folder, lambda: load_weights(folder, read, quantized=quantized, native=panels)
        )
        arch = replace(arch, ties_head=weights.ties_head)
        return_freed_memory()
        token_bytes = bytes_per_token(arch, quantized=quantized)
        self._end_ids = frozenset(end_ids)
        self._grammars = Grammars(tokenizer_folder or folder, self._end_ids)
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max(max_num_batched_tokens, max_num_seqs)
        self._threads = threads or usable_cores()
        position_bytes = bytes_per_position(arch, self._threads)
        blocks = _count_cache_blocks(token_bytes, position_bytes, max_context, cache_bytes)
        context = min(max_context, blocks * BLOCK)

        def allocate() -> tuple[Network, list[Scratch]]:
            cache = KeyValueCache(arch, blocks, quantized=quantized)
            network_type = PanelNetwork if panels else Network
            network = network_type(arch, weights, cache, context)
            return network, [
                Scratch(
                    arch,
                    self._max_num_batched_tokens,
                    max_num_seqs,
                    context,
                    quantized=quantized,
                    panels=panels,
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
            sampling_fields=ENGINE_FIELDS,
            forces_tokens=True,
            working_bytes=working_bytes(arch, self._scratches, context),
        )
        self._warm_up(folder)
        self._check_logits(folder, arch)

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._capabilities

    @property
    def spent(self) -> dict[str, float]:
        """Seconds of all threads per phase (`scratch.PHASES`), and `scratch.COUNTS`, so far."""
        kept = [{**scratch.seconds, **scratch.counts} for scratch in self._scratches]
        return {name: sum(each[name] for each in kept) for name in (*PHASES, *COUNTS)}

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`.

        Rows are pulled as there is room: `max_num_seqs` run and a quarter as many are queued.
        """
        return cast(Iterator[Result], self._results(batches, on_token))

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`. Rows join and leave as in `run`."""
        results = self._results(batches, scoring=Scoring(continuations))
        return cast("Iterator[Scores | Failure]", results)

    def _results(
        self,
        batches: Iterator[Batch],
        on_token: TokenCallback | None = None,
        scoring: Scoring | None = None,
    ) -> Iterator[Outcome]:
        run, caller = self._attach(on_token, scoring)
        try:
            yield from run.results(caller, batches)
        finally:
            with self._lock:
                if run.detach(caller) and self._run is run:
                    self._run = None

    def _attach(
        self, on_token: TokenCallback | None, scoring: Scoring | None
    ) -> tuple[Run, Caller]:
        """Return the run that computes the rows of a new caller."""
        with self._lock:
            if self._network is None:
                raise EngineError("the engine is closed", "load the model again")
            if self._run is not None and (scoring or self._run.scoring):
                raise EngineError(
                    "the packed engine scores while nothing else runs on it",
                    "finish or close the other run first",
                )
            if scoring is not None:
                scoring.require(self._network.arch.vocabulary)
            if self._run is None:
                cache, context = self._network.cache, self._capabilities.max_context
                scheduler = Scheduler(
                    cache, self._max_num_seqs, self._max_num_batched_tokens, self._threads,
                    context, shared_rows=SHARED_ROWS if self._network.shares_steps else 0,
                )  # fmt: skip
                self._run = Run(
                    self._network,
                    scheduler,
                    self._scratches,
                    self._end_ids,
                    self._grammars,
                    context,
                    scoring,
                )
            caller = Caller(on_token)
            self._run.attach(caller)
            return self._run, caller

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Return the logits [count, vocabulary] after each of the last `count` of `token_ids`.

        `token_ids` has at most `max_context` tokens. Not available during a run.
        """
        with self._lock:
            if self._network is None or self._run is not None:
                raise EngineError("the engine is closed or running", "load the model again")
            return logits_after(self._network, self._scratches[0], token_ids, count)

    def close(self) -> None:
        with self._lock:
            run, self._network, self._scratches = self._run, None, []
        if run is not None:
            run.cancel()

    def _warm_up(self, folder: Path) -> None:
        """Compute one token, which compiles kernels that are not cached."""
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
        """Check the logits of a text against token-by-token decoding and the stored reference.

        Raises:
            ModelError: They differ.
        """
        reference, context = read_reference(folder), self._capabilities.max_context
        window = min(filter(None, arch.windows), default=0)
        if reference is None or max(reference.token_ids) >= arch.vocabulary:
            reference, text = None, check_text(arch.vocabulary, context, window)
        else:
            text = reference.token_ids[:context]
        assert self._network is not None
        first = text if 0 < window < len(text) else text[:CHECKED_TOKENS]
        whole = logits_after(self._network, self._scratches[0], text, len(text))
        if not np.isfinite(whole).all():
            raise ModelError(f"{folder} cannot be run: {NOT_NUMBERS}", _DAMAGED)
        is_long = 0 < arch.decoder.trained_length < len(text)
        stepped = self._compute_logits_token_by_token(first, is_long=is_long)
        if not are_near(stepped, whole[: len(first)], EXACT):
            raise ModelError(
                f"the packed engine computes other logits for a prompt in {folder} "
                "than token by token",
                "use --engine transformers",
            )
        tolerance = EXACT if self._capabilities.compute_type == "float32" else INT8_TOLERANCE
        if reference is not None and not reference.is_near(whole, 0, tolerance):
            raise ModelError(
                f"the packed engine computes other logits from {folder} than its source model",
                "use --engine transformers with the source model",
            )

    def _compute_logits_token_by_token(
        self, text: Sequence[int], *, is_long: bool
    ) -> NDArray[np.float32]:
        """Return the logits [tokens, vocabulary] of a text, computed one token at a time."""
        assert self._network is not None
        return logits_after(
            self._network, self._scratches[0], text, len(text), at_once=1, is_long=is_long
        )


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> PackedEngine:
    """Load a Hugging Face folder. Raises ModelError and EngineError like `PackedEngine`."""
    if config.workers not in (None, 1):
        raise EngineError(
            f"the packed engine runs all rows together, not in {config.workers} workers",
            "omit --workers and increase --threads",
        )
    return PackedEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        tokenizer_folder=prepared.tokenizer_folder,
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
    """Return the number of cache blocks.

    Args:
        token_bytes: Cache memory per token.
        position_bytes: Other memory that grows with the longest row, per position.
        max_context: Maximum number of tokens per row.
        cache_bytes: Memory of the cache; None to derive it from free memory.

    Raises:
        EngineError: The memory does not hold two blocks.
    """
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
            f"a key/value cache of {cache_bytes / 1e6:,.1f} MB is too small for this model: "
            f"{BLOCK} tokens need {block_bytes / 1e6:,.1f} MB",
            "increase --cache-gb, or use a smaller model or int8",
        )
    return blocks


def _allocate(folder: Path, make: Callable[[], T], cache_gb: float | None = None) -> T:
    """Return the result of `make`; raise EngineError if memory runs out.

    Args:
        folder: Folder named in the error.
        make: Allocates the weights or the cache.
        cache_gb: Size of the key/value cache that `make` allocates (GB); None for weights.
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
            f"cannot allocate a key/value cache of {cache_gb:.2g} GB beside the weights of "
            f"{folder} ({first_line(error)})",
            f"reduce it, e.g. --cache-gb {max(0.01, cache_gb / 4):.2g}, or use a smaller model",
        ) from error
