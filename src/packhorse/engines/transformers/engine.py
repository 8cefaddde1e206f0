"""The engine `transformers`: any causal language model of the transformers library, on torch."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from packhorse.config import EngineConfig
from packhorse.data import Batch, Failure, Scores
from packhorse.engine_protocol import EngineCapabilities, TokenCallback
from packhorse.engines.common.grammars import Grammars
from packhorse.engines.common.log_probs import wanted_log_probs
from packhorse.engines.common.rows import (
    NOT_NUMBERS,
    Result,
    Row,
    answer,
    by_common,
    force_tokens,
    refuse,
    settle,
)
from packhorse.engines.common.sampling import choose_tokens, row_generator
from packhorse.engines.transformers.batch_rule import remembers_rows
from packhorse.engines.transformers.continuations import (
    continuation_log_probs,
    logits_after,
    prompt_logits,
    stepped_log_probs,
)
from packhorse.engines.transformers.padded_batch import PaddedBatch
from packhorse.engines.transformers.prefix_states import PrefixState, PrefixStates
from packhorse.engines.transformers.self_check import DAMAGED, examine
from packhorse.errors import EngineError, ModelError, model_errors
from packhorse.models.loading import require_fitting_size
from packhorse.models.prepare import torch_device
from packhorse.models.quiet import quiet_transformers
from packhorse.models.resolved_config import load_config
from packhorse.params.sampling_params import ENGINE_FIELDS
from packhorse.profiling.cores import usable_cores

if TYPE_CHECKING:
    from packhorse.models import ModelFacts, PreparedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STEP_BYTES_PER_LOGIT = 32


def load(prepared: PreparedModel, facts: ModelFacts, config: EngineConfig) -> TransformersEngine:
    """Loads a Hugging Face folder. Raises ModelError and EngineError as `TransformersEngine`."""
    if config.workers not in (None, 1):
        raise EngineError(
            f"the transformers engine runs one batch at a time, not {config.workers}",
            "leave --workers out and give it more --threads, or use --engine ctranslate2",
        )
    return TransformersEngine(
        prepared.folder,
        end_ids=facts.eos_token_ids,
        max_context=facts.max_context,
        tokenizer_folder=prepared.tokenizer_folder,
        quantization=config.quantization,
        device=config.device,
        threads=config.threads,
    )


class TransformersEngine:
    """One batch at a time, padded on the left; rows that are finished leave it at once.

    Several runs may be open at the same time: their batches take turns, step by step. A model that
    keeps states of rows in its layers computes the rows of a batch again after another's turn.

    folder: config.json and weights of a causal language model; no remote code is run.
    end_ids: token ids that end a row. tokenizer_folder: folder of the tokenizer, for structured
    outputs; None if it is `folder`. max_context: prompt and generated tokens of a row (tokens).
    quantization: "auto" (float32 on a CPU, float16 on a GPU), "float32", "bfloat16", "float16".
    device: "auto", "cpu" or "cuda". threads: None is all cores this process may use; it is torch's
    own setting and so holds for the whole process.

    Raises EngineError for a format or device that it or the machine does not have, ModelError for
    a folder that cannot be loaded whole or does not compute what it should (`self_check`).
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
    ) -> None:
        device = _device(device)
        dtype = _dtype(quantization, device)
        torch.set_num_threads(threads or usable_cores())
        self._model: PreTrainedModel | None = _load_model(folder, DTYPES[dtype], device)
        found = examine(self._model, folder)
        self._prefixes = PrefixStates(self._model) if found.shares_prefixes else None
        self._end_ids = frozenset(end_ids)
        self._grammars = Grammars(tokenizer_folder or folder, self._end_ids)
        self._turns = RLock()
        self._computed_last: PaddedBatch | None = None
        self._vocab_size, self._rule = found.vocab_size, found.rule
        tensors = [*self._model.parameters(), *self._model.buffers()]
        self._traits = EngineCapabilities(
            name="transformers",
            cost_rule="padded",
            device=device,
            compute_type=dtype,
            workers=1,
            threads=torch.get_num_threads(),
            max_context=max_context,
            model_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            cache_bytes_per_token=found.cache_bytes,
            step_bytes_per_row=self._vocab_size * _STEP_BYTES_PER_LOGIT + 2 * found.fixed_bytes,
            cache_copies=2,
            shares_prefixes=self._prefixes is not None,
            gives_log_probs=True,
            sampling_fields=ENGINE_FIELDS,
            forces_tokens=True,
            same_length_above=self._rule.same_length_above,
            rows_alone=self._rule.alone,
            separate_above=self._rule.separate_above,
        )

    @property
    def capabilities(self) -> EngineCapabilities:
        return self._traits

    def run(
        self, batches: Iterator[Batch], on_token: TokenCallback | None = None
    ) -> Iterator[Result]:
        """See `packhorse.engine_protocol.Engine`. A batch is pulled when the one before is
        answered."""
        model = self._model
        if model is None:
            raise EngineError("the engine is closed", "load the model again")
        for batch in batches:
            rows = [Row(prompt) for prompt in batch.prompts]
            limits = self._traits.max_context, self._vocab_size
            yield from filter(None, (settle(row, *limits) for row in rows))
            accepted = [row for row in rows if not row.answered]
            if accepted:
                prefix = batch.prompts[0].token_ids[: batch.shared_prefix]
                yield from self._answer(model, accepted, prefix, on_token)

    def score(
        self, batches: Iterator[Batch], continuations: Sequence[Sequence[int]]
    ) -> Iterator[Scores | Failure]:
        """See `packhorse.engine_protocol.Scorer`."""
        model = self._model
        if model is None:
            raise EngineError("the engine is closed", "load the model again")
        for batch in batches:
            rows = [Row(prompt) for prompt in batch.prompts]
            limits = self._traits.max_context, self._vocab_size
            yield from filter(None, (refuse(row, *limits) for row in rows))
            accepted = [row for row in rows if not row.answered]
            if accepted:
                prefix = batch.prompts[0].token_ids[: batch.shared_prefix]
                attempt = partial(self._score, model, prefix, continuations)
                yield from answer(accepted, attempt)

    def logits_after(self, token_ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """See `packhorse.engine_protocol.LogitsProvider`."""
        if self._model is None:
            raise EngineError("the engine is closed", "load the model again")
        with self._turn():
            return logits_after(self._model, token_ids, count)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Use the model for something else than steps of a batch."""
        with self._turns:
            self._computed_last = None
            yield

    def _score(
        self,
        model: PreTrainedModel,
        prefix: tuple[int, ...],
        continuations: Sequence[Sequence[int]],
        rows: list[Row],
    ) -> Iterator[Scores | Failure]:
        longest = max(map(len, continuations))

        def is_stepped(row: Row) -> bool:
            beyond = self._rule.one_scale and self._rule.is_beyond(row.tokens)
            return self._rule.is_beyond(row.tokens + longest - 1) and not beyond

        stepped = [row for row in rows if is_stepped(row)]
        others = [row for row in rows if not is_stepped(row)]
        for group in by_common(others, lambda row: self._group(row, longest)):
            state = self._prefix_state(prefix, group)
            sequences = [row.sequence for row in group]
            with self._turn():
                found = continuation_log_probs(model, sequences, continuations, state)
            yield from _scores(group, found)
        for group in by_common(stepped, lambda row: (self._group(row, longest), row.tokens)):
            sequences = [row.sequence for row in group]
            with self._turn():
                found = stepped_log_probs(model, sequences, continuations, self._rule)
            yield from _scores(group, found)

    def _group(self, row: Row, more: int = 0) -> object:
        """What rows have in common that may share a batch. more: tokens after the prompt, where
        they are not to be generated."""
        prompt = len(row.prompt.token_ids)
        most = prompt + (more or row.prompt.decoding.max_new_tokens)
        own = row.prompt.index if self._rule.needs_own_batch(most) else None
        return own, self._rule.group(prompt, row.tokens, most)

    def _prefix_state(self, prefix: tuple[int, ...], rows: Sequence[Row]) -> PrefixState | None:
        """The state that rows of one batch may go on from, if they may share one."""
        longest = max(row.tokens for row in rows)
        prefixes = self._prefixes
        if prefixes is None or not self._rule.holds_prefix(len(prefix), longest):
            return None
        with self._turn():
            return prefixes.of(prefix)

    def close(self) -> None:
        self._model = self._prefixes = None
        if self._traits.device == "cuda":
            torch.cuda.empty_cache()

    def _answer(
        self,
        model: PreTrainedModel,
        rows: list[Row],
        prefix: tuple[int, ...],
        on_token: TokenCallback | None,
    ) -> Iterator[Result]:
        draws = {row.prompt.index: row_generator(row.prompt.decoding) for row in rows}

        def decode(rows: list[Row]) -> Iterator[Result]:
            yield from self._read_prompts(model, rows)
            groups = by_common([row for row in rows if not row.answered], self._group)
            while groups:
                group = groups.pop(0)
                state = self._prefix_state(prefix, group)
                crossing = yield from self._decode(model, group, state, draws, on_token)
                groups += by_common(crossing, self._group)

        return answer(rows, decode)

    def _read_prompts(self, model: PreTrainedModel, rows: list[Row]) -> Iterator[Result]:
        """Compute log-probabilities of prompts, row by row; yield rows that generate nothing."""
        for row in rows:
            if row.needs_prompt_log_probs:
                row.prompt_log_probs.clear()  # of an attempt that failed
                with self._turn():
                    for logits in prompt_logits(model, row.prompt.token_ids, self._vocab_size):
                        row.take_prompt_logits(logits)
            if not row.prompt.decoding.max_new_tokens:
                yield row.finish_prompt()

    def _decode(
        self,
        model: PreTrainedModel,
        rows: list[Row],
        state: PrefixState | None,
        draws: Mapping[int, Random],
        on_token: TokenCallback | None,
    ) -> Generator[Result, None, list[Row]]:
        """Results of rows of one group; returns those that grew past the trained length
        beside others and go on from there in a batch of their own."""
        rule, crossing = self._rule, list[Row]()
        batch, logits = self._begin(model, rows, state)
        is_below = not any(rule.is_beyond(row.tokens) for row in rows)
        while True:
            chosen = choose_tokens(
                logits,
                [row.prompt.decoding for row in rows],
                [draws[row.prompt.index] for row in rows],
                lambda place, values: rows[place].change_logits(  # noqa: B023
                    values, self._end_ids, self._grammars
                ),
                lambda place, values: rows[place].best_token(  # noqa: B023
                    values, self._end_ids, self._grammars
                ),
            )
            force_tokens(chosen, rows)
            found = wanted_log_probs(
                chosen,
                [row.prompt.decoding for row in rows],
                lambda place: logits[place].float().cpu().numpy(),  # noqa: B023 (used at once)
            )
            going_on = []
            for place, (row, token_id) in enumerate(zip(rows, chosen, strict=True)):
                if token_id is None:
                    yield row.fail_without_token()
                elif result := row.take(token_id, self._end_ids, on_token, found.get(place)):
                    yield result
                elif is_below and rule.is_beyond(row.tokens):
                    crossing.append(row)
                else:
                    going_on.append(place)
            if not going_on:
                return crossing
            with self._turns:
                if self._computed_last is not batch and remembers_rows(model):
                    rows = [rows[place] for place in going_on]
                    batch, logits = self._begin(model, rows, None)
                    continue
                if len(going_on) < len(rows):
                    rows = [rows[place] for place in batch.keep(going_on)]
                self._computed_last = batch
                logits = batch.step([row.token_ids[-1] for row in rows])

    def _begin(
        self, model: PreTrainedModel, rows: list[Row], state: PrefixState | None
    ) -> tuple[PaddedBatch, torch.Tensor]:
        """A batch of rows of one group and the logits of their next tokens."""
        rule, sequences = self._rule, [row.sequence for row in rows]
        at_once = [rule.prefill_tokens(len(row.prompt.token_ids), row.tokens) for row in rows]
        begun = [ids[:count] for ids, count in zip(sequences, at_once, strict=True)]
        with self._turns:
            batch = PaddedBatch(model, begun, pad_id=0, prefix=state)
            self._computed_last = batch
            logits = batch.prefill()
            for place in range(at_once[0], rows[0].tokens):
                logits = batch.step([ids[place] for ids in sequences])
        return batch, logits


def _scores(rows: Sequence[Row], found: torch.Tensor) -> Iterator[Scores | Failure]:
    for row, values in zip(rows, found.tolist(), strict=True):
        numbers = all(map(math.isfinite, values))
        yield row.score(values) if numbers else row.fail("engine_error", NOT_NUMBERS)


def _load_model(folder: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    require_fitting_size(folder)
    with model_errors(f"{folder} cannot be loaded", DAMAGED), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=load_config(folder),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model: PreTrainedModel = loaded[0].eval().to(device)
    if missing := sorted(loaded[1]["missing_keys"]):
        raise ModelError(
            f"{folder} lacks {len(missing)} of the model's weights, e.g. {missing[0]}", DAMAGED
        )
    return model


def _device(asked: str) -> str:
    if asked == "cuda" and not torch.cuda.is_available():
        raise EngineError(
            "no CUDA device is available to torch", "use --device cpu, or install torch with CUDA"
        )
    return torch_device(asked)


def _dtype(asked: str, device: str) -> str:
    if asked == "auto":
        return "float16" if device == "cuda" else "float32"
    if asked not in DTYPES:
        raise EngineError(
            f"the transformers engine does not run {asked}, only {', '.join(DTYPES)}",
            "for int8 use --engine ctranslate2",
        )
    return asked
