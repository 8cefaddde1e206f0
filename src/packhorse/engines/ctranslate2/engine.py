"""The engine `ctranslate2`: CTranslate2's decoder-only models, several batches at once.

Properties of the library (version 4.8) that explain the design:
- In a batch, only as many prompt tokens as the shortest prompt has are prefilled at once; the rest
  is forced through the decoder step by step. Hence the cost rule.
- Two OpenMP threads inside one decode step are several times slower than one; single-threaded
  workers scale. Hence one single-threaded worker per core.
- A callback for every token costs less than 1 % of CPU time, so it is always set: it yields rows as
  soon as they finish, applies each row's own limit, and stops.
- A batch that contains a prompt of one token returns the other rows' prompts as if generated, in
  spite of include_prompt_in_result=False. So such rows get a separate batch.
- The state after a static prompt is kept as long as the model is loaded, without a limit. So the
  engine limits how many it lets the library keep.
- The cache holds keys and values of all query heads, not only of the key/value heads: three times
  as much for SmolLM2. With the prefill, 1.2 to 1.8 times that was measured at the peak.
- If attention has a window, a prompt longer than the window is computed wrongly, and a longer
  static prompt corrupts memory; tokens that are forced or generated beyond it are correct. So
  longer prompts are refused, and a row that is resumed beyond the window prefills the window and
  forces the rest.
- A job's callback is destroyed in a worker after its results are available. An interpreter that
  exits at that moment aborts ("terminate called without an active exception"). So `run` and `close`
  wait until no job is left.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctranslate2
import numpy as np
from numpy.typing import NDArray

from packhorse.config import EngineConfig
from packhorse.data import Batch, Failure, SamplingParams, Scores
from packhorse.engine_protocol import EngineCapabilities, TokenCallback
from packhorse.engine_protocol.registry import engine_entry
from packhorse.engines.common.rows import Result, Row, answer, refuse, settle
from packhorse.engines.ctranslate2.constraints import (
    constraints,
    has_seed,
    read_prompt,
    sampling_options,
    unsupported_sampling,
)
from packhorse.engines.ctranslate2.loading import (
    GeneratorSource,
    available_device,
    await_idle,
    checked_tokens,
    memory_sizes,
    supported_compute_type,
)
from packhorse.engines.ctranslate2.log_probs import (
    StepLogits,
    asks,
    bounded,
    kept_steps,
    too_many_beyond,
    too_many_logits,
)
from packhorse.engines.ctranslate2.scoring import ContinuationScoring
from packhorse.engines.ctranslate2.seeded import SeededWorkers
from packhorse.engines.ctranslate2.step_callback import BatchEnded, Run, StepCallback
from packhorse.errors import EngineError
from packhorse.models.ctranslate2_folder import read_variables, smallest_window
from packhorse.models.engine_support import instead_for_folder
from packhorse.profiling.cores import usable_cores

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

PREFERRED_BATCH_TOKENS = 1024
KEPT_PREFIX_TOKENS = 4096
"""Tokens of shared prefixes whose states are kept; further prefixes are computed once per batch."""
_STEP_BYTES_PER_LOGIT = 16


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> CTranslate2Engine:
    """Load a CTranslate2 folder. Raises ModelError and EngineError as `CTranslate2Engine`."""
    return CTranslate2Engine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        quantization=config.quantization,
        device=config.device,
        workers=config.workers,
        threads=config.threads,
        elsewhere=instead_for_folder(prepared.tokenizer_folder, "ctranslate2"),
    )


class Cancelled(BaseException):
    """Ends a worker's batch after the run was cancelled."""


class CTranslate2Engine:
    """Several batches at once, each on its own worker; rows are yielded as they finish.

    Rows that sample with a seed run alone and cost more memory: see `seeded`. Rows that ask for
    log-probabilities run in smaller batches: see `log_probs`. A temperature below 1e-4 is greedy.
    On a GPU, top_p without top_k draws from the 8,192 most probable tokens.

    Args:
        folder: model.bin, config.json and vocabulary.
        end_ids: token ids that end a row.
        max_context: limit of prompt plus generated tokens of a row (tokens).
        quantization: "auto" is the stored format if the device can run it, otherwise a name of
            CTranslate2's.
        device: "auto", "cpu" or "cuda".
        workers, threads: None is one worker per core (one on a GPU), of one thread.
        elsewhere: hint for rows that only another engine computes correctly.

    Raises:
        EngineError: the compute type or the device is not available.
        ModelError: the folder cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        end_ids: tuple[int, ...],
        max_context: int,
        quantization: str = "auto",
        device: str = "auto",
        workers: int | None = None,
        threads: int | None = None,
        elsewhere: str = "use --engine transformers",
    ) -> None:
        device = available_device(device)
        compute_type = supported_compute_type(quantization, device)
        self._source = GeneratorSource(folder, device, compute_type, threads or 1)
        workers = workers or (1 if device == "cuda" else usable_cores())
        self._generator: Any = self._source.load(workers)
        self._at_exit = weakref.finalize(self, await_idle, self._generator)
        self._closed = threading.Event()
        self._keeping = threading.Lock()
        self._open_runs = 0
        self._kept_prefixes: set[tuple[int, ...]] = set()
        variables = read_variables(folder)
        self._tokens = checked_tokens(self._generator, folder, variables, max_context)
        self._vocab_size = len(self._tokens)
        window = smallest_window(variables)
        self._window = window if window < max_context else 0
        self._elsewhere = elsewhere
        self._end_ids = frozenset(end_ids)
        sizes = memory_sizes(folder, self._generator.compute_type)
        self._traits = EngineCapabilities(
            name="ctranslate2",
            cost_rule="min-prefix-prefill",
            device=device,
            compute_type=self._generator.compute_type,
            workers=workers,
            threads=threads or 1,
            max_context=max_context,
            model_bytes=sizes.model_bytes,
            cache_bytes_per_token=sizes.cache_bytes_per_token,
            step_bytes_per_row=self._vocab_size * _STEP_BYTES_PER_LOGIT,
            cache_copies=2,
            preferred_batch_tokens=PREFERRED_BATCH_TOKENS,
            mixed_decoding=False,
            shares_prefixes=True,
            runs_side_by_side=True,
            gives_log_probs=True,
            sampling_fields=engine_entry("ctranslate2").sampling_fields,
            max_prompt=self._window,
        )

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._traits

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`. One batch more than there are workers is pulled,
        so that no worker is idle; finished rows are yielded before pulling."""
        if self._closed.is_set():
            raise EngineError("the engine is closed", "load the model again")
        run = Run(self._generator, on_token, SeededWorkers(self._source))
        with self._keeping:
            self._open_runs += 1
        executor = ThreadPoolExecutor(self._traits.workers, thread_name_prefix="ctranslate2")
        underway, is_more = 0, True
        try:
            while is_more or underway:
                if is_more and underway <= self._traits.workers and run.results.empty():
                    batch = next(batches, None)
                    is_more = batch is not None
                    if batch is not None and batch.prompts:
                        executor.submit(self._work, batch, run)
                        underway += 1
                    continue
                result = run.results.get()
                if not isinstance(result, BatchEnded):
                    yield result
                    continue
                underway -= 1
                if result.error is not None:
                    raise result.error
        finally:
            run.cancelled.set()
            executor.shutdown(cancel_futures=True)
            run.seeded.close()
            with self._keeping:
                self._open_runs -= 1
                is_last = not self._open_runs
            if is_last:  # jobs of other runs may never be over
                await_idle(run.generator)

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`. Each worker scores one prompt at a time."""
        if self._closed.is_set():
            raise EngineError("the engine is closed", "load the model again")
        return ContinuationScoring(
            self._generator, self._tokens, continuations, self._may_keep, self._refuse,
            self._window, self._traits,
        ).scores(batches)  # fmt: skip

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """See `packhorse.engine_protocol.LogitsProvider`. CTranslate2 returns the logits of all
        positions: tokens x vocabulary x 4 bytes."""
        if self._closed.is_set():
            raise EngineError("the engine is closed", "load the model again")
        if 0 < self._window < len(token_ids):
            raise EngineError(
                f"CTranslate2 computes a text of {len(token_ids)} tokens wrongly at once: the "
                f"model's attention window is {self._window}",
                "add --no-teacher-forcing, or leave this engine out",
            )
        logits = self._generator.forward_batch([list(token_ids)])
        on_cpu = logits.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32)
        found: NDArray[np.float32] = np.array(on_cpu)[0, -count:]
        return found

    def close(self) -> None:
        self._closed.set()
        self._at_exit()
        self._generator = None

    def _work(self, batch: Batch, run: Run) -> None:
        """Run a batch in a thread of the executor."""
        error: BaseException | None = None
        try:
            for result in self._answer(batch, run):
                run.results.put(result)
        except Cancelled:
            pass
        except BaseException as raised:  # noqa: BLE001 - `run` raises it in the caller's thread
            error = raised
        run.results.put(BatchEnded(error))

    def _answer(self, batch: Batch, run: Run) -> Iterator[Result]:
        rows = [Row(prompt) for prompt in batch.prompts]
        yield from filter(None, map(self._settle, rows))
        for row in rows:
            if not row.answered and row.prompt.decoding.prompt_log_probs is not None:
                yield from read_prompt(row, self.logits_after)
        accepted = [row for row in rows if not row.answered]
        seeded = [row for row in accepted if has_seed(row.prompt.decoding)]
        others = [row for row in accepted if not has_seed(row.prompt.decoding)]
        shared = batch.shared_prefix
        yield from answer(others, lambda rows: self._generate_alike(rows, run, shared))
        for row in seeded:
            if asks(row.prompt) and row.tokens_left > kept_steps(self._vocab_size):
                yield row.fail("bad_option", too_many_logits(self._vocab_size))
            else:
                yield from answer([row], lambda rows: self._generate(rows, run))

    def _settle(self, row: Row) -> Result | None:
        """Return the result of a row that need not or cannot run."""
        if failure := self._refuse(row):
            return failure
        if problem := unsupported_sampling(row.prompt, kept_steps(self._vocab_size)):
            return row.fail("unsupported_option", problem)
        return settle(row, self._traits.max_context, self._vocab_size)

    def _refuse(self, row: Row) -> Failure | None:
        """Return the failure of a row that cannot run."""
        if refusal := refuse(row, self._traits.max_context, self._vocab_size):
            return refusal
        tokens = len(row.prompt.token_ids)
        if not self._window or tokens <= self._window:
            return None
        return row.fail(
            "prompt_too_long",
            f"the prompt has {tokens} tokens, and CTranslate2 computes prompts longer than this "
            f"model's attention window of {self._window} wrongly: {self._elsewhere}",
        )

    def _exceeds_window(self, row: Row) -> bool:
        """Whether a row that is resumed is too long to be prefilled at once."""
        return 0 < self._window < len(row.sequence)

    def _generate_alike(self, rows: list[Row], run: Run, shared: int) -> tuple[()]:
        """Generate in groups of rows that CTranslate2 can run in one batch."""
        groups: dict[object, list[Row]] = {}
        for row in rows:
            is_one_token = len(row.sequence) == shared + 1
            sampling = sorted(self._sampling(row.prompt.decoding).items())
            group = (asks(row.prompt), is_one_token, *sampling, *constraints(row, self._end_ids))
            groups.setdefault(group, []).append(row)
        for group_rows in groups.values():
            if asks(group_rows[0].prompt):
                self._generate_bounded(group_rows, run, shared)
            else:
                self._generate(group_rows, run, shared)
        return ()

    def _generate_bounded(self, rows: list[Row], run: Run, shared: int) -> None:
        """Generate in batches whose logits fit into memory."""
        for group, most_steps in bounded(rows, self._vocab_size):
            left, generated = group, -1
            while left and generated < (now := sum(len(row.token_ids) for row in group)):
                generated = now
                self._generate(self._bounded_beyond(left, run), run, shared, most_steps)
                left = [row for row in left if not row.answered]

    def _bounded_beyond(self, rows: list[Row], run: Run) -> list[Row]:
        """Return the rows whose logits fit while tokens past the window are forced; fail others."""
        most = self._window + kept_steps(self._vocab_size)
        for row in rows:
            if self._exceeds_window(row) and len(row.sequence) > most:
                reason = too_many_beyond(self._window, self._vocab_size, self._elsewhere)
                run.results.put(row.fail("bad_option", reason))
        return [row for row in rows if not row.answered]

    def _generate(
        self, rows: list[Row], run: Run, shared: int = 0, most_steps: int | None = None
    ) -> tuple[()]:
        """Runs rows of equal sampling to their end; their results go to `run.results`.

        shared: leading tokens that all have in common and that are computed once. most_steps:
        tokens that a row gets at most; rows that have not ended by then get no result.
        """
        if self._is_stopping(run):
            raise Cancelled
        if not rows:
            return ()
        if len(rows) > 1 and any(map(self._exceeds_window, rows)):
            for row in rows:
                self._generate([row], run, shared, most_steps)
            return ()
        decoding, forced = rows[0].prompt.decoding, 0
        if is_beyond := self._exceeds_window(rows[0]):
            shared, forced = self._window, len(rows[0].sequence) - self._window - 1
        prompts = [[self._tokens[token_id] for token_id in row.sequence[shared:]] for row in rows]
        is_asked = asks(rows[0].prompt)
        logits = StepLogits.of(list(map(len, prompts))) if is_asked else None
        listener = StepCallback(
            rows, self._end_ids, run, lambda: self._is_stopping(run), logits, forced
        )
        left = max(row.tokens_left for row in rows)
        steps = min(left, most_steps or left)
        end_ids, suppressed, least = constraints(rows[0], self._end_ids)
        options: dict[str, Any] = {
            "max_length": forced + steps,
            "min_length": forced + min(least, steps) if least else 0,
            "return_logits_vocab": is_asked,
            "end_token": list(end_ids),
            "include_prompt_in_result": forced > 0,
            **self._sampling(decoding),
        }
        if suppressed:
            options["suppress_sequences"] = [[self._tokens[token]] for token in suppressed]
        if shared:
            prefix = rows[0].sequence[:shared]
            options["static_prompt"] = [self._tokens[token_id] for token_id in prefix]
            options["cache_static_prompt"] = not is_beyond and self._may_keep(prefix)
        if has_seed(decoding):
            run.seeded.generate(prompts[0], decoding.seed or 0, listener, **options)
        else:
            run.generator.generate_batch(prompts, callback=listener, **options)
        if listener.error is not None:
            raise listener.error
        if self._is_stopping(run):
            raise Cancelled
        return ()

    def _may_keep(self, prefix: tuple[int, ...]) -> bool:
        """Whether CTranslate2 may keep the state of a prefix: it never forgets one."""
        with self._keeping:
            held = sum(map(len, self._kept_prefixes))
            if prefix not in self._kept_prefixes and held + len(prefix) <= KEPT_PREFIX_TOKENS:
                self._kept_prefixes.add(prefix)
            return prefix in self._kept_prefixes

    def _is_stopping(self, run: Run) -> bool:
        return run.cancelled.is_set() or self._closed.is_set()

    def _sampling(self, decoding: SamplingParams) -> dict[str, float]:
        return sampling_options(decoding, self._vocab_size, self._traits.device)
